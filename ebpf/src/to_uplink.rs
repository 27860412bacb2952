//! `cwy_to_uplink`: tc egress on the uplink, the last place before the wire. A pod's packet that needs translation
//! leaves translated or not at all.

use core::ptr::from_ref;

use aya_ebpf::{EbpfContext as _, bindings::__sk_buff, programs::TcContext};
use causeway_common::{
    decide::{Role, is_guarded},
    flow::Hop,
    maps::{Config, PodEntry},
    reason::{Reason, Verdict},
    tuple::{TAG_CARRIED, TAG_NONE},
};

use crate::{
    count::Hook,
    icmp,
    learn::{Emitted, learn},
    maps::{Addr, Key, config, iface, own, pod},
    nat, next_hop,
    packet::{self, Ip, Transport, skb},
};

/// `None` for a packet that one of our ingress hooks has carried here: it is counted there.
#[inline(always)]
pub fn handle(ctx: &TcContext) -> Option<Reason> {
    if packet::tag(ctx) == TAG_CARRIED {
        packet::set_tag(ctx, TAG_NONE);
        return None;
    }
    Some(of_stack(ctx))
}

/// A packet from the stack. In a frame of its own, which a carried one need not pay for.
#[inline(always)]
pub fn of_stack(ctx: &TcContext) -> Reason {
    cwy_of_stack(ctx.as_ptr().cast())
}

/// Verified by itself.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn cwy_of_stack(skb: *mut __sk_buff) -> Reason {
    let ctx = &TcContext::new(skb);
    packet::linearise_headers(ctx);
    classify(ctx).unwrap_or_else(|reason| reason)
}

#[inline(always)]
fn classify(ctx: &TcContext) -> Result<Reason, Reason> {
    let ip = match packet::read_ip(ctx) {
        Ok(ip) => ip,
        Err(reason) => return Err(nat::judge_unparsed(ctx, reason)),
    };
    let config = config().ok_or(Reason::NotFromPod)?;
    if !ip.is_first && !ip.is_portless() {
        return match sender(ctx, config, &ip, None)? {
            Some(_) => Ok(nat::fragment_to_uplink(ctx, &ip)),
            None => Ok(Reason::Fragment),
        };
    }
    let transport = match packet::read_first_transport(ctx, &ip) {
        Ok(transport) => transport,
        Err(Reason::OtherProtocol) if ip.is_portless() => Transport::PORTLESS,
        Err(reason) => {
            return match sender(ctx, config, &ip, None)? {
                Some(_) => nat::without_ports(ctx, &ip, reason),
                None if reason == Reason::OtherProtocol => Ok(icmp::to_uplink(ctx, &ip)),
                None => Ok(reason),
            };
        }
    };
    let reason = match sender(ctx, config, &ip, Some(transport.dst_port()))? {
        Some(pod) => nat::of_pod(ctx, pod, &ip, &transport),
        None if ip.is_fragment && !ip.is_portless() => Reason::Fragment,
        None => nat::of_node(ctx, &ip, &transport),
    };
    Ok(if reason.verdict() == Verdict::Refused {
        nat::refuse(ctx, &ip, &transport, reason)
    } else {
        reason
    })
}

/// The pod that sends the packet; `None` for the node itself.
#[inline(always)]
fn sender(
    ctx: &TcContext,
    config: &Config<Addr>,
    ip: &Ip,
    dst_port: Option<[u8; 2]>,
) -> Result<Option<&'static PodEntry>, Reason> {
    let guarded = is_guarded(ip.dst, ip.protocol, dst_port);
    let Some(pod) = pod(&ip.src) else {
        // The kernel may have translated both ends; the interface of arrival still tells that a pod is behind it.
        if guarded && iface(skb(ctx).ingress_ifindex).is_some() {
            return Err(Reason::Wireserver);
        }
        return if ip.src == config.node_addr {
            Ok(None)
        } else {
            Err(Reason::NotFromPod)
        };
    };
    if guarded {
        return Err(Reason::Wireserver);
    }
    if pod.flags & PodEntry::DEPARTED != 0 {
        return Err(Reason::PodDeparted);
    }
    Ok(Some(pod))
}

/// A packet that leaves with the pod's address: only its flow is learnt.
#[inline(always)]
pub fn keep_address(ctx: &TcContext, key: &Key, role: Role, unchanged: bool) -> Reason {
    cwy_keep_address(ctx.as_ptr().cast(), from_ref(key), role, u32::from(unchanged))
}

/// Verified by itself.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn cwy_keep_address(skb: *mut __sk_buff, key: *const Key, role: Role, unchanged: u32) -> Reason {
    // SAFETY: the caller's reference.
    let Some(key) = (unsafe { own(key) }) else {
        return Reason::NotFromPod;
    };
    // Filled in where it lies: there is no room for two of it.
    let mut emitted = Emitted {
        hook: Hook::ToUplink,
        key: &key,
        role,
        unchanged: unchanged != 0,
        hop: Hop::UNKNOWN,
        answer_flags: 0,
    };
    next_hop::of_frame(&TcContext::new(skb), &key, &mut emitted.hop);
    learn(&emitted)
}
