//! What the tests of the master share: a client that speaks EXECUTE bodies, a seeded generator, a
//! model of the rules, and the splitting of a log into recovery segments.

#![allow(dead_code)] // each test file uses its part

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, mpsc};

use rekindle_core::backup::split::{self, PIECE_HEADER_BYTES, Partition, PartitionMap};
use rekindle_core::crc32c::crc32c;
use rekindle_core::entry::{EntryIterator, EntryType, EntryView, PieceChecksum};
use rekindle_core::master::recovery::Recovery;
use rekindle_core::master::tablets::SlotRange;
use rekindle_core::master::{Master, MasterOptions};
use rekindle_core::status::Status;

pub const WHOLE: SlotRange = SlotRange {
    table_id: 1,
    start_slot: 0,
    end_slot: u32::MAX,
};
pub const THREADS: usize = 3;

/// SplitMix64; says its seed when the test fails.
pub struct Random {
    state: u64,
    seed: u64,
}

impl Random {
    pub fn new() -> Self {
        let seed = match std::env::var("REKINDLE_SEED") {
            Ok(text) => text.parse().expect("REKINDLE_SEED is a number"),
            Err(_) => {
                let now = std::time::SystemTime::now();
                now.duration_since(std::time::UNIX_EPOCH)
                    .expect("after 1970")
                    .as_nanos() as u64
            }
        };
        Self { state: seed, seed }
    }

    pub fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

impl Drop for Random {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let seed = self.seed;
            #[allow(clippy::print_stderr)] // a failing test must say how to repeat it
            {
                eprintln!("REKINDLE_SEED={seed} cargo test -p rekindle-core --test 'master_*'");
            }
        }
    }
}

#[derive(Clone, Debug, Default)]
pub struct Op {
    pub kind: u8,
    pub reject: u8,
    pub table_id: u64,
    pub key: Vec<u8>,
    pub value: Vec<u8>,
    pub rpc_id: u64,
    pub given: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    pub version: u64,
    pub value: Vec<u8>,
}

pub fn body(client_id: u64, ack_id: u64, ops: &[Op]) -> Vec<u8> {
    let mut body = Vec::new();
    body.extend_from_slice(&client_id.to_le_bytes());
    body.extend_from_slice(&ack_id.to_le_bytes());
    body.extend_from_slice(&(ops.len() as u32).to_le_bytes());
    body.extend_from_slice(&0u32.to_le_bytes());
    for op in ops {
        body.extend_from_slice(&[op.kind, op.reject]);
        body.extend_from_slice(&(op.key.len() as u16).to_le_bytes());
        body.extend_from_slice(&(op.value.len() as u32).to_le_bytes());
        body.extend_from_slice(&op.table_id.to_le_bytes());
        body.extend_from_slice(&op.rpc_id.to_le_bytes());
        body.extend_from_slice(&op.given.to_le_bytes());
        body.extend_from_slice(&op.key);
        body.extend_from_slice(&op.value);
        body.resize(body.len().next_multiple_of(8), 0);
    }
    body
}

pub fn answers(reply: &[u8]) -> Vec<Answer> {
    let count = u32::from_le_bytes(reply[..4].try_into().expect("4")) as usize;
    let mut at = 8;
    let mut answers = Vec::new();
    for _ in 0..count {
        let status = u16::from_le_bytes([reply[at], reply[at + 1]]);
        let length = u32::from_le_bytes(reply[at + 4..at + 8].try_into().expect("4")) as usize;
        let version = u64::from_le_bytes(reply[at + 8..at + 16].try_into().expect("8"));
        let value = reply[at + 16..at + 16 + length].to_vec();
        answers.push(Answer {
            status,
            version,
            value,
        });
        at += 16 + length.next_multiple_of(8);
    }
    assert_eq!(at, reply.len());
    answers
}

/// A client of one master.
pub struct Client {
    pub master: Arc<Master>,
    pub id: u64,
    pub rpc_id: u64,
    /// That the newest reply has to wait for.
    pub position: u64,
    reply: Vec<u8>,
}

impl Client {
    pub fn new(master: &Arc<Master>, id: u64) -> Self {
        let reply = vec![0; 4 << 20];
        Self {
            master: Arc::clone(master),
            id,
            rpc_id: 0,
            reply,
            position: 0,
        }
    }

    pub fn send(&mut self, ack_id: u64, ops: &[Op]) -> Vec<Answer> {
        let body = body(self.id, ack_id, ops);
        let done = self
            .master
            .execute(&body, &mut self.reply, 1_700_000_000_000)
            .expect("sound");
        self.position = done.position;
        answers(&self.reply[..done.reply_bytes])
    }

    pub fn one(&mut self, mut op: Op) -> Answer {
        if op.kind != 1 {
            self.rpc_id += 1;
            op.rpc_id = self.rpc_id;
        }
        self.send(self.rpc_id.saturating_sub(1), &[op]).remove(0)
    }

    pub fn read(&mut self, key: &[u8]) -> Answer {
        self.one(Op {
            kind: 1,
            table_id: 1,
            key: key.to_vec(),
            ..Op::default()
        })
    }

    pub fn write(&mut self, key: &[u8], value: &[u8]) -> Answer {
        let (key, value) = (key.to_vec(), value.to_vec());
        self.one(Op {
            kind: 2,
            table_id: 1,
            key,
            value,
            ..Op::default()
        })
    }

    pub fn remove(&mut self, key: &[u8]) -> Answer {
        self.one(Op {
            kind: 3,
            table_id: 1,
            key: key.to_vec(),
            ..Op::default()
        })
    }
}

fn options(memory_bytes: usize, replicated: bool) -> MasterOptions {
    MasterOptions {
        server_id: 5,
        memory_bytes,
        replay_threads: THREADS,
        replicated,
        disk_expansion_factor: 2.0,
    }
}

pub fn master(memory_bytes: usize) -> Arc<Master> {
    Master::new(options(memory_bytes, true)).expect("a master")
}

pub fn master_without_backups(memory_bytes: usize) -> Arc<Master> {
    Master::new(options(memory_bytes, false)).expect("a master")
}

pub fn stats(master: &Master) -> HashMap<&'static str, u64> {
    master.stats().expect("open").into_iter().collect()
}

/// What must be there: live objects, and the highest version each key ever had.
#[derive(Clone, Default)]
pub struct Model {
    pub live: HashMap<Vec<u8>, (u64, Vec<u8>)>,
    pub highest: HashMap<Vec<u8>, u64>,
}

impl Model {
    /// What the rules say about an operation; for a new object the version is the master's choice,
    /// bounded from below by the key's history.
    pub fn check(&mut self, op: &Op, answer: &Answer) {
        let live = self.live.get(&op.key).cloned();
        let version = live.as_ref().map_or(0, |(version, _)| *version);
        let rejected = match &live {
            None if op.reject & 1 != 0 => Some(Status::ObjectNotFound),
            None => None,
            Some(_) if op.reject & 2 != 0 => Some(Status::ObjectExists),
            Some(_) if op.reject & 4 != 0 && version <= op.given => Some(Status::WrongVersion),
            Some(_) if op.reject & 8 != 0 && version != op.given => Some(Status::WrongVersion),
            Some(_) => None,
        };
        if let Some(status) = rejected {
            assert_eq!(
                (answer.status, answer.version),
                (status as u16, version),
                "{op:?}"
            );
            return;
        }
        match op.kind {
            1 => {
                let status = if live.is_some() {
                    Status::Ok
                } else {
                    Status::ObjectNotFound
                };
                let value = live.map_or(Vec::new(), |(_, value)| value);
                assert_eq!(
                    *answer,
                    Answer {
                        status: status as u16,
                        version,
                        value
                    },
                    "{op:?}"
                );
            }
            2 => {
                assert_eq!(answer.status, 0, "{op:?}");
                let highest = self.highest.get(&op.key).copied().unwrap_or(0);
                assert!(
                    answer.version > highest,
                    "{op:?}: {} after {highest}",
                    answer.version
                );
                if live.is_some() {
                    assert_eq!(answer.version, version + 1);
                }
                self.highest.insert(op.key.clone(), answer.version);
                self.live
                    .insert(op.key.clone(), (answer.version, op.value.clone()));
            }
            _ => {
                assert_eq!((answer.status, answer.version), (0, version), "{op:?}");
                self.live.remove(&op.key);
            }
        }
    }

    pub fn compare(&self, client: &mut Client) {
        for key in self.highest.keys() {
            let answer = client.read(key);
            let expected = match self.live.get(key) {
                Some((version, value)) => (0, *version, value.clone()),
                None => (Status::ObjectNotFound as u16, 0, Vec::new()),
            };
            assert_eq!(
                (answer.status, answer.version, answer.value),
                expected,
                "{key:?}"
            );
        }
    }
}

fn random_op(random: &mut Random, keys: u64) -> Op {
    let key = format!("key-{}", random.below(keys)).into_bytes();
    let length = if random.below(50) == 0 {
        random.below(100_000)
    } else {
        random.below(200)
    };
    let kind = [1, 2, 2, 2, 3][random.below(5) as usize];
    let value = if kind == 2 {
        vec![random.next() as u8; length as usize]
    } else {
        Vec::new()
    };
    let reject = if random.below(4) == 0 {
        random.below(16) as u8
    } else {
        0
    };
    Op {
        kind,
        reject,
        table_id: 1,
        key,
        value,
        given: random.below(200),
        ..Op::default()
    }
}

/// Sends random operations in messages of random size and checks each answer.
pub fn run_ops(client: &mut Client, model: &mut Model, random: &mut Random, count: u64, keys: u64) {
    let mut left = count;
    while left > 0 {
        let size = 1 + random.below(64.min(left));
        left -= size;
        let ack_id = client.rpc_id;
        let mut ops: Vec<Op> = (0..size).map(|_| random_op(random, keys)).collect();
        for op in ops.iter_mut().filter(|op| op.kind != 1) {
            client.rpc_id += 1;
            op.rpc_id = client.rpc_id;
        }
        let replies = client.send(ack_id, &ops);
        for (op, answer) in ops.iter().zip(&replies) {
            model.check(op, answer);
        }
        if random.below(4) == 0 {
            let appended = client.master.appended_position().expect("open");
            client
                .master
                .set_durable(appended - random.below(200).min(appended))
                .expect("known");
        }
    }
    verify(&client.master);
}

/// Waits for what happens soon: the cleaner may hold a segment a moment longer.
pub fn eventually(what: &str, mut reached: impl FnMut() -> bool) {
    let end = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while !reached() {
        assert!(std::time::Instant::now() < end, "{what}");
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

/// All structures of a master fit together; no replay may be running.
pub fn verify(master: &Master) {
    if let Err(violation) = master.verify() {
        panic!("{violation}: {violation:?}");
    }
}

/// The certified bytes of a segment, taken piece by piece as replication does.
pub fn certified(master: &Master, id: u64, random: &mut Random) -> Vec<u8> {
    let mut newest = master.chunk(id, 0, 1).expect("the opening");
    loop {
        let bytes_max = 1 + random.below(300_000) as usize;
        let piece = master.chunk(id, newest.end, bytes_max).expect("a piece");
        if piece.end == newest.end {
            break;
        }
        newest = piece;
    }
    let segment = master.segment(id).expect("there");
    let bytes = segment.copy()[..newest.end].to_vec();
    assert_eq!(crc32c(&bytes), newest.checksum);
    // Starting over gives pieces with sound certificates.
    let mut again = 0;
    while again < newest.end {
        let piece = master.chunk(id, again, 1 << 20).expect("a piece");
        assert!(piece.end > again && piece.end <= newest.end);
        assert_eq!(crc32c(&bytes[..piece.end]), piece.checksum);
        again = piece.end;
    }
    bytes
}

/// All certified bytes of a log.
pub fn log_bytes(master: &Master, random: &mut Random) -> Vec<Vec<u8>> {
    let ids = master.log_segments().expect("open");
    let log: Vec<_> = ids
        .into_iter()
        .map(|id| certified(master, id, random))
        .collect();
    check_dead_versions_are_named(&log);
    log
}

/// For each dead version of a key in the log, the newest entry of the key, or a tombstone, names
/// its segment.
pub fn check_dead_versions_are_named(log: &[Vec<u8>]) {
    let mut by_key: HashMap<_, Vec<(u64, EntryView<'_>)>> = HashMap::new();
    let mut in_log = HashSet::new();
    for segment in log {
        let mut segment_id = 0;
        for item in EntryIterator::new(segment) {
            let entry = item.expect("certified bytes parse").1;
            match entry.entry_type() {
                EntryType::SegmentHeader => {
                    segment_id = entry.version();
                    in_log.insert(segment_id);
                }
                EntryType::Object | EntryType::Tombstone => by_key
                    .entry((entry.table_id(), entry.key()))
                    .or_default()
                    .push((segment_id, entry)),
                _ => {}
            }
        }
    }
    // Named where the cleaner had moved it: that survivor enters the log when this segment leaves.
    let moved_to = |id: u64, from: u64| id > from && !in_log.contains(&id);
    for entries in by_key.values() {
        let is_object = |entry: &EntryView<'_>| entry.entry_type() == EntryType::Object;
        // A tombstone is newer than the object of its version.
        let age = |entry: &EntryView<'_>| (entry.version(), !is_object(entry));
        let newest = entries.iter().map(|(_, entry)| age(entry)).max();
        for (segment_id, dead) in entries {
            if !is_object(dead) || Some(age(dead)) == newest {
                continue;
            }
            let named = entries.iter().any(|(_, entry)| {
                age(entry) > age(dead)
                    && (!is_object(entry) || Some(age(entry)) == newest)
                    && entry
                        .prior()
                        .any(|id| id == *segment_id || moved_to(id, *segment_id))
            });
            assert!(named, "{dead:?} in segment {segment_id} is guarded");
        }
    }
}

/// What a backup does: the entries of one partition, without the piece's header.
pub fn split(segment: &[u8], range: &SlotRange) -> Vec<u8> {
    let tablet = split::Tablet {
        table_id: range.table_id,
        start_slot: range.start_slot,
        end_slot: range.end_slot,
        ctime_segment_id: 0,
    };
    let partition = Partition {
        partition_id: 1,
        tablets: vec![tablet],
    };
    let map = PartitionMap::new(&[partition]).expect("one partition");
    let pieces = split::split(segment, 1, &map).expect("certified bytes are sound");
    pieces[0][PIECE_HEADER_BYTES..].to_vec()
}

/// Replays all pieces on the pool's threads in random order.
pub fn replay_all(recovery: &Arc<Recovery>, pieces: &[Vec<u8>], random: &mut Random) {
    let mut order: Vec<usize> = (0..pieces.len()).collect();
    for index in (1..order.len()).rev() {
        order.swap(index, random.below(index as u64 + 1) as usize);
    }
    let (sender, receiver) = mpsc::channel();
    for index in order {
        let sender = sender.clone();
        let piece = pieces[index].clone();
        let checksum = PieceChecksum::of(&piece).expect("parses");
        let done = move |replayed: Result<_, Status>, _| sender.send(replayed).expect("heard");
        recovery
            .replay_later(piece, checksum, done)
            .expect("queued");
    }
    drop(sender);
    let replayed: Vec<_> = receiver.iter().collect();
    assert_eq!(replayed.len(), pieces.len());
    for outcome in replayed {
        outcome.expect("replayed");
    }
}

/// Recovers a log on a fresh master, in two partitions one after the other.
pub fn recover(segments: &[Vec<u8>], random: &mut Random) -> Arc<Master> {
    let master = master(256 << 20);
    let middle = random.next() as u32 / 2 + 1;
    let low = SlotRange {
        end_slot: middle,
        ..WHOLE
    };
    let high = SlotRange {
        start_slot: middle + 1,
        ..WHOLE
    };
    for range in [low, high] {
        let recovery = Arc::new(master.start_recovery(&[range]).expect("starts"));
        let pieces: Vec<_> = segments
            .iter()
            .map(|segment| split(segment, &range))
            .collect();
        replay_all(&recovery, &pieces, random);
        recovery.finish_replay().expect("finished");
        for id in recovery.side_segments() {
            assert!(id > recovery.ctime_segment_id);
            assert!(master.segment_state(id).expect("there").closed);
        }
        let position = recovery.commit().expect("committed");
        master.set_durable(position).expect("known");
        verify(&master);
        recovery.activate().expect("active");
        verify(&master);
    }
    master
}
