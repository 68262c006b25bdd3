//! Results of mutations that their clients have not acknowledged: a late duplicate gets the saved
//! answer, or is told that it is stale, but is never executed.
//!
//! Rules: a client's ack id never goes back; a result is kept until it is acknowledged or its
//! client has been idle for 30 minutes; all maps are bounded. Lost with the master's process
//! today: entry type 7 is reserved for results that are not.

use std::collections::{BTreeMap, HashMap};

use crate::status::Status;

/// Most results kept for one client.
pub const RESULTS_MAX: usize = 65_536;
/// Most clients.
pub const CLIENTS_MAX: usize = 65_536;
/// Most results of all clients together.
pub const RESULTS_MAX_ALL: usize = 4 << 20;
const IDLE_MS: u64 = 30 * 60_000;
const SWEEP_MS: u64 = 60_000;

/// What a mutation was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RpcResult {
    /// Its status.
    pub status: Status,
    /// Its version field.
    pub version: u64,
    /// Log position that must be durable before it is said again.
    pub position: u64,
}

/// What to do with a mutation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Duplicate {
    /// Execute it, then `save` its result.
    New,
    /// It was executed.
    Done(RpcResult),
    /// Its result was acknowledged.
    Stale,
    /// No room to remember its result now.
    NoRoom,
}

#[derive(Default)]
struct Client {
    ack_id: u64,
    used_ms: u64,
    results: BTreeMap<u64, RpcResult>,
}

/// See the file's head.
#[derive(Default)]
pub struct UnackedRpcResults {
    clients: HashMap<u64, Client>,
    results: usize,
    swept_ms: u64,
}

impl UnackedRpcResults {
    /// Takes note of a message of a client; forgets what it acknowledges, and now and then the
    /// clients that are idle.
    pub fn begin(&mut self, client_id: u64, ack_id: u64, now_ms: u64) {
        if now_ms.saturating_sub(self.swept_ms) >= SWEEP_MS {
            self.swept_ms = now_ms;
            self.clients
                .retain(|_, client| now_ms.saturating_sub(client.used_ms) < IDLE_MS);
            self.results = self
                .clients
                .values()
                .map(|client| client.results.len())
                .sum();
        }
        let Some(client) = self.clients.get_mut(&client_id) else {
            return;
        };
        client.used_ms = client.used_ms.max(now_ms);
        if ack_id > client.ack_id {
            client.ack_id = ack_id;
            let kept = match ack_id.checked_add(1) {
                Some(first) => client.results.split_off(&first),
                None => BTreeMap::new(),
            };
            self.results -= client.results.len();
            client.results = kept;
        }
    }

    /// Says what to do with a mutation of a client whose message has begun.
    pub fn check(&mut self, client_id: u64, ack_id: u64, rpc_id: u64, now_ms: u64) -> Duplicate {
        let count = self.clients.len();
        let client = match self.clients.get_mut(&client_id) {
            Some(client) => client,
            None if count >= CLIENTS_MAX => return Duplicate::NoRoom,
            None => self.clients.entry(client_id).or_insert(Client {
                ack_id,
                used_ms: now_ms,
                results: BTreeMap::new(),
            }),
        };
        if rpc_id <= client.ack_id {
            return Duplicate::Stale;
        }
        if let Some(result) = client.results.get(&rpc_id) {
            return Duplicate::Done(*result);
        }
        if client.results.len() >= RESULTS_MAX || self.results >= RESULTS_MAX_ALL {
            return Duplicate::NoRoom;
        }
        Duplicate::New
    }

    /// Remembers the result of a mutation that `check` called new.
    pub fn save(&mut self, client_id: u64, rpc_id: u64, result: RpcResult) {
        let client = self
            .clients
            .get_mut(&client_id)
            .expect("check has made the client");
        let previous = client.results.insert(rpc_id, result);
        assert!(previous.is_none(), "a mutation is executed once");
        self.results += 1;
    }

    /// Clients with a window.
    pub fn clients(&self) -> usize {
        self.clients.len()
    }

    /// Results kept.
    pub fn results(&self) -> usize {
        self.results
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DONE: RpcResult = RpcResult {
        status: Status::Ok,
        version: 4,
        position: 5,
    };

    #[test]
    fn remembers_until_acknowledged_and_never_goes_back() {
        let mut results = UnackedRpcResults::default();
        assert_eq!(results.check(1, 0, 3, 0), Duplicate::New);
        results.save(1, 3, DONE);
        assert_eq!(results.check(1, 0, 3, 0), Duplicate::Done(DONE));
        assert_eq!(results.check(1, 0, 2, 0), Duplicate::New);
        results.begin(1, 3, 0);
        results.begin(1, 1, 0);
        assert_eq!(results.check(1, 1, 3, 0), Duplicate::Stale);
        assert_eq!(results.check(1, 1, 2, 0), Duplicate::Stale);
        assert_eq!(results.results(), 0);
    }

    #[test]
    fn a_full_window_says_no_and_idle_clients_go() {
        let mut results = UnackedRpcResults::default();
        for rpc_id in 1..=RESULTS_MAX as u64 {
            assert_eq!(results.check(1, 0, rpc_id, 0), Duplicate::New);
            results.save(1, rpc_id, DONE);
        }
        assert_eq!(results.check(1, 0, 1 << 20, 0), Duplicate::NoRoom);
        results.begin(1, u64::MAX, 0);
        assert_eq!(results.results(), 0);
        results.begin(2, 0, IDLE_MS + SWEEP_MS);
        assert_eq!(results.clients(), 0);
    }
}
