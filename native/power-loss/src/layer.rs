//! Which descriptors are followed, and what each call means for ledger and names.
//!
//! Followed are regular files and folders below the root, but not LMDB's `lock.mdb` (a mapping that
//! means nothing after a restart) and not logs. A descriptor that is not followed costs one load.

use crate::disk_fault::DiskFault;
use crate::ledger::{self, Ledger};
use crate::name_log::NameLog;
use crate::raw;
use libc::{c_int, ssize_t};
use std::env::var_os;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

/// Descriptors above it are not followed; a process of this project has some hundred.
const DESCRIPTORS_MAX: usize = 4096;

/// Of each descriptor: 0, or index of the followed thing + 1, above a bit for O_DSYNC.
static FOLLOWED: [AtomicU32; DESCRIPTORS_MAX] = [const { AtomicU32::new(0) }; DESCRIPTORS_MAX];
static LAYER: OnceLock<Option<Layer>> = OnceLock::new();

enum Thing {
    File(Ledger),
    Folder(PathBuf),
}

impl Thing {
    fn is_at(&self, fd: c_int) -> bool {
        match self {
            Thing::File(ledger) => raw::stat(fd).is_some_and(|stat| {
                (stat.device, stat.inode) == (ledger.stat.device, ledger.stat.inode)
            }),
            Thing::Folder(path) => raw::path_of(fd).is_some_and(|now| now == *path),
        }
    }
}

pub struct Layer {
    root: PathBuf,
    sidecar: PathBuf,
    /// Files of this name are never flushed; `*`: no file, no folder.
    flush_ignored: Option<OsString>,
    names: NameLog,
    disk: Option<DiskFault>,
    /// Grows with the files that are opened; a process of this project opens few.
    things: Mutex<Vec<Arc<Thing>>>,
}

/// A descriptor that is followed.
pub struct Followed {
    layer: &'static Layer,
    thing: Arc<Thing>,
    fd: c_int,
    every_write_syncs: bool,
}

/// None: the process was started without a root.
pub fn layer() -> Option<&'static Layer> {
    LAYER
        .get_or_init(|| {
            let sidecar = PathBuf::from(var_os("REKINDLE_POWER_LOSS_SIDECAR")?);
            let control = var_os("REKINDLE_POWER_LOSS_CONTROL").map(PathBuf::from);
            Some(Layer {
                root: PathBuf::from(var_os("REKINDLE_POWER_LOSS_ROOT")?),
                names: NameLog::at(&sidecar),
                sidecar,
                flush_ignored: var_os("REKINDLE_POWER_LOSS_UNFLUSHED"),
                disk: control.map(|path| DiskFault::at(&path)),
                things: Mutex::new(Vec::new()),
            })
        })
        .as_ref()
}

pub fn followed(fd: c_int) -> Option<Followed> {
    let mark = FOLLOWED
        .get(usize::try_from(fd).ok()?)?
        .load(Ordering::Acquire);
    if mark == 0 {
        return None;
    }
    let layer = layer()?;
    let thing = {
        let things = layer.things.lock().expect("no holder of the list panics");
        Arc::clone(things.get(mark as usize / 2 - 1)?)
    };
    // libuv closes by system call, unseen: the number may be another file's or a socket's now.
    if !thing.is_at(fd) {
        closed(fd);
        return None;
    }
    let every_write_syncs = mark % 2 == 1;
    Some(Followed {
        layer,
        thing,
        fd,
        every_write_syncs,
    })
}

pub fn closed(fd: c_int) {
    if let Some(mark) = usize::try_from(fd)
        .ok()
        .and_then(|index| FOLLOWED.get(index))
    {
        mark.store(0, Ordering::Release);
    }
}

impl Layer {
    /// Whether this name is one that counts.
    pub fn covers(&self, path: &Path) -> bool {
        let lock = path.file_name().is_some_and(|name| name == "lock.mdb");
        path.starts_with(&self.root) && !lock && !path.starts_with(self.root.join("logs"))
    }

    /// A descriptor was opened, and created the file or not.
    pub fn opened(&self, fd: c_int, created: bool) {
        let (Some(stat), Some(path)) = (raw::stat(fd), raw::path_of(fd)) else {
            return;
        };
        if !self.covers(&path) || !(stat.regular || stat.directory) {
            return;
        }
        if created {
            ledger::forget(&self.sidecar, stat.inode);
            self.names.created(&path);
        }
        let index = self.index_of(stat, path, created);
        let syncs = raw::flags_of(fd) & libc::O_DSYNC != 0;
        let mark = (index as u32 + 1) * 2 + u32::from(syncs);
        let slot = FOLLOWED
            .get(fd as usize)
            .expect("followed descriptors are small");
        slot.store(mark, Ordering::Release);
    }

    fn index_of(&self, stat: raw::FileStat, path: PathBuf, created: bool) -> usize {
        let mut things = self.things.lock().expect("no holder of the list panics");
        let same = |thing: &Arc<Thing>| match &**thing {
            Thing::File(ledger) => {
                !created && (ledger.stat.device, ledger.stat.inode) == (stat.device, stat.inode)
            }
            Thing::Folder(known) => stat.directory && *known == path,
        };
        // The newest first: an inode number may have been used before.
        if let Some(index) = things.iter().rposition(same) {
            return index;
        }
        things.push(Arc::new(if stat.directory {
            Thing::Folder(path)
        } else {
            Thing::File(Ledger::of(stat, &self.sidecar))
        }));
        things.len() - 1
    }

    /// Renames by `rename`, noting what is replaced.
    pub fn renames(&self, from: &Path, to: &Path, rename: impl FnOnce() -> c_int) -> c_int {
        if !self.covers(from) && !self.covers(to) {
            return rename();
        }
        let former = self.names.link_former(to);
        let result = rename();
        if result == 0 {
            self.names.renamed(from, to, former.as_deref());
        }
        result
    }

    /// A call that this layer cannot follow; the self-test fails.
    pub fn unsupported(&self, what: &str) {
        let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_APPEND;
        let out = raw::open(&self.sidecar.join("unsupported"), flags);
        raw::append(
            out.expect("the sidecar can be written").number(),
            format!("{what}\n").as_bytes(),
        );
    }
}

fn refused<T: From<i8>>(error: c_int) -> T {
    raw::set_errno(error);
    T::from(-1)
}

impl Followed {
    fn ledger(&self) -> Option<&Ledger> {
        match &*self.thing {
            Thing::File(ledger) => Some(ledger),
            Thing::Folder(_) => None,
        }
    }

    fn flush_is_ignored(&self) -> bool {
        let Some(name) = &self.layer.flush_ignored else {
            return false;
        };
        name == "*" || raw::path_of(self.fd).is_some_and(|path| path.file_name() == Some(name))
    }

    /// Position of a write that names none.
    pub fn position(&self) -> u64 {
        let appends = raw::flags_of(self.fd) & libc::O_APPEND != 0;
        if appends {
            return raw::stat(self.fd).map_or(0, |stat| stat.bytes);
        }
        raw::seek(self.fd, 0, libc::SEEK_CUR).max(0) as u64
    }

    pub fn writes(&self, offset: u64, bytes: u64, write: impl FnOnce() -> ssize_t) -> ssize_t {
        let Some(ledger) = self.ledger() else {
            return write();
        };
        if let Some(disk) = &self.layer.disk {
            let size = raw::stat(self.fd).map_or(0, |stat| stat.bytes);
            if let Err(error) = disk.before_write(offset + bytes > size) {
                return refused::<ssize_t>(error);
            }
        }
        let _epoch = ledger.write_begins();
        ledger.record(self.fd, offset, bytes);
        let written = write();
        if self.every_write_syncs && written > 0 && !self.flush_is_ignored() {
            ledger.blocks_are_durable(self.fd, offset, written as u64);
        }
        written
    }

    pub fn reads(&self, read: impl FnOnce() -> ssize_t) -> ssize_t {
        match self.layer.disk.as_ref().map(DiskFault::before_read) {
            Some(Err(error)) => refused::<ssize_t>(error),
            _ => read(),
        }
    }

    pub fn allocates(&self, end: u64, allocate: impl FnOnce() -> c_int) -> c_int {
        let grows = raw::stat(self.fd).is_some_and(|stat| end > stat.bytes);
        match self
            .layer
            .disk
            .as_ref()
            .map(|disk| disk.before_growth(grows))
        {
            Some(Err(error)) => refused::<c_int>(error),
            _ => allocate(),
        }
    }

    pub fn truncates(&self, bytes: u64, truncate: impl FnOnce() -> c_int) -> c_int {
        let Some(ledger) = self.ledger() else {
            return truncate();
        };
        let size = raw::stat(self.fd).map_or(0, |stat| stat.bytes);
        let _epoch = ledger.write_begins();
        // One block at least: the epoch then knows the former size.
        let start = bytes.min(size);
        ledger.record(self.fd, start, size.max(bytes).max(start + 1) - start);
        truncate()
    }

    pub fn flushes(&self, flush: impl FnOnce() -> c_int) -> c_int {
        if let Some(Err(error)) = self.layer.disk.as_ref().map(DiskFault::before_flush) {
            return refused::<c_int>(error);
        }
        if self.flush_is_ignored() {
            return 0;
        }
        let names = &self.layer.names;
        match &*self.thing {
            Thing::Folder(path) => {
                let result = flush();
                if result == 0 {
                    names.folder_flushed(path);
                }
                result
            }
            Thing::File(ledger) => {
                let through = ledger.flush_begins();
                let result = flush();
                if result == 0 {
                    ledger.flushed(through);
                    if let Some(path) = raw::path_of(self.fd) {
                        names.file_flushed(&path);
                    }
                }
                result
            }
        }
    }
}
