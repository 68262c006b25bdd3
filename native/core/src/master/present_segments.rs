//! Which segments were in memory at some moment, for one thread, which asks it for every segment
//! that a dead entry names.
//!
//! Rule: a set with open addressing, at most half full: one line of memory an answer, where a
//! search of a sorted list takes as many steps, each waiting for the one before, as its length has
//! bits.

/// See the file's head. Segment ids are never 0.
#[derive(Default)]
pub struct PresentSegments {
    /// Of the segments that it was filled from, see `Objects::refresh`.
    pub generation: u64,
    /// A power of two of them, or none; 0: empty.
    places: Vec<u64>,
}

/// Spreads ids, which are given out in turn, over all places: 2^64 ÷ the golden ratio.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

impl PresentSegments {
    /// Holds these ids, `count` of them, and no others.
    pub fn fill(&mut self, ids: impl Iterator<Item = u64>, count: usize) {
        self.places.clear();
        self.places.resize((count * 2).next_power_of_two(), 0);
        for id in ids {
            assert!(id != 0, "segment ids begin at 1");
            let mut at = self.first_place(id);
            while self.places[at] != 0 {
                at = (at + 1) & (self.places.len() - 1);
            }
            self.places[at] = id;
        }
    }

    /// Whether the segment was in memory.
    #[inline]
    pub fn contains(&self, id: u64) -> bool {
        if self.places.is_empty() {
            return false;
        }
        let mut at = self.first_place(id);
        loop {
            match self.places[at] {
                0 => return false,
                found if found == id => return true,
                _ => at = (at + 1) & (self.places.len() - 1),
            }
        }
    }

    #[inline]
    fn first_place(&self, id: u64) -> usize {
        (id.wrapping_mul(SPREAD) >> 32) as usize & (self.places.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_what_it_was_filled_with_and_nothing_else() {
        let mut present = PresentSegments::default();
        assert!(!present.contains(0));
        assert!(!present.contains(1));
        for ids in [
            vec![7],
            vec![],
            (1..=1_000).chain(5_000..5_300).collect(),
            vec![u64::MAX],
        ] {
            present.fill(ids.iter().copied(), ids.len());
            for id in (0..6_000).chain([u64::MAX - 1, u64::MAX]) {
                assert_eq!(
                    present.contains(id),
                    ids.contains(&id),
                    "{id} of {}",
                    ids.len()
                );
            }
        }
    }
}
