//! Figures on standard output, one JSON object a line, and how rounds become one figure.
//!
//! Rule: what is compared is measured in turn, round by round, and compared within a round: the
//! machine's noise moves both. The median of the rounds counts.

use std::io::Write;
use std::time::Duration;

use crate::Failure;

/// Prints one figure.
///
/// # Errors
/// The reader is gone.
pub fn figure(name: &str, unit: &str, value: f64) -> Result<(), Failure> {
    line(&format!(
        r#"{{"name":"{name}","unit":"{unit}","value":{value:.6}}}"#
    ))
}

/// Prints a line and hands it over at once.
///
/// # Errors
/// The reader is gone.
pub fn line(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}")?;
    Ok(out.flush()?)
}

/// The middle one; of two the mean.
///
/// # Panics
/// If there are none.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (below, above) = (sorted[(sorted.len() - 1) / 2], sorted[sorted.len() / 2]);
    (below + above) / 2.0
}

/// Processor time of this thread: being scheduled away does not count, waiting for memory does.
#[derive(Clone, Copy)]
pub struct ThreadTime(Duration);

impl ThreadTime {
    /// Its present value.
    ///
    /// # Panics
    /// If the system has no such clock.
    pub fn now() -> Self {
        let mut time = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // SAFETY: writes to the structure that is passed.
        let failed = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
        assert!(failed == 0, "threads have clocks");
        let (seconds, nanoseconds) = (time.tv_sec.cast_unsigned(), time.tv_nsec);
        Self(Duration::new(seconds, nanoseconds as u32))
    }

    /// Since then.
    pub fn seconds(self) -> f64 {
        (Self::now().0 - self.0).as_secs_f64()
    }
}

/// Seconds that a piece of work takes on this thread.
pub fn seconds(work: impl FnOnce()) -> f64 {
    let start = ThreadTime::now();
    work();
    start.seconds()
}

/// Rates of several kinds of work, measured in turn: one list of rounds per kind.
pub struct Rounds {
    rates: Vec<Vec<f64>>,
}

impl Rounds {
    /// Runs each of `kinds` once a round; each returns its rate. The first round only warms up.
    pub fn run(count: usize, kinds: &mut [&mut dyn FnMut() -> f64]) -> Self {
        let mut rates = vec![Vec::with_capacity(count); kinds.len()];
        for round in 0..=count {
            for (kind, rates) in kinds.iter_mut().zip(&mut rates) {
                let rate = kind();
                if round > 0 {
                    rates.push(rate);
                }
            }
        }
        Self { rates }
    }

    /// Median rate of a kind.
    pub fn rate(&self, kind: usize) -> f64 {
        median(&self.rates[kind])
    }
}
