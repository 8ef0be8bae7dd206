//! Every map. Who writes and who reads them stands in lib.rs; names and sizes in abi.rs.

use aya_ebpf::Global;
use aya_ebpf::bindings::bpf_sock;
use aya_ebpf::btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, SkStorage};
use aya_ebpf::helpers::generated::bpf_sk_storage_get;
use aya_ebpf::macros::btf_map;
use tv_ebpf::abi::{
    BYPASS_ENTRIES, CANDIDATE_ENTRIES, CAPTURE_ENTRIES, NAME_ENTRIES, NETNS_ENTRIES, PORT_WORDS,
    TUPLE_ENTRIES, UNSURE_ENTRIES,
};
use tv_ebpf::answer::Scratch;
use tv_ebpf::{Reason, Record, Settings, TupleKey};

#[btf_map]
pub static TV_SETTINGS: Array<Settings, 1> = Array::new();

#[btf_map]
pub static TV_DEADLINE: Array<u64, 1> = Array::new();

#[btf_map]
pub static TV_PORTS: Array<u64, PORT_WORDS> = Array::new();

#[btf_map]
pub static TV_BYPASS: LpmTrie<[u32; 4], u32, BYPASS_ENTRIES> = LpmTrie::new();

/// No program writes it: only the holder of the map's fd, the agent, can flag a socket.
#[btf_map]
pub static TV_OWN: SkStorage<u32> = SkStorage::new();

#[btf_map]
pub static TV_ORIGINS: SkStorage<Record> = SkStorage::new();

#[btf_map]
pub static TV_TUPLES: LruHashMap<TupleKey, Record, TUPLE_ENTRIES> = LruHashMap::new();

#[btf_map]
pub static TV_NETNS: HashMap<u64, u32, NETNS_ENTRIES> = HashMap::new();

#[btf_map]
pub static TV_COUNTERS: PerCpuArray<u64, { Reason::ALL.len() }> = PerCpuArray::new();

#[btf_map]
pub static TV_CAPTURE: LpmTrie<[u32; 4], u32, CAPTURE_ENTRIES> = LpmTrie::new();

#[btf_map]
pub static TV_NAMES: HashMap<u64, u32, NAME_ENTRIES> = HashMap::new();

/// Not LRU: what is not seen to go must not be missed, so a full table makes unsure instead.
#[btf_map]
pub static TV_CANDIDATES: HashMap<[u32; 4], u64, CANDIDATE_ENTRIES> = HashMap::new();

#[btf_map]
pub static TV_UNSURE: HashMap<u64, u64, UNSURE_ENTRIES> = HashMap::new();

#[btf_map]
pub static TV_WIDE: Array<u64, 2> = Array::new();

#[btf_map]
pub static TV_ASKED: SkStorage<u64> = SkStorage::new();

#[btf_map]
pub static TV_SCRATCH: PerCpuArray<Scratch, 1> = PerCpuArray::new();

/// Set by the loader. Read-only to the verifier, which drops the branch that the kernel cannot run.
#[unsafe(no_mangle)]
pub static TV_HAS_SET_RETVAL: Global<u8> = Global::new(0);

/// As above.
#[unsafe(no_mangle)]
pub static TV_HAS_MPTCP: Global<u8> = Global::new(0);

#[inline(always)]
pub fn count(reason: Reason) {
    if let Some(counter) = TV_COUNTERS.get_ptr_mut(reason as u32) {
        // SAFETY: a valid slot of this CPU. A program that interrupts this one can at worst lose a count.
        unsafe { *counter += 1 };
    }
}

/// The value of `map` for `sk`, or null. `SkStorage`'s own getter takes a sock_addr context only.
///
/// # Safety
/// `sk` is a socket that the verifier knows to be valid and not null.
#[inline(always)]
pub unsafe fn storage<T>(map: &'static SkStorage<T>, sk: *mut bpf_sock, flags: u64) -> *mut T {
    let map = core::ptr::from_ref(map).cast_mut().cast();
    // SAFETY: a map that the loader made, and a socket by the caller's promise.
    unsafe { bpf_sk_storage_get(map, sk.cast(), core::ptr::null_mut(), flags) }.cast()
}
