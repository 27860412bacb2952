//! Changes addresses and ports, with the checksums that cover them.
//!
//! A transport checksum may hold just the pseudo header's sum (`CHECKSUM_PARTIAL`, every packet of a local socket),
//! and only the kernel knows. So the address difference goes through `bpf_l4_csum_replace` with
//! `BPF_F_PSEUDO_HDR` and the port difference without it, as two calls: merged into one they corrupt partial sums.

use core::ptr::from_ref;

use aya_ebpf::{
    EbpfContext as _,
    bindings::{__sk_buff, BPF_F_MARK_MANGLED_0, BPF_F_RECOMPUTE_CSUM},
    helpers::generated::{bpf_l4_csum_replace, bpf_skb_load_bytes, bpf_skb_store_bytes},
    programs::TcContext,
};
use causeway_common::{
    addr::Address as _,
    flow::Nat,
    tuple::{DCCP, TCP, UDP, UDP_LITE},
};

use crate::{
    family::{IP_DST, IP_SRC, sums},
    given::given,
    maps::{Addr, Entry, Key},
    packet::{ETH_LEN, Ip, Mac},
    rewrite::{Failed, Macs, Translation, done, header},
};

/// What the entry replaces.
#[inline(always)]
pub fn translation(entry: &Entry) -> Translation {
    Translation::new(entry.nat, entry.nat_addr, entry.nat_port)
}

/// Replaces address and port with their checksums; the frame's addresses and the TTL stay.
#[inline(always)]
pub fn translate(ctx: &TcContext, ip: &Ip, key: &Key, to: &Translation) -> Result<(), Failed> {
    // Copies, which need be in memory here alone: the caller's are in registers.
    let (ip, to) = (*ip, *to);
    let result = cwy_translate(ctx.as_ptr().cast(), from_ref(&ip), from_ref(key), from_ref(&to));
    if result == 0 { Ok(()) } else { Err(Failed) }
}

/// Returns 0 if the packet has been translated. Verified by itself.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn cwy_translate(
    skb: *mut __sk_buff,
    ip: *const Ip,
    key: *const Key,
    to: *const Translation,
) -> u32 {
    let ctx = &TcContext::new(skb);
    // SAFETY: the caller's references.
    let (Some(ip), Some(key), Some(to)) = (unsafe { given(ip) }, unsafe { given(key) }, unsafe { given(to) })
    else {
        return 1;
    };
    let done = translate_transport(ctx, ip, key, to).and_then(|()| translate_addr(ctx, ip, to));
    u32::from(done.is_err())
}

/// Replaces the address of a packet without a checksum that covers it.
#[inline(always)]
pub fn translate_alone(ctx: &TcContext, ip: &Ip, to: &Translation) -> Result<(), Failed> {
    match cwy_translate_alone(ctx.as_ptr().cast(), from_ref(ip), from_ref(to)) {
        0 => Ok(()),
        _ => Err(Failed),
    }
}

/// Returns 0 if the address has been replaced. Verified by itself.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn cwy_translate_alone(skb: *mut __sk_buff, ip: *const Ip, to: *const Translation) -> u32 {
    let ctx = &TcContext::new(skb);
    // SAFETY: the caller's references.
    let (Some(ip), Some(to)) = (unsafe { given(ip) }, unsafe { given(to) }) else {
        return 1;
    };
    if translate_addr(ctx, ip, to).is_err() {
        return 1;
    }
    match Nat::end(to.nat) {
        Nat::SOURCE => sums::changed_alone(ctx, sums::change(&ip.src, &to.addr)),
        Nat::DESTINATION => sums::changed_alone(ctx, sums::change(&ip.dst, &to.addr)),
        _ => {}
    }
    0
}

/// Replaces the address in the header alone.
#[inline(always)]
pub fn translate_addr(ctx: &TcContext, ip: &Ip, to: &Translation) -> Result<(), Failed> {
    let header = header(ctx)?;
    // SAFETY: `header` points to the first `IP_END` bytes of the packet.
    unsafe { replace_addr(header, ip, to) };
    Ok(())
}

/// Changes the port and the transport checksum.
#[inline(always)]
pub fn translate_transport(ctx: &TcContext, ip: &Ip, key: &Key, to: &Translation) -> Result<(), Failed> {
    let (old_addr, old_port, port_offset) = match Nat::end(to.nat) {
        Nat::SOURCE => (&key.src, key.src_port, 0),
        Nat::DESTINATION => (&key.dst, key.dst_port, 2),
        _ => return Ok(()),
    };
    // Before the ways part: the verifier would look at it on each.
    let change = sums::change(old_addr, &to.addr);
    let (check, flags, port_offset) = match ip.protocol {
        TCP => (ip.l4() + 16, 0, port_offset),
        // A UDP checksum of zero means "none" and stays; a computed zero is sent as ones (RFC 768).
        UDP => (ip.l4() + 6, u64::from(BPF_F_MARK_MANGLED_0), port_offset),
        // Followed by their addresses alone, but their checksums cover those (RFC 4340 section 9, RFC 3828 section 3.1).
        DCCP | UDP_LITE => (ip.l4() + 6, 0, port_offset),
        // The identifier stands at offset 4 in requests and replies.
        _ => (ip.l4() + 2, 0, 4),
    };
    let skb = ctx.as_ptr().cast();
    let covers_addresses = match ip.protocol {
        TCP | UDP => true,
        Addr::ICMP => Addr::ICMP_COVERS_ADDRESSES,
        DCCP | UDP_LITE => ip.is_first && usize::from(ip.total_len) + ETH_LEN >= ip.l4() + 8,
        _ => false,
    };
    if covers_addresses {
        sums::replace_in_pseudo_header(ctx, check, flags, change)?;
    } else {
        sums::changed_alone(ctx, change);
    }
    if old_port != to.port {
        let (old, new) = (u16::from_ne_bytes(old_port), u16::from_ne_bytes(to.port));
        let sum = recompute_if_alone(ctx, check, flags);
        // SAFETY: `skb` is the program's context; the helper checks the offset against the packet.
        done(unsafe { bpf_l4_csum_replace(skb, check as u32, u64::from(old), u64::from(new), flags | 2) })?;
        let offset = (ip.l4() + port_offset) as u32;
        // SAFETY: as above; the source is two bytes of our stack.
        done(unsafe { bpf_skb_store_bytes(skb, offset, to.port.as_ptr().cast(), 2, sum) })?;
    }
    Ok(())
}

/// `BPF_F_RECOMPUTE_CSUM` where UDP has no checksum, which would make up for a port in a sum of the packet that a device has
/// made (`CHECKSUM_COMPLETE`); else 0. Without a branch: the verifier would look at everything behind it twice.
#[inline(always)]
fn recompute_if_alone(ctx: &TcContext, check: usize, flags: u64) -> u64 {
    const IS_UDP: u32 = BPF_F_MARK_MANGLED_0.trailing_zeros();
    const { assert!(BPF_F_RECOMPUTE_CSUM == 1) };
    let mut found = [0; 2];
    // SAFETY: two bytes of our stack; the helper checks the offset against the packet. Where it fails, so does what follows.
    unsafe { bpf_skb_load_bytes(ctx.as_ptr().cast(), check as u32, found.as_mut_ptr().cast(), 2) };
    let is_zero = u32::from(u16::from_ne_bytes(found)).wrapping_sub(1) >> 31;
    u64::from(is_zero) & flags >> IS_UDP
}

/// Changes the address in the header, and the header's checksum if it has one.
///
/// # Safety
///
/// `header` points to the first [`IP_END`](crate::packet::IP_END) bytes of the packet.
#[inline(always)]
pub unsafe fn replace_addr(header: *mut u8, ip: &Ip, to: &Translation) {
    let (offset, old) = match Nat::end(to.nat) {
        Nat::SOURCE => (IP_SRC, &ip.src),
        Nat::DESTINATION => (IP_DST, &ip.dst),
        _ => return,
    };
    // SAFETY: the caller's.
    unsafe { sums::store_addr(header, offset, old, &to.addr) };
}

impl Macs {
    /// Destination and source of a frame.
    #[inline(always)]
    pub fn new([a, b, c, d, e, f]: Mac, [g, h, i, j, k, l]: Mac) -> Self {
        Self {
            first: u16::from_ne_bytes([a, b]),
            middle: [u32::from_ne_bytes([c, d, e, f]), u32::from_ne_bytes([g, h, i, j])],
            last: u16::from_ne_bytes([k, l]),
        }
    }
}
