//! The promises of the cleaner, against a plain map, with backups that are a map of bytes: whatever
//! is written, removed, cleaned and compacted, and wherever the master dies, its log recovers to
//! exactly the state that was on the backups. `REKINDLE_SEED` repeats a run.

mod master_support;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use master_support::*;
use parking_lot::Mutex;
use rekindle_core::entry::{EntryIterator, EntryType};
use rekindle_core::master::cleaner::passes::Pass;
use rekindle_core::master::{Master, MasterOptions};
use rekindle_core::status::Status;

/// Small, so that it must be cleaned again and again.
const MEMORY_BYTES: usize = 96 << 20;
/// A recovery needs room for dead versions too.
const RECOVERY_MEMORY_BYTES: usize = 384 << 20;

/// A replica of each segment.
#[derive(Default)]
struct Replica {
    bytes: Vec<u8>,
    closed: bool,
}

/// A master with its backups and what runs between them.
struct Cluster {
    master: Arc<Master>,
    disk: BTreeMap<u64, Replica>,
    heads: Vec<u64>,
    heads_closed: usize,
    durable: u64,
    told: Arc<Mutex<VecDeque<Pass>>>,
    passes: VecDeque<Pass>,
    passes_ended: Arc<AtomicU64>,
    compacted: Arc<AtomicU64>,
}

/// What a key held from a log position on; None: nothing.
type History = Vec<(u64, Option<(u64, Vec<u8>)>)>;

fn replicated_master(memory_bytes: usize, disk_expansion_factor: f64) -> Arc<Master> {
    let options = MasterOptions {
        server_id: 5,
        memory_bytes,
        replay_threads: THREADS,
        replicated: true,
        disk_expansion_factor,
    };
    Master::new(options).expect("a master")
}

impl Cluster {
    fn new(master: Arc<Master>) -> Self {
        let told = Arc::new(Mutex::new(VecDeque::new()));
        let heard = Arc::clone(&told);
        master.on_cleaning_pass(Box::new(move |pass| heard.lock().push_back(pass.clone())));
        master.open_log().expect("open");
        let mut cluster = Self {
            master,
            disk: BTreeMap::new(),
            heads: Vec::new(),
            heads_closed: 0,
            durable: 0,
            told,
            passes: VecDeque::new(),
            passes_ended: Arc::default(),
            compacted: Arc::default(),
        };
        // Side segments of a recovery are on the backups before their head is.
        let heads = cluster.master.heads_after(0).expect("open");
        for id in cluster.master.log_segments().expect("open") {
            if !heads.contains(&id) {
                cluster.copy_whole(id);
            }
        }
        cluster
    }

    /// Writes a segment's replica from the start, as it is now.
    fn copy_whole(&mut self, id: u64) {
        let mut bytes = Vec::new();
        loop {
            let piece = self
                .master
                .chunk(id, bytes.len(), 1 << 20)
                .expect("a piece");
            if piece.end == bytes.len() {
                break;
            }
            self.read_into(id, piece.end, &mut bytes);
        }
        let closed = self.master.segment_state(id).expect("there").closed;
        assert!(closed, "only closed segments are copied whole");
        self.disk.insert(id, Replica { bytes, closed });
        self.master.unpin_segment(id).expect("open");
    }

    fn read_into(&self, id: u64, end: usize, bytes: &mut Vec<u8>) {
        let segment = self.master.segment(id).expect("there");
        let from = bytes.len();
        let (offset, length) = segment.locate(from).expect("published");
        assert!(end - from <= length, "a chunk lies in one piece");
        // SAFETY: the segment is held.
        bytes.extend_from_slice(unsafe { self.master.arena().published(offset, end - from) });
    }

    /// One step of replication of the log's heads; false if there is nothing to do.
    fn step_heads(&mut self, random: &mut Random) -> bool {
        let last = self.heads.last().copied().unwrap_or(0);
        self.heads
            .extend(self.master.heads_after(last).expect("open"));
        let Some(id) = self.heads.get(self.heads_closed).copied() else {
            return false;
        };
        if !self.disk.contains_key(&id) {
            self.open_replica(id);
            return true;
        }
        let state = self.master.segment_state(id).expect("there");
        let held = self.disk[&id].bytes.len();
        if held < state.appended {
            let bytes_max = 1 + random.below(400_000) as usize;
            let piece = self.master.chunk(id, held, bytes_max).expect("a piece");
            let mut bytes = std::mem::take(&mut self.disk.get_mut(&id).expect("there").bytes);
            self.read_into(id, piece.end, &mut bytes);
            self.disk.get_mut(&id).expect("there").bytes = bytes;
            self.note_durable(state.position + piece.end as u64);
            return true;
        }
        match self.heads.get(self.heads_closed + 1).copied() {
            Some(next) if !self.disk.contains_key(&next) => self.open_replica(next),
            Some(_) => {
                self.disk.get_mut(&id).expect("there").closed = true;
                self.master.unpin_segment(id).expect("open");
                self.heads_closed += 1;
                let next = self.heads[self.heads_closed];
                let state = self.master.segment_state(next).expect("there");
                self.note_durable(state.position + state.opening_bytes as u64);
            }
            None => return false,
        }
        true
    }

    fn open_replica(&mut self, id: u64) {
        let opening = self.master.chunk(id, 0, 1).expect("the opening");
        let mut replica = Replica::default();
        self.read_into(id, opening.end, &mut replica.bytes);
        self.disk.insert(id, replica);
        if self.heads_closed == self.heads.len() - 1 {
            let position = self.master.segment_state(id).expect("there").position;
            self.note_durable(position + opening.end as u64);
        }
    }

    fn note_durable(&mut self, position: u64) {
        self.durable = self.durable.max(position);
        self.master.set_durable(self.durable).expect("appended");
    }

    /// One step of a pass of the cleaner.
    fn step_passes(&mut self, random: &mut Random) -> bool {
        self.passes.extend(self.told.lock().drain(..));
        let Some(pass) = self.passes.front().cloned() else {
            return false;
        };
        let missing = pass.survivors.iter().find(|id| !self.disk.contains_key(id));
        if let Some(id) = missing {
            self.copy_whole(*id);
            return true;
        }
        let force = random.below(3) == 0;
        let position = self
            .master
            .commit_cleaning(pass.id, force)
            .expect("under way");
        if position == 0 || self.durable < position {
            assert_eq!(
                self.master.end_cleaning(pass.id),
                Err(Status::InvalidArgument)
            );
            return self.step_heads(random);
        }
        for id in &pass.cleaned {
            self.disk
                .remove(id)
                .expect("cleaned segments were replicated");
        }
        self.master.end_cleaning(pass.id).expect("durable");
        self.heads_forget(&pass.cleaned);
        self.passes.pop_front();
        self.passes_ended.fetch_add(1, Ordering::Relaxed);
        true
    }

    fn heads_forget(&mut self, cleaned: &[u64]) {
        let before = self.heads[..self.heads_closed].to_vec();
        let gone = before.iter().filter(|id| cleaned.contains(id)).count();
        self.heads.retain(|id| !cleaned.contains(id));
        self.heads_closed -= gone;
    }

    /// A backup has died: a closed segment is copied again, from what it is now.
    fn lose_a_replica(&mut self, random: &mut Random) {
        let closed: Vec<u64> = self
            .disk
            .iter()
            .filter(|(_, replica)| replica.closed)
            .map(|(id, _)| *id)
            .collect();
        if !closed.is_empty() {
            self.copy_whole(closed[random.below(closed.len() as u64) as usize]);
        }
    }

    /// The log as its backups have it: the bytes of all segments of the head's digest, and the
    /// position up to which it reaches.
    fn crash(&self) -> (Vec<Vec<u8>>, u64) {
        verify(&self.master);
        let head = self.heads[self.heads_closed];
        let replica = &self.disk[&head];
        let digest = EntryIterator::new(&replica.bytes)
            .map(|item| item.expect("certified bytes parse").1)
            .find(|entry| entry.entry_type() == EntryType::LogDigest)
            .expect("a head has a digest");
        let ids = digest.value().chunks_exact(8);
        let ids = ids.map(|id| u64::from_le_bytes(id.try_into().expect("8 bytes")));
        let log: Vec<_> = ids
            .map(|id| match self.disk.get(&id) {
                Some(replica) => replica.bytes.clone(),
                None => panic!("segment {id} of the digest is on no backup"),
            })
            .collect();
        let position = self.master.segment_state(head).expect("there").position;
        check_dead_versions_are_named(&log);
        (log, position + replica.bytes.len() as u64)
    }
}

fn recover_replicated(log: &[Vec<u8>], random: &mut Random) -> Arc<Master> {
    let master = replicated_master(RECOVERY_MEMORY_BYTES, 1.0);
    let recovery = Arc::new(master.start_recovery(&[WHOLE]).expect("starts"));
    let pieces: Vec<_> = log.iter().map(|segment| split(segment, &WHOLE)).collect();
    replay_all(&recovery, &pieces, random);
    recovery.finish_replay().expect("finished");
    recovery.commit().expect("committed");
    recovery.activate().expect("active");
    verify(&master);
    master
}

/// One random mutation; RETRY is answered by letting the cluster work.
fn mutate(
    cluster: &mut Cluster,
    client: &mut Client,
    histories: &mut HashMap<Vec<u8>, History>,
    random: &mut Random,
    keys: u64,
) {
    // Few keys are hot: their dead versions lie in many segments.
    let span = [keys, keys, 20][random.below(3) as usize];
    let key = format!("key-{}", random.below(span)).into_bytes();
    let remove = random.below(5) == 0;
    let value = vec![random.next() as u8; random.below(9_000) as usize];
    let mut tries = 0;
    let answer = loop {
        let answer = if remove {
            client.remove(&key)
        } else {
            client.write(&key, &value)
        };
        if answer.status != Status::Retry as u16 {
            break answer;
        }
        tries += 1;
        assert!(
            tries < 20_000,
            "the store makes room: {:?}",
            stats(&cluster.master)
        );
        if !cluster.step_passes(random) && !cluster.step_heads(random) {
            std::thread::sleep(std::time::Duration::from_micros(100));
        }
    };
    assert_eq!(answer.status, 0, "{:?}", stats(&cluster.master));
    let now = (!remove).then_some((answer.version, value));
    let position = cluster.master.appended_position().expect("open");
    histories.entry(key).or_default().push((position, now));
}

fn compare(client: &mut Client, histories: &mut HashMap<Vec<u8>, History>, reached: u64) {
    for (key, history) in histories.iter_mut() {
        history.retain(|(position, _)| *position <= reached);
        let expected = history.last().and_then(|(_, state)| state.clone());
        let answer = client.read(key);
        let expected = match expected {
            Some((version, value)) => (0, version, value),
            None => (Status::ObjectNotFound as u16, 0, Vec::new()),
        };
        let shown = (&key, answer.version, expected.1, answer.status);
        assert!(
            (answer.status, answer.version, answer.value) == expected,
            "{shown:?}"
        );
    }
}

/// Runs a cluster for a while, kills it at some point, and checks what its log recovers to.
fn run_and_crash(
    mut cluster: Cluster,
    histories: &mut HashMap<Vec<u8>, History>,
    random: &mut Random,
    operations: u64,
) -> Cluster {
    let mut client = Client::new(&cluster.master, random.next());
    for _ in 0..operations {
        mutate(&mut cluster, &mut client, histories, random, 9_000);
        match random.below(8) {
            0 => drop(cluster.step_passes(random)),
            1 | 2 => drop(cluster.step_heads(random)),
            _ => {}
        }
        if random.below(50) == 0 {
            let (key, value) = (
                [random.below(40) as u8],
                vec![7; random.below(400) as usize],
            );
            let noted = cluster.master.note(&key, &value);
            assert!(matches!(noted, Ok(()) | Err(Status::OutOfMemory)));
        }
        if random.below(5_000) == 0 {
            cluster.lose_a_replica(random);
            verify(&cluster.master);
        }
    }
    compare(&mut client, histories, u64::MAX);
    verify(&cluster.master);
    let compacted = stats(&cluster.master)["cleanerBlocksCompacted"];
    cluster.compacted.store(compacted, Ordering::Relaxed);
    let (log, reached) = cluster.crash();
    cluster.master.close().expect("open");
    let next = recover_replicated(&log, random);
    compare(&mut Client::new(&next, 1), histories, reached);
    for history in histories.values_mut() {
        history.drain(..history.len().saturating_sub(1));
        history.iter_mut().for_each(|(position, _)| *position = 0);
    }
    Cluster::new(next)
}

#[test]
fn whatever_is_cleaned_the_log_recovers_to_what_the_backups_have() {
    let mut random = Random::new();
    let (mut passes, mut compacted) = (0, 0);
    for disk_expansion_factor in [1.0, 1.25, 1.5, 2.0] {
        let mut histories = HashMap::new();
        let first = replicated_master(MEMORY_BYTES, disk_expansion_factor);
        first.open_log().expect("open");
        first.take_tablet(WHOLE).expect("taken");
        let operations = 60_000 + random.below(20_000);
        let cluster = Cluster::new(Arc::clone(&first));
        let (before, blocks) = (
            Arc::clone(&cluster.passes_ended),
            Arc::clone(&cluster.compacted),
        );
        let mut second = run_and_crash(cluster, &mut histories, &mut random, operations);
        passes += before.load(Ordering::Relaxed);
        compacted += blocks.load(Ordering::Relaxed);
        second = run_and_crash(second, &mut histories, &mut random, 15_000);
        second.master.close().expect("open");
    }
    assert!(passes > 0, "no pass was ended");
    assert!(compacted > 0, "no block was compacted");
}

#[test]
fn a_store_without_backups_cleans_as_it_is_overwritten() {
    let mut random = Random::new();
    let master = master_without_backups(MEMORY_BYTES);
    master.take_tablet(WHOLE).expect("taken");
    let mut client = Client::new(&master, 1);
    let mut expected: HashMap<u64, (u64, u8)> = HashMap::new();
    for _ in 0..250_000 {
        let number = random.below(14_000);
        let fill = random.next() as u8;
        let key = number.to_le_bytes();
        let answer = loop {
            let answer = client.write(&key, &[fill; 2_000]);
            if answer.status != Status::Retry as u16 {
                break answer;
            }
            std::thread::sleep(std::time::Duration::from_micros(50));
        };
        assert_eq!(answer.status, 0, "{:?}", stats(&master));
        expected.insert(number, (answer.version, fill));
    }
    for (number, (version, fill)) in &expected {
        let found = client.read(&number.to_le_bytes());
        assert_eq!((found.status, found.version), (0, *version));
        assert_eq!(found.value, [*fill; 2_000]);
    }
    let stats = stats(&master);
    assert!(stats["cleanerSegmentsCleaned"] > 20, "{stats:?}");
    master.close().expect("open");
}

#[test]
fn a_full_store_says_so_and_deletes_always_work() {
    let master = master_without_backups(MEMORY_BYTES);
    master.take_tablet(WHOLE).expect("taken");
    let mut client = Client::new(&master, 1);
    let until_done = |client: &mut Client, number: u64, remove: bool| loop {
        let key = number.to_le_bytes();
        let answer = if remove {
            client.remove(&key)
        } else {
            client.write(&key, &[7; 500])
        };
        if answer.status != Status::Retry as u16 {
            return answer.status;
        }
        std::thread::sleep(std::time::Duration::from_micros(200));
    };
    for round in 0..3 {
        let mut count = 0u64;
        let full = loop {
            match until_done(&mut client, count, false) {
                0 => count += 1,
                status => break status,
            }
        };
        assert_eq!(full, Status::OutOfMemory as u16, "round {round}");
        assert!(count > 60_000, "round {round}: {count} objects fit");
        assert_eq!(client.read(&0u64.to_le_bytes()).status, 0);
        for number in 0..count {
            assert_eq!(until_done(&mut client, number, true), 0, "removes work");
        }
        assert_eq!(stats(&master)["objects"], 0);
    }
    master.close().expect("open");
}
