//! Handles of the backup half: `BackupCore` and `openBackup` of `src/native/contract.ts`.
//!
//! Rule: numbers from JavaScript are checked before they become ids, callbacks of the storage reach
//! JavaScript through thread-safe functions only, and every error carries a decimal status number
//! as its `code`.
#![cfg_attr(
    test,
    allow(dead_code, reason = "functions are not registered in test builds")
)]

use napi::bindgen_prelude::{
    Env, Float64Array, Function, Object, ToNapiValue, Uint8Array, Unknown,
};
use napi::threadsafe_function::{ThreadsafeFunction, ThreadsafeFunctionCallMode};
use napi::{JsError, Status as NapiStatus};
use napi_derive::napi;
use rekindle_core::backup::frame_file::Faults;
use rekindle_core::backup::split::{Partition, Tablet};
use rekindle_core::backup::{
    Accepted, BackupOptions, BackupStorage, Completion, Durability, Identity, StorageError,
};
use rekindle_core::status::Status;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use crate::errors::{Code, border, coded, whole};

type CodedError = napi::Error<Code>;
/// Named so that the `napi` macro sees a result.
type Result<T, E = CodedError> = std::result::Result<T, E>;
type Resolver<T> = Box<dyn FnOnce(Env) -> napi::Result<T> + Send>;
type Settle<T> = Box<dyn FnOnce(Result<T>) + Send>;
type DoneCallback = ThreadsafeFunction<Vec<f64>, Unknown<'static>, Float64Array, NapiStatus, false>;

fn from_status(status: Status) -> CodedError {
    coded(status, status.to_string())
}

fn from_storage(error: StorageError) -> CodedError {
    coded(error.status, error.message)
}

/// A promise and the function that settles it, once, from any thread.
fn promise<'env, T>(env: &'env Env) -> Result<(Object<'env>, Settle<T>)>
where
    T: ToNapiValue + Send + 'static,
{
    let (deferred, promise) = env.create_deferred::<T, Resolver<T>>().map_err(border)?;
    let settle = move |result: Result<T>| {
        deferred.resolve(Box::new(move |env| {
            result.map_err(|error| napi::Error::from(JsError::from(error).into_unknown(env)))
        }));
    };
    Ok((promise, Box::new(settle)))
}

fn completion(settle: Settle<()>) -> Completion {
    Box::new(move |result| settle(result.map_err(from_status)))
}

fn id(value: f64) -> Result<u64> {
    whole(value).map_err(|status| coded(status, format!("{value} is not an id")))
}

fn slot(value: f64) -> Result<u32> {
    u32::try_from(id(value)?).map_err(|_| coded(Status::InvalidArgument, "slots are u32"))
}

fn ids(values: Vec<f64>) -> Result<Vec<u64>> {
    values.into_iter().map(id).collect()
}

/// Runs what reads the disk beside the event loop.
fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<()> {
    let thread = std::thread::Builder::new().name(name.to_owned());
    let spawned = thread.spawn(run).map(drop);
    spawned.map_err(|error| coded(Status::Internal, format!("no thread {name}: {error}")))
}

/// `BackupOptions` of the contract.
#[napi(object, js_name = "BackupOptions")]
pub struct JsBackupOptions {
    /// Holds the frames and the superblocks.
    pub directory: String,
    /// Most frames the file may have.
    pub frames_max: u32,
    /// `fsync` or `replicated`.
    pub durability: String,
    /// Milliseconds, mode `replicated`.
    pub flush_interval_ms: f64,
    /// Compress closed replicas.
    pub compress: bool,
    /// Split pieces of dead masters' logs that are kept for recovery masters, at most.
    pub piece_cache_bytes: f64,
    /// Closed replicas are verified at this rate; 0: never.
    pub scrub_bytes_per_second: f64,
    /// A fault for tests, as `REKINDLE_DISK_FAULT` says it; empty: none.
    pub fault: String,
}

/// Whose storage this is.
#[napi(object)]
pub struct BackupIdentity {
    /// UUID.
    pub cluster_id: String,
    /// The backup.
    pub server_id: f64,
}

/// `BackupReplica` of the contract.
#[napi(object)]
pub struct BackupReplica {
    /// The log.
    pub master_id: f64,
    /// The segment.
    pub segment_id: f64,
    /// The segment's replication epoch.
    pub epoch: f64,
    /// Certified bytes.
    pub length: u32,
    /// Never changes again.
    pub closed: bool,
    /// Read first by recovery.
    pub primary: bool,
    /// Written by an earlier process.
    pub from_restart: bool,
    /// Open, and acknowledged bytes may be missing.
    pub doubtful: bool,
    /// Its bytes on disk are not those of its certificate.
    pub rotten: bool,
}

/// `TabletStats` of the contract.
#[napi(object)]
pub struct BackupTabletStats {
    /// The table.
    pub table_id: f64,
    /// First slot.
    pub start_slot: u32,
    /// Last slot.
    pub end_slot: u32,
    /// Live bytes.
    pub bytes: f64,
    /// Live records.
    pub records: f64,
}

/// `BackupDigest` of the contract.
#[napi(object)]
pub struct BackupDigest {
    /// The head.
    pub segment_id: f64,
    /// The replica's epoch.
    pub epoch: f64,
    /// All segments of the log.
    pub segment_ids: Vec<f64>,
    /// Its tablets.
    pub tablet_stats: Vec<BackupTabletStats>,
}

/// `RecoveryTablet` of the contract.
#[napi(object)]
pub struct BackupRecoveryTablet {
    /// The table.
    pub table_id: f64,
    /// First slot.
    pub start_slot: f64,
    /// Last slot.
    pub end_slot: f64,
    /// Entries in older segments do not count.
    pub ctime_segment_id: f64,
}

/// One partition of a plan.
#[napi(object)]
pub struct BackupPartition {
    /// Its number.
    pub partition_id: f64,
    /// Its tablets.
    pub tablets: Vec<BackupRecoveryTablet>,
}

fn partition(js: BackupPartition) -> Result<Partition> {
    let tablet = |js: BackupRecoveryTablet| {
        Ok(Tablet {
            table_id: id(js.table_id)?,
            start_slot: slot(js.start_slot)?,
            end_slot: slot(js.end_slot)?,
            ctime_segment_id: id(js.ctime_segment_id)?,
        })
    };
    let tablets = js.tablets.into_iter().map(tablet).collect::<Result<_>>()?;
    Ok(Partition {
        partition_id: id(js.partition_id)?,
        tablets,
    })
}

fn options(js: JsBackupOptions) -> Result<BackupOptions> {
    let durability = match js.durability.as_str() {
        "fsync" => Durability::Fsync,
        "replicated" => Durability::Replicated,
        other => {
            return Err(coded(
                Status::InvalidArgument,
                format!("durability {other}"),
            ));
        }
    };
    let flush_interval = Duration::try_from_secs_f64(js.flush_interval_ms / 1000.0)
        .map_err(|error| coded(Status::InvalidArgument, format!("flushIntervalMs: {error}")))?;
    Ok(BackupOptions {
        directory: js.directory.into(),
        frames_max: js.frames_max,
        durability,
        flush_interval,
        compress: js.compress,
        piece_cache_bytes: id(js.piece_cache_bytes)? as usize,
        scrub_bytes_per_second: id(js.scrub_bytes_per_second)?,
    })
}

/// Opens or creates the storage; scans all frames.
#[napi(catch_unwind, ts_return_type = "Promise<BackupCore>")]
pub fn open_backup(env: &Env, options_js: JsBackupOptions) -> Result<Object<'_>> {
    let faults = if options_js.fault.is_empty() {
        Faults::default()
    } else {
        Faults::parse(&options_js.fault).map_err(|text| coded(Status::InvalidArgument, text))?
    };
    let options = options(options_js)?;
    let (promise, settle) = promise(env)?;
    spawn("backup-open", move || {
        let opened = BackupStorage::open(options, Arc::new(faults));
        let core = opened.map(|storage| BackupCore {
            storage: Arc::new(storage),
        });
        settle(core.map_err(from_storage));
    })?;
    Ok(promise)
}

/// The storage of one backup.
#[napi]
pub struct BackupCore {
    storage: Arc<BackupStorage>,
}

#[napi]
impl BackupCore {
    /// From the superblock; null for a new directory.
    #[napi(
        catch_unwind,
        ts_return_type = "{ clusterId: string; serverId: number } | null"
    )]
    pub fn identity(&self) -> Option<BackupIdentity> {
        let identity = self.storage.identity()?;
        let server_id = identity.server_id as f64;
        Some(BackupIdentity {
            cluster_id: identity.cluster_id,
            server_id,
        })
    }

    /// Writes the superblock durably.
    #[napi(catch_unwind, ts_return_type = "Promise<void>")]
    pub fn set_identity<'env>(
        &self,
        env: &'env Env,
        cluster_id: String,
        server_id: f64,
    ) -> Result<Object<'env>> {
        let identity = Identity {
            cluster_id,
            server_id: id(server_id)?,
        };
        let (promise, settle) = promise(env)?;
        self.storage.set_identity(identity, completion(settle));
        Ok(promise)
    }

    /// All visible replicas.
    #[napi(catch_unwind)]
    pub fn replicas(&self) -> Vec<BackupReplica> {
        let replicas = self.storage.replicas().into_iter();
        let report = |one: rekindle_core::backup::ReplicaReport| BackupReplica {
            master_id: one.master_id as f64,
            segment_id: one.segment_id as f64,
            epoch: one.epoch as f64,
            length: one.length,
            closed: one.closed,
            primary: one.primary,
            from_restart: one.from_restart,
            doubtful: one.doubtful,
            rotten: one.rotten,
        };
        replicas.map(report).collect()
    }

    /// Takes one BACKUP_WRITE body; 0 when queued, -1 when done, else a status number.
    #[napi(catch_unwind)]
    pub fn write(&self, body: &[u8], token: f64) -> Result<i32> {
        let token = id(token)?;
        Ok(match self.storage.write(body, token) {
            Ok(Accepted { waits: true }) => 0,
            Ok(Accepted { waits: false }) => -1,
            Err(status) => i32::from(status as u16),
        })
    }

    /// Called with [token, status, …]; keeps the process alive until `close`.
    #[napi(catch_unwind, ts_args_type = "callback: (done: Float64Array) => void")]
    pub fn on_done(&self, callback: Function<'_, Float64Array, Unknown<'static>>) -> Result<()> {
        let function: DoneCallback = callback
            .build_threadsafe_function::<Vec<f64>>()
            .build_callback(|context| Ok(Float64Array::new(context.value)))
            .map_err(border)?;
        self.storage.set_sink(Box::new(move |done| {
            let pair = |&(token, status): &(u64, Status)| [token as f64, f64::from(status as u16)];
            let pairs: Vec<f64> = done.iter().flat_map(pair).collect();
            // The queue is unbounded and its tokens are not; it refuses only when Node ends.
            function.call(pairs, ThreadsafeFunctionCallMode::NonBlocking);
        }));
        Ok(())
    }

    /// results: [0] free frames, [1] queued bytes, [2] 1 if the disk has failed.
    #[napi(catch_unwind)]
    pub fn load(&self, mut results: Float64Array) -> Result<()> {
        let load = self.storage.load();
        // SAFETY: JavaScript is in this call, so nothing else touches the array.
        let results = unsafe { results.as_mut() };
        if results.len() < 3 {
            return Err(coded(Status::InvalidArgument, "results needs 3 elements"));
        }
        results[0] = load.free_frames as f64;
        results[1] = load.queued_bytes as f64;
        results[2] = f64::from(u8::from(load.disk_failed));
        Ok(())
    }

    /// Frees replicas durably; unknown ones are fine.
    #[napi(catch_unwind, ts_return_type = "Promise<void>")]
    pub fn free<'env>(
        &self,
        env: &'env Env,
        master_id: f64,
        segment_ids: Vec<f64>,
    ) -> Result<Object<'env>> {
        let (master_id, segment_ids) = (id(master_id)?, ids(segment_ids)?);
        let (promise, settle) = promise(env)?;
        self.storage
            .free(master_id, &segment_ids, completion(settle));
        Ok(promise)
    }

    /// No write of this master is accepted any more.
    #[napi(catch_unwind, ts_return_type = "Promise<void>")]
    pub fn fence<'env>(&self, env: &'env Env, master_id: f64) -> Result<Object<'env>> {
        let master_id = id(master_id)?;
        let (promise, settle) = promise(env)?;
        self.storage.fence(master_id, completion(settle));
        Ok(promise)
    }

    /// Fenced masters, those fenced by earlier processes too.
    #[napi(catch_unwind)]
    pub fn fenced(&self) -> Vec<f64> {
        let fenced = self.storage.fenced();
        fenced.into_iter().map(|id| id as f64).collect()
    }

    /// Forgets a fence.
    #[napi(catch_unwind, ts_return_type = "Promise<void>")]
    pub fn unfence<'env>(&self, env: &'env Env, master_id: f64) -> Result<Object<'env>> {
        let master_id = id(master_id)?;
        let (promise, settle) = promise(env)?;
        self.storage.unfence(master_id, completion(settle));
        Ok(promise)
    }

    /// Digests of a master's heads that are still open.
    #[napi(catch_unwind, ts_return_type = "Promise<BackupDigest[]>")]
    pub fn digests<'env>(&self, env: &'env Env, master_id: f64) -> Result<Object<'env>> {
        let master_id = id(master_id)?;
        let (promise, settle) = promise(env)?;
        let storage = Arc::clone(&self.storage);
        spawn("backup-digest", move || {
            let digests = storage.digests(master_id).into_iter().map(digest).collect();
            settle(Ok::<Vec<BackupDigest>, CodedError>(digests));
        })?;
        Ok(promise)
    }

    /// Starts to read and split; the pieces are kept until `endRecovery`.
    #[napi(catch_unwind)]
    pub fn start_partitions(
        &self,
        recovery_id: f64,
        master_id: f64,
        partitions: Vec<BackupPartition>,
        segment_ids: Vec<f64>,
    ) -> Result<()> {
        let partitions = partitions
            .into_iter()
            .map(partition)
            .collect::<Result<Vec<_>>>()?;
        let segment_ids = ids(segment_ids)?;
        self.storage
            .start_partitions(id(recovery_id)?, id(master_id)?, &partitions, &segment_ids)
            .map_err(from_status)
    }

    /// The piece, when it is there.
    #[napi(catch_unwind, ts_return_type = "Promise<RecoveryPiece>")]
    pub fn recovery_data<'env>(
        &self,
        env: &'env Env,
        recovery_id: f64,
        segment_id: f64,
        partition_id: f64,
    ) -> Result<Object<'env>> {
        let (recovery_id, segment_id) = (id(recovery_id)?, id(segment_id)?);
        let partition_id = id(partition_id)?;
        let (promise, settle) = promise::<RecoveryPiece>(env)?;
        let waiter = move |piece: Result<Arc<Vec<u8>>, Status>| {
            let piece = piece.map(|piece| RecoveryPiece { piece: Some(piece) });
            settle(piece.map_err(from_status));
        };
        self.storage
            .recovery_data(recovery_id, segment_id, partition_id, Box::new(waiter));
        Ok(promise)
    }

    /// Drops a recovery's pieces.
    #[napi(catch_unwind)]
    pub fn end_recovery(&self, recovery_id: f64) -> Result<()> {
        self.storage.end_recovery(id(recovery_id)?);
        Ok(())
    }

    /// Gauges and counters by name.
    #[napi(catch_unwind)]
    pub fn stats(&self) -> HashMap<String, f64> {
        self.storage
            .stats()
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value))
            .collect()
    }

    /// Flushes, ends the threads.
    #[napi(catch_unwind, ts_return_type = "Promise<void>")]
    pub fn close<'env>(&self, env: &'env Env) -> Result<Object<'env>> {
        let (promise, settle) = promise(env)?;
        let storage = Arc::clone(&self.storage);
        spawn("backup-close", move || {
            storage.close();
            storage.clear_sink();
            settle(Ok(()));
        })?;
        Ok(promise)
    }
}

/// A piece {u32 length, u32 checksum, bytes} that the cache may serve again.
///
/// It is copied to memory that JavaScript has already: V8 collects garbage for each few MiB of
/// new external memory, and a recovery moves all of a log through here.
#[napi]
pub struct RecoveryPiece {
    /// Until it is taken: collecting this object may be a long time off.
    piece: Option<Arc<Vec<u8>>>,
}

#[napi]
impl RecoveryPiece {
    /// Its length; 0 once it is taken.
    #[napi(getter, catch_unwind)]
    pub fn bytes(&self) -> f64 {
        self.piece.as_ref().map_or(0, |piece| piece.len()) as f64
    }

    /// Copies all of it to the start of `target`, once, and lets go of it.
    #[napi(catch_unwind)]
    pub fn take(&mut self, mut target: Uint8Array) -> Result<()> {
        // SAFETY: JavaScript is in this call, so nothing else touches the array.
        let target = unsafe { target.as_mut() };
        let piece = self
            .piece
            .as_deref()
            .filter(|piece| piece.len() <= target.len());
        let Some(piece) = piece else {
            let text = "a piece is taken once, to memory that is large enough";
            return Err(coded(Status::InvalidArgument, text));
        };
        target[..piece.len()].copy_from_slice(piece);
        self.piece = None;
        Ok(())
    }
}

fn digest(digest: rekindle_core::backup::Digest) -> BackupDigest {
    let tablet_stats = digest.tablet_stats.iter().map(|one| BackupTabletStats {
        table_id: one.table_id as f64,
        start_slot: one.start_slot,
        end_slot: one.end_slot,
        bytes: one.bytes as f64,
        records: one.records as f64,
    });
    BackupDigest {
        segment_id: digest.segment_id as f64,
        epoch: digest.epoch as f64,
        segment_ids: digest.segment_ids.iter().map(|&id| id as f64).collect(),
        tablet_stats: tablet_stats.collect(),
    }
}
