//! Epochs: when memory that nothing refers to any more may be used again.
//!
//! Rule: a participant pins the current epoch before it follows a reference and unpins when it has
//! let go of it. Whoever has taken the last reference out of the table calls `advance`; when no
//! participant is pinned at the epoch that it returns or an older one, nobody can still see what
//! was referred to. The fences make it so: a participant stores its pin before it reads the table,
//! the other side changes the table before it reads the pins, so one of the two sees the other
//! (Dekker). A participant is one thread at a time: the serving lock's holder, the cleaner, a
//! replay worker.

use crate::sync::atomic::{AtomicU64, Ordering, fence};

/// Not pinned.
const IDLE: u64 = 0;

/// One cache line each: every request writes its own.
#[repr(align(128))]
struct Participant(AtomicU64);

/// See the file's head.
pub struct Epochs {
    /// From 1.
    current: AtomicU64,
    participants: Box<[Participant]>,
}

/// As long as it lives, what its participant can reach stays.
pub struct Pin<'a> {
    participant: &'a AtomicU64,
}

impl Drop for Pin<'_> {
    #[inline]
    fn drop(&mut self) {
        self.participant.store(IDLE, Ordering::Release);
    }
}

impl Epochs {
    /// Epochs for a fixed number of participants.
    pub fn new(participants: usize) -> Self {
        Self {
            current: AtomicU64::new(IDLE + 1),
            participants: (0..participants)
                .map(|_| Participant(AtomicU64::new(IDLE)))
                .collect(),
        }
    }

    /// Pins the current epoch for a participant.
    ///
    /// # Panics
    /// If the participant is pinned already.
    #[inline]
    pub fn pin(&self, participant: usize) -> Pin<'_> {
        let participant = &self.participants[participant].0;
        assert!(
            participant.load(Ordering::Relaxed) == IDLE,
            "a participant pins once at a time"
        );
        // Release: whoever sees this pin knows that all that was read under earlier ones is read.
        participant.store(self.current.load(Ordering::Relaxed), Ordering::Release);
        fence(Ordering::SeqCst);
        Pin { participant }
    }

    /// Begins a new epoch and returns the old one: what was unreachable before this call may be
    /// used again once the returned epoch has `passed`.
    pub fn advance(&self) -> u64 {
        fence(Ordering::SeqCst);
        self.current.fetch_add(1, Ordering::SeqCst)
    }

    /// Whether nobody is pinned at `epoch` or before any more.
    pub fn passed(&self, epoch: u64) -> bool {
        fence(Ordering::SeqCst);
        self.participants.iter().all(|participant| {
            let pinned = participant.0.load(Ordering::Acquire);
            pinned == IDLE || pinned > epoch
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_passes_when_its_pins_are_gone() {
        let epochs = Epochs::new(2);
        let early = epochs.pin(0);
        let epoch = epochs.advance();
        let late = epochs.pin(1);
        assert!(!epochs.passed(epoch));
        drop(early);
        assert!(epochs.passed(epoch));
        assert!(!epochs.passed(epochs.advance()));
        drop(late);
    }
}
