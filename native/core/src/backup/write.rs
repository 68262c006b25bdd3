//! BACKUP_WRITE: checks a message against the replica and copies what is new.
//!
//! Rule: everything is checked before anything changes, so a refusal leaves the replica as it was.
//! Repeats are idempotent: bytes below the received length are ignored, an older certificate is
//! checked and then means nothing.

use crate::backup::frame::Codec;
use crate::backup::segment_buffer::{BufferPool, SegmentBuffer};
use crate::backup::state::{Certified, OpenMemory, Place, Replica, ReplicaKey, State, TOKENS_MAX};
use crate::crc32c;
use crate::entry::SEGMENT_BYTES;
use crate::little_endian::{u32_at, u64_at};
use crate::status::Status;
use std::sync::Arc;
use std::time::Instant;

/// Bytes before the data.
pub(super) const HEADER_BYTES: usize = 48;

const FLAG_OPEN: u32 = 1;
const FLAG_CLOSE: u32 = 2;
const FLAG_PRIMARY: u32 = 4;
const FLAG_CERTIFICATE: u32 = 8;
const FLAGS_KNOWN: u32 = FLAG_OPEN | FLAG_CLOSE | FLAG_PRIMARY | FLAG_CERTIFICATE;

/// A parsed BACKUP_WRITE.
struct Write<'a> {
    key: ReplicaKey,
    epoch: u64,
    offset: usize,
    flags: u32,
    /// {length, checksum}
    certificate: Option<(u32, u32)>,
    bytes: &'a [u8],
}

impl<'a> Write<'a> {
    fn parse(body: &'a [u8]) -> Result<Self, Status> {
        if body.len() < HEADER_BYTES {
            return Err(Status::MalformedRequest);
        }
        let (header, bytes) = body.split_at(HEADER_BYTES);
        let flags = u32_at(header, 40);
        let write = Self {
            key: (u64_at(header, 0), u64_at(header, 8)),
            epoch: u64_at(header, 16),
            offset: u32_at(header, 24) as usize,
            flags,
            certificate: (flags & FLAG_CERTIFICATE != 0)
                .then(|| (u32_at(header, 32), u32_at(header, 36))),
            bytes,
        };
        let whole = u32_at(header, 28) as usize == bytes.len() && flags & !FLAGS_KNOWN == 0;
        let opens_at_zero = !write.has(FLAG_OPEN) || write.offset == 0;
        let certified_end = write
            .certificate
            .is_none_or(|(end, _)| end as usize == write.end());
        if whole && opens_at_zero && certified_end && write.key.0 != 0 && write.key.1 != 0 {
            Ok(write)
        } else {
            Err(Status::MalformedRequest)
        }
    }

    fn has(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }

    fn end(&self) -> usize {
        self.offset + self.bytes.len()
    }

    /// Checks this write against a replica's memory; returns the received length and running
    /// checksum after it.
    fn check_bytes(&self, memory: &OpenMemory) -> Result<(usize, u32), Status> {
        let received = memory.received as usize;
        if self.end() > SEGMENT_BYTES {
            return Err(Status::SegmentOverflow);
        }
        if self.offset > received {
            return Err(Status::InvalidArgument);
        }
        let fresh = self.bytes.get(received - self.offset..).unwrap_or(&[]);
        let running = if fresh.is_empty() {
            memory.running
        } else {
            crc32c::extend(memory.running, fresh)
        };
        if let Some((_, checksum)) = self.certificate {
            let actual = if self.end() >= received {
                running
            } else {
                // SAFETY: bytes below the received length never change.
                crc32c::crc32c(unsafe { memory.buffer.prefix(self.end()) })
            };
            if actual != checksum {
                return Err(Status::ChecksumMismatch);
            }
        }
        Ok((received + fresh.len(), running))
    }
}

/// What became of an accepted write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// For a flush: then the sink gets its token. Else it is done, and the sink hears nothing.
    pub waits: bool,
}

impl State {
    /// Takes one BACKUP_WRITE body. With `wait_for_flush` false only closes wait.
    pub fn write(
        &mut self,
        body: &[u8],
        token: u64,
        wait_for_flush: bool,
        pool: &Arc<BufferPool>,
        now: Instant,
    ) -> Result<Accepted, Status> {
        let write = Write::parse(body)?;
        if self.fenced.contains(&write.key.0) {
            return Err(Status::Fenced);
        }
        if self.tokens_waiting >= TOKENS_MAX {
            return Err(Status::Retry);
        }
        let opens = match self.replicas.get(&write.key) {
            None => true,
            Some(replica) => replica.from_restart,
        };
        if opens {
            self.check_open(&write)?;
            self.open_replica(&write, pool)?;
        }
        let replica = self
            .replicas
            .get_mut(&write.key)
            .expect("found or opened above");
        if replica.lost {
            return Err(Status::DiskError);
        }
        let waits = if replica.closed {
            check_repeated_close(replica, &write)?;
            !replica.durable_closed
        } else {
            extend_replica(replica, &write)?;
            wait_for_flush || write.has(FLAG_CLOSE)
        };
        if waits {
            replica.waiting.push(token);
            self.tokens_waiting += 1;
        }
        self.urgent |= write.has(FLAG_CLOSE);
        self.mark_dirty(write.key, now);
        Ok(Accepted { waits })
    }

    fn check_open(&self, write: &Write<'_>) -> Result<(), Status> {
        if !write.has(FLAG_OPEN) {
            return Err(Status::ReplicaUnknown);
        }
        if write.end() > SEGMENT_BYTES {
            return Err(Status::SegmentOverflow);
        }
        if write
            .certificate
            .is_some_and(|(_, sum)| sum != crc32c::crc32c(write.bytes))
        {
            return Err(Status::ChecksumMismatch);
        }
        if write.has(FLAG_CLOSE) && write.certificate.is_none() {
            return Err(Status::MalformedRequest);
        }
        if self.frames.free_count() == 0 {
            return Err(Status::NoFreeFrame);
        }
        Ok(())
    }

    fn open_replica(&mut self, write: &Write<'_>, pool: &Arc<BufferPool>) -> Result<(), Status> {
        let buffer: Arc<SegmentBuffer> = Arc::new(pool.take()?);
        let frame = self.frames.allocate().ok_or(Status::NoFreeFrame)?;
        let replaced = self.replicas.remove(&write.key).map(Box::new);
        let replica = Replica {
            id: self.new_replica_id(),
            primary: write.has(FLAG_PRIMARY),
            place: Place::Whole(frame),
            certified: None,
            closed: false,
            durable: None,
            durable_closed: false,
            durable_ahead: false,
            codec: Codec::Raw,
            stored: 0,
            memory: Some(OpenMemory {
                buffer,
                received: 0,
                running: 0,
                flushed_blocks: 0,
            }),
            waiting: Vec::new(),
            lost: false,
            rotten: false,
            from_restart: false,
            replaced,
        };
        self.replicas.insert(write.key, replica);
        Ok(())
    }
}

fn check_repeated_close(replica: &Replica, write: &Write<'_>) -> Result<(), Status> {
    let certified = replica.certified.expect("a closed replica is certified");
    let same_end = write.end() == certified.length as usize;
    let same_certificate = write
        .certificate
        .is_none_or(|sum| sum == (certified.length, certified.checksum));
    if write.has(FLAG_CLOSE) && same_end && same_certificate {
        Ok(())
    } else {
        Err(Status::ReplicaClosed)
    }
}

fn extend_replica(replica: &mut Replica, write: &Write<'_>) -> Result<(), Status> {
    let memory = replica
        .memory
        .as_mut()
        .expect("an open replica of this process is in memory");
    let (received, running) = write.check_bytes(memory)?;
    let before = replica.certified;
    if before.is_some_and(|certified| write.epoch < certified.epoch) {
        return Err(Status::InvalidArgument);
    }
    let mut certified = before;
    if let Some((length, checksum)) = write.certificate {
        certified = match before {
            Some(old) if old.length > length => Some(Certified {
                epoch: write.epoch,
                ..old
            }),
            _ => Some(Certified {
                length,
                checksum,
                epoch: write.epoch,
            }),
        };
    }
    if write.has(FLAG_CLOSE) && certified.is_none_or(|end| end.length as usize != received) {
        return Err(Status::MalformedRequest);
    }
    let fresh = received - memory.received as usize;
    if fresh > 0 {
        let start = write.bytes.len() - fresh;
        // SAFETY: appends happen under the state's lock, and no slice reaches beyond `received`.
        unsafe {
            memory
                .buffer
                .append(memory.received as usize, &write.bytes[start..])
        };
    }
    memory.received = received as u32;
    memory.running = running;
    replica.certified = certified;
    replica.closed = write.has(FLAG_CLOSE);
    Ok(())
}
