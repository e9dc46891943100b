#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| vision_mamba_fuzz::read_series(bytes));
