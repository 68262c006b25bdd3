//! The results that one client has not acknowledged, by rpc id.
//!
//! A client numbers its mutations consecutively, so that nearly all results lie in a ring whose
//! first place belongs to the id behind the acknowledged ones. Ids may leave gaps and come in any
//! order: a result that would stretch the ring too far lies in a map beside it, for good.
//!
//! Rule: the ring has at most `SLACK` places more than twice its results after each call, and
//! memory for few more than that: no choice of ids costs more than a constant for each result.

use std::collections::{BTreeMap, VecDeque};

use super::RpcResult;

/// Empty places that a ring may have in any case.
const SLACK: usize = 64;
/// Places whose memory a ring may keep in any case.
const CAPACITY_KEPT: usize = 256;

/// See the file's head.
pub struct Window {
    ack_id: u64,
    /// From `ack_id + 1` on.
    near: VecDeque<Option<RpcResult>>,
    /// Results in `near`.
    near_count: usize,
    far: BTreeMap<u64, RpcResult>,
}

impl Window {
    /// A window behind `ack_id`.
    pub fn new(ack_id: u64) -> Self {
        Self {
            ack_id,
            near: VecDeque::new(),
            near_count: 0,
            far: BTreeMap::new(),
        }
    }

    /// Everything up to here is acknowledged.
    #[inline]
    pub fn ack_id(&self) -> u64 {
        self.ack_id
    }

    /// Results kept.
    #[inline]
    pub fn len(&self) -> usize {
        self.near_count + self.far.len()
    }

    #[inline]
    fn place(&self, rpc_id: u64) -> usize {
        assert!(rpc_id > self.ack_id, "an acknowledged id has no place");
        (rpc_id - self.ack_id - 1) as usize
    }

    /// The result of an id that is not acknowledged.
    #[inline]
    pub fn get(&self, rpc_id: u64) -> Option<RpcResult> {
        let near = self.near.get(self.place(rpc_id)).copied().flatten();
        if near.is_none() && !self.far.is_empty() {
            return self.far.get(&rpc_id).copied();
        }
        near
    }

    /// Keeps the result of an id that is not acknowledged.
    ///
    /// # Panics
    /// If there is one: a mutation is executed once.
    #[inline]
    pub fn insert(&mut self, rpc_id: u64, result: RpcResult) {
        let place = self.place(rpc_id);
        assert!(self.get(rpc_id).is_none(), "a mutation is executed once");
        if place > 2 * self.near_count + SLACK {
            self.far.insert(rpc_id, result);
            return;
        }
        if place >= self.near.len() {
            self.near.resize(place, None);
            self.near.push_back(Some(result));
        } else {
            self.near[place] = Some(result);
        }
        self.near_count += 1;
    }

    /// All results, by no order.
    pub fn iter(&self) -> impl Iterator<Item = (u64, RpcResult)> + '_ {
        let near = (1..).zip(&self.near);
        let near = near.filter_map(|(place, result)| Some((self.ack_id + place, (*result)?)));
        near.chain(self.far.iter().map(|(id, result)| (*id, *result)))
    }

    /// Forgets the results up to `ack_id`, unless it goes back; returns how many there were.
    pub fn acknowledge(&mut self, ack_id: u64) -> usize {
        if ack_id <= self.ack_id {
            return 0;
        }
        let before = self.len();
        let places = usize::try_from(ack_id - self.ack_id).unwrap_or(usize::MAX);
        let gone = self.near.drain(..places.min(self.near.len()));
        self.near_count -= gone.flatten().count();
        self.ack_id = ack_id;
        if !self.far.is_empty() {
            self.far = match ack_id.checked_add(1) {
                Some(first) => self.far.split_off(&first),
                None => BTreeMap::new(),
            };
        }
        if self.near.len() > 2 * self.near_count + SLACK {
            for (id, result) in (ack_id + 1..).zip(self.near.drain(..)) {
                self.far.extend(result.map(|result| (id, result)));
            }
            self.near_count = 0;
        }
        if self.near.capacity() > CAPACITY_KEPT.max(4 * self.near.len()) {
            self.near.shrink_to(CAPACITY_KEPT.max(2 * self.near.len()));
        }
        before - self.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::Status;
    use proptest::prelude::*;

    fn result(rpc_id: u64) -> RpcResult {
        RpcResult {
            status: Status::Ok,
            version: rpc_id,
            position: !rpc_id,
        }
    }

    /// An id, or an ack, that lies this far behind the newest ack.
    fn distance() -> impl Strategy<Value = u64> {
        prop_oneof![8 => 1..40u64, 4 => 1..400u64, 1 => 1..100_000u64, 1 => Just(u64::MAX)]
    }

    fn check(window: &Window, model: &BTreeMap<u64, RpcResult>) {
        assert_eq!(window.len(), model.len());
        assert!(window.near.len() <= 2 * window.near_count + SLACK + 1);
        assert!(window.near.capacity() <= CAPACITY_KEPT.max(8 * (window.near_count + SLACK)));
        for (rpc_id, result) in model {
            assert_eq!(window.get(*rpc_id), Some(*result));
        }
    }

    proptest! {
        #[test]
        fn keeps_what_a_map_keeps(
            start in prop_oneof![Just(0), any::<u64>()],
            steps in prop::collection::vec((0..30u32, distance()), 1..600),
        ) {
            let mut window = Window::new(start);
            let mut model = BTreeMap::new();
            for (kind, distance) in steps {
                let id = window.ack_id().saturating_add(distance);
                if kind == 0 {
                    let kept = model.split_off(&id.saturating_add(1));
                    let mut gone = std::mem::replace(&mut model, kept);
                    // Nothing lies behind the last id.
                    if id == u64::MAX {
                        gone.append(&mut model);
                    }
                    prop_assert_eq!(window.acknowledge(id), gone.len());
                    prop_assert_eq!(window.acknowledge(id.saturating_sub(1)), 0);
                } else if id > window.ack_id() {
                    prop_assert_eq!(window.get(id), model.get(&id).copied());
                    if model.insert(id, result(id)).is_none() {
                        window.insert(id, result(id));
                    }
                }
                check(&window, &model);
            }
        }
    }

    #[test]
    fn consecutive_ids_stay_in_the_ring_and_sparse_ones_leave_it() {
        let mut window = Window::new(0);
        for rpc_id in 1..=10_000 {
            window.insert(rpc_id, result(rpc_id));
        }
        assert!(window.far.is_empty());
        window.insert(20_000, result(20_000));
        assert_eq!(window.acknowledge(10_000), 10_000);
        assert_eq!((window.near.len(), window.len()), (0, 1));
        assert!(window.near.capacity() <= CAPACITY_KEPT);
        assert_eq!(window.get(20_000), Some(result(20_000)));
        for rpc_id in (10_001..12_000).rev() {
            window.insert(rpc_id, result(rpc_id));
        }
        assert_eq!(window.acknowledge(u64::MAX), 2000);
    }
}
