//! The established path: one lookup has been done, the packet is rewritten and redirected.

use core::ptr::{from_mut, from_ref};

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
    tuple::{TAG_CARRIED, TCP},
};

use crate::{
    family,
    given::{given, given_mut},
    maps::{Entry, Key, config, flow, is_idle},
    nat::{self, translate, translation},
    next_hop,
    packet::{self, Ip, Transport, skb},
    rewrite::{Macs, Translation, forward},
};

/// What the established path of an ingress hook says of a packet that is not for it. No carried packet has this reason.
pub const NOT_CARRIED: Reason = Reason::MidFlow;

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
        return up(ctx, ip, key, &to, Reason::TtlExpiring);
    }
    if !is_within(entry.last_seen, nanoseconds) {
        match once_a_second(ctx, key, entry, transport, seconds(nanoseconds)) {
            Turn::Carry => {}
            Turn::Keepalive => return up(ctx, ip, key, &to, Reason::StackKeepalive),
            Turn::Forget => return Reason::AddressChanged,
            Turn::Lost => return Reason::SnatNoMapping,
        }
    }
    // Copied before any further helper call: the element may be another flow's afterwards.
    let (exit, ifindex, macs) = (entry.exit, entry.out_ifindex, Macs::of(entry));
    if packet::largest_packet(ctx, ip, transport) > u32::from(entry.mtu) {
        return up(ctx, ip, key, &to, Reason::TooBig);
    }
    note_progress(key, entry, transport);
    if forward(ctx, ip, key, &to, macs).is_err() {
        return Reason::RewriteFailed;
    }
    redirect(ctx, exit, ifindex)
}

/// What becomes of the packet that is the first of its flow in a second.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Turn {
    Carry,
    Keepalive,
    Forget,
    Lost,
}

/// What an established flow has to have looked at now and then.
#[inline(always)]
fn once_a_second(ctx: &TcContext, key: &Key, entry: &mut Entry, transport: &Transport, now: u32) -> Turn {
    let flags = u32::from(transport.flags);
    match cwy_once_a_second(ctx.as_ptr().cast(), from_ref(key), from_mut(entry), flags, now) {
        0 => Turn::Carry,
        1 => Turn::Keepalive,
        2 => Turn::Forget,
        _ => Turn::Lost,
    }
}

/// Returns a [`Turn`] as a number. Verified by itself.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn cwy_once_a_second(
    skb: *mut __sk_buff,
    key: *const Key,
    entry: *mut Entry,
    flags: u32,
    now: u32,
) -> u32 {
    // SAFETY: the caller's references.
    let (Some(key), Some(entry)) = (unsafe { given(key) }, unsafe { given_mut(entry) }) else {
        return Turn::Lost as u32;
    };
    turn(&TcContext::new(skb), key, entry, flags as u8, now) as u32
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
/// the connection.
#[inline(always)]
fn up(ctx: &TcContext, ip: &Ip, key: &Key, to: &Translation, reason: Reason) -> Reason {
    let mut inside = *key;
    if matches!(to.nat, Nat::DESTINATION | Nat::FROM_BACKEND) {
        if translate(ctx, ip, key, to).is_err() {
            return Reason::RewriteFailed;
        }
        inside = to.inside(key);
    }
    if let Some(config) = config() {
        packet::set_tag(ctx, inside.tag(config.seed));
    }
    reason
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
