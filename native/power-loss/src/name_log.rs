//! Which names of files were made or changed, and which of that is durable: `names` in the sidecar,
//! one line a step, tabs between its parts.
//!
//! ```text
//! create PATH · rename FROM TO [FORMER TO] · folder PATH · file PATH
//! ```
//!
//! `folder`: an fsync of it made all steps in it durable. `file`: an fsync of the file made its
//! creation durable, as ext4, xfs and btrfs do; a rename needs its folder. `FORMER TO` is a link to
//! what the rename has replaced.

use crate::raw::{self, OwnFd};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

pub struct NameLog {
    sidecar: PathBuf,
    out: Mutex<(OwnFd, u64)>,
}

impl NameLog {
    pub fn at(sidecar: &Path) -> Self {
        let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_APPEND;
        let out = raw::open(&sidecar.join("names"), flags).expect("the sidecar can be written");
        Self {
            sidecar: sidecar.to_path_buf(),
            out: Mutex::new((out, 0)),
        }
    }

    fn append(&self, parts: &[&Path]) {
        let words: Vec<_> = parts.iter().map(|part| part.to_string_lossy()).collect();
        let out = self.out.lock().expect("no holder of the log panics");
        raw::append(out.0.number(), format!("{}\n", words.join("\t")).as_bytes());
    }

    pub fn created(&self, path: &Path) {
        self.append(&[Path::new("create"), path]);
    }

    /// Before the rename: links what it will replace.
    pub fn link_former(&self, to: &Path) -> Option<PathBuf> {
        let mut out = self.out.lock().expect("no holder of the log panics");
        out.1 += 1;
        let former = self
            .sidecar
            .join(format!("former-{}-{}", std::process::id(), out.1));
        raw::link(to, &former).then_some(former)
    }

    pub fn renamed(&self, from: &Path, to: &Path, former: Option<&Path>) {
        let mut parts = vec![Path::new("rename"), from, to];
        parts.extend(former);
        self.append(&parts);
    }

    pub fn folder_flushed(&self, path: &Path) {
        self.append(&[Path::new("folder"), path]);
    }

    pub fn file_flushed(&self, path: &Path) {
        self.append(&[Path::new("file"), path]);
    }
}
