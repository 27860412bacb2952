//! `cwy_from_pod`: tc ingress on the host veth. One lookup for an established flow, whose entry also proves the
//! sender: it was made by a packet that passed the guard on this interface with this MAC.

use aya_ebpf::programs::TcContext;
use causeway_common::{
    decide::is_guarded,
    flow::{AtIngress, at_ingress},
    reason::Reason,
    tuple::TAG_NONE,
};

use crate::{
    Outcome,
    carry::carry,
    count::Hook,
    guard,
    maps::flow,
    offer::give_up,
    packet::{self, Ip, Transport, skb},
};

#[inline(always)]
pub fn handle(ctx: &TcContext) -> Outcome {
    packet::linearise_headers(ctx);
    let ip = match packet::ip(ctx) {
        Ok(ip) => ip,
        Err(reason) => {
            packet::set_tag(ctx, TAG_NONE);
            return guard::check_other(ctx, reason).into();
        }
    };
    let transport = packet::transport(ctx, &ip);
    if let Ok(transport) = &transport {
        let key = packet::key(&ip, transport);
        if let Some(entry) = flow(&key) {
            let decision = at_ingress(Some(entry), transport.role(&ip), ip.protocol, skb(ctx).ifindex);
            let is_sender = entry.in_mac == packet::src_mac(ctx) && skb(ctx).vlan_present == 0;
            if decision == AtIngress::Carry && is_sender && packet::is_for_us(ctx) {
                return carry(ctx, &ip, transport, &key, entry);
            }
        }
    }
    not_carried(ctx, &ip, transport).into()
}

#[inline(always)]
fn not_carried(ctx: &TcContext, ip: &Ip, transport: Result<Transport, Reason>) -> Reason {
    packet::set_tag(ctx, TAG_NONE);
    let mac = match guard::check_source(ctx, ip) {
        Ok(mac) => mac,
        Err(reason) => return reason,
    };
    let dst_port = transport.as_ref().ok().map(|transport| transport.dst_port);
    if is_guarded(ip.dst, ip.protocol, dst_port) {
        return Reason::Wireserver;
    }
    if skb(ctx).vlan_present != 0 {
        return Reason::Vlan;
    }
    match transport {
        Ok(transport) => give_up(
            ctx,
            Hook::FromPod,
            ip,
            &transport,
            &packet::key(ip, &transport),
            mac,
        ),
        Err(reason) => reason,
    }
}
