//! `cwy_from_uplink`: tc ingress on the uplink. Answers to translated flows get their pod's address back; flows
//! that begin outside are offered.

use core::ptr::from_ref;

use aya_ebpf::{EbpfContext as _, bindings::__sk_buff, programs::TcContext};
use causeway_common::{
    decide::Role,
    flow::{Flags, Nat, State},
    fragment::round_of,
    lifetime::seconds,
    reason::Reason,
    tuple::{TAG_NONE, UDP, has_ports},
};

use crate::{
    carry::{NOT_CARRIED, carry, may_carry, note_progress, translation},
    count::Hook,
    fragment, heal, icmp,
    maps::{Entry, Key, config, flow, is_present_pod, nanoseconds, now, pod},
    offer::give_up,
    packet::{self, Ip, Transport, skb},
    rewrite::translate,
};

#[inline(always)]
pub fn handle(ctx: &TcContext) -> Reason {
    let skb = ctx.as_ptr().cast();
    match cwy_wire_flow(skb) {
        NOT_CARRIED if packet::linearise_headers(ctx) => match cwy_wire_flow(skb) {
            NOT_CARRIED => not_carried(ctx),
            reason => reason,
        },
        NOT_CARRIED => not_carried(ctx),
        reason => reason,
    }
}

/// One parse and one lookup for a carried flow, in a frame of its own, as in `from_pod`. Verified by itself.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn cwy_wire_flow(skb: *mut __sk_buff) -> Reason {
    let ctx = &TcContext::new(skb);
    if !packet::is_for_us(ctx) || packet::skb(ctx).vlan_present != 0 {
        return NOT_CARRIED;
    }
    let Ok(ip) = packet::ip(ctx) else {
        return NOT_CARRIED;
    };
    let Ok(transport) = packet::transport(ctx, &ip) else {
        return NOT_CARRIED;
    };
    let key = packet::key(&ip, &transport);
    let Some(entry) = flow(&key) else {
        return NOT_CARRIED;
    };
    if !ip.has_good_checksum {
        return Reason::Malformed;
    }
    let nanoseconds = nanoseconds();
    if may_carry(ctx, &ip, &transport, &key, entry, nanoseconds) {
        return carry(ctx, &ip, &transport, &key, entry, nanoseconds);
    }
    if entry.state == State::KERNEL {
        let is_answer = matches!(entry.nat, Nat::DESTINATION | Nat::FROM_BACKEND);
        if is_answer && entry.is_for(transport.role(&ip), ip.protocol) {
            return kernel_answer(ctx, &ip, &transport, &key, entry);
        }
        if entry.has(Flags::HOST) {
            entry.last_seen = seconds(nanoseconds);
            note_progress(&key, entry, &transport);
        }
    }
    NOT_CARRIED
}

/// The answer to a translated packet of a protocol without ports. [`Reason::OtherProtocol`] if it is none.
#[inline(always)]
fn portless_answer(ctx: &TcContext, ip: &Ip) -> Reason {
    cwy_portless(ctx.as_ptr().cast(), from_ref(ip))
}

/// Verified by itself.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn cwy_portless(skb: *mut __sk_buff, ip: *const Ip) -> Reason {
    let ctx = &TcContext::new(skb);
    // SAFETY: the caller's reference.
    let Some(ip) = (unsafe { ip.as_ref() }) else {
        return Reason::OtherProtocol;
    };
    let key = packet::key(ip, &Transport::PORTLESS);
    match flow(&key) {
        Some(entry) if entry.state == State::KERNEL && entry.nat == Nat::DESTINATION => {
            kernel_answer(ctx, ip, &Transport::PORTLESS, &key, entry)
        }
        Some(entry) => {
            entry.last_seen = now();
            Reason::OtherProtocol
        }
        None => Reason::OtherProtocol,
    }
}

/// Gives the answer of a kernel flow its pod's address back, then lets the stack go on with it.
#[inline(always)]
fn kernel_answer(ctx: &TcContext, ip: &Ip, transport: &Transport, key: &Key, entry: &mut Entry) -> Reason {
    let to = translation(entry);
    entry.last_seen = now();
    note_progress(key, entry, transport);
    if translate(ctx, ip, key, &to).is_err() {
        return Reason::RewriteFailed;
    }
    if let Some(config) = config() {
        packet::set_tag(ctx, to.inside(key).tag(config.seed));
    }
    if to.nat == Nat::FROM_BACKEND {
        Reason::Balanced
    } else {
        Reason::KernelFlowTranslated
    }
}

#[inline(never)]
fn not_carried(ctx: &TcContext) -> Reason {
    let round = round_of(packet::tag(ctx));
    // Read once: the address of a field that is read again would be kept, and the verifier takes the context's alone.
    let is_tagged = skb(ctx).vlan_present != 0;
    packet::set_tag(ctx, TAG_NONE);
    if !packet::is_for_us(ctx) {
        return Reason::NotForUs;
    }
    let ip = match packet::ip(ctx) {
        Ok(ip) => ip,
        Err(reason) => return reason,
    };
    let transport = packet::transport(ctx, &ip);
    if !is_tagged {
        let reason = match transport {
            Err(Reason::OtherProtocol) if has_ports(ip.protocol) => icmp::from_uplink(ctx, &ip),
            Err(Reason::OtherProtocol) => portless_answer(ctx, &ip),
            Err(Reason::Fragment) => fragment::from_uplink(ctx, &ip, round),
            _ => Reason::OtherProtocol,
        };
        if reason != Reason::OtherProtocol {
            return reason;
        }
    }
    if let (Some(config), Ok(transport)) = (config(), &transport)
        && ip.dst == config.node_addr
        && !is_tagged
        && (ip.protocol == UDP || transport.role(&ip) != Role::Opens)
    {
        let reason = heal::lost_answer(ctx, &packet::key(&ip, transport));
        if reason != Reason::OtherProtocol {
            return reason;
        }
    }
    if is_present_pod(&ip.src) {
        return Reason::SpoofedFromWire;
    }
    if pod(&ip.dst).is_none_or(|pod| !pod.is_ready()) {
        return Reason::NotToPod;
    }
    if config().is_some_and(|config| config.node_addr == ip.src) {
        return Reason::SpoofedFromWire;
    }
    if is_tagged {
        return Reason::Vlan;
    }
    match transport {
        Ok(transport) => give_up(ctx, Hook::FromUplink, &ip, &transport),
        Err(reason) => reason,
    }
}
