//! What the tests of shared frames share: closes that become images, the slots of a frame file.

use super::{CLOSE, Directory, Disk, OPEN, PRIMARY, Random, mixed_bytes, options};
use rekindle_core::backup::directory::Directory as FrameDirectory;
use rekindle_core::backup::frame::{FRAME_BYTES, SLOT_BYTES, SlotContent, decode_slot};
use rekindle_core::status::Status;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;

pub const MIB: usize = 1 << 20;

/// A closed replica, acknowledged.
pub fn close_one(disk: &mut Disk, segment_id: u64, bytes: &[u8]) {
    let flags = OPEN | CLOSE | PRIMARY;
    let status = disk.write(1, segment_id, 1, 0, bytes, Some(bytes), flags);
    assert_eq!(status, Status::Ok, "segment {segment_id}");
}

/// Waits until the compressor has decided about `closes` replicas and its frees are durable.
pub fn settle_images(disk: &Disk, closes: usize) {
    disk.poll("compression", |stats| {
        stats["compressedReplicas"] + stats["compressionSkipped"] >= closes as f64
    });
    for _ in 0..2 {
        disk.free(1, &[]).expect("a round of the I/O thread");
    }
}

pub fn stat(disk: &Disk, name: &str) -> f64 {
    disk.storage.stats()[name]
}

pub fn frames_file(directory: &Directory) -> File {
    let path = directory.path().join("frames");
    let mut options = OpenOptions::new();
    options.read(true).write(true).open(path).expect("frames")
}

pub fn read_slot(directory: &Directory, frame: usize, slot: usize) -> SlotContent {
    let mut bytes = vec![0; SLOT_BYTES];
    let at = frame * FRAME_BYTES + slot * SLOT_BYTES;
    let file = frames_file(directory);
    file.read_exact_at(&mut bytes, at as u64).expect("a slot");
    decode_slot(&bytes)
}

pub fn overwrite(directory: &Directory, offset: usize, bytes: &[u8]) {
    let file = frames_file(directory);
    file.write_all_at(bytes, offset as u64).expect("overwrites");
}

/// Slots that hold a directory: (frame, slot, directory).
pub fn directories(directory: &Directory, frames: usize) -> Vec<(usize, usize, FrameDirectory)> {
    let length = frames_file(directory).metadata().expect("a length").len() as usize;
    let slots = (0..frames.min(length / FRAME_BYTES)).flat_map(|frame| [(frame, 0), (frame, 1)]);
    slots
        .filter_map(|(frame, slot)| match read_slot(directory, frame, slot) {
            SlotContent::Shared(found) => Some((frame, slot, found)),
            _ => None,
        })
        .collect()
}

/// Three images of 3 units in one frame and a half, freed and replaced.
pub fn three_images(directory: &Directory) -> (Disk, Vec<Vec<u8>>) {
    let mut random = Random::new(12);
    let mut disk = Disk::open(directory, options(directory, 8, true));
    let all: Vec<Vec<u8>> = (0..3)
        .map(|_| mixed_bytes(&mut random, 5 * MIB, 8))
        .collect();
    for (index, bytes) in all.iter().enumerate() {
        close_one(&mut disk, index as u64 + 1, bytes);
        settle_images(&disk, index + 1);
    }
    assert_eq!(stat(&disk, "compressedReplicas"), 3.0);
    (disk, all)
}
