//! A fixed pool of threads for replay and other long work. The queue is bounded and says no; a
//! panic in a job ends that job only, and jobs still queued at the end are run, since each owes
//! somebody an answer.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use crate::status::Status;
use crate::sync::thread::{self, JoinHandle};
use crate::sync::{Condvar, Mutex};

/// Most jobs waiting.
pub const QUEUE_MAX: usize = 16_384;

/// A job; its argument is the number of the thread that runs it.
pub type Job = Box<dyn FnOnce(usize) + Send>;

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    closed: bool,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
}

/// See the file's head.
pub struct WorkerPool {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl WorkerPool {
    /// Starts the threads.
    ///
    /// # Errors
    /// `OutOfMemory` if the system has no more threads.
    pub fn new(threads: usize) -> Result<Self, Status> {
        let pool = Self {
            shared: Arc::default(),
            threads: Mutex::new(Vec::new()),
        };
        for number in 0..threads {
            let shared = Arc::clone(&pool.shared);
            let thread = thread::Builder::new()
                .name(format!("replay-{number}"))
                .spawn(move || run(&shared, number))
                .map_err(|_| Status::OutOfMemory);
            match thread {
                Ok(thread) => pool.threads.lock().push(thread),
                Err(status) => {
                    pool.close();
                    return Err(status);
                }
            }
        }
        Ok(pool)
    }

    /// Queues a job.
    ///
    /// # Errors
    /// `Retry` if the queue is full or the pool closed; the job is dropped unrun.
    pub fn submit(&self, job: Job) -> Result<(), Status> {
        self.offer(job).map_err(|_unrun| Status::Retry)
    }

    /// Queues a job, or gives it back if the queue is full or the pool closed.
    ///
    /// # Errors
    /// The job.
    pub fn offer(&self, job: Job) -> Result<(), Job> {
        let mut queue = self.shared.queue.lock();
        if queue.closed || queue.jobs.len() >= QUEUE_MAX {
            return Err(job);
        }
        queue.jobs.push_back(job);
        self.shared.changed.notify_one();
        Ok(())
    }

    /// Whether jobs wait for a thread.
    pub fn busy(&self) -> bool {
        !self.shared.queue.lock().jobs.is_empty()
    }

    /// Runs what is queued, then ends the threads.
    pub fn close(&self) {
        self.shared.queue.lock().closed = true;
        self.shared.changed.notify_all();
        for thread in self.threads.lock().drain(..) {
            assert!(thread.join().is_ok(), "jobs are run under catch_unwind");
        }
    }
}

fn run(shared: &Shared, number: usize) {
    loop {
        let mut queue = shared.queue.lock();
        let job = loop {
            match queue.jobs.pop_front() {
                Some(job) => break job,
                None if queue.closed => return,
                None => shared.changed.wait(&mut queue),
            }
        };
        drop(queue);
        // Jobs turn their own panics into answers; what escapes from one has nobody to go to.
        let _escaped = catch_unwind(AssertUnwindSafe(|| job(number)));
    }
}
