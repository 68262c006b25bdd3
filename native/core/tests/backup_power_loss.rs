//! Power loss under the frame file: only what was flushed is sure to be there, of the rest each
//! block is lost, whole or torn by itself, in any order. Every acknowledged prefix must be found
//! again, and nothing else; a power loss alone never makes a frame unusable.

mod backup_support;

use backup_support::{
    CLOSE, Completed, Directory, Disk, OPEN, PRIMARY, Random, mixed_bytes, options, random_bytes,
    seed, write_body,
};
use parking_lot::{Condvar, Mutex};
use rekindle_core::backup::Durability;
use rekindle_core::backup::frame::{BLOCK_BYTES, FRAME_BYTES};
use rekindle_core::backup::frame_file::{Faults, Medium};
use rekindle_core::status::Status;
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

const SECTOR_BYTES: usize = 512;
const FRAMES: u32 = 8;

#[derive(Default)]
struct Cache {
    /// Written and not flushed, in order.
    unflushed: Vec<(u64, Vec<u8>)>,
    operations: u32,
}

/// A disk whose writes reach the file only with a sync, until the power goes.
struct VolatileDisk {
    /// Writes and syncs before the power goes.
    lives: u32,
    cache: Mutex<Cache>,
}

fn no_power() -> io::Error {
    io::Error::other("no power")
}

/// Through a handle of its own: the storage's asks for aligned memory.
fn frames(directory: &Directory) -> File {
    let path = directory.path().join("frames");
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .expect("the frame file")
}

struct OnDirectory {
    disk: Arc<VolatileDisk>,
    path: std::path::PathBuf,
}

impl Medium for OnDirectory {
    fn write(&self, _file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut cache = self.disk.cache.lock();
        if cache.operations > self.disk.lives {
            return Err(no_power());
        }
        // Zeros of a frame that nobody uses yet are no step of anything.
        cache.operations += u32::from(bytes.iter().any(|&byte| byte != 0));
        cache.unflushed.push((offset, bytes.to_vec()));
        if cache.operations > self.disk.lives {
            return Err(no_power());
        }
        Ok(())
    }

    fn sync(&self, _file: &File) -> io::Result<()> {
        let mut cache = self.disk.cache.lock();
        cache.operations = cache.operations.saturating_add(1);
        if cache.operations > self.disk.lives {
            return Err(no_power());
        }
        let file = OpenOptions::new().write(true).open(&self.path)?;
        for (offset, bytes) in cache.unflushed.drain(..) {
            file.write_all_at(&bytes, offset)?;
        }
        Ok(())
    }
}

/// What the power loss leaves of the unflushed writes.
fn settle_cache(disk: &VolatileDisk, directory: &Directory, random: &mut Random) {
    let file = frames(directory);
    let kept_in_16 = [1, 8, 15][random.below(3) as usize];
    for (offset, bytes) in disk.cache.lock().unflushed.drain(..) {
        for (index, block) in bytes.chunks(BLOCK_BYTES).enumerate() {
            let at = offset + (index * BLOCK_BYTES) as u64;
            if random.below(16) < kept_in_16 {
                file.write_all_at(block, at).expect("keeps a block");
            } else if random.below(4) == 0 {
                for (number, sector) in block.chunks(SECTOR_BYTES).enumerate() {
                    if random.below(2) == 0 {
                        let at = at + (number * SECTOR_BYTES) as u64;
                        file.write_all_at(sector, at).expect("tears a block");
                    }
                }
            }
        }
    }
}

/// What a master knows of a replica.
#[derive(Default)]
struct Expected {
    sent: Vec<u8>,
    acknowledged: usize,
    closed: bool,
    close_sent: bool,
    /// A free was sent: it may be gone.
    free_sent: bool,
    freed: bool,
}

type Replicas = BTreeMap<u64, Expected>;

fn check(disk: &Disk, expected: &Replicas, context: &str) {
    let found: BTreeMap<u64, _> = disk
        .storage
        .replicas()
        .into_iter()
        .map(|one| (one.segment_id, one))
        .collect();
    for (id, wanted) in expected {
        let Some(replica) = found.get(id) else {
            assert!(
                wanted.acknowledged == 0 || wanted.free_sent,
                "{context}: segment {id} of {} acknowledged bytes is gone",
                wanted.acknowledged
            );
            continue;
        };
        assert!(!wanted.freed, "{context}: segment {id} was freed");
        let length = replica.length as usize;
        let least = wanted.acknowledged;
        assert!(
            length >= least,
            "{context}: segment {id} has {length}, acknowledged {least}"
        );
        assert!(
            replica.closed || !wanted.closed,
            "{context}: segment {id} is closed"
        );
        let bytes = disk.read(1, *id);
        let bytes = bytes.unwrap_or_else(|status| panic!("{context}: segment {id}: {status}"));
        assert!(
            bytes == wanted.sent[..length],
            "{context}: segment {id} differs"
        );
    }
    for (id, replica) in &found {
        assert!(
            expected.contains_key(id),
            "{context}: segment {id}: {replica:?}"
        );
    }
    let bad = disk.storage.stats()["framesBadAtRestart"];
    assert!(bad == 0.0, "{context}: {bad} frames are bad");
}

fn more_bytes(random: &mut Random, room: usize) -> Vec<u8> {
    let sizes = [1, 40, 4096, 5000, 100_000, 900_000];
    let limit = sizes[random.below(6) as usize];
    let size = random.below(limit) as usize + 1;
    if random.below(2) == 0 {
        vec![random.below(256) as u8; size.min(room)]
    } else {
        random_bytes(random, size.min(room))
    }
}

/// One turn: a few replicas get more at once, so that groups hold several of them.
fn append_some(disk: &mut Disk, random: &mut Random, expected: &mut Replicas, first: u64) -> bool {
    let mut sent = Vec::new();
    for _ in 0..=random.below(4) {
        let id = first + random.below(5);
        let replica = expected.entry(id).or_default();
        if replica.close_sent || replica.free_sent || sent.iter().any(|(one, _)| *one == id) {
            continue;
        }
        let offset = replica.sent.len();
        let fresh = more_bytes(random, rekindle_core::entry::SEGMENT_BYTES - offset);
        let mut whole = replica.sent.clone();
        whole.extend_from_slice(&fresh);
        let close = random.below(3) == 0;
        let open = if offset == 0 { OPEN | PRIMARY } else { 0 };
        let flags = open | if close { CLOSE } else { 0 };
        match disk.submit(&write_body(1, id, 1, offset, &fresh, Some(&whole), flags)) {
            Ok(token) => {
                (replica.sent, replica.close_sent) = (whole, close);
                sent.push((id, token));
            }
            Err(Status::NoFreeFrame) if offset == 0 => drop(expected.remove(&id)),
            Err(Status::ReplicaUnknown | Status::DiskError) => return false,
            Err(other) => panic!("refused with {other}"),
        }
    }
    let mut power = true;
    for (id, token) in sent {
        let replica = expected.get_mut(&id).expect("sent");
        match disk.answer(token) {
            Status::Ok => {
                replica.acknowledged = replica.sent.len();
                replica.closed = replica.close_sent;
            }
            Status::DiskError => power = false,
            other => panic!("answered {other}"),
        }
    }
    power
}

fn free_one(disk: &Disk, random: &mut Random, expected: &mut Replicas) -> bool {
    let ids: Vec<u64> = expected
        .iter()
        .filter(|(_, one)| !one.freed)
        .map(|(id, _)| *id)
        .collect();
    let Some(id) = ids.get(random.below(ids.len().max(1) as u64) as usize) else {
        return true;
    };
    let replica = expected.get_mut(id).expect("listed");
    replica.free_sent = true;
    let done = Completed::new();
    disk.storage.free(1, &[*id], done.completion());
    replica.freed = done.wait().is_ok();
    replica.freed
}

fn live(disk: &mut Disk, random: &mut Random, expected: &mut Replicas) {
    let first = expected.keys().last().map_or(1, |last| last + 1);
    for _ in 0..25 {
        if random.below(3) == 0 && !free_one(disk, random, expected) {
            return;
        }
        if !append_some(disk, random, expected, first) {
            return;
        }
    }
}

#[test]
fn a_power_loss_takes_nothing_that_was_acknowledged() {
    let seed = seed("a_power_loss_takes_nothing_that_was_acknowledged");
    let mut random = Random::new(seed);
    for history in 0..8 {
        let directory = Directory::new();
        let mut expected = Replicas::new();
        for life in 0..12 {
            let compress = random.below(2) == 0;
            let settled = random.below(2) == 0;
            let volatile = Arc::new(VolatileDisk {
                lives: 3 + random.below(40) as u32,
                cache: Mutex::default(),
            });
            let medium = OnDirectory {
                disk: Arc::clone(&volatile),
                path: directory.path().join("frames"),
            };
            let opened = options(&directory, FRAMES, compress);
            let mut disk = Disk::with_faults(opened, Faults::over(Arc::new(medium)));
            check(
                &disk,
                &expected,
                &format!("seed {seed} history {history} life {life}"),
            );
            expected.retain(|_, one| !one.freed);
            let found: Vec<u64> = disk
                .storage
                .replicas()
                .iter()
                .map(|one| one.segment_id)
                .collect();
            expected.retain(|id, _| found.contains(id));
            if settled {
                disk.poll("pre-writing", |stats| stats["framesPrewriting"] == 0.0);
            }
            live(&mut disk, &mut random, &mut expected);
            drop(disk);
            settle_cache(&volatile, &directory, &mut random);
        }
        let disk = Disk::open(&directory, options(&directory, FRAMES, false));
        check(
            &disk,
            &expected,
            &format!("seed {seed} history {history} end"),
        );
    }
}

const CUT_STEP: u32 = 3;
const SCRIPT_CLOSES: [(u64, &[u64]); 6] = [
    // Segment to close, then segments to free.
    (1, &[]),
    (2, &[]),
    // Lies in two frames.
    (3, &[1]),
    // Fills the hole.
    (4, &[2]),
    (5, &[4, 5]),
    (6, &[3, 6]),
];

/// Images come, share and leave frames; false when the power is gone.
fn follow_script(
    disk: &mut Disk,
    volatile: &VolatileDisk,
    random: &mut Random,
    expected: &mut Replicas,
) -> bool {
    let lit = || volatile.cache.lock().operations <= volatile.lives;
    for (step, (id, freed)) in SCRIPT_CLOSES.iter().enumerate() {
        let sent = mixed_bytes(random, 9 << 19, 10);
        let flags = OPEN | CLOSE;
        let status = disk.write(1, *id, 1, 0, &sent, Some(&sent), flags);
        let acknowledged = if status == Status::Ok { sent.len() } else { 0 };
        let replica = Expected {
            closed: acknowledged > 0,
            close_sent: true,
            acknowledged,
            sent,
            ..Expected::default()
        };
        expected.insert(*id, replica);
        if status != Status::Ok {
            return false;
        }
        disk.poll("compression", |stats| {
            let decided = stats["compressedReplicas"] + stats["compressionSkipped"];
            decided > step as f64 || !lit()
        });
        for id in *freed {
            let replica = expected.get_mut(id).expect("closed before");
            replica.free_sent = true;
            replica.freed = disk.free(1, &[*id]).is_ok();
        }
        if !lit() {
            return false;
        }
    }
    true
}

/// The power goes at every third write or sync of compress, switch, free and reuse, the seed says
/// which, and again during the restart. `CUT_STEP` 1 cuts at every single one.
#[test]
fn every_step_of_an_image_may_be_the_last() {
    let seed = seed("every_step_of_an_image_may_be_the_last");
    let mut random = Random::new(seed);
    let mut lives = 1 + random.below(u64::from(CUT_STEP)) as u32;
    loop {
        let context = format!("seed {seed} lives {lives}");
        let directory = Directory::new();
        let mut expected = Replicas::new();
        let run = |lives: u32| {
            let volatile = Arc::new(VolatileDisk {
                lives,
                cache: Mutex::default(),
            });
            let medium = OnDirectory {
                disk: Arc::clone(&volatile),
                path: directory.path().join("frames"),
            };
            let opened = options(&directory, FRAMES, true);
            let disk = Disk::with_faults(opened, Faults::over(Arc::new(medium)));
            (disk, volatile)
        };
        let (mut disk, volatile) = run(lives);
        let whole = follow_script(&mut disk, &volatile, &mut random, &mut expected);
        drop(disk);
        settle_cache(&volatile, &directory, &mut random);
        let (disk, volatile) = run(random.below(4) as u32);
        check(&disk, &expected, &context);
        drop(disk);
        settle_cache(&volatile, &directory, &mut random);
        let mut disk = Disk::open(&directory, options(&directory, FRAMES, true));
        check(&disk, &expected, &context);
        assert_eq!(disk.storage.stats()["imagesBadAtRestart"], 0.0, "{context}");
        let ids: Vec<u64> = expected.keys().copied().collect();
        disk.free(1, &ids).expect("frees");
        assert_eq!(
            disk.storage.load().free_frames,
            FRAMES as usize,
            "{context}: leaked"
        );
        let status = disk.write(1, 99, 1, 0, b"next", Some(b"next"), OPEN);
        assert_eq!(status, Status::Ok, "{context}");
        if whole {
            return;
        }
        lives += CUT_STEP;
    }
}

/// Holds back the zeros for a frame until somebody else has written there.
#[derive(Default)]
struct SlowZeros {
    foreign_syncs: Mutex<BTreeMap<u64, u32>>,
    changed: Condvar,
    last_foreign: Mutex<Option<u64>>,
}

impl Medium for SlowZeros {
    fn write(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        let frame = offset / FRAME_BYTES as u64;
        let compressor = std::thread::current().name() == Some("backup-lz4");
        if compressor {
            *self.last_foreign.lock() = Some(frame);
        } else if offset.is_multiple_of(FRAME_BYTES as u64) && bytes.iter().all(|&byte| byte == 0) {
            let mut syncs = self.foreign_syncs.lock();
            let limit = Duration::from_millis(300);
            self.changed
                .wait_while_for(&mut syncs, |syncs| !syncs.contains_key(&frame), limit);
        }
        file.write_all_at(bytes, offset)
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        file.sync_data()?;
        if std::thread::current().name() == Some("backup-lz4") {
            let frame = self.last_foreign.lock().expect("written before");
            *self.foreign_syncs.lock().entry(frame).or_default() += 1;
            self.changed.notify_all();
        }
        Ok(())
    }
}

#[test]
fn zeros_never_cross_the_image_of_a_closed_replica() {
    let directory = Directory::new();
    let opened = options(&directory, FRAMES, true);
    let mut disk = Disk::with_faults(opened, Faults::over(Arc::new(SlowZeros::default())));
    let bytes = vec![7u8; 600_000];
    for id in 1..=3 {
        let status = disk.write(1, id, 1, 0, &bytes, Some(&bytes), OPEN | CLOSE);
        assert_eq!(status, Status::Ok);
    }
    disk.poll("compression", |stats| {
        stats["compressedReplicas"] + stats["compressionSkipped"] >= 3.0
            && stats["framesPrewriting"] == 0.0
    });
    for id in 1..=3 {
        assert!(
            disk.read(1, id) == Ok(bytes.clone()),
            "segment {id} before a restart"
        );
    }
    drop(disk);
    let disk = Disk::open(&directory, options(&directory, FRAMES, true));
    for id in 1..=3 {
        assert!(
            disk.read(1, id) == Ok(bytes.clone()),
            "segment {id} after a restart"
        );
    }
}

/// One turn in mode `replicated`: writes are acknowledged before they are flushed.
fn append_ahead(disk: &mut Disk, random: &mut Random, expected: &mut Replicas, first: u64) {
    for id in first..first + 3 {
        let replica = expected.entry(id).or_default();
        if replica.close_sent {
            continue;
        }
        let offset = replica.sent.len();
        let fresh = more_bytes(random, rekindle_core::entry::SEGMENT_BYTES - offset);
        replica.sent.extend_from_slice(&fresh);
        let close = random.below(12) == 0;
        let open = if offset == 0 { OPEN | PRIMARY } else { 0 };
        let flags = open | if close { CLOSE } else { 0 };
        let body = write_body(1, id, 1, offset, &fresh, Some(&replica.sent), flags);
        let Ok(token) = disk.submit(&body) else {
            // The disk has failed under it; what was acknowledged before still counts.
            replica.close_sent = true;
            continue;
        };
        replica.close_sent = close;
        if disk.answer(token) == Status::Ok {
            replica.acknowledged = replica.sent.len();
            replica.closed = close;
        }
    }
}

/// A replica that lacks acknowledged bytes says so; without a power loss none does.
fn check_doubt(disk: &Disk, expected: &Replicas, complete: bool, context: &str) -> usize {
    let mut doubtful = 0;
    for replica in disk.storage.replicas() {
        let wanted = &expected[&replica.segment_id];
        let length = replica.length as usize;
        let short = length < wanted.acknowledged || wanted.closed && !replica.closed;
        assert!(
            !short || replica.doubtful && !complete,
            "{context}: {replica:?}, {} bytes were acknowledged",
            wanted.acknowledged
        );
        assert!(!(complete && replica.doubtful), "{context}: {replica:?}");
        let bytes = disk.read(1, replica.segment_id).expect("reads");
        assert!(bytes == wanted.sent[..length], "{context}: {replica:?}");
        doubtful += usize::from(replica.doubtful);
    }
    let found = disk.storage.replicas().len();
    assert!(!complete || found == expected.len(), "{context}: {found}");
    doubtful
}

#[test]
fn an_open_replica_that_may_lack_acknowledged_bytes_says_so_until_it_is_freed() {
    let seed = seed("an_open_replica_that_may_lack_acknowledged_bytes_says_so_until_it_is_freed");
    let mut random = Random::new(seed);
    let mut doubtful = 0;
    // At least 24 histories, and so many more that a power loss leaves doubt in one of them.
    for history in 0..480 {
        if history >= 24 && doubtful > 0 {
            break;
        }
        let directory = Directory::new();
        let mut expected = Replicas::new();
        let mut options = options(&directory, FRAMES, false);
        options.durability = Durability::Replicated;
        options.flush_interval = Duration::from_millis(random.below(5));
        let clean = history % 3 == 0;
        let fenced = history % 3 == 1;
        let volatile = Arc::new(VolatileDisk {
            lives: if clean {
                u32::MAX
            } else {
                6 + random.below(40) as u32
            },
            cache: Mutex::default(),
        });
        let medium = OnDirectory {
            disk: Arc::clone(&volatile),
            path: directory.path().join("frames"),
        };
        let mut disk = Disk::with_faults(options.clone(), Faults::over(Arc::new(medium)));
        for _ in 0..random.below(12) {
            append_ahead(&mut disk, &mut random, &mut expected, 1);
        }
        let mut complete = clean;
        if fenced {
            let done = Completed::new();
            disk.storage.fence(1, done.completion());
            assert_eq!(done.wait(), Ok(()), "the superblock is another file");
            let errors = disk.storage.stats()["diskErrors"];
            complete = errors == 0.0;
        }
        drop(disk);
        settle_cache(&volatile, &directory, &mut random);
        // Doubt outlives a restart that stops cleanly.
        let context = format!("seed {seed} history {history}");
        let first = Disk::open(&directory, options.clone());
        let count = check_doubt(&first, &expected, complete, &context);
        drop(first);
        let second = Disk::open(&directory, options);
        assert_eq!(
            check_doubt(&second, &expected, complete, &context),
            count,
            "{context}"
        );
        doubtful += count;
    }
    assert!(doubtful > 0, "seed {seed}: some power loss leaves doubt");
}
