//! The checksums that cover an IPv6 address: those with a pseudo header (RFC 8200 section 8.1), and the sum of the whole packet
//! that a device may have made (`CHECKSUM_COMPLETE`).
//!
//! An address and the checksum that covers it change that sum by as much in either direction: it stays. Before Linux 6.16
//! `bpf_l4_csum_replace` takes every pseudo header for one of IPv4, whose header has a checksum of its own, and changes the
//! sum with it. So the flag for a pseudo header is set only where it has to be: on a checksum that is the pseudo header's
//! alone (`CHECKSUM_PARTIAL`), which the helper leaves as it is without the flag.

use aya_ebpf::{
    EbpfContext as _,
    bindings::{__sk_buff, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR},
    helpers::generated::bpf_l4_csum_replace,
    programs::TcContext,
};
use causeway_common::checksum;

use super::Addr;
use crate::{
    headers::Headers as _,
    icmp::load,
    rewrite::{Failed, done},
};

/// What a sum changes by with an address: [`checksum::difference`].
#[inline(always)]
pub fn change(old: &Addr, new: &Addr) -> u32 {
    checksum::difference(old, new)
}

/// Updates the transport checksum at `at` for an address of the pseudo header. `flags`: of `bpf_l4_csum_replace`.
#[inline(always)]
pub fn replace_in_pseudo_header(
    ctx: &TcContext,
    at: usize,
    flags: u64,
    difference: u32,
) -> Result<(), Failed> {
    match cwy_pseudo6(ctx.as_ptr().cast(), at as u32, flags as u32, difference) {
        0 => Ok(()),
        _ => Err(Failed),
    }
}

/// Returns 0 if the checksum has been updated. Verified by itself.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn cwy_pseudo6(skb: *mut __sk_buff, at: u32, flags: u32, difference: u32) -> u32 {
    let (ctx, at, flags) = (&TcContext::new(skb), at as usize, u64::from(flags));
    u32::from(replace_pseudo(ctx, at, flags, difference).is_err())
}

#[inline(always)]
fn replace_pseudo(ctx: &TcContext, at: usize, flags: u64, difference: u32) -> Result<(), Failed> {
    let before: [u8; 2] = load(ctx, at).ok_or(Failed)?;
    replace(ctx, at, difference, flags)?;
    let after: [u8; 2] = load(ctx, at).ok_or(Failed)?;
    if before == after {
        replace(ctx, at, difference, flags | u64::from(BPF_F_PSEUDO_HDR))?;
        if before == [0; 2] && flags & u64::from(BPF_F_MARK_MANGLED_0) != 0 {
            // Of UDP: there is no checksum.
            ctx.has_changed(difference);
        }
    }
    Ok(())
}

/// Updates a checksum for an address among the bytes that it covers.
#[inline(always)]
pub fn replace_in_payload(ctx: &TcContext, at: usize, old: &Addr, new: &Addr) -> Result<(), Failed> {
    replace(ctx, at, checksum::difference(old, new), 0)
}

#[inline(always)]
fn replace(ctx: &TcContext, at: usize, difference: u32, flags: u64) -> Result<(), Failed> {
    let skb = ctx.as_ptr().cast();
    // SAFETY: `skb` is the program's context; the helper checks the offset against the packet. Of size 0 it takes a
    // difference.
    done(unsafe { bpf_l4_csum_replace(skb, at as u32, 0, u64::from(difference), flags) })
}

/// Writes an address into the header, at `offset` from the start of the frame.
///
/// # Safety
///
/// `header` points to the first `IP_END` bytes of the packet.
#[inline(always)]
pub unsafe fn store_addr(header: *mut u8, offset: usize, _: &Addr, new: &Addr) {
    // SAFETY: the caller's; the address is aligned as in `Macs`.
    unsafe { *header.add(offset).cast() = super::header::words(new) };
}

/// An ICMPv6 error has a pseudo header (RFC 4443 section 2.3): its checksum, two bytes behind `l4`, covers its own address.
#[inline(always)]
pub fn replace_in_error(ctx: &TcContext, l4: usize, old: &Addr, new: &Addr) -> Result<(), Failed> {
    replace(ctx, l4 + 2, checksum::difference(old, new), 0)
}

/// An address has changed that no checksum of the packet covers.
#[inline(always)]
pub fn changed_alone(ctx: &TcContext, difference: u32) {
    ctx.has_changed(difference);
}
