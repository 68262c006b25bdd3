//! The two superblock files of a storage.
//!
//! Properties: what is loaded has a right checksum, is the newest of the valid ones and is what was
//! written; a foreign file is refused whatever the other one holds; writing what was loaded and
//! loading it again changes nothing; memory is bounded.

use rekindle_core::backup::Identity;
use rekindle_core::backup::superblock::{
    CLUSTER_ID_BYTES, FENCED_MAX, Superblock, SuperblockFiles,
};

use crate::allocation;
use crate::reference::{Fields, crc32c, u32_at, u64_at};
use crate::scratch::Scratch;

const REPAIR: u8 = 1;
const BLOCK_BYTES: usize = 4096;
const CRC_AT: usize = BLOCK_BYTES - 4;
const MAGIC: u32 = u32::from_le_bytes(*b"RKSB");

thread_local! {
    static DIRECTORY: Scratch = Scratch::new();
}

/// Mode byte; per file: its length (beyond a block: no file), how many bytes follow, these bytes,
/// the checksum. The rest of a file is zeros.
pub fn check(input: &[u8]) {
    let mut fields = Fields::new(input);
    let mode = fields.u8();
    let files: Vec<Option<Vec<u8>>> = (0..2).map(|_| file(&mut fields, mode)).collect();
    DIRECTORY.with(|directory| {
        for (index, bytes) in files.iter().enumerate() {
            let path = directory.path().join(format!("superblock-{index}"));
            match bytes {
                Some(bytes) => std::fs::write(path, bytes).expect("writes the file"),
                None => drop(std::fs::remove_file(path)),
            }
        }
        let handle = SuperblockFiles::new(directory.path());
        let loaded = allocation::at_most(8 * BLOCK_BYTES, || handle.load());
        let valid = files.iter().flatten().filter(|bytes| is_valid(bytes));
        let newest = valid.map(|bytes| u64_at(bytes, 8)).max();
        match loaded {
            Err(_) => {}
            Ok(None) => {
                let untouched = |bytes: &Vec<u8>| bytes.iter().all(|byte| *byte == 0);
                assert!(
                    files.iter().flatten().all(untouched),
                    "nothing was ever written"
                );
            }
            Ok(Some(found)) => {
                assert!(Some(found.sequence) == newest, "the newest valid one");
                check_found(&handle, &files, found);
            }
        }
    });
}

fn file(fields: &mut Fields<'_>, mode: u8) -> Option<Vec<u8>> {
    let (length, given) = (usize::from(fields.u16()), usize::from(fields.u8()));
    let (front, checksum) = (fields.bytes(given), fields.array::<4>());
    if length > BLOCK_BYTES + 8 {
        return None;
    }
    let mut bytes = front.to_vec();
    bytes.resize(length, 0);
    if length == BLOCK_BYTES {
        let right = crc32c(&bytes[..CRC_AT]).to_le_bytes();
        bytes[CRC_AT..].copy_from_slice(if mode & REPAIR != 0 {
            &right
        } else {
            &checksum
        });
    }
    Some(bytes)
}

fn is_valid(bytes: &[u8]) -> bool {
    bytes.len() == BLOCK_BYTES
        && u32_at(bytes, 0) == MAGIC
        && crc32c(&bytes[..CRC_AT]) == u32_at(bytes, CRC_AT)
}

fn check_found(handle: &SuperblockFiles, files: &[Option<Vec<u8>>], found: Superblock) {
    for bytes in files
        .iter()
        .flatten()
        .filter(|bytes| bytes.iter().any(|byte| *byte != 0))
    {
        assert!(
            bytes.len() >= 8 && u32_at(bytes, 0) == MAGIC,
            "a foreign file is refused"
        );
        assert!(u32_at(bytes, 4) == 1, "another format is refused");
    }
    assert!(found.fenced.len() <= FENCED_MAX, "as many fences as fit");
    if let Some(identity) = &found.identity {
        assert!(identity.cluster_id.len() == CLUSTER_ID_BYTES, "a whole id");
    }
    let next = Superblock {
        sequence: found.sequence.wrapping_add(1),
        ..found
    };
    if next.sequence != 0 {
        handle.write(&next).expect("writes");
        assert!(handle.load() == Ok(Some(next)), "what is written is loaded");
    }
}

fn seed(superblocks: [Option<Superblock>; 2]) -> Vec<u8> {
    let directory = Scratch::new();
    let handle = SuperblockFiles::new(directory.path());
    let mut out = vec![0];
    for (index, superblock) in superblocks.into_iter().enumerate() {
        let Some(superblock) = superblock else {
            out.extend([0xff, 0xff, 0]);
            out.extend([0; 4]);
            continue;
        };
        handle.write(&superblock).expect("writes");
        let path = directory.path().join(format!("superblock-{index}"));
        let bytes = std::fs::read(path).expect("was written");
        let given = 72 + 8 * superblock.fenced.len();
        out.extend((bytes.len() as u16).to_le_bytes());
        out.push(given as u8);
        out.extend_from_slice(&bytes[..given]);
        out.extend_from_slice(&bytes[CRC_AT..]);
    }
    out
}

/// A new storage, an enlisted one, one with fences.
pub fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let new = |sequence| Superblock {
        sequence,
        ..Superblock::default()
    };
    let identity = Identity {
        cluster_id: "0f8fad5b-d9cb-469f-a165-70867728950e".to_owned(),
        server_id: (2 << 32) + 1,
    };
    let fenced = Superblock {
        sequence: 6,
        identity: Some(identity),
        fenced: vec![1, 1 << 32],
    };
    vec![
        ("new", seed([None, Some(new(1))])),
        ("enlisted", seed([Some(fenced), Some(new(5))])),
    ]
}
