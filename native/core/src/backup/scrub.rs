//! The scrub: reads closed replicas again, slowly, and finds what has rotted.
//!
//! Rule: of a closed replica both is verified, the slot that a restart would believe and all bytes
//! against their certificate. What fails twice is *rotten*: it stays listed as such until it is
//! freed, its frames take nothing more, and somebody else tells its master. A slot that the I/O
//! thread wrote meanwhile proves nothing. Bytes are read in small steps at a limited rate, so that
//! a write never waits behind more than one step.

use crate::backup::frame::{
    BLOCK_BYTES, Codec, DATA_OFFSET, FrameState, SLOT_BYTES, SlotContent, block_ceiling,
    block_floor, decode_slot, frame_offset, slot_offset,
};
use crate::backup::lz4_image;
use crate::backup::segment_buffer::AlignedBytes;
use crate::backup::state::{Certified, Place, Replica, ReplicaKey, State};
use crate::backup::storage::Shared;
use crate::crc32c;
use parking_lot::MutexGuard;
use std::ops::Bound;
use std::sync::Arc;
use std::time::{Duration, Instant};

const STEP_BYTES: usize = 256 << 10;
/// Between two passes, so that few replicas do not keep the thread busy.
const PASS_PAUSE: Duration = Duration::from_secs(1);

/// A replica as it was when its turn came.
#[derive(Clone, Copy)]
struct Subject {
    key: ReplicaKey,
    id: u64,
    certified: Certified,
    place: Place,
    codec: Codec,
    stored: u32,
    slot: usize,
    sequence: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Sound,
    /// Not what the certificate says, or not to be read at all.
    Rotten {
        unreadable: bool,
    },
    /// Freed, moved or written to meanwhile, or no memory to tell.
    Unknown,
    Stopped,
}

/// What reading found.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Bytes {
    Checksum(u32),
    /// An image that cannot be restored.
    Broken,
    Unreadable,
    NoMemory,
}

struct Scrub<'a> {
    shared: &'a Shared,
    step: AlignedBytes,
    next_step_at: Instant,
}

/// Runs until the storage stops.
pub(super) fn run(shared: &Arc<Shared>) {
    let mut scrub = Scrub {
        shared,
        step: AlignedBytes::new(STEP_BYTES),
        next_step_at: Instant::now(),
    };
    let mut after: Bound<ReplicaKey> = Bound::Unbounded;
    loop {
        let subject = next_subject(&mut shared.state.lock(), after);
        let Some(subject) = subject else {
            if !scrub.end_pass() {
                return;
            }
            after = Bound::Unbounded;
            continue;
        };
        after = Bound::Excluded(subject.key);
        match scrub.examine_twice(subject) {
            Verdict::Stopped => return,
            Verdict::Rotten { unreadable } => condemn(shared, &subject, unreadable),
            Verdict::Sound | Verdict::Unknown => {}
        }
    }
}

/// The next replica at rest, pinned.
fn next_subject(state: &mut State, after: Bound<ReplicaKey>) -> Option<Subject> {
    let mut rest = state.replicas.range((after, Bound::Unbounded));
    let wanted = |replica: &Replica| replica.at_rest() && !replica.rotten;
    let (&key, _) = rest.find(|(_, replica)| wanted(replica))?;
    capture(state, key)
}

fn capture(state: &mut State, key: ReplicaKey) -> Option<Subject> {
    let replica = state.replicas.get(&key)?;
    let (place, id) = (replica.place, replica.id);
    let (certified, codec, stored) = (replica.durable?, replica.codec, replica.stored);
    state.pin(place);
    let frame = state.frames.frame_mut(place.extent().home.frame);
    Some(Subject {
        key,
        id,
        certified,
        place,
        codec,
        stored,
        slot: frame.newest_slot,
        sequence: frame.sequence,
    })
}

fn same<'a>(state: &'a mut State, subject: &Subject) -> Option<&'a mut Replica> {
    let replica = state.replicas.get_mut(&subject.key)?;
    (replica.id == subject.id && replica.place == subject.place).then_some(replica)
}

/// A disk that cannot be read will not take replicas for long.
fn condemn(shared: &Shared, subject: &Subject, unreadable: bool) {
    let mut done = Vec::new();
    {
        let mut state = shared.state.lock();
        let Some(replica) = same(&mut state, subject) else {
            return;
        };
        replica.rotten = true;
        state.counters.rot_found += 1;
        for piece in subject.place.extent().pieces() {
            state.frames.retire(piece.frame);
        }
        if unreadable {
            state.note_unreadable(&mut done);
            state.tokens_waiting -= done.len().min(state.tokens_waiting);
        }
    }
    shared.deliver(done);
}

impl Scrub<'_> {
    /// Reads again what looks rotten: an error in reading may pass.
    fn examine_twice(&mut self, subject: Subject) -> Verdict {
        let first = self.examine(&subject);
        self.shared.state.lock().unpin(subject.place);
        if !matches!(first, Verdict::Rotten { .. }) {
            return first;
        }
        let again = {
            let mut state = self.shared.state.lock();
            let there = same(&mut state, &subject).is_some();
            there.then(|| capture(&mut state, subject.key)).flatten()
        };
        let Some(again) = again else {
            return Verdict::Unknown;
        };
        let second = self.examine(&again);
        self.shared.state.lock().unpin(again.place);
        second
    }

    fn examine(&mut self, subject: &Subject) -> Verdict {
        let mut slot = AlignedBytes::new(SLOT_BYTES);
        let home = subject.place.extent().home.frame;
        let slot_at = slot_offset(home, subject.slot);
        let slot_read = self.shared.file.read(slot.bytes_mut(), slot_at).is_ok();
        let found = if !slot_read {
            Bytes::Unreadable
        } else if !names(&decode_slot(slot.bytes()), subject) {
            Bytes::Broken
        } else {
            match self.bytes(subject, &slot.bytes()[BLOCK_BYTES..]) {
                Some(found) => found,
                None => return Verdict::Stopped,
            }
        };
        let sound = found == Bytes::Checksum(subject.certified.checksum);
        let mut state = self.shared.state.lock();
        let unchanged = state.frames.frame_mut(home).sequence == subject.sequence;
        if same(&mut state, subject).is_none() || found == Bytes::NoMemory || !(sound || unchanged)
        {
            return Verdict::Unknown;
        }
        if sound {
            Verdict::Sound
        } else {
            Verdict::Rotten {
                unreadable: found == Bytes::Unreadable,
            }
        }
    }

    /// None: the storage stops.
    fn bytes(&mut self, subject: &Subject, tail: &[u8]) -> Option<Bytes> {
        let length = subject.certified.length as usize;
        match subject.codec {
            Codec::Raw => {
                let floor = block_floor(length);
                let at = frame_offset(subject.place.whole()) + DATA_OFFSET as u64;
                let mut running = 0;
                let read = self.read(at, floor, |_, bytes| {
                    running = crc32c::extend(running, bytes);
                })?;
                let checksum = crc32c::extend(running, &tail[..length - floor]);
                Some(if read {
                    Bytes::Checksum(checksum)
                } else {
                    Bytes::Unreadable
                })
            }
            Codec::Lz4 => self.image_bytes(subject, length),
        }
    }

    /// None: the storage stops.
    fn image_bytes(&mut self, subject: &Subject, length: usize) -> Option<Bytes> {
        let stored = subject.stored as usize;
        let pool = &self.shared.pool;
        let (Ok(mut image), Ok(mut raw)) = (pool.take(), pool.take()) else {
            return Some(Bytes::NoMemory);
        };
        for (offset, range) in subject.place.extent().runs(block_ceiling(stored)) {
            let run = &mut image.bytes_mut()[range];
            let run_length = run.len();
            let read = self.read(offset, run_length, |at, bytes| {
                run[at..at + bytes.len()].copy_from_slice(bytes);
            })?;
            if !read {
                return Some(Bytes::Unreadable);
            }
        }
        let raw = &mut raw.bytes_mut()[..length];
        let restored = lz4_image::decode(&image.bytes_mut()[..stored], raw);
        Some(match restored {
            Ok(()) => Bytes::Checksum(crc32c::crc32c(raw)),
            Err(_) => Bytes::Broken,
        })
    }

    /// Hands on `length` bytes in steps, at the rate. None: the storage stops. False: an error.
    fn read(
        &mut self,
        offset: u64,
        length: usize,
        mut take: impl FnMut(usize, &[u8]),
    ) -> Option<bool> {
        for at in (0..length).step_by(STEP_BYTES) {
            let count = STEP_BYTES.min(length - at);
            self.await_turn(count)?;
            let bytes = &mut self.step.bytes_mut()[..count];
            if self.shared.file.read(bytes, offset + at as u64).is_err() {
                return Some(false);
            }
            take(at, bytes);
            self.shared.state.lock().counters.scrubbed_bytes += count as u64;
        }
        Some(true)
    }

    /// None: the storage stops.
    fn await_turn(&mut self, count: usize) -> Option<()> {
        let rate = self.shared.options.scrub_bytes_per_second as f64;
        let at = self.next_step_at.max(Instant::now());
        self.next_step_at = at + Duration::from_secs_f64(count as f64 / rate);
        let state = self.shared.state.lock();
        self.wait_until(state, at).then_some(())
    }

    /// False: the storage stops.
    fn end_pass(&self) -> bool {
        let mut state = self.shared.state.lock();
        state.counters.scrub_passes += 1;
        self.wait_until(state, Instant::now() + PASS_PAUSE)
    }

    fn wait_until(&self, mut state: MutexGuard<'_, State>, at: Instant) -> bool {
        while !state.stopping && Instant::now() < at {
            self.shared.scrub_wake.wait_until(&mut state, at);
        }
        !state.stopping
    }
}

/// Whether a slot says what memory says.
fn names(slot: &SlotContent, subject: &Subject) -> bool {
    let Certified {
        length,
        checksum,
        epoch,
    } = subject.certified;
    let said = match slot {
        SlotContent::Valid(one)
            if one.state == FrameState::Closed && one.codec == subject.codec =>
        {
            (
                one.master_id,
                one.segment_id,
                one.epoch,
                one.length,
                one.checksum,
                one.stored,
            )
        }
        SlotContent::Shared(directory) => {
            let units = subject.place.extent().home.units;
            let tenant = directory.tenants.iter().find(|one| one.units == units);
            let Some(one) = tenant else {
                return false;
            };
            (
                one.master_id,
                one.segment_id,
                one.epoch,
                one.length,
                one.checksum,
                one.stored,
            )
        }
        SlotContent::Valid(_) | SlotContent::Empty | SlotContent::Corrupt => return false,
    };
    let (master_id, segment_id) = subject.key;
    said == (
        master_id,
        segment_id,
        epoch,
        length,
        checksum,
        subject.stored,
    )
}
