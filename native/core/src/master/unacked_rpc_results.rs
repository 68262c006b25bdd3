//! Results of mutations that their clients have not acknowledged: a late duplicate gets the saved
//! answer, or is told that it is stale, but is never executed.
//!
//! Rules: a client's ack id never goes back; a result is kept until it is acknowledged or its
//! client has been idle for 30 minutes; all is bounded, memory too. One message is under way at a
//! time: `begin` finds its client once, `check` and `save` are about that one. Lost with the
//! master's process today: entry type 7 is reserved for results that are not.

mod transfer;
mod window;

use std::collections::HashMap;

use self::window::Window;
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

struct Client {
    id: u64,
    used_ms: u64,
    window: Window,
}

/// The message under way.
#[derive(Default)]
struct Message {
    client_id: u64,
    ack_id: u64,
    now_ms: u64,
    /// Its client's place; None as long as the client has none.
    place: Option<usize>,
}

/// See the file's head.
#[derive(Default)]
pub struct UnackedRpcResults {
    clients: Vec<Client>,
    /// Places in `clients` by id.
    places: HashMap<u64, usize>,
    results: usize,
    swept_ms: u64,
    message: Message,
}

impl UnackedRpcResults {
    /// Takes note of a message of a client; forgets what it acknowledges, and now and then the
    /// clients that are idle.
    pub fn begin(&mut self, client_id: u64, ack_id: u64, now_ms: u64) {
        if now_ms.saturating_sub(self.swept_ms) >= SWEEP_MS {
            self.swept_ms = now_ms;
            self.sweep(now_ms);
        }
        let place = self.places.get(&client_id).copied();
        self.message = Message {
            client_id,
            ack_id,
            now_ms,
            place,
        };
        if let Some(place) = place {
            let client = &mut self.clients[place];
            client.used_ms = client.used_ms.max(now_ms);
            self.results -= client.window.acknowledge(ack_id);
        }
    }

    fn sweep(&mut self, now_ms: u64) {
        self.clients
            .retain(|client| now_ms.saturating_sub(client.used_ms) < IDLE_MS);
        if self.clients.len() == self.places.len() {
            return;
        }
        let places = self.clients.iter().enumerate();
        self.places = places.map(|(place, client)| (client.id, place)).collect();
        self.results = self.clients.iter().map(|client| client.window.len()).sum();
    }

    /// Says what to do with a mutation of the message.
    #[inline]
    pub fn check(&mut self, rpc_id: u64) -> Duplicate {
        let place = match self.message.place {
            Some(place) => place,
            None if self.clients.len() >= CLIENTS_MAX => return Duplicate::NoRoom,
            None => self.add_client(),
        };
        let window = &self.clients[place].window;
        if rpc_id <= window.ack_id() {
            return Duplicate::Stale;
        }
        if let Some(result) = window.get(rpc_id) {
            return Duplicate::Done(result);
        }
        if window.len() >= RESULTS_MAX || self.results >= RESULTS_MAX_ALL {
            return Duplicate::NoRoom;
        }
        Duplicate::New
    }

    fn add_client(&mut self) -> usize {
        let Message {
            client_id,
            ack_id,
            now_ms,
            ..
        } = self.message;
        let place = self.clients.len();
        self.clients.push(Client {
            id: client_id,
            used_ms: now_ms,
            window: Window::new(ack_id),
        });
        self.places.insert(client_id, place);
        self.message.place = Some(place);
        place
    }

    /// Remembers the result of a mutation that `check` called new.
    #[inline]
    pub fn save(&mut self, rpc_id: u64, result: RpcResult) {
        let place = self.message.place.expect("check has made the client");
        self.clients[place].window.insert(rpc_id, result);
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
        results.begin(1, 0, 0);
        assert_eq!(results.check(3), Duplicate::New);
        results.save(3, DONE);
        assert_eq!(results.check(3), Duplicate::Done(DONE));
        assert_eq!(results.check(2), Duplicate::New);
        results.begin(1, 3, 0);
        results.begin(1, 1, 0);
        assert_eq!(results.check(3), Duplicate::Stale);
        assert_eq!(results.check(2), Duplicate::Stale);
        assert_eq!(results.results(), 0);
    }

    #[test]
    fn a_full_window_says_no() {
        let mut results = UnackedRpcResults::default();
        results.begin(1, 0, 0);
        for rpc_id in 1..=RESULTS_MAX as u64 {
            assert_eq!(results.check(rpc_id), Duplicate::New);
            results.save(rpc_id, DONE);
        }
        assert_eq!(results.check(1 << 20), Duplicate::NoRoom);
        results.begin(1, u64::MAX, 0);
        assert_eq!(results.results(), 0);
        assert_eq!(results.check(u64::MAX), Duplicate::Stale);
    }

    #[test]
    fn idle_clients_go_and_the_others_keep_their_results() {
        let mut results = UnackedRpcResults::default();
        for client_id in 1..=3 {
            results.begin(client_id, 0, 0);
            assert_eq!(results.check(client_id), Duplicate::New);
            results.save(client_id, DONE);
        }
        results.begin(3, 0, SWEEP_MS);
        results.begin(9, 0, IDLE_MS);
        assert_eq!((results.clients(), results.results()), (1, 1));
        results.begin(3, 0, IDLE_MS);
        assert_eq!(results.check(3), Duplicate::Done(DONE));
        results.begin(1, 0, IDLE_MS);
        assert_eq!(results.check(1), Duplicate::New);
        results.begin(4, 0, 2 * IDLE_MS + SWEEP_MS);
        assert_eq!((results.clients(), results.results()), (0, 0));
    }
}
