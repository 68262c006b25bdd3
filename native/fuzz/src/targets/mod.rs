//! One file a decoder: `check` runs one input and panics if a property does not hold, `seeds` makes
//! valid inputs to start from.

pub mod backup_write;
pub mod digest;
pub mod entries;
pub mod execute;
pub mod frame_slot;
pub mod lz4_image;
pub mod replay;
pub mod restart;
pub mod split;
pub mod superblock;
