//! Errors at the border: JavaScript gets an `Error` whose `code` is the decimal status number, and
//! a panic becomes `INTERNAL` instead of the end of the process.

use std::panic::{AssertUnwindSafe, catch_unwind};

use napi::bindgen_prelude::{Env, JsError};
use rekindle_core::status::Status;

/// The `code` of a thrown error.
pub struct Code(String);

impl AsRef<str> for Code {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

/// What every exported function returns.
pub type Result<T> = std::result::Result<T, napi::Error<Code>>;

/// An error with a status and words of its own.
pub fn coded(status: Status, message: impl Into<String>) -> napi::Error<Code> {
    napi::Error::new(Code((status as u16).to_string()), message.into())
}

/// The error that a status stands for; `call` says where.
pub fn error(status: Status, call: &str) -> napi::Error<Code> {
    coded(status, format!("{call}: {status}"))
}

/// The same as a rejection of a promise; only on the JavaScript thread.
pub fn rejection(env: Env, status: Status, call: &str) -> napi::Error {
    napi::Error::from(JsError::from(error(status, call)).into_unknown(env))
}

/// A failure of N-API itself.
pub fn border(failure: napi::Error) -> napi::Error<Code> {
    coded(Status::Internal, failure.reason.to_string())
}

/// Runs the body of an exported function: no panic crosses the border.
pub fn guard<T>(call: &str, body: impl FnOnce() -> std::result::Result<T, Status>) -> Result<T> {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(result) => result.map_err(|status| error(status, call)),
        Err(panic) => {
            let text = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied())
                .unwrap_or("unknown panic");
            Err(coded(Status::Internal, format!("{call}: panic: {text}")))
        }
    }
}

/// An id, position or version: a whole number below 2^53.
pub fn whole(number: f64) -> std::result::Result<u64, Status> {
    if number >= 0.0 && number < (1u64 << 53) as f64 && number.fract() == 0.0 {
        Ok(number as u64)
    } else {
        Err(Status::InvalidArgument)
    }
}

/// Stores what a call found into its `results`.
pub fn store(results: &mut [f64], found: &[f64]) -> std::result::Result<(), Status> {
    let room = results
        .get_mut(..found.len())
        .ok_or(Status::InvalidArgument)?;
    room.copy_from_slice(found);
    Ok(())
}
