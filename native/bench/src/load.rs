//! Objects of one size that are overwritten at random by two clients: one never waits and sends
//! messages of 64 writes, the other sends single writes that fall due at a fixed rate.
//!
//! A message is repeated until none of its writes is refused. The latency of a single write counts
//! from when it was due to when it succeeded: a stall counts for all writes that it holds up.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rekindle_core::entry::entry_bytes;
use rekindle_core::master::Master;
use rekindle_core::status::Status;

use crate::Failure;
use crate::limits::mix;
use crate::masters::TABLE_ID;

const KEY_BYTES: usize = 24;
const OPERATIONS: usize = 64;
const HEADER_BYTES: usize = 24;
const OPERATION_HEADER_BYTES: usize = 32;
const REPLY_HEADER_BYTES: usize = 8;
const RESULT_BYTES: usize = 16;
const OP_WRITE: u8 = 2;
/// Between a refusal and the next try: lets the cleaner run.
const REFUSED_PAUSE: Duration = Duration::from_micros(50);
const STALL_MAX: Duration = Duration::from_secs(10);
/// Between two single writes.
const SINGLE_INTERVAL: Duration = Duration::from_micros(200);

/// A client with one message under way.
struct Client {
    id: u64,
    /// Writes of a message.
    count: usize,
    value_bytes: usize,
    operation_bytes: usize,
    body: Vec<u8>,
    reply: Vec<u8>,
    rpc_id_last: u64,
    /// When the message under way was sent first.
    since: Option<Instant>,
    refusals: u64,
}

impl Client {
    fn new(id: u64, count: usize, value_bytes: usize) -> Self {
        let operation_bytes = OPERATION_HEADER_BYTES + KEY_BYTES + value_bytes;
        let operation_bytes = operation_bytes.next_multiple_of(8);
        Self {
            id,
            count,
            value_bytes,
            operation_bytes,
            body: vec![7; HEADER_BYTES + count * operation_bytes],
            reply: vec![0; REPLY_HEADER_BYTES + count * RESULT_BYTES],
            rpc_id_last: 0,
            since: None,
            refusals: 0,
        }
    }

    fn put(&mut self, at: usize, field: u64) {
        self.body[at..at + 8].copy_from_slice(&field.to_le_bytes());
    }

    /// Makes the next message; `number` names the object of each of its writes.
    fn prepare(&mut self, number: impl Fn(u64) -> u64) {
        self.put(0, self.id);
        self.put(8, self.rpc_id_last);
        self.put(16, self.count as u64);
        for index in 0..self.count {
            let at = HEADER_BYTES + index * self.operation_bytes;
            self.body[at..at + 4].copy_from_slice(&[OP_WRITE, 0, KEY_BYTES as u8, 0]);
            self.body[at + 4..at + 8].copy_from_slice(&(self.value_bytes as u32).to_le_bytes());
            self.rpc_id_last += 1;
            let number = number(self.rpc_id_last);
            self.put(at + 8, TABLE_ID);
            self.put(at + 16, self.rpc_id_last);
            self.put(at + 24, 0);
            self.body[at + 32..at + 40].copy_from_slice(b"object::");
            self.put(at + 40, mix(number));
            self.put(at + 48, number);
        }
        self.since = Some(Instant::now());
    }

    /// Sends the message, again if need be; whether all of its writes are done. Those that were
    /// not refused are answered from their results when it is sent again.
    fn send(&mut self, master: &Master) -> Result<bool, Failure> {
        let executed = master.execute(&self.body, &mut self.reply, 0);
        executed.map_err(|status| Failure::Core("execute", status))?;
        let results = self.reply[REPLY_HEADER_BYTES..].chunks_exact(RESULT_BYTES);
        let mut refused = false;
        for result in results {
            let status = u16::from_le_bytes([result[0], result[1]]);
            if status == Status::Retry as u16 || status == Status::OutOfMemory as u16 {
                refused = true;
            } else if status != Status::Ok as u16 {
                let text = format!("a write ended with status {status}");
                return Err(Failure::Wrong(text));
            }
        }
        if !refused {
            self.since = None;
        } else {
            self.refusals += 1;
            if self.since.is_some_and(|since| since.elapsed() > STALL_MAX) {
                return Err(Failure::Wrong("writes are refused for too long".into()));
            }
        }
        Ok(!refused)
    }
}

/// See the file's head.
pub struct Load {
    master: Arc<Master>,
    objects: u64,
    entry_bytes: usize,
    bulk: Client,
    single: Client,
    /// Latencies of single writes in seconds.
    pub latencies: Vec<f64>,
}

impl Load {
    /// No objects yet.
    pub fn new(master: Arc<Master>, value_bytes: usize) -> Self {
        Self {
            master,
            objects: 0,
            entry_bytes: entry_bytes(KEY_BYTES, value_bytes, 0),
            bulk: Client::new(1, OPERATIONS, value_bytes),
            single: Client::new(2, 1, value_bytes),
            latencies: Vec::new(),
        }
    }

    /// Objects that there are.
    pub fn objects(&self) -> u64 {
        self.objects
    }

    /// What share of the master's memory so many writes fill.
    pub fn volume(&self, writes: u64) -> f64 {
        (writes * self.entry_bytes as u64) as f64 / self.master.arena().bytes() as f64
    }

    /// Messages that had to be sent again.
    pub fn refusals(&self) -> u64 {
        self.bulk.refusals + self.single.refusals
    }

    /// Adds as many objects as make `live` of the master's memory.
    ///
    /// # Errors
    /// The core refuses for good.
    pub fn fill(&mut self, live: f64) -> Result<(), Failure> {
        let bytes = self.master.arena().bytes() as f64 * live;
        while self.objects * (self.entry_bytes as u64) < bytes as u64 {
            let (objects, before) = (self.objects, self.bulk.rpc_id_last);
            self.bulk.prepare(|rpc_id| objects + rpc_id - before - 1);
            while !self.bulk.send(&self.master)? {
                thread::sleep(REFUSED_PAUSE);
            }
            self.objects += OPERATIONS as u64;
        }
        Ok(())
    }

    /// Overwrites `bytes` bytes of random objects, or as many as the time allows, single writes
    /// among them if `singles`; `pace` is called before each message. Returns writes and seconds.
    ///
    /// # Errors
    /// The core refuses for good.
    pub fn overwrite(
        &mut self,
        bytes: usize,
        time_max: Duration,
        singles: bool,
        pace: &mut dyn FnMut() -> Result<(), Failure>,
    ) -> Result<(u64, f64), Failure> {
        let wanted = bytes.div_ceil(self.entry_bytes) as u64;
        let start = Instant::now();
        let (mut writes, mut due) = (0, start);
        let objects = self.objects;
        while writes < wanted && start.elapsed() < time_max {
            let mut refused = false;
            while singles && !refused && due <= Instant::now() {
                if self.single.since.is_none() {
                    self.single.prepare(|rpc_id| mix(!rpc_id) % objects);
                }
                refused = !self.single.send(&self.master)?;
                if !refused {
                    self.latencies.push(due.elapsed().as_secs_f64());
                    writes += 1;
                    due += SINGLE_INTERVAL;
                }
            }
            if self.bulk.since.is_none() {
                pace()?;
                self.bulk.prepare(|rpc_id| mix(rpc_id) % objects);
            }
            if self.bulk.send(&self.master)? {
                writes += OPERATIONS as u64;
            } else {
                refused = true;
            }
            if refused {
                thread::sleep(REFUSED_PAUSE);
            }
        }
        Ok((writes, start.elapsed().as_secs_f64()))
    }
}
