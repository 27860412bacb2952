//! What a pod may say on its link by ICMPv6: who it is ([`causeway_common::neighbour`]).

use core::ptr::from_ref;

use aya_ebpf::{EbpfContext as _, bindings::__sk_buff, programs::TcContext};
use causeway_common::{
    addr::Address as _,
    maps::IfaceEntry,
    neighbour::{LinkMessage, Options, is_own_option, may_advertise, may_be_source},
    reason::Reason,
};

use super::Addr;
use crate::{
    given::given,
    icmp::load,
    maps::is_present_pod,
    packet::{self, Ip},
};

/// The hop limit of what neighbours say: no router has passed it on (RFC 4861 section 7.1).
const LINK_HOPS: u8 = 255;

/// Whether the packet's source is the pod.
#[inline(always)]
pub fn is_source(pod: &IfaceEntry<Addr>, ip: &Ip) -> bool {
    may_be_source(&ip.src, &ip.dst, &pod.addr)
}

/// The verdict on a packet from a pod that the programs know by no address of IPv6: it has none, or several from another
/// IPAM plug-in. It takes no other pod's address, says nothing of others, and is the kernel's.
#[inline(always)]
pub fn of_stranger(ctx: &TcContext, ip: &Ip) -> Reason {
    if is_present_pod(&ip.src) {
        return Reason::SourceAddress;
    }
    let nobody = IfaceEntry {
        addr: Addr::UNSPECIFIED,
        mac: packet::src_mac(ctx),
        _pad: [0; 2],
    };
    check_link(ctx, ip, &nobody).err().unwrap_or(Reason::Ipv6)
}

/// What the packet says of the link, if anything: [`Reason::NeighbourDiscovery`] for what the kernel is to hear.
#[inline(always)]
pub fn check_link(ctx: &TcContext, ip: &Ip, pod: &IfaceEntry<Addr>) -> Result<(), Reason> {
    if ip.is_plain() && !ip.is_fragment && ip.protocol != Addr::ICMP {
        return Ok(());
    }
    match cwy_link_message(ctx.as_ptr().cast(), from_ref(ip), from_ref(pod)) {
        Reason::OtherProtocol => Ok(()),
        reason => Err(reason),
    }
}

/// The verdict on a frame of the pod's without an IPv6 header; `reason` says what it is instead.
#[inline(always)]
pub fn check_other(_: &TcContext, _: &IfaceEntry<Addr>, reason: Reason) -> Reason {
    reason
}

/// [`Reason::OtherProtocol`] for what says nothing of the link. Verified by itself.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn cwy_link_message(skb: *mut __sk_buff, ip: *const Ip, pod: *const IfaceEntry<Addr>) -> Reason {
    // SAFETY: the caller's references.
    let (Some(ip), Some(pod)) = (unsafe { given(ip) }, unsafe { given(pod) }) else {
        return Reason::NeighbourSpoofed;
    };
    judge(&TcContext::new(skb), ip, pod)
}

#[inline(always)]
fn judge(ctx: &TcContext, ip: &Ip, pod: &IfaceEntry<Addr>) -> Reason {
    let may_be_heard = ip.ttl == LINK_HOPS;
    if ip.protocol != Addr::ICMP || ip.is_fragment {
        // What cannot be looked into, and what is in parts (RFC 6980), may be anything.
        let is_hidden = !ip.is_plain() || ip.is_fragment && ip.protocol == Addr::ICMP;
        return if is_hidden && may_be_heard {
            Reason::NeighbourSpoofed
        } else {
            Reason::OtherProtocol
        };
    }
    let Some([kind]) = load::<1>(ctx, ip.l4()) else {
        return Reason::Malformed;
    };
    match LinkMessage::of(kind) {
        LinkMessage::None => Reason::OtherProtocol,
        LinkMessage::Harmless => Reason::NeighbourDiscovery,
        LinkMessage::Routers => Reason::NeighbourSpoofed,
        LinkMessage::Neighbour { advertises } => match load::<16>(ctx, ip.l4() + 8) {
            Some(target) if advertises && !may_advertise(&target, &pod.addr) => Reason::NeighbourSpoofed,
            Some(_) if has_own_options(ctx, ip.l4() + 24, pod) => Reason::NeighbourDiscovery,
            _ => Reason::NeighbourSpoofed,
        },
    }
}

/// Whether each link-layer address in the options from `offset` on is the pod's.
#[inline(always)]
fn has_own_options(ctx: &TcContext, offset: usize, pod: &IfaceEntry<Addr>) -> bool {
    let mut options = Options::begin(offset as u32, ctx.len());
    for _ in 0..Options::MOST {
        if options.is_end() {
            return true;
        }
        match load::<8>(ctx, options.at() as usize) {
            Some(option) if is_own_option(option, pod.mac) => options.pass(option),
            _ => return false,
        }
    }
    options.is_end()
}
