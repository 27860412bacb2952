//! The two entries of a translated flow, as they are first written.

use core::ptr::{from_mut, from_ref};

use aya_ebpf::{
    bindings::{__sk_buff, BPF_ANY},
    programs::TcContext,
};
use causeway_common::{
    flow::{Exit, Flags, Hop, Nat, Progress},
    reason::Reason,
};

use super::{Claim, Won, answer_key};
use crate::{
    count::{Hook, bump},
    given::{given, given_mut},
    maps::{Entry, FLOWS, Key, config, now, pod, scratch},
    moved, next_hop,
    reclaim::remember,
    usage,
};

/// Writes the entry of the flow's own direction, with what [`cwy_reserve`](super::walk::cwy_reserve) has won. Returns 0; or
/// takes the mapping back if there is no room. Verified by itself.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn cwy_write_forward(skb: *mut __sk_buff, won: u32) -> u32 {
    let (Some(config), Some(scratch)) = (config(), scratch()) else {
        return 1;
    };
    let (claim, won) = (&Claim::of_bits(scratch.walk.claim), Won(won));
    let (key, forward) = (&scratch.walk.key, &mut scratch.forward);
    *forward = Entry::kernel(claim.flags(), now());
    forward.nat = Nat::SOURCE;
    forward.nat_addr = config.node_addr;
    forward.nat_port = won.port().to_be_bytes();
    forward.state = won.state();
    if claim.of_pod {
        forward.flags |= Flags::COUNTED;
        if let Some(pod) = pod(&key.src) {
            forward.in_ifindex = pod.ifindex;
            forward.in_mac = pod.mac;
        }
        let mut hop = Hop::UNKNOWN;
        next_hop::of_frame(&TcContext::new(skb), key, &mut hop);
        forward.leave_by(&hop);
    }
    if FLOWS.insert(key, &*forward, u64::from(BPF_ANY)).is_err() {
        // A map of the remote's ports may show this one as taken until it is made anew.
        FLOWS.remove(&answer_key(config, key, won.port())).ok();
        return 1;
    }
    let is_moved = won.port().to_be_bytes() != key.src_port;
    if key.has_ports() && (is_moved || scratch.walk.may_have_hint != 0) {
        moved::note(key, won.port());
    }
    let is_new = won.has(Won::IS_NEW);
    if claim.of_pod && !claim.is_counted && is_new {
        usage::opened(&key.src);
    }
    if !claim.is_known {
        remember(key);
        if !is_new {
            bump(Hook::ToUplink, Reason::MappingRestored);
        }
    }
    0
}

/// Fills in the entry of the answers to the flow `key`, whose `nat_port` they bring back; towards a pod that is not there
/// it leads to the stack. In place and in a frame of its own: the caller's has no room for another entry.
#[inline(always)]
pub fn fill_answer(half: &mut Entry, key: &Key, flags: u8, state: u8) {
    cwy_fill_answer(from_mut(half), from_ref(key), u32::from(flags), u32::from(state));
}

/// Verified by itself.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn cwy_fill_answer(half: *mut Entry, key: *const Key, flags: u32, state: u32) -> u32 {
    // SAFETY: the caller's references.
    let (Some(half), Some(key), Some(config)) = (unsafe { given_mut(half) }, unsafe { given(key) }, config())
    else {
        return 0;
    };
    let (flags, state) = (flags as u8, state as u8);
    *half = Entry::kernel(flags, now());
    half.nat = Nat::DESTINATION;
    half.nat_addr = key.src;
    half.nat_port = key.src_port;
    half.progress = Progress::NONE.and_peer(Progress::SPOKE).bits();
    half.state = state;
    if flags & Flags::HOST == 0
        && let Some(pod) = pod(&{ key.src })
    {
        half.in_ifindex = config.uplink_ifindex;
        half.leave_by(&Hop {
            exit: Exit::POD,
            flags: 0,
            mtu: pod.mtu,
            ifindex: pod.ifindex,
            dst_mac: pod.mac,
            src_mac: pod.host_mac,
        });
    }
    0
}
