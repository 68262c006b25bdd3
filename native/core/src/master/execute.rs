//! Operations on objects: what an EXECUTE message does to table and log.
//!
//! Rules: every answer that depends on an entry that may not be durable yet, be it object or
//! tombstone, raises the position that the whole message waits for; a new entry names every segment
//! that may hold a dead version of its key ([`PriorSegments`]); a removed key's slot keeps the
//! tombstone until that is durable. Runs on the thread that holds the serving state; shares the
//! table with replay and the cleaner.
//!
//! A change is: find the slot, write the entry behind the log's end, swap the slot, publish the
//! log's end. If the swap fails, the cleaner has moved the present entry: all starts over, so that
//! the new entry names the segment where that lies now, and nothing stillborn is published.

use std::collections::VecDeque;

use super::batch::{FetchBytes, Pipeline, Planned};
use super::hash_table::prefetch;
use super::log::{Log, Purpose};
use super::message::{Operation, OperationKind, Reply, Request, reject};
use super::objects::{Current, Objects};
use super::present_segments::PresentSegments;
use super::prior_segments::PriorSegments;
use super::segment::Append;
use super::tablets::{Tablets, Tally};
use super::unacked_rpc_results::{Duplicate, RpcResult, UnackedRpcResults};
use crate::entry::{EntryHeader, EntryType, EntryView, VALUE_BYTES_MAX};
use crate::key_hash::{key_hash, slot};
use crate::status::Status;

const RETRY_WINDOW_MS: u16 = 20;
const RETRY_MEMORY_MS: u16 = 200;
const RETRY_CLEANER_MS: u16 = 2;
/// Larger messages are bulk, see `Purpose::BulkWrite`.
const SMALL_MESSAGE_BYTES: usize = 4096;
const LINE_BYTES: usize = 64;
/// How far behind the log's end its memory is fetched; what is longer the processor fetches itself.
const APPEND_AHEAD_BYTES: usize = 1024;

/// What a message came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Executed {
    /// Bytes of the reply.
    pub reply_bytes: usize,
    /// Position that must be durable before the reply may leave; 0: at once.
    pub position: u64,
}

/// How often what was asked for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counters {
    /// Messages.
    pub messages: u64,
    /// Reads.
    pub reads: u64,
    /// Writes executed.
    pub writes: u64,
    /// Removes executed.
    pub removes: u64,
    /// Mutations answered from the saved results.
    pub duplicates: u64,
    /// Mutations refused as stale.
    pub stale: u64,
}

/// A tombstone that the table still refers to.
struct PendingTombstone {
    end_position: u64,
    hash: u64,
    offset: usize,
    version: u64,
}

/// The state of the serving thread.
#[derive(Default)]
pub struct Serving {
    /// The log.
    pub log: Log,
    /// What is owned.
    pub tablets: Tablets,
    /// Who was answered what.
    pub results: UnackedRpcResults,
    /// For `stats`.
    pub counters: Counters,
    /// Everything below is on all backups.
    pub durable: u64,
    /// By end position.
    pending_tombstones: VecDeque<PendingTombstone>,
    present: PresentSegments,
    /// Empty between messages.
    tally: Tally,
    /// What the last operations wanted of their entries, the next will probably want, too.
    fetch_bytes: FetchBytes,
    /// Of the message under way.
    write_purpose: Purpose,
}

struct Outcome<'a> {
    status: Status,
    retry_after_ms: u16,
    version: u64,
    value: &'a [u8],
    position: u64,
}

impl Outcome<'_> {
    fn failed(status: Status) -> Self {
        let retry_after_ms = match status {
            Status::Retry => RETRY_WINDOW_MS,
            Status::OutOfMemory => RETRY_MEMORY_MS,
            _ => 0,
        };
        Self {
            status,
            retry_after_ms,
            version: 0,
            value: &[],
            position: 0,
        }
    }

    fn done(result: RpcResult) -> Self {
        let RpcResult {
            status,
            version,
            position,
        } = result;
        Self {
            status,
            retry_after_ms: 0,
            version,
            value: &[],
            position,
        }
    }
}

/// The status of the first reject rule that strikes.
fn rejected(operation: &Operation<'_>, version: Option<u64>) -> Option<Status> {
    let rules = operation.reject;
    let Some(version) = version else {
        return (rules & reject::DOES_NOT_EXIST != 0).then_some(Status::ObjectNotFound);
    };
    let given = operation.given_version;
    if rules & reject::EXISTS != 0 {
        Some(Status::ObjectExists)
    } else if (rules & reject::VERSION_LE_GIVEN != 0 && version <= given)
        || (rules & reject::VERSION_NE_GIVEN != 0 && version != given)
    {
        Some(Status::WrongVersion)
    } else {
        None
    }
}

fn end_position(objects: &Objects, offset: usize, entry: &EntryView<'_>) -> u64 {
    objects.arena.end_position(offset, entry.total_bytes())
}

fn object_version(current: &Option<Current<'_>>) -> Option<u64> {
    current
        .as_ref()
        .filter(|current| current.is_object())
        .map(|current| current.entry.version())
}

impl Serving {
    /// Executes a message; `now_ms` is since 1970.
    ///
    /// # Errors
    /// `MalformedRequest`; then nothing was executed.
    pub fn execute(
        &mut self,
        objects: &Objects,
        body: &[u8],
        reply: &mut [u8],
        now_ms: u64,
    ) -> Result<Executed, Status> {
        let request = Request::parse(body)?;
        let mut reply = Reply::new(reply, request.count)?;
        self.counters.messages += 1;
        self.write_purpose = if body.len() > SMALL_MESSAGE_BYTES {
            Purpose::BulkWrite
        } else {
            Purpose::Write
        };
        self.results
            .begin(request.client_id, request.ack_id, now_ms);
        let (count, fetch_bytes) = (request.count, self.fetch_bytes);
        let mut pipeline = Pipeline::new(objects, request.operations(), count, fetch_bytes);
        let mut position = 0;
        let mut full = false;
        while let Some(planned) = pipeline.next() {
            let mut outcome = Outcome::failed(Status::Retry);
            if !full {
                outcome = self.operation(objects, planned, now_ms);
                full = !reply.has_room(outcome.value.len());
            }
            if full {
                reply.push(Status::Retry, 0, 0, &[]);
            } else {
                position = position.max(outcome.position);
                let Outcome {
                    status,
                    retry_after_ms,
                    version,
                    value,
                    ..
                } = outcome;
                reply.push(status, retry_after_ms, version, value);
            }
        }
        self.tally.flush(&self.tablets);
        let position = if position > self.durable { position } else { 0 };
        Ok(Executed {
            reply_bytes: reply.finish(),
            position,
        })
    }

    fn operation<'a>(
        &mut self,
        objects: &'a Objects,
        planned: &Planned<'_, 'a>,
        now_ms: u64,
    ) -> Outcome<'a> {
        let operation = &planned.operation;
        if operation.key.is_empty() {
            return Outcome::failed(Status::InvalidKey);
        }
        if operation.value.len() > VALUE_BYTES_MAX {
            return Outcome::failed(Status::ValueTooLarge);
        }
        if operation.kind == OperationKind::Read {
            return match self.served(operation, planned.hash) {
                Ok(_) => self.read(objects, planned),
                Err(status) => Outcome::failed(status),
            };
        }
        let rpc_id = operation.rpc_id;
        match self.results.check(rpc_id) {
            Duplicate::Done(result) => {
                self.counters.duplicates += 1;
                return Outcome::done(result);
            }
            Duplicate::Stale => {
                self.counters.stale += 1;
                return Outcome::failed(Status::StaleRpc);
            }
            Duplicate::NoRoom => return Outcome::failed(Status::Retry),
            Duplicate::New => {}
        }
        // A failure here changed nothing and is not remembered: the retry executes.
        let timestamp = u32::try_from(now_ms / 1000).unwrap_or(u32::MAX);
        match self.mutate(objects, planned, timestamp) {
            Ok(result) => {
                self.results.save(rpc_id, result);
                Outcome::done(result)
            }
            Err(Status::Retry) => Outcome {
                retry_after_ms: RETRY_CLEANER_MS,
                ..Outcome::failed(Status::Retry)
            },
            Err(status) => Outcome::failed(status),
        }
    }

    /// The place of the tablet, if it is served.
    #[inline]
    fn served(&self, operation: &Operation<'_>, hash: u64) -> Result<usize, Status> {
        let place = self
            .tally
            .place(&self.tablets, operation.table_id, slot(hash));
        place
            .filter(|place| self.tablets.at(*place).ready())
            .ok_or(Status::UnknownTablet)
    }

    fn read<'a>(&mut self, objects: &'a Objects, planned: &Planned<'_, 'a>) -> Outcome<'a> {
        self.counters.reads += 1;
        let current = planned.current(objects);
        let position = current.as_ref().map_or(0, |current| {
            end_position(objects, current.offset, &current.entry)
        });
        let version = object_version(&current);
        let status = rejected(&planned.operation, version);
        match (current, version, status) {
            (Some(current), Some(version), None) => {
                let value = current.entry.value();
                self.fetch_bytes.read = current.entry.total_bytes();
                Outcome {
                    status: Status::Ok,
                    retry_after_ms: 0,
                    version,
                    value,
                    position,
                }
            }
            (_, version, status) => Outcome::done(RpcResult {
                status: status.unwrap_or(Status::ObjectNotFound),
                version: version.unwrap_or(0),
                position,
            }),
        }
    }

    fn mutate<'a>(
        &mut self,
        objects: &'a Objects,
        planned: &Planned<'_, 'a>,
        timestamp: u32,
    ) -> Result<RpcResult, Status> {
        let (operation, hash) = (&planned.operation, planned.hash);
        let tablet = self.served(operation, hash)?;
        if !self.tablets.at(tablet).writable() {
            return Err(Status::Retry);
        }
        loop {
            let current = planned.current(objects);
            let version = object_version(&current);
            let remove = operation.kind == OperationKind::Remove;
            let status = rejected(operation, version);
            if status.is_some() || (remove && version.is_none()) {
                let position = current.as_ref().map_or(0, |current| {
                    end_position(objects, current.offset, &current.entry)
                });
                let status = status.unwrap_or(Status::Ok);
                return Ok(RpcResult {
                    status,
                    version: version.unwrap_or(0),
                    position,
                });
            }
            let done = match &current {
                Some(dead) if remove => self.remove(objects, planned, tablet, dead, timestamp)?,
                current => self.write(objects, planned, tablet, current.as_ref(), timestamp)?,
            };
            if let Some(result) = done {
                return Ok(result);
            }
        }
    }

    /// Nothing if the present entry was moved meanwhile: then nothing has changed.
    fn write(
        &mut self,
        objects: &Objects,
        planned: &Planned<'_, '_>,
        tablet: usize,
        current: Option<&Current<'_>>,
        timestamp: u32,
    ) -> Result<Option<RpcResult>, Status> {
        let operation = &planned.operation;
        let dead = current.filter(|current| current.is_object());
        let version = match dead {
            Some(dead) => dead.entry.version() + 1,
            None => objects.allocate_version(),
        };
        assert!(
            current.is_none_or(|current| version > current.entry.version()),
            "versions never go back"
        );
        // Dead versions before a tombstone are guarded by that one, which stays in the log.
        let prior = dead.map_or_else(PriorSegments::default, |dead| self.prior_of(objects, dead));
        let (guarded, named) = prior.split();
        let object = Append {
            header: EntryHeader {
                entry_type: EntryType::Object,
                flags: 0,
                timestamp,
                table_id: operation.table_id,
                version,
            },
            prior: named,
            key: operation.key,
            value: operation.value,
        };
        let guard = dead.map(|dead| tombstone_of(&dead.entry, guarded, timestamp));
        let entries = [object, guard.unwrap_or(object)];
        let entries = &entries[..1 + usize::from(!guarded.is_empty())];
        let offset = self.prepare(objects, entries, self.write_purpose)?;
        match current {
            Some(current) if !current.slot.replace(offset) => return Ok(None),
            Some(_) => {}
            None => objects.table.insert(planned.hash, offset)?,
        }
        self.log.publish(objects, entries);
        let dead_bytes = dead.map_or(0, |dead| {
            let bytes = dead.entry.total_bytes();
            objects.arena.count_dead(dead.offset, bytes);
            bytes as i64
        });
        let records = i64::from(dead.is_none());
        let bytes = object.bytes() as i64 - dead_bytes;
        self.count(objects, tablet, planned.hash, records, bytes);
        self.counters.writes += 1;
        Ok(Some(RpcResult {
            status: Status::Ok,
            version,
            position: self.log.appended_position(),
        }))
    }

    /// Nothing if the present entry was moved meanwhile: then nothing has changed.
    fn remove(
        &mut self,
        objects: &Objects,
        planned: &Planned<'_, '_>,
        tablet: usize,
        dead: &Current<'_>,
        timestamp: u32,
    ) -> Result<Option<RpcResult>, Status> {
        let version = dead.entry.version();
        let prior = self.prior_of(objects, dead);
        let (guarded, named) = prior.split();
        let guard = tombstone_of(&dead.entry, guarded, timestamp);
        let tombstone = tombstone_of(&dead.entry, named, timestamp);
        let entries = [guard, tombstone];
        let entries = &entries[usize::from(guarded.is_empty())..];
        let first = self.prepare(objects, entries, Purpose::Remove)?;
        let offset = first
            + entries[..entries.len() - 1]
                .iter()
                .map(Append::bytes)
                .sum::<usize>();
        if !dead.slot.replace(offset) {
            return Ok(None);
        }
        self.log.publish(objects, entries);
        objects.raise_safe_version(version + 1);
        // There may be room again: let the cleaner look.
        objects.set_full(false);
        let bytes = dead.entry.total_bytes();
        objects.arena.count_dead(dead.offset, bytes);
        self.count(objects, tablet, planned.hash, -1, -(bytes as i64));
        self.counters.removes += 1;
        let position = self.log.appended_position();
        let pending = PendingTombstone {
            end_position: position,
            hash: planned.hash,
            offset,
            version,
        };
        self.pending_tombstones.push_back(pending);
        Ok(Some(RpcResult {
            status: Status::Ok,
            version,
            position,
        }))
    }

    fn count(&mut self, objects: &Objects, tablet: usize, hash: u64, records: i64, bytes: i64) {
        self.tally.count(&self.tablets, tablet, records, bytes);
        let tablet = self.tablets.at(tablet);
        if tablet.splitting() {
            let (bucket, _) = objects.table.place(hash);
            tablet.count_half(slot(hash), bucket, records, bytes);
        }
    }

    fn prior_of(&mut self, objects: &Objects, dead: &Current<'_>) -> PriorSegments {
        if dead.entry.prior_count() > 0 {
            objects.refresh(&mut self.present);
        }
        self.fetch_bytes.replace = dead.entry.total_bytes() - dead.entry.value().len();
        let segment_id = objects.arena.segment_id(dead.offset);
        PriorSegments::after(&dead.entry, segment_id, |id| self.present.contains(id))
    }

    fn prepare(
        &mut self,
        objects: &Objects,
        entries: &[Append<'_>],
        purpose: Purpose,
    ) -> Result<usize, Status> {
        if !self.log.has_room(objects, entries, purpose) {
            // The next head begins with what the tablets weigh.
            self.tally.flush(&self.tablets);
        }
        let prepared = self.log.prepare(objects, &self.tablets, entries, purpose);
        let offset = prepared.map_err(|status| match status {
            // The cleaner will make room.
            Status::OutOfMemory if !objects.full() => Status::Retry,
            status => status,
        })?;
        // The lines of the entries after the next: a store that misses the cache holds up others.
        let bytes = entries.iter().map(Append::bytes).sum::<usize>();
        let ahead = objects
            .arena
            .pointer(offset)
            .wrapping_add(APPEND_AHEAD_BYTES);
        for at in (0..bytes.min(APPEND_AHEAD_BYTES)).step_by(LINE_BYTES) {
            prefetch(ahead.wrapping_add(at));
        }
        Ok(offset)
    }

    /// Whether the table may still refer to tombstones.
    pub fn has_pending_tombstones(&self) -> bool {
        !self.pending_tombstones.is_empty()
    }

    /// Everything below `position` is durable: answers about keys removed there need not wait.
    ///
    /// # Errors
    /// `InvalidArgument` if nothing was appended up to there.
    pub fn set_durable(&mut self, objects: &Objects, position: u64) -> Result<(), Status> {
        if position > self.log.appended_position() {
            return Err(Status::InvalidArgument);
        }
        self.durable = self.durable.max(position);
        while let Some(tombstone) = self.pending_tombstones.front() {
            if tombstone.end_position > self.durable {
                break;
            }
            forget(objects, tombstone);
            self.pending_tombstones.pop_front();
        }
        Ok(())
    }
}

/// Takes a tombstone out of the table. It is gone already if the key was written again or its
/// tablet dropped; it lies elsewhere if the cleaner has moved it.
fn forget(objects: &Objects, tombstone: &PendingTombstone) {
    let PendingTombstone {
        hash,
        mut offset,
        version,
        ..
    } = *tombstone;
    while !objects.table.erase(hash, offset) {
        let moved = objects.table.find(hash, |offset| {
            // SAFETY: the offset comes from a slot; segments are freed under the rules of objects.
            let entry = unsafe { objects.arena.entry(offset) };
            entry.entry_type() == EntryType::Tombstone
                && entry.version() == version
                && key_hash(entry.table_id(), entry.key()) == hash
        });
        match moved {
            Some((_, found)) => offset = found,
            None => return,
        }
    }
}

/// The tombstone of an object that names the segments `prior`.
pub fn tombstone_of<'a>(dead: &EntryView<'a>, prior: &'a [u64], timestamp: u32) -> Append<'a> {
    let header = EntryHeader {
        entry_type: EntryType::Tombstone,
        flags: 0,
        timestamp,
        table_id: dead.table_id(),
        version: dead.version(),
    };
    Append {
        header,
        prior,
        key: dead.key(),
        value: &[],
    }
}
