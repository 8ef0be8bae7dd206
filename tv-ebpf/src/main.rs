//! The programs: a list, the licence, and a panic handler that the verifier would reject if it survived.
#![no_std]
#![no_main]
#![expect(
    unsafe_code,
    reason = "contexts, helpers and maps are raw pointers; the verifier proves each use"
)]

mod attempt;
mod maps;
mod names;
mod programs;

/// bpf_sk_lookup_tcp, bpf_sk_storage_get and others are open to GPL-compatible programs only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
