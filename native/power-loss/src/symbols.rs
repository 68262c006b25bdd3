//! libc's names, as the process calls them. Each looks whether the descriptor is followed, and
//! makes the system call itself either way.
//!
//! Both names of a call (with and without 64) are one on 64-bit Linux. `open` and `openat` are
//! variadic in C; on x86-64 and aarch64 Linux an optional integer is passed where a named one would
//! be, and it is read only when the flags say that it is there.

use crate::layer::{followed, layer};
use crate::{layer as follow, raw};
use libc::{c_char, c_int, c_void, iovec, mode_t, off_t, size_t, ssize_t};
use std::ffi::{CStr, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::slice::from_raw_parts;

fn text<'a>(path: *const c_char) -> &'a CStr {
    // SAFETY: the process passes a string that ends with NUL, and it lives until the call returns.
    unsafe { CStr::from_ptr(path) }
}

/// As the process means it.
fn absolute(directory: c_int, path: &CStr) -> PathBuf {
    let path = Path::new(OsStr::from_bytes(path.to_bytes()));
    if path.is_absolute() {
        return path.to_path_buf();
    }
    let start = if directory == libc::AT_FDCWD {
        std::env::current_dir().ok()
    } else {
        raw::path_of(directory)
    };
    start.unwrap_or_default().join(path)
}

fn open_followed(directory: c_int, path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
    let path = text(path);
    let Some(layer) = layer() else {
        return raw::open_at(directory, path, flags, mode);
    };
    let full = absolute(directory, path);
    if !layer.covers(&full) {
        return raw::open_at(directory, path, flags, mode);
    }
    // With it the storage makes several writes at once, by calls that pass by this layer.
    if flags & libc::O_DIRECT != 0 {
        raw::set_errno(libc::EINVAL);
        return -1;
    }
    let creates = flags & libc::O_CREAT != 0 && !full.exists();
    // What an opening truncates has a former content too.
    let truncates = flags & libc::O_TRUNC != 0 && !creates;
    let fd = raw::open_at(directory, path, flags & !libc::O_TRUNC, mode);
    if fd >= 0 {
        layer.opened(fd, creates);
        if truncates && let Some(file) = followed(fd) {
            file.truncates(0, || raw::truncate(fd, 0));
        }
    }
    fd
}

fn vector_bytes(vectors: *const iovec, count: c_int) -> u64 {
    // SAFETY: the process passes `count` vectors, which live until the call returns.
    let vectors = unsafe { from_raw_parts(vectors, count.max(0) as usize) };
    vectors.iter().map(|vector| vector.iov_len as u64).sum()
}

fn write_to(fd: c_int, start: *const c_void, bytes: size_t, offset: off_t) -> ssize_t {
    let write = || raw::write_at(fd, start, bytes, offset);
    followed(fd).map_or_else(write, |file| {
        file.writes(offset as u64, bytes as u64, write)
    })
}

fn write_vectors(fd: c_int, vectors: *const iovec, count: c_int, offset: off_t) -> ssize_t {
    let write = || raw::writev_at(fd, vectors, count, offset);
    followed(fd).map_or_else(write, |file| {
        file.writes(offset as u64, vector_bytes(vectors, count), write)
    })
}

fn read_from(fd: c_int, start: *mut c_void, bytes: size_t, offset: off_t) -> ssize_t {
    let read = || raw::read_at(fd, start, bytes, offset);
    followed(fd).map_or_else(read, |file| file.reads(read))
}

fn truncate_to(fd: c_int, bytes: off_t) -> c_int {
    let truncate = || raw::truncate(fd, bytes);
    followed(fd).map_or_else(truncate, |file| file.truncates(bytes as u64, truncate))
}

fn allocate_to(fd: c_int, mode: c_int, offset: off_t, bytes: off_t) -> c_int {
    let allocate = || raw::allocate(fd, mode, offset, bytes);
    let only_reserves = mode == libc::FALLOC_FL_KEEP_SIZE;
    followed(fd).map_or_else(allocate, |file| {
        if !only_reserves {
            report("fallocate that changes the file");
        }
        file.allocates((offset + bytes) as u64, allocate)
    })
}

fn sync_to(fd: c_int, data_only: bool) -> c_int {
    let flush = || raw::sync(fd, data_only);
    followed(fd).map_or_else(flush, |file| file.flushes(flush))
}

fn map_to(start: *mut c_void, bytes: size_t, how: [c_int; 3], offset: off_t) -> *mut c_void {
    let [protection, flags, fd] = how;
    let writes = protection & libc::PROT_WRITE != 0 && flags & libc::MAP_SHARED != 0;
    if writes && fd >= 0 && followed(fd).is_some() {
        report("a shared writable mapping");
    }
    raw::map(start, bytes, how, offset)
}

fn report(what: &str) {
    if let Some(layer) = layer() {
        layer.unsupported(what);
    }
}

/// `name(arguments) -> result = body;` for each symbol.
macro_rules! symbols {
    ($($name:ident($($argument:ident: $type:ty),*) -> $result:ty = $body:expr;)*) => {
        $(
            #[unsafe(no_mangle)]
            extern "C" fn $name($($argument: $type),*) -> $result {
                $body
            }
        )*
    };
}

symbols! {
    open(path: *const c_char, flags: c_int, mode: mode_t) -> c_int =
        open_followed(libc::AT_FDCWD, path, flags, mode);
    open64(path: *const c_char, flags: c_int, mode: mode_t) -> c_int =
        open_followed(libc::AT_FDCWD, path, flags, mode);
    openat(directory: c_int, path: *const c_char, flags: c_int, mode: mode_t) -> c_int =
        open_followed(directory, path, flags, mode);
    openat64(directory: c_int, path: *const c_char, flags: c_int, mode: mode_t) -> c_int =
        open_followed(directory, path, flags, mode);
    close(fd: c_int) -> c_int = {
        follow::closed(fd);
        raw::close(fd)
    };
    write(fd: c_int, start: *const c_void, bytes: size_t) -> ssize_t = {
        let write = || raw::write(fd, start, bytes);
        followed(fd).map_or_else(write, |file| file.writes(file.position(), bytes as u64, write))
    };
    writev(fd: c_int, vectors: *const iovec, count: c_int) -> ssize_t = {
        let write = || raw::writev(fd, vectors, count);
        followed(fd).map_or_else(write, |file| {
            file.writes(file.position(), vector_bytes(vectors, count), write)
        })
    };
    pwrite(fd: c_int, start: *const c_void, bytes: size_t, offset: off_t) -> ssize_t =
        write_to(fd, start, bytes, offset);
    pwrite64(fd: c_int, start: *const c_void, bytes: size_t, offset: off_t) -> ssize_t =
        write_to(fd, start, bytes, offset);
    pwritev(fd: c_int, vectors: *const iovec, count: c_int, offset: off_t) -> ssize_t =
        write_vectors(fd, vectors, count, offset);
    pwritev64(fd: c_int, vectors: *const iovec, count: c_int, offset: off_t) -> ssize_t =
        write_vectors(fd, vectors, count, offset);
    pread(fd: c_int, start: *mut c_void, bytes: size_t, offset: off_t) -> ssize_t =
        read_from(fd, start, bytes, offset);
    pread64(fd: c_int, start: *mut c_void, bytes: size_t, offset: off_t) -> ssize_t =
        read_from(fd, start, bytes, offset);
    fsync(fd: c_int) -> c_int = sync_to(fd, false);
    fdatasync(fd: c_int) -> c_int = sync_to(fd, true);
    ftruncate(fd: c_int, bytes: off_t) -> c_int = truncate_to(fd, bytes);
    ftruncate64(fd: c_int, bytes: off_t) -> c_int = truncate_to(fd, bytes);
    fallocate(fd: c_int, mode: c_int, offset: off_t, bytes: off_t) -> c_int =
        allocate_to(fd, mode, offset, bytes);
    fallocate64(fd: c_int, mode: c_int, offset: off_t, bytes: off_t) -> c_int =
        allocate_to(fd, mode, offset, bytes);
    mmap(start: *mut c_void, bytes: size_t, protection: c_int, flags: c_int, fd: c_int,
         offset: off_t) -> *mut c_void =
        map_to(start, bytes, [protection, flags, fd], offset);
    mmap64(start: *mut c_void, bytes: size_t, protection: c_int, flags: c_int, fd: c_int,
           offset: off_t) -> *mut c_void =
        map_to(start, bytes, [protection, flags, fd], offset);
    rename(from: *const c_char, to: *const c_char) -> c_int = {
        let (from, to) = (text(from), text(to));
        let rename = || raw::rename(from, to);
        let full = |path| absolute(libc::AT_FDCWD, path);
        layer().map_or_else(rename, |layer| layer.renames(&full(from), &full(to), rename))
    };
    unlink(path: *const c_char) -> c_int = {
        let path = text(path);
        if layer().is_some_and(|layer| layer.covers(&absolute(libc::AT_FDCWD, path))) {
            report("unlink");
        }
        raw::unlink(path)
    };
}
