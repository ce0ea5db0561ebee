//! See `checks::announced`.
#![no_main]

#[path = "../checks.rs"]
#[allow(dead_code, reason = "each target calls one")]
mod checks;

libfuzzer_sys::fuzz_target!(|data: &[u8]| checks::announced(data));
