//! The cleaner: a thread of its own that makes room beside reads, writes and replay.
//!
//! Two ways (Rumble, FAST '14): *combined cleaning* moves what is alive in several segments to
//! survivors, sorted by age, after which the segments leave the log; *compaction* empties a block
//! of memory into another while the segments keep their ids and their replicas. `policy` decides,
//! `relocation` moves entries, `compaction` packs blocks, `passes` brings survivors into the log.
//!
//! Rules: only closed, durable segments that no replica is being written from are touched; no lock
//! is held while entries move; what has been moved is freed when no reader can see it any more.

mod compaction;
pub mod passes;
mod policy;
mod relocation;
mod streaming;
mod survivors;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use self::compaction::Filler;
use self::passes::{PASSES_MAX, Passes};
pub use self::policy::wanted_blocks;
use self::policy::{
    Candidate, LIVE_SHARE_MAX, Pressure, Work, choose_segments, expected_live_bytes,
};
use self::relocation::{Live, Survey};
use self::survivors::Survivors;
use super::Master;
use super::objects::Objects;
use super::segment::{SEGMENT_HEADER_BYTES, Segment};
use crate::entry::SEGMENT_BYTES;
use crate::status::Status;

/// Bytes that one pass moves at most: with backups, so that few survivors are left half full;
/// without, what stays in the cache between the search and the move.
const PASS_BYTES_REPLICATED: u64 = 10 * SEGMENT_BYTES as u64;
const PASS_BYTES_ALONE: u64 = SEGMENT_BYTES as u64;
/// Segments that are searched in a pass without backups: a write may wait for its end.
const PASS_SEGMENTS_ALONE: usize = 4;
/// Blocks that surely take what a pass without backups moves, be the entries as long as may be.
const STREAM_BLOCKS: usize = 2;
/// Fuller blocks are compacted only when a pass over segments does not help.
const EASY_LIVE_SHARE_MAX: f64 = 0.9;
/// Most survivors of a pass.
const SURVIVORS_MAX: usize = 16;
const IDLE_WAIT: Duration = Duration::from_millis(50);
/// Readers unpin within a message.
const READERS_WAIT: Duration = Duration::from_micros(100);
/// Nothing can be done before a pass ends or something is overwritten.
const STUCK_WAIT: Duration = Duration::from_millis(2);

/// What others see of the cleaner.
#[derive(Default)]
pub struct CleanerState {
    /// Between memory and log.
    pub passes: Passes,
    /// Held while entries move; taken before the serving lock.
    pub turn: Mutex<()>,
    sleeping: AtomicBool,
    wake: Mutex<bool>,
    woken: Condvar,
    /// A broken invariant has ended the thread.
    pub failed: AtomicBool,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// Bytes moved.
    pub bytes_copied: AtomicU64,
    /// Bytes of memory made free, less those that it took.
    pub bytes_freed: AtomicU64,
    /// Segments cleaned.
    pub segments_cleaned: AtomicU64,
    /// Blocks compacted.
    pub blocks_compacted: AtomicU64,
    /// Survivors opened.
    pub survivors: AtomicU64,
}

impl CleanerState {
    /// There may be something to do. Cheap unless the thread sleeps; a call that comes just before
    /// it falls asleep may be missed, but not those that follow.
    #[inline]
    pub fn wake(&self) {
        if self.sleeping.swap(false, Ordering::Relaxed) {
            *self.wake.lock() = true;
            self.woken.notify_one();
        }
    }

    fn wait(&self, timeout: Duration) {
        let mut wake = self.wake.lock();
        self.sleeping.store(true, Ordering::Relaxed);
        if !*wake {
            let _timed_out = self.woken.wait_for(&mut wake, timeout);
        }
        self.sleeping.store(false, Ordering::Relaxed);
        *wake = false;
    }

    /// Waits for the thread to end; the master is closed.
    pub fn join(&self) {
        *self.wake.lock() = true;
        self.woken.notify_one();
        let thread = self.thread.lock().take();
        if let Some(thread) = thread {
            assert!(thread.join().is_ok(), "the cleaner catches its panics");
        }
    }
}

/// Starts the thread of a master.
///
/// # Errors
/// `OutOfMemory` if the system has no thread to give.
pub fn start(master: &Arc<Master>) -> Result<(), Status> {
    let weak = Arc::downgrade(master);
    let thread = std::thread::Builder::new()
        .name("rekindle-clean".into())
        .spawn(move || run(&weak))
        .map_err(|_| Status::OutOfMemory)?;
    *master.cleaner.thread.lock() = Some(thread);
    Ok(())
}

fn run(master: &Weak<Master>) {
    let mut cleaner = Cleaner::default();
    loop {
        let Some(master) = master.upgrade() else {
            return;
        };
        if master.is_closed() {
            return;
        }
        let turn = master.cleaner.turn.lock();
        let step = catch_unwind(AssertUnwindSafe(|| cleaner.step(&master)));
        drop(turn);
        let Ok(wait) = step else {
            master.cleaner.failed.store(true, Ordering::Release);
            return;
        };
        if let Some(wait) = wait {
            master.cleaner.wait(wait);
        }
    }
}

/// The thread's own state.
#[derive(Default)]
struct Cleaner {
    /// Without backups a survivor stays open from pass to pass.
    open: Option<Arc<Segment>>,
    filler: Filler,
}

impl Cleaner {
    /// Does one piece of work; how long to wait before the next, if at all.
    fn step(&mut self, master: &Master) -> Option<Duration> {
        let objects = &master.objects;
        let waiting = objects.reclaim();
        let state = &master.cleaner;
        let pressure = Pressure {
            wanted_blocks: master.wanted_blocks,
            free_blocks: objects.arena.free_blocks() + objects.retired_blocks(),
            log_segments: objects.segment_count() - state.passes.log_segments_less(),
            log_segments_max: master.log_segments_max,
        };
        let replicated_low = pressure.memory_low() && master.replicated();
        if replicated_low {
            self.filler.prepare(objects);
        }
        let done = match pressure.work() {
            Work::Nothing => {
                objects.set_full(false);
                return Some(if waiting { READERS_WAIT } else { IDLE_WAIT });
            }
            Work::Compact => {
                self.compact(master, EASY_LIVE_SHARE_MAX)
                    || self.clean(master)
                    || self.compact(master, LIVE_SHARE_MAX)
            }
            // Emptier blocks may make a pass pay that does not now.
            Work::Clean => {
                self.clean(master) || (replicated_low && self.compact(master, LIVE_SHARE_MAX))
            }
        };
        let full = overfull(master);
        if done {
            objects.set_full(full);
            return None;
        }
        if waiting || objects.reclaim() {
            return Some(READERS_WAIT);
        }
        let nothing_to_come = pressure.memory_low() && settled(master);
        objects.set_full(full || nothing_to_come);
        Some(STUCK_WAIT)
    }

    /// One pass of combined cleaning; false if there is nothing that pays.
    fn clean(&mut self, master: &Master) -> bool {
        let objects = &master.objects;
        let state = &master.cleaner;
        let replicated = master.replicated();
        if state.passes.count() >= PASSES_MAX {
            return false;
        }
        let room = objects
            .arena
            .free_blocks()
            .saturating_sub(objects.reserve.cleaner);
        let Some(chosen) = choose(master, room) else {
            return false;
        };
        // Before the tablets are looked at: those that come later are younger than all survivors.
        let ids = objects.reserve_survivor_ids(room.min(SURVIVORS_MAX) as u64);
        let Ok((tablets, _)) = master.survey() else {
            return false;
        };
        let survey = Survey::new(objects, tablets);
        if !replicated && room >= STREAM_BLOCKS {
            let mut survivors = Survivors::new(master, ids, self.open.take());
            let moved = survivors.take_segments(&survey, &chosen);
            return moved.is_some() && self.finish(master, survivors, &chosen);
        }
        let (chosen, mut live) = search(&survey, &chosen, room);
        if chosen.is_empty() {
            return false;
        }
        live.sort_by_key(|live| live.timestamp);
        let mut survivors = Survivors::new(master, ids, self.open.take());
        let moved = survivors.take_sorted(&survey, &live);
        moved.is_some() && self.finish(master, survivors, &chosen)
    }

    /// Gives the cleaned segments up, or into the care of replication. True: something was done.
    fn finish(
        &mut self,
        master: &Master,
        survivors: Survivors<'_>,
        cleaned: &[Arc<Segment>],
    ) -> bool {
        for segment in cleaned {
            segment.set_cleanable(false);
        }
        master.cleaner.count(cleaned, &survivors);
        let opened: Vec<u64> = survivors.opened.iter().map(|segment| segment.id).collect();
        let cleaned: Vec<u64> = cleaned.iter().map(|segment| segment.id).collect();
        if master.replicated() {
            if let Some(last) = &survivors.open {
                last.close();
            }
            master.cleaner.passes.begin(opened, cleaned);
            return true;
        }
        self.open = survivors.open;
        master.exchange_segments(&opened, &cleaned);
        true
    }

    fn compact(&mut self, master: &Master, live_share_max: f64) -> bool {
        let Ok((tablets, durable)) = master.survey() else {
            return false;
        };
        let survey = Survey::new(&master.objects, tablets);
        let done = self
            .filler
            .compact_a_block(&master.objects, &survey, durable, live_share_max);
        let state = &master.cleaner;
        if let Some(compacted) = &done {
            let gained = SEGMENT_BYTES as u64 - compacted.bytes_taken.min(SEGMENT_BYTES as u64);
            state.blocks_compacted.fetch_add(1, Ordering::Relaxed);
            state.bytes_freed.fetch_add(gained, Ordering::Relaxed);
            state
                .bytes_copied
                .fetch_add(compacted.bytes_copied, Ordering::Relaxed);
        }
        done.is_some()
    }
}

impl CleanerState {
    /// Counters by name.
    pub fn stats(&self) -> [(&'static str, u64); 6] {
        let value = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        [
            ("cleanerBytesCopied", value(&self.bytes_copied)),
            ("cleanerBytesFreed", value(&self.bytes_freed)),
            ("cleanerSegmentsCleaned", value(&self.segments_cleaned)),
            ("cleanerBlocksCompacted", value(&self.blocks_compacted)),
            ("cleanerSurvivors", value(&self.survivors)),
            ("cleanerPasses", self.passes.count() as u64),
        ]
    }

    fn count(&self, cleaned: &[Arc<Segment>], survivors: &Survivors<'_>) {
        let before: usize = cleaned.iter().map(|segment| segment.capacity()).sum();
        let opened = survivors.opened.len();
        let freed = before.saturating_sub(opened * SEGMENT_BYTES) as u64;
        self.bytes_copied
            .fetch_add(survivors.bytes_moved, Ordering::Relaxed);
        self.bytes_freed.fetch_add(freed, Ordering::Relaxed);
        self.segments_cleaned
            .fetch_add(cleaned.len() as u64, Ordering::Relaxed);
        self.survivors.fetch_add(opened as u64, Ordering::Relaxed);
    }
}

/// Whether so much is alive that cleaning would cost more than it is worth.
fn overfull(master: &Master) -> bool {
    let objects = &master.objects;
    let emptied = master.cleaner.passes.cleaned();
    let mut segments = objects.all_segments();
    segments.retain(|segment| !emptied.contains(&segment.id));
    let all = weigh(objects, &segments);
    objects.overfull(all.iter().map(|segment| segment.live_bytes).sum())
}

/// Whether no pass and no segment waits for backups.
fn settled(master: &Master) -> bool {
    let closed = |segment: &&Arc<Segment>| segment.closed();
    let Ok((_, durable)) = master.survey() else {
        return false;
    };
    let all = master.objects.all_segments();
    master.cleaner.passes.count() == 0
        && all.iter().filter(closed).count() == cleanable(&master.objects, durable).len()
}

/// Segments that may be cleaned now.
fn cleanable(objects: &Objects, durable: u64) -> Vec<Arc<Segment>> {
    let mut segments = objects.all_segments();
    segments.retain(|segment| {
        let end = segment.position + segment.appended() as u64;
        // Later than `closed`: what is held was open when that was decided.
        segment.closed()
            && segment.id < objects.held_from.load(Ordering::Acquire)
            && segment.cleanable()
            && (segment.position == 0 || end <= durable)
            && !objects.is_pinned(segment.id)
    });
    segments
}

fn weigh(objects: &Objects, segments: &[Arc<Segment>]) -> Vec<Candidate> {
    let now = objects.arena.taken_blocks();
    let count = objects.segment_count();
    let weigh = |(index, segment): (usize, &Arc<Segment>)| Candidate {
        index,
        live_bytes: expected_live_bytes(
            segment.live_bytes(),
            segment.tombstone_bytes(),
            objects.released().saturating_sub(segment.released_before()),
            count,
        ),
        age: now.saturating_sub(segment.born()),
    };
    segments.iter().enumerate().map(weigh).collect()
}

/// Whether a pass gives back more than it takes: survivors, and a head that names them. Else the
/// cleaner would go round in circles, cleaning the heads that its own passes have opened.
fn pays(segments: &[Arc<Segment>], candidates: &[Candidate], chosen: &[usize]) -> bool {
    let live: u64 = chosen.iter().map(|one| candidates[*one].live_bytes).sum();
    let memory: usize = chosen.iter().map(|one| segments[*one].capacity()).sum();
    let taken = live.div_ceil(SEGMENT_BYTES as u64) as usize + 1;
    chosen.len() > taken || memory / SEGMENT_BYTES > taken
}

/// The segments of the next pass, if it pays.
fn choose(master: &Master, room: usize) -> Option<Vec<Arc<Segment>>> {
    let (_, durable) = master.survey().ok()?;
    let objects = &master.objects;
    let segments = cleanable(objects, durable);
    let candidates = weigh(objects, &segments);
    // A pass may need one block more than it has full ones to write.
    let blocks = room.checked_sub(1)?.clamp(1, SURVIVORS_MAX - 1);
    let live_max = (blocks * SEGMENT_BYTES) as u64;
    let chosen = if master.replicated() {
        let chosen = choose_segments(&candidates, live_max.min(PASS_BYTES_REPLICATED));
        if !pays(&segments, &candidates, &chosen) {
            return None;
        }
        chosen
    } else {
        let mut chosen = choose_segments(&candidates, live_max.min(PASS_BYTES_ALONE));
        chosen.truncate(PASS_SEGMENTS_ALONE);
        // Tombstones may turn out to be needed: they count in full here.
        let mut total = 0;
        let mut fits = |index: &usize| {
            total += segments[*index].live_bytes();
            total <= PASS_BYTES_ALONE
        };
        let count = chosen.iter().take_while(|one| fits(one)).count();
        chosen.truncate(count.max(1));
        chosen
    };
    let segment = |index: &usize| Arc::clone(&segments[*index]);
    (!chosen.is_empty()).then(|| chosen.iter().map(segment).collect())
}

/// Finds what is alive in as many of the chosen segments as `blocks` can surely take.
fn search(
    survey: &Survey<'_>,
    chosen: &[Arc<Segment>],
    blocks: usize,
) -> (Vec<Arc<Segment>>, Vec<Live>) {
    let mut all = Vec::new();
    let (mut taken, mut total, mut longest) = (Vec::new(), 0usize, 0usize);
    for segment in chosen {
        let before = all.len();
        for piece in segment.pieces() {
            all.append(&mut survey.collect(segment.id, &piece).0);
        }
        for live in &all[before..] {
            total += live.bytes();
            longest = longest.max(live.bytes());
        }
        // Each survivor but the last is left with less than the longest entry.
        let room = blocks * (SEGMENT_BYTES - SEGMENT_HEADER_BYTES - longest);
        if total > room {
            assert!(!taken.is_empty() || blocks < 2, "one segment fits into two");
            all.truncate(before);
            break;
        }
        taken.push(Arc::clone(segment));
    }
    (taken, all)
}
