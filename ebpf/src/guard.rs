//! Who may send what from a pod's interface. Everything that is not on the established path passes here first, so
//! that no forged packet creates state.

use aya_ebpf::programs::TcContext;
use causeway_common::{maps::IfaceEntry, reason::Reason};

use crate::{
    family::{self, Addr},
    maps::iface,
    packet::{self, Ip, skb},
};

/// The packet's source is the pod of this interface, and it speaks for no other; or the reason why it is dropped.
#[inline(always)]
pub fn check_source(ctx: &TcContext, ip: &Ip) -> Result<(), Reason> {
    let pod = match sender(ctx) {
        Err(Reason::UnknownInterface) => return Err(family::of_stranger(ctx, ip)),
        pod => pod?,
    };
    if !family::is_source(pod, ip) {
        return Err(Reason::SourceAddress);
    }
    family::check_link(ctx, ip, pod)
}

/// The verdict on a frame without an IP header; `reason` says what it is instead.
#[inline(never)]
pub fn check_other(ctx: &TcContext, reason: Reason) -> Reason {
    match sender(ctx) {
        Ok(pod) => family::check_other(ctx, pod, reason),
        Err(dropped) => dropped,
    }
}

/// The pod of this interface, if the frame carries its MAC.
#[inline(always)]
fn sender(ctx: &TcContext) -> Result<&'static IfaceEntry<Addr>, Reason> {
    let pod = iface(skb(ctx).ifindex).ok_or(Reason::UnknownInterface)?;
    if packet::src_mac(ctx) == pod.mac {
        Ok(pod)
    } else {
        Err(Reason::SourceMac)
    }
}
