//! The superblock: who this storage belongs to and which masters it refuses, in two files that are
//! written alternately; the newest valid one wins.
//!
//! Rule: storage whose superblock has another magic, format or segment size is never touched. A
//! torn file is survived because the other one is whole.

use crate::backup::frame::BLOCK_BYTES;
use crate::crc32c::crc32c;
use crate::entry::SEGMENT_BYTES;
use crate::little_endian::{u32_at, u64_at};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Masters that can be fenced at the same time.
pub const FENCED_MAX: usize = 448;
/// Characters of a cluster id.
pub const CLUSTER_ID_BYTES: usize = 36;

const MAGIC: u32 = u32::from_le_bytes(*b"RKSB");
const FORMAT: u32 = 1;
const CLUSTER_AT: usize = 24;
const SEGMENT_BYTES_AT: usize = 64;
const FENCED_AT: usize = 72;
const CRC_AT: usize = BLOCK_BYTES - 4;

const _: () = assert!(FENCED_AT + 8 * FENCED_MAX <= CRC_AT);

/// Whose storage this is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// UUID in its 36 characters.
    pub cluster_id: String,
    /// The backup that wrote the replicas.
    pub server_id: u64,
}

/// Contents of the newest superblock.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Superblock {
    /// Grows with every write; its low bit names the file.
    pub sequence: u64,
    /// None before the first enlistment.
    pub identity: Option<Identity>,
    /// Ascending master ids, at most [`FENCED_MAX`].
    pub fenced: Vec<u64>,
}

/// Why storage was refused, in words for the operator.
pub type Refusal = String;

fn encode(superblock: &Superblock) -> Vec<u8> {
    assert!(
        superblock.fenced.len() <= FENCED_MAX,
        "the caller checks the limit"
    );
    let mut out = vec![0u8; BLOCK_BYTES];
    let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &MAGIC.to_le_bytes());
    put(4, &FORMAT.to_le_bytes());
    put(8, &superblock.sequence.to_le_bytes());
    if let Some(identity) = &superblock.identity {
        assert!(
            identity.cluster_id.len() == CLUSTER_ID_BYTES,
            "the caller checks the length"
        );
        put(16, &identity.server_id.to_le_bytes());
        put(CLUSTER_AT, identity.cluster_id.as_bytes());
    }
    put(SEGMENT_BYTES_AT, &(SEGMENT_BYTES as u32).to_le_bytes());
    put(
        SEGMENT_BYTES_AT + 4,
        &(superblock.fenced.len() as u32).to_le_bytes(),
    );
    for (index, master_id) in superblock.fenced.iter().enumerate() {
        put(FENCED_AT + 8 * index, &master_id.to_le_bytes());
    }
    let crc = crc32c(&out[..CRC_AT]);
    out[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
    out
}

/// `Ok(None)`: nothing there, or torn.
fn decode(bytes: &[u8], path: &Path) -> Result<Option<Superblock>, Refusal> {
    if bytes.iter().all(|&byte| byte == 0) {
        return Ok(None);
    }
    let shown = path.display();
    if bytes.len() < 8 || u32_at(bytes, 0) != MAGIC {
        return Err(format!(
            "{shown} is not a superblock of Rekindle (wrong magic)"
        ));
    }
    let format = u32_at(bytes, 4);
    if format != FORMAT {
        return Err(format!(
            "{shown} has format {format}, this version knows {FORMAT}"
        ));
    }
    if bytes.len() != BLOCK_BYTES || u32_at(bytes, CRC_AT) != crc32c(&bytes[..CRC_AT]) {
        return Ok(None);
    }
    let segment_bytes = u32_at(bytes, SEGMENT_BYTES_AT);
    let fenced_count = u32_at(bytes, SEGMENT_BYTES_AT + 4) as usize;
    if segment_bytes as usize != SEGMENT_BYTES || fenced_count > FENCED_MAX {
        return Err(format!(
            "{shown}: segments of {segment_bytes} B, {fenced_count} fences"
        ));
    }
    let cluster = &bytes[CLUSTER_AT..CLUSTER_AT + CLUSTER_ID_BYTES];
    let identity = if cluster.iter().all(|&byte| byte == 0) {
        None
    } else {
        let cluster_id = String::from_utf8(cluster.to_vec())
            .map_err(|_| format!("{shown}: the cluster id is not text"))?;
        Some(Identity {
            cluster_id,
            server_id: u64_at(bytes, 16),
        })
    };
    let fenced = (0..fenced_count)
        .map(|index| u64_at(bytes, FENCED_AT + 8 * index))
        .collect();
    Ok(Some(Superblock {
        sequence: u64_at(bytes, 8),
        identity,
        fenced,
    }))
}

/// The two files in a directory.
pub struct SuperblockFiles {
    directory: PathBuf,
}

impl SuperblockFiles {
    /// Names the files; touches nothing.
    pub fn new(directory: &Path) -> Self {
        Self {
            directory: directory.to_path_buf(),
        }
    }

    fn path(&self, index: u64) -> PathBuf {
        self.directory.join(format!("superblock-{index}"))
    }

    /// The newest valid superblock; None if neither file was ever written whole.
    ///
    /// # Errors
    /// A refusal if a file is foreign or cannot be read, or if files are there and all are torn.
    pub fn load(&self) -> Result<Option<Superblock>, Refusal> {
        let mut newest: Option<Superblock> = None;
        let mut torn = None;
        for index in 0..2 {
            let path = self.path(index);
            let bytes = match std::fs::read(&path) {
                Ok(bytes) => bytes,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(format!("{}: {error}", path.display())),
            };
            match decode(&bytes, &path)? {
                Some(found) => {
                    let better = newest
                        .as_ref()
                        .is_none_or(|best| best.sequence < found.sequence);
                    newest = if better { Some(found) } else { newest };
                }
                None if bytes.iter().any(|&byte| byte != 0) => torn = Some(path),
                None => {}
            }
        }
        match (newest, torn) {
            (None, Some(path)) => Err(format!("{} is damaged, no other is valid", path.display())),
            (newest, _) => Ok(newest),
        }
    }

    /// Writes the file that does not hold the newest superblock, and flushes it.
    ///
    /// # Errors
    /// Of the operating system; the other file still holds the superblock before.
    pub fn write(&self, superblock: &Superblock) -> io::Result<()> {
        let path = self.path(superblock.sequence % 2);
        let created = !path.exists();
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)?;
        file.write_all_at(&encode(superblock), 0)?;
        file.sync_all()?;
        if created {
            File::open(&self.directory)?.sync_all()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let identity = Identity {
            cluster_id: "a".repeat(CLUSTER_ID_BYTES),
            server_id: 1 << 33,
        };
        let fenced = (1..=FENCED_MAX as u64).collect();
        let whole = Superblock {
            sequence: 9,
            identity: Some(identity),
            fenced,
        };
        let path = Path::new("superblock");
        assert_eq!(decode(&encode(&whole), path), Ok(Some(whole)));
        let empty = Superblock {
            sequence: 1,
            ..Superblock::default()
        };
        assert_eq!(decode(&encode(&empty), path), Ok(Some(empty)));
    }
}
