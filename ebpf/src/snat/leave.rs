//! The first packet with a port that has just been claimed.

use aya_ebpf::{bindings::__sk_buff, programs::TcContext};
use causeway_common::{flow::Nat, reason::Reason};

use super::Claim;
use crate::{
    count::Hook,
    event, fragment,
    maps::{config, scratch},
    packet,
    rewrite::Translation,
    translate::translate,
};

/// Translates the packet to the node's address and `port`. Verified by itself.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn cwy_leave(skb: *mut __sk_buff, port: u32) -> Reason {
    let ctx = &TcContext::new(skb);
    let (Some(scratch), Some(config)) = (scratch(), config()) else {
        return Reason::SnatNotReady;
    };
    let Ok(ip) = packet::read_ip(ctx) else {
        return Reason::RewriteFailed;
    };
    let claim = Claim::of_bits(scratch.walk.claim);
    let reason = match (claim.of_pod, claim.carried) {
        (true, true) => Reason::SnatPromoted,
        (true, false) => Reason::SnatKernel,
        (false, _) => Reason::HostFlowTranslated,
    };
    if claim.of_pod {
        if ip.is_fragment {
            fragment::left(ctx, &ip, Nat::SOURCE, &config.node_addr);
        }
        event::tell(ctx, Hook::ToUplink, reason);
    }
    let to = Translation::new(Nat::SOURCE, config.node_addr, (port as u16).to_be_bytes());
    match translate(ctx, &ip, &scratch.walk.key, &to) {
        Ok(()) => reason,
        Err(_failed) => Reason::RewriteFailed,
    }
}
