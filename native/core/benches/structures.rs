//! Single structures in the cache, with criterion: `cargo bench -p rekindle-core`.
//!
//! Entries, checksums, key hash, the hash table, LZ4 images, certificates. What they come to
//! together, and against the limits of the machine, is what `rekindle bench core` measures.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use rekindle_core::backup::lz4_image;
use rekindle_core::crc32c::{crc32c, extend};
use rekindle_core::entry::{
    EntryHeader, EntryType, EntryView, SEGMENT_BYTES, entry_bytes, write_entry,
};
use rekindle_core::key_hash::key_hash;
use rekindle_core::master::hash_table::HashTable;
use rekindle_core::master::tablets::SlotRange;
use rekindle_core::master::{Master, MasterOptions};

const KEY: [u8; 24] = *b"object:00000000000000001";
const VALUES: [usize; 2] = [100, 1024];
const HEADER: EntryHeader = EntryHeader {
    entry_type: EntryType::Object,
    flags: 0,
    timestamp: 1,
    table_id: 1,
    version: 1,
};

fn entries(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("entry");
    for value_bytes in VALUES {
        let value = vec![7u8; value_bytes];
        let mut out = vec![0u8; entry_bytes(KEY.len(), value_bytes, 0)];
        group.throughput(Throughput::Bytes(out.len() as u64));
        group.bench_function(BenchmarkId::new("encode", value_bytes), |bencher| {
            bencher.iter(|| write_entry(black_box(&mut out), &HEADER, &[], &KEY, &value));
        });
        write_entry(&mut out, &HEADER, &[], &KEY, &value);
        group.bench_function(BenchmarkId::new("parse", value_bytes), |bencher| {
            bencher.iter(|| {
                EntryView::parse(black_box(&out))
                    .expect("whole")
                    .total_bytes()
            });
        });
        group.bench_function(
            BenchmarkId::new("parse and verify", value_bytes),
            |bencher| {
                bencher.iter(|| {
                    let entry = EntryView::parse(black_box(&out)).expect("whole");
                    entry.verify().expect("undamaged");
                });
            },
        );
    }
    group.finish();
    criterion.bench_function("key hash of 24 bytes", |bencher| {
        bencher.iter(|| key_hash(1, black_box(&KEY)));
    });
}

fn checksums(criterion: &mut Criterion) {
    let bytes = vec![0x5au8; SEGMENT_BYTES];
    let mut group = criterion.benchmark_group("crc32c");
    for length in [64, 152, 1024, 65_536, SEGMENT_BYTES] {
        group.throughput(Throughput::Bytes(length as u64));
        group.bench_function(BenchmarkId::from_parameter(length), |bencher| {
            bencher.iter(|| crc32c(black_box(&bytes[..length])));
        });
    }
    group.throughput(Throughput::Bytes(152));
    group.bench_function("extend by 152", |bencher| {
        bencher.iter(|| extend(black_box(0x1234_5678), black_box(&bytes[..152])));
    });
    group.finish();
}

fn images(criterion: &mut Criterion) {
    let mut raw = Vec::new();
    for number in 0u64.. {
        let id = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let record = format!(r#"{{"id":"{id:016x}","number":{number},"status":"open"}},"#);
        if raw.len() + record.len() > 1 << 20 {
            break;
        }
        raw.extend_from_slice(record.as_bytes());
    }
    let mut image = vec![0u8; 2 << 20];
    let stored = lz4_image::encode(&raw, &mut image).expect("JSON compresses");
    let mut group = criterion.benchmark_group("lz4 image of 1 MiB of JSON");
    group.throughput(Throughput::Bytes(raw.len() as u64));
    let mut out = vec![0u8; 2 << 20];
    group.bench_function("encode", |bencher| {
        bencher.iter(|| lz4_image::encode(black_box(&raw), &mut out));
    });
    let mut restored = vec![0u8; raw.len()];
    lz4_image::decode(&image[..stored], &mut restored).expect("undamaged");
    assert!(restored == raw, "an image gives back what went in");
    group.bench_function("decode", |bencher| {
        bencher.iter(|| lz4_image::decode(black_box(&image[..stored]), &mut restored));
    });
    group.finish();
}

/// Entries of the table, too many for the caches.
const TABLE_ENTRIES: u64 = 1 << 20;
/// Lookups and inserts whose cache misses overlap.
const BATCH: u64 = 32;

/// Spreads like a key hash.
fn hash(number: u64) -> u64 {
    let mixed = (number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed ^ mixed >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9)
}

fn insert_batch(table: &HashTable, first: u64) {
    for number in first..first + BATCH {
        table.prefetch_bucket(hash(number));
    }
    for number in first..first + BATCH {
        let inserted = table.insert(hash(number), number as usize * 8);
        inserted.expect("the table has room");
    }
}

/// Batches of 32 with prefetch, on as many buckets as the log of so many small objects has.
fn hash_table(criterion: &mut Criterion) {
    let fresh = || HashTable::new(TABLE_ENTRIES as usize * 176).expect("small table");
    let mut group = criterion.benchmark_group("hash table of 1 Mi entries");
    group
        .sample_size(20)
        .throughput(Throughput::Elements(BATCH));
    group.bench_function("insert", |bencher| {
        let (mut table, mut next) = (fresh(), 0);
        bencher.iter_custom(|batches| {
            let mut took = Duration::ZERO;
            for _ in 0..batches {
                if next == TABLE_ENTRIES {
                    (table, next) = (fresh(), 0);
                    table.populate(0, table.bucket_bytes());
                }
                let start = Instant::now();
                insert_batch(&table, next);
                took += start.elapsed();
                next += BATCH;
            }
            took
        });
    });
    let table = fresh();
    for first in (0..TABLE_ENTRIES).step_by(BATCH as usize) {
        insert_batch(&table, first);
    }
    group.bench_function("find", |bencher| {
        let mut next = 0u64;
        bencher.iter(|| {
            let random = |number: u64| hash(number) >> 7 & (TABLE_ENTRIES - 1);
            next += BATCH;
            for number in next..next + BATCH {
                table.prefetch_bucket(hash(random(number)));
            }
            for number in next..next + BATCH {
                let wanted = random(number);
                let found = table.find(hash(wanted), |offset| offset == wanted as usize * 8);
                assert!(found.is_some(), "all numbers were inserted");
            }
        });
    });
    group.finish();
}

/// A message of writes whose keys and rpc ids begin at `first`.
fn writes(first: u64, count: u64, value_bytes: usize) -> Vec<u8> {
    let mut body = Vec::new();
    body.extend_from_slice(&1u64.to_le_bytes());
    body.extend_from_slice(&first.to_le_bytes());
    body.extend_from_slice(&(count as u32).to_le_bytes());
    body.extend_from_slice(&0u32.to_le_bytes());
    for number in first..first + count {
        body.extend_from_slice(&[2, 0, 24, 0]);
        body.extend_from_slice(&(value_bytes as u32).to_le_bytes());
        for field in [1, number + 1, 0] {
            body.extend_from_slice(&u64::to_le_bytes(field));
        }
        body.extend_from_slice(format!("{number:024}").as_bytes());
        body.resize((body.len() + value_bytes).next_multiple_of(8), 7);
    }
    body
}

/// A master whose head is full to a good part.
fn filled_master(value_bytes: usize) -> Arc<Master> {
    let master = Master::new(MasterOptions {
        server_id: 1,
        memory_bytes: 64 << 20,
        replay_threads: 1,
        replicated: false,
        disk_expansion_factor: 1.0,
    });
    let master = master.expect("small master");
    let range = SlotRange {
        table_id: 1,
        start_slot: 0,
        end_slot: u32::MAX,
    };
    master.take_tablet(range).expect("nothing overlaps");
    master.open_log().expect("room for a head");
    let mut reply = vec![0u8; 1 << 16];
    let count = (7 << 20) / entry_bytes(24, value_bytes, 0) as u64;
    for first in (0..count).step_by(256) {
        let body = writes(first, 256, value_bytes);
        master.execute(&body, &mut reply, 0).expect("well-formed");
    }
    master
}

/// Certificates of a head in pieces of 64 KiB, as replication asks for them; per byte.
fn certificates(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("certificates of 7 MiB");
    group.sample_size(10);
    for value_bytes in VALUES {
        group.bench_function(BenchmarkId::from_parameter(value_bytes), |bencher| {
            bencher.iter_custom(|repeats| {
                let mut took = Duration::ZERO;
                for _ in 0..repeats {
                    let master = filled_master(value_bytes);
                    let id = master.heads_after(0).expect("open")[0];
                    let start = Instant::now();
                    let mut at = 0;
                    loop {
                        let end = master
                            .chunk(id, at, 64 << 10)
                            .expect("certified so far")
                            .end;
                        if end == at {
                            break;
                        }
                        at = end;
                    }
                    took += start.elapsed();
                    assert!(at > 6 << 20, "the head was full");
                    master.close().expect("closed once");
                }
                took
            });
        });
    }
    group.finish();
}

criterion_group!(
    structures,
    entries,
    checksums,
    hash_table,
    images,
    certificates
);
criterion_main!(structures);
