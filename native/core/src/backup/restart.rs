//! The scan at start: which replicas the frames hold (`docs/formats.md` §4, *Restart*).
//!
//! Rule: an open replica counts only if all its bytes match its certificate, else the other slot's
//! is tried. A closed replica is believed here, because its slot is written only after its data is
//! flushed, and verified when it is read. Of a replica's groups only the newest can be cut off, and
//! the slot beside its first group is free or empty: such a frame is used again, last. Any other
//! frame without a whole replica is damaged; it is kept as it is and never used.

use crate::backup::frame::{
    BLOCK_BYTES, CertificateBlock, Codec, DATA_OFFSET, FrameState, SLOT_BYTES, SLOTS, SlotContent,
    decode_slot, encode_slot, frame_offset, slot_offset,
};
use crate::backup::frame_file::FrameFile;
use crate::backup::frame_table::{Frame, FrameUse};
use crate::backup::read::{Location, read_from_disk};
use crate::backup::segment_buffer::{AlignedBytes, BufferPool};
use crate::backup::state::{Certified, Replica, State};
use crate::status::Status;
use std::io;
use std::sync::Arc;

enum Found {
    Free,
    Replica(usize, CertificateBlock),
    /// The first group of a replica, cut off by a crash: nothing of it was acknowledged. (Or it
    /// has rotted since, which looks the same; hence counted, and used last.)
    Torn,
    /// No slot's replica is whole, and no crash explains it: it may have held acknowledged bytes.
    Damaged,
    Unreadable,
}

struct Scan<'a> {
    file: &'a FrameFile,
    pool: &'a Arc<BufferPool>,
    slots: AlignedBytes,
}

/// Fills the state from the file.
pub(super) fn scan(file: &FrameFile, pool: &Arc<BufferPool>, state: &mut State) -> io::Result<()> {
    let mut scan = Scan {
        file,
        pool,
        slots: AlignedBytes::new(DATA_OFFSET),
    };
    let mut torn = Vec::new();
    let mut superseded = Vec::new();
    let count = u32::try_from(file.frame_count()?).map_err(io::Error::other)?;
    for index in 0..count {
        let mut frame = Frame::new(FrameUse::Used);
        match scan.frame(index, &mut frame) {
            Found::Free => frame.usage = FrameUse::Free,
            Found::Replica(slot, certificate) => {
                frame.newest_slot = slot;
                superseded.extend(keep_best(state, index, &certificate));
            }
            Found::Torn => {
                state.counters.torn_at_restart += 1;
                torn.push(index);
            }
            Found::Damaged | Found::Unreadable => {
                state.counters.bad_at_restart += 1;
                frame.usage = FrameUse::Bad;
            }
        }
        state.frames.push_found(frame);
    }
    free_superseded(file, state, &superseded);
    torn.into_iter()
        .for_each(|index| state.frames.release(index));
    Ok(())
}

impl Scan<'_> {
    fn frame(&mut self, index: u32, frame: &mut Frame) -> Found {
        if self
            .file
            .read(self.slots.bytes_mut(), frame_offset(index))
            .is_err()
        {
            return Found::Unreadable;
        }
        let slots = self.slots.bytes();
        let contents: Vec<SlotContent> = slots.chunks_exact(SLOT_BYTES).map(decode_slot).collect();
        let mut valid: Vec<(usize, CertificateBlock)> = Vec::with_capacity(SLOTS);
        for (slot, content) in contents.iter().enumerate() {
            if let SlotContent::Valid(certificate) = content {
                valid.push((slot, *certificate));
            }
        }
        valid.sort_by_key(|(_, certificate)| std::cmp::Reverse(certificate.sequence));
        let Some(&(newest_slot, newest)) = valid.first() else {
            let untouched = contents
                .iter()
                .all(|content| *content == SlotContent::Empty);
            if untouched {
                return Found::Free;
            }
            return torn_or_damaged(&contents, frame);
        };
        frame.sequence = newest.sequence;
        frame.newest_slot = newest_slot;
        if newest.state == FrameState::Free {
            return Found::Free;
        }
        for (slot, certificate) in valid {
            let same = (certificate.master_id, certificate.segment_id)
                == (newest.master_id, newest.segment_id);
            if !same || certificate.state == FrameState::Free {
                continue;
            }
            match self.holds(index, slot, &certificate) {
                Ok(()) => return Found::Replica(slot, certificate),
                Err(Status::DiskError) => return Found::Unreadable,
                Err(_) => {}
            }
        }
        torn_or_damaged(&contents, frame)
    }

    fn holds(&self, frame: u32, slot: usize, certificate: &CertificateBlock) -> Result<(), Status> {
        if certificate.state == FrameState::Closed {
            return Ok(());
        }
        let CertificateBlock {
            length,
            checksum,
            codec,
            stored,
            ..
        } = *certificate;
        let location = Location {
            frame,
            slot,
            codec,
            stored,
            length,
            checksum,
        };
        read_from_disk(self.file, self.pool, &location).map(drop)
    }
}

/// Says which of the two it is; the next slot written in a torn frame is the torn one, so that the
/// free or empty slot beside it goes on to tell the one from the other.
fn torn_or_damaged(contents: &[SlotContent], frame: &mut Frame) -> Found {
    let unused = |content: &SlotContent| match content {
        SlotContent::Empty => true,
        SlotContent::Valid(certificate) => certificate.state == FrameState::Free,
        SlotContent::Corrupt => false,
    };
    let Some(slot) = contents.iter().position(unused) else {
        return Found::Damaged;
    };
    frame.newest_slot = slot;
    Found::Torn
}

/// Adds a replica; of two with the same key the closed, younger, longer one stays. Returns the
/// frame of the other.
fn keep_best(state: &mut State, frame: u32, found: &CertificateBlock) -> Option<u32> {
    let key = (found.master_id, found.segment_id);
    let closed = found.state == FrameState::Closed;
    let certified = Certified {
        length: found.length,
        checksum: found.checksum,
        epoch: found.epoch,
    };
    let rank = (closed, found.epoch, found.length, found.codec == Codec::Lz4);
    let rival = state.replicas.get(&key).map(|rival| {
        let Certified { length, epoch, .. } = rival.certified.expect("found with a certificate");
        (
            rival.frame,
            (rival.closed, epoch, length, rival.codec == Codec::Lz4),
        )
    });
    if rival.is_some_and(|(_, other)| other >= rank) {
        return Some(frame);
    }
    let id = state.new_replica_id();
    let replica = Replica {
        id,
        primary: found.primary,
        frame,
        certified: Some(certified),
        closed,
        durable: Some(certified),
        durable_closed: closed,
        codec: found.codec,
        stored: found.stored,
        memory: None,
        waiting: Vec::new(),
        from_restart: true,
        replaced: None,
    };
    state.replicas.insert(key, replica);
    rival.map(|(frame, _)| frame)
}

/// Marks frames free on disk; one that cannot be written is latched bad.
fn free_superseded(file: &FrameFile, state: &mut State, frames: &[u32]) {
    let mut written = Vec::new();
    let mut slot_bytes = AlignedBytes::new(SLOT_BYTES);
    for &frame in frames {
        let (slot, sequence) = state.frames.next_slot(frame);
        encode_slot(&free_certificate(sequence), &[], slot_bytes.bytes_mut());
        if file
            .write(slot_bytes.bytes(), slot_offset(frame, slot))
            .is_ok()
        {
            written.push((frame, slot));
        } else {
            state.counters.disk_errors += 1;
            state.frames.latch_bad(frame);
        }
    }
    let synced = written.is_empty() || file.sync().is_ok();
    for (frame, slot) in written {
        if synced {
            state.frames.frame_mut(frame).newest_slot = slot;
            state.frames.release(frame);
        } else {
            state.counters.disk_errors += 1;
            state.frames.latch_bad(frame);
        }
    }
}

/// The certificate of a frame that holds nothing.
pub(super) fn free_certificate(sequence: u64) -> CertificateBlock {
    CertificateBlock {
        sequence,
        master_id: 0,
        segment_id: 0,
        epoch: 0,
        length: 0,
        checksum: 0,
        state: FrameState::Free,
        primary: false,
        codec: Codec::Raw,
        stored: 0,
    }
}

const _: () = assert!(DATA_OFFSET == SLOTS * SLOT_BYTES && SLOT_BYTES == 2 * BLOCK_BYTES);
