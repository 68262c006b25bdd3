//! A tablet goes from master to master and back while it is read, written and cleaned, against a
//! plain map: nothing is lost, no removed key comes back, versions never go back, and a mutation
//! that is repeated at the new owner is not executed again. `REKINDLE_SEED` repeats a run.

mod master_support;

use std::sync::Arc;

use master_support::*;
use rekindle_core::master::Master;
use rekindle_core::master::migration::{Cursor, MIGRATION_HEADER_BYTES, Migration};
use rekindle_core::master::recovery::Recovery;
use rekindle_core::master::tablets::SlotRange;
use rekindle_core::status::Status;

const ROUNDS: u64 = 5;
const KEYS: u64 = 120;
const MEMORY_BYTES: usize = 128 << 20;
/// Of the clients' messages.
const NOW_MS: u64 = 1_700_000_000_000;
const FILLER: SlotRange = SlotRange {
    table_id: 2,
    ..WHOLE
};
const FILLER_KEYS: u64 = 4;
const FILLER_BYTES: usize = 600_000;

/// What a piece says in front of its entries.
struct Piece {
    checksum: u32,
    next: u64,
    next_offset: u64,
    left: u64,
    entries: Vec<u8>,
}

fn parse(bytes: &[u8]) -> Piece {
    let half = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4"));
    let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8"));
    assert_eq!(half(0) as usize, bytes.len() - MIGRATION_HEADER_BYTES);
    Piece {
        checksum: half(4),
        next: word(8),
        next_offset: word(16),
        left: word(24),
        entries: bytes[MIGRATION_HEADER_BYTES..].to_vec(),
    }
}

/// Overwrites what fills memory, so that segments are cleaned.
fn fill(master: &Arc<Master>, random: &mut Random, most: u64) {
    for _ in 0..most / 2 + random.below(most) {
        let op = Op {
            kind: 2,
            table_id: FILLER.table_id,
            key: vec![random.below(FILLER_KEYS) as u8 + 1],
            value: vec![7; FILLER_BYTES],
            ..Op::default()
        };
        let client_id = random.next();
        eventually("room for a write", || {
            let status = Client::new(master, client_id).one(op.clone()).status;
            assert!(status == 0 || status == Status::Retry as u16, "{status}");
            status == 0
        });
    }
}

/// One migration as the target drives it.
struct Move {
    to: Arc<Master>,
    migration: Migration,
    recovery: Recovery,
    at: Cursor,
    scanned: usize,
}

impl Move {
    fn start(from: &Arc<Master>, to: &Arc<Master>) -> Self {
        to.open_log().expect("open");
        let recovery = to.start_recovery(&[WHOLE]).expect("starts");
        let migration = from.start_migration(&WHOLE).expect("starts");
        let again = from.start_migration(&FILLER).err();
        assert_eq!(again, Some(Status::Retry), "one at a time");
        Self {
            to: Arc::clone(to),
            at: migration.mark,
            migration,
            recovery,
            scanned: 0,
        }
    }

    fn apply(&self, piece: &Piece, random: &mut Random) {
        let Piece {
            checksum, entries, ..
        } = piece;
        for _ in 0..1 + random.below(2) {
            eventually("room for side segments", || {
                let stats = stats(&self.to);
                stats["segmentsFree"] >= stats["segmentsReserved"] + 2
            });
            let thread = random.below(THREADS as u64) as usize;
            let replayed = self.recovery.replay(thread, entries, *checksum);
            replayed.expect("replayed");
        }
    }

    /// What was not fetched yet is not cleaned.
    fn make_room(&mut self, from: &Master, random: &mut Random) {
        while self.delta(random) > 100_000 {}
        eventually("room", || stats(from)["memoryShort"] == 0);
    }

    fn delta(&mut self, random: &mut Random) -> u64 {
        let piece = parse(&self.migration.delta(self.at).expect("copied"));
        self.at = Cursor {
            segment_id: piece.next,
            offset: piece.next_offset as usize,
        };
        self.apply(&piece, random);
        piece.left
    }

    fn scan(&mut self, random: &mut Random) -> bool {
        let buckets = self.migration.buckets();
        if self.scanned == buckets {
            return false;
        }
        let end = self.scanned + 1 + random.below(buckets as u64 / 3) as usize;
        let thread = random.below(THREADS as u64) as usize;
        let piece = self.migration.scan(thread, self.scanned, end);
        let piece = parse(&piece.expect("scanned"));
        self.scanned = piece.next as usize;
        self.apply(&piece, random);
        true
    }

    /// From the refusal of writes to the new owner's first answer.
    fn finish(mut self, client: &mut Client, to: &Arc<Master>, random: &mut Random) {
        let from = Arc::clone(&client.master);
        assert_eq!(self.migration.results(0), Err(Status::InvalidArgument));
        assert_eq!(self.migration.release(), Err(Status::InvalidArgument));
        let last = client.write(b"last", b"value");
        assert_eq!(last.status, 0);
        self.migration.freeze().expect("frozen");
        let late = Op {
            kind: 2,
            table_id: 1,
            key: b"late".to_vec(),
            rpc_id: client.rpc_id + 1,
            ..Op::default()
        };
        // It does not acknowledge the last one, whose answer may have been lost.
        let refused = client.send(client.rpc_id - 1, &[late]).remove(0);
        assert_eq!(refused.status, Status::Retry as u16);
        assert_eq!(client.read(b"last").version, last.version, "reads go on");
        while self.delta(random) > 0 {}
        let results = parse(&self.migration.results(0).expect("frozen"));
        assert_eq!(results.left, 0);
        to.import_results(&results.entries, NOW_MS).expect("room");
        self.recovery.finish_replay().expect("finished");
        let position = self.recovery.commit().expect("committed");
        to.set_durable(position).expect("appended");
        self.migration.release().expect("frozen");
        let gone = client.read(b"last");
        assert_eq!(gone.status, Status::UnknownTablet as u16);
        self.recovery.activate().expect("committed");
        from.drop_tablet(WHOLE).expect("owned");
        self.migration.end().expect("open");
        verify(&from);
        verify(to);
        client.master = Arc::clone(to);
        // The answer was lost on its way: the repeat gets the same one.
        let repeat = Op {
            kind: 2,
            table_id: 1,
            key: b"last".to_vec(),
            value: b"value".to_vec(),
            rpc_id: client.rpc_id,
            ..Op::default()
        };
        let answer = client.send(client.rpc_id - 1, &[repeat]).remove(0);
        assert_eq!(answer, last, "executed once");
        assert_eq!(client.read(b"last").version, last.version);
        client.remove(b"last");
    }
}

fn owner(memory_bytes: usize) -> Arc<Master> {
    let master = master_without_backups(memory_bytes);
    master.take_tablet(FILLER).expect("free");
    master.open_log().expect("open");
    master
}

#[test]
fn a_tablet_moves_while_it_is_written_and_cleaned() {
    let mut random = Random::new();
    let mut model = Model::default();
    let masters = [owner(MEMORY_BYTES), owner(MEMORY_BYTES)];
    masters[0].take_tablet(WHOLE).expect("free");
    let mut client = Client::new(&masters[0], 1);
    run_ops(&mut client, &mut model, &mut random, 2_000, KEYS);
    for round in 0..ROUNDS {
        let from = &masters[round as usize % 2];
        let to = &masters[(round as usize + 1) % 2];
        let mut moving = Move::start(from, to);
        let mut scanning = true;
        while scanning {
            match random.below(4) {
                0 => {
                    moving.delta(&mut random);
                }
                1 => {
                    // Few at a time: what was not fetched yet is not cleaned.
                    fill(from, &mut random, 20);
                    moving.make_room(from, &mut random);
                }
                2 => {
                    moving.make_room(from, &mut random);
                    run_ops(&mut client, &mut model, &mut random, 300, KEYS);
                }
                _ => scanning = moving.scan(&mut random),
            }
        }
        moving.make_room(from, &mut random);
        run_ops(&mut client, &mut model, &mut random, 300, KEYS);
        moving.finish(&mut client, to, &mut random);
        model.compare(&mut client);
        fill(from, &mut random, 60);
        fill(to, &mut random, 60);
        eventually("room", || stats(to)["memoryShort"] == 0);
        run_ops(&mut client, &mut model, &mut random, 1_000, KEYS);
        model.compare(&mut client);
    }
    for master in &masters {
        assert!(
            stats(master)["cleanerSegmentsCleaned"] > 0,
            "it was cleaned"
        );
    }
}

#[test]
fn a_migration_that_is_given_up_leaves_the_tablet_where_it_was() {
    let mut random = Random::new();
    let mut model = Model::default();
    let (from, to) = (owner(MEMORY_BYTES), owner(MEMORY_BYTES));
    from.take_tablet(WHOLE).expect("free");
    let mut client = Client::new(&from, 1);
    run_ops(&mut client, &mut model, &mut random, 1_000, KEYS);
    for step in 0..4 {
        let mut moving = Move::start(&from, &to);
        moving.scan(&mut random);
        moving.delta(&mut random);
        if step > 0 {
            moving.migration.freeze().expect("frozen");
        }
        if step > 1 {
            moving.migration.release().expect("frozen");
        }
        moving.migration.end().expect("open");
        assert_eq!(moving.migration.freeze(), Err(Status::RecoveryUnknown));
        assert_eq!(moving.migration.release(), Err(Status::RecoveryUnknown));
        let late = moving.migration.delta(moving.at);
        assert_eq!(late, Err(Status::RecoveryUnknown));
        moving.recovery.abort().expect("not active");
        verify(&to);
        run_ops(&mut client, &mut model, &mut random, 300, KEYS);
        fill(&from, &mut random, 30);
        model.compare(&mut client);
    }
    assert_eq!(
        stats(&to)["objects"],
        FILLER_KEYS.min(stats(&to)["objects"])
    );
}

#[test]
fn tablets_merge_unless_older_entries_would_count_again() {
    let master = master(MEMORY_BYTES);
    master.open_log().expect("open");
    let [low, high] = [(0, 99), (100, u32::MAX)].map(|(start_slot, end_slot)| SlotRange {
        table_id: 1,
        start_slot,
        end_slot,
    });
    master.take_tablet(low).expect("free");
    assert_eq!(master.merged_ctime(&WHOLE), Err(Status::InvalidArgument));
    let first = master.merged_ctime(&low).expect("one already");
    master.roll_head().expect("room");
    master.take_tablet(high).expect("free");
    let mut client = Client::new(&master, 1);
    for key in 0..50u8 {
        assert_eq!(client.write(&[key], b"value").status, 0);
    }
    // The log never had anything of the younger one.
    assert_eq!(master.merged_ctime(&WHOLE), Ok(first));
    eventually("the cleaner rests", || master.merge_tablets(WHOLE).is_ok());
    master.merge_tablets(WHOLE).or_else(retry).expect("again");
    verify(&master);
    assert_eq!(stats(&master)["tablets"], 1);
    assert_eq!(client.read(&[7]).status, 0);
    // A part of it cannot go; all of it can, and it may come back in parts.
    assert_eq!(master.drop_tablet(high), Err(Status::InvalidArgument));
    master.drop_tablet(WHOLE).expect("owned");
    master.take_tablet(low).expect("free");
    master.roll_head().expect("room");
    master.take_tablet(high).expect("free");
    assert_eq!(master.merged_ctime(&WHOLE), Err(Status::Retry));
    master.drop_tablet(WHOLE).expect("both");
    assert_eq!(stats(&master)["tablets"], 0);
    verify(&master);
}

/// The cleaner may be at work.
fn retry(status: Status) -> Result<(), Status> {
    if status == Status::Retry {
        Ok(())
    } else {
        Err(status)
    }
}

/// Two masters with open logs, the first owner of all.
fn owner_and_other() -> (Arc<Master>, Arc<Master>) {
    let (from, to) = (master(MEMORY_BYTES), master(MEMORY_BYTES));
    from.open_log().expect("open");
    to.open_log().expect("open");
    from.take_tablet(WHOLE).expect("taken");
    (from, to)
}

fn write_of(rpc_id: u64, table_id: u64) -> Op {
    Op {
        kind: 2,
        table_id,
        key: b"key".to_vec(),
        value: b"value".to_vec(),
        rpc_id,
        ..Op::default()
    }
}

#[test]
fn a_merge_leaves_a_tablet_alone_that_is_given_away() {
    let (from, _) = owner_and_other();
    let mut client = Client::new(&from, 1);
    assert_eq!(client.write(b"key", b"value").status, 0);
    let migration = from.start_migration(&WHOLE).expect("starts");
    assert_eq!(from.merged_ctime(&WHOLE), Err(Status::Retry));
    eventually("the cleaner rests", || from.merge_tablets(WHOLE).is_ok());
    migration.freeze().expect("frozen");
    let late = client.write(b"key", b"late");
    assert_eq!(late.status, Status::Retry as u16);
    migration.release().expect("frozen");
    let gone = client.read(b"key");
    assert_eq!(gone.status, Status::UnknownTablet as u16);
    migration.end().expect("open");
    assert!(from.merged_ctime(&WHOLE).is_ok());
}

#[test]
fn only_what_is_durable_counts_as_answered_at_the_target() {
    let (from, to) = owner_and_other();
    let other = SlotRange {
        table_id: 5,
        ..WHOLE
    };
    from.take_tablet(other).expect("taken");
    let migration = from.start_migration(&WHOLE).expect("starts");
    let mut reply = vec![0; 1 << 20];
    let message = body(9, 0, &[write_of(1, 1)]);
    let executed = from.execute(&message, &mut reply, NOW_MS).expect("whole");
    assert!(executed.position > 0, "it waits for its backups");
    migration.freeze().expect("frozen");
    assert_eq!(migration.results(0), Err(Status::Retry));
    from.set_durable(executed.position).expect("appended");
    // Of a tablet that stays, and not durable.
    let message = body(9, 0, &[write_of(2, 5)]);
    from.execute(&message, &mut reply, NOW_MS).expect("whole");
    let results = parse(&migration.results(0).expect("durable"));
    to.import_results(&results.entries, NOW_MS).expect("room");
    assert_eq!(stats(&to)["savedResults"], 1);
}

#[test]
fn an_imported_answer_is_kept_as_long_as_a_new_one() {
    let (from, to) = owner_and_other();
    let mut reply = vec![0; 1 << 20];
    // The client was at the target long ago.
    let message = body(9, 0, &[write_of(1, 5)]);
    to.execute(&message, &mut reply, NOW_MS).expect("whole");
    let now_ms = NOW_MS + 30 * 60_000;
    let message = body(9, 1, &[write_of(2, 1)]);
    let executed = from.execute(&message, &mut reply, now_ms).expect("whole");
    from.set_durable(executed.position).expect("appended");
    let migration = from.start_migration(&WHOLE).expect("starts");
    migration.freeze().expect("frozen");
    let results = parse(&migration.results(0).expect("durable"));
    to.import_results(&results.entries, now_ms).expect("room");
    to.take_tablet(WHOLE).expect("taken");
    // Somebody's message sweeps old clients out.
    let sweeping = body(1234, 0, &[write_of(1, 1)]);
    to.execute(&sweeping, &mut reply, now_ms).expect("whole");
    let repeated = to.execute(&message, &mut reply, now_ms).expect("whole");
    assert_eq!(repeated.position, 0, "not executed again");
}
