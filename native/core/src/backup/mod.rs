//! The backup half: replica frames, restart, recovery reads and splits.
