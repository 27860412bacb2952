//! The flow entry and its three states. *The kernel decides a flow's first packet, Causeway carries the rest.*
//!
//! ```text
//!             first packet goes up             comes out with the tuple it went in with
//!   (none) ──────── at_ingress ───────▶ OFFERED ──────── at_egress ────────▶ CARRIED
//!      │                                   │                                    │
//!      │ comes out of the stack,           │ comes out translated,              │ the stack emits this tuple
//!      ▼ never offered                     ▼ or its answer does                 ▼ for another flow
//!   KERNEL ◀───────────────────────────────┴────────────────────────────────────┘
//! ```
//!
//! TCP without SNAT is carried in both directions or in none, or conntrack would see half a connection and call
//! its packets INVALID. UDP and ICMP directions are carried each by itself. With SNAT the forward direction is
//! enough, because the answer can come only through us.

use core::sync::atomic::{Ordering, compiler_fence};

mod driver;
mod progress;
mod transition;

pub use self::{
    driver::{Frame, at_driver},
    progress::Progress,
    transition::{AtEgress, AtIngress, at_egress, at_ingress, completes, keeps_address},
};
use crate::{addr::Address, decide::Role, tuple::FlowKey};

/// Values of [`FlowEntry::state`].
#[derive(Debug)]
pub struct State;

impl State {
    /// The first packet went up the stack, the verdict is unknown; or the answer to such a packet is awaited.
    pub const OFFERED: u8 = 1;
    /// Rewritten and redirected, past the stack.
    pub const CARRIED: u8 = 2;
    /// Always up the stack; translated at the uplink if [`FlowEntry::nat`] says so.
    pub const KERNEL: u8 = 3;
    /// The other end is gone for good: the next segment of the TCP connection is answered with a reset. Userspace says so.
    pub const RESET: u8 = 4;
}

/// Values of [`FlowEntry::nat`].
#[derive(Debug)]
pub struct Nat;

impl Nat {
    /// The tuple is left alone.
    pub const NONE: u8 = 0;
    /// Source address and port are replaced: pod to outside.
    pub const SOURCE: u8 = 1;
    /// Destination address and port are replaced: the answer.
    pub const DESTINATION: u8 = 2;
    /// A bit beside the others: what is replaced is the API server's virtual address, not the node's.
    pub const BALANCED: u8 = 4;
    /// The API server's virtual address is replaced by a backend's: client to backend.
    pub const TO_BACKEND: u8 = Self::DESTINATION | Self::BALANCED;
    /// A backend's address is replaced by the virtual one: the answer.
    pub const FROM_BACKEND: u8 = Self::SOURCE | Self::BALANCED;

    /// The end of the tuple that is replaced: [`Nat::SOURCE`], [`Nat::DESTINATION`] or [`Nat::NONE`].
    #[inline(always)]
    pub const fn end(nat: u8) -> u8 {
        nat & (Self::SOURCE | Self::DESTINATION)
    }
}

/// Values of [`FlowEntry::exit`].
#[derive(Debug)]
pub struct Exit;

impl Exit {
    /// Not known yet, or up the stack.
    pub const STACK: u8 = 0;
    /// `bpf_redirect` to `out_ifindex`.
    pub const UPLINK: u8 = 1;
    /// `bpf_redirect_peer` to `out_ifindex`.
    pub const POD: u8 = 2;
}

/// Bits of [`FlowEntry::flags`].
#[derive(Debug)]
pub struct Flags;

impl Flags {
    /// A packet of this direction went up the stack at an ingress hook.
    pub const WENT_UP: u8 = 1;
    /// A packet of this direction came out of the stack unchanged.
    pub const CAME_OUT: u8 = 2;
    /// The flow was opened towards a pod and this is its answer: never masqueraded.
    pub const ANSWER: u8 = 4;
    /// The flow belongs to a socket of the node, not to a pod.
    pub const HOST: u8 = 8;
    /// The first packet left by another way than a route lookup finds (policy routing by a mark, say): the next hop
    /// is kept as it was learnt.
    pub const FIXED_HOP: u8 = 16;
    /// The flow counts towards the quota of the pod that opened it, or of the wire ([`crate::maps::Usage`]).
    pub const COUNTED: u8 = 32;
}

/// Value of `cwy_flows`: one direction of a flow.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowEntry<A> {
    /// One of [`State`].
    pub state: u8,
    /// One of [`Nat`].
    pub nat: u8,
    /// One of [`Exit`].
    pub exit: u8,
    /// Bits of [`Flags`].
    pub flags: u8,
    /// [`Progress::bits`].
    pub progress: u8,
    /// Zero.
    pub _pad: u8,
    /// Largest IP packet in bytes that may be redirected.
    pub mtu: u16,
    /// `CLOCK_MONOTONIC` seconds of the last packet.
    pub last_seen: u32,
    /// `CLOCK_MONOTONIC` seconds of the last packet that went up the stack.
    pub last_up: u32,
    /// Interface on which this direction arrives; 0 until it is known.
    pub in_ifindex: u32,
    /// Interface to which this direction is redirected.
    pub out_ifindex: u32,
    /// From a pod: the source MAC with which this direction arrives. From the wire: zeros, or the destination MAC of the
    /// frames that may be redirected before they become packets, renewed once a second ([`at_driver`]).
    pub in_mac: [u8; 6],
    /// Destination MAC of the redirected frame.
    pub out_dst_mac: [u8; 6],
    /// Source MAC of the redirected frame.
    pub out_src_mac: [u8; 6],
    /// New port or echo identifier, network order.
    pub nat_port: [u8; 2],
    /// New address, network order.
    pub nat_addr: A,
}

const _: () = assert!(size_of::<FlowEntry<[u8; 4]>>() == 8 + 4 + 4 + 3 * 6 + 2 + 4 + 4 + 4);
const _: () = assert!(size_of::<FlowEntry<[u8; 16]>>() == 8 + 4 + 4 + 3 * 6 + 2 + 16 + 4 + 4);

/// Where a carried packet goes.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hop {
    /// One of [`Exit`].
    pub exit: u8,
    /// [`Flags`] that the hop gives its entry.
    pub flags: u8,
    /// Largest IP packet in bytes.
    pub mtu: u16,
    /// Interface to redirect to.
    pub ifindex: u32,
    /// Destination MAC.
    pub dst_mac: [u8; 6],
    /// Source MAC.
    pub src_mac: [u8; 6],
}

impl Hop {
    /// No place to which packets could be redirected.
    pub const UNKNOWN: Self = Self {
        exit: Exit::STACK,
        flags: 0,
        mtu: 0,
        ifindex: 0,
        dst_mac: [0; 6],
        src_mac: [0; 6],
    };
}

impl<A: Address> FlowEntry<A> {
    /// A flow whose first packet goes up the stack now (`now`: `CLOCK_MONOTONIC` seconds).
    #[inline(always)]
    pub fn offer(in_ifindex: u32, in_mac: [u8; 6], now: u32) -> Self {
        Self {
            state: State::OFFERED,
            nat: Nat::NONE,
            exit: Exit::STACK,
            flags: Flags::WENT_UP,
            progress: Progress::SPOKE.bits(),
            _pad: 0,
            mtu: 0,
            in_ifindex,
            out_ifindex: 0,
            in_mac,
            out_dst_mac: [0; 6],
            out_src_mac: [0; 6],
            nat_port: [0; 2],
            nat_addr: A::UNSPECIFIED,
            last_seen: now,
            last_up: now,
        }
    }

    /// The answer to a packet that just came out of the stack unchanged, not known yet. `flags` may hold
    /// [`Flags::ANSWER`].
    #[inline(always)]
    pub fn awaited(flags: u8, now: u32) -> Self {
        Self {
            flags,
            progress: Progress::NONE.and_peer(Progress::SPOKE).bits(),
            ..Self::offer(0, [0; 6], now)
        }
    }

    /// A flow that stays with the kernel.
    #[inline(always)]
    pub fn kernel(flags: u8, now: u32) -> Self {
        Self {
            state: State::KERNEL,
            flags,
            ..Self::offer(0, [0; 6], now)
        }
    }

    /// Notes where this direction leaves.
    #[inline(always)]
    pub fn leave_by(&mut self, hop: &Hop) {
        self.flags |= Flags::CAME_OUT | hop.flags;
        self.exit = hop.exit;
        self.mtu = hop.mtu;
        self.out_ifindex = hop.ifindex;
        self.out_dst_mac = hop.dst_mac;
        self.out_src_mac = hop.src_mac;
    }

    /// Changes the state of an entry that other CPUs read, after everything that the state implies was written.
    #[inline(always)]
    pub fn set_state(&mut self, state: u8) {
        compiler_fence(Ordering::Release);
        // SAFETY: a reference to an integer is valid and aligned; volatile keeps the store behind the others.
        unsafe { (&raw mut self.state).write_volatile(state) };
    }

    /// [`Progress`] of the flow as this direction stores it.
    #[inline(always)]
    pub fn progress(&self) -> Progress {
        Progress::from_bits(self.progress)
    }

    /// The key under which the other direction of this flow is stored; `key` is this direction's.
    #[inline(always)]
    pub fn peer_key(&self, key: &FlowKey<A>) -> FlowKey<A> {
        let answer = key.reversed();
        match Nat::end(self.nat) {
            Nat::SOURCE => FlowKey {
                dst: self.nat_addr,
                dst_port: self.nat_port,
                ..answer
            },
            Nat::DESTINATION => FlowKey {
                src: self.nat_addr,
                src_port: self.nat_port,
                ..answer
            },
            _ => answer,
        }
    }

    /// Whether a packet under the entry's key belongs to its flow.
    ///
    /// Of ICMP the key does not say it: it has a question's identifier where it has an answer's kind
    /// ([`crate::icmp::IcmpQuery::kind`]), and one can be the other's number. What is translated has its questions in one
    /// direction and its answers in the other; without translation nothing is changed, whichever it is.
    #[inline(always)]
    pub fn is_for(&self, role: Role, protocol: u8) -> bool {
        match self.nat {
            _ if protocol != A::ICMP => true,
            Nat::SOURCE => role == Role::Opens,
            Nat::DESTINATION => role == Role::Answers,
            _ => true,
        }
    }

    /// Whether all of `flags` are set.
    #[inline(always)]
    pub fn has(&self, flags: u8) -> bool {
        self.flags & flags == flags
    }
}

/// Seconds after which a packet of a carried flow without SNAT and without TCP's state goes up the stack, so that
/// conntrack still knows the flow when a late answer comes. Below `nf_conntrack_udp_timeout` (30 s).
pub const KEEPALIVE: u32 = 10;

#[cfg(test)]
mod tests;
