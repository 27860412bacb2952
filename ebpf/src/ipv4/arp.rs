//! What a pod may say on its link by ARP (RFC 826): its own address.

use aya_ebpf::programs::TcContext;
use causeway_common::{maps::IfaceEntry, reason::Reason};

use super::{Addr, header::addr_at};
use crate::packet::{self, Ip};

/// Offsets in an ARP packet for IPv4 over Ethernet (RFC 826), from the start of the frame.
const SENDER_MAC: usize = packet::ETH_LEN + 8;
const SENDER_ADDR: usize = packet::ETH_LEN + 14;

/// Whether the packet's source is the pod.
#[inline(always)]
pub fn is_source(pod: &IfaceEntry<Addr>, ip: &Ip) -> bool {
    ip.src == pod.addr
}

/// The verdict on a packet from an interface of no pod.
#[inline(always)]
pub fn of_stranger(_: &TcContext, _: &Ip) -> Reason {
    Reason::UnknownInterface
}

/// Nothing of IPv4 speaks of the link.
#[inline(always)]
pub fn check_link(_: &TcContext, _: &Ip, _: &IfaceEntry<Addr>) -> Result<(), Reason> {
    Ok(())
}

/// The verdict on a frame of the pod's without an IPv4 header; `reason` says what it is instead.
#[inline(always)]
pub fn check_other(ctx: &TcContext, pod: &IfaceEntry<Addr>, reason: Reason) -> Reason {
    if reason != Reason::Arp {
        return reason;
    }
    let sender = addr_at(ctx, SENDER_ADDR);
    // A probe for a free address has no sender address yet (RFC 5227 section 2.1.1).
    let is_own = sender == Some(pod.addr) || sender == Some([0; 4]);
    if is_own && packet::mac_at(ctx, SENDER_MAC) == pod.mac {
        reason
    } else {
        Reason::ArpSpoofed
    }
}
