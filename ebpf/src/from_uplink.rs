//! `cwy_from_uplink`: tc ingress on the uplink. Answers to translated flows get their pod's address back; flows
//! that begin outside are offered.

use aya_ebpf::programs::TcContext;
use causeway_common::{
    flow::{AtIngress, Nat, State, at_ingress},
    reason::Reason,
    tuple::TAG_NONE,
};

use crate::{
    Outcome,
    carry::{carry, note_progress, translation},
    count::Hook,
    maps::{Entry, Key, config, flow, now, pod},
    offer::give_up,
    packet::{self, Ip, Transport, skb},
    rewrite::translate,
};

#[inline(always)]
pub fn handle(ctx: &TcContext) -> Outcome {
    packet::linearise_headers(ctx);
    if !packet::is_for_us(ctx) {
        packet::set_tag(ctx, TAG_NONE);
        return Reason::NotForUs.into();
    }
    let ip = match packet::ip(ctx) {
        Ok(ip) => ip,
        Err(reason) => {
            packet::set_tag(ctx, TAG_NONE);
            return reason.into();
        }
    };
    let transport = packet::transport(ctx, &ip);
    if let Ok(transport) = &transport
        && skb(ctx).vlan_present == 0
    {
        let key = packet::key(&ip, transport);
        if let Some(entry) = flow(&key) {
            if at_ingress(Some(entry), transport.role(&ip), ip.protocol, skb(ctx).ifindex) == AtIngress::Carry
            {
                return carry(ctx, &ip, transport, &key, entry);
            }
            if entry.state == State::KERNEL && entry.nat == Nat::DESTINATION {
                return kernel_answer(ctx, &ip, transport, &key, entry).into();
            }
        }
    }
    not_carried(ctx, &ip, transport).into()
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
        let inside = Key {
            dst: to.addr,
            dst_port: to.port,
            ..*key
        };
        packet::set_tag(ctx, inside.tag(config.seed));
    }
    Reason::KernelFlowTranslated
}

#[inline(always)]
fn not_carried(ctx: &TcContext, ip: &Ip, transport: Result<Transport, Reason>) -> Reason {
    packet::set_tag(ctx, TAG_NONE);
    if !pod(&ip.dst).is_some_and(|pod| pod.is_ready()) {
        return Reason::NotToPod;
    }
    let is_node = config().is_some_and(|config| config.node_addr == ip.src);
    if is_node || pod(&ip.src).is_some() {
        return Reason::SpoofedFromWire;
    }
    if skb(ctx).vlan_present != 0 {
        return Reason::Vlan;
    }
    match transport {
        Ok(transport) => give_up(
            ctx,
            Hook::FromUplink,
            ip,
            &transport,
            &packet::key(ip, &transport),
            [0; 6],
        ),
        Err(reason) => reason,
    }
}
