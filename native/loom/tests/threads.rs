//! Publication of a segment's bytes, and the pool of threads.
#![cfg(loom)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use loom::thread;
use rekindle_core::entry::{EntryHeader, EntryIterator, EntryType, SEGMENT_BYTES};
use rekindle_core::master::arena::Arena;
use rekindle_core::master::segment::{Append, Segment};
use rekindle_core::master::worker_pool::WorkerPool;
use rekindle_core::status::Status;
use rekindle_loom::{Cells, Gate, model};

const PREEMPTIONS: usize = 3;

fn object(version: u64) -> Append<'static> {
    let header = EntryHeader {
        entry_type: EntryType::Object,
        flags: 0,
        timestamp: 0,
        table_id: 1,
        version,
    };
    Append {
        header,
        prior: &[],
        key: b"key",
        value: b"value",
    }
}

#[test]
fn what_a_segment_has_published_is_whole() {
    model(PREEMPTIONS, || {
        let arena = Arc::new(Arena::new(SEGMENT_BYTES).expect("memory"));
        let segment = Segment::open(&arena, 1, 1, None, 0, 0).expect("memory");
        let start = segment.appended();
        let shared = Arc::new((segment, Cells::new(3), Gate::new()));
        let writer = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || {
                let (segment, cells, gate) = &*shared;
                gate.pass();
                for version in 1..=2 {
                    let append = [object(version)];
                    segment.prepare(&append);
                    cells.write(version as usize, version);
                    segment.publish(append[0].bytes());
                }
                segment.close();
            })
        };
        let (segment, cells, gate) = &*shared;
        gate.pass();
        let closed = segment.closed();
        let bytes = segment.copy();
        let entries = EntryIterator::new(&bytes[start..]);
        let versions: Vec<u64> = entries
            .map(|item| {
                let (_, entry) = item.expect("whole entries");
                entry.verify().expect("whole bytes");
                assert_eq!(cells.read(entry.version() as usize * 8), entry.version());
                entry.version()
            })
            .collect();
        assert!(versions == [1, 2][..versions.len()], "in order");
        assert!(
            !closed || versions.len() == 2,
            "a closed segment has its end"
        );
        let certificate = segment.chunk(0, 1).expect("the opening");
        let next = segment
            .chunk(certificate.end, SEGMENT_BYTES)
            .expect("known");
        assert!(
            next.end >= bytes.len(),
            "all that was published is certified"
        );
        writer.join().expect("ends");
    });
}

#[test]
fn every_job_that_was_taken_is_run_once_before_the_pool_has_closed() {
    model(2, || {
        let pool = Arc::new(WorkerPool::new(2).expect("threads"));
        let (taken, ran) = (AtomicUsize::new(0), Arc::new(AtomicUsize::new(0)));
        let submit = || {
            let ran = Arc::clone(&ran);
            let job = Box::new(move |thread: usize| {
                assert!(thread < 2, "a thread of the pool");
                ran.fetch_add(1, Ordering::Relaxed);
            });
            match pool.submit(job) {
                Ok(()) => taken.fetch_add(1, Ordering::Relaxed),
                Err(status) => {
                    assert_eq!(status, Status::Retry, "after the close");
                    0
                }
            }
        };
        let gate = Arc::new(Gate::new());
        let closer = {
            let (pool, gate) = (Arc::clone(&pool), Arc::clone(&gate));
            thread::spawn(move || {
                gate.pass();
                pool.close();
            })
        };
        gate.pass();
        submit();
        submit();
        closer.join().expect("ends");
        submit();
        assert_eq!(ran.load(Ordering::Relaxed), taken.load(Ordering::Relaxed));
    });
}
