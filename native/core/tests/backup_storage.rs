//! The promises of a backup's storage: what was acknowledged is there after a restart, whatever
//! the disk did; refusals change nothing; fences and frees hold.

mod backup_support;

use backup_support::{
    CLOSE, Completed, Directory, Disk, OPEN, PRIMARY, Random, options, random_bytes, seed,
};
use rekindle_core::backup::frame::{
    BLOCK_BYTES, CertificateBlock, DATA_OFFSET, FRAME_BYTES, SLOT_BYTES, SlotContent, decode_slot,
};
use rekindle_core::backup::{BackupStorage, Durability, Identity};
use rekindle_core::crc32c::crc32c;
use rekindle_core::status::Status;
use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;

const SEGMENT_BYTES: usize = rekindle_core::entry::SEGMENT_BYTES;

/// What a master knows of one replica.
#[derive(Default)]
struct Expected {
    bytes: Vec<u8>,
    /// Longest length whose write was acknowledged.
    acknowledged: usize,
    close_acknowledged: bool,
}

fn check(disk: &Disk, expected: &BTreeMap<u64, Expected>, context: &str) {
    let found: BTreeMap<u64, _> = disk
        .storage
        .replicas()
        .into_iter()
        .map(|one| (one.segment_id, one))
        .collect();
    for (segment_id, expected) in expected {
        let length = found.get(segment_id).map_or(0, |one| one.length as usize);
        assert!(
            length >= expected.acknowledged,
            "{context}: segment {segment_id} has {length} B, acknowledged {}",
            expected.acknowledged
        );
        if expected.close_acknowledged {
            assert!(
                found[segment_id].closed,
                "{context}: segment {segment_id} is closed"
            );
        }
        if length > 0 {
            let bytes = disk
                .read(1, *segment_id)
                .expect("a listed replica is readable");
            assert!(
                bytes == expected.bytes[..length],
                "{context}: segment {segment_id} differs"
            );
        }
    }
}

/// One life: random appends to random replicas until the disk dies at a random write or sync.
fn live(disk: &mut Disk, random: &mut Random, expected: &mut BTreeMap<u64, Expected>) {
    if random.below(3) > 0 {
        let count = random.below(60) as u32;
        if random.below(4) == 0 {
            disk.faults.fail_sync_after(count / 4, true);
        } else {
            disk.faults.fail_write_after(count, true);
        }
    }
    let first = expected.keys().last().map_or(1, |last| last + 1);
    for step in 0..40 {
        let segment_id = first + random.below(4);
        let replica = expected.entry(segment_id).or_default();
        if replica.close_acknowledged {
            continue;
        }
        let offset = replica.bytes.len();
        let sizes = [1, 40, 4096, 5000, 100_000, 700_000];
        let size_max = sizes[random.below(6) as usize];
        let size = random.below(size_max) as usize + 1;
        let size = size.min(SEGMENT_BYTES - offset);
        let fresh = random_bytes(random, size);
        let mut whole = replica.bytes.clone();
        whole.extend_from_slice(&fresh);
        let closes = random.below(15) == 0;
        let open = if offset == 0 { OPEN | PRIMARY } else { 0 };
        let flags = open | if closes { CLOSE } else { 0 };
        let status = disk.write(1, segment_id, 1, offset, &fresh, Some(&whole), flags);
        match status {
            Status::Ok => {
                replica.bytes = whole;
                replica.acknowledged = replica.bytes.len();
                replica.close_acknowledged = closes;
            }
            Status::DiskError => {
                // Not acknowledged: it may or may not be found. The replica takes no more writes.
                replica.bytes = whole;
                return;
            }
            Status::NoFreeFrame => {
                expected.remove(&segment_id);
                assert!(step > 0, "a life starts with free frames");
                return;
            }
            other => panic!("write refused with {other:?}"),
        }
    }
}

#[test]
fn acknowledged_prefixes_survive_random_restarts() {
    let seed = seed("acknowledged_prefixes_survive_random_restarts");
    let mut random = Random::new(seed);
    for history in 0..6 {
        let directory = Directory::new();
        let mut expected = BTreeMap::new();
        for life in 0..5 {
            let compress = random.below(2) == 0;
            let mut disk = Disk::open(&directory, options(&directory, 24, compress));
            let context = format!("seed {seed}, history {history}, life {life}");
            check(&disk, &expected, &context);
            // Replicas of an earlier life take no more writes; free some of them.
            let old: Vec<u64> = expected
                .keys()
                .copied()
                .filter(|_| random.below(2) == 0)
                .collect();
            disk.free(1, &old).expect("frees");
            old.iter().for_each(|id| drop(expected.remove(id)));
            live(&mut disk, &mut random, &mut expected);
        }
    }
}

fn slots(directory: &Directory) -> Vec<(usize, CertificateBlock)> {
    let bytes = std::fs::read(directory.path().join("frames")).expect("frames");
    let slots = bytes[..DATA_OFFSET].chunks(SLOT_BYTES).enumerate();
    let mut valid: Vec<(usize, CertificateBlock)> = slots
        .filter_map(|(slot, bytes)| match decode_slot(bytes) {
            SlotContent::Valid(certificate) => Some((slot, certificate)),
            _ => None,
        })
        .collect();
    valid.sort_by_key(|(_, certificate)| certificate.sequence);
    valid
}

fn overwrite(directory: &Directory, offset: usize, bytes: &[u8]) {
    let path = directory.path().join("frames");
    let file = std::fs::OpenOptions::new()
        .write(true)
        .open(path)
        .expect("frames");
    file.write_all_at(bytes, offset as u64).expect("overwrites");
}

fn two_acknowledged_writes(directory: &Directory, first: usize, second: usize) -> Vec<u8> {
    let mut random = Random::new(7);
    let bytes = random_bytes(&mut random, first + second);
    let mut disk = Disk::open(directory, options(directory, 1, false));
    let head = &bytes[..first];
    assert_eq!(disk.write(1, 1, 1, 0, head, Some(head), OPEN), Status::Ok);
    assert_eq!(
        disk.write(1, 1, 1, first, &bytes[first..], Some(&bytes), 0),
        Status::Ok
    );
    bytes
}

#[test]
fn a_torn_newest_slot_or_block_falls_back_to_the_acknowledged_prefix_before() {
    for (first, second) in [
        (100, 50),
        (100, 5000),
        (4096, 4096),
        (10_000, 20_000),
        (5, 1 << 20),
    ] {
        for damage in ["zero", "flip", "tail", "data"] {
            let directory = Directory::new();
            let bytes = two_acknowledged_writes(&directory, first, second);
            let (slot, newest) = slots(&directory)[1];
            assert_eq!(newest.length as usize, first + second);
            let slot_at = slot * SLOT_BYTES;
            let old_floor = first / BLOCK_BYTES * BLOCK_BYTES;
            match damage {
                "zero" => overwrite(&directory, slot_at, &[0; SLOT_BYTES]),
                "flip" => overwrite(&directory, slot_at + 41, &[0xee]),
                "tail" => overwrite(&directory, slot_at + BLOCK_BYTES, &[0xee; 8]),
                _ if (first + second) / BLOCK_BYTES * BLOCK_BYTES > old_floor => {
                    overwrite(&directory, DATA_OFFSET + old_floor, &[0xee; 64]);
                }
                _ => continue,
            }
            let disk = Disk::open(&directory, options(&directory, 1, false));
            let replicas = disk.storage.replicas();
            assert_eq!(replicas.len(), 1, "{first}+{second} {damage}");
            assert_eq!(
                replicas[0].length as usize, first,
                "{first}+{second} {damage}"
            );
            assert!(disk.read(1, 1).expect("reads") == bytes[..first]);
        }
    }
}

#[test]
fn a_frame_without_a_whole_replica_is_reported_and_kept() {
    let directory = Directory::new();
    two_acknowledged_writes(&directory, 5000, 5000);
    overwrite(&directory, DATA_OFFSET, &[0xee; 64]);
    let mut disk = Disk::open(&directory, options(&directory, 1, false));
    assert!(disk.storage.replicas().is_empty());
    assert_eq!(disk.storage.stats()["framesBadAtRestart"], 1.0);
    let status = disk.write(1, 2, 1, 0, b"new", Some(b"new"), OPEN);
    assert_eq!(
        status,
        Status::NoFreeFrame,
        "what it held is not overwritten"
    );
}

#[test]
fn refusals_change_nothing() {
    let directory = Directory::new();
    let mut disk = Disk::open(&directory, options(&directory, 4, false));
    let bytes = random_bytes(&mut Random::new(3), 3000);
    let (head, rest) = bytes.split_at(1000);
    assert_eq!(
        disk.write(1, 1, 1, 0, head, Some(head), 0),
        Status::ReplicaUnknown
    );
    assert_eq!(disk.write(1, 1, 5, 0, head, Some(head), OPEN), Status::Ok);
    assert_eq!(
        disk.write(1, 1, 5, 0, head, Some(head), OPEN),
        Status::Ok,
        "repeat"
    );
    assert_eq!(
        disk.write(1, 1, 5, 1001, rest, None, 0),
        Status::InvalidArgument,
        "gap"
    );
    assert_eq!(
        disk.write(1, 1, 4, 1000, rest, Some(&bytes), 0),
        Status::InvalidArgument,
        "epoch"
    );
    let wrong = [head, head].concat();
    assert_eq!(
        disk.write(1, 1, 5, 1000, rest, Some(&wrong), 0),
        Status::MalformedRequest
    );
    let mut rotten = bytes.clone();
    rotten[2000] ^= 1;
    assert_eq!(
        disk.write(1, 1, 5, 1000, rest, Some(&rotten), 0),
        Status::ChecksumMismatch
    );
    let huge = vec![0; SEGMENT_BYTES];
    assert_eq!(
        disk.write(1, 1, 5, 1000, &huge, None, 0),
        Status::SegmentOverflow
    );
    assert_eq!(disk.raw(&[0; 47]), Status::MalformedRequest);
    assert_eq!(disk.storage.replicas()[0].length, 1000);
    assert_eq!(
        disk.write(1, 1, 6, 500, &bytes[500..], Some(&bytes), 0),
        Status::Ok,
        "overlap"
    );
    assert_eq!(
        disk.write(1, 1, 6, 0, head, Some(head), 0),
        Status::Ok,
        "late repeat"
    );
    assert_eq!(
        disk.write(1, 1, 6, 3000, &[], Some(&bytes), CLOSE),
        Status::Ok
    );
    assert_eq!(
        disk.write(1, 1, 6, 3000, &[], Some(&bytes), CLOSE),
        Status::Ok,
        "repeat"
    );
    assert_eq!(
        disk.write(1, 1, 6, 3000, &[1], None, 0),
        Status::ReplicaClosed
    );
    assert!(disk.read(1, 1).expect("reads") == bytes);
    assert_eq!(disk.storage.replicas()[0].epoch, 6);
}

#[test]
fn an_open_without_a_certificate_is_invisible_and_replaces_only_when_certified() {
    let directory = Directory::new();
    let old = random_bytes(&mut Random::new(4), 9000);
    let mut disk = Disk::open(&directory, options(&directory, 4, false));
    assert_eq!(disk.write(1, 1, 1, 0, &old, Some(&old), OPEN), Status::Ok);
    drop(disk);
    let mut disk = Disk::open(&directory, options(&directory, 4, false));
    assert_eq!(
        disk.write(1, 1, 1, 9000, &[1], None, 0),
        Status::ReplicaUnknown
    );
    assert_eq!(disk.write(1, 1, 2, 0, &[], None, OPEN), Status::Ok);
    assert_eq!(disk.write(1, 1, 2, 0, &old[..5000], None, 0), Status::Ok);
    let seen = disk.storage.replicas();
    assert!(seen.len() == 1 && seen[0].from_restart && seen[0].epoch == 1);
    assert!(disk.read(1, 1).expect("reads") == old);
    assert_eq!(
        disk.write(1, 1, 2, 5000, &old[5000..], Some(&old), 0),
        Status::Ok
    );
    let seen = disk.storage.replicas();
    assert!(seen.len() == 1 && !seen[0].from_restart && seen[0].epoch == 2);
    disk.free(1, &[77]).expect("a round of the I/O thread");
    assert_eq!(
        disk.storage.load().free_frames,
        3,
        "the replaced frame is free"
    );
}

#[test]
fn a_fence_survives_a_restart() {
    let directory = Directory::new();
    let bytes = random_bytes(&mut Random::new(6), 100);
    let identity = Identity {
        cluster_id: "c".repeat(36),
        server_id: 12,
    };
    {
        let mut disk = Disk::open(&directory, options(&directory, 2, false));
        assert_eq!(disk.storage.identity(), None);
        let done = Completed::new();
        disk.storage
            .set_identity(identity.clone(), done.completion());
        done.wait().expect("writes the superblock");
        assert_eq!(
            disk.write(1, 1, 1, 0, &bytes, Some(&bytes), OPEN),
            Status::Ok
        );
        let done = Completed::new();
        disk.storage.fence(1, done.completion());
        done.wait().expect("fences");
        assert_eq!(disk.write(1, 1, 1, 100, &[1], None, 0), Status::Fenced);
    }
    let mut disk = Disk::open(&directory, options(&directory, 2, false));
    assert_eq!(disk.storage.identity(), Some(identity));
    assert_eq!(
        disk.write(1, 2, 1, 0, &bytes, Some(&bytes), OPEN),
        Status::Fenced
    );
    assert_eq!(
        disk.write(2, 2, 1, 0, &bytes, Some(&bytes), OPEN),
        Status::Ok
    );
    let done = Completed::new();
    disk.storage.unfence(1, done.completion());
    done.wait().expect("unfences");
    assert_eq!(
        disk.write(1, 2, 1, 0, &bytes, Some(&bytes), OPEN),
        Status::NoFreeFrame
    );
}

#[test]
fn a_closed_replica_becomes_an_image_and_reads_the_same() {
    let directory = Directory::new();
    let text: Vec<u8> = (0..2_000_000u32)
        .map(|index| (index / 64 % 251) as u8)
        .collect();
    let noise = random_bytes(&mut Random::new(8), 500_000);
    {
        let mut disk = Disk::open(&directory, options(&directory, 8, true));
        for (segment_id, bytes) in [(1, &text), (2, &noise)] {
            let status = disk.write(1, segment_id, 1, 0, bytes, Some(bytes), OPEN | CLOSE);
            assert_eq!(status, Status::Ok);
        }
        disk.poll("compression", |stats| {
            stats["compressedReplicas"] == 1.0 && stats["compressionSkipped"] == 1.0
        });
        disk.free(1, &[]).expect("a round of the I/O thread");
        assert!(disk.read(1, 1).expect("reads") == text);
        assert_eq!(disk.storage.load().free_frames, 6);
    }
    let disk = Disk::open(&directory, options(&directory, 8, true));
    assert!(disk.read(1, 1).expect("reads") == text && disk.read(1, 2).expect("reads") == noise);
    assert!(disk.storage.replicas().iter().all(|replica| replica.closed));
}

#[test]
fn a_freed_replica_stays_freed_and_its_frame_is_used_again() {
    let directory = Directory::new();
    let bytes = random_bytes(&mut Random::new(9), 70_000);
    for round in 1..=3 {
        let mut disk = Disk::open(&directory, options(&directory, 1, false));
        assert!(disk.storage.replicas().is_empty(), "round {round}");
        let status = disk.write(1, round, 1, 0, &bytes, Some(&bytes), OPEN);
        assert_eq!(status, Status::Ok);
        assert_eq!(
            disk.write(1, 99, 1, 0, &bytes, None, OPEN),
            Status::NoFreeFrame
        );
        disk.free(1, &[round]).expect("frees");
    }
    let length = std::fs::metadata(directory.path().join("frames"))
        .expect("frames")
        .len();
    assert!(length <= FRAME_BYTES as u64, "one frame was enough");
}

#[test]
fn replicated_mode_answers_from_memory_and_flushes_later() {
    let directory = Directory::new();
    let bytes = random_bytes(&mut Random::new(10), 5000);
    {
        let mut options = options(&directory, 2, false);
        options.durability = Durability::Replicated;
        options.flush_interval = std::time::Duration::from_millis(20);
        let mut disk = Disk::open(&directory, options);
        assert_eq!(
            disk.write(1, 1, 1, 0, &bytes, Some(&bytes), OPEN),
            Status::Ok
        );
        disk.poll("the flush", |stats| stats["flushGroups"] >= 1.0);
    }
    let disk = Disk::open(&directory, options(&directory, 2, false));
    assert!(disk.read(1, 1).expect("reads") == bytes);
    assert!(
        !disk.storage.replicas()[0].doubtful,
        "the storage was closed"
    );
}

#[test]
fn foreign_or_locked_directories_are_refused_untouched() {
    let directory = Directory::new();
    let disk = Disk::open(&directory, options(&directory, 1, false));
    let again = BackupStorage::open(options(&directory, 1, false), Default::default());
    assert!(again.err().expect("locked").message.contains("in use"));
    drop(disk);
    for (at, byte, word) in [(0, 0u8, "magic"), (4, 9, "format 9")] {
        let path = directory.path().join("superblock-1");
        let before = std::fs::read(&path).expect("superblock");
        let mut bytes = before.clone();
        bytes[at] = byte;
        std::fs::write(&path, &bytes).expect("damages");
        let refused = BackupStorage::open(options(&directory, 1, false), Default::default());
        assert!(refused.err().expect("refused").message.contains(word));
        assert!(
            std::fs::read(&path).expect("superblock") == bytes,
            "untouched"
        );
        std::fs::write(&path, &before).expect("restores");
    }
    assert_eq!(crc32c(b"123456789"), 0xe306_9283);
}

#[test]
fn of_two_frames_with_the_same_replica_one_is_kept_and_one_freed() {
    let directory = Directory::new();
    let bytes = random_bytes(&mut Random::new(14), 50_000);
    {
        let mut disk = Disk::open(&directory, options(&directory, 2, false));
        for segment_id in [1, 2] {
            let status = disk.write(1, segment_id, 1, 0, &bytes, Some(&bytes), OPEN | CLOSE);
            assert_eq!(status, Status::Ok);
        }
    }
    let frames = std::fs::read(directory.path().join("frames")).expect("frames");
    overwrite(&directory, FRAME_BYTES, &frames[..FRAME_BYTES]);
    for _ in 0..2 {
        let mut disk = Disk::open(&directory, options(&directory, 2, false));
        assert_eq!(disk.storage.replicas().len(), 1);
        assert_eq!(disk.storage.load().free_frames, 1);
        assert!(disk.read(1, 1).expect("reads") == bytes);
        assert_eq!(
            disk.write(1, 3, 1, 0, &bytes, Some(&bytes), OPEN),
            Status::Ok
        );
        disk.free(1, &[3]).expect("frees");
    }
}

#[test]
fn close_flushes_unlocks_and_refuses() {
    let directory = Directory::new();
    let bytes = random_bytes(&mut Random::new(15), 100);
    let mut disk = Disk::open(&directory, options(&directory, 2, true));
    assert_eq!(
        disk.write(1, 1, 1, 0, &bytes, Some(&bytes), OPEN),
        Status::Ok
    );
    disk.storage.close();
    assert_eq!(disk.write(1, 1, 1, 100, &[1], None, 0), Status::Internal);
    assert_eq!(disk.free(1, &[1]), Err(Status::Internal));
    let again = Disk::open(&directory, options(&directory, 2, true));
    assert!(again.read(1, 1).expect("reads") == bytes);
}

/// Copying a closed segment again must never leave it open: a recovery that finds no other copy in
/// time would take it, with its old digest, for the head of the log.
#[test]
fn a_crash_within_the_close_of_a_copy_leaves_no_open_replica() {
    let bytes = random_bytes(&mut Random::new(23), 100_000);
    let mut closed = 0;
    for writes in 0..5 {
        let directory = Directory::new();
        let mut disk = Disk::open(&directory, options(&directory, 4, false));
        disk.settle();
        disk.faults.fail_write_after(writes, true);
        let status = disk.write(5, 3, 1, 0, &bytes, Some(&bytes), OPEN | CLOSE);
        drop(disk);
        let disk = Disk::open(&directory, options(&directory, 4, false));
        let replicas = disk.storage.replicas();
        assert!(
            replicas.iter().all(|replica| replica.closed),
            "{writes} writes: {replicas:?}"
        );
        assert!(
            status != Status::Ok || replicas.len() == 1,
            "{writes} writes"
        );
        closed += replicas.len();
        for _ in &replicas {
            assert_eq!(disk.read(5, 3).expect("whole"), bytes);
        }
    }
    assert!(closed > 0);
}
