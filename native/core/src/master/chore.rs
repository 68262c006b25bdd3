//! Long work on the hash table, done in turns on a thread of the pool.
//!
//! Rule: a chore holds the serving lock for one turn at a time, some ten microseconds, and then
//! hands it to whoever waits; between its turns the master serves, replays and cleans. It fails
//! once the master is closed, and owes its caller exactly one answer.
//!
//! A chore for which nobody waits pauses after each turn. That is more than politeness: a thread
//! that never sleeps is stopped by the system when its time is up, with the lock in its hand as
//! likely as not, and then everybody waits until it is its turn again.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use super::Master;
use crate::status::Status;

/// Turns at a stretch: then others that wait for the pool come first.
const STRETCH_TURNS: usize = 64;
/// The system makes about twice as much of it.
const PAUSE: Duration = Duration::from_micros(50);

/// Whether anybody waits for the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Haste {
    /// It is over when it is over.
    Leisurely,
    /// A recovery, say.
    Urgent,
}

/// What a turn came to: nothing as long as there is more to do.
pub type Turn<T> = Result<Option<T>, Status>;

/// Lets others come first, for a moment.
pub fn pause() {
    thread::sleep(PAUSE);
}

/// Does all turns here.
///
/// # Errors
/// Those of a turn.
pub fn finish<T>(mut turn: impl FnMut() -> Turn<T>) -> Result<T, Status> {
    loop {
        if let Some(done) = turn()? {
            return Ok(done);
        }
    }
}

/// Work that is under way, and whom to tell of its end.
struct Chore<T, W, D> {
    master: Arc<Master>,
    haste: Haste,
    turn: W,
    done: D,
    _outcome: std::marker::PhantomData<fn() -> T>,
}

impl Master {
    /// Does the turns on the pool; `done` is called there. If the pool takes nothing more they are
    /// done here: what has begun must end.
    pub fn do_chore<T: 'static>(
        self: &Arc<Self>,
        haste: Haste,
        turn: impl FnMut() -> Turn<T> + Send + 'static,
        done: impl FnOnce(Result<T, Status>) + Send + 'static,
    ) {
        let master = Arc::clone(self);
        let _outcome = std::marker::PhantomData;
        queue(Chore {
            master,
            haste,
            turn,
            done,
            _outcome,
        });
    }
}

fn queue<T, W, D>(chore: Chore<T, W, D>)
where
    T: 'static,
    W: FnMut() -> Turn<T> + Send + 'static,
    D: FnOnce(Result<T, Status>) + Send + 'static,
{
    let master = Arc::clone(&chore.master);
    if let Err(unqueued) = master.pool.offer(Box::new(move |_thread| stretch(chore))) {
        unqueued(0);
    }
}

fn stretch<T, W, D>(mut chore: Chore<T, W, D>)
where
    T: 'static,
    W: FnMut() -> Turn<T> + Send + 'static,
    D: FnOnce(Result<T, Status>) + Send + 'static,
{
    for taken in 1.. {
        let turn = catch_unwind(AssertUnwindSafe(&mut chore.turn)).unwrap_or(Err(Status::Internal));
        let outcome = match turn {
            Ok(Some(done)) => Ok(done),
            Err(status) => Err(status),
            Ok(None) if taken % STRETCH_TURNS == 0 && chore.master.pool.busy() => {
                queue(chore);
                return;
            }
            Ok(None) => {
                if chore.haste == Haste::Leisurely {
                    pause();
                }
                continue;
            }
        };
        let Chore { turn, done, .. } = chore;
        // What it holds of the master goes before anybody hears of the end.
        drop(turn);
        done(outcome);
        return;
    }
}
