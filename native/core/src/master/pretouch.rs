//! Memory is given to the log and the table before they need it: fresh pages cost 0.3 to 1 GB/s on
//! a virtual machine, touched ones 7 to 14, and a recovery wants them at once.
//!
//! A first part is touched before the master serves, the rest by a thread of the lowest priority
//! that ends when it is done or the master is gone. It rests three times as long as it works, since
//! kernels that group tasks by session ignore priorities between processes.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Instant;

use super::Master;
use crate::status::Status;

/// Log memory touched before the master serves.
const FIRST_BYTES: usize = 32 << 20;
const STEP_BYTES: usize = 2 << 20;
/// Rest after each step, as a multiple of what it took.
const REST_FACTOR: u32 = 3;
const LOWEST_PRIORITY: libc::c_int = 19;

/// Touches the first part now and starts the thread for the rest.
///
/// # Errors
/// `OutOfMemory` if the system has no thread to give.
pub fn pretouch(master: &Arc<Master>) -> Result<(), Status> {
    master.objects.arena.populate(0, FIRST_BYTES);
    master.touched_bytes.store(FIRST_BYTES, Ordering::Relaxed);
    let rest = Arc::downgrade(master);
    thread::Builder::new()
        .name("rekindle-touch".into())
        .spawn(move || touch_rest(&rest))
        .map_err(|_| Status::OutOfMemory)?;
    Ok(())
}

fn touch_rest(master: &Weak<Master>) {
    // SAFETY: changes the priority of the calling thread only.
    let _lowered = unsafe {
        let thread_id = libc::syscall(libc::SYS_gettid) as libc::id_t;
        libc::setpriority(libc::PRIO_PROCESS, thread_id, LOWEST_PRIORITY)
    };
    let mut offset = 0;
    loop {
        let Some(master) = master.upgrade() else {
            return;
        };
        let (arena, table) = (&master.objects.arena, &master.objects.table);
        let finished = offset >= arena.bytes().max(table.bucket_bytes());
        if finished || master.is_closed() {
            return;
        }
        let started = Instant::now();
        // The table first: every write of any key may touch any of its pages.
        if offset < table.bucket_bytes() {
            table.populate(offset, STEP_BYTES.min(table.bucket_bytes() - offset));
        }
        arena.populate(offset, STEP_BYTES);
        offset += STEP_BYTES;
        master
            .touched_bytes
            .store(offset.min(arena.bytes()), Ordering::Relaxed);
        drop(master);
        thread::sleep(started.elapsed() * REST_FACTOR);
    }
}
