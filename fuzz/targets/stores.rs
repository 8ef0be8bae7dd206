//! Stores that others filled: what is merged can be taken out again, and a key store is either refused or kept.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use tv_agent::trust::{Anchors, bundle, keystore};

static ANCHORS: LazyLock<Anchors> =
    LazyLock::new(|| Anchors::from_pem(include_str!("../fixtures/root.pem")).expect("a root"));

fuzz_target!(|bytes: &[u8]| {
    let bare = bundle::unmerge(bytes);
    let merged = bundle::merge(bytes, &ANCHORS);
    assert_eq!(bundle::unmerge(&merged), bare);
    assert_eq!(bundle::merge(&merged, &ANCHORS), merged);
    if let Ok(merged) = keystore::merge(bytes, &ANCHORS) {
        assert_eq!(keystore::merge(&merged, &ANCHORS).as_ref(), Ok(&merged));
        keystore::remove(&merged, &ANCHORS).expect("ours was added, so it can be taken out");
    }
});
