//! Disks that fail, fill up or rot: what is lost is said, what was acknowledged stays readable, a
//! free never claims too much, and everything is answered, even after a panic.

mod backup_support;

use backup_support::{
    CLOSE, Completed, Directory, Disk, OPEN, PRIMARY, Random, mixed_bytes, options, random_bytes,
};
use rekindle_core::backup::frame::{DATA_OFFSET, FRAME_BYTES};
use rekindle_core::backup::frame_file::{Faults, Medium};
use rekindle_core::backup::{BackupOptions, ReplicaReport};
use rekindle_core::status::Status;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

const WHOLE: u32 = OPEN | CLOSE | PRIMARY;

fn scrubbing(directory: &Directory, compress: bool) -> BackupOptions {
    let mut options = options(directory, 6, compress);
    options.scrub_bytes_per_second = 1 << 30;
    options
}

fn report(disk: &Disk, segment_id: u64) -> Option<ReplicaReport> {
    let replicas = disk.storage.replicas();
    replicas
        .into_iter()
        .find(|one| one.segment_id == segment_id)
}

#[test]
fn a_failed_write_costs_the_replica_and_its_frame_only() {
    let directory = Directory::new();
    let mut disk = Disk::open(&directory, options(&directory, 3, false));
    disk.settle();
    let bytes = random_bytes(&mut Random::new(5), 9000);
    for segment_id in [1, 2] {
        let opened = disk.write(1, segment_id, 1, 0, &bytes, Some(&bytes), OPEN);
        assert_eq!(opened, Status::Ok);
    }
    let longer = [&bytes[..], b"more"].concat();
    disk.faults.fail_write_after(0, false);
    let failed = disk.write(1, 2, 1, 9000, b"more", Some(&longer), 0);
    assert_eq!(failed, Status::DiskError);
    let again = disk.write(1, 2, 1, 9000, b"more", Some(&longer), 0);
    assert_eq!(again, Status::DiskError, "it takes no more writes");
    let kept = disk
        .read(1, 2)
        .expect("what was acknowledged stays readable");
    assert!(kept.starts_with(&bytes));
    assert_eq!(disk.storage.stats()["framesBad"], 1.0);
    assert!(!disk.storage.load().disk_failed);
    assert_eq!(
        disk.write(1, 1, 1, 9000, b"more", Some(&longer), 0),
        Status::Ok
    );
    assert!(disk.read(1, 1).expect("reads") == longer);
    assert_eq!(
        disk.write(1, 3, 1, 0, &bytes, Some(&bytes), OPEN),
        Status::Ok
    );
    assert_eq!(
        disk.storage.load().free_frames,
        0,
        "the bad frame is not used again"
    );
}

#[test]
fn a_free_never_claims_that_bytes_are_gone_that_a_restart_may_find() {
    let directory = Directory::new();
    let bytes = random_bytes(&mut Random::new(6), 9000);
    {
        let mut disk = Disk::open(&directory, options(&directory, 4, false));
        disk.settle();
        assert_eq!(
            disk.write(1, 1, 1, 0, &bytes, Some(&bytes), OPEN),
            Status::Ok
        );
        disk.faults.fail_write_after(0, false);
        assert_eq!(
            disk.write(1, 1, 1, 9000, &[], Some(&bytes), CLOSE),
            Status::DiskError
        );
        assert_eq!(disk.free(1, &[1]), Err(Status::DiskError));
        assert_eq!(
            disk.free(1, &[1]),
            Err(Status::DiskError),
            "nor when asked again"
        );
        assert!(report(&disk, 1).is_none(), "but it is forgotten");
        // Written anew in another frame, and freed: the old bytes are still there.
        assert_eq!(
            disk.write(1, 1, 2, 0, &bytes, Some(&bytes), OPEN),
            Status::Ok
        );
        assert_eq!(disk.free(1, &[1]), Err(Status::DiskError));
        assert_eq!(disk.free(1, &[7]), Ok(()));
    }
    let disk = Disk::open(&directory, options(&directory, 4, false));
    assert_eq!(report(&disk, 1).expect("the old bytes come back").epoch, 1);
    assert_eq!(
        disk.free(1, &[1]),
        Ok(()),
        "a disk that works again frees it"
    );
}

#[test]
fn a_failed_flush_takes_the_whole_disk_out_and_closed_replicas_stay_readable() {
    let directory = Directory::new();
    let mut disk = Disk::open(&directory, options(&directory, 6, false));
    disk.settle();
    let bytes = random_bytes(&mut Random::new(7), 50_000);
    assert_eq!(
        disk.write(1, 1, 1, 0, &bytes, Some(&bytes), WHOLE),
        Status::Ok
    );
    for segment_id in [2, 3] {
        let opened = disk.write(1, segment_id, 1, 0, &bytes, Some(&bytes), OPEN);
        assert_eq!(opened, Status::Ok);
    }
    // The frames that are prepared for these are flushed as well.
    disk.settle();
    disk.faults.fail_sync_after(0, false);
    let longer = [&bytes[..], b"more"].concat();
    let failed = disk.write(1, 2, 1, 50_000, b"more", Some(&longer), 0);
    assert_eq!(failed, Status::DiskError);
    disk.poll("the disk has failed", |stats| stats["diskFailed"] == 1.0);
    let load = disk.storage.load();
    assert!(load.disk_failed && load.free_frames == 0);
    assert_eq!(
        disk.write(1, 4, 1, 0, &bytes, Some(&bytes), OPEN),
        Status::NoFreeFrame
    );
    let other = disk.write(1, 3, 1, 50_000, b"more", Some(&longer), 0);
    assert_eq!(other, Status::DiskError, "no replica takes writes any more");
    for segment_id in [1, 3] {
        assert!(disk.read(1, segment_id).expect("readable") == bytes);
    }
    let done = Completed::new();
    disk.storage.fence(1, done.completion());
    assert_eq!(
        done.wait(),
        Ok(()),
        "nobody can write here: the fence holds"
    );
    assert_eq!(disk.free(1, &[1]), Err(Status::DiskError));
}

#[test]
fn the_third_bad_frame_takes_the_disk_out() {
    let directory = Directory::new();
    let mut disk = Disk::open(&directory, options(&directory, 8, false));
    disk.settle();
    let bytes = random_bytes(&mut Random::new(8), 5000);
    for segment_id in 1..=3 {
        assert!(!disk.storage.load().disk_failed);
        disk.settle();
        disk.faults.fail_write_after(0, false);
        let failed = disk.write(1, segment_id, 1, 0, &bytes, Some(&bytes), OPEN);
        assert_eq!(failed, Status::DiskError);
    }
    disk.poll("the disk has failed", |stats| stats["diskFailed"] == 1.0);
}

#[derive(Default)]
struct FullDisk {
    full: AtomicBool,
    refused: AtomicUsize,
}

impl Medium for FullDisk {
    fn write(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        if self.full.load(Ordering::SeqCst) {
            self.refused.fetch_add(1, Ordering::SeqCst);
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        file.write_all_at(bytes, offset)
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        file.sync_data()
    }
}

#[test]
fn a_full_disk_is_no_failed_disk() {
    let directory = Directory::new();
    let medium = Arc::new(FullDisk::default());
    let faults = Faults::over(Arc::clone(&medium) as Arc<dyn Medium>);
    let mut disk = Disk::with_faults(options(&directory, 12, false), faults);
    disk.settle();
    let bytes = random_bytes(&mut Random::new(9), 5000);
    assert_eq!(
        disk.write(1, 9, 1, 0, &bytes, Some(&bytes), OPEN),
        Status::Ok
    );
    medium.full.store(true, Ordering::SeqCst);
    let mut refused = 0;
    for segment_id in 1..=8 {
        match disk.write(1, segment_id, 1, 0, &bytes, Some(&bytes), OPEN) {
            Status::DiskError => {}
            Status::NoFreeFrame => refused += 1,
            other => panic!("a full disk answered {other:?}"),
        }
    }
    assert!(
        refused > 0,
        "frames that may still be created do not count while it is full"
    );
    assert!(!disk.storage.load().disk_failed);
    // Whether there is room again is tried without a replica, which it would cost.
    let before = medium.refused.load(Ordering::SeqCst);
    disk.poll("the growth is tried again", |_| {
        medium.refused.load(Ordering::SeqCst) > before
    });
    assert_eq!(
        disk.write(1, 10, 1, 0, &bytes, Some(&bytes), OPEN),
        Status::NoFreeFrame
    );
    medium.full.store(false, Ordering::SeqCst);
    assert_eq!(
        disk.write(1, 9, 1, 5000, &[], Some(&bytes), CLOSE),
        Status::Ok
    );
    disk.poll("the disk grows again", |stats| stats["framesFree"] > 2.0);
    assert_eq!(
        disk.write(1, 10, 1, 0, &bytes, Some(&bytes), OPEN),
        Status::Ok
    );
}

/// Panics in the middle of a write, as a broken invariant would.
struct PanickingMedium(AtomicBool);

impl Medium for PanickingMedium {
    fn write(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        file.write_all_at(bytes, offset)
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        assert!(
            !self.0.load(Ordering::SeqCst),
            "an invariant that a test breaks"
        );
        file.sync_data()
    }
}

#[test]
fn a_panic_of_the_io_thread_leaves_nothing_unanswered() {
    let directory = Directory::new();
    let medium = Arc::new(PanickingMedium(AtomicBool::new(false)));
    let faults = Faults::over(Arc::clone(&medium) as Arc<dyn Medium>);
    let mut disk = Disk::with_faults(options(&directory, 6, false), faults);
    disk.settle();
    let bytes = random_bytes(&mut Random::new(10), 5000);
    for segment_id in [1, 2] {
        let closed = disk.write(1, segment_id, 1, 0, &bytes, Some(&bytes), WHOLE);
        assert_eq!(closed, Status::Ok);
    }
    medium.0.store(true, Ordering::SeqCst);
    let body = backup_support::write_body(1, 3, 1, 0, &bytes, Some(&bytes), OPEN);
    let token = disk.submit(&body).expect("taken");
    let (freed, fenced) = (Completed::new(), Completed::new());
    disk.storage.free(1, &[1], freed.completion());
    disk.storage.fence(2, fenced.completion());
    assert_eq!(disk.answer(token), Status::Internal);
    assert_eq!(freed.wait(), Err(Status::Internal));
    assert_eq!(fenced.wait(), Err(Status::Internal));
    assert_eq!(disk.raw(&body), Status::Internal, "later calls are refused");
    assert!(
        disk.storage.load().disk_failed,
        "nobody places replicas here"
    );
    assert!(disk.read(1, 2).expect("still readable") == bytes);
    assert_eq!(disk.storage.stats()["panics"], 1.0);
}

fn corrupt(directory: &Directory, offset: u64) {
    let path = directory.path().join("frames");
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .expect("the frame file");
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).expect("reads");
    byte[0] ^= 1;
    file.write_all_at(&byte, offset).expect("writes");
    file.sync_data().expect("syncs");
}

/// The frame whose data area begins like `bytes`.
fn frame_with(directory: &Directory, bytes: &[u8]) -> u64 {
    let file = File::open(directory.path().join("frames")).expect("the frame file");
    let mut begin = vec![0; 4096];
    let frames = (0..8u64).find(|frame| {
        let at = frame * FRAME_BYTES as u64 + DATA_OFFSET as u64;
        file.read_exact_at(&mut begin, at).is_ok() && begin == bytes[..4096]
    });
    frames.expect("its bytes are on disk")
}

fn await_pass(disk: &Disk) {
    let passes = disk.storage.stats()["scrubPasses"];
    disk.poll("two passes", |stats| stats["scrubPasses"] >= passes + 2.0);
}

#[test]
fn the_scrub_finds_a_flipped_bit_in_data_tail_or_slot() {
    for (case, in_frame) in [DATA_OFFSET as u64 + 70_000, 4096 + 8, 8192 + 4096 + 8, 44]
        .into_iter()
        .enumerate()
    {
        let directory = Directory::new();
        let mut disk = Disk::open(&directory, scrubbing(&directory, false));
        let mut random = Random::new(11);
        let bytes: Vec<_> = (0..2).map(|_| random_bytes(&mut random, 100_000)).collect();
        for (index, bytes) in bytes.iter().enumerate() {
            let closed = disk.write(1, index as u64 + 1, 1, 0, bytes, Some(bytes), WHOLE);
            assert_eq!(closed, Status::Ok);
        }
        await_pass(&disk);
        assert_eq!(
            disk.storage.stats()["rotFound"],
            0.0,
            "case {case}: nothing has rotted"
        );
        assert!(disk.storage.stats()["scrubbedBytes"] > 196_000.0);
        let frame = frame_with(&directory, &bytes[0]);
        corrupt(&directory, frame * FRAME_BYTES as u64 + in_frame);
        await_pass(&disk);
        let stats = disk.storage.stats();
        // Of the two slots of the frame one is the newest: a flipped bit in the other is no rot.
        let found = report(&disk, 1).expect("listed").rotten;
        assert_eq!(stats["rotFound"], f64::from(u8::from(found)), "case {case}");
        assert!(found || case > 0, "case {case}: data always counts");
        assert!(!report(&disk, 2).expect("listed").rotten, "case {case}");
        if found {
            assert_eq!(disk.free(1, &[1]), Ok(()), "case {case}");
            disk.poll("its frame is not used again", |stats| {
                stats["framesBad"] == 1.0
            });
        }
    }
}

#[test]
fn rotten_images_are_found_and_their_units_are_not_used_again() {
    let directory = Directory::new();
    let mut disk = Disk::open(&directory, scrubbing(&directory, true));
    let mut random = Random::new(12);
    let bytes: Vec<_> = (0..2)
        .map(|_| mixed_bytes(&mut random, 3 << 20, 4))
        .collect();
    for (index, bytes) in bytes.iter().enumerate() {
        let closed = disk.write(1, index as u64 + 1, 1, 0, bytes, Some(bytes), WHOLE);
        assert_eq!(closed, Status::Ok);
    }
    disk.poll("images", |stats| stats["compressedReplicas"] == 2.0);
    await_pass(&disk);
    assert_eq!(disk.storage.stats()["rotFound"], 0.0);
    // Somewhere in the units that hold both images.
    let units = disk.storage.stats()["framesShared"];
    assert_eq!(units, 1.0);
    let shared = (0..4u64).find(|frame| {
        let file = File::open(directory.path().join("frames")).expect("the frame file");
        let mut magic = [0; 4];
        file.read_exact_at(&mut magic, frame * FRAME_BYTES as u64)
            .expect("reads");
        &magic == b"RKSF"
    });
    let home = shared.expect("a directory");
    corrupt(
        &directory,
        home * FRAME_BYTES as u64 + DATA_OFFSET as u64 + 9_000,
    );
    disk.poll("rot", |stats| stats["rotFound"] == 1.0);
    let rotten: Vec<u64> = (1..=2)
        .filter(|&id| report(&disk, id).expect("listed").rotten)
        .collect();
    let [rotten] = rotten[..] else {
        panic!("one image has rotted, not {rotten:?}");
    };
    assert_eq!(disk.free(1, &[rotten]), Ok(()));
    assert_eq!(
        disk.storage.stats()["sharedUnitsFree"],
        0.0,
        "nothing is placed beside it"
    );
    let other = 3 - rotten;
    assert!(disk.read(1, other).expect("reads") == bytes[other as usize - 1]);
    assert_eq!(disk.free(1, &[other]), Ok(()));
    disk.poll("the frame is retired", |stats| stats["framesBad"] == 1.0);
}

#[test]
fn an_unreadable_replica_is_rotten_and_three_are_a_failed_disk() {
    let directory = Directory::new();
    let mut disk = Disk::open(&directory, scrubbing(&directory, false));
    let bytes = random_bytes(&mut Random::new(13), 100_000);
    for segment_id in 1..=3 {
        let closed = disk.write(1, segment_id, 1, 0, &bytes, Some(&bytes), WHOLE);
        assert_eq!(closed, Status::Ok);
    }
    disk.faults.fail_reads(true);
    disk.poll("rot", |stats| stats["rotFound"] == 3.0);
    assert!((1..=3).all(|id| report(&disk, id).expect("listed").rotten));
    assert!(
        disk.storage.load().disk_failed,
        "three replicas that cannot be read are no chance"
    );
}
