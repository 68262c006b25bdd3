//! Replay against the limits that it shares with memcpy and LZ4.
//!
//! A run replays a whole workload into an empty master: groups of pieces are made and left in DRAM
//! (untimed), then replayed (timed), and after each group the limit is measured, so that noise of
//! the machine meets both. One thread is timed by its own clock, so that other processes do not
//! count; threads that run together start each turn together, and the slowest one counts.

use std::sync::{Arc, Barrier};
use std::time::Instant;

use parking_lot::Mutex;
use rekindle_core::master::Master;
use rekindle_core::master::recovery::Recovery;
use rekindle_core::status::Status;

use crate::Failure;
use crate::compression::decompress_image;
use crate::figures::{ThreadTime, figure, median};
use crate::huge_memory::copy_past_caches;
use crate::limits::{COPY_BYTES, CopyLimit};
use crate::masters::{WHOLE_TABLE, stat, touched_master};
use crate::pieces::{Content, Piece, Pieces, Workload};

/// Pieces of a group, several times the last-level cache.
const GROUP_PIECES: usize = 12;
/// Log memory: the largest workload, the tombstones of what is overwritten, which take a side
/// segment after each piece, and a reserve. It is touched once and used by all runs.
const MEMORY_BYTES: usize = 1800 << 20;
const THREADS_MAX: usize = 2;

/// How a piece comes into the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// It lies there already.
    InPlace,
    /// Copied from the message.
    Copied,
    /// Decompressed from the message.
    Image,
}

/// What took its time together.
#[derive(Clone, Copy, Default)]
struct Turn {
    bytes: f64,
    objects: f64,
    seconds: f64,
}

/// What a run came to.
#[derive(Clone, Copy, Default)]
struct Totals {
    replayed: Turn,
    limit: Turn,
}

impl Totals {
    fn gbps(&self) -> f64 {
        self.replayed.bytes / self.replayed.seconds / 1e9
    }

    fn objects(&self) -> f64 {
        self.replayed.objects / self.replayed.seconds
    }

    fn ratio(&self) -> f64 {
        self.gbps() * 1e9 / (self.limit.bytes / self.limit.seconds)
    }
}

/// When a turn began.
#[derive(Clone, Copy)]
enum Start {
    Alone(ThreadTime),
    Together(Instant),
}

struct Run<'a> {
    recovery: &'a Recovery,
    way: Way,
    workload: Workload,
    threads: usize,
    /// Timed by the clock on the wall.
    wall: bool,
    together: Barrier,
    /// The threads go on without work, since they wait for each other.
    failed: Mutex<Option<Status>>,
}

impl Run<'_> {
    /// One thread's work.
    fn thread(&self, thread: usize, limit: &mut dyn FnMut(&[Piece])) -> Vec<Turn> {
        let mut pieces = Pieces::new(self.workload, thread as u64, self.threads as u64);
        let mut group: Vec<Piece> = (0..GROUP_PIECES).map(|_| Piece::default()).collect();
        let mut turns = Vec::new();
        loop {
            let mut filled = 0;
            while filled < GROUP_PIECES && pieces.fill(&mut group[filled]) {
                if self.way == Way::Image {
                    group[filled].compress();
                }
                filled += 1;
            }
            if filled == 0 {
                return turns;
            }
            if self.way == Way::InPlace {
                let each = group[..filled]
                    .iter()
                    .map(|piece| self.in_place(thread, piece));
                turns.extend(each);
            } else {
                turns.push(self.replay_messages(thread, &group[..filled]));
            }
            limit(&group[..filled]);
        }
    }

    fn in_place(&self, thread: usize, piece: &Piece) -> Turn {
        let length = piece.bytes.len();
        let mut room = self.recovery.reserve(thread, length);
        if let Ok(room) = &mut room {
            copy_past_caches(room.bytes_mut(), &piece.bytes);
        }
        let start = self.start();
        let replayed = room.and_then(|room| {
            self.recovery
                .replay_in_place(thread, room, length, piece.checksum)
        });
        self.turn(start, std::slice::from_ref(piece), replayed.err())
    }

    fn replay_messages(&self, thread: usize, group: &[Piece]) -> Turn {
        let start = self.start();
        let replayed = group.iter().try_for_each(|piece| {
            let Piece {
                bytes,
                checksum,
                image,
                ..
            } = piece;
            let replayed = match self.way {
                Way::Image => self
                    .recovery
                    .replay_image(thread, image, bytes.len(), *checksum),
                _ => self.recovery.replay(thread, bytes, *checksum),
            };
            replayed.map(|_| ())
        });
        self.turn(start, group, replayed.err())
    }

    fn start(&self) -> Start {
        self.together.wait();
        if self.wall {
            Start::Together(Instant::now())
        } else {
            Start::Alone(ThreadTime::now())
        }
    }

    fn turn(&self, start: Start, pieces: &[Piece], failure: Option<Status>) -> Turn {
        let seconds = match start {
            Start::Together(start) => start.elapsed().as_secs_f64(),
            Start::Alone(start) => start.seconds(),
        };
        if let Some(status) = failure {
            self.failed.lock().get_or_insert(status);
        }
        Turn {
            bytes: pieces.iter().map(|piece| piece.bytes.len() as f64).sum(),
            objects: pieces.iter().map(|piece| piece.objects as f64).sum(),
            seconds,
        }
    }
}

/// Bytes and seconds of a limit, measured on the pieces that were just replayed.
type Limit<'a> = &'a mut dyn FnMut(&[Piece]) -> (f64, f64);

/// Replays a workload on an empty master and takes it back.
fn run(
    master: &Arc<Master>,
    workload: Workload,
    way: Way,
    (threads, wall): (usize, bool),
    limit: Limit<'_>,
) -> Result<Totals, Failure> {
    let core = |status| Failure::Core("replay", status);
    let recovery = master.start_recovery(&[WHOLE_TABLE]).map_err(core)?;
    let run = Run {
        recovery: &recovery,
        way,
        workload,
        threads,
        wall,
        together: Barrier::new(threads),
        failed: Mutex::new(None),
    };
    let mut totals = Totals::default();
    let by_thread: Vec<Vec<Turn>> = std::thread::scope(|scope| {
        let run = &run;
        let spawn = |thread| scope.spawn(move || run.thread(thread, &mut |_| ()));
        let others: Vec<_> = (1..threads).map(spawn).collect();
        let first = run.thread(0, &mut |group| {
            let (bytes, seconds) = limit(group);
            totals.limit.bytes += bytes;
            totals.limit.seconds += seconds;
        });
        let joined = others
            .into_iter()
            .map(|other| other.join().expect("failures are noted"));
        std::iter::once(first).chain(joined).collect()
    });
    if let Some(status) = *run.failed.lock() {
        return Err(core(status));
    }
    for number in 0..by_thread[0].len() {
        let turns = by_thread.iter().map(|turns| turns[number]);
        totals.replayed.bytes += turns.clone().map(|turn| turn.bytes).sum::<f64>();
        totals.replayed.objects += turns.clone().map(|turn| turn.objects).sum::<f64>();
        totals.replayed.seconds += turns.map(|turn| turn.seconds).fold(0.0, f64::max);
    }
    let (found, keys) = (stat(master, "objects")?, workload.keys());
    if found != keys {
        return Err(Failure::Wrong(format!(
            "replay: {found} objects, not {keys}"
        )));
    }
    recovery.abort().map_err(core)?;
    Ok(totals)
}

fn print(name: &str, limit: &str, runs: &[Totals]) -> Result<(), Failure> {
    let of = |each: fn(&Totals) -> f64| median(&runs.iter().map(each).collect::<Vec<_>>());
    figure(&format!("{name}-gbps"), "GB/s", of(Totals::gbps))?;
    figure(&format!("{name}-objects"), "objects/s", of(Totals::objects))?;
    let limit_gbps = |totals: &Totals| totals.limit.bytes / totals.limit.seconds / 1e9;
    figure(&format!("{name}-{limit}-gbps"), "GB/s", of(limit_gbps))?;
    figure(&format!("{name}-vs-{limit}"), "ratio", of(Totals::ratio))
}

/// One thread, timed by its own clock.
const ALONE: (usize, bool) = (1, false);

const SMALL: Workload = Workload {
    objects: 5_000_000,
    value_bytes: 100,
    content: Content::Filler,
    overwrites: false,
};
const LARGE: Workload = Workload {
    objects: 800_000,
    value_bytes: 1024,
    ..SMALL
};
const OVERWRITES: Workload = Workload {
    overwrites: true,
    ..SMALL
};
const TEXT: Workload = Workload {
    objects: 1_500_000,
    content: Content::Text,
    ..SMALL
};
const JSON: Workload = Workload {
    objects: 240_000,
    content: Content::Json,
    ..LARGE
};

/// Prints the figures.
///
/// # Errors
/// The core refused, or replay lost an object.
pub fn measure(quick: bool) -> Result<(), Failure> {
    let master = touched_master(MEMORY_BYTES, THREADS_MAX, false)?;
    let mut copy = CopyLimit::new()?;
    let rounds = if quick { 1 } else { 5 };
    let kinds = [
        ("replay-100b", SMALL, Way::InPlace),
        ("replay-1kb", LARGE, Way::InPlace),
        ("replay-overwrites-100b", OVERWRITES, Way::InPlace),
        ("replay-copied-100b", SMALL, Way::Copied),
        ("replay-copied-1kb", LARGE, Way::Copied),
    ];
    let kinds = if quick { &kinds[..4] } else { &kinds };
    let mut runs = vec![Vec::new(); kinds.len()];
    let mut gains = Vec::new();
    for _ in 0..rounds {
        for ((_, workload, way), runs) in kinds.iter().zip(&mut runs) {
            let limit = &mut |_: &[Piece]| copy.timed();
            runs.push(run(&master, *workload, *way, ALONE, limit)?);
        }
        let [one, two] = [1, 2].map(|threads| {
            let none = &mut |_: &[Piece]| (0.0, 0.0);
            run(&master, SMALL, Way::InPlace, (threads, true), none)
        });
        gains.push(two?.gbps() / one?.gbps());
    }
    for ((name, _, _), runs) in kinds.iter().zip(&runs) {
        print(name, "memcpy", runs)?;
    }
    figure("replay-2-threads-vs-1", "ratio", median(&gains))?;
    for (name, workload) in [("replay-lz4-100b", TEXT), ("replay-lz4-1kb", JSON)] {
        let mut runs = Vec::new();
        for _ in 0..rounds {
            runs.push(run(&master, workload, Way::Image, ALONE, &mut |group| {
                decompress(group, copy.target_mut())
            })?);
        }
        print(name, "lz4", &runs)?;
    }
    master
        .close()
        .map_err(|status| Failure::Core("close", status))
}

/// The same images by LZ4 alone, into memory that is not in the caches.
fn decompress(group: &[Piece], target: &mut [u8]) -> (f64, f64) {
    let start = ThreadTime::now();
    for (piece, out) in group.iter().zip(target.chunks_mut(COPY_BYTES)) {
        decompress_image(&piece.image, out);
    }
    let bytes: usize = group.iter().map(|piece| piece.bytes.len()).sum();
    (bytes as f64, start.seconds())
}
