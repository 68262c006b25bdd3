//! The scan at start over a damaged frame file.
//!
//! Properties: a storage opens, or refuses a superblock; a replica whose frame nobody touched is
//! still there, byte for byte; without forged checksums, whatever is handed out was acknowledged
//! once; afterwards new replicas can be written. The file that is damaged holds an open replica of
//! two groups, a closed raw one, a closed compressed one and a frame that was freed.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::FileExt;

use rekindle_core::backup::frame::{FRAME_BYTES, SLOT_BYTES, SlotContent, decode_slot};
use rekindle_core::backup::{BackupStorage, ReplicaReport};
use rekindle_core::status::Status;

use crate::random::Random;
use crate::reference::{Fields, crc32c};
use crate::scratch::Scratch;
use crate::small_backup::{self, Write, flag, wait};

const REPAIR: u8 = 1;
const BLOCK_BYTES: usize = 4096;
const SLOT_BLOCKS: usize = SLOT_BYTES / BLOCK_BYTES;
const CRC_AT: usize = BLOCK_BYTES - 4;
const PATCHES_MAX: usize = 16;
/// As many as the replicas need, one for the image, and those that compression leaves free.
const FRAMES: u32 = 8;
const FRAMES_FILE: &str = "frames";

type Key = (u64, u64);

/// A storage that was closed in good order.
struct Base {
    /// Files but for `frames`.
    files: Vec<(String, Vec<u8>)>,
    length: u64,
    /// The blocks of `frames` that are not zeros, by number.
    blocks: BTreeMap<usize, Vec<u8>>,
    /// What was ever acknowledged, oldest first.
    states: BTreeMap<Key, Vec<Vec<u8>>>,
    /// What it reports without damage.
    reports: Vec<ReplicaReport>,
    directory: Scratch,
}

thread_local! {
    static BASE: RefCell<Option<Base>> = const { RefCell::new(None) };
}

/// Mode byte, then patches of 8 bytes: which frame or superblock, which block of it, where, what.
pub fn check(input: &[u8]) {
    BASE.with_borrow_mut(|base| run(base.get_or_insert_with(Base::new), input));
}

fn noise(length: usize) -> Vec<u8> {
    let mut random = Random::new(7);
    (0..length).map(|_| random.number() as u8).collect()
}

impl Base {
    fn new() -> Self {
        let directory = Scratch::new();
        let storage = small_backup::open(directory.path(), FRAMES).expect("a new storage");
        let states = Self::fill(&storage);
        let reports = storage.replicas();
        storage.close();
        drop(storage);
        let mut files = Vec::new();
        let mut frames = Vec::new();
        for entry in std::fs::read_dir(directory.path()).expect("listed") {
            let entry = entry.expect("listed");
            let name = entry.file_name().into_string().expect("an ASCII name");
            let bytes = std::fs::read(entry.path()).expect("a file");
            if name == FRAMES_FILE {
                frames = bytes;
            } else {
                files.push((name, bytes));
            }
        }
        files.sort();
        let blocks = frames.chunks(BLOCK_BYTES).enumerate();
        let written = blocks.filter(|(_, block)| block.iter().any(|byte| *byte != 0));
        Self {
            files,
            length: frames.len() as u64,
            blocks: written
                .map(|(number, block)| (number, block.to_vec()))
                .collect(),
            states,
            reports,
            directory,
        }
    }

    fn fill(storage: &BackupStorage) -> BTreeMap<Key, Vec<Vec<u8>>> {
        let put = |key: Key, all: &[u8], from: usize, flags: u32| {
            let body = Write::certified(key, all, from, flags).body();
            storage.write(&body, 1).expect("accepted");
            small_backup::until(storage, |stat| stat("queuedBytes") == 0.0);
        };
        let noise = noise(9000);
        let text = b"Rekindle keeps all data in DRAM. ".repeat(600);
        put((1, 1), &noise[..300], 0, flag::OPEN | flag::PRIMARY);
        put((1, 1), &noise[..5000], 300, flag::PRIMARY);
        put((1, 2), &noise, 0, flag::OPEN | flag::CLOSE);
        put((2, 1), &text, 0, flag::OPEN | flag::CLOSE | flag::PRIMARY);
        put((3, 1), &noise[..100], 0, flag::OPEN);
        small_backup::until(storage, |stat| {
            (stat("compressedReplicas"), stat("compressionSkipped")) == (1.0, 1.0)
        });
        wait(|done| storage.free(3, &[1], done)).expect("frees");
        let freed = noise[..100].to_vec(); // comes back if the slot that says so is lost
        BTreeMap::from([
            ((1, 1), vec![noise[..300].to_vec(), noise[..5000].to_vec()]),
            ((1, 2), vec![noise]),
            ((2, 1), vec![text]),
            ((3, 1), vec![freed]),
        ])
    }

    /// Writes the files; `patched` replaces or adds blocks of `frames`.
    fn restore(&self, patched: &BTreeMap<usize, Vec<u8>>, files: &[(String, Vec<u8>)]) {
        for (name, bytes) in files {
            std::fs::write(self.directory.path().join(name), bytes).expect("writes");
        }
        let path = self.directory.path().join(FRAMES_FILE);
        let frames = std::fs::File::create(path).expect("creates");
        frames.set_len(self.length).expect("a length");
        let untouched = self
            .blocks
            .iter()
            .filter(|(number, _)| !patched.contains_key(number));
        for (number, block) in untouched.chain(patched) {
            let offset = (number * BLOCK_BYTES) as u64;
            frames.write_all_at(block, offset).expect("writes");
        }
    }
}

struct Damage {
    blocks: BTreeMap<usize, Vec<u8>>,
    files: Vec<(String, Vec<u8>)>,
    /// Frames with a patch.
    frames: BTreeSet<usize>,
    superblocks: bool,
}

impl Damage {
    fn of(base: &Base, mode: u8, mut fields: Fields<'_>) -> Self {
        let mut damage = Self {
            blocks: BTreeMap::new(),
            files: base.files.clone(),
            frames: BTreeSet::new(),
            superblocks: false,
        };
        let frames = (base.length as usize).div_ceil(FRAME_BYTES);
        for _ in 0..PATCHES_MAX {
            if fields.is_empty() {
                break;
            }
            let (place, block_number, at) = (fields.u8(), fields.u8(), fields.u16());
            let (kind, change) = (fields.u8(), fields.array::<3>());
            let place = usize::from(place) % (frames + 1);
            if place == frames {
                let index = usize::from(block_number) % damage.files.len();
                patch(&mut damage.files[index].1, mode, at, kind, change);
                damage.superblocks = true;
                continue;
            }
            // Slots are what decides; of the data, the first blocks hold all there is.
            let number = place * (FRAME_BYTES / BLOCK_BYTES) + usize::from(block_number) % 10;
            let original = base.blocks.get(&number).cloned();
            let empty = || vec![0; BLOCK_BYTES];
            let block = damage
                .blocks
                .entry(number)
                .or_insert_with(|| original.unwrap_or_else(empty));
            patch(block, mode, at, kind, change);
            damage.frames.insert(place);
        }
        damage
    }
}

fn patch(block: &mut [u8], mode: u8, at: u16, kind: u8, change: [u8; 3]) {
    let at = usize::from(at) % block.len();
    match kind % 5 {
        0 => block[at] ^= change[0],
        1 => block[at..].fill(0),
        2 => block[..at].fill(change[0]),
        3 => {
            let start = at % 192 / 4 * 4; // the fields of a certificate, the rows of a directory
            block[start..start + 3].copy_from_slice(&change);
        }
        _ => block.rotate_left(at),
    }
    if mode & REPAIR != 0 && block.len() == BLOCK_BYTES {
        let checksum = crc32c(&block[..CRC_AT]);
        block[CRC_AT..].copy_from_slice(&checksum.to_le_bytes());
    }
}

fn run(base: &Base, input: &[u8]) {
    let mut fields = Fields::new(input);
    let mode = fields.u8();
    let damage = Damage::of(base, mode, fields);
    base.restore(&damage.blocks, &damage.files);
    let frames_max = (base.length as usize).div_ceil(FRAME_BYTES) as u32;
    let storage = match small_backup::open(base.directory.path(), frames_max) {
        Ok(storage) => storage,
        Err(error) => {
            assert!(damage.superblocks, "only a superblock refuses: {error}");
            return;
        }
    };
    let forged = mode & REPAIR != 0;
    let found = storage.replicas();
    for report in &found {
        check_replica(base, &storage, report, forged, damage.frames.is_empty());
    }
    if damage.frames.is_empty() {
        assert!(found.len() == base.reports.len(), "no damage, no loss");
    }
    check_untouched(base, &storage, &damage, forged);
    // Fences that were forged may forbid any master but not all.
    let free = storage.load().free_frames;
    let bytes = noise(600);
    let body = Write::certified((1 << 40, 1), &bytes, 0, flag::OPEN).body();
    match storage.write(&body, 1) {
        Ok(_) => assert!(
            storage.read(1 << 40, 1) == Ok(bytes),
            "a new replica is kept"
        ),
        Err(Status::NoFreeFrame) => assert!(free == 0, "only for want of frames"),
        Err(Status::Fenced) => assert!(damage.superblocks && forged, "nobody fenced it"),
        Err(status) => panic!("a new replica is refused: {status}"),
    }
    storage.close();
}

fn check_replica(
    base: &Base,
    storage: &BackupStorage,
    report: &ReplicaReport,
    forged: bool,
    whole: bool,
) {
    let Ok(bytes) = storage.read(report.master_id, report.segment_id) else {
        assert!(!whole, "an undamaged replica is read");
        return;
    };
    assert!(
        bytes.len() == report.length as usize,
        "the certified length"
    );
    if !forged {
        let states = &base.states[&(report.master_id, report.segment_id)];
        assert!(
            states.contains(&bytes),
            "nothing that was never acknowledged"
        );
    }
}

/// Replicas in frames without a patch are whole, unless a forged one took their place.
fn check_untouched(base: &Base, storage: &BackupStorage, damage: &Damage, forged: bool) {
    if forged {
        return;
    }
    for report in &base.reports {
        let key = (report.master_id, report.segment_id);
        let newest = base.states[&key].last().expect("has a state");
        // Where a replica lies is not reported: the slots tell.
        let frames = base.frames_of(key);
        if frames.is_disjoint(&damage.frames) {
            assert!(
                storage.read(key.0, key.1).as_ref() == Ok(newest),
                "{key:?} is whole"
            );
        }
    }
}

impl Base {
    /// Frames with a slot that names the replica, as its own or as that of an image.
    fn frames_of(&self, key: Key) -> BTreeSet<usize> {
        let mut found = BTreeSet::new();
        let blocks_per_frame = FRAME_BYTES / BLOCK_BYTES;
        for number in self.blocks.keys() {
            let (frame, block) = (number / blocks_per_frame, number % blocks_per_frame);
            if block != 0 && block != SLOT_BLOCKS {
                continue;
            }
            match decode_slot(&self.slot(*number)) {
                SlotContent::Valid(slot) if (slot.master_id, slot.segment_id) == key => {
                    found.insert(frame);
                }
                SlotContent::Shared(directory) => {
                    let tenants = directory.tenants.iter();
                    for tenant in tenants.filter(|one| (one.master_id, one.segment_id) == key) {
                        found.insert(frame);
                        found.extend(tenant.next.map(|piece| piece.frame as usize));
                    }
                }
                _ => {}
            }
        }
        found
    }

    fn slot(&self, first_block: usize) -> Vec<u8> {
        let zeros = vec![0; BLOCK_BYTES];
        let blocks = first_block..first_block + SLOT_BLOCKS;
        let each = blocks.flat_map(|number| self.blocks.get(&number).unwrap_or(&zeros).clone());
        each.collect()
    }
}

fn seed(mode: u8, patches: &[(u8, u8, u16, u8, [u8; 3])]) -> Vec<u8> {
    let mut out = vec![mode];
    for (place, block, at, kind, change) in patches {
        out.extend([*place, *block]);
        out.extend(at.to_le_bytes());
        out.push(*kind);
        out.extend(change);
    }
    out
}

/// No damage, torn slots, rotten data, lost superblocks, forged fields.
pub fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let torn = (0, 0, 100, 1, [0; 3]);
    let other_torn = (0, 2, 100, 1, [0; 3]);
    let rotten = (1, 4, 77, 0, [1, 0, 0]);
    let sequence = (0, 2, 8, 3, [99, 0, 0]);
    let superblock = (255, 0, 0, 1, [0; 3]);
    vec![
        ("whole", seed(0, &[])),
        ("torn", seed(0, &[torn])),
        ("both-torn", seed(0, &[torn, other_torn])),
        ("rotten", seed(0, &[rotten, (2, 4, 9, 0, [4, 0, 0])])),
        ("forged", seed(REPAIR, &[sequence])),
        ("superblock", seed(0, &[superblock])),
    ]
}
