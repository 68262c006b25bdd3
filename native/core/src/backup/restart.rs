//! The scan at start: which replicas the frames hold (`docs/formats.md` §4, *Restart*).
//!
//! Rule: an open replica counts only if all its bytes match its certificate, else the other slot's
//! is tried. A closed replica is believed here, because its slot is written only after its data is
//! flushed, and verified when it is read. Of a replica's groups only the newest can be cut off, and
//! the slot beside its first group is free or empty: such a frame is used again, last. Any other
//! frame without a whole replica is damaged; it is kept as it is and never used.
//!
//! The newest valid slot says what kind a frame is. Images that a directory names are believed as
//! closed replicas are, but read and verified if the slot beside it is corrupt: then the directory
//! may be an older one, and its units filled anew since. An image whose bytes or units are those of
//! another is dropped and counted.

use crate::backup::directory::{Directory, Extent, Tenant};
use crate::backup::frame::{
    BLOCK_BYTES, CertificateBlock, Codec, DATA_OFFSET, FrameState, SLOT_BYTES, SLOTS, SlotContent,
    decode_slot, frame_offset,
};
use crate::backup::frame_file::FrameFile;
use crate::backup::frame_table::{Frame, FrameUse};
use crate::backup::read::{Location, read_from_disk};
use crate::backup::segment_buffer::{AlignedBytes, BufferPool};
use crate::backup::state::{Certified, Job, Place, Replica, ReplicaKey, State};
use crate::status::Status;
use std::io;
use std::sync::Arc;

enum Found {
    Free,
    Replica(usize, CertificateBlock),
    Shared(SharedFound),
    /// The first group of a replica, cut off by a crash: nothing of it was acknowledged. (Or it
    /// has rotted since, which looks the same; hence counted, and used last.)
    Torn,
    /// No slot's replica is whole, and no crash explains it: it may have held acknowledged bytes.
    Damaged,
    Unreadable,
}

struct SharedFound {
    frame: u32,
    directory: Directory,
    /// Of the other slot.
    corrupt_beside: bool,
    same_beside: bool,
}

struct Scan<'a> {
    file: &'a FrameFile,
    pool: &'a Arc<BufferPool>,
    slots: AlignedBytes,
}

/// Fills the state from the file; what it finds twice is left to be freed in `state.jobs`.
pub(super) fn scan(file: &FrameFile, pool: &Arc<BufferPool>, state: &mut State) -> io::Result<()> {
    let mut scan = Scan {
        file,
        pool,
        slots: AlignedBytes::new(DATA_OFFSET),
    };
    let mut torn = Vec::new();
    let mut shared = Vec::new();
    let mut places = Vec::new();
    let count = u32::try_from(file.frame_count()?).map_err(io::Error::other)?;
    for index in 0..count {
        let mut frame = Frame::new(FrameUse::Used);
        match scan.frame(index, &mut frame) {
            Found::Free => frame.usage = FrameUse::Free,
            Found::Replica(slot, certificate) => {
                frame.newest_slot = slot;
                places.extend(keep_best(state, &Candidate::whole(index, &certificate)));
            }
            Found::Shared(found) => {
                frame.usage = FrameUse::Shared;
                shared.push(found);
            }
            Found::Torn => {
                state.counters.torn_at_restart += 1;
                frame.usage = FrameUse::Free;
                torn.push(index);
            }
            Found::Damaged | Found::Unreadable => {
                state.counters.bad_at_restart += 1;
                frame.usage = FrameUse::Bad;
            }
        }
        state.frames.push_found(frame);
    }
    places.extend(scan.keep_tenants(state, &shared));
    state.frames.found_all(&torn);
    if !places.is_empty() {
        state.jobs.push_back(Job::Free {
            places,
            incomplete: false,
            done: Box::new(drop),
        });
    }
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
        if let Some(found) = newest_directory(index, frame, &contents) {
            return Found::Shared(found);
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
            place: Place::Whole(frame),
            slot,
            codec,
            stored,
            length,
            checksum,
        };
        read_from_disk(self.file, self.pool, &location).map(drop)
    }

    /// Takes the units of all directories and adds their replicas. Returns what they supersede.
    fn keep_tenants(&self, state: &mut State, shared: &[SharedFound]) -> Vec<(ReplicaKey, Place)> {
        let mut places = Vec::new();
        // Homes first: a directory is surer of its own frame than another one of it.
        for found in shared {
            for tenant in &found.directory.tenants {
                let claimed = state.frames.claim(tenant.extent(found.frame).home);
                assert!(claimed, "the units of a directory are disjoint");
                state.frames.shared.add_tenant(found.frame, *tenant);
            }
        }
        for found in shared {
            for tenant in &found.directory.tenants {
                let extent = tenant.extent(found.frame);
                let (home, next) = (extent.home, extent.next);
                let held = if next.is_some_and(|next| !state.frames.claim(next)) {
                    Some(Extent { home, next: None })
                } else if found.corrupt_beside && !self.tenant_holds(tenant, extent) {
                    Some(extent)
                } else {
                    places.extend(keep_best(state, &Candidate::tenant(found.frame, tenant)));
                    None
                };
                if let Some(held) = held {
                    state.counters.images_bad_at_restart += 1;
                    state.frames.shared.remove_tenant(home);
                    state.frames.release_extent(held);
                }
            }
        }
        for found in shared.iter().filter(|found| !found.same_beside) {
            if state.frames.shared.contains(found.frame) {
                state.frames.shared.set_mirror_due(found.frame, true);
            }
        }
        places
    }

    /// False only if its bytes were read and are others: an error may pass.
    fn tenant_holds(&self, tenant: &Tenant, extent: Extent) -> bool {
        let location = Location {
            place: Place::Shared(extent),
            slot: 0,
            codec: Codec::Lz4,
            stored: tenant.stored,
            length: tenant.length,
            checksum: tenant.checksum,
        };
        let read = read_from_disk(self.file, self.pool, &location).map(drop);
        read != Err(Status::ChecksumMismatch)
    }
}

/// The directory, if the newest valid slot is one.
fn newest_directory(
    index: u32,
    frame: &mut Frame,
    contents: &[SlotContent],
) -> Option<SharedFound> {
    let sequence = |content: &SlotContent| match content {
        SlotContent::Valid(certificate) => Some(certificate.sequence),
        SlotContent::Shared(directory) => Some(directory.sequence),
        SlotContent::Empty | SlotContent::Corrupt => None,
    };
    let newest = (0..contents.len()).max_by_key(|&slot| sequence(&contents[slot]))?;
    let SlotContent::Shared(directory) = &contents[newest] else {
        return None;
    };
    frame.sequence = directory.sequence;
    frame.newest_slot = newest;
    let beside = &contents[SLOTS - 1 - newest];
    let same = |other: &Directory| other.tenants == directory.tenants;
    Some(SharedFound {
        frame: index,
        directory: directory.clone(),
        corrupt_beside: *beside == SlotContent::Corrupt,
        same_beside: matches!(beside, SlotContent::Shared(other) if same(other)),
    })
}

/// Says which of the two it is; the next slot written in a torn frame is the torn one, so that the
/// free or empty slot beside it goes on to tell the one from the other.
fn torn_or_damaged(contents: &[SlotContent], frame: &mut Frame) -> Found {
    let unused = |content: &SlotContent| match content {
        SlotContent::Empty => true,
        SlotContent::Valid(certificate) => certificate.state == FrameState::Free,
        SlotContent::Corrupt | SlotContent::Shared(_) => false,
    };
    let Some(slot) = contents.iter().position(unused) else {
        return Found::Damaged;
    };
    frame.newest_slot = slot;
    Found::Torn
}

/// A replica that the scan found.
struct Candidate {
    key: ReplicaKey,
    certified: Certified,
    closed: bool,
    ahead: bool,
    primary: bool,
    codec: Codec,
    stored: u32,
    place: Place,
}

impl Candidate {
    fn whole(frame: u32, found: &CertificateBlock) -> Self {
        Self {
            key: (found.master_id, found.segment_id),
            certified: Certified {
                length: found.length,
                checksum: found.checksum,
                epoch: found.epoch,
            },
            closed: found.state == FrameState::Closed,
            ahead: found.state == FrameState::Ahead,
            primary: found.primary,
            codec: found.codec,
            stored: found.stored,
            place: Place::Whole(frame),
        }
    }

    fn tenant(frame: u32, tenant: &Tenant) -> Self {
        Self {
            key: (tenant.master_id, tenant.segment_id),
            certified: Certified {
                length: tenant.length,
                checksum: tenant.checksum,
                epoch: tenant.epoch,
            },
            closed: true,
            ahead: false,
            primary: tenant.primary,
            codec: Codec::Lz4,
            stored: tenant.stored,
            place: Place::Shared(tenant.extent(frame)),
        }
    }

    /// Closed, younger, longer replicas stay, and of two that are equal so far the image.
    fn rank(&self) -> (bool, u64, u32, bool) {
        let Certified { length, epoch, .. } = self.certified;
        (self.closed, epoch, length, self.codec == Codec::Lz4)
    }
}

/// Adds a replica; of two with the same key the better one stays. Returns the place of the other.
fn keep_best(state: &mut State, found: &Candidate) -> Option<(ReplicaKey, Place)> {
    let rival = state.replicas.get(&found.key).map(|rival| Candidate {
        key: found.key,
        certified: rival.certified.expect("found with a certificate"),
        closed: rival.closed,
        ahead: rival.durable_ahead,
        primary: rival.primary,
        codec: rival.codec,
        stored: rival.stored,
        place: rival.place,
    });
    if rival
        .as_ref()
        .is_some_and(|rival| rival.rank() >= found.rank())
    {
        return Some((found.key, found.place));
    }
    let replica = Replica {
        id: state.new_replica_id(),
        primary: found.primary,
        place: found.place,
        certified: Some(found.certified),
        closed: found.closed,
        durable: Some(found.certified),
        durable_closed: found.closed,
        durable_ahead: found.ahead,
        codec: found.codec,
        stored: found.stored,
        memory: None,
        waiting: Vec::new(),
        lost: false,
        rotten: false,
        from_restart: true,
        replaced: None,
    };
    state.replicas.insert(found.key, replica);
    rival.map(|rival| (rival.key, rival.place))
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
