//! Handles of the backup half.
