//! Notes of a log: the newest head tells all of them, whatever was rolled over in between, and what
//! is refused changes nothing.

mod master_support;

use std::collections::BTreeMap;

use master_support::{Random, master, verify};
use rekindle_core::entry::{EntryIterator, EntryType};
use rekindle_core::master::{MEMORY_BYTES_MIN, Master};
use rekindle_core::status::Status;

type Notes = BTreeMap<Vec<u8>, Vec<u8>>;

/// As whoever has the newest head and nothing else reads them.
fn read(master: &Master) -> Notes {
    let heads = master.heads_after(0).expect("open");
    let head = heads.last().copied().expect("there is a head");
    let bytes = master.segment(head).expect("there").copy();
    let mut notes = Notes::new();
    for (_, entry) in EntryIterator::new(&bytes).map(|item| item.expect("parses")) {
        let (key, value) = (entry.key().to_vec(), entry.value().to_vec());
        match entry.entry_type() {
            EntryType::Note if value.is_empty() => drop(notes.remove(&key)),
            EntryType::Note => drop(notes.insert(key, value)),
            _ => {}
        }
    }
    notes
}

#[test]
fn the_newest_head_tells_all() {
    let mut random = Random::new();
    let master = master(MEMORY_BYTES_MIN);
    let mut expected = Notes::new();
    master.note(b"early", b"before the log").expect("kept");
    expected.insert(b"early".to_vec(), b"before the log".to_vec());
    master.open_log().expect("open");
    let mut rolls = 0;
    for _ in 0..400 {
        let key = format!("key {}", random.below(30)).into_bytes();
        let value = vec![b'v'; random.below(3_000) as usize];
        master.note(&key, &value).expect("there is room");
        if value.is_empty() {
            expected.remove(&key);
        } else {
            expected.insert(key, value);
        }
        if rolls < 3 && random.below(50) == 0 {
            master.roll_head().expect("there is room");
            rolls += 1;
        }
        assert_eq!(read(&master), expected);
    }
    master.roll_head().expect("there is room");
    assert_eq!(read(&master), expected);
    verify(&master);
}

#[test]
fn what_is_no_news_appends_nothing() {
    let master = master(MEMORY_BYTES_MIN);
    master.open_log().expect("open");
    master.note(b"key", b"value").expect("there is room");
    let end = master.appended_position().expect("open");
    master.note(b"key", b"value").expect("it says so");
    master.note(b"other", b"").expect("it says nothing");
    for (key, value) in [(&[][..], &b"v"[..]), (&[0; 1025], b"v")] {
        assert_eq!(master.note(key, value), Err(Status::InvalidArgument));
    }
    let too_long = vec![0; (1 << 20) + 1];
    assert_eq!(master.note(b"k", &too_long), Err(Status::InvalidArgument));
    assert_eq!(master.appended_position(), Ok(end));
    verify(&master);
}
