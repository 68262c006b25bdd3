//! Replay of a recovery segment.
//!
//! Properties: a piece that is damaged or holds what does not belong here is refused and changes
//! nothing; of an accepted one the newest version of each key counts, whatever its order, and a
//! tombstone kills what is not newer; taken back, nothing is left; activated, the objects are
//! served and can be written.

use std::collections::HashMap;
use std::sync::Arc;

use rekindle_core::entry::{EntryIterator, EntryType};
use rekindle_core::key_hash::{key_hash, slot};
use rekindle_core::master::Master;
use rekindle_core::master::recovery::Recovery;
use rekindle_core::status::Status;

use crate::log_bytes;
use crate::requests::{Answer, Operation, answers, body};
use crate::small_master::{RANGES, SmallMaster, owns, stats};

const REPAIR: u8 = 1;
const KEEP_ACCEPTABLE: u8 = 2;
const WRONG_CHECKSUM: u8 = 4;
/// One input in 32 goes on to serve what was replayed: that costs segments.
const ACTIVATE: u8 = 0xf8;

thread_local! {
    static MASTER: SmallMaster = SmallMaster::default();
}

/// Mode byte, then the entries of a piece.
pub fn check(input: &[u8]) {
    let Some((mode, bytes)) = input.split_first() else {
        return;
    };
    let mut piece = bytes.to_vec();
    if mode & REPAIR != 0 {
        log_bytes::repair(&mut piece);
    }
    if mode & KEEP_ACCEPTABLE != 0 {
        piece = acceptable(&piece);
    }
    let checksum = log_bytes::piece_checksum(&piece) ^ u32::from(mode & WRONG_CHECKSUM != 0);
    let (master, _) = MASTER.with(|master| master.get(false));
    let recovery = Arc::new(master.start_recovery(&RANGES).expect("nothing overlaps"));
    let before = stats(&master);
    let replayed = recovery.replay(0, &piece, checksum);
    if mode & WRONG_CHECKSUM != 0 {
        assert!(replayed.is_err(), "a wrong checksum is refused");
    } else if mode & KEEP_ACCEPTABLE != 0 {
        assert!(replayed.is_ok(), "an acceptable piece is accepted");
    }
    if replayed.is_err() {
        let after = stats(&master);
        for name in ["objects", "liveBytes", "safeVersion"] {
            assert!(
                before[name] == after[name],
                "a refused piece changes nothing"
            );
        }
        recovery.abort().expect("taken back");
        return;
    }
    let model = Model::of(&piece);
    let counted = stats(&master);
    assert!(
        counted["objects"] == model.live() as u64,
        "every live object is counted once"
    );
    assert!(
        counted["safeVersion"] >= model.safe_version,
        "no version is given out twice"
    );
    recovery.finish_replay().expect("nothing runs");
    if mode & ACTIVATE == ACTIVATE {
        serve(&master, &recovery, &model);
        return MASTER.with(SmallMaster::discard);
    } else {
        recovery.abort().expect("taken back");
    }
    let left = stats(&master);
    assert!(
        (left["objects"], left["liveBytes"]) == (0, 0),
        "nothing is left"
    );
}

/// The entries that the rules allow on this master, one by one.
fn acceptable(piece: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for (_, entry) in EntryIterator::new(piece).map_while(Result::ok) {
        let here = owns(
            entry.table_id(),
            slot(key_hash(entry.table_id(), entry.key())),
        );
        let mut header = log_bytes::header(entry.entry_type(), entry.table_id(), entry.version());
        header.timestamp = entry.timestamp();
        let fits = match entry.entry_type() {
            EntryType::Object => here && entry.value().len() <= 1 << 20,
            EntryType::Tombstone => here && entry.value().is_empty(),
            EntryType::SafeVersion | EntryType::Padding => true,
            _ => false,
        };
        if fits && entry.version() < 1 << 62 {
            let prior: Vec<u64> = entry.prior().collect();
            log_bytes::push_entry(&mut out, &header, &prior, entry.key(), entry.value());
        }
    }
    out
}

type Key = (u64, Vec<u8>);

/// Newest version of each key; None: dead.
#[derive(Default)]
struct Model {
    newest: HashMap<Key, (u64, Option<Vec<u8>>)>,
    safe_version: u64,
}

impl Model {
    fn of(piece: &[u8]) -> Self {
        let mut model = Self::default();
        for (_, entry) in EntryIterator::new(piece).map_while(Result::ok) {
            let version = entry.version();
            let object = entry.entry_type() == EntryType::Object;
            match entry.entry_type() {
                EntryType::Object | EntryType::Tombstone => {}
                EntryType::SafeVersion => {
                    model.safe_version = model.safe_version.max(version);
                    continue;
                }
                _ => continue,
            }
            model.safe_version = model.safe_version.max(version + 1);
            let key = (entry.table_id(), entry.key().to_vec());
            let value = object.then(|| entry.value().to_vec());
            let known = model.newest.get(&key);
            let wins = known.is_none_or(|(newest, alive)| {
                version > *newest || (version == *newest && !object && alive.is_some())
            });
            if wins {
                model.newest.insert(key, (version, value));
            }
        }
        model
    }

    fn live(&self) -> usize {
        self.newest
            .values()
            .filter(|(_, value)| value.is_some())
            .count()
    }
}

/// Serves the tablets, compares every key and writes it.
fn serve(master: &Arc<Master>, recovery: &Recovery, model: &Model) {
    let position = recovery.commit().expect("has memory");
    master.set_durable(position).expect("was appended");
    recovery.activate().expect("committed");
    for ((table_id, key), (version, value)) in &model.newest {
        if key.is_empty() {
            continue; // no request can name it
        }
        let one = Operation {
            table_id: *table_id,
            key,
            ..Operation::default()
        };
        let found = send(master, Operation { kind: 1, ..one });
        match value {
            None => assert!(found.status == Status::ObjectNotFound as u16, "dead"),
            Some(value) => {
                assert!(
                    (found.status, found.version) == (0, *version),
                    "the newest version"
                );
                assert!(found.value == *value, "its value");
            }
        }
        let written = send(
            master,
            Operation {
                kind: 2,
                rpc_id: 1,
                value: b"new",
                ..one
            },
        );
        assert!(
            written.status == 0 && written.version > *version,
            "versions go on"
        );
    }
}

fn send(master: &Master, operation: Operation<'_>) -> Answer {
    thread_local! {
        static CLIENTS: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
    }
    CLIENTS.set(CLIENTS.get() + 1);
    let mut reply = vec![0; 64 << 10];
    let body = body(CLIENTS.get(), 0, &[operation]);
    let executed = master.execute(&body, &mut reply, 0).expect("sound");
    answers(&reply[..executed.reply_bytes]).remove(0)
}

/// A piece as a backup makes it, and one whose versions come in the wrong order.
pub fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let with_mode = |mode: u8, bytes: &[u8]| [&[mode][..], bytes].concat();
    let mut backwards = Vec::new();
    for version in (1..5).rev() {
        let object = log_bytes::header(EntryType::Object, 1, version);
        log_bytes::push_entry(&mut backwards, &object, &[4], b"key", &[version as u8; 9]);
        let tombstone = log_bytes::header(EntryType::Tombstone, 1, version);
        log_bytes::push_entry(&mut backwards, &tombstone, &[], b"key", b"");
    }
    vec![
        ("objects", with_mode(0, &log_bytes::objects())),
        (
            "objects-repaired",
            with_mode(REPAIR | KEEP_ACCEPTABLE, &log_bytes::objects()),
        ),
        (
            "served",
            with_mode(ACTIVATE | REPAIR | KEEP_ACCEPTABLE, &log_bytes::objects()),
        ),
        ("backwards", with_mode(REPAIR | KEEP_ACCEPTABLE, &backwards)),
        (
            "wrong-checksum",
            with_mode(REPAIR | WRONG_CHECKSUM, &log_bytes::objects()),
        ),
        ("head", with_mode(REPAIR, &log_bytes::head())),
    ]
}
