//! The N-API face of `rekindle-core`: handles and buffers, no logic.
//!
//! Rule: no panic crosses the border, every error carries its number (`Status`), and one message
//! costs one call.

mod backup;
mod master;
