//! `rekindle-bench`: what `rekindle bench core` measures without Node.
//!
//! Rules: each subcommand measures a limit of the machine and what is compared with it in turn, in
//! one run, on memory that was touched before; figures are medians over rounds. Standard output
//! is one JSON object a line ([`figures`]), read by bench/core.ts, which knows the targets.

mod checksums;
mod cleaner;
mod compression;
mod execute;
mod figures;
mod huge_memory;
mod limits;
mod load;
mod masters;
mod pieces;
mod records;
mod replay;
mod replicas;
mod wire;

use std::process::ExitCode;
use std::time::Duration;

use rekindle_core::status::Status;
use thiserror::Error;

/// Why a measurement ended early.
#[derive(Debug, Error)]
pub enum Failure {
    /// The command line is not one of `USAGE`.
    #[error("{USAGE}")]
    Usage,
    /// The core refused.
    #[error("{0}: {1}")]
    Core(&'static str, Status),
    /// A file or a pipe.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// What was measured gave a wrong answer.
    #[error("{0}")]
    Wrong(String),
}

const USAGE: &str = "usage: \
    rekindle-bench limits|checksums|compression|replay [--quick]\n       \
    rekindle-bench cleaner [MILLISECONDS A RUN]\n       \
    rekindle-bench cleaner-r3 FOLDER [MILLISECONDS A RUN]\n       \
    rekindle-bench bodies|execute FOLDER\n       \
    rekindle-bench wire dialect=rekindle|resp address=HOST:PORT work=read|write connections=N \
    operations=N objects=N value-bytes=N table=ID ms=N";

fn duration(milliseconds: &str) -> Result<Duration, Failure> {
    let milliseconds = milliseconds.parse().map_err(|_| Failure::Usage)?;
    Ok(Duration::from_millis(milliseconds))
}

fn run(arguments: &[String]) -> Result<(), Failure> {
    let quick = arguments.iter().any(|argument| argument == "--quick");
    let words: Vec<&str> = arguments
        .iter()
        .map(String::as_str)
        .filter(|argument| *argument != "--quick")
        .collect();
    match words[..] {
        ["limits"] => limits::measure(quick),
        ["checksums"] => checksums::measure(quick),
        ["compression"] => compression::measure(quick),
        ["replay"] => replay::measure(quick),
        ["cleaner"] => cleaner::measure(None),
        ["cleaner", run_ms] => cleaner::measure(Some(duration(run_ms)?)),
        ["cleaner-r3", folder] => cleaner::measure_replicated(folder.as_ref(), None),
        ["cleaner-r3", folder, run_ms] => {
            cleaner::measure_replicated(folder.as_ref(), Some(duration(run_ms)?))
        }
        ["bodies", folder] => execute::write_bodies(folder.as_ref()),
        ["execute", folder] => execute::serve(folder.as_ref()),
        ["wire", ref words @ ..] => wire::measure(words),
        _ => Err(Failure::Usage),
    }
}

#[allow(clippy::print_stderr)] // a program of its own: its errors go where errors go
fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("rekindle-bench: {failure}");
            ExitCode::FAILURE
        }
    }
}
