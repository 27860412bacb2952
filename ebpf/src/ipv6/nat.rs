//! IPv6 is not translated: every pod's address is good everywhere. This is what the other modules hear where those of IPv4
//! speak of a translation.

use aya_ebpf::programs::TcContext;
use causeway_common::{addr::Address as _, flow::Nat, maps::PodEntry, reason::Reason};

use crate::{
    carry::Turn,
    icmp::{self, Quoted},
    maps::{Addr, Entry, Key, config},
    packet::{self, Ip, Transport, skb},
    rewrite::{Failed, Translation},
    to_uplink::keep_address,
};

/// Nothing is replaced.
#[inline(always)]
pub fn translation(_: &Entry) -> Translation {
    Translation::new(Nat::NONE, Addr::UNSPECIFIED, [0; 2])
}

/// The key under which the other direction of a flow is stored; `key` is this direction's.
#[inline(always)]
pub fn peer_key(key: &Key, _: &Entry) -> Key {
    key.reversed()
}

/// There is none that could be lost.
#[inline(always)]
pub fn look_after(_: &Key, _: &Entry) -> Result<(), Turn> {
    Ok(())
}

/// Nothing was lost that could be found again.
#[inline(always)]
pub fn after_stack(_: &TcContext, _: &Ip, _: &Transport, reason: Reason) -> Reason {
    reason
}

/// No answer is a translated one.
#[inline(always)]
pub fn kernel_answer(_: &TcContext, _: &Ip, _: &Transport, _: &Key, _: &mut Entry) -> Option<Reason> {
    None
}

/// As [`kernel_answer`].
#[inline(always)]
pub fn portless_answer(_: &TcContext, _: &Ip) -> Reason {
    Reason::OtherProtocol
}

/// As [`kernel_answer`].
#[inline(always)]
pub fn lost_answer(_: &TcContext, _: &Ip, _: &Transport) -> Reason {
    Reason::OtherProtocol
}

/// The stack puts fragments together.
#[inline(always)]
pub fn fragment_from_pod(_: &TcContext, _: &Ip) -> Reason {
    Reason::Fragment
}

/// As [`fragment_from_pod`].
#[inline(always)]
pub fn fragment_from_uplink(_: &TcContext, _: &Ip, _: u16) -> Reason {
    Reason::OtherProtocol
}

/// As [`fragment_from_pod`].
#[inline(always)]
pub fn fragment_to_uplink(_: &TcContext, _: &Ip) -> Reason {
    Reason::Fragment
}

/// It has no address that it could leave with untranslated by mistake.
#[inline(always)]
pub fn judge_unparsed(_: &TcContext, reason: Reason) -> Reason {
    reason
}

/// A pod's packet without ports.
#[inline(always)]
pub fn without_ports(ctx: &TcContext, ip: &Ip, reason: Reason) -> Result<Reason, Reason> {
    match reason {
        Reason::OtherProtocol => Ok(icmp::to_uplink(ctx, ip)),
        _ => Err(reason),
    }
}

/// A pod's packet leaves with the pod's address: its flow is learnt.
#[inline(always)]
pub fn of_pod(ctx: &TcContext, pod: &PodEntry, ip: &Ip, transport: &Transport) -> Reason {
    if ip.is_fragment {
        return Reason::Fragment;
    }
    let key = packet::key(ip, transport);
    let is_tagged = config().is_some_and(|config| packet::tag(ctx) == key.tag(config.seed));
    let unchanged = is_tagged && skb(ctx).vlan_present == 0 && pod.may_be_carried();
    keep_address(ctx, &key, transport.role(ip), unchanged)
}

/// The node's own flows share no port with a pod's.
#[inline(always)]
pub fn of_node(_: &TcContext, _: &Ip, _: &Transport) -> Reason {
    Reason::NotFromPod
}

/// Nothing is refused.
#[inline(always)]
pub fn refuse(_: &TcContext, _: &Ip, _: &Transport, reason: Reason) -> Reason {
    reason
}

/// No flow was moved to another port.
#[inline(always)]
pub fn forget_moved(_: &Key) {}

/// Leaves the packet as it is.
#[inline(always)]
pub fn translate(_: &TcContext, _: &Ip, _: &Key, _: &Translation) -> Result<(), Failed> {
    Ok(())
}

/// As [`translate`].
#[inline(always)]
pub fn translate_transport(_: &TcContext, _: &Ip, _: &Key, _: &Translation) -> Result<(), Failed> {
    Ok(())
}

/// As [`translate`].
#[inline(always)]
pub fn translate_error(_: &TcContext, _: &Ip, _: &Quoted, _: &Translation) -> Result<(), Failed> {
    Ok(())
}

/// As [`translate`].
#[inline(always)]
pub fn translate_quoted(_: &TcContext, _: &Ip, _: &Quoted, to: &Translation) -> Result<Translation, Failed> {
    Ok(*to)
}

/// As [`translate`].
///
/// # Safety
///
/// None is needed: it touches nothing. That of IPv4 writes to the packet.
#[inline(always)]
pub unsafe fn replace_addr(_: *mut u8, _: &Ip, _: &Translation) {}

/// The half of a flow that holds no port.
pub struct HeldPort;

impl HeldPort {
    /// Of any entry.
    #[inline(always)]
    pub fn of(_: &Key, _: &Entry) -> Self {
        Self
    }

    /// There is nothing to give.
    #[inline(always)]
    pub fn give_back(self, _: &mut Key) {}
}
