//! Splitting for recovery: every entry reaches its partition and no other, damage never leaves the
//! backup, and a small cache never stops a request.

mod backup_support;

use backup_support::{CLOSE, Directory, Disk, OPEN, Random, options, partition, seed, tablet};
use rekindle_core::backup::split::{PIECE_HEADER_BYTES, Partition};
use rekindle_core::entry::{
    EntryHeader, EntryIterator, EntryType, FLAG_MORE, PieceChecksum, entry_bytes, write_entry,
};
use rekindle_core::key_hash::{key_hash, slot};
use rekindle_core::status::Status;

fn append(
    segment: &mut Vec<u8>,
    entry_type: EntryType,
    flags: u8,
    table_id: u64,
    key: &[u8],
    value: &[u8],
) {
    let header = EntryHeader {
        entry_type,
        flags,
        timestamp: 1,
        table_id,
        version: segment.len() as u64 + 1,
    };
    append_header(segment, &header, key, value);
}

fn append_header(segment: &mut Vec<u8>, header: &EntryHeader, key: &[u8], value: &[u8]) {
    let start = segment.len();
    segment.resize(start + entry_bytes(key.len(), value.len(), 0), 0);
    write_entry(&mut segment[start..], header, &[], key, value);
}

/// As a side segment has it from each piece that it adopted.
fn append_safe_version(segment: &mut Vec<u8>, version: u64) {
    let header = EntryHeader {
        entry_type: EntryType::SafeVersion,
        flags: 0,
        timestamp: 1,
        table_id: 0,
        version,
    };
    append_header(segment, &header, b"", b"");
}

fn opening(segment_id: u64) -> Vec<u8> {
    let mut segment = Vec::new();
    append(
        &mut segment,
        EntryType::SegmentHeader,
        FLAG_MORE,
        1,
        b"",
        &[0; 16],
    );
    let ids: Vec<u8> = (1..=segment_id).flat_map(u64::to_le_bytes).collect();
    append(&mut segment, EntryType::LogDigest, FLAG_MORE, 0, b"", &ids);
    let mut stats = [0u8; 32];
    stats[0] = 7;
    stats[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
    stats[16] = 100;
    stats[24] = 3;
    append(
        &mut segment,
        EntryType::TableStats,
        FLAG_MORE,
        0,
        b"",
        &stats,
    );
    append(&mut segment, EntryType::SafeVersion, 0, 0, b"", b"");
    segment
}

fn random_segment(random: &mut Random, segment_id: u64, entries: u64) -> Vec<u8> {
    let mut segment = opening(segment_id);
    for _ in 0..entries {
        if random.below(16) == 0 {
            append_safe_version(&mut segment, random.below(1 << 40));
        }
        let table_id = 1 + random.below(3);
        let key = random.next().to_le_bytes();
        let key = &key[..1 + random.below(8) as usize];
        let value = vec![random.next() as u8; random.below(300) as usize];
        if random.below(4) == 0 {
            append(
                &mut segment,
                EntryType::Object,
                FLAG_MORE,
                table_id,
                key,
                &value,
            );
            append(
                &mut segment,
                EntryType::Tombstone,
                0,
                table_id,
                key,
                &[1; 8],
            );
        } else {
            append(&mut segment, EntryType::Object, 0, table_id, key, &value);
        }
    }
    segment
}

/// The specification, as plainly as it can be said.
fn naive(segment: &[u8], segment_id: u64, partition: &Partition) -> Vec<u8> {
    let mut piece = Vec::new();
    let mut safe_versions = Vec::new();
    for item in EntryIterator::new(segment) {
        let (offset, entry) = item.expect("parses");
        let wanted = match entry.entry_type() {
            EntryType::SafeVersion => {
                safe_versions.push((entry.version(), entry.bytes()));
                false
            }
            EntryType::Object | EntryType::Tombstone => partition.tablets.iter().any(|tablet| {
                let slot = slot(key_hash(entry.table_id(), entry.key()));
                tablet.table_id == entry.table_id()
                    && (tablet.start_slot..=tablet.end_slot).contains(&slot)
                    && segment_id >= tablet.ctime_segment_id
            }),
            _ => false,
        };
        if wanted {
            piece.extend_from_slice(&segment[offset..offset + entry.total_bytes()]);
        }
    }
    let greatest = safe_versions.iter().max().expect("the opening has one");
    [greatest.1, &piece].concat()
}

fn check_piece(piece: &[u8], expected: &[u8]) {
    let (header, bytes) = piece.split_at(PIECE_HEADER_BYTES);
    assert_eq!(header[..4], (bytes.len() as u32).to_le_bytes());
    assert_eq!(
        header[4..],
        PieceChecksum::of(bytes).expect("parses").to_le_bytes()
    );
    assert!(
        bytes == expected,
        "{} B instead of {}",
        bytes.len(),
        expected.len()
    );
}

fn plan() -> Vec<Partition> {
    const HALF: u32 = 1 << 31;
    vec![
        partition(
            10,
            vec![tablet(1, 0, HALF - 1, 0), tablet(2, 1000, u32::MAX, 2)],
        ),
        partition(11, vec![tablet(1, HALF, u32::MAX - 5, 0)]),
        partition(12, vec![tablet(3, 0, u32::MAX, 3)]),
    ]
}

#[test]
fn pieces_equal_a_naive_filter_from_memory_and_from_disk() {
    let seed = seed("pieces_equal_a_naive_filter");
    let mut random = Random::new(seed);
    let directory = Directory::new();
    let segments: Vec<Vec<u8>> = (1..=4)
        .map(|segment_id| random_segment(&mut random, segment_id, 3000))
        .collect();
    let mut disk = Disk::open(&directory, options(&directory, 16, true));
    for (segment, segment_id) in segments.iter().zip(1..) {
        let flags = if segment_id < 4 { OPEN | CLOSE } else { OPEN };
        let status = disk.write(5, segment_id, 1, 0, segment, Some(segment), flags);
        assert_eq!(status, Status::Ok);
    }
    for life in 0..2 {
        if life == 1 {
            drop(disk);
            disk = Disk::open(&directory, options(&directory, 16, true));
        }
        let started = disk.storage.start_partitions(1, 5, &plan(), &[1, 2, 3, 4]);
        started.expect("starts");
        for (segment, segment_id) in segments.iter().zip(1..) {
            for one in plan() {
                let piece = disk.piece(1, segment_id, one.partition_id).expect("splits");
                check_piece(&piece, &naive(segment, segment_id, &one));
            }
        }
        assert_eq!(disk.piece(1, 5, 10), Err(Status::ReplicaUnknown));
        assert_eq!(disk.piece(1, 1, 13), Err(Status::InvalidArgument));
        disk.storage.end_recovery(1);
        assert_eq!(disk.piece(1, 1, 10), Err(Status::RecoveryUnknown));
        let digests = disk.storage.digests(5);
        assert_eq!(digests.len(), 1, "only the head is open");
        assert_eq!((digests[0].segment_id, digests[0].epoch), (4, 1));
        assert_eq!(digests[0].segment_ids, [1, 2, 3, 4]);
        let stats = digests[0].tablet_stats[0];
        assert_eq!(
            (stats.table_id, stats.end_slot, stats.bytes, stats.records),
            (7, u32::MAX, 100, 3)
        );
    }
}

/// Thirty segments on a disk whose cache has this limit, and the recovery of their master begun.
fn thirty_segments(directory: &Directory, piece_cache_bytes: usize) -> (Disk, Vec<Vec<u8>>) {
    let mut random = Random::new(14);
    let mut options = options(directory, 40, false);
    options.piece_cache_bytes = piece_cache_bytes;
    let mut disk = Disk::open(directory, options);
    let segments: Vec<Vec<u8>> = (1..=30)
        .map(|segment_id| random_segment(&mut random, segment_id, 50))
        .collect();
    for (segment, segment_id) in segments.iter().zip(1..) {
        let status = disk.write(5, segment_id, 1, 0, segment, Some(segment), OPEN);
        assert_eq!(status, Status::Ok);
    }
    let ids: Vec<u64> = (1..=30).collect();
    let started = disk.storage.start_partitions(1, 5, &plan(), &ids);
    started.expect("starts");
    (disk, segments)
}

/// One partition after the other, as masters that take them in turn do; says how many splits it
/// took.
fn fetch_in_turn(disk: &mut Disk, segments: &[Vec<u8>]) -> f64 {
    let before = disk.storage.stats()["segmentSplits"];
    for one in plan() {
        for segment_id in (1..=segments.len()).rev() {
            let (segment, segment_id) = (&segments[segment_id - 1], segment_id as u64);
            let piece = disk.piece(1, segment_id, one.partition_id).expect("splits");
            check_piece(&piece, &naive(segment, segment_id, &one));
        }
    }
    disk.storage.stats()["segmentSplits"] - before
}

#[test]
fn a_cache_smaller_than_one_segment_serves_everything() {
    let directory = Directory::new();
    let (mut disk, segments) = thirty_segments(&directory, 1);
    fetch_in_turn(&mut disk, &segments);
    assert!(disk.storage.stats()["pieceCacheBytes"] <= 1.0);
}

#[test]
fn a_segment_is_split_once_for_all_turns_if_the_cache_can_hold_it() {
    let directory = Directory::new();
    let (mut disk, segments) = thirty_segments(&directory, 1 << 30);
    disk.poll("all is split ahead", |stats| stats["segmentSplits"] == 30.0);
    assert_eq!(fetch_in_turn(&mut disk, &segments), 0.0);
    assert_eq!(
        disk.storage.stats()["pieceCacheBytes"],
        0.0,
        "all were handed out"
    );
    // Answers were lost, or a partition begins again elsewhere.
    assert!(fetch_in_turn(&mut disk, &segments) >= 30.0);
    let stats = disk.storage.stats();
    assert_eq!(
        (stats["pieceCacheBytes"], stats["segmentEvictions"]),
        (0.0, 0.0)
    );
}

#[test]
fn a_cache_of_half_the_log_saves_splits_of_later_turns() {
    let directory = Directory::new();
    let whole: usize = {
        let directory = Directory::new();
        let (disk, _) = thirty_segments(&directory, 1 << 30);
        disk.poll("all is split ahead", |stats| stats["segmentSplits"] == 30.0);
        disk.storage.stats()["pieceCacheBytes"] as usize
    };
    let (mut disk, segments) = thirty_segments(&directory, whole / 2);
    fetch_in_turn(&mut disk, &segments);
    let stats = disk.storage.stats();
    // Three turns; without a cache, or with one that always drops what comes next, it would be 90.
    assert!(stats["segmentSplits"] <= 65.0, "{}", stats["segmentSplits"]);
    assert!(stats["pieceCacheBytes"] <= (whole / 2) as f64);
}

#[test]
fn a_younger_plan_of_the_same_master_replaces_the_older() {
    let directory = Directory::new();
    let mut disk = Disk::open(&directory, options(&directory, 4, false));
    let segment = random_segment(&mut Random::new(12), 1, 50);
    assert_eq!(
        disk.write(5, 1, 1, 0, &segment, Some(&segment), OPEN),
        Status::Ok
    );
    disk.storage
        .start_partitions(1, 5, &plan(), &[1])
        .expect("starts");
    disk.storage
        .start_partitions(2, 5, &plan()[..1], &[1])
        .expect("starts");
    assert_eq!(disk.piece(1, 1, 10), Err(Status::RecoveryUnknown));
    check_piece(
        &disk.piece(2, 1, 10).expect("splits"),
        &naive(&segment, 1, &plan()[0]),
    );
    let overlapping = [plan(), plan()].concat();
    let refused = disk.storage.start_partitions(3, 5, &overlapping, &[1]);
    assert_eq!(refused, Err(Status::InvalidArgument));
}

#[test]
fn damage_never_leaves_the_backup() {
    let directory = Directory::new();
    let mut disk = Disk::open(&directory, options(&directory, 4, false));
    let mut segment = random_segment(&mut Random::new(13), 1, 50);
    // A sound certificate over a damaged entry: the master's memory was bad.
    let at = segment.len() - 20;
    segment[at] ^= 1;
    assert_eq!(
        disk.write(5, 1, 1, 0, &segment, Some(&segment), OPEN | CLOSE),
        Status::Ok
    );
    disk.storage
        .start_partitions(1, 5, &plan(), &[1, 9])
        .expect("starts");
    assert_eq!(disk.piece(1, 1, 10), Err(Status::ChecksumMismatch));
    assert_eq!(disk.piece(1, 9, 10), Err(Status::ReplicaUnknown));
    disk.faults.fail_reads(true);
    disk.storage
        .start_partitions(2, 5, &plan(), &[1])
        .expect("starts");
    assert_eq!(disk.piece(2, 1, 10), Err(Status::DiskError));
}

#[test]
fn a_replica_that_was_not_named_is_served_on_demand() {
    let directory = Directory::new();
    let mut disk = Disk::open(&directory, options(&directory, 4, false));
    let segment = random_segment(&mut Random::new(17), 3, 50);
    let opened = disk.write(5, 3, 1, 0, &segment, Some(&segment), OPEN | CLOSE);
    assert_eq!(opened, Status::Ok);
    // The backup that was to read it first is dead, or its copy is bad.
    disk.storage
        .start_partitions(1, 5, &plan(), &[])
        .expect("starts");
    for partition in plan() {
        let piece = disk.piece(1, 3, partition.partition_id).expect("served");
        check_piece(&piece, &naive(&segment, 3, &partition));
    }
    assert_eq!(disk.piece(1, 4, 10), Err(Status::ReplicaUnknown));
}

#[test]
fn frames_are_not_prepared_while_a_recovery_is_served() {
    let directory = Directory::new();
    let mut disk = Disk::open(&directory, options(&directory, 16, false));
    disk.settle();
    disk.storage
        .start_partitions(1, 5, &plan(), &[])
        .expect("starts");
    for id in 1..=4 {
        let segment = random_segment(&mut Random::new(id), id, 50);
        let flags = OPEN | CLOSE;
        let written = disk.write(6, id, 1, 0, &segment, Some(&segment), flags);
        assert_eq!(written, Status::Ok, "a frame is there without");
    }
    let stats = disk.storage.stats();
    assert_eq!(stats["framesCreated"], 4.0, "none beyond those in use");
    assert_eq!(stats["framesPrewriting"], 0.0);
    disk.storage.end_recovery(1);
    disk.poll("the stock is filled again", |stats| {
        stats["framesCreated"] == 6.0 && stats["framesPrewriting"] == 0.0
    });
}
