//! A disk that a test makes slow, full or broken while the process runs: eight words in a file
//! that both map or write.
//!
//! | word | meaning |
//! |---|---|
//! | 0, 1 | each write, each flush takes so many milliseconds longer |
//! | 2, 3, 4 | errno of each write, flush, read; 0: none |
//! | 5 | 1: nothing can grow (ENOSPC) |
//! | 6 | counts what was refused or delayed, by the layer |
//!
//! Rule: a fault never leaves half of a write.

use crate::raw;
use libc::c_int;
use std::path::Path;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::sleep;
use std::time::Duration;

const WORDS: usize = 8;
const WRITE_DELAY_MS: usize = 0;
const FLUSH_DELAY_MS: usize = 1;
const WRITE_ERRNO: usize = 2;
const FLUSH_ERRNO: usize = 3;
const READ_ERRNO: usize = 4;
const FULL: usize = 5;
const STRUCK: usize = 6;

pub struct DiskFault {
    words: &'static [AtomicU32; WORDS],
}

impl DiskFault {
    /// Maps the page for as long as the process lives.
    pub fn at(path: &Path) -> Self {
        let file = raw::open(path, libc::O_RDWR).expect("the control page of the test exists");
        let bytes = size_of::<[AtomicU32; WORDS]>();
        let how = [
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
            file.number(),
        ];
        let start = raw::map(null_mut(), bytes, how, 0);
        assert!(start != libc::MAP_FAILED, "the control page can be mapped");
        // SAFETY: the mapping is page-aligned, never unmapped, and the test made the file large
        // enough; both sides only load and store whole words.
        let words = unsafe { &*start.cast::<[AtomicU32; WORDS]>() };
        Self { words }
    }

    fn word(&self, index: usize) -> u32 {
        self.words[index].load(Ordering::Relaxed)
    }

    fn refuse(&self, number: c_int) -> Result<(), c_int> {
        if number == 0 {
            return Ok(());
        }
        self.words[STRUCK].fetch_add(1, Ordering::Relaxed);
        Err(number)
    }

    fn wait(&self, index: usize) {
        let ms = self.word(index);
        if ms > 0 {
            self.words[STRUCK].fetch_add(1, Ordering::Relaxed);
            sleep(Duration::from_millis(u64::from(ms)));
        }
    }

    pub fn before_write(&self, grows: bool) -> Result<(), c_int> {
        self.wait(WRITE_DELAY_MS);
        self.refuse(self.word(WRITE_ERRNO) as c_int)?;
        self.before_growth(grows)
    }

    pub fn before_growth(&self, grows: bool) -> Result<(), c_int> {
        let full = grows && self.word(FULL) != 0;
        self.refuse(if full { libc::ENOSPC } else { 0 })
    }

    pub fn before_flush(&self) -> Result<(), c_int> {
        self.wait(FLUSH_DELAY_MS);
        self.refuse(self.word(FLUSH_ERRNO) as c_int)
    }

    pub fn before_read(&self) -> Result<(), c_int> {
        self.refuse(self.word(READ_ERRNO) as c_int)
    }
}
