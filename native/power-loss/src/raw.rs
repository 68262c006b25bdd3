//! System calls as they are, without this layer: whatever runs inside the layer comes here, since
//! libc's names lead back to it.
//!
//! Failed calls return -1 and set errno, like libc's.

use libc::{c_int, c_long, c_void, off_t, size_t, ssize_t};
use std::ffi::{CStr, CString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Owner of a descriptor that the layer itself opened.
pub struct OwnFd(c_int);

impl OwnFd {
    pub fn number(&self) -> c_int {
        self.0
    }
}

impl Drop for OwnFd {
    fn drop(&mut self) {
        close(self.0);
    }
}

/// What tells two files apart, and what a truncated or grown one has lost or won.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct FileStat {
    pub device: u64,
    pub inode: u64,
    pub bytes: u64,
    pub regular: bool,
    pub directory: bool,
}

pub fn errno() -> c_int {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

pub fn set_errno(value: c_int) {
    // SAFETY: libc's pointer to this thread's errno is valid as long as the thread runs.
    unsafe { *libc::__errno_location() = value };
}

fn c_path(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).expect("a path that was opened holds no NUL")
}

/// Every call of this file that takes numbers and pointers which live as long as the call.
fn call(number: c_long, arguments: [c_long; 6]) -> c_long {
    let [a, b, c, d, e, f] = arguments;
    // SAFETY: callers pass the arguments of the system call that they name; pointers among them
    // come from references, or from the process's own call, and live until it returns.
    unsafe { libc::syscall(number, a, b, c, d, e, f) }
}

pub fn open_at(directory: c_int, path: &CStr, flags: c_int, mode: libc::mode_t) -> c_int {
    let pointer = path.as_ptr().addr() as c_long;
    let arguments = [
        directory as c_long,
        pointer,
        flags as c_long,
        mode as c_long,
        0,
        0,
    ];
    call(libc::SYS_openat, arguments) as c_int
}

pub fn open(path: &Path, flags: c_int) -> Option<OwnFd> {
    let fd = open_at(
        libc::AT_FDCWD,
        &c_path(path),
        flags | libc::O_CLOEXEC,
        0o644,
    );
    (fd >= 0).then_some(OwnFd(fd))
}

pub fn close(fd: c_int) -> c_int {
    call(libc::SYS_close, [fd as c_long, 0, 0, 0, 0, 0]) as c_int
}

pub fn read_at(fd: c_int, start: *mut c_void, bytes: size_t, offset: off_t) -> ssize_t {
    let arguments = [
        fd as c_long,
        start.addr() as c_long,
        bytes as c_long,
        offset,
        0,
        0,
    ];
    call(libc::SYS_pread64, arguments) as ssize_t
}

pub fn write_at(fd: c_int, start: *const c_void, bytes: size_t, offset: off_t) -> ssize_t {
    let arguments = [
        fd as c_long,
        start.addr() as c_long,
        bytes as c_long,
        offset,
        0,
        0,
    ];
    call(libc::SYS_pwrite64, arguments) as ssize_t
}

pub fn write(fd: c_int, start: *const c_void, bytes: size_t) -> ssize_t {
    let arguments = [
        fd as c_long,
        start.addr() as c_long,
        bytes as c_long,
        0,
        0,
        0,
    ];
    call(libc::SYS_write, arguments) as ssize_t
}

pub fn writev(fd: c_int, vectors: *const libc::iovec, count: c_int) -> ssize_t {
    let arguments = [
        fd as c_long,
        vectors.addr() as c_long,
        count as c_long,
        0,
        0,
        0,
    ];
    call(libc::SYS_writev, arguments) as ssize_t
}

pub fn writev_at(fd: c_int, vectors: *const libc::iovec, count: c_int, offset: off_t) -> ssize_t {
    let arguments = [
        fd as c_long,
        vectors.addr() as c_long,
        count as c_long,
        offset,
        0,
        0,
    ];
    call(libc::SYS_pwritev, arguments) as ssize_t
}

/// Appends everything, in as few calls as the system takes.
pub fn append(fd: c_int, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        let written = write(fd, bytes.as_ptr().cast(), bytes.len());
        if written < 0 && errno() == libc::EINTR {
            continue;
        }
        assert!(
            written > 0,
            "the sidecar of the power-loss layer takes what it is given"
        );
        bytes = &bytes[written as usize..];
    }
}

/// Fills `bytes` from `offset`; zeros beyond the end of the file.
pub fn fill(fd: c_int, bytes: &mut [u8], offset: u64) {
    let mut filled = 0;
    while filled < bytes.len() {
        let rest = &mut bytes[filled..];
        let at = (offset + filled as u64) as off_t;
        match read_at(fd, rest.as_mut_ptr().cast(), rest.len(), at) {
            0 => break,
            count if count > 0 => filled += count as usize,
            _ if errno() == libc::EINTR => {}
            _ => panic!("the power-loss layer reads what it is about to overwrite"),
        }
    }
    bytes[filled..].fill(0);
}

pub fn sync(fd: c_int, data_only: bool) -> c_int {
    let number = if data_only {
        libc::SYS_fdatasync
    } else {
        libc::SYS_fsync
    };
    call(number, [fd as c_long, 0, 0, 0, 0, 0]) as c_int
}

pub fn truncate(fd: c_int, bytes: off_t) -> c_int {
    call(libc::SYS_ftruncate, [fd as c_long, bytes, 0, 0, 0, 0]) as c_int
}

pub fn allocate(fd: c_int, mode: c_int, offset: off_t, bytes: off_t) -> c_int {
    let arguments = [fd as c_long, mode as c_long, offset, bytes, 0, 0];
    call(libc::SYS_fallocate, arguments) as c_int
}

pub fn seek(fd: c_int, offset: off_t, whence: c_int) -> off_t {
    call(
        libc::SYS_lseek,
        [fd as c_long, offset, whence as c_long, 0, 0, 0],
    )
}

pub fn flags_of(fd: c_int) -> c_int {
    call(
        libc::SYS_fcntl,
        [fd as c_long, libc::F_GETFL as c_long, 0, 0, 0, 0],
    ) as c_int
}

pub fn rename(from: &CStr, to: &CStr) -> c_int {
    let here = libc::AT_FDCWD as c_long;
    let (from, to) = (from.as_ptr().addr() as c_long, to.as_ptr().addr() as c_long);
    call(libc::SYS_renameat2, [here, from, here, to, 0, 0]) as c_int
}

pub fn unlink(path: &CStr) -> c_int {
    let arguments = [
        libc::AT_FDCWD as c_long,
        path.as_ptr().addr() as c_long,
        0,
        0,
        0,
        0,
    ];
    call(libc::SYS_unlinkat, arguments) as c_int
}

pub fn remove(path: &Path) {
    unlink(&c_path(path));
}

pub fn link(from: &Path, to: &Path) -> bool {
    let here = libc::AT_FDCWD as c_long;
    let (from, to) = (c_path(from), c_path(to));
    let (from, to) = (from.as_ptr().addr() as c_long, to.as_ptr().addr() as c_long);
    call(libc::SYS_linkat, [here, from, here, to, 0, 0]) == 0
}

/// A mapping as the process asked for it.
pub fn map(start: *mut c_void, bytes: size_t, how: [c_int; 3], offset: off_t) -> *mut c_void {
    let [protection, flags, fd] = how.map(|number| number as c_long);
    let arguments = [
        start.addr() as c_long,
        bytes as c_long,
        protection,
        flags,
        fd,
        offset,
    ];
    std::ptr::with_exposed_provenance_mut(call(libc::SYS_mmap, arguments) as usize)
}

pub fn stat(fd: c_int) -> Option<FileStat> {
    let mut found = std::mem::MaybeUninit::<libc::stat>::zeroed();
    // SAFETY: `found` has room for what fstat writes.
    let result = unsafe { libc::fstat(fd, found.as_mut_ptr()) };
    // SAFETY: zeroed bytes are a valid `stat`, and a call that succeeded has filled it in.
    let found = unsafe { found.assume_init() };
    (result == 0).then_some(FileStat {
        device: found.st_dev,
        inode: found.st_ino,
        bytes: found.st_size as u64,
        regular: found.st_mode & libc::S_IFMT == libc::S_IFREG,
        directory: found.st_mode & libc::S_IFMT == libc::S_IFDIR,
    })
}

/// Where a descriptor leads, by /proc.
pub fn path_of(fd: c_int) -> Option<PathBuf> {
    std::fs::read_link(format!("/proc/self/fd/{fd}")).ok()
}
