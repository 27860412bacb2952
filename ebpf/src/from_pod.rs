//! `cwy_from_pod`: tc ingress on the host veth. One lookup for an established flow, whose entry also proves the
//! sender: it was made by a packet that passed the guard on this interface with this MAC.

use aya_ebpf::{EbpfContext as _, bindings::__sk_buff, programs::TcContext};
use causeway_common::{decide::is_guarded, reason::Reason, tuple::TAG_NONE};

use crate::{
    carry::{DUE, NOT_CARRIED, carry, is_carried, look_after, may_carry, up},
    count::Hook,
    family, guard, icmp,
    maps::{flow, nanoseconds},
    nat,
    offer::give_up,
    packet::{self, Transport, skb},
};

#[inline(always)]
pub fn handle(ctx: &TcContext) -> Reason {
    let skb = ctx.as_ptr().cast();
    let mut reason = cwy_pod_flow(skb);
    if is_carried(reason) {
        return reason;
    }
    if reason == NOT_CARRIED && packet::linearise_headers(ctx) {
        reason = cwy_pod_flow(skb);
    }
    if reason == DUE {
        reason = look_after(ctx);
        if reason == DUE {
            reason = cwy_pod_flow(skb);
        }
    }
    match reason {
        NOT_CARRIED => cwy_pod_other(skb),
        Reason::TtlExpiring | Reason::TooBig | Reason::StackKeepalive | Reason::CarriedTakesStack => {
            up(ctx, reason)
        }
        reason => reason,
    }
}

/// One parse and one lookup for a carried flow, in a frame of its own: the two ways of a packet have 512 bytes of stack
/// each, and not together. Verified by itself.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn cwy_pod_flow(skb: *mut __sk_buff) -> Reason {
    let ctx = &TcContext::new(skb);
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
    let nanoseconds = nanoseconds();
    let is_sender = packet::is_from(ctx, entry) && packet::skb(ctx).vlan_present == 0;
    let is_sound = is_sender && packet::is_for_us(ctx) && ip.is_sound();
    if is_sound && may_carry(ctx, &ip, &transport, &key, entry, nanoseconds) {
        carry(ctx, &ip, &transport, &key, entry, nanoseconds)
    } else {
        NOT_CARRIED
    }
}

/// Every packet but those of established flows: whose it is, what it may not do, and then the stack. Verified by itself.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn cwy_pod_other(buffer: *mut __sk_buff) -> Reason {
    let ctx = &TcContext::new(buffer);
    packet::set_tag(ctx, TAG_NONE);
    let ip = match packet::read_ip(ctx) {
        Ok(ip) => ip,
        Err(reason) => return guard::check_other(ctx, reason),
    };
    if let Err(reason) = guard::check_source(ctx, &ip) {
        return reason;
    }
    let transport = packet::read_transport(ctx, &ip);
    let dst_port = transport.as_ref().ok().map(Transport::dst_port);
    if is_guarded(ip.dst, ip.protocol, dst_port) {
        return Reason::Wireserver;
    }
    if skb(ctx).vlan_present != 0 {
        return Reason::Vlan;
    }
    match transport {
        Ok(transport) => {
            let reason = give_up(ctx, Hook::FromPod, &ip, &transport);
            nat::after_stack(ctx, &ip, &transport, reason)
        }
        Err(Reason::OtherProtocol) => icmp::from_pod(ctx, &ip),
        Err(Reason::Fragment) => nat::fragment_from_pod(ctx, &ip),
        Err(reason) => reason,
    }
}
