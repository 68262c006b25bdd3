//! The bounded run: every target over its corpus and a fixed number of mutations of it.
//!
//! The same tree gives the same inputs (`REKINDLE_SEED` is 1 unless set), so a failure is news
//! about a change. It prints the command that repeats the one iteration and keeps the input as a
//! file, which belongs into the corpus as `found-…` once the bug is fixed. Long runs are
//! libFuzzer's.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};

use rekindle_fuzz::{INPUT_BYTES_MAX, Target, mutate};

fn variable(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().expect("a number"))
}

fn corpus_folder(target: &Target) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(target.name)
}

fn corpus(target: &Target) -> Vec<Vec<u8>> {
    let folder = std::fs::read_dir(corpus_folder(target)).expect("a folder of seeds");
    let mut paths: Vec<PathBuf> = folder.map(|entry| entry.expect("listed").path()).collect();
    paths.sort();
    paths
        .iter()
        .map(|path| std::fs::read(path).expect("a seed"))
        .collect()
}

fn run(name: &str) {
    let target = rekindle_fuzz::target(name).expect("a target");
    let seed = variable("REKINDLE_SEED").unwrap_or(1);
    let corpus = corpus(target);
    let iterations = match variable("REKINDLE_FUZZ_ITERATION") {
        Some(one) => one..one + 1,
        None => {
            corpus.iter().enumerate().for_each(|(index, input)| {
                checked(
                    target,
                    input,
                    &format!("seed file {index}, in the order of names"),
                );
            });
            0..variable("REKINDLE_FUZZ_ITERATIONS").unwrap_or(target.iterations)
        }
    };
    for iteration in iterations {
        let input = mutate::input(&corpus, seed, iteration, INPUT_BYTES_MAX);
        let repeat = format!(
            "REKINDLE_SEED={seed} REKINDLE_FUZZ_ITERATION={iteration} \
             cargo test -p rekindle-fuzz --test bounded {}",
            name.replace('-', "_")
        );
        checked(target, &input, &repeat);
    }
}

fn checked(target: &Target, input: &[u8], repeat: &str) {
    let Err(panic) = catch_unwind(AssertUnwindSafe(|| (target.check)(input))) else {
        return;
    };
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{}-failed", target.name));
    std::fs::write(&file, input).expect("keeps the input");
    #[allow(
        clippy::print_stderr,
        reason = "a failing test must say how to repeat it"
    )]
    {
        eprintln!("repeat: {repeat}\ninput: {}", file.display());
    }
    resume_unwind(panic);
}

macro_rules! targets {
    ($($test:ident => $name:literal),* $(,)?) => {
        $(#[test] fn $test() { run($name); })*

        #[test]
        fn every_target_has_a_test() {
            let mut tested = [$($name),*];
            tested.sort_unstable();
            let all: Vec<&str> = rekindle_fuzz::TARGETS.iter().map(|target| target.name).collect();
            assert_eq!(tested[..], all);
        }
    };
}

targets! {
    backup_write => "backup-write",
    digest => "digest",
    entries => "entries",
    execute => "execute",
    frame_slot => "frame-slot",
    lz4_image => "lz4-image",
    replay => "replay",
    restart => "restart",
    split => "split",
    superblock => "superblock",
}

/// A format that changes changes its seeds: `cargo run -p rekindle-fuzz --bin corpus`.
#[test]
fn the_corpus_is_what_the_encoders_write() {
    for target in &rekindle_fuzz::TARGETS {
        for (name, expected) in (target.seeds)() {
            let found = std::fs::read(corpus_folder(target).join(name)).ok();
            assert!(
                found == Some(expected),
                "corpus/{}/{name} is out of date",
                target.name
            );
        }
    }
}
