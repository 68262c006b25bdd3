//! A layer that LD_PRELOAD puts between a process and its disk, for tests of durability.
//!
//! Everything is written through; but what each file below `REKINDLE_POWER_LOSS_ROOT` held before
//! the writes that are not flushed yet is kept in `REKINDLE_POWER_LOSS_SIDECAR`, so that after a
//! SIGKILL of the process `bench/power-cut.ts` can make of the files what a power cut might have
//! left. Files named as `REKINDLE_POWER_LOSS_UNFLUSHED` says (`*`: all) are never flushed: a build
//! without its fdatasync.
//! `REKINDLE_POWER_LOSS_CONTROL` names a page by which a test makes this disk slow, full or broken.
//!
//! `symbols` is what the process calls instead of libc, `ledger` what is kept, `disk_fault` the
//! page, `raw` the system calls themselves. A call that this layer cannot follow (a shared writable
//! mapping, say) is named in the sidecar's file `unsupported`; the self-test wants none there.

mod disk_fault;
mod layer;
mod ledger;
mod name_log;
mod raw;
mod symbols;
