//! The checksums that cover an IPv4 address: its header's own, and those with a pseudo header.

use aya_ebpf::{
    EbpfContext as _, bindings::BPF_F_PSEUDO_HDR, helpers::generated::bpf_l4_csum_replace,
    programs::TcContext,
};
use causeway_common::checksum;

use super::{Addr, IP_CHECK};
use crate::rewrite::{Failed, done};

/// What a sum changes by with an address: the old one and the new one.
#[inline(always)]
pub fn change(old: &Addr, new: &Addr) -> (u32, u32) {
    (u32::from_ne_bytes(*old), u32::from_ne_bytes(*new))
}

/// Updates the transport checksum at `at` for an address of the pseudo header. `flags`: of `bpf_l4_csum_replace`.
#[inline(always)]
pub fn replace_in_pseudo_header(
    ctx: &TcContext,
    at: usize,
    flags: u64,
    (old, new): (u32, u32),
) -> Result<(), Failed> {
    let flags = flags | u64::from(BPF_F_PSEUDO_HDR) | 4;
    let skb = ctx.as_ptr().cast();
    // SAFETY: `skb` is the program's context; the helper checks the offset against the packet.
    done(unsafe { bpf_l4_csum_replace(skb, at as u32, u64::from(old), u64::from(new), flags) })
}

/// Updates a checksum for an address among the bytes that it covers.
#[inline(always)]
pub fn replace_in_payload(ctx: &TcContext, at: usize, old: &Addr, new: &Addr) -> Result<(), Failed> {
    let (old, new) = (u32::from_ne_bytes(*old), u32::from_ne_bytes(*new));
    let skb = ctx.as_ptr().cast();
    // SAFETY: as above.
    done(unsafe { bpf_l4_csum_replace(skb, at as u32, u64::from(old), u64::from(new), 4) })
}

/// Writes an address into the header, at `offset` from the start of the frame.
///
/// # Safety
///
/// `header` points to the first `IP_END` bytes of the packet.
#[inline(always)]
pub unsafe fn store_addr(header: *mut u8, offset: usize, old: &Addr, new: &Addr) {
    // SAFETY: the caller's; the address is aligned as in `Macs`.
    unsafe {
        *header.add(offset).cast() = u32::from_ne_bytes(*new);
        let check = header.add(IP_CHECK).cast::<u16>();
        *check = checksum::replace_u32(*check, *old, *new);
    }
}

/// An ICMP error has no pseudo header (RFC 792).
#[inline(always)]
pub fn replace_in_error(_: &TcContext, _: usize, _: &Addr, _: &Addr) -> Result<(), Failed> {
    Ok(())
}

/// An address has changed that no checksum but the header's covers: together they leave the sum of the packet as it was.
#[inline(always)]
pub fn changed_alone(_: &TcContext, _: (u32, u32)) {}
