//! What a flow may not take: ports that are reserved, and those of the node's own sockets.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::BPF_F_CURRENT_NETNS,
    helpers::generated::{bpf_sk_lookup_udp, bpf_sk_release, bpf_skc_lookup_tcp},
};
use causeway_common::{
    ports::reserved_bit,
    reason::Reason,
    tuple::{TCP, UDP},
};

use crate::{
    count::{Hook, bump},
    family::maps::PORTS,
    maps::{Addr, Key},
};

/// NodePorts, `ip_local_reserved_ports` and whatever else userspace has reserved.
#[inline(always)]
pub fn is_reserved(protocol: u8, port: u16) -> bool {
    if protocol != TCP && protocol != UDP {
        return false;
    }
    let (word, mask) = reserved_bit(protocol == UDP, port);
    PORTS.get(word).is_some_and(|word| word.reserved & mask != 0)
}

/// The family's member of the kernel's `bpf_sock_tuple`, all in network order. The kernel tells them apart by their size.
#[repr(C, align(4))]
struct SockTuple {
    saddr: Addr,
    daddr: Addr,
    sport: [u8; 2],
    dport: [u8; 2],
}

/// Whether a socket of the node would receive the answer: a connection of its own, a listener, a bound socket.
#[inline(always)]
pub fn host_holds(skb: *mut c_void, answer: &Key) -> bool {
    let mut tuple = SockTuple {
        saddr: answer.src,
        daddr: answer.dst,
        sport: answer.src_port,
        dport: answer.dst_port,
    };
    const SIZE: u32 = size_of::<SockTuple>() as u32;
    let netns = BPF_F_CURRENT_NETNS as i64 as u64;
    // SAFETY: `tuple` holds `SIZE` bytes, and the reference that a hit returns is released below.
    let socket = unsafe {
        match answer.protocol {
            TCP => bpf_skc_lookup_tcp(skb, (&raw mut tuple).cast(), SIZE, netns, 0),
            UDP => bpf_sk_lookup_udp(skb, (&raw mut tuple).cast(), SIZE, netns, 0),
            _ => return false,
        }
    };
    if socket.is_null() {
        return false;
    }
    // SAFETY: a non-null result holds a reference, released once.
    unsafe { bpf_sk_release(socket.cast()) };
    bump(Hook::ToUplink, Reason::PortRetried);
    true
}
