//! Mutations for the bounded run: what libFuzzer does, without its feedback.
//!
//! Rule: the input of an iteration depends on the seed, the iteration and the corpus alone, so a
//! failure is repeated without running what came before it.

use crate::random::Random;

const STEPS_MAX: usize = 8;
/// Edges of the formats' fields and limits.
const INTERESTING: [u64; 18] = [
    0,
    1,
    7,
    8,
    0x7f,
    0x80,
    0xff,
    4095,
    4096,
    0xffff,
    0x1_0000,
    0x10_0000,
    0x80_0000,
    0x80_0001,
    0x7fff_ffff,
    0xffff_ffff,
    u64::MAX - 1,
    u64::MAX,
];

/// The input of one iteration.
pub fn input(corpus: &[Vec<u8>], seed: u64, iteration: u64, bytes_max: usize) -> Vec<u8> {
    let mut random = Random::new(seed ^ iteration.wrapping_mul(0xd1b5_4a32_d192_ed03));
    let mut bytes = corpus[random.below(corpus.len())].clone();
    for _ in 0..=random.below(STEPS_MAX) {
        let other = &corpus[random.below(corpus.len())];
        step(&mut bytes, other, &mut random);
    }
    if random.below(4) == 0 && !bytes.is_empty() {
        bytes[0] = random.number() as u8; // how the target reads the rest
    }
    bytes.truncate(bytes_max);
    bytes
}

fn range(length: usize, random: &mut Random) -> std::ops::Range<usize> {
    let start = random.below(length);
    let longest = if random.below(2) == 0 { 16 } else { length };
    let end = start + 1 + random.below(longest.min(length - start));
    start..end
}

fn step(bytes: &mut Vec<u8>, other: &[u8], random: &mut Random) {
    if bytes.is_empty() {
        bytes.push(random.number() as u8);
        return;
    }
    let at = random.below(bytes.len());
    match random.below(12) {
        0 => bytes[at] ^= 1 << random.below(8),
        1 => bytes[at] = random.number() as u8,
        2 => {
            bytes[at] = bytes[at]
                .wrapping_add(random.below(33) as u8)
                .wrapping_sub(16)
        }
        3 | 4 => write_interesting(bytes, at, random),
        5 => {
            bytes.drain(range(bytes.len(), random));
        }
        6 => {
            let piece = bytes[range(bytes.len(), random)].to_vec();
            bytes.splice(at..at, piece);
        }
        7 => {
            let piece = bytes[range(bytes.len(), random)].to_vec();
            let end = bytes.len().min(at + piece.len());
            bytes[at..end].copy_from_slice(&piece[..end - at]);
        }
        8 if !other.is_empty() => {
            let piece = other[range(other.len(), random)].to_vec();
            let end = bytes.len().min(at + random.below(2) * piece.len());
            bytes.splice(at..end, piece);
        }
        9 => {
            let range = range(bytes.len(), random);
            bytes[range].fill(0);
        }
        10 => bytes.truncate(at),
        _ => {
            let extra = (0..random.below(64)).map(|_| random.number() as u8);
            let extra: Vec<u8> = extra.collect();
            bytes.splice(at..at, extra);
        }
    }
}

/// Numbers stand at multiples of their width, give or take the target's own first byte.
fn write_interesting(bytes: &mut [u8], at: usize, random: &mut Random) {
    let width = [2, 4, 8][random.below(3)];
    let at = at / width * width + random.below(2);
    let value = match random.below(3) {
        0 => bytes.len() as u64 + random.below(17) as u64,
        1 => INTERESTING[random.below(INTERESTING.len())],
        _ => !INTERESTING[random.below(INTERESTING.len())],
    };
    let value = value.wrapping_add(random.below(3) as u64).wrapping_sub(1);
    let end = bytes.len().min(at + width);
    if at < end {
        bytes[at..end].copy_from_slice(&value.to_le_bytes()[..end - at]);
    }
}
