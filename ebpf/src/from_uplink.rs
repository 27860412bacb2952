//! `cwy_from_uplink`: tc ingress on the uplink. Answers to translated flows get their pod's address back; flows
//! that begin outside are offered.

use aya_ebpf::{EbpfContext as _, bindings::__sk_buff, programs::TcContext};
use causeway_common::{
    flow::{Flags, State},
    lifetime::seconds,
    reason::Reason,
    tuple::TAG_NONE,
};

use crate::{
    carry::{DUE, NOT_CARRIED, carry, is_carried, look_after, may_carry, note_progress, up},
    count::Hook,
    family, icmp,
    maps::{config, flow, is_present_pod, nanoseconds, pod},
    nat,
    offer::give_up,
    packet::{self, skb},
};

#[inline(always)]
pub fn handle(ctx: &TcContext) -> Reason {
    let skb = ctx.as_ptr().cast();
    let mut reason = cwy_wire_flow(skb);
    if is_carried(reason) {
        return reason;
    }
    if reason == NOT_CARRIED && packet::linearise_headers(ctx) {
        reason = cwy_wire_flow(skb);
    }
    if reason == DUE {
        reason = look_after(ctx);
        if reason == DUE {
            reason = cwy_wire_flow(skb);
        }
    }
    match reason {
        NOT_CARRIED => cwy_wire_other(skb),
        Reason::TtlExpiring | Reason::TooBig | Reason::StackKeepalive | Reason::CarriedTakesStack => {
            up(ctx, reason)
        }
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
    let Ok(ip) = family::ip_at_once(ctx) else {
        return NOT_CARRIED;
    };
    let Ok(transport) = packet::transport(ctx, &ip) else {
        return NOT_CARRIED;
    };
    let key = packet::key(&ip, &transport);
    let Some(entry) = flow(&key) else {
        return NOT_CARRIED;
    };
    if !ip.is_sound() {
        return Reason::Malformed;
    }
    let nanoseconds = nanoseconds();
    if may_carry(ctx, &ip, &transport, &key, entry, nanoseconds) {
        return carry(ctx, &ip, &transport, &key, entry, nanoseconds);
    }
    if entry.state == State::KERNEL {
        if let Some(reason) = nat::kernel_answer(ctx, &ip, &transport, &key, entry) {
            return reason;
        }
        if entry.has(Flags::HOST) {
            entry.last_seen = seconds(nanoseconds);
            note_progress(&key, entry, &transport);
        }
    }
    NOT_CARRIED
}

/// Every packet but those of established flows: whose it may be, and then the stack. Verified by itself.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn cwy_wire_other(buffer: *mut __sk_buff) -> Reason {
    let ctx = &TcContext::new(buffer);
    let tag = packet::tag(ctx);
    // Read once: the address of a field that is read again would be kept, and the verifier takes the context's alone.
    let is_tagged = skb(ctx).vlan_present != 0;
    packet::set_tag(ctx, TAG_NONE);
    if !packet::is_for_us(ctx) {
        return Reason::NotForUs;
    }
    let ip = match packet::read_ip(ctx) {
        Ok(ip) => ip,
        Err(reason) => return reason,
    };
    let transport = packet::read_transport(ctx, &ip);
    if !is_tagged {
        let reason = match &transport {
            Err(Reason::OtherProtocol) if ip.is_portless() => nat::portless_answer(ctx, &ip),
            Err(Reason::OtherProtocol) => icmp::from_uplink(ctx, &ip),
            Err(Reason::Fragment) => nat::fragment_from_uplink(ctx, &ip, tag),
            Ok(transport) => nat::lost_answer(ctx, &ip, transport),
            Err(_) => Reason::OtherProtocol,
        };
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
