//! What one file held before the writes that are not flushed yet.
//!
//! Time is cut into *epochs* by flushes: a flush covers the writes of the epochs before it, only
//! those, however long it takes. The first write to a block in an epoch puts the block's former
//! content into `data-<inode>-<epoch>` of the sidecar, before the block is written; a flush that
//! succeeds removes the files of the epochs that it covers. So a block has one former content for
//! each epoch that is left, and after a crash the disk may hold any of them, or the last write.
//!
//! ```text
//! header  "RKPL" u32 · 0 u32 · inode u64 · bytes of the file at the start of the epoch u64
//! record  offset u64 · length u32 · kind u32 · content, if kind is 1
//! kind    0 zeros · 1 content · 2 these blocks are durable now (a write with O_DSYNC)
//! ```

use crate::raw::{self, FileStat, OwnFd};
use libc::c_int;
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, RwLock, RwLockReadGuard};

const BLOCK_BYTES: u64 = 4096;
/// Former contents are read and recorded in pieces of this size at most.
const PIECE_BLOCKS: u64 = 256;
const MAGIC: &[u8; 4] = b"RKPL";

#[derive(Clone, Copy)]
enum Kind {
    Zeros = 0,
    Content = 1,
    Durable = 2,
}

pub struct Ledger {
    pub stat: FileStat,
    sidecar: PathBuf,
    /// Shared by writes, taken alone to end an epoch: a write belongs to one epoch wholly.
    gate: RwLock<()>,
    state: Mutex<State>,
}

struct State {
    epoch: u64,
    /// The oldest one whose file may exist.
    oldest: u64,
    /// Blocks that were written in this epoch.
    written: HashSet<u64>,
    out: Option<OwnFd>,
}

impl Ledger {
    /// Epochs that an earlier process left count on.
    pub fn of(stat: FileStat, sidecar: &Path) -> Self {
        let left = epochs_left(sidecar, stat.inode);
        let epoch = left.iter().max().map_or(0, |newest| newest + 1);
        let oldest = left.iter().min().copied().unwrap_or(epoch);
        let state = State {
            epoch,
            oldest,
            written: HashSet::new(),
            out: None,
        };
        Self {
            stat,
            sidecar: sidecar.to_path_buf(),
            gate: RwLock::new(()),
            state: Mutex::new(state),
        }
    }

    /// To be held from before the blocks are recorded until they are written.
    pub fn write_begins(&self) -> RwLockReadGuard<'_, ()> {
        self.gate.read().expect("no holder of the gate panics")
    }

    /// Keeps what these bytes of the file hold now, unless this epoch has it already.
    pub fn record(&self, fd: c_int, offset: u64, bytes: u64) {
        if bytes == 0 {
            return;
        }
        let mut state = self.state.lock().expect("no holder of the ledger panics");
        let last = (offset + bytes).div_ceil(BLOCK_BYTES);
        let mut at = offset / BLOCK_BYTES;
        while at < last {
            let is_new = |block: &u64| !state.written.contains(block);
            let run = (at..last.min(at + PIECE_BLOCKS)).take_while(is_new).count() as u64;
            if run > 0 {
                self.keep(&mut state, fd, at, run);
                state.written.extend(at..at + run);
            }
            at += run.max(1);
        }
    }

    fn keep(&self, state: &mut State, fd: c_int, block: u64, count: u64) {
        // Opened anew: O_DIRECT would ask for alignment, and the process may only write.
        let path = PathBuf::from(format!("/proc/self/fd/{fd}"));
        let reader = raw::open(&path, libc::O_RDONLY).expect("an open file can be opened to read");
        let mut content = vec![0; (count * BLOCK_BYTES) as usize];
        raw::fill(reader.number(), &mut content, block * BLOCK_BYTES);
        let zeros = content.iter().all(|&byte| byte == 0);
        let kind = if zeros { Kind::Zeros } else { Kind::Content };
        let content = if zeros { &[][..] } else { &content };
        self.append(state, fd, (block, count), kind, content);
    }

    fn append(&self, state: &mut State, fd: c_int, run: (u64, u64), kind: Kind, content: &[u8]) {
        let (block, count) = run;
        let mut bytes = Vec::with_capacity(content.len() + 48);
        let inode = self.stat.inode;
        let out = state.out.get_or_insert_with(|| {
            let path = self.sidecar.join(format!("data-{inode}-{}", state.epoch));
            let bytes_now = raw::stat(fd).map_or(0, |stat| stat.bytes);
            bytes.extend_from_slice(MAGIC);
            bytes.extend_from_slice(&[0; 4]);
            bytes.extend_from_slice(&inode.to_le_bytes());
            bytes.extend_from_slice(&bytes_now.to_le_bytes());
            let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_APPEND;
            raw::open(&path, flags).expect("the sidecar can be written")
        });
        bytes.extend_from_slice(&(block * BLOCK_BYTES).to_le_bytes());
        bytes.extend_from_slice(&((count * BLOCK_BYTES) as u32).to_le_bytes());
        bytes.extend_from_slice(&(kind as u32).to_le_bytes());
        bytes.extend_from_slice(content);
        raw::append(out.number(), &bytes);
    }

    /// A write with O_DSYNC has returned: these blocks are on the disk, whatever else is not.
    pub fn blocks_are_durable(&self, fd: c_int, offset: u64, bytes: u64) {
        let mut state = self.state.lock().expect("no holder of the ledger panics");
        let first = offset / BLOCK_BYTES;
        let last = (offset + bytes).div_ceil(BLOCK_BYTES);
        for block in first..last {
            state.written.remove(&block);
        }
        self.append(&mut state, fd, (first, last - first), Kind::Durable, &[]);
    }

    /// A flush begins: it covers all epochs up to the one returned.
    pub fn flush_begins(&self) -> u64 {
        let _alone = self.gate.write().expect("no holder of the gate panics");
        let mut state = self.state.lock().expect("no holder of the ledger panics");
        state.written.clear();
        state.out = None;
        state.epoch += 1;
        state.epoch - 1
    }

    /// The flush has succeeded.
    pub fn flushed(&self, through: u64) {
        let mut state = self.state.lock().expect("no holder of the ledger panics");
        for epoch in state.oldest..=through {
            raw::remove(
                &self
                    .sidecar
                    .join(format!("data-{}-{epoch}", self.stat.inode)),
            );
        }
        state.oldest = state.oldest.max(through + 1);
    }
}

/// An inode number that is used again has nothing to do with the file that had it.
pub fn forget(sidecar: &Path, inode: u64) {
    for epoch in epochs_left(sidecar, inode) {
        raw::remove(&sidecar.join(format!("data-{inode}-{epoch}")));
    }
}

fn epochs_left(sidecar: &Path, inode: u64) -> Vec<u64> {
    let prefix = format!("data-{inode}-");
    let entries = std::fs::read_dir(sidecar).expect("the sidecar of the test exists");
    entries
        .flatten()
        .filter_map(|entry| {
            entry
                .file_name()
                .to_str()?
                .strip_prefix(&prefix)?
                .parse()
                .ok()
        })
        .collect()
}
