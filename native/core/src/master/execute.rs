//! Operations on objects: what an EXECUTE message does to table and log.
//!
//! Rules: every answer that depends on an entry that may not be durable yet, be it object or
//! tombstone, raises the position that the whole message waits for; a write over an object appends
//! object and tombstone as one atomic append; a removed key's slot keeps the tombstone until that
//! is durable. Runs on the thread that holds the serving state; shares the table with replay.

use std::collections::VecDeque;

use super::hash_table::prefetch;
use super::log::{Log, Purpose};
use super::message::{Operation, OperationKind, Reply, Request, reject};
use super::objects::{Current, Objects};
use super::segment::Append;
use super::tablets::Tablets;
use super::unacked_rpc_results::{Duplicate, RpcResult, UnackedRpcResults};
use crate::entry::{EntryHeader, EntryType, EntryView, VALUE_BYTES_MAX};
use crate::key_hash::{key_hash, slot};
use crate::status::Status;

/// Operations whose cache misses overlap.
const BATCH: usize = 32;
const RETRY_WINDOW_MS: u16 = 20;
const RETRY_MEMORY_MS: u16 = 200;

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
        self.results
            .begin(request.client_id, request.ack_id, now_ms);
        let mut operations = request.operations();
        let mut batch: Vec<(Operation<'_>, u64)> = Vec::with_capacity(BATCH);
        let mut position = 0;
        let mut full = false;
        loop {
            batch.clear();
            for operation in operations.by_ref().take(BATCH) {
                let hash = key_hash(operation.table_id, operation.key);
                objects.table.prefetch_bucket(hash);
                batch.push((operation, hash));
            }
            if batch.is_empty() {
                break;
            }
            for (_, hash) in &batch {
                let arena = &objects.arena;
                objects
                    .table
                    .candidates(*hash, |offset| prefetch(arena.pointer(offset)));
            }
            for (operation, hash) in &batch {
                let mut outcome = Outcome::failed(Status::Retry);
                if !full {
                    outcome = self.operation(objects, &request, operation, *hash, now_ms);
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
        }
        let position = if position > self.durable { position } else { 0 };
        Ok(Executed {
            reply_bytes: reply.finish(),
            position,
        })
    }

    fn operation<'a>(
        &mut self,
        objects: &'a Objects,
        request: &Request<'_>,
        operation: &Operation<'_>,
        hash: u64,
        now_ms: u64,
    ) -> Outcome<'a> {
        if operation.key.is_empty() {
            return Outcome::failed(Status::InvalidKey);
        }
        if operation.value.len() > VALUE_BYTES_MAX {
            return Outcome::failed(Status::ValueTooLarge);
        }
        if operation.kind == OperationKind::Read {
            return match self.check_tablet(operation, hash) {
                Ok(()) => self.read(objects, operation, hash),
                Err(status) => Outcome::failed(status),
            };
        }
        let (client_id, rpc_id) = (request.client_id, operation.rpc_id);
        match self
            .results
            .check(client_id, request.ack_id, rpc_id, now_ms)
        {
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
        match self.mutate(objects, operation, hash, timestamp) {
            Ok(result) => {
                self.results.save(client_id, rpc_id, result);
                Outcome::done(result)
            }
            Err(status) => Outcome::failed(status),
        }
    }

    fn check_tablet(&self, operation: &Operation<'_>, hash: u64) -> Result<(), Status> {
        match self.tablets.find(operation.table_id, slot(hash)) {
            Some(tablet) if tablet.ready() => Ok(()),
            _ => Err(Status::UnknownTablet),
        }
    }

    fn read<'a>(
        &mut self,
        objects: &'a Objects,
        operation: &Operation<'_>,
        hash: u64,
    ) -> Outcome<'a> {
        self.counters.reads += 1;
        let current = objects.find(hash, operation.table_id, operation.key);
        let position = current.as_ref().map_or(0, |current| {
            end_position(objects, current.offset, &current.entry)
        });
        let version = object_version(&current);
        let status = rejected(operation, version);
        match (current, version, status) {
            (Some(current), Some(version), None) => {
                let value = current.entry.value();
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

    fn mutate(
        &mut self,
        objects: &Objects,
        operation: &Operation<'_>,
        hash: u64,
        timestamp: u32,
    ) -> Result<RpcResult, Status> {
        self.check_tablet(operation, hash)?;
        let _guard = objects.table.lock(hash);
        let current = objects.find(hash, operation.table_id, operation.key);
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
        match current {
            Some(dead) if remove => self.remove(objects, operation, hash, &dead, timestamp),
            current => self.write(objects, operation, hash, current, timestamp),
        }
    }

    fn write(
        &mut self,
        objects: &Objects,
        operation: &Operation<'_>,
        hash: u64,
        current: Option<Current<'_>>,
        timestamp: u32,
    ) -> Result<RpcResult, Status> {
        let table_slot = match &current {
            Some(current) => current.slot,
            None => objects.table.empty_slot(hash)?,
        };
        let dead = current.as_ref().filter(|current| current.is_object());
        let version = match dead {
            Some(dead) => dead.entry.version() + 1,
            None => objects.allocate_version(),
        };
        assert!(
            current
                .as_ref()
                .is_none_or(|current| version > current.entry.version()),
            "versions never go back"
        );
        let Operation {
            key,
            value,
            table_id,
            ..
        } = *operation;
        let header = EntryHeader {
            entry_type: EntryType::Object,
            flags: 0,
            timestamp,
            table_id,
            version,
        };
        let object = Append { header, key, value };
        let (offset, dead_bytes) = match dead {
            Some(dead) => {
                let segment_id = objects.arena.segment_id(dead.offset).to_le_bytes();
                let tombstone = tombstone_of(&dead.entry, &segment_id, timestamp);
                let entries = [object, tombstone];
                let offset = self.append(objects, &entries, Purpose::Write)?;
                objects
                    .arena
                    .count_dead(dead.offset, dead.entry.total_bytes());
                (offset, dead.entry.total_bytes() as i64)
            }
            None => (self.append(objects, &[object], Purpose::Write)?, 0),
        };
        table_slot.publish(offset);
        let records = i64::from(dead.is_none());
        self.count(table_id, hash, records, object.bytes() as i64 - dead_bytes);
        self.counters.writes += 1;
        let position = self.log.appended_position();
        Ok(RpcResult {
            status: Status::Ok,
            version,
            position,
        })
    }

    fn remove(
        &mut self,
        objects: &Objects,
        operation: &Operation<'_>,
        hash: u64,
        dead: &Current<'_>,
        timestamp: u32,
    ) -> Result<RpcResult, Status> {
        let version = dead.entry.version();
        let segment_id = objects.arena.segment_id(dead.offset).to_le_bytes();
        let tombstone = tombstone_of(&dead.entry, &segment_id, timestamp);
        let offset = self.append(objects, &[tombstone], Purpose::Remove)?;
        objects.raise_safe_version(version + 1);
        dead.slot.publish(offset);
        let bytes = dead.entry.total_bytes();
        objects.arena.count_dead(dead.offset, bytes);
        self.count(operation.table_id, hash, -1, -(bytes as i64));
        self.counters.removes += 1;
        let position = self.log.appended_position();
        let pending = PendingTombstone {
            end_position: position,
            hash,
            offset,
        };
        self.pending_tombstones.push_back(pending);
        Ok(RpcResult {
            status: Status::Ok,
            version,
            position,
        })
    }

    fn append(
        &mut self,
        objects: &Objects,
        entries: &[Append<'_>],
        purpose: Purpose,
    ) -> Result<usize, Status> {
        self.log.append(objects, &self.tablets, entries, purpose)
    }

    fn count(&self, table_id: u64, hash: u64, records: i64, bytes: i64) {
        let tablet = self
            .tablets
            .find(table_id, slot(hash))
            .expect("the tablet was checked");
        tablet.count(records, bytes);
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
            let _guard = objects.table.lock(tombstone.hash);
            // Gone already if the key was written again or its tablet dropped.
            objects.table.erase(tombstone.hash, tombstone.offset);
            self.pending_tombstones.pop_front();
        }
        Ok(())
    }
}

/// The tombstone of an object; `segment_id` is where the object lies.
pub fn tombstone_of<'a>(
    dead: &EntryView<'a>,
    segment_id: &'a [u8; 8],
    timestamp: u32,
) -> Append<'a> {
    let header = EntryHeader {
        entry_type: EntryType::Tombstone,
        flags: 0,
        timestamp,
        table_id: dead.table_id(),
        version: dead.version(),
    };
    Append {
        header,
        key: dead.key(),
        value: segment_id,
    }
}
