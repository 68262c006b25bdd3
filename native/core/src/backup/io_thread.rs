//! The I/O thread: group commit of all replicas, frees and superblocks; pre-writing when idle, but
//! not while a recovery is served: its copies would wait for zeros that double what is written.
//!
//! One round: take everything that waits, write it, ONE fdatasync, then report. A failed write or
//! sync is never tried again: its tokens get `DiskError`; `disk_failure` says what else it costs.
//! Whatever was taken is in the group, outside of the rounds, until it is answered: a panic leaves
//! no token and no completion unanswered.

use crate::backup::disk_failure::Failures;
use crate::backup::frame::{
    BLOCK_BYTES, DATA_OFFSET, FRAME_BYTES, SLOT_BYTES, block_floor, encode_slot, frame_offset,
    slot_offset,
};
use crate::backup::frame_file::FrameFile;
use crate::backup::frame_jobs::FrameJobs;
use crate::backup::segment_buffer::AlignedBytes;
use crate::backup::state::{FlushPlan, Job, State};
use crate::backup::storage::{Completion, Durability, Shared};
use crate::backup::superblock::{Identity, Superblock};
use crate::backup::write_queue::BlockWrite;
use crate::status::Status;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

const PREWRITE_STEP_BYTES: usize = 1 << 20;
/// Replicas whose writes are under way together.
const PLANS_AT_ONCE: usize = 16;
/// Closed replicas that wait for the compressor with their bytes in memory.
const COMPRESS_QUEUE_MAX: usize = 4;

#[derive(Default)]
struct Group {
    plans: Vec<FlushPlan>,
    frames: FrameJobs,
    superblocks: Vec<(Option<Identity>, Completion)>,
    /// Tokens and what to tell them.
    done: Vec<(u64, Status)>,
    completions: Vec<(Completion, Result<(), Status>)>,
}

impl Group {
    /// Answers what is left of it after a panic: what is settled as it is, all else `Internal`.
    fn abandon(&mut self, shared: &Shared) {
        let mut done = std::mem::take(&mut self.done);
        for plan in &mut self.plans {
            done.extend(plan.tokens.drain(..).map(|token| (token, Status::Internal)));
        }
        shared.deliver(done);
        for (done, result) in self.completions.drain(..) {
            done(result);
        }
        let superblocks = self.superblocks.drain(..).map(|(_, done)| done);
        for done in self.frames.take_completions().chain(superblocks) {
            done(Err(Status::Internal));
        }
    }
}

enum Round {
    Group,
    Prewrite,
    Stop,
}

struct Prewrite {
    frame: u32,
    offset: usize,
}

/// Runs until the storage stops and everything is flushed. A panic stops the storage: what waits
/// is answered, later calls are refused.
pub(super) fn run(shared: &Arc<Shared>) {
    let mut group = Group::default();
    let outcome = catch_unwind(AssertUnwindSafe(|| run_rounds(shared, &mut group)));
    let (jobs, done) = {
        let mut state = shared.state.lock();
        state.stopped = true;
        state.stopping = true;
        state.counters.panics += u64::from(outcome.is_err());
        let mut done = Vec::new();
        for replica in state.replicas.values_mut() {
            done.extend(
                replica
                    .waiting
                    .drain(..)
                    .map(|token| (token, Status::Internal)),
            );
        }
        state.tokens_waiting = 0;
        (std::mem::take(&mut state.jobs), done)
    };
    group.abandon(shared);
    shared.deliver(done);
    for job in jobs {
        match job {
            Job::Free { done, .. } | Job::Superblock { done, .. } => done(Err(Status::Internal)),
            Job::Switch(_) => {}
        }
    }
}

/// Commits the jobs that the scan at start has left, on the thread that opens the storage.
pub(super) fn run_once(shared: &Shared) {
    let mut group = Group::default();
    take_group(&mut shared.state.lock(), Instant::now(), &mut group);
    commit(shared, &mut group, &mut slot_buffers());
}

fn slot_buffers() -> Vec<AlignedBytes> {
    (0..PLANS_AT_ONCE)
        .map(|_| AlignedBytes::new(SLOT_BYTES))
        .collect()
}

fn run_rounds(shared: &Shared, group: &mut Group) {
    let mut slots = slot_buffers();
    let zeros = AlignedBytes::new(PREWRITE_STEP_BYTES);
    let mut prewrite = None;
    loop {
        match next_round(shared, &mut prewrite, group) {
            Round::Group => commit(shared, group, &mut slots),
            Round::Prewrite => step_prewrite(shared, &mut prewrite, &zeros),
            Round::Stop => return,
        }
    }
}

fn next_round(shared: &Shared, prewrite: &mut Option<Prewrite>, group: &mut Group) -> Round {
    let interval = match shared.options.durability {
        Durability::Fsync => std::time::Duration::ZERO,
        Durability::Replicated => shared.options.flush_interval,
    };
    let mut state = shared.state.lock();
    loop {
        let now = Instant::now();
        let due = state.dirty_since.map(|since| since + interval);
        let flush = state.urgent || state.stopping || due.is_some_and(|at| now >= at);
        if !state.jobs.is_empty() || (flush && !state.dirty.is_empty()) {
            take_group(&mut state, now, group);
            return Round::Group;
        }
        if state.stopping {
            return Round::Stop;
        }
        let rests_until = state.rests(now);
        if rests_until.is_none() {
            if prewrite.is_none() {
                let frame = state.frames.start_prewrite(now);
                *prewrite = frame.map(|frame| Prewrite { frame, offset: 0 });
            }
            if prewrite.is_some() {
                return Round::Prewrite;
            }
        }
        let wake_at = [due, rests_until.or(state.frames.growth_retry_at())]
            .into_iter()
            .flatten()
            .min();
        match wake_at {
            // A deadline in the past was handled above or on the next turn.
            Some(at) => drop(shared.io_wake.wait_until(&mut state, at)),
            None => shared.io_wake.wait(&mut state),
        }
    }
}

fn take_group(state: &mut State, now: Instant, group: &mut Group) {
    state.urgent = false;
    state.dirty_since = None;
    let dirty = std::mem::take(&mut state.dirty);
    for key in dirty {
        let plan = state.plan_flush(key, now, &mut group.done);
        group.plans.extend(plan);
    }
    while let Some(job) = state.jobs.pop_front() {
        match job {
            Job::Superblock { identity, done } => group.superblocks.push((identity, done)),
            Job::Free {
                places,
                incomplete,
                done,
            } => group.frames.add_free(state, places, incomplete, done),
            Job::Switch(switch) => group.frames.add_switch(state, switch),
        }
    }
    group.frames.seal(state);
}

/// The writes of up to `PLANS_AT_ONCE` plans, all under way together: a slot may reach the disk
/// before the bytes that it certifies, as it may before every sync, and is not believed then.
fn write_plans(
    file: &FrameFile,
    plans: &mut [FlushPlan],
    slots: &mut [AlignedBytes],
    failures: &mut Failures,
) {
    let mut writes = Vec::with_capacity(2 * plans.len());
    let mut owners = Vec::with_capacity(2 * plans.len());
    for (number, (plan, slot)) in plans.iter().zip(slots).enumerate() {
        let length = plan.certificate.length as usize;
        let floor = block_floor(length);
        let start = plan.flushed_blocks as usize * BLOCK_BYTES;
        assert!(start <= floor, "flushed blocks lie below the certificate");
        // SAFETY: certified bytes are received bytes, which never change.
        let bytes = unsafe { plan.buffer.prefix(length) };
        if start < floor {
            let offset = frame_offset(plan.frame) + (DATA_OFFSET + start) as u64;
            let bytes = &bytes[start..floor];
            writes.push(BlockWrite { bytes, offset });
            owners.push(number);
        }
        if !plan.data_only {
            encode_slot(&plan.certificate, &bytes[floor..], slot.bytes_mut());
            let (bytes, offset) = (slot.bytes(), slot_offset(plan.frame, plan.slot));
            writes.push(BlockWrite { bytes, offset });
            owners.push(number);
        }
    }
    for (result, owner) in file.write_all(&writes).into_iter().zip(owners) {
        if let Err(error) = result {
            failures.note_frame(&error);
            plans[owner].failed = true;
        }
    }
}

fn commit(shared: &Shared, group: &mut Group, slots: &mut [AlignedBytes]) {
    let file = &shared.file;
    let mut failures = Failures::default();
    for plans in group.plans.chunks_mut(PLANS_AT_ONCE) {
        write_plans(file, plans, slots, &mut failures);
    }
    group.frames.write(file, &mut slots[0], &mut failures);
    let writes = !group.plans.is_empty() || !group.frames.is_empty();
    if writes && file.sync().is_err() {
        failures.note_disk();
        group.plans.iter_mut().for_each(|plan| plan.failed = true);
        group.frames.fail();
    }
    let superblock_written = write_superblocks(shared, &group.superblocks, &mut failures);
    let to_compress = {
        let mut state = shared.state.lock();
        apply(&mut state, group);
        group.frames.apply(&mut state, &mut group.completions);
        state.apply_failures(&failures, &mut group.done);
        state.tokens_waiting -= group.done.len().min(state.tokens_waiting);
        for (identity, done) in group.superblocks.drain(..) {
            // A fence holds on a failed disk too: no write is accepted there by this process, and a
            // later one starts with a server list that does not have the fenced master.
            let result = if identity.is_none() && state.frames.failed() {
                Ok(())
            } else {
                superblock_written
            };
            group.completions.push((done, result));
        }
        trim_compress_queue(&mut state, shared.options.compress);
        !state.compress_queue.is_empty() || !state.compress_parked.is_empty()
    };
    // Not for nothing: that would be one more thread that runs for each small write.
    if to_compress {
        shared.compress_wake.notify_one();
    }
    shared.deliver(std::mem::take(&mut group.done));
    for (done, result) in group.completions.drain(..) {
        done(result);
    }
    *group = Group::default();
}

fn apply(state: &mut State, group: &mut Group) {
    state.counters.flush_groups += u64::from(!group.plans.is_empty());
    for plan in &mut group.plans {
        state.counters.flushed_writes += plan.tokens.len() as u64;
        state.counters.flushed_bytes += SLOT_BYTES as u64
            + block_floor(plan.certificate.length as usize) as u64
            - u64::from(plan.flushed_blocks) * BLOCK_BYTES as u64;
        state.apply_flush(plan, &mut group.done);
    }
}

/// One write serves all requests of the group; identities apply in order.
fn write_superblocks(
    shared: &Shared,
    requests: &[(Option<Identity>, Completion)],
    failures: &mut Failures,
) -> Result<(), Status> {
    if requests.is_empty() {
        return Ok(());
    }
    let next = {
        let state = shared.state.lock();
        let identity = requests
            .iter()
            .rev()
            .find_map(|(identity, _)| identity.clone());
        Superblock {
            sequence: state.superblock.sequence + 1,
            identity: identity.or_else(|| state.superblock.identity.clone()),
            fenced: state.fenced.iter().copied().collect(),
        }
    };
    let result = shared.superblocks.write(&next);
    let mut state = shared.state.lock();
    match result {
        Ok(()) => {
            state.superblock = next;
            Ok(())
        }
        Err(_) => {
            failures.note_disk();
            state.counters.disk_errors += 1;
            Err(Status::DiskError)
        }
    }
}

fn trim_compress_queue(state: &mut State, compress: bool) {
    if !compress {
        state.compress_queue.clear();
    }
    if state.rests(Instant::now()).is_some() {
        state.park_compression();
    }
    while state.compress_queue.len() > COMPRESS_QUEUE_MAX {
        state.compress_queue.pop_back();
        state.counters.compression_skipped += 1;
    }
}

/// Writes one step of zeros, so that a write that comes meanwhile waits for 1 MiB at most.
fn step_prewrite(shared: &Shared, prewrite: &mut Option<Prewrite>, zeros: &AlignedBytes) {
    let Some(Prewrite { frame, offset }) = prewrite.take() else {
        return;
    };
    if !shared.state.lock().frames.is_prewriting(frame) {
        return;
    }
    let length = PREWRITE_STEP_BYTES.min(FRAME_BYTES - offset);
    let at = frame_offset(frame) + offset as u64;
    let reserved = if offset == 0 {
        shared.file.reserve(frame)
    } else {
        Ok(())
    };
    let mut result = reserved.and_then(|()| shared.file.write(&zeros.bytes()[..length], at));
    let last = offset + length == FRAME_BYTES;
    if last && result.is_ok() {
        result = shared.file.sync();
    }
    match result {
        Ok(()) if !last => {
            *prewrite = Some(Prewrite {
                frame,
                offset: offset + length,
            })
        }
        _ => {
            let mut state = shared.state.lock();
            state
                .frames
                .finish_prewrite(frame, result.is_ok(), Instant::now());
        }
    }
}
