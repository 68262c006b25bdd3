//! BACKUP_WRITE: bodies in a row go to a storage, checked against plain byte strings.
//!
//! Properties: a write is accepted only if it joins what is there, its lengths are right and its
//! certificate is that of the bytes; a refused one changes nothing; what the storage reads back is
//! the longest certified prefix of what it accepted, whether from memory, disk or an LZ4 image;
//! memory is bounded by the body.

use std::cell::RefCell;
use std::collections::BTreeMap;

use rekindle_core::backup::BackupStorage;
use rekindle_core::status::Status;

use crate::allocation;
use crate::reference::{Fields, crc32c};
use crate::scratch::Scratch;
use crate::small_backup::{self, Write, flag, wait};

const FRAMES: u32 = 8;
const HEADER_BYTES: usize = 48;
const WRITES_MAX: usize = 24;
/// What a new replica costs beside its pooled buffer.
const BOOKKEEPING_BYTES: usize = 64 << 10;

mod fix {
    pub const LENGTH: u8 = 1;
    pub const CERTIFICATE: u8 = 2;
    pub const IDS: u8 = 4;
    pub const OFFSET: u8 = 8;
    pub const FLAGS: u8 = 16;
    pub const OPEN: u8 = 32;
    pub const READ_AFTER: u8 = 64;
    pub const FREE_AFTER: u8 = 128;
}

type Key = (u64, u64);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Replica {
    received: Vec<u8>,
    certified: Option<usize>,
    epoch: u64,
    closed: bool,
}

struct Target {
    storage: BackupStorage,
    _directory: Scratch,
}

thread_local! {
    static TARGET: RefCell<Option<Target>> = const { RefCell::new(None) };
}

/// Writes in a row, each: what to put right, its length, its bytes.
pub fn check(input: &[u8]) {
    TARGET.with_borrow_mut(|target| {
        let target = target.get_or_insert_with(|| {
            let directory = Scratch::new();
            let storage = small_backup::open(directory.path(), FRAMES).expect("a new storage");
            Target {
                storage,
                _directory: directory,
            }
        });
        run(&target.storage, input);
    });
}

fn run(storage: &BackupStorage, input: &[u8]) {
    let mut fields = Fields::new(input);
    let mut model = BTreeMap::new();
    for token in 0..WRITES_MAX as u64 {
        if fields.is_empty() {
            break;
        }
        let (fixes, length) = (fields.u8(), usize::from(fields.u16()));
        let body = fixed(fixes, fields.bytes(length), &model);
        write(storage, &body, token, &mut model);
        let Some(key) = key_of(&body) else {
            continue;
        };
        if fixes & fix::READ_AFTER != 0 {
            compare(storage, key, model.get(&key));
        }
        if fixes & fix::FREE_AFTER != 0 {
            wait(|done| storage.free(key.0, &[key.1], done)).expect("frees");
            model.remove(&key);
        }
    }
    let listed = storage.replicas();
    for report in &listed {
        let replica: &Replica = &model[&(report.master_id, report.segment_id)];
        assert!(
            Some(report.length as usize) == replica.certified,
            "the certified length"
        );
        assert!(
            (report.epoch, report.closed) == (replica.epoch, replica.closed),
            "its state"
        );
    }
    let visible = model.values().filter(|replica| replica.certified.is_some());
    assert!(
        listed.len() == visible.count(),
        "every certified replica is listed"
    );
    for (key, replica) in &model {
        compare(storage, *key, Some(replica));
    }
    for key in model.keys() {
        wait(|done| storage.free(key.0, &[key.1], done)).expect("frees");
    }
    assert!(storage.replicas().is_empty(), "freed replicas are gone");
}

fn key_of(body: &[u8]) -> Option<Key> {
    let mut fields = Fields::new(body.get(..HEADER_BYTES)?);
    Some((
        u64::from_le_bytes(fields.array()),
        u64::from_le_bytes(fields.array()),
    ))
}

/// Puts right what the mutation has broken, as far as `fixes` asks for it.
fn fixed(fixes: u8, body: &[u8], model: &BTreeMap<Key, Replica>) -> Vec<u8> {
    let mut body = body.to_vec();
    if body.len() < HEADER_BYTES {
        return body;
    }
    let put = |body: &mut [u8], at: usize, field: u32| {
        body[at..at + 4].copy_from_slice(&field.to_le_bytes());
    };
    if fixes & fix::IDS != 0 {
        for at in [0, 8] {
            let id = 1 + u64::from(body[at] % 3);
            body[at..at + 8].copy_from_slice(&id.to_le_bytes());
        }
    }
    let known = key_of(&body).and_then(|key| model.get(&key));
    let received: &[u8] = known.map_or(&[], |replica| &replica.received);
    let mut flags = Fields::new(&body[40..]).u32();
    if fixes & fix::FLAGS != 0 {
        flags &= flag::OPEN | flag::CLOSE | flag::PRIMARY | flag::CERTIFICATE;
    }
    if fixes & fix::OPEN != 0 && known.is_none() {
        flags |= flag::OPEN;
    }
    if fixes & fix::OFFSET != 0 {
        let offset = if flags & flag::OPEN != 0 {
            0
        } else {
            received.len()
        };
        put(&mut body, 24, offset as u32);
    }
    let length = body.len() - HEADER_BYTES;
    if fixes & fix::LENGTH != 0 {
        put(&mut body, 28, length as u32);
    }
    if fixes & fix::CERTIFICATE != 0 {
        let offset = Fields::new(&body[24..]).u32() as usize;
        if let Some(before) = received.get(..offset) {
            let end = offset + length;
            let bytes = &body[HEADER_BYTES..];
            let fresh = bytes.get(received.len() - offset..).unwrap_or(&[]);
            let all = [received, fresh].concat();
            let checksum = crc32c(&all[..end]);
            assert!(before.len() == offset, "a prefix");
            put(&mut body, 32, end as u32);
            put(&mut body, 36, checksum);
            flags |= flag::CERTIFICATE;
        }
    }
    put(&mut body, 40, flags);
    body
}

fn write(storage: &BackupStorage, body: &[u8], token: u64, model: &mut BTreeMap<Key, Replica>) {
    let room = body.len() + BOOKKEEPING_BYTES;
    let outcome = allocation::at_most(room, || storage.write(body, token));
    let Some(key) = key_of(body) else {
        assert!(outcome == Err(Status::MalformedRequest), "too short");
        return;
    };
    if outcome.is_err() {
        compare(storage, key, model.get(&key));
        return;
    }
    let mut fields = Fields::new(&body[16..]);
    let epoch = u64::from_le_bytes(fields.array());
    let (offset, length) = (fields.u32() as usize, fields.u32() as usize);
    let (end, checksum, flags) = (fields.u32() as usize, fields.u32(), fields.u32());
    let bytes = &body[HEADER_BYTES..];
    assert!(
        length == bytes.len() && flags < 16 && key.0 != 0 && key.1 != 0,
        "well-formed"
    );
    if !model.contains_key(&key) {
        assert!(
            flags & flag::OPEN != 0 && offset == 0,
            "only an opening write opens"
        );
    }
    let replica = model.entry(key).or_default();
    if replica.closed {
        assert!(flags & flag::CLOSE != 0, "only the close may come again");
        return;
    }
    assert!(offset <= replica.received.len(), "it joins what is there");
    let skipped = replica.received.len() - offset;
    replica
        .received
        .extend_from_slice(bytes.get(skipped..).unwrap_or(&[]));
    if flags & flag::CERTIFICATE != 0 {
        assert!(end == offset + length, "it certifies its end");
        assert!(
            crc32c(&replica.received[..end]) == checksum,
            "the bytes are the certificate's"
        );
        assert!(
            epoch >= replica.epoch || replica.certified.is_none(),
            "epochs never go back"
        );
        replica.certified = replica.certified.max(Some(end));
        replica.epoch = epoch;
    }
    replica.closed = flags & flag::CLOSE != 0;
    let whole = replica.certified == Some(replica.received.len());
    assert!(
        !replica.closed || whole,
        "a closed replica is certified to its end"
    );
}

fn compare(storage: &BackupStorage, key: Key, replica: Option<&Replica>) {
    let expected = match replica.and_then(|one| one.certified.map(|end| &one.received[..end])) {
        Some(bytes) => Ok(bytes.to_vec()),
        None => Err(Status::ReplicaUnknown),
    };
    let read = storage.read(key.0, key.1);
    assert!(
        read == expected,
        "the longest certified prefix: {:?}",
        read.map(|it| it.len())
    );
}

fn seed(writes: &[(u8, Write<'_>)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (fixes, write) in writes {
        let body = write.body();
        out.push(*fixes);
        out.extend((body.len() as u16).to_le_bytes());
        out.extend(body);
    }
    out
}

/// Replicas that are opened, extended, closed, repeated and freed.
pub fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let log = crate::log_bytes::head();
    let opening = Write::certified((1, 1), &log[..232], 0, flag::OPEN | flag::PRIMARY);
    let more = Write::certified((1, 1), &log, 232, flag::PRIMARY);
    let closing = Write::certified((1, 1), &log, log.len(), flag::CLOSE | flag::PRIMARY);
    let text = b"Rekindle keeps all data in DRAM. ".repeat(300);
    let at_once = Write::certified((2, 3), &text, 0, flag::OPEN | flag::CLOSE);
    let bare = Write {
        offset: 232,
        flags: 0,
        bytes: b"not certified yet",
        ..more
    };
    let every = fix::LENGTH | fix::CERTIFICATE | fix::IDS | fix::OFFSET | fix::FLAGS | fix::OPEN;
    let all = every | fix::READ_AFTER;
    vec![
        (
            "grows",
            seed(&[
                (0, opening),
                (0, more),
                (0, closing),
                (fix::READ_AFTER, closing),
            ]),
        ),
        (
            "grows-fixed",
            seed(&[(all, opening), (all, more), (all, closing)]),
        ),
        (
            "at-once",
            seed(&[
                (0, at_once),
                (fix::READ_AFTER, opening),
                (fix::FREE_AFTER, at_once),
            ]),
        ),
        (
            "uncertified",
            seed(&[(0, opening), (fix::LENGTH, bare), (all, more), (0, opening)]),
        ),
    ]
}
