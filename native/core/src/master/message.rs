//! EXECUTE bodies (`docs/formats.md` §3): requests parsed, replies written.
//!
//! Rules: a request is checked as a whole before any of it is executed; a reply always keeps 16
//! bytes for each result that is still to come, so it can never be cut off.

use super::hash_table::prefetch;
use crate::little_endian::{u32_at, u64_at};
use crate::status::Status;

/// Most operations of one message.
pub const OPERATIONS_MAX: usize = 65_536;
const REQUEST_HEADER_BYTES: usize = 24;
const OPERATION_HEADER_BYTES: usize = 32;
const REPLY_HEADER_BYTES: usize = 8;
const RESULT_HEADER_BYTES: usize = 16;
const LINE_BYTES: usize = 64;
/// Bytes of a body that are fetched ahead; the processor fetches what follows by itself.
const FETCHED_BYTES: usize = 16 << 10;

/// Reject rules, tested in this order.
pub mod reject {
    /// The object must exist.
    pub const DOES_NOT_EXIST: u8 = 1;
    /// The object must not exist.
    pub const EXISTS: u8 = 2;
    /// Its version must be above the given one.
    pub const VERSION_LE_GIVEN: u8 = 4;
    /// Its version must be the given one.
    pub const VERSION_NE_GIVEN: u8 = 8;
    /// All of them.
    pub const ALL: u8 = 15;
}

/// What an operation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OperationKind {
    /// Returns the value.
    Read,
    /// Creates or replaces.
    Write,
    /// Deletes.
    Remove,
}

/// One operation of a request.
#[derive(Clone, Copy, Debug)]
pub struct Operation<'a> {
    /// What it does.
    pub kind: OperationKind,
    /// Its reject rules.
    pub reject: u8,
    /// May be empty, which is that operation's error.
    pub key: &'a [u8],
    /// Of a write.
    pub value: &'a [u8],
    /// Its table.
    pub table_id: u64,
    /// Of a mutation: at least 1.
    pub rpc_id: u64,
    /// For the reject rules on versions.
    pub given_version: u64,
}

/// A checked request.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Who asks.
    pub client_id: u64,
    /// He has the results up to here.
    pub ack_id: u64,
    /// Number of operations.
    pub count: usize,
    operations: &'a [u8],
}

impl<'a> Request<'a> {
    /// Checks a body.
    ///
    /// # Errors
    /// `MalformedRequest`.
    pub fn parse(body: &'a [u8]) -> Result<Self, Status> {
        if body.len() < REQUEST_HEADER_BYTES || u32_at(body, 20) != 0 {
            return Err(Status::MalformedRequest);
        }
        let count = u32_at(body, 16) as usize;
        if count > OPERATIONS_MAX {
            return Err(Status::MalformedRequest);
        }
        for line in body.chunks(LINE_BYTES).take(FETCHED_BYTES / LINE_BYTES) {
            prefetch(line.as_ptr());
        }
        let operations = &body[REQUEST_HEADER_BYTES..];
        let mut rest = operations;
        for _ in 0..count {
            rest = parse_operation(rest).ok_or(Status::MalformedRequest)?.1;
        }
        if !rest.is_empty() {
            return Err(Status::MalformedRequest);
        }
        Ok(Self {
            client_id: u64_at(body, 0),
            ack_id: u64_at(body, 8),
            count,
            operations,
        })
    }

    /// Its operations in order.
    #[inline]
    pub fn operations(&self) -> impl Iterator<Item = Operation<'a>> + use<'a> {
        let mut rest = self.operations;
        std::iter::from_fn(move || {
            let (operation, behind) = parse_operation(rest)?;
            rest = behind;
            Some(operation)
        })
    }
}

#[inline]
fn parse_operation(bytes: &[u8]) -> Option<(Operation<'_>, &[u8])> {
    let header = bytes.get(..OPERATION_HEADER_BYTES)?;
    let kind = match header[0] {
        1 => OperationKind::Read,
        2 => OperationKind::Write,
        3 => OperationKind::Remove,
        _ => return None,
    };
    let key_length = usize::from(u16::from_le_bytes([header[2], header[3]]));
    let value_length = u32_at(header, 4) as usize;
    let value_at = OPERATION_HEADER_BYTES + key_length;
    let end = value_at + value_length;
    let behind = bytes.get(end.next_multiple_of(8)..)?;
    let operation = Operation {
        kind,
        reject: header[1],
        key: &bytes[OPERATION_HEADER_BYTES..value_at],
        value: &bytes[value_at..end],
        table_id: u64_at(header, 8),
        rpc_id: u64_at(header, 16),
        given_version: u64_at(header, 24),
    };
    let mutation = kind != OperationKind::Read;
    let sound = operation.reject & !reject::ALL == 0
        && (value_length == 0 || kind == OperationKind::Write)
        && (operation.rpc_id != 0 || !mutation);
    sound.then_some((operation, behind))
}

/// A reply under construction.
pub struct Reply<'a> {
    out: &'a mut [u8],
    at: usize,
    remaining: usize,
}

impl<'a> Reply<'a> {
    /// Starts a reply with `count` results.
    ///
    /// # Errors
    /// `MalformedRequest` if not even empty results would fit.
    pub fn new(out: &'a mut [u8], count: usize) -> Result<Self, Status> {
        if out.len() < REPLY_HEADER_BYTES + count * RESULT_HEADER_BYTES {
            return Err(Status::MalformedRequest);
        }
        out[..4].copy_from_slice(&(count as u32).to_le_bytes());
        out[4..8].fill(0);
        Ok(Self {
            out,
            at: REPLY_HEADER_BYTES,
            remaining: count,
        })
    }

    /// Whether the next result can carry `value_bytes`.
    #[inline]
    pub fn has_room(&self, value_bytes: usize) -> bool {
        let reserved = self.remaining * RESULT_HEADER_BYTES;
        self.at + reserved + value_bytes.next_multiple_of(8) <= self.out.len()
    }

    /// Adds the next result.
    ///
    /// # Panics
    /// If it does not fit or there were enough of them: the caller has asked before.
    #[inline]
    pub fn push(&mut self, status: Status, retry_after_ms: u16, version: u64, value: &[u8]) {
        assert!(
            self.remaining > 0 && self.has_room(value.len()),
            "a result has its room"
        );
        let padded = value.len().next_multiple_of(8);
        let out = &mut self.out[self.at..self.at + RESULT_HEADER_BYTES + padded];
        out[..2].copy_from_slice(&(status as u16).to_le_bytes());
        out[2..4].copy_from_slice(&retry_after_ms.to_le_bytes());
        out[4..8].copy_from_slice(&(value.len() as u32).to_le_bytes());
        out[8..16].copy_from_slice(&version.to_le_bytes());
        // The value covers all of the last word but its padding.
        if let Some(last) = out[16..].last_chunk_mut::<8>() {
            *last = [0; 8];
        }
        out[16..16 + value.len()].copy_from_slice(value);
        self.at += RESULT_HEADER_BYTES + padded;
        self.remaining -= 1;
    }

    /// Its length, when all results are there.
    pub fn finish(self) -> usize {
        assert!(self.remaining == 0, "every operation has a result");
        self.at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(count: u32, operations: &[u8]) -> Vec<u8> {
        let mut body = vec![0u8; REQUEST_HEADER_BYTES];
        body[0] = 7;
        body[16..20].copy_from_slice(&count.to_le_bytes());
        body.extend_from_slice(operations);
        body
    }

    fn write_operation() -> Vec<u8> {
        let mut operation = vec![0u8; 40];
        operation[0] = 2;
        operation[2] = 3;
        operation[4] = 5;
        operation[16] = 1;
        operation[32..40].copy_from_slice(b"keyvalue");
        operation
    }

    #[test]
    fn a_request_is_whole_or_refused() {
        let good = body(1, &write_operation());
        let request = Request::parse(&good).expect("parses");
        let operation = request.operations().next().expect("one operation");
        assert_eq!(
            (operation.key, operation.value),
            (&b"key"[..], &b"value"[..])
        );
        for length in 0..good.len() {
            assert!(Request::parse(&good[..length]).is_err(), "cut at {length}");
        }
        let wrong = |at: usize, byte: u8| {
            let mut bytes = good.clone();
            bytes[at] = byte;
            Request::parse(&bytes).is_err()
        };
        assert!(wrong(16, 2) && wrong(16, 0) && wrong(20, 1)); // count, flags
        assert!(wrong(24, 4) && wrong(25, 16) && wrong(24, 3)); // kind, rules, value of a remove
        assert!(wrong(31, 0xff) && wrong(40, 0)); // length, rpc id
        assert!(Request::parse(&[&good[..], &[0; 8]].concat()).is_err());
    }
}
