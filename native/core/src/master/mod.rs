//! The master half: log, hash table, objects, recovery replay.
