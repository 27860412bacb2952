//! The established path: one lookup has been done, the packet is rewritten and redirected.

use core::ptr::from_ref;

use aya_ebpf::{
    EbpfContext as _,
    bindings::__sk_buff,
    helpers::generated::{bpf_redirect, bpf_redirect_peer},
    programs::TcContext,
};
use causeway_common::{
    decide::{Role, tcp_flags},
    flow::{AtIngress, Exit, Flags, KEEPALIVE, Nat, Progress, at_ingress},
    lifetime::{is_within, seconds},
    reason::Reason,
    tuple::{TAG_CARRIED, TAG_NONE, TCP},
};

use crate::{
    family,
    given::given,
    maps::{Entry, Key, config, flow, is_idle, now, scratch},
    nat::{self, translate, translation},
    next_hop,
    packet::{self, Ip, Transport, skb},
    rewrite::{Macs, Translation, forward},
};

/// What the established path of an ingress hook says of a packet that is not for it. No carried packet has this reason.
pub const NOT_CARRIED: Reason = Reason::MidFlow;

/// Whether it says that the packet is on its way.
#[inline(always)]
pub fn is_carried(reason: Reason) -> bool {
    reason == Reason::CarriedToPod || reason == Reason::CarriedToUplink
}

/// What it says of a packet whose flow is to be [looked after](look_after) first. No carried packet has this reason.
pub const DUE: Reason = Reason::NotFromPod;

/// Whether the entry carries this packet. The lifetime is looked at once a second: within it nothing can have ended.
#[inline(always)]
pub fn may_carry(
    ctx: &TcContext,
    ip: &Ip,
    transport: &Transport,
    key: &Key,
    entry: &Entry,
    nanoseconds: u64,
) -> bool {
    let role = transport.role(ip);
    let may_be_idle = role == Role::Opens && !is_within(entry.last_seen, nanoseconds);
    let idle = may_be_idle && is_idle(key, entry, seconds(nanoseconds));
    at_ingress(Some(entry), role, ip.protocol, skb(ctx).ifindex, idle) == AtIngress::Carry
}

/// Redirects a packet of a carried flow; the few that the kernel has to see go up the stack.
#[inline(always)]
pub fn carry(
    ctx: &TcContext,
    ip: &Ip,
    transport: &Transport,
    key: &Key,
    entry: &mut Entry,
    nanoseconds: u64,
) -> Reason {
    // Copied before any helper call: the element may be another flow's afterwards.
    let to = translation(entry);
    if ip.ttl <= 1 {
        return Reason::TtlExpiring;
    }
    if ip.is_for_routers() {
        return Reason::CarriedTakesStack;
    }
    if !is_within(entry.last_seen, nanoseconds) {
        return DUE;
    }
    // Copied before any further helper call: the element may be another flow's afterwards.
    let (exit, ifindex, macs) = (entry.exit, entry.out_ifindex, Macs::of(entry));
    if packet::largest_packet(ctx, ip, transport) > u32::from(entry.mtu) {
        return Reason::TooBig;
    }
    note_progress(key, entry, transport);
    if forward(ctx, ip, key, &to, macs).is_err() {
        return Reason::RewriteFailed;
    }
    redirect(ctx, exit, ifindex)
}

/// What becomes of the packet that is the first of its flow in a second.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    Carry,
    Keepalive,
    Forget,
    Lost,
}

/// What an established flow has to have looked at now and then: after the first packet of a second, which then begins
/// again. [`DUE`] if it may.
///
/// Beside the established path, not below it: 512 bytes of stack are all that a program's functions have together.
#[inline(always)]
pub fn look_after(ctx: &TcContext) -> Reason {
    let reason = cwy_look_after(ctx.as_ptr().cast());
    match reason {
        Reason::AddressChanged => nat::end_of(ctx, false),
        Reason::SnatNoMapping => nat::end_of(ctx, true),
        _ => {}
    }
    reason
}

/// Verified by itself.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn cwy_look_after(skb: *mut __sk_buff) -> Reason {
    let ctx = &TcContext::new(skb);
    let Ok(ip) = packet::read_ip(ctx) else {
        return NOT_CARRIED;
    };
    let Ok(transport) = packet::read_transport(ctx, &ip) else {
        return NOT_CARRIED;
    };
    let key = packet::key(&ip, &transport);
    let Some(entry) = flow(&key) else {
        return NOT_CARRIED;
    };
    match turn(ctx, &key, entry, transport.flags, now()) {
        Turn::Carry => DUE,
        Turn::Keepalive => Reason::StackKeepalive,
        Turn::Forget => Reason::AddressChanged,
        Turn::Lost => Reason::SnatNoMapping,
    }
}

#[inline(always)]
fn turn(ctx: &TcContext, key: &Key, entry: &mut Entry, flags: u8, now: u32) -> Turn {
    entry.last_seen = now;
    if let Err(turn) = nat::look_after(key, entry) {
        return turn;
    }
    // A reset that nobody meant: the connection goes on.
    if entry.progress().either(Progress::RST) && flags & tcp_flags::RST == 0 {
        entry.progress = entry.progress().without(Progress::RST).bits();
        if let Some(peer) = flow(&nat::peer_key(key, entry)) {
            peer.progress = peer.progress().without(Progress::RST).bits();
        }
    }
    if entry.exit == Exit::UPLINK && !entry.has(Flags::FIXED_HOP) {
        next_hop::refresh(ctx, key, entry);
    }
    family::show_to_xdp(ctx, key, entry);
    if entry.nat == Nat::NONE && key.protocol != TCP && now.wrapping_sub(entry.last_up) >= KEEPALIVE {
        entry.last_up = now;
        return Turn::Keepalive;
    }
    Turn::Carry
}

/// Sends a rewritten packet past the stack. Without flags the helpers cannot fail here: a device that is gone costs the
/// packet later.
#[inline(always)]
pub fn redirect(ctx: &TcContext, exit: u8, ifindex: u32) -> Reason {
    if exit == Exit::POD {
        // SAFETY: the helper takes integers only.
        unsafe { bpf_redirect_peer(ifindex, 0) };
        Reason::CarriedToPod
    } else {
        packet::set_tag(ctx, TAG_CARRIED);
        // SAFETY: as above.
        unsafe { bpf_redirect(ifindex, 0) };
        Reason::CarriedToUplink
    }
}

/// Gives a packet of a carried flow to the stack, which answers it itself.
///
/// An answer from outside is translated first: its untranslated tuple means nothing to the stack, which would reset
/// the connection. Beside the established path, as [`look_after`].
#[inline(always)]
pub fn up(ctx: &TcContext, reason: Reason) -> Reason {
    match cwy_up(ctx.as_ptr().cast()) {
        0 => reason,
        _ => Reason::RewriteFailed,
    }
}

/// Returns 0 if the stack has the packet as it is to be. Verified by itself.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn cwy_up(skb: *mut __sk_buff) -> u32 {
    let ctx = &TcContext::new(skb);
    let Ok(ip) = packet::read_ip(ctx) else {
        return 0;
    };
    let Ok(transport) = packet::read_transport(ctx, &ip) else {
        return 0;
    };
    let key = &packet::key(&ip, &transport);
    let Some(to) = flow(key).map(|entry| translation(entry)) else {
        return 0;
    };
    if matches!(to.nat, Nat::DESTINATION | Nat::FROM_BACKEND) {
        if translate(ctx, &ip, key, &to).is_err() {
            return 1;
        }
        set_inside_tag(ctx, key, &to);
    } else if let Some(config) = config() {
        packet::set_tag(ctx, key.tag(config.seed));
    }
    0
}

/// Tags the packet by the tuple that it has after its translation.
#[inline(always)]
pub fn set_inside_tag(ctx: &TcContext, key: &Key, to: &Translation) {
    // A copy, which need be in memory here alone.
    let to = *to;
    let tag = cwy_inside_tag(from_ref(key), from_ref(&to));
    packet::set_tag(ctx, tag as u16);
}

/// Verified by itself.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn cwy_inside_tag(key: *const Key, to: *const Translation) -> u32 {
    // SAFETY: the caller's references.
    let (Some(key), Some(to)) = (unsafe { given(key) }, unsafe { given(to) }) else {
        return u32::from(TAG_NONE);
    };
    let (Some(config), Some(scratch)) = (config(), scratch()) else {
        return u32::from(TAG_NONE);
    };
    let inside = &mut scratch.inside;
    *inside = *key;
    match Nat::end(to.nat) {
        Nat::SOURCE => (inside.src, inside.src_port) = (to.addr, to.port),
        Nat::DESTINATION => (inside.dst, inside.dst_port) = (to.addr, to.port),
        _ => {}
    }
    u32::from(inside.tag(config.seed))
}

/// Notes what the packet says of the connection's life, on both directions' entries.
#[inline(always)]
pub fn note_progress(key: &Key, entry: &mut Entry, transport: &Transport) {
    let seen = Progress::of_packet(key.protocol, transport.flags);
    if !entry.progress().has(seen) {
        entry.progress = entry.progress().with(seen).bits();
        cwy_note_on_peer(from_ref(key), from_ref(entry), u32::from(seen.bits()));
    }
}

/// Verified by itself.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn cwy_note_on_peer(key: *const Key, entry: *const Entry, seen: u32) -> u32 {
    // SAFETY: the caller's references.
    let (Some(key), Some(entry)) = (unsafe { given(key) }, unsafe { given(entry) }) else {
        return 0;
    };
    let seen = Progress::from_bits(seen as u8);
    let peer_key = nat::peer_key(key, entry);
    // Under the peer's key may be half of another flow: that of a pod's translated flow, if its server speaks to the pod's
    // own address as well.
    if let Some(peer) = flow(&peer_key)
        && nat::peer_key(&peer_key, peer) == *key
    {
        peer.progress = peer.progress().and_peer(seen).bits();
    }
    0
}
