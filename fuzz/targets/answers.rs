//! A token endpoint's answer: the first byte chooses the status, the rest is the body.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| tv_agent::token::fuzzing::answer(bytes));
