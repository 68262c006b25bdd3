//! LZ4 images in shared frames: they save whole frames, survive restarts, and nothing that was
//! freed comes back. `backup_images_damage.rs` has what damage costs.

mod backup_support;

use backup_support::images::{MIB, close_one, settle_images, stat, three_images};
use backup_support::{
    CLOSE, Directory, Disk, OPEN, Random, mixed_bytes, options, partition, seed, tablet, write_body,
};
use parking_lot::{Condvar, Mutex};
use rekindle_core::backup::frame_file::{Faults, Medium};
use rekindle_core::status::Status;
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

#[test]
fn images_save_whole_frames() {
    // (share of noise in sixteenths, images, frames that they need)
    for (noise, count, frames) in [(6, 6, 3), (9, 8, 5), (0, 8, 1)] {
        let directory = Directory::new();
        let mut random = Random::new(11);
        let mut disk = Disk::open(&directory, options(&directory, 16, true));
        let all: Vec<Vec<u8>> = (0..count)
            .map(|_| mixed_bytes(&mut random, 8 * MIB, noise))
            .collect();
        for (index, bytes) in all.iter().enumerate() {
            close_one(&mut disk, index as u64 + 1, bytes);
            settle_images(&disk, index + 1);
        }
        assert_eq!(stat(&disk, "compressedReplicas"), count as f64);
        assert_eq!(
            disk.storage.load().free_frames,
            16 - frames,
            "noise {noise}"
        );
        drop(disk);
        let disk = Disk::open(&directory, options(&directory, 16, true));
        assert_eq!(
            disk.storage.load().free_frames,
            16 - frames,
            "noise {noise}"
        );
        for (index, bytes) in all.iter().enumerate() {
            assert!(disk.read(1, index as u64 + 1).expect("whole") == *bytes);
        }
        let ids: Vec<u64> = (1..=count as u64).collect();
        disk.free(1, &ids).expect("frees");
        assert_eq!(disk.storage.load().free_frames, 16, "all frames are back");
        assert_eq!(stat(&disk, "framesShared"), 0.0);
    }
}

#[test]
fn what_is_closed_while_a_recovery_is_served_is_compressed_afterwards() {
    let directory = Directory::new();
    let mut random = Random::new(12);
    let mut disk = Disk::open(&directory, options(&directory, 16, true));
    let all: Vec<Vec<u8>> = (0..6).map(|_| mixed_bytes(&mut random, MIB, 0)).collect();
    let whole = partition(1, vec![tablet(7, 0, u32::MAX, 0)]);
    let begun = disk.storage.start_partitions(50, 9, &[whole], &[]);
    assert_eq!(begun, Ok(()));
    for (index, bytes) in all.iter().enumerate() {
        close_one(&mut disk, index as u64 + 1, bytes);
    }
    let decided = ["compressedReplicas", "compressionSkipped"];
    assert_eq!(decided.map(|name| stat(&disk, name)), [0.0, 0.0]);
    disk.free(1, &[2]).expect("frees");
    disk.storage.end_recovery(50);
    settle_images(&disk, all.len());
    assert_eq!(
        decided.map(|name| stat(&disk, name)),
        [5.0, 1.0],
        "one was freed"
    );
    for (index, bytes) in all.iter().enumerate().filter(|(index, _)| *index != 1) {
        assert!(disk.read(1, index as u64 + 1).expect("whole") == *bytes);
    }
}

#[test]
fn a_freed_image_stays_freed_and_its_units_are_used_again() {
    let directory = Directory::new();
    let (mut disk, all) = three_images(&directory);
    let shared = stat(&disk, "framesShared");
    disk.free(1, &[2]).expect("frees");
    close_one(&mut disk, 4, &all[1]);
    settle_images(&disk, 4);
    assert_eq!(stat(&disk, "compressedReplicas"), 4.0);
    assert_eq!(stat(&disk, "framesShared"), shared, "the hole was filled");
    drop(disk);
    let disk = Disk::open(&directory, options(&directory, 8, true));
    let found: Vec<u64> = disk
        .storage
        .replicas()
        .iter()
        .map(|one| one.segment_id)
        .collect();
    assert_eq!(found, [1, 3, 4]);
    assert!(disk.read(1, 4).expect("whole") == all[1]);
    disk.free(1, &[1, 3, 4]).expect("frees");
    assert_eq!(disk.storage.load().free_frames, 8);
    drop(disk);
    let disk = Disk::open(&directory, options(&directory, 8, true));
    assert!(disk.storage.replicas().is_empty());
    assert_eq!(disk.storage.load().free_frames, 8);
}

#[test]
fn compression_leaves_the_last_frames_to_new_replicas() {
    let directory = Directory::new();
    let mut random = Random::new(13);
    let mut disk = Disk::open(&directory, options(&directory, 4, true));
    let bytes = mixed_bytes(&mut random, 2 * MIB, 4);
    close_one(&mut disk, 1, &bytes);
    settle_images(&disk, 1);
    assert_eq!(
        stat(&disk, "compressedReplicas"),
        1.0,
        "three frames were free"
    );
    // Open replicas take all but one frame.
    for id in 2..=3 {
        assert_eq!(
            disk.write(1, id, 1, 0, b"open", Some(b"open"), OPEN),
            Status::Ok
        );
    }
    assert_eq!(disk.storage.load().free_frames, 1);
    let (large, small) = (mixed_bytes(&mut random, 8 * MIB, 12), bytes);
    close_one(&mut disk, 4, &small);
    settle_images(&disk, 2);
    assert_eq!(
        stat(&disk, "compressedReplicas"),
        2.0,
        "there was room in a shared frame"
    );
    close_one(&mut disk, 5, &large);
    settle_images(&disk, 3);
    assert_eq!(stat(&disk, "compressionSkipped"), 1.0);
    assert!(disk.read(1, 4).as_ref() == Ok(&small) && disk.read(1, 5).as_ref() == Ok(&large));
}

/// Holds the compressor's writes until it is opened.
#[derive(Default)]
struct Gate {
    open: Mutex<bool>,
    changed: Condvar,
}

impl Medium for Gate {
    fn write(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        if std::thread::current().name() == Some("backup-lz4") {
            let mut open = self.open.lock();
            self.changed.wait_while(&mut open, |open| !*open);
        }
        file.write_all_at(bytes, offset)
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        file.sync_data()
    }
}

#[test]
fn closes_that_outrun_the_compressor_stay_raw() {
    let directory = Directory::new();
    let gate = Arc::new(Gate::default());
    let faults = Faults::over(Arc::clone(&gate) as Arc<dyn Medium>);
    let mut disk = Disk::with_faults(options(&directory, 30, true), faults);
    let bytes = vec![5u8; 100_000];
    for id in 1..=20 {
        close_one(&mut disk, id, &bytes);
    }
    // One is being written and at most four wait, whatever comes.
    assert!(stat(&disk, "compressionSkipped") >= 15.0);
    *gate.open.lock() = true;
    gate.changed.notify_all();
    settle_images(&disk, 20);
    for id in 1..=20 {
        assert!(disk.read(1, id).as_ref() == Ok(&bytes));
    }
    let compressed = stat(&disk, "compressedReplicas");
    assert!((1.0..=5.0).contains(&compressed), "{compressed}");
}

/// What a master knows.
#[derive(Default)]
struct Expected {
    bytes: Vec<u8>,
    closed: bool,
}

const MODEL_FRAMES: u32 = 14;

fn check_model(disk: &Disk, expected: &BTreeMap<u64, Expected>, context: &str) {
    let replicas = disk.storage.replicas();
    let found: Vec<u64> = replicas.iter().map(|one| one.segment_id).collect();
    let wanted: Vec<u64> = expected.keys().copied().collect();
    assert_eq!(found, wanted, "{context}");
    for replica in replicas {
        let wanted = &expected[&replica.segment_id];
        assert_eq!(replica.closed, wanted.closed, "{context}");
        let bytes = disk.read(1, replica.segment_id);
        assert!(
            bytes.as_ref() == Ok(&wanted.bytes),
            "{context}: {}",
            replica.segment_id
        );
    }
    let stats = disk.storage.stats();
    for name in [
        "framesBad",
        "imagesBadAtRestart",
        "readErrors",
        "diskErrors",
    ] {
        assert_eq!(stats[name], 0.0, "{context}: {name}");
    }
    assert!(
        stats["framesShared"] <= 2.0 * expected.len() as f64,
        "{context}"
    );
}

/// Appends to `id` or opens it; false if there is no frame.
fn grow(disk: &mut Disk, random: &mut Random, id: u64, replica: &mut Expected) -> bool {
    let offset = replica.bytes.len();
    let sizes = [100, 5000, 300_000, 2 * MIB, 8 * MIB];
    let limit = sizes[random.below(5) as usize];
    let size = (1 + random.below(limit as u64) as usize).min(8 * MIB - offset);
    let noise = random.below(17) as usize;
    let fresh = mixed_bytes(random, size, noise);
    let mut whole = replica.bytes.clone();
    whole.extend_from_slice(&fresh);
    let closes = random.below(2) == 0;
    let flags = if offset == 0 { OPEN } else { 0 } | if closes { CLOSE } else { 0 };
    let body = write_body(1, id, 1, offset, &fresh, Some(&whole), flags);
    match disk.raw(&body) {
        Status::Ok => {
            (replica.bytes, replica.closed) = (whole, closes);
            true
        }
        Status::NoFreeFrame => false,
        other => panic!("refused with {other}"),
    }
}

#[test]
fn a_backup_with_images_is_a_plain_map() {
    let seed = seed("a_backup_with_images_is_a_plain_map");
    let mut random = Random::new(seed);
    let directory = Directory::new();
    let mut expected: BTreeMap<u64, Expected> = BTreeMap::new();
    let mut next_id = 1;
    for life in 0..6 {
        let context = format!("seed {seed}, life {life}");
        let compress = random.below(5) > 0;
        let mut disk = Disk::open(&directory, options(&directory, MODEL_FRAMES, compress));
        check_model(&disk, &expected, &context);
        let first = next_id;
        for _ in 0..30 {
            let choice = random.below(10);
            let open = expected.range(first..).find(|(_, one)| !one.closed);
            match open.map(|(id, _)| *id) {
                Some(id) if choice < 4 => {
                    let replica = expected.get_mut(&id).expect("found");
                    assert!(
                        grow(&mut disk, &mut random, id, replica),
                        "it has its frame"
                    );
                }
                _ if choice < 8 => {
                    let mut replica = Expected::default();
                    if grow(&mut disk, &mut random, next_id, &mut replica) {
                        expected.insert(next_id, replica);
                    }
                    next_id += 1;
                }
                _ => free_some(&disk, &mut random, &mut expected),
            }
        }
        check_model(&disk, &expected, &context);
    }
    let disk = Disk::open(&directory, options(&directory, MODEL_FRAMES, true));
    let ids: Vec<u64> = expected.keys().copied().collect();
    disk.free(1, &ids).expect("frees");
    disk.poll("every frame is free", |stats| {
        stats["framesFree"] == f64::from(MODEL_FRAMES) && stats["framesShared"] == 0.0
    });
}

fn free_some(disk: &Disk, random: &mut Random, expected: &mut BTreeMap<u64, Expected>) {
    let ids: Vec<u64> = expected.keys().copied().collect();
    let chosen: Vec<u64> = ids.into_iter().filter(|_| random.below(4) == 0).collect();
    disk.free(1, &chosen).expect("frees");
    chosen.iter().for_each(|id| drop(expected.remove(id)));
}

/// A reader that has begun gets its bytes, or hears that they are gone; never an error.
#[test]
fn frees_switches_and_reads_do_not_cross() {
    let directory = Directory::new();
    let mut random = Random::new(17);
    let disk = Disk::open(&directory, options(&directory, 12, true));
    let all: Vec<Vec<u8>> = (0..40)
        .map(|_| mixed_bytes(&mut random, 3 * MIB, 8))
        .collect();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                for (index, bytes) in all.iter().enumerate() {
                    match disk.storage.read(1, index as u64 + 1) {
                        Ok(read) => assert!(read == *bytes),
                        Err(status) => assert_eq!(status, Status::ReplicaUnknown),
                    }
                }
            }
        });
        for (index, bytes) in all.iter().enumerate() {
            let id = index as u64 + 1;
            let body = write_body(1, id, 1, 0, bytes, Some(bytes), OPEN | CLOSE);
            disk.storage.write(&body, id).expect("a frame is free");
            assert_eq!(disk.answer(id), Status::Ok);
            // Every other image is on its way when its replica or its neighbour goes.
            if id.is_multiple_of(2) {
                settle_images(&disk, index + 1);
            }
            if id > 4 {
                disk.free(1, &[id - 4]).expect("frees");
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(stat(&disk, "readErrors"), 0.0);
    assert!(stat(&disk, "compressedReplicas") > 0.0);
}
