//! Several writes at once: Linux's asynchronous I/O hands all of them to the disk before it waits
//! for the first. One after the other, each would cost its own turn of the disk and two switches
//! of threads.
//!
//! Rule: `write` returns when the kernel is done with all of them, whatever became of each: no
//! memory is lent beyond the call. It is asynchronous only for files with O_DIRECT.

use parking_lot::Mutex;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

/// Writes that the kernel has at a time.
const BATCH_MAX: usize = 64;
const WRITE: u16 = 1;

/// Where bytes shall go.
#[derive(Clone, Copy)]
pub struct BlockWrite<'a> {
    /// Whole blocks, aligned.
    pub bytes: &'a [u8],
    /// In the file; a multiple of a block.
    pub offset: u64,
}

/// `struct iocb` of the kernel's aio_abi.h.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct ControlBlock {
    data: u64,
    key_and_flags: u64,
    operation: u16,
    priority: i16,
    descriptor: u32,
    buffer: u64,
    length: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    notified: u32,
}

/// `struct io_event`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Event {
    data: u64,
    block: u64,
    result: i64,
    second_result: i64,
}

/// A context of the kernel.
pub struct WriteQueue {
    /// Held for a whole batch: events are of whoever submitted last.
    context: Mutex<libc::c_ulong>,
}

impl WriteQueue {
    /// None where the system has none to give (no such call, forbidden, too many in use).
    pub fn new() -> Option<Self> {
        let mut context: libc::c_ulong = 0;
        // SAFETY: a plain system call that fills `context`.
        let made = unsafe {
            libc::syscall(
                libc::SYS_io_setup,
                BATCH_MAX as libc::c_long,
                &raw mut context,
            )
        };
        (made == 0).then(|| Self {
            context: Mutex::new(context),
        })
    }

    /// What became of each write, in their order.
    pub fn write(&self, file: &File, writes: &[BlockWrite<'_>]) -> Vec<io::Result<()>> {
        let context = self.context.lock();
        let batches = writes.chunks(BATCH_MAX);
        batches
            .flat_map(|batch| write_batch(*context, file, batch))
            .collect()
    }
}

impl Drop for WriteQueue {
    fn drop(&mut self) {
        // SAFETY: made in `new`, and no batch is under way: `write` waits for its own.
        unsafe { libc::syscall(libc::SYS_io_destroy, *self.context.get_mut()) };
    }
}

fn write_batch(
    context: libc::c_ulong,
    file: &File,
    writes: &[BlockWrite<'_>],
) -> Vec<io::Result<()>> {
    let mut blocks = [ControlBlock::default(); BATCH_MAX];
    let mut places = [std::ptr::null_mut::<ControlBlock>(); BATCH_MAX];
    for (number, (block, write)) in blocks.iter_mut().zip(writes).enumerate() {
        *block = ControlBlock {
            data: number as u64,
            operation: WRITE,
            descriptor: file.as_raw_fd() as u32,
            buffer: write.bytes.as_ptr().expose_provenance() as u64,
            length: write.bytes.len() as u64,
            offset: write.offset as i64,
            ..ControlBlock::default()
        };
        places[number] = &raw mut *block;
    }
    let taken = submit(context, &mut places[..writes.len()]);
    // What the kernel did not take is written like any other.
    let mut written = vec![0; writes.len()];
    let mut results: Vec<io::Result<()>> = writes.iter().map(|_| Ok(())).collect();
    for event in wait(context, taken) {
        let number = event.data as usize;
        match usize::try_from(event.result) {
            Ok(bytes) => written[number] = bytes,
            Err(_) => results[number] = Err(io::Error::from_raw_os_error(-event.result as i32)),
        }
    }
    for ((result, write), written) in results.iter_mut().zip(writes).zip(written) {
        if result.is_ok() && written < write.bytes.len() {
            *result = file.write_all_at(&write.bytes[written..], write.offset + written as u64);
        }
    }
    results
}

/// How many of the first blocks the kernel took.
fn submit(context: libc::c_ulong, places: &mut [*mut ControlBlock]) -> usize {
    let mut taken = 0;
    while taken < places.len() {
        let rest = &mut places[taken..];
        // SAFETY: each place points to a block of the caller, whose buffer lives until `wait` has
        // seen its end.
        let count = unsafe {
            libc::syscall(
                libc::SYS_io_submit,
                context,
                rest.len() as libc::c_long,
                rest.as_mut_ptr(),
            )
        };
        match usize::try_from(count) {
            Ok(0) => break,
            Ok(count) => taken += count,
            Err(_) if interrupted() => {}
            Err(_) => break,
        }
    }
    taken
}

fn wait(context: libc::c_ulong, count: usize) -> Vec<Event> {
    let mut events = vec![Event::default(); count];
    let mut seen = 0;
    while seen < count {
        let rest = &mut events[seen..];
        // SAFETY: `rest` has room for as many events as are asked for; no time-out.
        let got = unsafe {
            libc::syscall(
                libc::SYS_io_getevents,
                context,
                rest.len() as libc::c_long,
                rest.len() as libc::c_long,
                rest.as_mut_ptr(),
                std::ptr::null_mut::<libc::timespec>(),
            )
        };
        match usize::try_from(got) {
            Ok(got) => seen += got,
            Err(_) => assert!(interrupted(), "the kernel tells of the writes that it took"),
        }
    }
    events
}

fn interrupted() -> bool {
    io::Error::last_os_error().kind() == io::ErrorKind::Interrupted
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup::frame::BLOCK_BYTES;
    use crate::backup::segment_buffer::AlignedBytes;
    use std::fs::OpenOptions;
    use std::os::unix::fs::OpenOptionsExt;
    use std::sync::atomic::{AtomicU32, Ordering};

    /// Gone with its last descriptor. In the build folder: not every folder for temporary files
    /// knows O_DIRECT.
    fn file(flags: i32) -> File {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let folder = std::env::current_exe().expect("this test has a file");
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("write-queue-{}-{number}", std::process::id());
        let path = folder.with_file_name(name);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true);
        let file = options.custom_flags(flags).open(&path).expect("opens");
        std::fs::remove_file(path).expect("unlinks");
        file
    }

    #[test]
    fn writes_more_than_fit_in_a_batch_each_to_its_place() {
        let queue = WriteQueue::new().expect("this system has asynchronous I/O");
        for flags in [0, libc::O_DIRECT] {
            let file = file(flags);
            let count = 2 * BATCH_MAX + 3;
            let mut buffer = AlignedBytes::new(count * BLOCK_BYTES);
            for (number, block) in buffer.bytes_mut().chunks_mut(BLOCK_BYTES).enumerate() {
                block.fill(number as u8 + 1);
            }
            // Backwards, with a hole in between.
            let place = |number: usize| ((count - number) * 2 * BLOCK_BYTES) as u64;
            let blocks = buffer.bytes().chunks(BLOCK_BYTES).enumerate();
            let writes: Vec<_> = blocks
                .map(|(number, bytes)| BlockWrite {
                    bytes,
                    offset: place(number),
                })
                .collect();
            let results = queue.write(&file, &writes);
            assert_eq!(results.len(), count);
            assert!(results.iter().all(Result::is_ok));
            for number in 0..count {
                let mut read = AlignedBytes::new(BLOCK_BYTES);
                file.read_exact_at(read.bytes_mut(), place(number))
                    .expect("reads");
                assert!(read.bytes().iter().all(|byte| *byte == number as u8 + 1));
            }
        }
    }

    #[test]
    fn each_write_has_its_own_end() {
        let queue = WriteQueue::new().expect("this system has asynchronous I/O");
        let file = file(libc::O_DIRECT);
        let buffer = AlignedBytes::new(4 * BLOCK_BYTES);
        let write = |offset| BlockWrite {
            bytes: &buffer.bytes()[..BLOCK_BYTES],
            offset,
        };
        // No file ends behind the largest offset.
        let beyond = i64::MAX as u64 / BLOCK_BYTES as u64 * BLOCK_BYTES as u64;
        let results = queue.write(&file, &[write(0), write(beyond), write(8192)]);
        let ok: Vec<bool> = results.iter().map(Result::is_ok).collect();
        assert_eq!(ok, [true, false, true]);
        assert_eq!(
            file.metadata().expect("is there").len(),
            3 * BLOCK_BYTES as u64
        );
        assert!(queue.write(&file, &[]).is_empty());
    }
}
