//! Reads a whole replica, from memory or disk, and checks it against its certificate.
//!
//! Rule: bytes leave this module only if their CRC-32C is the certificate's. A frame that is being
//! read is pinned, so that it cannot be freed and filled with another replica meanwhile.

use crate::backup::frame::{
    BLOCK_BYTES, Codec, DATA_OFFSET, block_ceiling, block_floor, frame_offset, slot_offset,
};
use crate::backup::frame_file::FrameFile;
use crate::backup::lz4_image;
use crate::backup::segment_buffer::{BufferPool, SegmentBuffer};
use crate::backup::state::{Place, ReplicaKey};
use crate::backup::storage::Shared;
use crate::crc32c::crc32c;
use crate::entry::SEGMENT_BYTES;
use crate::status::Status;
use std::sync::Arc;

/// Where a replica lies on disk, and its certificate.
pub(super) struct Location {
    pub place: Place,
    /// Of a raw replica: the slot with its tail.
    pub slot: usize,
    pub codec: Codec,
    pub stored: u32,
    pub length: u32,
    pub checksum: u32,
}

/// The verified bytes of a replica.
pub(super) struct ReplicaBytes {
    buffer: Arc<SegmentBuffer>,
    length: usize,
}

impl ReplicaBytes {
    /// Of a closed replica that is still in memory.
    pub fn of_closed(buffer: &Arc<SegmentBuffer>, length: u32) -> Self {
        let (buffer, length) = (Arc::clone(buffer), length as usize);
        Self { buffer, length }
    }

    pub fn bytes(&self) -> &[u8] {
        // SAFETY: `length` is at most the received length, below which bytes never change.
        unsafe { self.buffer.prefix(self.length) }
    }

    fn verified(self, checksum: u32) -> Result<Self, Status> {
        if crc32c(self.bytes()) == checksum {
            Ok(self)
        } else {
            Err(Status::ChecksumMismatch)
        }
    }
}

/// Reads and verifies a replica that is on disk.
pub(super) fn read_from_disk(
    file: &FrameFile,
    pool: &Arc<BufferPool>,
    location: &Location,
) -> Result<ReplicaBytes, Status> {
    let length = location.length as usize;
    let stored = location.stored as usize;
    let read = |bytes: &mut [u8], offset: u64| {
        let result = if bytes.is_empty() {
            Ok(())
        } else {
            file.read(bytes, offset)
        };
        result.map_err(|_| Status::DiskError)
    };
    let mut buffer = pool.take()?;
    match location.codec {
        Codec::Raw => {
            let frame = location.place.whole();
            let data = frame_offset(frame) + DATA_OFFSET as u64;
            let floor = block_floor(length);
            read(&mut buffer.bytes_mut()[..floor], data)?;
            if floor < length {
                let tail = slot_offset(frame, location.slot) + BLOCK_BYTES as u64;
                read(&mut buffer.bytes_mut()[floor..floor + BLOCK_BYTES], tail)?;
            }
        }
        Codec::Lz4 => {
            let mut image = pool.take()?;
            let end = block_ceiling(stored);
            assert!(end <= SEGMENT_BYTES, "decode_slot checks the limit");
            for (offset, range) in location.place.extent().runs(end) {
                read(&mut image.bytes_mut()[range], offset)?;
            }
            lz4_image::decode(
                &image.bytes_mut()[..stored],
                &mut buffer.bytes_mut()[..length],
            )?;
        }
    }
    ReplicaBytes {
        buffer: Arc::new(buffer),
        length,
    }
    .verified(location.checksum)
}

impl Shared {
    /// The newest certified bytes of a replica.
    pub(super) fn read_replica(&self, key: ReplicaKey) -> Result<ReplicaBytes, Status> {
        let location = {
            let mut state = self.state.lock();
            let replica = state
                .replicas
                .get(&key)
                .and_then(|replica| replica.visible());
            let replica = replica.ok_or(Status::ReplicaUnknown)?;
            let certified = replica.certified.expect("visible replicas are certified");
            if let Some(memory) = &replica.memory {
                let buffer = Arc::clone(&memory.buffer);
                let length = certified.length as usize;
                drop(state);
                return ReplicaBytes { buffer, length }.verified(certified.checksum);
            }
            let (place, codec, stored) = (replica.place, replica.codec, replica.stored);
            state.pin(place);
            let home = place.extent().home.frame;
            Location {
                place,
                slot: state.frames.frame_mut(home).newest_slot,
                codec,
                stored,
                length: certified.length,
                checksum: certified.checksum,
            }
        };
        let result = read_from_disk(&self.file, &self.pool, &location);
        let mut state = self.state.lock();
        state.unpin(location.place);
        if result.is_err() {
            state.counters.read_errors += 1;
        }
        result
    }
}
