//! Whether maps that are pinned already are the maps that the object means: aya takes any without a look.

use std::fmt;

use aya::maps::{MapError, MapInfo};
use aya_obj::Object;
use tv_ebpf::abi;

use super::Error;
use super::pins::Pins;

/// What has to agree. The meaning of the bytes is the ABI version's affair, which the directory is named after.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Layout {
    /// `enum bpf_map_type` (include/uapi/linux/bpf.h).
    kind: u32,
    key: u32,
    value: u32,
    entries: u32,
    flags: u32,
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            kind,
            key,
            value,
            entries,
            flags,
        } = self;
        write!(
            f,
            "type {kind}, keys of {key} and values of {value} bytes, {entries} entries, flags {flags:#x}"
        )
    }
}

/// Compares every map that is pinned with the object's own definition.
///
/// # Errors
/// [`Error::Layout`] or [`Error::NotAMap`] for the first that differs; nothing has been changed then.
pub(super) fn check(object: &[u8], pins: &Pins) -> Result<(), Error> {
    let parsed = Object::parse(object).map_err(|error| Error::Object(Box::new(error.into())))?;
    for name in abi::MAPS {
        let path = pins.named(name);
        if !path.exists() {
            continue;
        }
        let map = parsed.maps.get(*name).ok_or(Error::Incomplete(name))?;
        let wanted = Layout {
            kind: map.map_type(),
            key: map.key_size(),
            value: map.value_size(),
            entries: map.max_entries(),
            flags: map.map_flags(),
        };
        let found = MapInfo::from_pin(&path).and_then(|info| {
            Ok(Layout {
                kind: info.map_type()? as u32,
                key: info.key_size(),
                value: info.value_size(),
                entries: info.max_entries(),
                flags: info.map_flags(),
            })
        });
        let found = found.map_err(|source: MapError| Error::NotAMap {
            path: path.clone(),
            source: Box::new(source),
        })?;
        if found != wanted {
            return Err(Error::Layout {
                path,
                found: found.to_string(),
                wanted: wanted.to_string(),
            });
        }
    }
    Ok(())
}
