//! Answers a TCP segment with a reset, in the segment's own buffer: whoever sent it learns at once that the other end is
//! not there, and need not wait for its patience to end.

use core::ptr::from_ref;

use aya_ebpf::{
    EbpfContext as _,
    bindings::{__sk_buff, BPF_F_INGRESS, BPF_F_RECOMPUTE_CSUM},
    helpers::generated::{bpf_redirect, bpf_skb_change_tail, bpf_skb_load_bytes, bpf_skb_store_bytes},
    programs::TcContext,
};
use causeway_common::{
    checksum,
    decide::tcp_flags::RST,
    reason::Reason,
    reset::{self, HEADER_LEN, Segment},
};

use crate::{
    family::{IP_CHECK, IP_DST, IP_SRC, TTL},
    given::given,
    packet::{self, ETH_LEN, IP_END, Ip, Transport, skb},
    rewrite::Macs,
};

/// Time to live of a packet of the node's own (RFC 1700).
const OWN_TTL: u8 = 64;
/// Offset of the IPv4 total length.
const IP_LENGTH: usize = ETH_LEN + 2;
/// Offset of the IPv4 identification, which the flags and the fragment offset follow.
const IP_ID: usize = ETH_LEN + 4;
/// "Don't fragment" in the word of flags and fragment offset (RFC 791).
const DONT_FRAGMENT: [u8; 2] = [0x40, 0];

/// Refuses the segment for `reason`, the one of a [refused](causeway_common::reason::Verdict::Refused) packet. A reset is
/// never answered: the stack has it.
#[inline(always)]
pub fn refuse(ctx: &TcContext, ip: &Ip, transport: &Transport, reason: Reason, back: Back) -> Reason {
    if transport.flags & RST != 0 {
        return Reason::KernelFlow;
    }
    match cwy_reset(
        ctx.as_ptr().cast(),
        from_ref(ip),
        from_ref(transport),
        back as u32,
    ) {
        0 => reason,
        _ => Reason::RewriteFailed,
    }
}

/// The way back to the sender.
#[derive(Clone, Copy)]
pub enum Back {
    /// Out of the interface on which the segment arrived.
    Out = 0,
    /// Into the stack, from the interface by which the segment was to leave: there the answer finds what the stack has
    /// done to the flow, and undoes it.
    In = BPF_F_INGRESS as isize,
}

/// Returns 0 if the reset is on its way. Verified by itself.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn cwy_reset(
    buffer: *mut __sk_buff,
    ip: *const Ip,
    transport: *const Transport,
    back: u32,
) -> u32 {
    // SAFETY: the caller's references.
    let (Some(ip), Some(transport)) = (unsafe { given(ip) }, unsafe { given(transport) }) else {
        return 1;
    };
    let ctx = &TcContext::new(buffer);
    if write(ctx, ip, transport).is_none() {
        return 1;
    }
    // SAFETY: the helper takes integers only.
    unsafe { bpf_redirect(skb(ctx).ifindex, u64::from(back)) };
    0
}

#[inline(always)]
fn write(ctx: &TcContext, ip: &Ip, transport: &Transport) -> Option<()> {
    let (buffer, l4) = (ctx.as_ptr().cast::<__sk_buff>(), ip.l4());
    let mut numbers = [[0u8; 4]; 2];
    // SAFETY: eight bytes of our stack; the helper checks the offset against the packet.
    let loaded =
        unsafe { bpf_skb_load_bytes(buffer.cast(), (l4 + 4) as u32, numbers.as_mut_ptr().cast(), 8) };
    if loaded != 0 {
        return None;
    }
    let headers = l4 - ETH_LEN + usize::from(transport.header_len);
    let segment = Segment {
        seq: numbers[0],
        ack: numbers[1],
        flags: transport.flags,
        len: u32::from(ip.total_len).wrapping_sub(headers as u32),
    };
    let header = reset::answer(&packet::key(ip, transport), &segment)?;
    // SAFETY: the helper checks the length; pointers into the packet are dead behind it.
    if unsafe { bpf_skb_change_tail(buffer, (l4 + HEADER_LEN) as u32, 0) } != 0 {
        return None;
    }
    turn_around(ctx, ip)?;
    let flags = u64::from(BPF_F_RECOMPUTE_CSUM);
    // SAFETY: twenty bytes of our stack; the helper checks the offset against the packet.
    let stored = unsafe {
        bpf_skb_store_bytes(
            buffer,
            l4 as u32,
            header.as_ptr().cast(),
            HEADER_LEN as u32,
            flags,
        )
    };
    (stored == 0).then_some(())
}

/// The frame and the IP header, back to the sender. Options stay as they are.
#[inline(always)]
fn turn_around(ctx: &TcContext, ip: &Ip) -> Option<()> {
    let macs = Macs::new(packet::src_mac(ctx), packet::dst_mac(ctx));
    let start = ctx.data();
    if start + IP_END > ctx.data_end() {
        return None;
    }
    let header = start as *mut u8;
    // SAFETY: `IP_END` bytes were checked to be in the buffer, and these offsets are even.
    let word = |offset: usize| unsafe { header.add(offset).cast::<u16>() };
    let replace = |offset: usize, new: u16| {
        // SAFETY: as above.
        unsafe {
            let check = word(IP_CHECK);
            *check = checksum::replace_u16(*check, *word(offset), new);
            *word(offset) = new;
        }
    };
    replace(IP_LENGTH, ((ip.l4() - ETH_LEN + HEADER_LEN) as u16).to_be());
    replace(IP_ID, 0);
    replace(IP_ID + 2, u16::from_ne_bytes(DONT_FRAGMENT));
    replace(TTL, u16::from_ne_bytes([OWN_TTL, ip.protocol]));
    // SAFETY: as above; addresses are aligned as in `Macs`. Their sum is the same the other way round.
    unsafe {
        *header.add(IP_SRC).cast::<u32>() = u32::from_ne_bytes(ip.dst);
        *header.add(IP_DST).cast::<u32>() = u32::from_ne_bytes(ip.src);
        macs.store(header);
    }
    Some(())
}
