//! libFuzzer over the target that REKINDLE_FUZZ_TARGET names; `scripts/fuzz.mjs` builds it with
//! coverage counters and starts it.
#![no_main]

use std::sync::LazyLock;

use rekindle_fuzz::Target;

static TARGET: LazyLock<&Target> = LazyLock::new(|| {
    let name = std::env::var("REKINDLE_FUZZ_TARGET").unwrap_or_default();
    rekindle_fuzz::target(&name).expect("REKINDLE_FUZZ_TARGET names a target")
});

libfuzzer_sys::fuzz_target!(|input: &[u8]| (TARGET.check)(input));
