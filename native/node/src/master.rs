//! Handles of the master half.
