//! Who may send what from a pod's interface. Everything that is not on the established path passes here first, so
//! that no forged packet creates state.

use aya_ebpf::programs::TcContext;
use causeway_common::{maps::IfaceEntry, reason::Reason};

use crate::{
    maps::{Addr, iface},
    packet::{self, Ip, skb},
};

/// Offsets in an ARP packet for IPv4 over Ethernet (RFC 826), from the start of the frame.
const ARP_SENDER_MAC: usize = packet::ETH_LEN + 8;
const ARP_SENDER_ADDR: usize = packet::ETH_LEN + 14;

/// The packet's source is the pod of this interface, or the reason why it is dropped.
#[inline(always)]
pub fn check_source(ctx: &TcContext, ip: &Ip) -> Result<(), Reason> {
    let pod = sender(ctx)?;
    if ip.src == pod.addr {
        Ok(())
    } else {
        Err(Reason::SourceAddress)
    }
}

/// The verdict on a frame without an IPv4 header; `reason` says what it is instead.
#[inline(never)]
pub fn check_other(ctx: &TcContext, reason: Reason) -> Reason {
    let pod = match sender(ctx) {
        Ok(pod) => pod,
        Err(dropped) => return dropped,
    };
    if reason != Reason::Arp {
        return reason;
    }
    let sender_addr = packet::addr_at(ctx, ARP_SENDER_ADDR);
    // A probe for a free address has no sender address yet (RFC 5227 section 2.1.1).
    let is_own = sender_addr == Some(pod.addr) || sender_addr == Some([0; 4]);
    if is_own && packet::mac_at(ctx, ARP_SENDER_MAC) == pod.mac {
        reason
    } else {
        Reason::ArpSpoofed
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
