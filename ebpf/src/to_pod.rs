//! `cwy_to_pod`: tc egress on the host veth. `bpf_redirect_peer` skips it, so it sees only what the stack delivers.

use aya_ebpf::programs::TcContext;
use causeway_common::{
    flow::{Exit, Flags, Hop},
    reason::Reason,
};

use crate::{
    Outcome,
    count::Hook,
    learn::{Emitted, learn},
    maps::{config, pod},
    packet::{self, skb},
};

#[inline(always)]
pub fn handle(ctx: &TcContext) -> Outcome {
    classify(ctx).unwrap_or_else(|reason| reason).into()
}

#[inline(always)]
fn classify(ctx: &TcContext) -> Result<Reason, Reason> {
    packet::linearise_headers(ctx);
    let ip = packet::ip(ctx)?;
    let transport = packet::transport(ctx, &ip)?;
    let config = config().ok_or(Reason::NotToPod)?;
    let key = packet::key(&ip, &transport);
    let mut hop = Hop::UNKNOWN;
    if let Some(pod) = pod(&ip.dst)
        && pod.is_ready()
        && pod.ifindex == skb(ctx).ifindex
    {
        hop = Hop {
            exit: Exit::POD,
            mtu: pod.mtu,
            ifindex: pod.ifindex,
            dst_mac: packet::dst_mac(ctx),
            src_mac: packet::src_mac(ctx),
        };
    }
    Ok(learn(&Emitted {
        hook: Hook::ToPod,
        key: &key,
        role: transport.role(&ip),
        unchanged: packet::tag(ctx) == key.tag(config.seed),
        hop,
        answer_flags: Flags::ANSWER,
    }))
}
