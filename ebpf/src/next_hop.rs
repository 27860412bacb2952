//! The next hop: read off the frame of a flow's first packet, and followed when it changes, once a second and flow, so that a carried flow does not depend on an agent.
//!
//! A carried flow with SNAT may never return to the stack in mid-life (conntrack would call it INVALID), so the
//! route and the neighbour are read here and the entry is changed in place.

use core::ptr::{from_mut, from_ref};

use aya_ebpf::{
    EbpfContext as _,
    bindings::{
        __sk_buff, BPF_FIB_LKUP_RET_BLACKHOLE, BPF_FIB_LKUP_RET_PROHIBIT, BPF_FIB_LKUP_RET_SUCCESS,
        bpf_fib_lookup,
    },
    helpers::generated::bpf_fib_lookup as fib_lookup,
    programs::TcContext,
};
use causeway_common::{
    flow::{Exit, Flags, Hop, Nat},
    reason::Reason,
};

use crate::{
    count::{Hook, bump},
    family,
    given::{given, given_mut},
    maps::{Entry, Key, config, iface},
    packet::{self, skb},
};

/// Where a frame that leaves the uplink goes: the kernel has just resolved it. The route has the MTU.
///
/// A hop that a route lookup would not have found was chosen by something that the lookup does not see (a mark, a
/// rule): it stays as it was learnt.
#[inline(always)]
pub fn of_frame(ctx: &TcContext, key: &Key, hop: &mut Hop) {
    cwy_hop_of_frame(ctx.as_ptr().cast(), from_ref(key), from_mut(hop));
}

/// Verified by itself.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn cwy_hop_of_frame(buffer: *mut __sk_buff, key: *const Key, hop: *mut Hop) -> u32 {
    let ctx = &TcContext::new(buffer);
    // SAFETY: the caller's references.
    let (Some(key), Some(hop), Some(config)) = (unsafe { given(key) }, unsafe { given_mut(hop) }, config())
    else {
        return 0;
    };
    *hop = Hop {
        exit: Exit::UPLINK,
        flags: 0,
        mtu: config.uplink_mtu.min(u32::from(u16::MAX)) as u16,
        ifindex: skb(ctx).ifindex,
        dst_mac: packet::dst_mac(ctx),
        src_mac: packet::src_mac(ctx),
    };
    let found = lookup(ctx, key, skb(ctx).ingress_ifindex);
    if found.ifindex != hop.ifindex || found.dst_mac != hop.dst_mac {
        hop.flags = Flags::FIXED_HOP;
    } else if found.mtu < hop.mtu {
        hop.mtu = found.mtu;
    }
    0
}

/// Asks the kernel for the route and the neighbour and follows them.
///
/// A neighbour that is being resolved still has its old MAC: the entry stays as it is. What the kernel would not forward
/// any more by a route that says so (unreachable, prohibit, blackhole) it answers or drops itself: every packet is too big for an MTU of 0.
#[inline(never)]
pub fn refresh(ctx: &TcContext, key: &Key, entry: &mut Entry) {
    let found = lookup(ctx, key, entry.in_ifindex);
    if found.refused {
        entry.mtu = 0;
        return;
    }
    let moved = found.ifindex != entry.out_ifindex;
    // A translated flow stays on the device whose address it has. A pod's interface is no way out.
    if found.ifindex == 0 || moved && (entry.nat != Nat::NONE || iface(found.ifindex).is_some()) {
        return;
    }
    // Of a route the MTU may have changed alone.
    entry.mtu = found.mtu;
    if moved || entry.out_dst_mac != found.dst_mac || entry.out_src_mac != found.src_mac {
        entry.out_ifindex = found.ifindex;
        entry.out_dst_mac = found.dst_mac;
        entry.out_src_mac = found.src_mac;
        bump(Hook::FromPod, Reason::NextHopMoved);
    }
}

/// A route and its neighbour; `ifindex` 0 when there is none, or none that is resolved.
struct Found {
    /// The kernel would not forward to this destination.
    refused: bool,
    ifindex: u32,
    /// Largest IP packet in bytes, by the route and the device.
    mtu: u16,
    dst_mac: packet::Mac,
    src_mac: packet::Mac,
}

#[inline(always)]
fn lookup(ctx: &TcContext, key: &Key, in_ifindex: u32) -> Found {
    // SAFETY: integers and arrays of integers: all zeros is a value.
    let mut request: bpf_fib_lookup = unsafe { core::mem::zeroed() };
    request.l4_protocol = key.protocol;
    request.sport = u16::from_ne_bytes(key.src_port);
    request.dport = u16::from_ne_bytes(key.dst_port);
    request.ifindex = in_ifindex;
    // A length makes the kernel look at the route's MTU, and give it back in the same field.
    request.__bindgen_anon_1.tot_len = 1;
    family::set_ends(&mut request, key);
    let size = size_of::<bpf_fib_lookup>() as i32;
    // SAFETY: `request` is `size` bytes of our stack; the helper reads and writes no more.
    let result = unsafe { fib_lookup(ctx.as_ptr(), &raw mut request, size, 0) };
    let ifindex = if result == i64::from(BPF_FIB_LKUP_RET_SUCCESS) {
        request.ifindex
    } else {
        0
    };
    // SAFETY: an integer in a union of integers.
    let mtu = unsafe { request.__bindgen_anon_1.mtu_result };
    let refused =
        (i64::from(BPF_FIB_LKUP_RET_BLACKHOLE)..=i64::from(BPF_FIB_LKUP_RET_PROHIBIT)).contains(&result);
    Found {
        refused,
        ifindex,
        mtu,
        dst_mac: request.dmac,
        src_mac: request.smac,
    }
}
