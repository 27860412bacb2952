//! The node's own connections share the node's address with translated flows. A port that a socket holds is never
//! claimed (`snat`); here is the other direction: a socket that connects from a port that a translated flow holds, a pod's
//! or that of another socket.

use core::ptr::from_ref;

use aya_ebpf::{
    EbpfContext as _,
    bindings::{__sk_buff, BPF_NOEXIST},
    programs::TcContext,
};
use causeway_common::{
    decide::Role,
    flow::{Flags, Nat},
    reason::Reason,
    tuple::{TCP, UDP},
};

use crate::{
    balance,
    carry::note_progress,
    given::given,
    maps::{Entry, FLOWS, Key, flow, now},
    packet::{self, Ip, Transport, skb},
    reclaim::remember,
    rewrite::Translation,
    snat::{self, Claim},
    translate::{translate, translation},
};

/// A packet with the node's address. It is translated only if its port is a pod's towards this remote.
#[inline(always)]
pub fn to_uplink(ctx: &TcContext, ip: &Ip, transport: &Transport) -> Reason {
    if transport.role(ip) == Role::Opens {
        let reason = balance::to_api_server(ctx, ip, transport, 0);
        if reason != balance::NOT_OURS {
            return reason;
        }
    }
    match cwy_of_node(ctx.as_ptr().cast(), from_ref(ip), from_ref(transport)) {
        HAS_BACKEND => balance::to_api_server(ctx, ip, transport, 0),
        reason => reason,
    }
}

/// What [`cwy_of_node`] says of a flow that is a matter of [`balance`]. No packet of it has this reason.
const HAS_BACKEND: Reason = Reason::Balanced;

/// What it says of a packet whose flow has to [go](crate::nat::settle) before it begins again. No packet has this reason.
pub const ENDED: Reason = Reason::Reclaimed;

/// Verified by itself.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn cwy_of_node(skb: *mut __sk_buff, ip: *const Ip, transport: *const Transport) -> Reason {
    // SAFETY: the caller's references.
    let (Some(ip), Some(transport)) = (unsafe { given(ip) }, unsafe { given(transport) }) else {
        return Reason::NotFromPod;
    };
    let ctx = &TcContext::new(skb);
    translated_or_not(ctx, ip, transport).unwrap_or_else(|reason| reason)
}

#[inline(always)]
fn translated_or_not(ctx: &TcContext, ip: &Ip, transport: &Transport) -> Result<Reason, Reason> {
    let key = packet::key(ip, transport);
    let role = transport.role(ip);
    let entry = flow(&key);
    if entry.as_deref().is_some_and(balance::is_ours) {
        return Ok(HAS_BACKEND);
    }
    if let Some(entry) = entry
        && entry.nat == Nat::SOURCE
        && entry.has(Flags::HOST)
        && entry.is_for(role, ip.protocol)
    {
        if ip.protocol != TCP || role != Role::Opens || !entry.progress().is_over() {
            let to = translation(entry);
            entry.last_seen = now();
            note_progress(&key, entry, transport);
            return translated(ctx, ip, &key, &to);
        }
        // The new connection may need no other port, and must not meet that of the old one.
        return Ok(ENDED);
    }
    opens(ctx, ip, &key, role)
}

/// A packet of a flow that has no translation.
#[inline(always)]
fn opens(ctx: &TcContext, ip: &Ip, key: &Key, role: Role) -> Result<Reason, Reason> {
    // What the kernel forwards with the node's address has no socket that could be looked up when a pod wants its port
    // (a hostPort, a masquerade of somebody else's); nor has an echo identifier of the node. It is noted here.
    let without_socket = ip.protocol != TCP && ip.protocol != UDP || skb(ctx).ingress_ifindex != 0;
    if role == Role::Continues || role == Role::Answers && !without_socket {
        return Ok(Reason::NotFromPod);
    }
    let answer = key.reversed();
    match flow(&answer) {
        Some(owner) if owner.nat == Nat::DESTINATION && !owner.has(Flags::HOST) && ip.is_portless() => {
            // There is no other port to give to the node's own tunnel: it has the protocol, the pod's flow ends.
            return Ok(ENDED);
        }
        // A pod's flow has the port, or another socket of the node was given it in place of its own.
        Some(owner) if owner.nat == Nat::DESTINATION && role == Role::Opens => {
            let claim = Claim {
                of_pod: false,
                carried: false,
                opens: true,
                is_counted: false,
                is_known: false,
            };
            return snat::ask(key, &claim);
        }
        Some(_) => {}
        None if without_socket => {
            hold(&answer);
        }
        None => {}
    }
    Ok(Reason::NotFromPod)
}

/// Notes that the answers to a port are the node's, unless they are somebody's already.
#[inline(never)]
fn hold(answer: &Key) {
    let held = Entry::kernel(Flags::HOST, now());
    if FLOWS.insert(answer, held, u64::from(BPF_NOEXIST)).is_ok() {
        remember(answer);
    }
}

#[inline(always)]
fn translated(ctx: &TcContext, ip: &Ip, key: &Key, to: &Translation) -> Result<Reason, Reason> {
    translate(ctx, ip, key, to).map_err(|_failed| Reason::RewriteFailed)?;
    Ok(Reason::HostFlowTranslated)
}
