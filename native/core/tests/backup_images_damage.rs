//! Damage and failing disks under shared frames: each costs what it hit and nothing beside it.

mod backup_support;

use backup_support::images::{
    MIB, close_one, directories, frames_file, overwrite, read_slot, settle_images, stat,
    three_images,
};
use backup_support::{CLOSE, Directory, Disk, OPEN, PRIMARY, Random, mixed_bytes, options};
use parking_lot::Mutex;
use rekindle_core::backup::directory::{
    Directory as FrameDirectory, Tenant, UNIT_BYTES, encode_directory,
};
use rekindle_core::backup::frame::{
    BLOCK_BYTES, CertificateBlock, Codec, DATA_OFFSET, FRAME_BYTES, FrameState, SLOT_BYTES,
    SlotContent, encode_slot,
};
use rekindle_core::backup::frame_file::{Faults, Medium};
use rekindle_core::status::Status;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

#[test]
fn one_damaged_directory_block_costs_no_image() {
    let directory = Directory::new();
    let (disk, all) = three_images(&directory);
    drop(disk);
    let slots = directories(&directory, 8);
    assert!(slots.len() >= 2, "a directory lies in both slots");
    for (frame, slot, _) in &slots {
        let at = frame * FRAME_BYTES + slot * SLOT_BYTES + 70;
        let mut before = vec![0; 16];
        let file = frames_file(&directory);
        file.read_exact_at(&mut before, at as u64).expect("a row");
        overwrite(&directory, at, &[0xee; 16]);
        {
            let disk = Disk::open(&directory, options(&directory, 8, false));
            for (index, bytes) in all.iter().enumerate() {
                assert!(disk.read(1, index as u64 + 1).as_ref() == Ok(bytes));
            }
            assert_eq!(stat(&disk, "framesBadAtRestart"), 0.0);
            assert_eq!(stat(&disk, "imagesBadAtRestart"), 0.0);
        }
        let again = read_slot(&directory, *frame, *slot);
        assert!(
            matches!(again, SlotContent::Shared(_)),
            "written again at the restart"
        );
    }
}

#[test]
fn damage_of_both_directories_costs_their_frame_only_and_it_is_kept() {
    let directory = Directory::new();
    let (disk, all) = three_images(&directory);
    drop(disk);
    let slots = directories(&directory, 8);
    let frame = slots[0].0;
    let homes = slots[0].2.tenants.iter().map(|one| one.segment_id);
    let lost: Vec<u64> = homes.collect();
    for slot in 0..2 {
        overwrite(&directory, frame * FRAME_BYTES + slot * SLOT_BYTES, &[1; 8]);
    }
    let disk = Disk::open(&directory, options(&directory, 8, false));
    assert_eq!(stat(&disk, "framesBadAtRestart"), 1.0);
    assert!(!lost.is_empty() && lost.len() < 3);
    for (index, bytes) in all.iter().enumerate() {
        let id = index as u64 + 1;
        let expected = if lost.contains(&id) {
            Err(Status::ReplicaUnknown)
        } else {
            Ok(bytes)
        };
        assert!(
            disk.read(1, id).as_ref() == expected.as_ref().map(|one| *one),
            "{id}"
        );
    }
}

#[test]
fn damaged_units_cost_their_image_only() {
    let directory = Directory::new();
    let (disk, all) = three_images(&directory);
    drop(disk);
    let (frame, _, found) = directories(&directory, 8).remove(0);
    let tenant = found.tenants[0];
    let unit = tenant.units.trailing_zeros() as usize;
    let at = frame * FRAME_BYTES + DATA_OFFSET + unit * UNIT_BYTES + 5000;
    overwrite(&directory, at, &[0xee; 64]);
    let disk = Disk::open(&directory, options(&directory, 8, false));
    for (index, bytes) in all.iter().enumerate() {
        let id = index as u64 + 1;
        let read = disk.read(1, id);
        if id == tenant.segment_id {
            assert_eq!(read, Err(Status::ChecksumMismatch));
        } else {
            assert!(read.as_ref() == Ok(bytes), "{id}");
        }
    }
}

/// The newest directory rots before it is repeated, and the older one names units that another
/// image has filled since.
#[test]
fn an_older_directory_never_hands_out_foreign_bytes() {
    let directory = Directory::new();
    let (mut disk, all) = three_images(&directory);
    let older = directories(&directory, 8);
    disk.free(1, &[1]).expect("frees");
    let fresh = mixed_bytes(&mut Random::new(99), 5 * MIB, 8);
    close_one(&mut disk, 4, &fresh);
    settle_images(&disk, 4);
    drop(disk);
    let (frame, _, old) = older
        .iter()
        .find(|(_, _, old)| old.tenants.iter().any(|one| one.segment_id == 1))
        .expect("segment 1 had a home");
    let mut block = vec![0; BLOCK_BYTES];
    encode_directory(old, &mut block);
    overwrite(&directory, frame * FRAME_BYTES, &block);
    overwrite(&directory, frame * FRAME_BYTES + SLOT_BYTES, &[1; 8]);
    for _ in 0..2 {
        let disk = Disk::open(&directory, options(&directory, 8, false));
        assert_eq!(disk.read(1, 1), Err(Status::ReplicaUnknown));
        for (index, bytes) in all.iter().enumerate().skip(1) {
            assert!(disk.read(1, index as u64 + 1).as_ref() == Ok(bytes));
        }
    }
}

/// The kind of a frame is read where no client's bytes ever lie.
#[test]
fn bytes_that_look_like_a_directory_are_only_bytes() {
    let directory = Directory::new();
    let tenant = Tenant {
        master_id: 66,
        segment_id: 66,
        epoch: 1,
        length: 100,
        checksum: 0,
        stored: 100,
        primary: true,
        units: 1,
        next: None,
    };
    let mut block = vec![1; BLOCK_BYTES];
    // The last byte of a tail block is always zero: a checksum that ends so is soon found.
    for sequence in 1 << 60.. {
        let tenants = vec![tenant];
        encode_directory(&FrameDirectory { sequence, tenants }, &mut block);
        if block[BLOCK_BYTES - 1] == 0 {
            break;
        }
    }
    let forged = &block[..BLOCK_BYTES - 1];
    let mut disk = Disk::open(&directory, options(&directory, 4, true));
    assert_eq!(
        disk.write(1, 1, 1, 0, forged, Some(forged), OPEN),
        Status::Ok
    );
    drop(disk);
    let mut tail = vec![0; BLOCK_BYTES];
    let file = frames_file(&directory);
    let first_tail = file.read_exact_at(&mut tail, BLOCK_BYTES as u64);
    first_tail.expect("the first slot was written");
    assert!(tail == block, "a tail block is a whole directory");
    let mut disk = Disk::open(&directory, options(&directory, 4, true));
    assert!(disk.read(1, 1).expect("whole") == forged);
    disk.free(1, &[1]).expect("frees");
    close_one(&mut disk, 2, &mixed_bytes(&mut Random::new(1), 3 * MIB, 4));
    settle_images(&disk, 1);
    drop(disk);
    let disk = Disk::open(&directory, options(&directory, 4, true));
    let masters: Vec<u64> = disk
        .storage
        .replicas()
        .iter()
        .map(|one| one.master_id)
        .collect();
    assert_eq!(masters, [1]);
}

/// A disk that fails at any write or sync of a switch: the replica stays, what lives beside it
/// too, and a restart finds each once.
#[test]
fn a_failing_disk_costs_no_closed_replica() {
    for permanent in [false, true] {
        for sync in [false, true] {
            for after in 0..5 {
                fail_a_switch(permanent, sync, after);
            }
        }
    }
}

fn fail_a_switch(permanent: bool, sync: bool, after: u32) {
    let context = format!("permanent {permanent}, sync {sync}, after {after}");
    let directory = Directory::new();
    let mut random = Random::new(u64::from(after) + 1);
    let first = mixed_bytes(&mut random, 3 * MIB, 8);
    let second = mixed_bytes(&mut random, 4 * MIB, 8);
    {
        let mut disk = Disk::open(&directory, options(&directory, 6, true));
        close_one(&mut disk, 1, &first);
        settle_images(&disk, 1);
        disk.settle();
        // Open bytes are flushed before; the close itself is one slot and one sync.
        let flags = OPEN | PRIMARY;
        let status = disk.write(1, 2, 1, 0, &second, Some(&second), flags);
        assert_eq!(status, Status::Ok);
        disk.settle();
        // Of the close itself; after the last write nothing is flushed either.
        let after = after + if permanent && !sync { 2 } else { 1 };
        if sync {
            disk.faults.fail_sync_after(after, permanent);
        } else {
            disk.faults.fail_write_after(after, permanent);
        }
        let status = disk.write(1, 2, 1, second.len(), &[], Some(&second), CLOSE);
        if status == Status::DiskError {
            return; // It struck the close: frames that are being pre-written count, too.
        }
        assert_eq!(status, Status::Ok, "{context}");
        disk.poll(&context, |stats| {
            stats["compressedReplicas"] + stats["compressionSkipped"] >= 2.0
        });
        for (id, bytes) in [(1, &first), (2, &second)] {
            assert!(disk.read(1, id).as_ref() == Ok(bytes), "{context}: {id}");
        }
    }
    let disk = Disk::open(&directory, options(&directory, 6, true));
    assert_eq!(disk.storage.replicas().len(), 2, "{context}");
    for (id, bytes) in [(1, &first), (2, &second)] {
        assert!(disk.read(1, id).as_ref() == Ok(bytes), "{context}: {id}");
    }
    assert_eq!(stat(&disk, "framesBadAtRestart"), 0.0, "{context}");
    disk.free(1, &[1, 2]).expect("frees");
    assert_eq!(
        disk.storage.load().free_frames,
        6,
        "{context}: nothing is leaked"
    );
}

/// A frame that is nobody's home reads as a whole one: its image ends in foreign bytes.
#[test]
fn an_image_whose_second_frame_is_another_replicas_is_dropped() {
    let directory = Directory::new();
    let (disk, all) = three_images(&directory);
    drop(disk);
    let found = directories(&directory, 8);
    let next = found.iter().flat_map(|(_, _, one)| &one.tenants);
    let (id, next) = next
        .filter_map(|tenant| Some((tenant.segment_id, tenant.next?.frame)))
        .next()
        .expect("one lies in two frames");
    let homes = found.iter().filter(|(frame, ..)| *frame == next as usize);
    let gone: Vec<u64> = homes
        .flat_map(|(_, _, one)| one.tenants.iter().map(|tenant| tenant.segment_id))
        .collect();
    let closed = CertificateBlock {
        sequence: 1 << 40,
        master_id: 1,
        segment_id: 50,
        epoch: 1,
        length: 100,
        checksum: 0,
        state: FrameState::Closed,
        primary: false,
        codec: Codec::Raw,
        stored: 100,
    };
    let mut slot = vec![0; SLOT_BYTES];
    encode_slot(&closed, &[7; 100], &mut slot);
    overwrite(&directory, next as usize * FRAME_BYTES, &slot);
    let disk = Disk::open(&directory, options(&directory, 8, true));
    assert_eq!(stat(&disk, "imagesBadAtRestart"), 1.0);
    assert_eq!(disk.read(1, 50), Err(Status::ChecksumMismatch));
    for (index, bytes) in all.iter().enumerate() {
        let other = index as u64 + 1;
        let read = disk.read(1, other);
        if other == id || gone.contains(&other) {
            assert_eq!(read, Err(Status::ReplicaUnknown));
        } else {
            assert!(read.as_ref() == Ok(bytes), "{other}");
        }
    }
}

/// Fails what the compressor writes, once it is told how.
#[derive(Default)]
struct RefusingDisk {
    with: Mutex<Option<io::ErrorKind>>,
}

impl Medium for RefusingDisk {
    fn write(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        let compressor = std::thread::current().name() == Some("backup-lz4");
        match *self.with.lock() {
            Some(kind) if compressor => Err(kind.into()),
            _ => file.write_all_at(bytes, offset),
        }
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        file.sync_data()
    }
}

/// A full disk costs no frame; a broken one costs one, not one for every close.
#[test]
fn a_compressor_whose_disk_refuses_stops_for_a_while() {
    for (kind, bad) in [
        (io::ErrorKind::StorageFull, 0.0),
        (io::ErrorKind::Other, 1.0),
    ] {
        let directory = Directory::new();
        let refusing = Arc::new(RefusingDisk::default());
        let faults = Faults::over(Arc::clone(&refusing) as Arc<dyn Medium>);
        let mut disk = Disk::with_faults(options(&directory, 16, true), faults);
        let bytes = mixed_bytes(&mut Random::new(21), 2 * MIB, 8);
        close_one(&mut disk, 1, &bytes);
        settle_images(&disk, 1);
        disk.settle();
        *refusing.with.lock() = Some(kind);
        // Two frames are ready; a full disk has no others.
        for id in 2..=3 {
            close_one(&mut disk, id, &bytes);
            settle_images(&disk, id as usize);
        }
        assert_eq!(stat(&disk, "compressionSkipped"), 2.0, "{kind}");
        assert_eq!(stat(&disk, "framesBad"), bad, "{kind}");
        for id in 1..=3 {
            assert!(disk.read(1, id).as_ref() == Ok(&bytes), "{kind}: {id}");
        }
        drop(disk);
        let disk = Disk::open(&directory, options(&directory, 16, true));
        disk.free(1, &[1, 2, 3]).expect("frees");
        assert_eq!(disk.storage.load().free_frames, 16, "{kind}");
    }
}
