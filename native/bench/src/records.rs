//! Contents of objects: English text of 100 bytes, JSON records of 1 KB, drawn from their number.

use crate::limits::mix;

const WORDS: [&str; 96] = [
    "the", "of", "and", "to", "in", "that", "is", "was", "for", "it", "with", "as", "his", "on",
    "be", "at", "by", "had", "not", "are", "but", "from", "or", "have", "an", "they", "which",
    "one", "you", "were", "all", "her", "she", "there", "would", "their", "we", "him", "been",
    "has", "when", "who", "will", "no", "more", "if", "out", "so", "up", "said", "what", "its",
    "about", "than", "into", "them", "can", "only", "other", "time", "new", "some", "could",
    "these", "two", "may", "first", "then", "do", "any", "like", "my", "now", "over", "such",
    "our", "man", "me", "even", "most", "made", "after", "also", "well", "did", "many", "before",
    "must", "years", "back", "through", "much", "where", "your", "way", "down",
];
const CITIES: [&str; 12] = [
    "Lisbon", "Oslo", "Nairobi", "Osaka", "Lima", "Quito", "Perth", "Turin", "Ghent", "Leeds",
    "Austin", "Bergen",
];

/// A stream of numbers from a seed.
struct Draw(u64);

impl Draw {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(1);
        (mix(self.0) >> 16) as usize % end
    }

    /// Early words come often, as in a language.
    fn word(&mut self) -> &'static str {
        let end = 1 + self.below(WORDS.len());
        WORDS[self.below(end)]
    }
}

/// Replaces `out` by `bytes` bytes of text.
pub fn text(number: u64, bytes: usize, out: &mut Vec<u8>) {
    let mut draw = Draw(number << 20);
    out.clear();
    while out.len() < bytes {
        let word = draw.word().as_bytes();
        match draw.below(12) {
            0 => out.extend(word.iter().rev()), // a name, as far as a compressor is concerned
            1 => out.extend_from_slice(draw.below(10_000).to_string().as_bytes()),
            _ => out.extend_from_slice(word),
        }
        out.push(b' ');
    }
    out.truncate(bytes);
}

/// Replaces `out` by a JSON record of exactly `bytes` bytes (at least 600): an order.
pub fn json(number: u64, bytes: usize, out: &mut Vec<u8>) {
    let mut draw = Draw(number << 20);
    let record = format!(
        concat!(
            r#"{{"id":"order-{:09}","createdAt":"2026-{:02}-{:02}T{:02}:{:02}:{:02}.000Z","#,
            r#""status":"{}","customer":{{"id":{},"name":"{} {}","email":"{}@example.com","#,
            r#""address":{{"street":"{} street {}","city":"{}","postcode":"{:05}"}}}},"items":["#
        ),
        number,
        1 + draw.below(12),
        1 + draw.below(28),
        draw.below(24),
        draw.below(60),
        draw.below(60),
        ["open", "paid", "shipped", "delivered"][draw.below(4)],
        draw.below(1 << 20),
        draw.word(),
        draw.word(),
        draw.word(),
        draw.word(),
        1 + draw.below(200),
        CITIES[draw.below(CITIES.len())],
        draw.below(100_000),
    );
    out.clear();
    out.extend_from_slice(record.as_bytes());
    loop {
        let item = item(&mut draw);
        if out.len() + item.len() + NOTE.len() + 2 > bytes {
            break;
        }
        out.extend_from_slice(item.as_bytes());
    }
    assert!(out.pop() == Some(b','), "a record has room for an item");
    out.extend_from_slice(NOTE);
    let mut note = Vec::new();
    text(number ^ 0x5bd1, bytes - 2 - out.len(), &mut note);
    out.extend_from_slice(&note);
    out.extend_from_slice(b"\"}");
    assert!(out.len() == bytes, "a record has its length");
}

const NOTE: &[u8] = br#"],"note":""#;

fn item(draw: &mut Draw) -> String {
    format!(
        concat!(
            r#"{{"sku":"{:012x}","title":"{} {} {} {}","quantity":{},"#,
            r#""price":{}.{:02},"currency":"EUR"}},"#
        ),
        draw.below(1 << 47),
        draw.word(),
        draw.word(),
        draw.word(),
        draw.word(),
        1 + draw.below(9),
        draw.below(200),
        draw.below(100),
    )
}
