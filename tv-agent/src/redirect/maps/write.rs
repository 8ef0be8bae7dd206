//! Whole maps rewritten.

use std::collections::BTreeMap;

use aya::Pod;
use aya::maps::lpm_trie::Key;
use aya::maps::{HashMap, LpmTrie, MapData, MapError};

use super::{Error, refused};

pub(super) fn empty<K: Pod, V: Pod>(
    map: &mut HashMap<MapData, K, V>,
    name: &'static str,
) -> Result<(), Error> {
    let keys: Vec<K> = map
        .keys()
        .collect::<Result<_, _>>()
        .map_err(|error| refused(name, error))?;
    for key in keys {
        match map.remove(&key) {
            // An LRU map may have dropped it meanwhile.
            Ok(()) | Err(MapError::KeyNotFound) => {}
            Err(error) => return Err(refused(name, error)),
        }
    }
    Ok(())
}

pub(in crate::redirect) fn write_prefixes(
    trie: &mut LpmTrie<MapData, [u8; 16], u32>,
    name: &'static str,
    wanted: &BTreeMap<(u32, [u8; 16]), u32>,
) -> Result<(), Error> {
    let failed = |error| refused(name, error);
    let present: Vec<Key<[u8; 16]>> = trie.keys().collect::<Result<_, _>>().map_err(failed)?;
    for key in present {
        if !wanted.contains_key(&(key.prefix_len(), key.data())) {
            trie.remove(&key).map_err(failed)?;
        }
    }
    for (&(length, address), &value) in wanted {
        trie.insert(&Key::new(length, address), value, 0)
            .map_err(failed)?;
    }
    Ok(())
}
