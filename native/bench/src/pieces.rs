//! Recovery segments to be replayed, made up as fast as memory takes them.

use rekindle_core::backup::lz4_image;
use rekindle_core::entry::{
    EntryHeader, EntryType, PieceChecksum, SEGMENT_BYTES, entry_bytes, write_entry,
};

use crate::limits::mix;
use crate::masters::TABLE_ID;
use crate::records;

const KEY_BYTES: usize = 24;
/// Room for the header of the side segment that a piece comes to lie in.
const PIECE_BYTES_MAX: usize = SEGMENT_BYTES - 4096;

/// What the values hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Bytes that cost nothing to make.
    Filler,
    /// English text.
    Text,
    /// JSON records.
    Json,
}

/// What is replayed.
#[derive(Clone, Copy, Debug)]
pub struct Workload {
    /// Objects in all pieces.
    pub objects: u64,
    /// Bytes of a value.
    pub value_bytes: usize,
    /// Their contents.
    pub content: Content,
    /// Every other object overwrites an older one.
    pub overwrites: bool,
}

impl Workload {
    /// Bytes of an entry.
    pub const fn entry_bytes(&self) -> usize {
        entry_bytes(KEY_BYTES, self.value_bytes, 0)
    }

    /// Objects of a full piece.
    pub const fn piece_objects(&self) -> u64 {
        (PIECE_BYTES_MAX / self.entry_bytes()) as u64
    }

    /// Keys among all objects.
    pub fn keys(&self) -> u64 {
        if self.overwrites {
            self.objects.div_ceil(2)
        } else {
            self.objects
        }
    }
}

/// One piece.
#[derive(Default)]
pub struct Piece {
    /// Entries without a gap.
    pub bytes: Vec<u8>,
    /// The certificate of `docs/formats.md` §2.
    pub checksum: u32,
    /// Entries in it.
    pub objects: u64,
    /// The LZ4 image of `bytes`, once it was asked for.
    pub image: Vec<u8>,
}

impl Piece {
    /// Makes the image.
    ///
    /// # Panics
    /// If the contents do not compress.
    pub fn compress(&mut self) {
        self.image.resize(SEGMENT_BYTES, 0);
        let length = lz4_image::encode(&self.bytes, &mut self.image);
        self.image.truncate(length.expect("text and JSON compress"));
    }
}

/// Makes the pieces of one thread: the objects from `next` on.
pub struct Pieces {
    workload: Workload,
    first: u64,
    next: u64,
    end: u64,
    value: Vec<u8>,
}

impl Pieces {
    /// The part of the workload that thread `thread` of `threads` replays.
    pub fn new(workload: Workload, thread: u64, threads: u64) -> Self {
        let share = workload.objects / threads;
        Self {
            workload,
            first: thread * share,
            next: thread * share,
            end: (thread + 1) * share,
            value: vec![7; workload.value_bytes],
        }
    }

    /// The key of object `number`: new ones have numbers of their own, every other object of an
    /// overwriting workload repeats one of its thread.
    fn key_number(&self, number: u64) -> u64 {
        if !self.workload.overwrites {
            return number;
        }
        let pair = (number - self.first) / 2;
        let drawn = if number.is_multiple_of(2) {
            pair
        } else {
            mix(number) % (pair + 1)
        };
        self.first + drawn
    }

    /// Fills `piece` with the next objects; false if there are none.
    pub fn fill(&mut self, piece: &mut Piece) -> bool {
        let Workload {
            value_bytes,
            content,
            ..
        } = self.workload;
        let objects = self.workload.piece_objects().min(self.end - self.next);
        piece.objects = objects;
        piece
            .bytes
            .resize(objects as usize * self.workload.entry_bytes(), 0);
        let mut at = 0;
        for _ in 0..objects {
            let number = self.key_number(self.next);
            let mut key = *b"object::................";
            key[8..16].copy_from_slice(&mix(number).to_le_bytes());
            key[16..].copy_from_slice(&number.to_le_bytes());
            match content {
                Content::Filler => self.value[0] = number as u8,
                Content::Text => records::text(self.next, value_bytes, &mut self.value),
                Content::Json => records::json(self.next, value_bytes, &mut self.value),
            }
            let header = EntryHeader {
                entry_type: EntryType::Object,
                flags: 0,
                timestamp: 1,
                table_id: TABLE_ID,
                version: self.next + 1,
            };
            at += write_entry(&mut piece.bytes[at..], &header, &[], &key, &self.value);
            self.next += 1;
        }
        let checksum = PieceChecksum::of(&piece.bytes);
        piece.checksum = checksum.expect("own entries parse");
        objects > 0
    }
}
