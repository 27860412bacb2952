//! The next hop: read off the frame of a flow's first packet, and followed when it changes, once a second and flow, so that a carried flow does not depend on an agent.
//!
//! A carried flow with SNAT may never return to the stack in mid-life (conntrack would call it INVALID), so the
//! route and the neighbour are read here and the entry is changed in place.

use aya_ebpf::{
    EbpfContext as _,
    bindings::{BPF_FIB_LKUP_RET_SUCCESS, bpf_fib_lookup},
    helpers::generated::bpf_fib_lookup as fib_lookup,
    programs::TcContext,
};
use causeway_common::{
    flow::{Exit, Hop, Nat, State},
    maps::Config,
    reason::Reason,
};

use crate::{
    count::{Hook, bump},
    maps::{Addr, Entry, Key, flow},
    packet::{self, skb},
};

const AF_INET: u8 = 2;

/// Where a frame that leaves the uplink goes: the kernel has just resolved it.
#[inline(always)]
pub fn of_frame(ctx: &TcContext, config: &Config<Addr>) -> Hop {
    Hop {
        exit: Exit::UPLINK,
        mtu: config.uplink_mtu.min(u32::from(u16::MAX)) as u16,
        ifindex: skb(ctx).ifindex,
        dst_mac: packet::dst_mac(ctx),
        src_mac: packet::src_mac(ctx),
    }
}

/// Asks the kernel for the route and the neighbour and follows them.
///
/// Anything but success leaves the entry as it is: a neighbour that is being resolved still has its old MAC.
#[inline(never)]
pub fn refresh(ctx: &TcContext, key: &Key, entry: &mut Entry) {
    // SAFETY: integers and arrays of integers: all zeros is a value.
    let mut request: bpf_fib_lookup = unsafe { core::mem::zeroed() };
    request.family = AF_INET;
    request.l4_protocol = key.protocol;
    request.sport = u16::from_ne_bytes(key.src_port);
    request.dport = u16::from_ne_bytes(key.dst_port);
    request.ifindex = entry.in_ifindex;
    request.__bindgen_anon_3.ipv4_src = u32::from_ne_bytes(key.src);
    request.__bindgen_anon_4.ipv4_dst = u32::from_ne_bytes(key.dst);
    let size = size_of::<bpf_fib_lookup>() as i32;
    // SAFETY: `request` is `size` bytes of our stack; the helper reads and writes no more.
    let result = unsafe { fib_lookup(ctx.as_ptr(), &raw mut request, size, 0) };
    if result != i64::from(BPF_FIB_LKUP_RET_SUCCESS) {
        return;
    }
    let (dst_mac, src_mac) = (request.dmac, request.smac);
    if request.ifindex == entry.out_ifindex {
        if entry.out_dst_mac != dst_mac || entry.out_src_mac != src_mac {
            entry.out_dst_mac = dst_mac;
            entry.out_src_mac = src_mac;
            bump(Hook::FromPod, Reason::NextHopMoved);
        }
    } else if entry.nat == Nat::NONE {
        // The new device may have rules of its own: the kernel takes the flow over.
        bump(Hook::FromPod, Reason::NextHopMoved);
        entry.state = State::KERNEL;
        if let Some(answer) = flow(&key.reversed()) {
            answer.state = State::KERNEL;
        }
    }
}
