//! Handle of a tablet that is given away: `MigrationCore` of `src/native/contract.ts`.
//!
//! Rule: pieces are made on threads of the pool and handed over without another copy.

use std::sync::Arc;

use napi::bindgen_prelude::{Env, Object, Uint8Array};
use napi_derive::napi;
use rekindle_core::master::migration::{Cursor, Migration};
use rekindle_core::status::Status;

use crate::errors::{Result, border, guard, rejection, whole};

/// A piece, or why there is none.
type Made = std::result::Result<Vec<u8>, Status>;

/// A tablet that is given away.
#[napi]
pub struct MigrationCore {
    pub(crate) migration: Arc<Migration>,
}

#[napi]
impl MigrationCore {
    /// Buckets that `scan` goes through.
    #[napi(getter)]
    pub fn buckets(&self) -> f64 {
        self.migration.buckets() as f64
    }

    /// Segment of the place where the first delta starts.
    #[napi(getter)]
    pub fn mark_segment_id(&self) -> f64 {
        self.migration.mark.segment_id as f64
    }

    /// Offset of the place where the first delta starts.
    #[napi(getter)]
    pub fn mark_offset(&self) -> f64 {
        self.migration.mark.offset as f64
    }

    /// Live objects in some buckets.
    #[napi(ts_return_type = "Promise<Uint8Array>")]
    pub fn scan<'env>(&self, env: &'env Env, from: f64, end: f64) -> Result<Object<'env>> {
        let (from, end) = guard("scan", || Ok((whole(from)? as usize, whole(end)? as usize)))?;
        self.later(env, move |migration, thread| {
            migration.scan(thread, from, end)
        })
    }

    /// What was appended behind a place.
    #[napi(ts_return_type = "Promise<Uint8Array>")]
    pub fn delta<'env>(
        &self,
        env: &'env Env,
        segment_id: f64,
        offset: f64,
    ) -> Result<Object<'env>> {
        let cursor = guard("delta", || {
            Ok(Cursor {
                segment_id: whole(segment_id)?,
                offset: whole(offset)? as usize,
            })
        })?;
        self.later(env, move |migration, _| migration.delta(cursor))
    }

    fn later<'env>(
        &self,
        env: &'env Env,
        work: impl FnOnce(&Migration, usize) -> Made + Send + 'static,
    ) -> Result<Object<'env>> {
        let (deferred, promise) = env.create_deferred().map_err(border)?;
        let unqueued = deferred.clone();
        let settle = |piece: Made| {
            move |env: Env| {
                let bytes = piece.map_err(|status| rejection(env, status, "migration"))?;
                Ok(Uint8Array::from(bytes))
            }
        };
        let queued = guard("migration", || {
            self.migration
                .later(work, move |piece| deferred.resolve(settle(piece)))
        });
        if let Err(refused) = queued {
            drop(refused);
            unqueued.resolve(settle(Err(Status::Retry)));
        }
        Ok(promise)
    }

    /// Refuses writes.
    #[napi]
    pub fn freeze(&self) -> Result<()> {
        guard("freeze", || self.migration.freeze())
    }

    /// What clients were answered.
    #[napi]
    pub fn results(&self, after_client: f64) -> Result<Uint8Array> {
        guard("results", || {
            Ok(Uint8Array::from(
                self.migration.results(whole(after_client)?)?,
            ))
        })
    }

    /// Serves nothing of the tablet.
    #[napi]
    pub fn release(&self) -> Result<()> {
        guard("release", || self.migration.release())
    }

    /// Serves it again if it is still here.
    #[napi]
    pub fn end(&self) -> Result<()> {
        guard("end", || self.migration.end())
    }
}
