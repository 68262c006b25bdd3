//! Overwrites with the cleaner on: how much of the throughput at 30 % live memory is left at 80 and
//! 90 %, and what one write waits meanwhile.
//!
//! Each run fills a fresh master, overwrites at random until the cleaner is in its steady state,
//! and is timed from then on by the clock on the wall, since the cleaner's thread works beside.
//! Runs that are compared follow each other.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use rekindle_core::entry::SEGMENT_BYTES;
use rekindle_core::master::Master;

use crate::Failure;
use crate::figures::{figure, median};
use crate::load::Load;
use crate::masters::{serving_master, stat};
use crate::replicas::Replicas;

/// Appended bytes that may wait for the backups: what the messages under way hold.
const LAG_BYTES_MAX: u64 = 2 * SEGMENT_BYTES as u64;
const LAG_PAUSE: Duration = Duration::from_micros(50);

/// How long is measured. Volumes are multiples of the log memory.
#[derive(Clone, Copy)]
struct Effort {
    /// In a small master the reserve would be most of what is free at 90 %.
    memory_bytes: usize,
    warm_up: f64,
    warm_up_max: Duration,
    volume: f64,
    time_max: Duration,
    /// For all of a run, the first writes included.
    run_max: Duration,
    rounds: usize,
}

const QUICK: Effort = Effort {
    memory_bytes: 1 << 30,
    warm_up: 0.5,
    warm_up_max: Duration::from_millis(700),
    volume: 2.0,
    time_max: Duration::from_secs(2),
    run_max: Duration::MAX,
    rounds: 1,
};
const FULL: Effort = Effort {
    memory_bytes: 1 << 30,
    warm_up: 1.0,
    warm_up_max: Duration::MAX,
    volume: 5.0,
    time_max: Duration::MAX,
    run_max: Duration::MAX,
    rounds: 2,
};

/// However late it is, so much is measured.
const TIME_MIN: Duration = Duration::from_millis(300);

impl Effort {
    /// All of it, or what fits into so much time a run.
    fn of(run_max: Option<Duration>) -> Self {
        run_max.map_or(FULL, |run_max| Self { run_max, ..QUICK })
    }
}

/// What a run came to.
#[derive(Clone, Default)]
struct Outcome {
    writes_per_second: f64,
    volume: f64,
    /// Bytes appended and moved per byte appended.
    amplification: f64,
    /// Bytes sent to each backup per byte appended.
    replicated: f64,
    refusals: f64,
    /// Of single writes, in seconds.
    latencies: Vec<f64>,
}

/// A master under load.
struct Bench {
    master: Arc<Master>,
    replicas: Option<Replicas>,
    load: Load,
    started: Instant,
}

/// Counters that only grow.
#[derive(Clone, Copy)]
struct Counters {
    copied: u64,
    appended: u64,
    sent: u64,
    refusals: u64,
}

impl Bench {
    fn start(value_bytes: usize, effort: Effort, folder: Option<&Path>) -> Result<Self, Failure> {
        let started = Instant::now();
        let memory_bytes = effort.memory_bytes;
        let master = serving_master(memory_bytes, folder.is_some())?;
        let frames_max = 3 * (memory_bytes / SEGMENT_BYTES) as u32;
        let start = |path| Replicas::start(&master, path, frames_max);
        let replicas = folder.map(start).transpose()?;
        let load = Load::new(Arc::clone(&master), value_bytes);
        Ok(Self {
            master,
            replicas,
            load,
            started,
        })
    }

    fn overwrite(
        &mut self,
        volume: f64,
        time_max: Duration,
        singles: bool,
    ) -> Result<(u64, f64), Failure> {
        let Self {
            master,
            replicas,
            load,
            ..
        } = self;
        let bytes = (master.arena().bytes() as f64 * volume) as usize;
        let mut pace = || {
            replicas
                .as_ref()
                .map_or(Ok(()), |replicas| follow(master, replicas))
        };
        load.overwrite(bytes, time_max, singles, &mut pace)
    }

    fn counters(&self) -> Result<Counters, Failure> {
        let sent = |replicas: &Replicas| replicas.progress.sent_bytes.load(Ordering::Relaxed);
        Ok(Counters {
            copied: stat(&self.master, "cleanerBytesCopied")?,
            appended: stat(&self.master, "appendedPosition")?,
            sent: self.replicas.as_ref().map_or(0, sent),
            refusals: self.load.refusals(),
        })
    }

    fn measure(&mut self, percent: u32, effort: Effort, singles: bool) -> Result<Outcome, Failure> {
        self.load.fill(f64::from(percent) / 100.0)?;
        let left = effort.run_max.saturating_sub(self.started.elapsed());
        self.overwrite(effort.warm_up, effort.warm_up_max.min(left / 4), false)?;
        let before = self.counters()?;
        let left = effort.run_max.saturating_sub(self.started.elapsed());
        let time_max = effort.time_max.min(left.max(TIME_MIN));
        let (writes, seconds) = self.overwrite(effort.volume, time_max, singles)?;
        let after = self.counters()?;
        if stat(&self.master, "objects")? != self.load.objects() {
            return Err(Failure::Wrong(
                "cleaning has lost or doubled objects".into(),
            ));
        }
        let appended = (after.appended - before.appended) as f64;
        Ok(Outcome {
            writes_per_second: writes as f64 / seconds,
            volume: self.load.volume(writes),
            amplification: 1.0 + (after.copied - before.copied) as f64 / appended,
            replicated: (after.sent - before.sent) as f64 / appended,
            refusals: (after.refusals - before.refusals) as f64,
            latencies: std::mem::take(&mut self.load.latencies),
        })
    }

    fn stop(mut self) -> Result<(), Failure> {
        self.replicas.take().map_or(Ok(()), Replicas::stop)?;
        let closed = self.master.close();
        closed.map_err(|status| Failure::Core("close", status))
    }
}

/// Waits until the backups are close enough behind.
fn follow(master: &Master, replicas: &Replicas) -> Result<(), Failure> {
    loop {
        let appended = master.appended_position();
        let appended = appended.map_err(|status| Failure::Core("log", status))?;
        if appended <= replicas.progress.durable.load(Ordering::Acquire) + LAG_BYTES_MAX {
            return Ok(());
        }
        if replicas.has_failed() {
            return Err(Failure::Wrong("replication has ended".into()));
        }
        thread::sleep(LAG_PAUSE);
    }
}

/// One run after the other on one master, whose memory is touched once: it is filled further for
/// each. What the last one leaves on three backups lies in `folder`, if there is one.
fn run(
    value_bytes: usize,
    percents: &[u32],
    effort: Effort,
    folder: Option<&Path>,
) -> Result<Vec<Outcome>, Failure> {
    let mut bench = Bench::start(value_bytes, effort, folder)?;
    let mut outcomes = Vec::new();
    for &percent in percents {
        let singles = percent == 80 && value_bytes == 100 && folder.is_none();
        match bench.measure(percent, effort, singles) {
            Ok(outcome) => outcomes.push(outcome),
            Err(failure) => {
                // What has ended replication is why the load failed.
                bench.stop()?;
                return Err(failure);
            }
        }
        bench.started = Instant::now();
    }
    bench.stop()?;
    Ok(outcomes)
}

fn of(runs: &[Outcome], each: impl Fn(&Outcome) -> f64) -> f64 {
    median(&runs.iter().map(each).collect::<Vec<_>>())
}

/// Throughput as a share of that of the run before it at 30 %.
fn share(runs: &[Outcome], base: &[Outcome]) -> f64 {
    let pairs = runs.iter().zip(base);
    let shares = pairs.map(|(run, base)| run.writes_per_second / base.writes_per_second);
    median(&shares.collect::<Vec<_>>())
}

/// Prints the figures without backups.
///
/// # Errors
/// The core refused, or objects were lost.
pub fn measure(run_max: Option<Duration>) -> Result<(), Failure> {
    let effort = Effort::of(run_max);
    for (value_bytes, size) in [(100, "100b"), (1024, "1kb")] {
        let percents = [30, 80, 90];
        let mut runs = [const { Vec::new() }; 3];
        for _ in 0..effort.rounds {
            let outcomes = run(value_bytes, &percents, effort, None)?;
            for (outcome, runs) in outcomes.into_iter().zip(&mut runs) {
                runs.push(outcome);
            }
        }
        for (percent, runs_at) in percents.iter().zip(&runs) {
            let name = format!("cleaner-{percent}-{size}");
            figure(
                &format!("{name}-writes"),
                "writes/s",
                of(runs_at, |run| run.writes_per_second),
            )?;
            figure(
                &format!("{name}-volume"),
                "ratio",
                of(runs_at, |run| run.volume),
            )?;
            figure(
                &format!("{name}-amplification"),
                "ratio",
                of(runs_at, |run| run.amplification),
            )?;
            figure(
                &format!("{name}-refusals"),
                "messages",
                of(runs_at, |run| run.refusals),
            )?;
        }
        figure(
            &format!("cleaner-80-vs-30-{size}"),
            "ratio",
            share(&runs[1], &runs[0]),
        )?;
        figure(
            &format!("cleaner-90-vs-30-{size}"),
            "ratio",
            share(&runs[2], &runs[0]),
        )?;
        if value_bytes == 100 {
            figure(
                "cleaner-write-amplification",
                "ratio",
                of(&runs[1], |run| run.amplification),
            )?;
            print_latencies(&runs[1])?;
        }
    }
    Ok(())
}

fn print_latencies(runs: &[Outcome]) -> Result<(), Failure> {
    let mut latencies: Vec<f64> = runs.iter().flat_map(|run| run.latencies.clone()).collect();
    latencies.sort_by(f64::total_cmp);
    let last = latencies.len().checked_sub(1);
    let last = last.ok_or_else(|| Failure::Wrong("no single write fell due".into()))?;
    for (name, share) in [("p50", 0.5), ("p99", 0.99), ("p999", 0.999), ("max", 1.0)] {
        let milliseconds = latencies[(last as f64 * share) as usize] * 1e3;
        figure(&format!("cleaner-write-{name}-ms"), "ms", milliseconds)?;
    }
    Ok(())
}

/// Prints the figures with three backups below `folder`.
///
/// # Errors
/// The core or a backup refused, or objects were lost.
pub fn measure_replicated(folder: &Path, run_max: Option<Duration>) -> Result<(), Failure> {
    let effort = Effort::of(run_max);
    let percents = [30, 80];
    let mut runs = [const { Vec::new() }; 2];
    for _ in 0..effort.rounds {
        let outcomes = run(100, &percents, effort, Some(folder))?;
        std::fs::remove_dir_all(folder)?;
        for (outcome, runs) in outcomes.into_iter().zip(&mut runs) {
            runs.push(outcome);
        }
    }
    for (percent, runs) in percents.iter().zip(&runs) {
        let name = format!("cleaner-{percent}-r3");
        figure(
            &format!("{name}-writes"),
            "writes/s",
            of(runs, |run| run.writes_per_second),
        )?;
        figure(
            &format!("{name}-volume"),
            "ratio",
            of(runs, |run| run.volume),
        )?;
        figure(
            &format!("{name}-amplification"),
            "ratio",
            of(runs, |run| run.amplification),
        )?;
    }
    figure(
        "replicated-bytes-per-byte-written",
        "ratio",
        of(&runs[1], |run| run.replicated),
    )?;
    figure("cleaner-80-r3", "ratio", share(&runs[1], &runs[0]))
}
