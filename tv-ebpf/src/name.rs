//! Host names as numbers: what the kernel half looks a name and its suffixes up by.
//!
//! Names are hashed from their last byte to their first, in the form in which they stand in DNS messages (RFC 1035
//! §3.1, lower case, without the root's empty label), so that one walk gives the hash of each suffix. A collision can
//! only make the agent look at more.

/// Set on a length byte, to tell it from the bytes of a label.
pub const LENGTH: u8 = 0x80;
/// Labels are shorter than this (RFC 1035 §2.3.4).
pub const LABEL_LIMIT: u8 = 64;
/// Longest name in a message, the root's byte included (RFC 1035 §2.3.4).
pub const NAME_BYTES: usize = 255;

/// FNV-1a, 64 bits.
pub const EMPTY: u64 = 0xcbf2_9ce4_8422_2325;
const PRIME: u64 = 0x0000_0100_0000_01b3;

/// The hash of a name to which `byte` is put in front.
#[inline(always)]
pub const fn before(byte: u8, hash: u64) -> u64 {
    (hash ^ byte as u64).wrapping_mul(PRIME)
}

/// The hash of `api.example.com`, in lower case and without a final dot.
///
/// ```
/// # use tv_ebpf::name::hash;
/// assert_ne!(hash("api.example.com"), hash("example.com"));
/// ```
pub fn hash(name: &str) -> u64 {
    name.rsplit('.').fold(EMPTY, |hash, label| {
        let hash = label.bytes().rev().fold(hash, |hash, byte| before(byte, hash));
        // No longer than LABEL_LIMIT in a name that the configuration let through.
        before(label.len() as u8 | LENGTH, hash)
    })
}
