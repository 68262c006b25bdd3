//! Results on their way to the new owner of a tablet.
//!
//! Rule: they go whole, since nothing tells of which tablet a result is. That costs memory there
//! and harms nobody: a client's numbers mean one mutation each, wherever it asks.
//!
//! Bytes, u64 each: a client {id, ack id, number of results}, then its results {rpc id, version,
//! status}.

use super::{CLIENTS_MAX, Client, RESULTS_MAX_ALL, RpcResult, UnackedRpcResults, Window};
use crate::little_endian::u64_at;
use crate::status::Status;

/// No client more once so many bytes are there.
const EXPORT_BYTES: usize = 1 << 20;
const WORD_BYTES: usize = 8;

fn status_of(number: u64) -> Result<Status, Status> {
    let known = [
        Status::Ok,
        Status::ObjectNotFound,
        Status::ObjectExists,
        Status::WrongVersion,
    ];
    let found = known.into_iter().find(|status| *status as u64 == number);
    found.ok_or(Status::InvalidArgument)
}

struct Words<'a>(&'a [u8]);

impl Words<'_> {
    fn next(&mut self) -> Result<u64, Status> {
        if self.0.len() < WORD_BYTES {
            return Err(Status::InvalidArgument);
        }
        let word = u64_at(self.0, 0);
        self.0 = &self.0[WORD_BYTES..];
        Ok(word)
    }
}

impl UnackedRpcResults {
    /// Appends what is kept for some clients with ids above `after`; returns the last one's id and
    /// how many are left.
    pub fn export(&self, after: u64, out: &mut Vec<u8>) -> (u64, usize) {
        let mut clients: Vec<&Client> = self.clients.iter().collect();
        clients.retain(|client| client.id > after);
        clients.sort_unstable_by_key(|client| client.id);
        let start = out.len();
        let mut last = after;
        for (index, client) in clients.iter().enumerate() {
            if out.len() - start >= EXPORT_BYTES {
                return (last, clients.len() - index);
            }
            last = client.id;
            let window = &client.window;
            for word in [client.id, window.ack_id(), window.len() as u64] {
                out.extend_from_slice(&word.to_le_bytes());
            }
            for (rpc_id, result) in window.iter() {
                for word in [rpc_id, result.version, result.status as u64] {
                    out.extend_from_slice(&word.to_le_bytes());
                }
            }
        }
        (last, 0)
    }

    /// Takes in what was exported; all of it is durable here.
    ///
    /// # Errors
    /// `InvalidArgument` for other bytes, `OutOfMemory` if it is too much; then a part was taken.
    pub fn import(&mut self, bytes: &[u8], now_ms: u64) -> Result<(), Status> {
        let mut words = Words(bytes);
        while !words.0.is_empty() {
            let (id, ack_id, count) = (words.next()?, words.next()?, words.next()?);
            let place = self.place_of(id, ack_id, now_ms)?;
            self.results -= self.clients[place].window.acknowledge(ack_id);
            for _ in 0..count {
                let (rpc_id, version) = (words.next()?, words.next()?);
                let status = status_of(words.next()?)?;
                let window = &mut self.clients[place].window;
                if rpc_id <= window.ack_id() || window.get(rpc_id).is_some() {
                    continue;
                }
                if self.results >= RESULTS_MAX_ALL {
                    return Err(Status::OutOfMemory);
                }
                let result = RpcResult {
                    status,
                    version,
                    position: 0,
                };
                window.insert(rpc_id, result);
                self.results += 1;
            }
        }
        Ok(())
    }

    fn place_of(&mut self, id: u64, ack_id: u64, now_ms: u64) -> Result<usize, Status> {
        if let Some(place) = self.places.get(&id) {
            return Ok(*place);
        }
        if self.clients.len() >= CLIENTS_MAX {
            return Err(Status::OutOfMemory);
        }
        let place = self.clients.len();
        self.clients.push(Client {
            id,
            used_ms: now_ms,
            window: Window::new(ack_id),
        });
        self.places.insert(id, place);
        Ok(place)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Duplicate;
    use super::*;

    #[test]
    fn a_duplicate_gets_the_same_answer_from_the_new_owner() {
        let mut old = UnackedRpcResults::default();
        for client_id in [7, 3, 9] {
            old.begin(client_id, 4, 0);
            for rpc_id in [5, 6, 4_000] {
                assert_eq!(old.check(rpc_id), Duplicate::New);
                let result = RpcResult {
                    status: Status::WrongVersion,
                    version: client_id + rpc_id,
                    position: 99,
                };
                old.save(rpc_id, result);
            }
        }
        let mut new = UnackedRpcResults::default();
        new.begin(3, 5, 0);
        assert_eq!(new.check(6), Duplicate::New);
        let mut bytes = Vec::new();
        assert_eq!(old.export(3, &mut bytes), (9, 0));
        assert_eq!(old.export(0, &mut bytes), (9, 0));
        new.import(&bytes, 0).expect("what was exported");
        assert_eq!((new.clients(), new.results()), (3, 8));
        new.begin(3, 5, 0);
        assert_eq!(new.check(5), Duplicate::Stale);
        let known = RpcResult {
            status: Status::WrongVersion,
            version: 4_003,
            position: 0,
        };
        assert_eq!(new.check(4_000), Duplicate::Done(known));
        assert_eq!(new.import(&bytes[..9], 0), Err(Status::InvalidArgument));
    }
}
