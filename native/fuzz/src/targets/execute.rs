//! EXECUTE: a body is parsed and executed, its reply checked against a plain map.
//!
//! Properties: a body is executed as a whole or not at all, and only if its operations fill it to
//! the last byte; each answer is the one that the rules give; the reply is well-formed; sent again,
//! every mutation that was answered gets the same answer and nothing changes; when all keys are
//! removed, nothing is counted as live; memory is bounded by the number of operations.

use std::collections::HashMap;

use rekindle_core::key_hash::{key_hash, slot};
use rekindle_core::master::Master;
use rekindle_core::master::execute::Executed;
use rekindle_core::master::message::{Operation as Parsed, OperationKind, Request};
use rekindle_core::status::Status;

use crate::allocation;
use crate::reference::Fields;
use crate::requests::{Answer, Operation, answers, body};
use crate::small_master::{SmallMaster, owns, stats};

const REPAIR: u8 = 1;
const SHORT_REPLY: u8 = 2;
const REPLY_BYTES: usize = 256 << 10;
const NOW_MS: u64 = 1_700_000_000_000;
const HEADER_BYTES: usize = 24;
const OPERATION_BYTES: usize = 32;
const VALUE_BYTES_MAX: usize = 1 << 20;
/// Client ids from here on tidy up.
const CLEANERS: u64 = 1 << 40;

thread_local! {
    static MASTER: SmallMaster = SmallMaster::default();
}

/// Mode byte, length of the reply's buffer, then a body.
pub fn check(input: &[u8]) {
    let mut fields = Fields::new(input);
    let (mode, reply_bytes) = (fields.u8(), usize::from(fields.u16()));
    let mut bytes = fields.rest().to_vec();
    if mode & REPAIR != 0 {
        repair(&mut bytes);
    }
    let (master, use_number) = MASTER.with(|master| master.get(true));
    if let Some(client_id) = bytes.get_mut(..8) {
        // No answer may come from what an earlier input left behind.
        client_id.copy_from_slice(&u64::from(use_number).to_le_bytes());
    }
    let before = stats(&master)["appendedPosition"];
    let parsed = allocation::at_most(0, || Request::parse(&bytes));
    let reply_bytes = if mode & SHORT_REPLY != 0 {
        reply_bytes
    } else {
        REPLY_BYTES
    };
    let mut reply = vec![0xff; reply_bytes];
    let (executed, written) = execute(&master, &bytes, &mut reply);
    let Ok(request) = parsed else {
        assert!(executed == Err(Status::MalformedRequest), "refused");
        assert!(
            stats(&master)["appendedPosition"] == before,
            "nothing was executed"
        );
        return;
    };
    let operations: Vec<Parsed<'_>> = request.operations().collect();
    check_parsed(&bytes, &operations, request.count);
    let Ok(executed) = executed else {
        assert!(
            reply_bytes < 8 + 16 * request.count,
            "only for want of room"
        );
        assert!(
            stats(&master)["appendedPosition"] == before,
            "nothing was executed"
        );
        return;
    };
    assert!(
        written == executed.reply_bytes,
        "nothing is written behind the reply"
    );
    let first = answers(&reply[..executed.reply_bytes]);
    assert!(first.len() == operations.len(), "an answer each");
    Model::new(request.ack_id).check(&operations, &first);
    check_position(&master, &operations, &executed, before);
    repeat(&master, &bytes, &operations, &first);
    clean(&master, use_number, &operations);
}

fn execute(master: &Master, bytes: &[u8], reply: &mut [u8]) -> (Result<Executed, Status>, usize) {
    let executed = master.execute(bytes, reply, NOW_MS);
    let used = executed.map_or(0, |executed| executed.reply_bytes);
    let untouched = reply[used..].iter().all(|byte| *byte == 0xff);
    (
        executed,
        if untouched || executed.is_err() {
            used
        } else {
            reply.len()
        },
    )
}

/// Makes count and flags fit the operations that are whole.
fn repair(bytes: &mut Vec<u8>) {
    if bytes.len() < HEADER_BYTES {
        return;
    }
    let (mut count, mut end) = (0u32, HEADER_BYTES);
    while let Some(header) = bytes.get(end..end + OPERATION_BYTES) {
        let mut fields = Fields::new(&header[2..]);
        let lengths = usize::from(fields.u16()) + fields.u32() as usize;
        let behind = (end + OPERATION_BYTES + lengths).next_multiple_of(8);
        if behind > bytes.len() {
            break;
        }
        end = behind;
        count += 1;
    }
    bytes.truncate(end);
    bytes[16..20].copy_from_slice(&count.to_le_bytes());
    bytes[20..24].fill(0);
}

fn check_parsed(bytes: &[u8], operations: &[Parsed<'_>], count: usize) {
    assert!(operations.len() == count, "as many as counted");
    let padded =
        |one: &Parsed<'_>| OPERATION_BYTES + (one.key.len() + one.value.len()).next_multiple_of(8);
    let total: usize = operations.iter().map(padded).sum();
    assert!(HEADER_BYTES + total == bytes.len(), "they fill the body");
}

fn check_position(master: &Master, operations: &[Parsed<'_>], executed: &Executed, before: u64) {
    let appended = stats(master)["appendedPosition"];
    assert!(
        executed.position <= appended,
        "a reply waits for what was appended"
    );
    let reads = operations.iter().all(|one| one.kind == OperationKind::Read);
    assert!(
        !reads || (appended == before && executed.position == 0),
        "reads change nothing"
    );
}

/// The same body again: answered from the saved results.
fn repeat(master: &Master, bytes: &[u8], operations: &[Parsed<'_>], first: &[Answer]) {
    let live = stats(master);
    let mut reply = vec![0xff; REPLY_BYTES];
    let executed = master.execute(bytes, &mut reply, NOW_MS).expect("has room");
    let second = answers(&reply[..executed.reply_bytes]);
    let mut all = first.iter().chain(&second);
    if all.any(|answer| answer.status == Status::Retry as u16) {
        return; // full: what was not executed before may be now, and the other way round
    }
    for ((operation, first), second) in operations.iter().zip(first).zip(&second) {
        // What failed for want of its tablet is not remembered: its id may have been used since.
        let remembered = first.status != Status::UnknownTablet as u16;
        if operation.kind != OperationKind::Read && remembered {
            assert!(first == second, "a duplicate gets the saved answer");
        }
    }
    let again = stats(master);
    for name in ["objects", "liveBytes", "appendedPosition"] {
        assert!(live[name] == again[name], "a duplicate changes nothing");
    }
}

/// Removes every key that may be there, so that the next input starts from nothing.
fn clean(master: &Master, use_number: u32, operations: &[Parsed<'_>]) {
    let removes: Vec<Operation<'_>> = operations
        .iter()
        .filter(|one| one.kind == OperationKind::Write && !one.key.is_empty())
        .enumerate()
        .map(|(index, one)| Operation {
            kind: 3,
            table_id: one.table_id,
            rpc_id: index as u64 + 1,
            key: one.key,
            ..Operation::default()
        })
        .collect();
    let mut reply = vec![0; 8 + 16 * removes.len()];
    let cleaner = CLEANERS + u64::from(use_number);
    let executed = master.execute(&body(cleaner, 0, &removes), &mut reply, NOW_MS);
    executed.expect("removes are sound");
    let appended = master.appended_position().expect("open");
    master.set_durable(appended).expect("was appended");
    let counted = stats(master);
    assert!(
        (counted["objects"], counted["liveBytes"]) == (0, 0),
        "nothing is left"
    );
}

/// The rules on a plain map.
struct Model {
    ack_id: u64,
    live: HashMap<(u64, Vec<u8>), (u64, Vec<u8>)>,
    highest: HashMap<(u64, Vec<u8>), u64>,
    saved: HashMap<u64, (u16, u64)>,
}

impl Model {
    fn new(ack_id: u64) -> Self {
        Self {
            ack_id,
            live: HashMap::new(),
            highest: HashMap::new(),
            saved: HashMap::new(),
        }
    }

    fn check(&mut self, operations: &[Parsed<'_>], answers: &[Answer]) {
        let mut full = false;
        for (operation, answer) in operations.iter().zip(answers) {
            let got = (answer.status, answer.version);
            full |= answer.status == Status::Retry as u16;
            if full {
                assert!(
                    got == (Status::Retry as u16, 0),
                    "all behind a full reply are refused"
                );
                continue;
            }
            assert!(answer.retry_after_ms == 0, "no hint without a reason");
            let mutation = operation.kind != OperationKind::Read;
            if let Some(saved) = self.refused(operation) {
                assert!(
                    got == saved,
                    "{operation:?}: {answer:?} instead of {saved:?}"
                );
            } else {
                self.answered(operation, answer);
                if mutation {
                    self.saved.insert(operation.rpc_id, got);
                }
            }
            assert!(
                !mutation || answer.value.is_empty(),
                "only reads carry values"
            );
        }
    }

    /// The answer that does not depend on the object, if there is one.
    fn refused(&self, operation: &Parsed<'_>) -> Option<(u16, u64)> {
        let mutation = operation.kind != OperationKind::Read;
        let place = slot(key_hash(operation.table_id, operation.key));
        if operation.key.is_empty() {
            Some((Status::InvalidKey as u16, 0))
        } else if operation.value.len() > VALUE_BYTES_MAX {
            Some((Status::ValueTooLarge as u16, 0))
        } else if mutation && operation.rpc_id <= self.ack_id {
            Some((Status::StaleRpc as u16, 0))
        } else if let Some(saved) = self.saved.get(&operation.rpc_id).filter(|_| mutation) {
            Some(*saved)
        } else if !owns(operation.table_id, place) {
            Some((Status::UnknownTablet as u16, 0))
        } else {
            None
        }
    }

    fn answered(&mut self, operation: &Parsed<'_>, answer: &Answer) {
        let key = (operation.table_id, operation.key.to_vec());
        let live = self.live.get(&key).cloned();
        let version = live.as_ref().map_or(0, |(version, _)| *version);
        let got = (answer.status, answer.version);
        if let Some(status) = rejected(operation, live.as_ref().map(|(version, _)| *version)) {
            assert!(got == (status as u16, version), "{operation:?}: {answer:?}");
            return;
        }
        match operation.kind {
            OperationKind::Read => {
                let status = if live.is_some() {
                    Status::Ok
                } else {
                    Status::ObjectNotFound
                };
                assert!(got == (status as u16, version), "{operation:?}: {answer:?}");
                let value = live.map_or(Vec::new(), |(_, value)| value);
                assert!(answer.value == value, "the value that was written");
            }
            OperationKind::Write => {
                let highest = self
                    .highest
                    .insert(key.clone(), answer.version)
                    .unwrap_or(0);
                assert!(
                    answer.status == 0 && answer.version > highest,
                    "versions grow"
                );
                assert!(live.is_none() || answer.version == version + 1, "by one");
                self.live
                    .insert(key, (answer.version, operation.value.to_vec()));
            }
            OperationKind::Remove => {
                assert!(got == (0, version), "{operation:?}: {answer:?}");
                self.live.remove(&key);
            }
        }
    }
}

fn rejected(operation: &Parsed<'_>, version: Option<u64>) -> Option<Status> {
    let (rules, given) = (operation.reject, operation.given_version);
    match version {
        None => (rules & 1 != 0).then_some(Status::ObjectNotFound),
        Some(_) if rules & 2 != 0 => Some(Status::ObjectExists),
        Some(version) if rules & 4 != 0 && version <= given => Some(Status::WrongVersion),
        Some(version) if rules & 8 != 0 && version != given => Some(Status::WrongVersion),
        Some(_) => None,
    }
}

fn seed(mode: u8, reply_bytes: u16, ack_id: u64, operations: &[Operation<'_>]) -> Vec<u8> {
    let mut out = vec![mode];
    out.extend(reply_bytes.to_le_bytes());
    out.extend(body(1, ack_id, operations));
    out
}

/// Reads, writes and removes, with rules, duplicates and a short reply.
pub fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let one = Operation {
        table_id: 1,
        key: b"user:1",
        ..Operation::default()
    };
    let read = Operation { kind: 1, ..one };
    let write = Operation {
        kind: 2,
        rpc_id: 42,
        value: b"Ada Lovelace",
        ..one
    };
    let again = Operation {
        rpc_id: 43,
        value: b"Augusta",
        ..write
    };
    let remove = Operation {
        kind: 3,
        rpc_id: 44,
        ..one
    };
    let rules = Operation {
        reject: 2,
        rpc_id: 45,
        ..write
    };
    let only_if = Operation {
        reject: 8,
        given_version: 2,
        rpc_id: 46,
        ..write
    };
    let other = Operation {
        table_id: 2,
        key: b"k",
        rpc_id: 47,
        ..write
    };
    let all = [
        read, write, read, again, remove, read, rules, only_if, other, read,
    ];
    vec![
        ("all", seed(0, 0, 41, &all)),
        ("all-repaired", seed(REPAIR, 0, 0, &all)),
        (
            "duplicate",
            seed(REPAIR, 0, 0, &[write, write, read, remove, remove]),
        ),
        (
            "short-reply",
            seed(
                REPAIR | SHORT_REPLY,
                110,
                0,
                &[write, read, read, again, read],
            ),
        ),
        ("empty", seed(0, 0, 0, &[])),
    ]
}
