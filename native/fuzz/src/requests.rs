//! EXECUTE bodies written and replies read by the layout of `docs/formats.md` §3, independently of
//! the core.

use crate::reference::{Fields, u32_at};

/// An operation to write down.
#[derive(Clone, Copy, Debug, Default)]
pub struct Operation<'a> {
    /// 1 read, 2 write, 3 remove.
    pub kind: u8,
    /// Reject rules.
    pub reject: u8,
    /// Table.
    pub table_id: u64,
    /// 0 for a read.
    pub rpc_id: u64,
    /// For the reject rules.
    pub given_version: u64,
    /// Key.
    pub key: &'a [u8],
    /// Value of a write.
    pub value: &'a [u8],
}

/// A body.
pub fn body(client_id: u64, ack_id: u64, operations: &[Operation<'_>]) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend(client_id.to_le_bytes());
    out.extend(ack_id.to_le_bytes());
    out.extend((operations.len() as u32).to_le_bytes());
    out.extend([0; 4]);
    for operation in operations {
        out.extend([operation.kind, operation.reject]);
        out.extend((operation.key.len() as u16).to_le_bytes());
        out.extend((operation.value.len() as u32).to_le_bytes());
        out.extend(operation.table_id.to_le_bytes());
        out.extend(operation.rpc_id.to_le_bytes());
        out.extend(operation.given_version.to_le_bytes());
        out.extend_from_slice(operation.key);
        out.extend_from_slice(operation.value);
        out.resize(out.len().next_multiple_of(8), 0);
    }
    out
}

/// One result of a reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// Hint for a retry.
    pub retry_after_ms: u16,
    /// Version field.
    pub version: u64,
    /// Value of a read.
    pub value: Vec<u8>,
}

/// The results of a reply.
///
/// # Panics
/// If it is not well-formed to the last byte.
pub fn answers(reply: &[u8]) -> Vec<Answer> {
    assert!(
        reply.len() >= 8 && u32_at(reply, 4) == 0,
        "a reply has its header"
    );
    let count = u32_at(reply, 0);
    let mut fields = Fields::new(&reply[8..]);
    let mut answers = Vec::new();
    for _ in 0..count {
        let (status, retry_after_ms, length) = (fields.u16(), fields.u16(), fields.u32() as usize);
        let version = u64::from_le_bytes(fields.array());
        let value = fields.bytes(length).to_vec();
        assert!(value.len() == length, "values lie inside the reply");
        let padding = fields.bytes(length.next_multiple_of(8) - length);
        assert!(padding.iter().all(|byte| *byte == 0), "padding is zero");
        answers.push(Answer {
            status,
            retry_after_ms,
            version,
            value,
        });
    }
    assert!(fields.is_empty(), "nothing behind the last result");
    answers
}
