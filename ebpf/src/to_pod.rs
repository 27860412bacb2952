//! `cwy_to_pod`: tc egress on the host veth. `bpf_redirect_peer` skips it, so it sees only what the stack delivers.

use aya_ebpf::programs::TcContext;
use causeway_common::{
    flow::{Exit, Flags, Hop},
    maps::PodEntry,
    reason::Reason,
};

use crate::{
    count::Hook,
    learn::{Emitted, learn},
    maps::{config, flow, iface, pod},
    packet::{self, Transport, skb},
};

#[inline(always)]
pub fn handle(ctx: &TcContext) -> Reason {
    classify(ctx).unwrap_or_else(|reason| reason)
}

#[inline(always)]
fn classify(ctx: &TcContext) -> Result<Reason, Reason> {
    packet::linearise_headers(ctx);
    let ip = packet::read_ip(ctx)?;
    if !ip.is_first && !ip.is_portless() {
        return Ok(Reason::Fragment);
    }
    let transport = match packet::read_first_transport(ctx, &ip) {
        Err(Reason::OtherProtocol) if ip.is_portless() => Transport::PORTLESS,
        transport => transport?,
    };
    let config = config().ok_or(Reason::NotToPod)?;
    let key = packet::key(&ip, &transport);
    let is_fragment = ip.is_fragment && !ip.is_portless();
    // The stack puts the tag on no fragment. A flow that is known does not change by one; a flow that begins with one stays
    // with the kernel, and its answer is known as one.
    if is_fragment && flow(&key).is_some() {
        return Ok(Reason::Fragment);
    }
    // A pod that comes or goes has no flows: what is learnt here would outlive it.
    let pod = match pod(&ip.dst) {
        Some(pod) if pod.is_ready() && pod.ifindex == skb(ctx).ifindex => pod,
        _ => return Ok(Reason::NotToPod),
    };
    let hop = Hop {
        exit: Exit::POD,
        flags: 0,
        mtu: pod.mtu,
        ifindex: pod.ifindex,
        dst_mac: packet::dst_mac(ctx),
        src_mac: packet::src_mac(ctx),
    };
    // The answer to what another pod or the node itself has sent never meets the uplink.
    let from = skb(ctx).ingress_ifindex;
    let answer_flags = if from != 0 && iface(from).is_none() {
        Flags::ANSWER
    } else {
        0
    };
    let may_be_carried =
        pod.may_be_carried() && crate::maps::pod(&ip.src).is_none_or(PodEntry::may_be_carried);
    Ok(learn(&Emitted {
        hook: Hook::ToPod,
        key: &key,
        role: transport.role(&ip),
        unchanged: may_be_carried && !is_fragment && packet::tag(ctx) == key.tag(config.seed),
        hop,
        answer_flags,
    }))
}
