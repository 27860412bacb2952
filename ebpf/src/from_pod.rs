//! `cwy_from_pod`: tc ingress on the host veth. One lookup for an established flow, whose entry also proves the
//! sender: it was made by a packet that passed the guard on this interface with this MAC.

use aya_ebpf::{EbpfContext as _, bindings::__sk_buff, programs::TcContext};
use causeway_common::{
    decide::is_guarded,
    reason::Reason,
    tuple::{TAG_NONE, TCP},
};

use crate::{
    carry::{NOT_CARRIED, carry, may_carry},
    count::Hook,
    fragment, guard, heal, icmp,
    maps::{flow, nanoseconds},
    offer::give_up,
    packet::{self, Transport, skb},
    reset::{Back, refuse},
    to_uplink::needs_snat,
};

#[inline(always)]
pub fn handle(ctx: &TcContext) -> Reason {
    let skb = ctx.as_ptr().cast();
    match cwy_pod_flow(skb) {
        NOT_CARRIED if packet::linearise_headers(ctx) => match cwy_pod_flow(skb) {
            NOT_CARRIED => not_carried(ctx),
            reason => reason,
        },
        NOT_CARRIED => not_carried(ctx),
        reason => reason,
    }
}

/// One parse and one lookup for a carried flow, in a frame of its own: the two ways of a packet have 512 bytes of stack
/// each, and not together. Verified by itself.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn cwy_pod_flow(skb: *mut __sk_buff) -> Reason {
    let ctx = &TcContext::new(skb);
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
    let nanoseconds = nanoseconds();
    let is_sender = packet::is_from(ctx, entry) && packet::skb(ctx).vlan_present == 0;
    let is_sound = is_sender && packet::is_for_us(ctx) && ip.has_good_checksum;
    if is_sound && may_carry(ctx, &ip, &transport, &key, entry, nanoseconds) {
        carry(ctx, &ip, &transport, &key, entry, nanoseconds)
    } else {
        NOT_CARRIED
    }
}

/// Every packet but those of established flows: whose it is, what it may not do, and then the stack.
#[inline(never)]
fn not_carried(ctx: &TcContext) -> Reason {
    packet::set_tag(ctx, TAG_NONE);
    let ip = match packet::ip(ctx) {
        Ok(ip) => ip,
        Err(reason) => return guard::check_other(ctx, reason),
    };
    if let Err(reason) = guard::check_source(ctx, &ip) {
        return reason;
    }
    let transport = packet::transport(ctx, &ip);
    let dst_port = transport.as_ref().ok().map(Transport::dst_port);
    if is_guarded(ip.dst, ip.protocol, dst_port) {
        return Reason::Wireserver;
    }
    if skb(ctx).vlan_present != 0 {
        return Reason::Vlan;
    }
    match transport {
        Ok(transport) => {
            let key = packet::key(&ip, &transport);
            let reason = give_up(ctx, Hook::FromPod, &ip, &transport);
            if reason == Reason::Drained {
                return refuse(ctx, &ip, &transport, reason, Back::Out);
            }
            if reason == Reason::MidFlow && ip.protocol == TCP && needs_snat(&key.dst) {
                return heal::lost_flow(ctx, &key);
            }
            reason
        }
        Err(Reason::OtherProtocol) => icmp::from_pod(ctx, &ip),
        Err(Reason::Fragment) => fragment::from_pod(ctx, &ip),
        Err(reason) => reason,
    }
}
