//! Replicas and queued work in memory: what the handle, the I/O thread and the compressor share.
//!
//! Rule: the lock around [`State`] is held for bookkeeping and copies, never over I/O. Of each
//! replica, durable length <= certified length <= received length.

use crate::backup::directory::{Extent, Piece, Tenant};
use crate::backup::frame::{BLOCK_BYTES, CertificateBlock, Codec, FrameState};
use crate::backup::frame_table::FrameTable;
use crate::backup::segment_buffer::SegmentBuffer;
use crate::backup::storage::Completion;
use crate::backup::superblock::{Identity, Superblock};
use crate::status::Status;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;

/// Writes that wait for their flush; beyond it `Retry`.
pub(super) const TOKENS_MAX: usize = 65_536;
/// Frees, fences and identities that wait; beyond it `Retry`.
pub(super) const JOBS_MAX: usize = 4_096;

/// (master id, segment id).
pub(super) type ReplicaKey = (u64, u64);

/// What a certificate of a replica says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Certified {
    pub length: u32,
    pub checksum: u32,
    pub epoch: u64,
}

/// Where a replica lies on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// It has the frame for itself.
    Whole(u32),
    /// An image in units of shared frames.
    Shared(Extent),
}

impl Place {
    /// The frame of a replica that is no image, or still changes.
    pub fn whole(&self) -> u32 {
        match *self {
            Place::Whole(frame) => frame,
            Place::Shared(_) => panic!("only images share frames"),
        }
    }

    /// Where an image that lies in this place lies.
    pub fn extent(&self) -> Extent {
        match *self {
            Place::Whole(frame) => Extent {
                home: Piece {
                    frame,
                    units: u8::MAX,
                },
                next: None,
            },
            Place::Shared(extent) => extent,
        }
    }
}

/// The bytes of an open replica.
pub(super) struct OpenMemory {
    pub buffer: Arc<SegmentBuffer>,
    pub received: u32,
    /// CRC-32C of all received bytes.
    pub running: u32,
    /// Complete blocks in the data area.
    pub flushed_blocks: u32,
}

pub(super) struct Replica {
    /// Unique in this process: tells a replica from its successor of the same key.
    pub id: u64,
    pub primary: bool,
    pub place: Place,
    /// None until the first certificate: the replica is invisible.
    pub certified: Option<Certified>,
    /// A close was accepted.
    pub closed: bool,
    /// What the newest slot says.
    pub durable: Option<Certified>,
    pub durable_closed: bool,
    /// The newest slot says `Ahead`: after a restart the replica may lack acknowledged bytes.
    pub durable_ahead: bool,
    pub codec: Codec,
    pub stored: u32,
    /// None when the bytes are on disk only.
    pub memory: Option<OpenMemory>,
    /// Tokens that wait for the next flush of this replica.
    pub waiting: Vec<u64>,
    /// A write of it failed: it takes no more, and stays as it is until it is freed.
    pub lost: bool,
    /// Its bytes on disk are not those of its certificate.
    pub rotten: bool,
    pub from_restart: bool,
    /// The replica from before a restart that this one replaces when it is durable.
    pub replaced: Option<Box<Replica>>,
}

impl Replica {
    /// The replica that others may see: itself, or the one it will replace.
    pub fn visible(&self) -> Option<&Replica> {
        match self.certified {
            Some(_) => Some(self),
            None => self.replaced.as_deref(),
        }
    }

    /// On disk only, and never changed again.
    pub fn at_rest(&self) -> bool {
        self.durable_closed && self.memory.is_none()
    }

    /// `ahead`: more may be acknowledged before the next slot.
    fn needs_slot(&self, ahead: bool) -> bool {
        let changed = self.durable != self.certified || self.closed != self.durable_closed;
        self.certified.is_some() && (changed || (self.durable_ahead && !ahead))
    }
}

/// One replica's share of a group.
pub(super) struct FlushPlan {
    pub key: ReplicaKey,
    pub id: u64,
    pub frame: u32,
    pub slot: usize,
    pub certificate: CertificateBlock,
    pub buffer: Arc<SegmentBuffer>,
    pub flushed_blocks: u32,
    /// Complete blocks only: the slot follows with the next group.
    pub data_only: bool,
    pub tokens: Vec<u64>,
    pub failed: bool,
}

/// Work of the I/O thread that is not a write of a master.
pub(super) enum Job {
    /// Frees what lies in these places; `incomplete`: copies of it are left elsewhere.
    Free {
        places: Vec<(ReplicaKey, Place)>,
        incomplete: bool,
        done: Completion,
    },
    /// The image of a closed replica is flushed: makes it the replica.
    Switch(Switch),
    /// Writes the fences and, if given, a new identity.
    Superblock {
        identity: Option<Identity>,
        done: Completion,
    },
}

/// A closed replica that may be worth compressing.
pub(super) struct CompressJob {
    pub key: ReplicaKey,
    pub id: u64,
    /// None: to be read from disk.
    pub buffer: Option<Arc<SegmentBuffer>>,
    pub certified: Certified,
    pub primary: bool,
}

/// A flushed image that waits for its directory.
pub(super) struct Switch {
    pub key: ReplicaKey,
    pub id: u64,
    pub certified: Certified,
    pub primary: bool,
    pub stored: u32,
    pub extent: Extent,
}

impl Switch {
    pub fn tenant(&self) -> Tenant {
        Tenant {
            master_id: self.key.0,
            segment_id: self.key.1,
            epoch: self.certified.epoch,
            length: self.certified.length,
            checksum: self.certified.checksum,
            stored: self.stored,
            primary: self.primary,
            units: self.extent.home.units,
            next: self.extent.next,
        }
    }
}

#[derive(Default)]
pub(super) struct Counters {
    pub flush_groups: u64,
    pub flushed_writes: u64,
    pub flushed_bytes: u64,
    pub disk_errors: u64,
    pub read_errors: u64,
    pub panics: u64,
    pub bad_at_restart: u64,
    pub torn_at_restart: u64,
    pub images_bad_at_restart: u64,
    pub compressed: u64,
    pub compression_skipped: u64,
    pub compression_saved_bytes: u64,
    /// Frames whose disk failed under a write of the I/O thread or a read of the scrub.
    pub frames_failed: u32,
    pub scrubbed_bytes: u64,
    pub scrub_passes: u64,
    pub rot_found: u64,
}

pub(super) struct State {
    pub replicas: BTreeMap<ReplicaKey, Replica>,
    pub frames: FrameTable,
    /// Replicas of which bytes are left on disk that could not be freed.
    pub unfreed: BTreeSet<ReplicaKey>,
    pub fenced: BTreeSet<u64>,
    pub superblock: Superblock,
    pub dirty: BTreeSet<ReplicaKey>,
    /// Whoever sets this, or `urgent`, wakes the I/O thread: a later write does not.
    pub dirty_since: Option<Instant>,
    /// Flush at once, whatever the interval.
    pub urgent: bool,
    pub jobs: VecDeque<Job>,
    pub compress_queue: VecDeque<CompressJob>,
    /// Jobs of the time while compression rests, without their bytes.
    pub compress_parked: VecDeque<CompressJob>,
    /// A recovery needs processor and disk: neither compressing nor pre-writing goes on.
    pub rests_until: Option<Instant>,
    pub tokens_waiting: usize,
    pub next_replica_id: u64,
    pub stopping: bool,
    /// The I/O thread is gone; nothing is accepted any more.
    pub stopped: bool,
    /// Mode `replicated`: writes are acknowledged before they are flushed.
    pub acknowledges_ahead: bool,
    pub counters: Counters,
}

impl State {
    pub fn new(frames_max: u32, superblock: Superblock, acknowledges_ahead: bool) -> Self {
        Self {
            replicas: BTreeMap::new(),
            frames: FrameTable::new(frames_max),
            unfreed: BTreeSet::new(),
            fenced: superblock.fenced.iter().copied().collect(),
            superblock,
            dirty: BTreeSet::new(),
            dirty_since: None,
            urgent: false,
            jobs: VecDeque::new(),
            compress_queue: VecDeque::new(),
            compress_parked: VecDeque::new(),
            rests_until: None,
            tokens_waiting: 0,
            next_replica_id: 1,
            stopping: false,
            stopped: false,
            acknowledges_ahead,
            counters: Counters::default(),
        }
    }

    pub fn new_replica_id(&mut self) -> u64 {
        self.next_replica_id += 1;
        self.next_replica_id
    }

    pub fn mark_dirty(&mut self, key: ReplicaKey, now: Instant) {
        self.dirty.insert(key);
        self.dirty_since.get_or_insert(now);
    }

    /// Whether more of this master's may be acknowledged than the disk has.
    fn goes_ahead(&self, master_id: u64) -> bool {
        self.acknowledges_ahead && !self.stopping && !self.fenced.contains(&master_id)
    }

    /// Nothing is acknowledged any more for this master, or for any: the open replicas get a slot
    /// that says so, lest a restart take them for shorter than what was acknowledged.
    pub fn settle_open(&mut self, master_id: Option<u64>, now: Instant) {
        let keys = match master_id {
            Some(id) => (id, 0)..=(id, u64::MAX),
            None => (0, 0)..=(u64::MAX, u64::MAX),
        };
        let ahead = |(key, replica): (&ReplicaKey, &Replica)| {
            (replica.durable_ahead && replica.memory.is_some()).then_some(*key)
        };
        let settled: Vec<ReplicaKey> = self.replicas.range(keys).filter_map(ahead).collect();
        for key in settled {
            self.mark_dirty(key, now);
        }
    }

    /// Bytes received and not yet durable.
    pub fn queued_bytes(&self) -> u64 {
        let queued = |key: &ReplicaKey| {
            let replica = self.replicas.get(key)?;
            let received = replica.memory.as_ref()?.received;
            Some(u64::from(
                received - replica.durable.map_or(0, |durable| durable.length),
            ))
        };
        self.dirty.iter().filter_map(queued).sum()
    }

    /// Takes a dirty replica's share of the next group. Tokens that need no I/O go to `done`.
    ///
    /// A close with bytes that are not yet durable takes two groups: a slot that says "closed" is
    /// written only when the data it vouches for is flushed, because a restart believes it. If
    /// nothing of the replica is on disk yet, it is the copy of a segment that others hold closed:
    /// then the first group writes no slot. A crash between the two would leave an open replica of
    /// a segment in the middle of the log, which a recovery could take for its head.
    pub fn plan_flush(
        &mut self,
        key: ReplicaKey,
        now: Instant,
        done: &mut Vec<(u64, Status)>,
    ) -> Option<FlushPlan> {
        let ahead = self.goes_ahead(key.0);
        let replica = self.replicas.get_mut(&key)?;
        if replica.lost {
            done.extend(
                replica
                    .waiting
                    .drain(..)
                    .map(|token| (token, Status::DiskError)),
            );
            return None;
        }
        if !replica.needs_slot(ahead) {
            done.extend(replica.waiting.drain(..).map(|token| (token, Status::Ok)));
            return None;
        }
        let certified = replica.certified?;
        let memory = replica
            .memory
            .as_ref()
            .expect("a replica that changes is in memory");
        let blocks_flushed = memory.flushed_blocks == certified.length / BLOCK_BYTES as u32;
        let fresh = replica.durable.is_none();
        let closing =
            replica.closed && (replica.durable == replica.certified || (fresh && blocks_flushed));
        let data_only = replica.closed && !closing && fresh;
        let buffer = Arc::clone(&memory.buffer);
        let (id, frame, primary) = (replica.id, replica.place.whole(), replica.primary);
        let flushed_blocks = memory.flushed_blocks;
        let (slot, sequence) = if data_only {
            (0, 0)
        } else {
            self.frames.next_slot(frame)
        };
        // Last of what can fail: a token that is neither here nor in the plan is never answered.
        let tokens = if replica.closed && !closing {
            Vec::new()
        } else {
            std::mem::take(&mut replica.waiting)
        };
        if replica.closed && !closing {
            self.mark_dirty(key, now);
            self.urgent = true;
        }
        let state = if closing {
            FrameState::Closed
        } else if ahead {
            FrameState::Ahead
        } else {
            FrameState::Open
        };
        let certificate = certificate_of(key, certified, state, primary, sequence);
        Some(FlushPlan {
            key,
            id,
            frame,
            slot,
            certificate,
            buffer,
            flushed_blocks,
            data_only,
            tokens,
            failed: false,
        })
    }

    /// The group with this plan is durable, or it failed and the replica is lost.
    pub fn apply_flush(&mut self, plan: &mut FlushPlan, done: &mut Vec<(u64, Status)>) {
        let status = if plan.failed {
            Status::DiskError
        } else {
            Status::Ok
        };
        done.extend(plan.tokens.drain(..).map(|token| (token, status)));
        if plan.failed {
            self.frames.latch_bad(plan.frame);
            self.lose_replica(plan.key, plan.id, done);
            return;
        }
        if !plan.data_only {
            self.frames.frame_mut(plan.frame).newest_slot = plan.slot;
        }
        let Some(replica) = self
            .replicas
            .get_mut(&plan.key)
            .filter(|found| found.id == plan.id)
        else {
            return;
        };
        let certificate = plan.certificate;
        let durable = Certified {
            length: certificate.length,
            checksum: certificate.checksum,
            epoch: certificate.epoch,
        };
        if let Some(memory) = &mut replica.memory {
            memory.flushed_blocks = durable.length / BLOCK_BYTES as u32;
        }
        if plan.data_only {
            return;
        }
        replica.durable = Some(durable);
        replica.stored = durable.length;
        replica.durable_closed = certificate.state == FrameState::Closed;
        replica.durable_ahead = certificate.state == FrameState::Ahead;
        let (ahead, primary) = (replica.durable_ahead, replica.primary);
        let closed = replica.durable_closed;
        let closed_memory = closed.then(|| replica.memory.take()).flatten();
        if let Some(replaced) = replica.replaced.take() {
            self.jobs.push_back(Job::Free {
                places: vec![(plan.key, replaced.place)],
                incomplete: false,
                done: Box::new(drop),
            });
        }
        if let Some(OpenMemory { buffer, .. }) = closed_memory {
            self.compress_queue.push_back(CompressJob {
                key: plan.key,
                id: plan.id,
                buffer: Some(buffer),
                certified: durable,
                primary,
            });
        }
        if ahead && !self.goes_ahead(plan.key.0) {
            // Its slot was under way when that ended, too late for `settle_open` to see it.
            self.mark_dirty(plan.key, Instant::now());
            self.urgent = true;
        }
    }
}

/// Of a replica that has a frame for itself.
fn certificate_of(
    key: ReplicaKey,
    certified: Certified,
    state: FrameState,
    primary: bool,
    sequence: u64,
) -> CertificateBlock {
    CertificateBlock {
        sequence,
        master_id: key.0,
        segment_id: key.1,
        epoch: certified.epoch,
        length: certified.length,
        checksum: certified.checksum,
        state,
        primary,
        codec: Codec::Raw,
        stored: certified.length,
    }
}
