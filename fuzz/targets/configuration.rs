//! A configuration file: an error or a configuration, never a panic, and never a secret's text.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use tv_agent::config::Config;

fuzz_target!(|text: &str| {
    let env = |_: &str| Some("canary-of-a-secret-0001".to_owned());
    if let Err(error) = Config::parse(text, Path::new("fuzz.yaml"), &env) {
        let said = error.to_string();
        assert!(
            !said.contains("canary-of-a-secret-0001"),
            "an error shows a secret: {said}"
        );
    }
});
