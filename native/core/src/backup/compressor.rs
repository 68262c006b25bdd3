//! Compresses closed replicas where a probe says that it pays, on a low-priority thread.
//!
//! Rule: the image is written to a different frame and flushed, then its slot is written and
//! flushed, and only then is the raw frame freed. A crash leaves one or both; the restart scan
//! keeps one. A replica that cannot be compressed now (no spare frame, a disk error) stays raw.

use crate::backup::frame::{
    CertificateBlock, Codec, DATA_OFFSET, FrameState, SLOT_BYTES, block_ceiling, encode_slot,
    frame_offset, slot_offset,
};
use crate::backup::lz4_image;
use crate::backup::segment_buffer::{AlignedBytes, SegmentBuffer};
use crate::backup::state::{CompressJob, Job};
use crate::backup::storage::Shared;
use std::io;
use std::sync::Arc;

/// Frames that compression leaves to new replicas.
const FRAMES_SPARED: usize = 2;
const NICENESS: i32 = 10;

/// Runs until the storage stops.
pub(super) fn run(shared: &Arc<Shared>) {
    // SAFETY: a plain system call about the calling thread; failure leaves the normal priority.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICENESS) };
    loop {
        let job = {
            let mut state = shared.state.lock();
            loop {
                if state.stopping {
                    state.compress_queue.clear();
                    return;
                }
                if let Some(job) = state.compress_queue.pop_front() {
                    break job;
                }
                shared.compress_wake.wait(&mut state);
            }
        };
        if !compress(shared, &job) {
            shared.state.lock().counters.compression_skipped += 1;
        }
    }
}

fn compress(shared: &Shared, job: &CompressJob) -> bool {
    let length = job.certified.length as usize;
    // SAFETY: the replica is closed: none of its bytes changes any more.
    let bytes = unsafe { job.buffer.prefix(length) };
    if !lz4_image::probe(bytes) {
        return false;
    }
    let Ok(mut image) = shared.pool.take() else {
        return false;
    };
    let Some(stored) = lz4_image::encode(bytes, image.bytes_mut()) else {
        return false;
    };
    let (frame, slot, sequence) = {
        let mut state = shared.state.lock();
        let wanted = state
            .replicas
            .get(&job.key)
            .is_some_and(|replica| replica.id == job.id);
        if !wanted || state.frames.free_count() <= FRAMES_SPARED {
            return false;
        }
        let Some(frame) = state.frames.allocate_apart() else {
            return false;
        };
        let (slot, sequence) = state.frames.next_slot(frame);
        (frame, slot, sequence)
    };
    let certificate = CertificateBlock {
        sequence,
        master_id: job.key.0,
        segment_id: job.key.1,
        epoch: job.certified.epoch,
        length: job.certified.length,
        checksum: job.certified.checksum,
        state: FrameState::Closed,
        primary: job.primary,
        codec: Codec::Lz4,
        stored: stored as u32,
    };
    let written = write_image(shared, frame, slot, &certificate, &mut image);
    switch(shared, job, frame, slot, &certificate, written.is_ok());
    written.is_ok()
}

fn write_image(
    shared: &Shared,
    frame: u32,
    slot: usize,
    certificate: &CertificateBlock,
    image: &mut SegmentBuffer,
) -> io::Result<()> {
    let stored = certificate.stored as usize;
    let end = block_ceiling(stored);
    image.bytes_mut()[stored..end].fill(0);
    shared.compressor_file.write(
        &image.bytes_mut()[..end],
        frame_offset(frame) + DATA_OFFSET as u64,
    )?;
    shared.compressor_file.sync()?;
    let mut slot_bytes = AlignedBytes::new(SLOT_BYTES);
    encode_slot(certificate, &[], slot_bytes.bytes_mut());
    shared
        .compressor_file
        .write(slot_bytes.bytes(), slot_offset(frame, slot))?;
    shared.compressor_file.sync()
}

/// Makes the image the replica and frees the raw frame; or the image's, if the replica is gone.
fn switch(
    shared: &Shared,
    job: &CompressJob,
    frame: u32,
    slot: usize,
    certificate: &CertificateBlock,
    written: bool,
) {
    let mut state = shared.state.lock();
    if !written {
        state.counters.disk_errors += 1;
        state.frames.latch_bad(frame);
        return;
    }
    state.frames.frame_mut(frame).newest_slot = slot;
    let replica = state
        .replicas
        .get_mut(&job.key)
        .filter(|replica| replica.id == job.id);
    let unused = match replica {
        Some(replica) => {
            replica.codec = Codec::Lz4;
            replica.stored = certificate.stored;
            std::mem::replace(&mut replica.frame, frame)
        }
        None => frame,
    };
    if unused != frame {
        state.counters.compressed += 1;
        let saved = u64::from(certificate.length - certificate.stored);
        state.counters.compression_saved_bytes += saved;
    }
    // Refused only while stopping or overfull: then a restart finds both frames and frees one.
    let job = Job::Free {
        frames: vec![unused],
        done: Box::new(drop),
    };
    drop(shared.queue_job(&mut state, job));
}
