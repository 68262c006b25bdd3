//! Frees and directories: the part of a group that is not appends.
//!
//! Rule: all slots are written by the I/O thread, one slot of a frame in a group, never the newest
//! one. A free or a switch to an image counts when the group is durable: only then are units and
//! raw frames given back. A directory that says something new is repeated in the other slot with
//! the next group that there is, so that one damaged block costs no image; the free of the raw
//! frame makes such a group at once.

use crate::backup::directory::{Directory, Extent, Tenant, encode_directory};
use crate::backup::disk_failure::Failures;
use crate::backup::frame::{BLOCK_BYTES, Codec, SLOT_BYTES, encode_slot, slot_offset};
use crate::backup::frame_file::FrameFile;
use crate::backup::restart::free_certificate;
use crate::backup::segment_buffer::AlignedBytes;
use crate::backup::state::{Job, Place, ReplicaKey, State, Switch};
use crate::backup::storage::Completion;
use crate::status::Status;
use std::collections::BTreeMap;
use std::io;

struct WholeFree {
    slot: usize,
    sequence: u64,
    failed: bool,
}

#[derive(Default)]
struct DirectoryPlan {
    slot: usize,
    sequence: u64,
    /// What the directory will say; none: the frame is free.
    tenants: Vec<Tenant>,
    arriving: Vec<Switch>,
    leaving: Vec<Extent>,
    failed: bool,
}

/// The frees and directories of one group.
#[derive(Default)]
pub(super) struct FrameJobs {
    wholes: BTreeMap<u32, WholeFree>,
    directories: BTreeMap<u32, DirectoryPlan>,
    frees: Vec<Free>,
}

struct Free {
    places: Vec<(ReplicaKey, Place)>,
    incomplete: bool,
    done: Completion,
}

impl FrameJobs {
    /// Plans a free; its completion waits for the group.
    pub fn add_free(
        &mut self,
        state: &mut State,
        places: Vec<(ReplicaKey, Place)>,
        incomplete: bool,
        done: Completion,
    ) {
        // First, so that it is answered whatever happens below.
        self.frees.push(Free {
            places: places.clone(),
            incomplete,
            done,
        });
        for (_, place) in places {
            match place {
                Place::Whole(frame) => {
                    let failed = state.frames.is_bad(frame);
                    let (slot, sequence) = if failed {
                        (0, 0)
                    } else {
                        state.frames.next_slot(frame)
                    };
                    let whole = WholeFree {
                        slot,
                        sequence,
                        failed,
                    };
                    let before = self.wholes.insert(frame, whole);
                    assert!(before.is_none(), "a frame is freed once");
                }
                Place::Shared(extent) => {
                    state.frames.shared.remove_tenant(extent.home);
                    let plan = self.directories.entry(extent.home.frame).or_default();
                    plan.leaving.push(extent);
                }
            }
        }
    }

    /// Plans the switch of a closed replica to its image, unless the replica is gone.
    pub fn add_switch(&mut self, state: &mut State, switch: Switch) {
        let extent = switch.extent;
        let replica = state.replicas.get(&switch.key);
        let wanted = replica.is_some_and(|replica| replica.id == switch.id);
        if !wanted || state.frames.is_bad(extent.home.frame) {
            state.counters.compression_skipped += 1;
            return state.frames.release_extent(extent);
        }
        let tenant = switch.tenant();
        state.frames.shared.add_tenant(extent.home.frame, tenant);
        let plan = self.directories.entry(extent.home.frame).or_default();
        plan.arriving.push(switch);
    }

    /// All of the group's changes are added: takes the directories as they are now.
    pub fn seal(&mut self, state: &mut State) {
        for frame in state.frames.shared.mirrors_due() {
            self.directories.entry(frame).or_default();
        }
        for (&frame, plan) in &mut self.directories {
            plan.failed = state.frames.is_bad(frame);
            if !plan.failed {
                (plan.slot, plan.sequence) = state.frames.next_slot(frame);
                plan.tenants = state.frames.shared.tenants(frame).to_vec();
            }
        }
    }

    /// What waits for an answer; only after a panic.
    pub fn take_completions(&mut self) -> impl Iterator<Item = Completion> {
        std::mem::take(&mut self.frees)
            .into_iter()
            .map(|free| free.done)
    }

    pub fn is_empty(&self) -> bool {
        self.wholes.is_empty() && self.directories.is_empty()
    }

    pub fn write(
        &mut self,
        file: &FrameFile,
        slot_bytes: &mut AlignedBytes,
        failures: &mut Failures,
    ) {
        let mut failed = |result: io::Result<()>| match result {
            Ok(()) => false,
            Err(error) => {
                failures.note_frame(&error);
                true
            }
        };
        for (&frame, whole) in self.wholes.iter_mut().filter(|(_, whole)| !whole.failed) {
            let result = write_free(file, frame, whole.slot, whole.sequence, slot_bytes);
            whole.failed = failed(result);
        }
        for (&frame, plan) in self.directories.iter_mut().filter(|(_, plan)| !plan.failed) {
            plan.failed = failed(plan.write(file, frame, slot_bytes));
        }
    }

    /// The sync of the group failed.
    pub fn fail(&mut self) {
        self.wholes
            .values_mut()
            .for_each(|whole| whole.failed = true);
        self.directories
            .values_mut()
            .for_each(|plan| plan.failed = true);
    }

    /// The group is durable, or parts of it failed.
    pub fn apply(
        &mut self,
        state: &mut State,
        completions: &mut Vec<(Completion, Result<(), Status>)>,
    ) {
        let (wholes, directories) = (&self.wholes, &self.directories);
        for free in self.frees.drain(..) {
            let failed = |place: &Place| match place {
                Place::Whole(frame) => wholes[frame].failed,
                Place::Shared(extent) => directories[&extent.home.frame].failed,
            };
            let mut incomplete = free.incomplete;
            for (key, _) in free.places.iter().filter(|(_, place)| failed(place)) {
                state.unfreed.insert(*key);
                incomplete = true;
            }
            let result = if incomplete {
                Err(Status::DiskError)
            } else {
                Ok(())
            };
            completions.push((free.done, result));
        }
        for (frame, whole) in std::mem::take(&mut self.wholes) {
            if whole.failed {
                state.counters.disk_errors += 1;
                state.frames.latch_bad(frame);
            } else {
                state.frames.frame_mut(frame).newest_slot = whole.slot;
                state.frames.release(frame);
            }
        }
        for (frame, plan) in std::mem::take(&mut self.directories) {
            plan.apply(state, frame);
        }
    }
}

impl DirectoryPlan {
    fn write(&self, file: &FrameFile, frame: u32, block: &mut AlignedBytes) -> io::Result<()> {
        if self.tenants.is_empty() {
            return write_free(file, frame, self.slot, self.sequence, block);
        }
        let directory = Directory {
            sequence: self.sequence,
            tenants: self.tenants.clone(),
        };
        encode_directory(&directory, &mut block.bytes_mut()[..BLOCK_BYTES]);
        file.write(&block.bytes()[..BLOCK_BYTES], slot_offset(frame, self.slot))
    }

    /// After a failure it is unknown what the disk says: the images that left keep their units, and
    /// those that were to come are not used.
    fn apply(self, state: &mut State, frame: u32) {
        if self.failed {
            state.counters.disk_errors += 1;
            state.counters.compression_skipped += self.arriving.len() as u64;
            return state.frames.latch_bad(frame);
        }
        let changes = !self.arriving.is_empty() || !self.leaving.is_empty();
        state.frames.frame_mut(frame).newest_slot = self.slot;
        state.frames.shared.set_mirror_due(frame, changes);
        for switch in self.arriving {
            switch_to_image(state, switch);
        }
        for extent in self.leaving {
            state.frames.release_extent(extent);
        }
    }
}

fn write_free(
    file: &FrameFile,
    frame: u32,
    slot: usize,
    sequence: u64,
    slot_bytes: &mut AlignedBytes,
) -> io::Result<()> {
    encode_slot(&free_certificate(sequence), &[], slot_bytes.bytes_mut());
    file.write(&slot_bytes.bytes()[..SLOT_BYTES], slot_offset(frame, slot))
}

/// Makes the image the replica and frees the raw frame; or the image, if the replica is gone.
fn switch_to_image(state: &mut State, switch: Switch) {
    let replica = state.replicas.get_mut(&switch.key);
    let image = Place::Shared(switch.extent);
    let unused = match replica.filter(|replica| replica.id == switch.id) {
        Some(replica) => {
            replica.codec = Codec::Lz4;
            replica.stored = switch.stored;
            state.counters.compressed += 1;
            let saved = switch.certified.length - switch.stored;
            state.counters.compression_saved_bytes += u64::from(saved);
            std::mem::replace(&mut replica.place, image)
        }
        None => image,
    };
    state.jobs.push_back(Job::Free {
        places: vec![(switch.key, unused)],
        incomplete: false,
        done: Box::new(drop),
    });
}
