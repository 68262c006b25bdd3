//! Gauges and counters of a backup's storage by name; what they mean is in `docs/operations.md`.

use crate::backup::frame_table::FrameUse;
use crate::backup::state::State;
use std::collections::BTreeMap;

fn flag(value: bool) -> f64 {
    f64::from(u8::from(value))
}

pub(super) fn of_state(state: &State) -> BTreeMap<&'static str, f64> {
    let counters = &state.counters;
    let frames = &state.frames;
    let replicas = || state.replicas.values();
    BTreeMap::from([
        ("framesCreated", frames.created() as f64),
        ("framesFree", frames.free_count() as f64),
        ("framesBad", frames.count(FrameUse::Bad) as f64),
        ("framesShared", frames.shared.count() as f64),
        ("sharedUnitsFree", f64::from(frames.shared.free_units())),
        (
            "framesPrewriting",
            frames.count(FrameUse::Prewriting) as f64,
        ),
        ("framesBadAtRestart", counters.bad_at_restart as f64),
        ("framesTornAtRestart", counters.torn_at_restart as f64),
        ("imagesBadAtRestart", counters.images_bad_at_restart as f64),
        ("replicas", state.replicas.len() as f64),
        (
            "replicasLost",
            replicas().filter(|one| one.lost).count() as f64,
        ),
        (
            "replicasRotten",
            replicas().filter(|one| one.rotten).count() as f64,
        ),
        ("replicasUnfreed", state.unfreed.len() as f64),
        ("fencedMasters", state.fenced.len() as f64),
        ("queuedBytes", state.queued_bytes() as f64),
        ("flushGroups", counters.flush_groups as f64),
        ("flushedWrites", counters.flushed_writes as f64),
        ("flushedBytes", counters.flushed_bytes as f64),
        ("diskErrors", counters.disk_errors as f64),
        ("diskFailed", flag(frames.failed())),
        ("readErrors", counters.read_errors as f64),
        ("panics", counters.panics as f64),
        ("compressedReplicas", counters.compressed as f64),
        ("compressionSkipped", counters.compression_skipped as f64),
        (
            "compressionSavedBytes",
            counters.compression_saved_bytes as f64,
        ),
        ("scrubbedBytes", counters.scrubbed_bytes as f64),
        ("scrubPasses", counters.scrub_passes as f64),
        ("rotFound", counters.rot_found as f64),
    ])
}
