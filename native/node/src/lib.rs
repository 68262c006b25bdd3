//! The N-API face of `rekindle-core`: handles and buffers, no logic.
//!
//! Rule: no panic crosses the border, every error carries its number (`Status`), and one message
//! costs one call.

mod backup;
pub mod clock;
mod errors;
mod malloc;
mod master;
mod migration;

use napi_derive::napi;

/// CRC-32C.
#[napi(js_name = "crc32c")]
pub fn crc32c(bytes: &[u8]) -> u32 {
    rekindle_core::crc32c::crc32c(bytes)
}

/// The key hash as [low, high].
#[napi]
pub fn key_hash(table_id: f64, key: &[u8]) -> errors::Result<Vec<u32>> {
    errors::guard("keyHash", || {
        let hash = rekindle_core::key_hash::key_hash(errors::whole(table_id)?, key);
        Ok(vec![hash as u32, (hash >> 32) as u32])
    })
}
