//! Handles of the master half: `MasterCore` and `RecoveryCore` of `src/native/contract.ts`.
//!
//! Rules: one call per message; views of segments hold the arena, so they never dangle. They are
//! parts of few large views: V8 collects garbage for each 8 MiB of external memory that it learns
//! of, and wants one backing store per address. `close` drops the views; a
//! `MasterCore` that is not closed keeps its memory.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use napi::Status as NapiStatus;
use napi::bindgen_prelude::{
    BufferSlice, Env, Float64ArraySlice, FnArgs, Function, JsObjectValue, JsValue, Object,
    ObjectRef, ToNapiValue, Uint8Array, Uint8ArraySlice, Unknown,
};
use napi::threadsafe_function::{ThreadsafeFunction, ThreadsafeFunctionCallMode};
use napi_derive::napi;
use rekindle_core::entry::SEGMENT_BYTES;
use rekindle_core::master::recovery::Recovery;
use rekindle_core::master::tablets::SlotRange as CoreRange;
use rekindle_core::master::{Master, MasterOptions as CoreOptions};
use rekindle_core::status::Status;

use crate::clock;
use crate::errors::{Result, border, error, guard, rejection, store, whole};
use crate::migration::MigrationCore;

/// Log memory of one view; segments do not reach across. Node 20 allows 4 GiB.
const REGION_BYTES: usize = 1 << 30;
const _: () = assert!(REGION_BYTES.is_multiple_of(SEGMENT_BYTES), "whole segments");

/// How a master is made.
#[napi(object)]
pub struct MasterOptions {
    /// Log id.
    pub server_id: f64,
    /// A multiple of 8 MiB, at least 64 MiB.
    pub memory_bytes: f64,
    /// At least 1.
    pub replay_threads: u32,
    /// Whether backups hold the log.
    pub replicated: bool,
    /// Segments on backups, as a multiple of those that fit into memory.
    pub disk_expansion_factor: f64,
}

/// A pass of the cleaner whose survivors must be replicated.
#[napi(object)]
pub struct CleaningPass {
    /// From 1.
    pub pass_id: f64,
    /// Segments that hold what was alive.
    pub survivors: Vec<f64>,
    /// Segments that they replace.
    pub cleaned: Vec<f64>,
}

/// Does not keep the process alive.
type PassCallback =
    ThreadsafeFunction<CleaningPass, Unknown<'static>, CleaningPass, NapiStatus, false, true>;

/// A range of slots of a table, both ends inclusive.
#[napi(object)]
pub struct SlotRange {
    /// From 1.
    pub table_id: f64,
    /// First slot.
    pub start_slot: f64,
    /// Last slot.
    pub end_slot: f64,
}

/// A tablet with its weight.
#[napi(object)]
pub struct TabletStats {
    /// From 1.
    pub table_id: f64,
    /// First slot.
    pub start_slot: f64,
    /// Last slot.
    pub end_slot: f64,
    /// Bytes of the entries of its objects.
    pub bytes: f64,
    /// Its objects.
    pub records: f64,
}

/// What one replay brought.
#[napi(object)]
pub struct Replayed {
    /// Objects and tombstones.
    pub objects: f64,
    /// Bytes.
    pub bytes: f64,
}

fn core_range(range: &SlotRange) -> std::result::Result<CoreRange, Status> {
    let slot = |number: f64| u32::try_from(whole(number)?).map_err(|_| Status::InvalidArgument);
    Ok(CoreRange {
        table_id: whole(range.table_id)?,
        start_slot: slot(range.start_slot)?,
        end_slot: slot(range.end_slot)?,
    })
}

fn numbers(ids: Vec<u64>) -> Vec<f64> {
    ids.into_iter().map(|id| id as f64).collect()
}

/// What a promise that `promised` has made comes to.
type Settle<T> = Box<dyn FnOnce(std::result::Result<T, Status>) + Send>;

/// A promise of long work; rejected if `start` refuses it.
fn promised<'env, T: ToNapiValue + Send + 'static>(
    env: &'env Env,
    call: &'static str,
    start: impl FnOnce(Settle<T>) -> std::result::Result<(), Status>,
) -> Result<Object<'env>> {
    let (deferred, promise) = env.create_deferred().map_err(border)?;
    let refused = deferred.clone();
    let settled = move |outcome: std::result::Result<T, Status>| {
        move |env: Env| outcome.map_err(|status| rejection(env, status, call))
    };
    let settle = Box::new(move |outcome| deferred.resolve(settled(outcome)));
    let started = catch_unwind(AssertUnwindSafe(|| start(settle)));
    if let Err(status) = started.unwrap_or(Err(Status::Internal)) {
        refused.resolve(settled(Err(status)));
    }
    Ok(promise)
}

/// A master's data.
#[napi]
pub struct MasterCore {
    master: Arc<Master>,
    regions: HashMap<usize, ObjectRef<false>>,
}

#[napi]
impl MasterCore {
    /// An empty master.
    #[napi(constructor)]
    pub fn new(options: MasterOptions) -> Result<Self> {
        let master = guard("MasterCore", || {
            Master::new(CoreOptions {
                server_id: whole(options.server_id)?,
                memory_bytes: whole(options.memory_bytes)? as usize,
                replay_threads: options.replay_threads as usize,
                replicated: options.replicated,
                disk_expansion_factor: options.disk_expansion_factor,
            })
        })?;
        Ok(Self {
            master,
            regions: HashMap::new(),
        })
    }

    /// Owns a tablet.
    #[napi]
    pub fn take_tablet(&self, range: SlotRange) -> Result<()> {
        guard("takeTablet", || {
            self.master.take_tablet(core_range(&range)?)
        })
    }

    /// The log says from now on that `key` is `value`; an empty value: nothing.
    #[napi]
    pub fn note(&self, key: String, value: String) -> Result<()> {
        guard("note", || {
            self.master.note(key.as_bytes(), value.as_bytes())
        })
    }

    /// Forgets a tablet: who owns it at once, its objects in the background.
    #[napi(ts_return_type = "Promise<void>")]
    pub fn drop_tablet<'env>(&self, env: &'env Env, range: SlotRange) -> Result<Object<'env>> {
        promised(env, "dropTablet", |settle| {
            let range = core_range(&range)?;
            self.master.drop_tablet_later(range, settle)
        })
    }

    /// Makes two of a tablet.
    #[napi(ts_return_type = "Promise<void>")]
    pub fn split_tablet<'env>(
        &self,
        env: &'env Env,
        range: SlotRange,
        slot: f64,
    ) -> Result<Object<'env>> {
        promised(env, "splitTablet", |settle| {
            let slot = u32::try_from(whole(slot)?).map_err(|_| Status::InvalidArgument)?;
            self.master
                .split_tablet_later(core_range(&range)?, slot, settle)
        })
    }

    /// The first segment whose entries count if the tablets of a range are one.
    #[napi]
    pub fn merged_ctime(&self, range: SlotRange) -> Result<f64> {
        guard("mergedCtime", || {
            Ok(self.master.merged_ctime(&core_range(&range)?)? as f64)
        })
    }

    /// Makes one tablet of those that make up a range.
    #[napi]
    pub fn merge_tablets(&self, range: SlotRange) -> Result<()> {
        guard("mergeTablets", || {
            self.master.merge_tablets(core_range(&range)?)
        })
    }

    /// The tablets that are served.
    #[napi]
    pub fn tablets(&self) -> Result<Vec<TabletStats>> {
        let tablets = guard("tablets", || self.master.tablets())?;
        let convert = |tablet: rekindle_core::master::TabletStats| TabletStats {
            table_id: tablet.range.table_id as f64,
            start_slot: f64::from(tablet.range.start_slot),
            end_slot: f64::from(tablet.range.end_slot),
            bytes: tablet.bytes as f64,
            records: tablet.records as f64,
        };
        Ok(tablets.into_iter().map(convert).collect())
    }

    /// Whether an EXECUTE body changes nothing.
    #[napi]
    pub fn is_read_only(&self, body: &[u8]) -> Result<bool> {
        guard("isReadOnly", || Ok(Master::is_read_only(body)))
    }

    /// Executes an EXECUTE body.
    #[napi]
    pub fn execute(
        &self,
        body: &[u8],
        mut reply: Uint8ArraySlice<'_>,
        now_ms: f64,
        mut results: Float64ArraySlice<'_>,
    ) -> Result<()> {
        guard("execute", || {
            // SAFETY: JavaScript does not run during the call, and the caller passes arrays that do
            // not overlap.
            let (reply, results) = unsafe { (reply.as_mut(), results.as_mut()) };
            if results.len() < 3 {
                return Err(Status::InvalidArgument);
            }
            let done = self.master.execute(body, reply, now_ms as u64)?;
            // What was done is not undone by a clock that fails: no lease holds so late.
            let read_at_ms = clock::now_ms().unwrap_or(f64::INFINITY);
            store(
                results,
                &[done.reply_bytes as f64, done.position as f64, read_at_ms],
            )
        })
    }

    /// Opens the first head.
    #[napi]
    pub fn open_log(&self) -> Result<()> {
        guard("openLog", || self.master.open_log())
    }

    /// Opens the next head.
    #[napi]
    pub fn roll_head(&self) -> Result<f64> {
        guard("rollHead", || Ok(self.master.roll_head()? as f64))
    }

    /// Heads opened after a segment.
    #[napi]
    pub fn heads_after(&self, segment_id: f64) -> Result<Vec<f64>> {
        guard("headsAfter", || {
            Ok(numbers(self.master.heads_after(whole(segment_id)?)?))
        })
    }

    /// A segment's state.
    #[napi]
    pub fn segment_state(&self, segment_id: f64, mut results: Float64ArraySlice<'_>) -> Result<()> {
        guard("segmentState", || {
            // SAFETY: JavaScript does not run during the call.
            let results = unsafe { results.as_mut() };
            let state = self.master.segment_state(whole(segment_id)?)?;
            let closed = f64::from(u8::from(state.closed));
            let opening_bytes = state.opening_bytes as f64;
            store(
                results,
                &[
                    state.appended as f64,
                    closed,
                    state.position as f64,
                    opening_bytes,
                ],
            )
        })
    }

    /// The next certified piece of a segment.
    #[napi]
    pub fn chunk(
        &self,
        segment_id: f64,
        from: f64,
        bytes_max: f64,
        mut results: Float64ArraySlice<'_>,
    ) -> Result<()> {
        guard("chunk", || {
            // SAFETY: JavaScript does not run during the call.
            let results = unsafe { results.as_mut() };
            let (from, bytes_max) = (whole(from)? as usize, whole(bytes_max)? as usize);
            let id = whole(segment_id)?;
            let piece = self.master.chunk(id, from, bytes_max)?;
            let appended = self.master.segment(id)?.appended() as f64;
            store(
                results,
                &[piece.end as f64, f64::from(piece.checksum), appended],
            )
        })
    }

    /// Bytes of a segment, without a copy.
    #[napi(ts_return_type = "Uint8Array")]
    pub fn segment_bytes<'env>(
        &mut self,
        env: &'env Env,
        segment_id: f64,
        from: f64,
        end: f64,
    ) -> Result<Object<'env>> {
        let (offset, length) = guard("segmentBytes", || {
            let (from, end) = (whole(from)? as usize, whole(end)? as usize);
            let (offset, follow) = self.master.segment(whole(segment_id)?)?.locate(from)?;
            let length = end.checked_sub(from).ok_or(Status::InvalidArgument)?;
            if length > follow {
                return Err(Status::InvalidArgument);
            }
            Ok((offset, length))
        })?;
        let region = self.region(env, offset / REGION_BYTES)?;
        let start = (offset % REGION_BYTES) as f64;
        let subarray: Function<'_, FnArgs<(f64, f64)>, Object<'env>> =
            region.get_named_property("subarray").map_err(border)?;
        subarray
            .apply(region, (start, start + length as f64).into())
            .map_err(border)
    }

    /// No replica of the segment is being written any more.
    #[napi]
    pub fn unpin_segment(&self, segment_id: f64) -> Result<()> {
        guard("unpinSegment", || {
            self.master.unpin_segment(whole(segment_id)?)
        })
    }

    /// Called with each pass of the cleaner.
    #[napi(ts_args_type = "callback: (pass: CleaningPass) => void")]
    pub fn on_cleaning_pass(
        &self,
        callback: Function<'_, CleaningPass, Unknown<'static>>,
    ) -> Result<()> {
        let function: PassCallback = callback
            .build_threadsafe_function::<CleaningPass>()
            .weak::<true>()
            .build_callback(|context| Ok(context.value))
            .map_err(border)?;
        self.master.on_cleaning_pass(Box::new(move |pass| {
            let told = CleaningPass {
                pass_id: pass.id as f64,
                survivors: numbers(pass.survivors.clone()),
                cleaned: numbers(pass.cleaned.clone()),
            };
            // Few passes are under way at a time; the queue refuses only when Node ends.
            function.call(told, ThreadsafeFunctionCallMode::NonBlocking);
        }));
        Ok(())
    }

    /// The survivors of a pass are replicated.
    #[napi]
    pub fn commit_cleaning(&self, pass_id: f64, force: bool) -> Result<f64> {
        guard("commitCleaning", || {
            Ok(self.master.commit_cleaning(whole(pass_id)?, force)? as f64)
        })
    }

    /// The head that names the survivors is durable.
    #[napi]
    pub fn end_cleaning(&self, pass_id: f64) -> Result<()> {
        guard("endCleaning", || self.master.end_cleaning(whole(pass_id)?))
    }

    fn region<'env>(&mut self, env: &'env Env, index: usize) -> Result<Object<'env>> {
        if let Some(region) = self.regions.get(&index) {
            return region.get_value(env).map_err(border);
        }
        let arena = Arc::clone(self.master.arena());
        let start = arena.pointer(index * REGION_BYTES);
        let length = REGION_BYTES.min(arena.bytes() - index * REGION_BYTES);
        // SAFETY: the view holds the arena, so its bytes stay mapped as long as it lives.
        let view = unsafe {
            BufferSlice::from_external(env, start, length, arena, |_, arena| drop(arena))
        };
        let view = view.map_err(border)?;
        if view.as_ptr() != start.cast_const() {
            return Err(error(
                Status::Internal,
                "segmentBytes: the host copies external memory",
            ));
        }
        let object = view.to_unknown().coerce_to_object().map_err(border)?;
        let kept = object.create_ref::<false>().map_err(border)?;
        let object = kept.get_value(env).map_err(border)?;
        self.regions.insert(index, kept);
        Ok(object)
    }

    /// Position after the newest append.
    #[napi]
    pub fn appended_position(&self) -> Result<f64> {
        guard("appendedPosition", || {
            Ok(self.master.appended_position()? as f64)
        })
    }

    /// Everything below is on all its backups.
    #[napi]
    pub fn set_durable(&self, position: f64) -> Result<()> {
        guard("setDurable", || self.master.set_durable(whole(position)?))
    }

    /// Segments of the log.
    #[napi]
    pub fn log_segments(&self) -> Result<Vec<f64>> {
        guard("logSegments", || Ok(numbers(self.master.log_segments()?)))
    }

    /// Prepares the replay of one partition.
    #[napi]
    pub fn start_recovery(&self, tablets: Vec<SlotRange>) -> Result<RecoveryCore> {
        let recovery = guard("startRecovery", || {
            let ranges: std::result::Result<Vec<_>, _> = tablets.iter().map(core_range).collect();
            Ok(Arc::new(self.master.start_recovery(&ranges?)?))
        })?;
        Ok(RecoveryCore { recovery })
    }

    /// Starts to give a tablet away.
    #[napi]
    pub fn start_migration(&self, tablet: SlotRange) -> Result<MigrationCore> {
        let migration = guard("startMigration", || {
            let range = core_range(&tablet)?;
            Ok(Arc::new(self.master.start_migration(&range)?))
        })?;
        Ok(MigrationCore { migration })
    }

    /// Takes over what clients were answered elsewhere.
    #[napi]
    pub fn import_results(&self, bytes: &[u8], now_ms: f64) -> Result<()> {
        guard("importResults", || {
            self.master.import_results(bytes, now_ms as u64)
        })
    }

    /// Sizes and counters.
    #[napi]
    pub fn stats(&self) -> Result<HashMap<String, f64>> {
        guard("stats", || {
            let stats = self.master.stats()?.into_iter();
            Ok(stats
                .map(|(name, value)| (name.to_owned(), value as f64))
                .collect())
        })
    }

    /// Ends the threads, gives the memory back.
    #[napi]
    pub fn close(&mut self, env: &Env) -> Result<()> {
        guard("close", || self.master.close())?;
        for (_, view) in self.regions.drain() {
            view.unref(env).map_err(border)?;
        }
        Ok(())
    }
}

/// The recovery of one partition.
#[napi]
pub struct RecoveryCore {
    recovery: Arc<Recovery>,
}

#[napi]
impl RecoveryCore {
    /// First segment of the log that can hold entries of the recovered tablets.
    #[napi(getter)]
    pub fn ctime_segment_id(&self) -> f64 {
        self.recovery.ctime_segment_id as f64
    }

    /// Replays one recovery segment on a thread of the pool.
    #[napi(ts_return_type = "Promise<Replayed>")]
    pub fn replay<'env>(
        &self,
        env: &'env Env,
        bytes: Uint8Array,
        checksum: f64,
    ) -> Result<Object<'env>> {
        let checksum = guard("replay", || {
            u32::try_from(whole(checksum)?).map_err(|_| Status::InvalidArgument)
        })?;
        let (deferred, promise) = env.create_deferred().map_err(border)?;
        let unqueued = deferred.clone();
        let settle = |replayed: std::result::Result<_, Status>, bytes: Option<Uint8Array>| {
            move |env: Env| {
                // The bytes are let go here, on the JavaScript thread.
                drop(bytes);
                let found: rekindle_core::master::replay::Replayed =
                    replayed.map_err(|status| rejection(env, status, "replay"))?;
                Ok(Replayed {
                    objects: found.objects as f64,
                    bytes: found.bytes as f64,
                })
            }
        };
        let queued = guard("replay", || {
            self.recovery
                .replay_later(bytes, checksum, move |replayed, bytes| {
                    deferred.resolve(settle(replayed, Some(bytes)));
                })
        });
        if let Err(refused) = queued {
            drop(refused);
            unqueued.resolve(settle(Err(Status::Retry), None));
        }
        Ok(promise)
    }

    /// Side segments so far.
    #[napi]
    pub fn side_segments(&self) -> Result<Vec<f64>> {
        guard("sideSegments", || {
            Ok(numbers(self.recovery.side_segments()))
        })
    }

    /// Nothing more is replayed.
    #[napi(ts_return_type = "Promise<void>")]
    pub fn finish_replay<'env>(&self, env: &'env Env) -> Result<Object<'env>> {
        promised(env, "finishReplay", |settle| {
            self.recovery.finish_replay_later(settle)
        })
    }

    /// The side segments enter the log.
    #[napi]
    pub fn commit(&self) -> Result<f64> {
        guard("commit", || Ok(self.recovery.commit()? as f64))
    }

    /// The side segments leave the log with the next head.
    #[napi]
    pub fn withdraw(&self) -> Result<()> {
        guard("withdraw", || self.recovery.withdraw())
    }

    /// Serves the tablets.
    #[napi]
    pub fn activate(&self) -> Result<()> {
        guard("activate", || self.recovery.activate())
    }

    /// Takes everything back.
    #[napi(ts_return_type = "Promise<number[]>")]
    pub fn abort<'env>(&self, env: &'env Env) -> Result<Object<'env>> {
        promised(env, "abort", |settle| {
            self.recovery
                .abort_later(|freed| settle(freed.map(numbers)))
        })
    }
}
