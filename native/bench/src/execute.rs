//! EXECUTE bodies against a master without Node: the other half of bench/core-execute.ts.
//!
//! `bodies` writes the requests to files, `execute` runs them on commands from standard input, one
//! a line, so that both sides execute the same bytes in turn: `open` a master whose memory is
//! touched, `write COUNT` or `read COUNT` bodies more, `close`. Each answer is the seconds it took.

use std::fs;
use std::io::BufRead;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use rekindle_core::master::Master;

use crate::Failure;
use crate::figures::line;
use crate::limits::mix;
use crate::masters::{TABLE_ID, serving_master};

const OBJECTS: usize = 1_000_000;
const OPERATIONS_A_BODY: usize = 64;
const VALUE_BYTES: usize = 100;
const KEY_BYTES: usize = 16;
/// The objects, their results' bookkeeping and the reserve fit in; the same in core-execute.ts.
const MEMORY_BYTES: usize = 256 << 20;
const REPLY_BYTES: usize = 1 << 16;
const OP_READ: u8 = 1;
const OP_WRITE: u8 = 2;
const _: () = assert!(OBJECTS.is_multiple_of(OPERATIONS_A_BODY), "whole bodies");

/// Appends an operation of `docs/formats.md` §3.
fn push_operation(body: &mut Vec<u8>, op: u8, rpc_id: u64, key: &[u8], value: &[u8]) {
    body.extend_from_slice(&[op, 0]);
    body.extend_from_slice(&(key.len() as u16).to_le_bytes());
    body.extend_from_slice(&(value.len() as u32).to_le_bytes());
    body.extend_from_slice(&TABLE_ID.to_le_bytes());
    body.extend_from_slice(&rpc_id.to_le_bytes());
    body.extend_from_slice(&0u64.to_le_bytes());
    body.extend_from_slice(key);
    body.extend_from_slice(value);
    body.resize(body.len().next_multiple_of(8), 0);
}

fn push_header(body: &mut Vec<u8>, ack_id: u64, count: usize) {
    body.extend_from_slice(&1u64.to_le_bytes());
    body.extend_from_slice(&ack_id.to_le_bytes());
    body.extend_from_slice(&(count as u32).to_le_bytes());
    body.extend_from_slice(&0u32.to_le_bytes());
}

fn key(number: usize) -> [u8; KEY_BYTES] {
    let mut key = *b"object:000000000";
    let mut rest = number;
    for digit in key.iter_mut().rev().take(9) {
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    key
}

/// All bodies one after the other; they have one length.
fn bodies(op: u8) -> Vec<u8> {
    let mut all = Vec::new();
    for first in (0..OBJECTS).step_by(OPERATIONS_A_BODY) {
        // The client has all answers of the bodies before.
        push_header(
            &mut all,
            if op == OP_WRITE { first as u64 } else { 0 },
            OPERATIONS_A_BODY,
        );
        for number in first..first + OPERATIONS_A_BODY {
            if op == OP_WRITE {
                let value = [number as u8; VALUE_BYTES];
                push_operation(&mut all, op, number as u64 + 1, &key(number), &value);
            } else {
                let random = mix(number as u64) as usize % OBJECTS;
                push_operation(&mut all, op, 0, &key(random), &[]);
            }
        }
    }
    all
}

/// Writes `writes` and `reads` into the folder.
///
/// # Errors
/// The folder cannot be written.
pub fn write_bodies(folder: &Path) -> Result<(), Failure> {
    fs::write(folder.join("writes"), bodies(OP_WRITE))?;
    Ok(fs::write(folder.join("reads"), bodies(OP_READ))?)
}

/// The bodies of one kind and how far they were executed.
struct Feed {
    bodies: Vec<u8>,
    body_bytes: usize,
    next: usize,
}

impl Feed {
    fn new(path: &Path) -> Result<Self, Failure> {
        let bodies = fs::read(path)?;
        let body_bytes = bodies.len() / (OBJECTS / OPERATIONS_A_BODY);
        Ok(Self {
            bodies,
            body_bytes,
            next: 0,
        })
    }

    /// Seconds for the next bodies; begins again behind the last.
    fn execute(&mut self, master: &Master, count: usize) -> Result<f64, Failure> {
        let mut reply = vec![0u8; REPLY_BYTES];
        let start = Instant::now();
        for _ in 0..count {
            let body = &self.bodies[self.next..self.next + self.body_bytes];
            self.next = (self.next + self.body_bytes) % self.bodies.len();
            let done = master.execute(body, &mut reply, 0);
            done.map_err(|status| Failure::Core("execute", status))?;
        }
        let took = start.elapsed().as_secs_f64();
        check_reply(&reply)?;
        Ok(took)
    }
}

/// Every result of a reply is OK.
fn check_reply(reply: &[u8]) -> Result<(), Failure> {
    let field = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|byte| reply[at + byte]));
    let mut at = 8;
    for index in 0..field(0) {
        // Status and retry delay.
        if field(at) != 0 {
            return Err(Failure::Wrong(format!("operation {index} was refused")));
        }
        at += 16 + (field(at + 4) as usize).next_multiple_of(8);
    }
    Ok(())
}

/// Serves commands until the input ends.
///
/// # Errors
/// A refused operation, an unknown command, files that cannot be read.
pub fn serve(folder: &Path) -> Result<(), Failure> {
    let mut writes = Feed::new(&folder.join("writes"))?;
    let mut reads = Feed::new(&folder.join("reads"))?;
    let mut master: Option<Arc<Master>> = None;
    for command in std::io::stdin().lock().lines() {
        let command = command?;
        let (word, count) = command.split_once(' ').unwrap_or((&command, "0"));
        let count: usize = count.parse().map_err(|_| Failure::Usage)?;
        let took = match (word, &master) {
            ("open", None) => {
                master = Some(serving_master(MEMORY_BYTES, false)?);
                (writes.next, reads.next) = (0, 0);
                0.0
            }
            ("write", Some(master)) => writes.execute(master, count)?,
            ("read", Some(master)) => reads.execute(master, count)?,
            ("close", Some(open)) => {
                open.close()
                    .map_err(|status| Failure::Core("close", status))?;
                master = None;
                0.0
            }
            _ => return Err(Failure::Usage),
        };
        line(&took.to_string())?;
    }
    Ok(())
}
