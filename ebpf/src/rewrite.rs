//! Changes packets: translation, TTL, MACs. The only caller of the checksum and store helpers.
//!
//! A transport checksum may hold just the pseudo header's sum (`CHECKSUM_PARTIAL`, every packet of a local socket),
//! and only the kernel knows. So the address difference goes through `bpf_l4_csum_replace` with
//! `BPF_F_PSEUDO_HDR` and the port difference without it, as two calls: merged into one they corrupt partial sums.

use core::{mem::offset_of, ptr::from_ref};

use aya_ebpf::{
    EbpfContext as _,
    bindings::{__sk_buff, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR},
    helpers::generated::{bpf_l4_csum_replace, bpf_skb_store_bytes},
    programs::TcContext,
};
use causeway_common::{
    checksum,
    flow::Nat,
    tuple::{DCCP, TCP, UDP, UDP_LITE},
};

use crate::{
    headers::Headers,
    maps::{Addr, Entry, Key},
    packet::{ETH_LEN, IP_CHECK, IP_DST, IP_END, IP_SRC, Ip, Mac, TTL},
};

/// A rewrite that the kernel refused; the packet may be half changed and must be dropped.
pub struct Failed;

/// The end of the tuple that is replaced, and by what.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Translation {
    pub addr: Addr,
    pub port: [u8; 2],
    /// One of [`Nat`]; [`Nat::NONE`] changes nothing.
    pub nat: u8,
}

impl Translation {
    /// The tuple that `key` becomes.
    #[inline(always)]
    pub fn inside(&self, key: &Key) -> Key {
        match Nat::end(self.nat) {
            Nat::SOURCE => Key {
                src: self.addr,
                src_port: self.port,
                ..*key
            },
            Nat::DESTINATION => Key {
                dst: self.addr,
                dst_port: self.port,
                ..*key
            },
            _ => *key,
        }
    }
}

/// Destination and source MAC as they follow each other in a frame, in words as they are aligned there: an IPv4 header is
/// on a word boundary wherever the machine needs it, 14 bytes behind them.
#[derive(Clone, Copy)]
pub struct Macs {
    first: u16,
    middle: [u32; 2],
    last: u16,
}

impl Macs {
    /// Those of the next hop of a flow.
    #[inline(always)]
    pub fn of(entry: &Entry) -> Self {
        const AT: usize = offset_of!(Entry, out_dst_mac);
        const { assert!(AT % 4 == 2 && offset_of!(Entry, out_src_mac) == AT + 6) };
        let at = from_ref(entry).cast::<u8>();
        // SAFETY: the twelve bytes are the entry's, and aligned as asserted.
        unsafe {
            Self {
                first: *at.add(AT).cast(),
                middle: [*at.add(AT + 2).cast(), *at.add(AT + 6).cast()],
                last: *at.add(AT + 10).cast(),
            }
        }
    }

    /// Of two addresses.
    #[inline(always)]
    pub fn new([a, b, c, d, e, f]: Mac, [g, h, i, j, k, l]: Mac) -> Self {
        Self {
            first: u16::from_ne_bytes([a, b]),
            middle: [u32::from_ne_bytes([c, d, e, f]), u32::from_ne_bytes([g, h, i, j])],
            last: u16::from_ne_bytes([k, l]),
        }
    }

    /// # Safety
    ///
    /// `frame` points to the first twelve bytes of the packet.
    #[inline(always)]
    pub unsafe fn store(self, frame: *mut u8) {
        let [second, third] = self.middle;
        // SAFETY: the caller's.
        unsafe {
            *frame.cast() = self.first;
            *frame.add(2).cast() = second;
            *frame.add(6).cast() = third;
            *frame.add(10).cast() = self.last;
        }
    }
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
    let (Some(ip), Some(key), Some(to)) = (unsafe { ip.as_ref() }, unsafe { key.as_ref() }, unsafe {
        to.as_ref()
    }) else {
        return 1;
    };
    let done = transport(ctx, ip, key, to).and_then(|()| translate_addr(ctx, ip, to));
    u32::from(done.is_err())
}

/// Translates, decrements the TTL and addresses the frame to the next hop.
#[inline(always)]
pub fn forward(ctx: &TcContext, ip: &Ip, key: &Key, to: &Translation, macs: Macs) -> Result<(), Failed> {
    transport(ctx, ip, key, to)?;
    forward_addr(ctx, ip, to, macs)
}

/// Replaces the address alone: for what has no ports, or whose transport header is not touched.
#[inline(always)]
pub fn translate_addr(ctx: &TcContext, ip: &Ip, to: &Translation) -> Result<(), Failed> {
    replace_addr(header(ctx)?, ip, to);
    Ok(())
}

/// [`translate_addr`], then decrements the TTL and addresses the frame to the next hop.
#[inline(always)]
pub fn forward_addr(ctx: &impl Headers, ip: &Ip, to: &Translation, macs: Macs) -> Result<(), Failed> {
    let header = header(ctx)?;
    replace_addr(header, ip, to);
    let before = u16::from_ne_bytes([ip.ttl, ip.protocol]);
    let after = u16::from_ne_bytes([ip.ttl.wrapping_sub(1), ip.protocol]);
    // SAFETY: `header` points to `IP_END` bytes of the packet, and the offsets are even.
    unsafe {
        *header.add(TTL).cast::<u16>() = after;
        let check = header.add(IP_CHECK).cast::<u16>();
        *check = checksum::replace_u16(*check, before, after);
        macs.store(header);
    }
    Ok(())
}

/// Changes the port and the transport checksum.
#[inline(always)]
fn transport(ctx: &TcContext, ip: &Ip, key: &Key, to: &Translation) -> Result<(), Failed> {
    let (old_addr, old_port, port_offset) = match Nat::end(to.nat) {
        Nat::SOURCE => (key.src, key.src_port, 0),
        Nat::DESTINATION => (key.dst, key.dst_port, 2),
        _ => return Ok(()),
    };
    let (check, flags, port_offset) = match ip.protocol {
        TCP => (ip.l4() + 16, 0, port_offset),
        // A UDP checksum of zero means "none" and stays; a computed zero is sent as ones (RFC 768).
        UDP => (ip.l4() + 6, u64::from(BPF_F_MARK_MANGLED_0), port_offset),
        // Followed by their addresses alone, but their checksums cover those (RFC 4340 section 9, RFC 3828 section 3.1).
        DCCP | UDP_LITE => (ip.l4() + 6, 0, port_offset),
        // ICMPv4 has no pseudo header (RFC 792); the identifier stands at offset 4 in requests and replies.
        _ => (ip.l4() + 2, 0, 4),
    };
    let skb = ctx.as_ptr().cast();
    let covers_addresses = match ip.protocol {
        TCP | UDP => true,
        DCCP | UDP_LITE => ip.is_first && usize::from(ip.total_len) + ETH_LEN >= ip.l4() + 8,
        _ => false,
    };
    if covers_addresses {
        let (old, new) = (u32::from_ne_bytes(old_addr), u32::from_ne_bytes(to.addr));
        let flags = flags | u64::from(BPF_F_PSEUDO_HDR) | 4;
        // SAFETY: `skb` is the program's context; the helper checks the offset against the packet.
        done(unsafe { bpf_l4_csum_replace(skb, check as u32, u64::from(old), u64::from(new), flags) })?;
    }
    if old_port != to.port {
        let (old, new) = (u16::from_ne_bytes(old_port), u16::from_ne_bytes(to.port));
        // SAFETY: as above.
        done(unsafe { bpf_l4_csum_replace(skb, check as u32, u64::from(old), u64::from(new), flags | 2) })?;
        let offset = (ip.l4() + port_offset) as u32;
        // SAFETY: as above; the source is two bytes of our stack.
        done(unsafe { bpf_skb_store_bytes(skb, offset, to.port.as_ptr().cast(), 2, 0) })?;
    }
    Ok(())
}

/// Changes the address in the IPv4 header and its checksum.
#[inline(always)]
fn replace_addr(header: *mut u8, ip: &Ip, to: &Translation) {
    let (offset, old) = match Nat::end(to.nat) {
        Nat::SOURCE => (IP_SRC, ip.src),
        Nat::DESTINATION => (IP_DST, ip.dst),
        _ => return,
    };
    // SAFETY: `header` points to `IP_END` bytes of the packet, and the address is aligned as in `Macs`.
    unsafe {
        *header.add(offset).cast() = u32::from_ne_bytes(to.addr);
        let check = header.add(IP_CHECK).cast::<u16>();
        *check = checksum::replace_u32(*check, old, to.addr);
    }
}

/// The frame's first [`IP_END`] bytes. Pointers from before a helper call are dead: the helper may move the buffer.
#[inline(always)]
fn header(ctx: &impl Headers) -> Result<*mut u8, Failed> {
    const { assert!(IP_END > ETH_LEN) };
    let start = ctx.start();
    if start + IP_END > ctx.end() {
        return Err(Failed);
    }
    Ok(start as *mut u8)
}

#[inline(always)]
fn done(result: i64) -> Result<(), Failed> {
    if result == 0 { Ok(()) } else { Err(Failed) }
}
