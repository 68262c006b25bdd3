//! Passes of the combined cleaner between memory and the log: who waits for what.
//!
//! Rules (originals 2(l), steps 5–9): the survivors are on all their backups before the log takes
//! them in; the next head's digest names them and leaves the cleaned segments out, which is the one
//! switch from old to new; only when that head is durable are the cleaned ones given up. A crash
//! before the switch is durable finds the old segments, after it the survivors.

use std::collections::BTreeMap;

use parking_lot::Mutex;

use crate::master::log::{Log, Purpose};
use crate::master::objects::Objects;
use crate::master::tablets::Tablets;
use crate::status::Status;

/// Passes under way at a time.
pub const PASSES_MAX: usize = 4;

/// What one pass has done in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pass {
    /// From 1.
    pub id: u64,
    /// Closed side segments that hold what was alive.
    pub survivors: Vec<u64>,
    /// Segments that the table does not refer to any more.
    pub cleaned: Vec<u64>,
}

enum State {
    /// The survivors are on their way to the backups.
    Replicating,
    /// The heads after this one name the survivors; `position` is where the first of them has told
    /// so, once it is open.
    Committed {
        after_head: u64,
        position: Option<u64>,
    },
}

struct UnderWay {
    pass: Pass,
    state: State,
}

/// Told of each pass that waits for replication.
pub type Listener = Box<dyn Fn(&Pass) + Send>;

#[derive(Default)]
struct Inner {
    last_id: u64,
    under_way: BTreeMap<u64, UnderWay>,
    listener: Option<Listener>,
}

/// See the file's head.
#[derive(Default)]
pub struct Passes {
    inner: Mutex<Inner>,
}

impl Passes {
    /// Calls `listener` with each pass from now on, and with those that wait already.
    pub fn listen(&self, listener: Listener) {
        let mut inner = self.inner.lock();
        for under_way in inner.under_way.values() {
            if matches!(under_way.state, State::Replicating) {
                listener(&under_way.pass);
            }
        }
        inner.listener = Some(listener);
    }

    /// Nobody is told any more.
    pub fn unlisten(&self) {
        let listener = self.inner.lock().listener.take();
        drop(listener);
    }

    /// Passes under way.
    pub fn count(&self) -> usize {
        self.inner.lock().under_way.len()
    }

    /// Segments that passes under way have emptied.
    pub fn cleaned(&self) -> Vec<u64> {
        let inner = self.inner.lock();
        let passes = inner.under_way.values();
        passes.flat_map(|one| one.pass.cleaned.clone()).collect()
    }

    /// Segments that hold what passes under way have moved.
    pub fn survivors(&self) -> Vec<u64> {
        let inner = self.inner.lock();
        let passes = inner.under_way.values();
        passes.flat_map(|one| one.pass.survivors.clone()).collect()
    }

    /// Segments that the log will lose, less those that it will gain.
    pub fn log_segments_less(&self) -> usize {
        let inner = self.inner.lock();
        let less = |one: &UnderWay| one.pass.cleaned.len();
        let more = |one: &UnderWay| match one.state {
            State::Replicating => one.pass.survivors.len(),
            State::Committed { .. } => 0,
        };
        let sum: usize = inner.under_way.values().map(less).sum();
        sum.saturating_sub(inner.under_way.values().map(more).sum())
    }

    /// A pass has done its work in memory.
    pub fn begin(&self, survivors: Vec<u64>, cleaned: Vec<u64>) {
        let mut inner = self.inner.lock();
        inner.last_id += 1;
        let pass = Pass {
            id: inner.last_id,
            survivors,
            cleaned,
        };
        if let Some(listener) = &inner.listener {
            listener(&pass);
        }
        let state = State::Replicating;
        inner.under_way.insert(pass.id, UnderWay { pass, state });
    }

    /// The survivors are on all their backups; see `Master::commit_cleaning`.
    ///
    /// # Errors
    /// `InvalidArgument` for a pass that is not under way, `OutOfMemory` if `force` finds no block
    /// for a head.
    pub fn commit(
        &self,
        id: u64,
        force: bool,
        log: &mut Log,
        objects: &Objects,
        tablets: &Tablets,
        timestamp: u32,
    ) -> Result<u64, Status> {
        let mut inner = self.inner.lock();
        let under_way = inner
            .under_way
            .get_mut(&id)
            .ok_or(Status::InvalidArgument)?;
        if matches!(under_way.state, State::Replicating) {
            log.add(&under_way.pass.survivors);
            log.remove(&under_way.pass.cleaned);
            under_way.state = State::Committed {
                after_head: log.head().map_or(0, |head| head.id),
                position: None,
            };
        }
        let State::Committed {
            after_head,
            position,
        } = &mut under_way.state
        else {
            unreachable!("set above");
        };
        if position.is_none() {
            let next = match log.heads_after(*after_head).first() {
                Some(id) => objects.segment(*id)?,
                None if force => log.roll(objects, tablets, Purpose::Head, timestamp)?,
                None => return Ok(0),
            };
            *position = Some(next.position + next.opening_bytes() as u64);
        }
        Ok(position.expect("set above"))
    }

    /// The head that names the survivors is durable. Returns the pass.
    ///
    /// # Errors
    /// `InvalidArgument` for a pass that was not committed, or whose head is not durable.
    pub fn end(&self, id: u64, durable: u64) -> Result<Pass, Status> {
        let mut inner = self.inner.lock();
        match inner.under_way.get(&id).map(|under_way| &under_way.state) {
            Some(State::Committed {
                position: Some(position),
                ..
            }) if *position <= durable => {}
            _ => return Err(Status::InvalidArgument),
        }
        let under_way = inner.under_way.remove(&id).expect("found above");
        Ok(under_way.pass)
    }
}
