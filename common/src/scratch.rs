//! What functions of the programs keep beside their stack, of which all of a program's have 512 bytes together.
//!
//! Each part is one function's, which nothing below it calls again. Programs on a hook run with softirqs disabled, so no
//! other of them runs on the CPU before the first one ends. An iterator may be interrupted by one: it has no part here.

use crate::{
    addr::Address,
    flow::FlowEntry,
    fragment::{FragmentEntry, FragmentKey},
    icmp::Quoted,
    tuple::FlowKey,
};

/// Value of `cwy_scratch`, one a CPU. What it holds means nothing once a program has ended.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Scratch<A: Address> {
    /// The walk over a flow's candidates.
    pub walk: Walk<A>,
    /// The search for a mapping that a flow has.
    pub lookup: Lookup<A>,
    /// The flow's own half, when it is first written.
    pub forward: FlowEntry<A>,
    /// The flow's own half, when it was lost.
    pub restored: Half<A>,
    /// The answers' half, when it was lost.
    pub answer: FlowEntry<A>,
    /// The answer whose flow is looked for.
    pub lost: FlowKey<A>,
    /// What is learnt at egress.
    pub learnt: Half<A>,
    /// What is offered at ingress.
    pub offered: Half<A>,
    /// The answer that is awaited again.
    pub awaited: Half<A>,
    /// What an ICMP error quotes.
    pub quoted: Quoted<A>,
    /// How a datagram's fragments go on.
    pub fragment: FragmentEntry<A>,
    /// What tells them apart.
    pub fragment_key: FragmentKey<A>,
    /// The remote whose ports are looked at, as the key of an answer from it.
    pub remote: FlowKey<A>,
    /// What a packet's flow is behind its translation.
    pub inside: FlowKey<A>,
    /// What goes into the queue of flows.
    pub remembered: FlowKey<A>,
    /// What comes out of it.
    pub oldest: FlowKey<A>,
}

/// One direction of a flow.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Half<A> {
    /// Its key.
    pub key: FlowKey<A>,
    /// Its value.
    pub entry: FlowEntry<A>,
}

/// State of a walk over the candidates for a port.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Walk<A> {
    /// The flow that claims.
    pub key: FlowKey<A>,
    /// The key of its answers, to the port that was tried last.
    pub answer: FlowKey<A>,
    /// The entry that makes a port the flow's.
    pub reverse: FlowEntry<A>,
    /// Of the flow.
    pub hash: u32,
    /// State of both halves: one of [`State`](crate::flow::State).
    pub state: u8,
    /// That a port was found, or the [`Reason`](crate::reason::Reason) to give if the walk ends here. A number, because an
    /// enum that the verifier sees change in a loop costs it a state for each variant.
    pub end: u8,
    /// 1: ports of expired mappings are passed over.
    pub skip_stale: u8,
    /// 1: a free port may be taken; 0: the pod has as many flows as it may have.
    pub may_take: u8,
    /// 1: the mapping that was found has not been there before.
    pub is_new: u8,
    /// 1: there may be a hint to a port that the flow was given before ([`crate::moved`]).
    pub may_have_hint: u8,
    /// Zero.
    pub _pad: [u8; 2],
    /// Who claims: bits of the programs' own.
    pub claim: u32,
}

/// State of a search for the mapping that a flow has already.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Lookup<A> {
    /// The flow.
    pub key: FlowKey<A>,
    /// The key of its answers, to the port that was looked at last.
    pub answer: FlowKey<A>,
    /// Of the flow.
    pub hash: u32,
    /// What was found, 0 for nothing.
    pub found: u32,
}

const _: () = assert!(size_of::<Walk<[u8; 4]>>() == 16 + 16 + size_of::<FlowEntry<[u8; 4]>>() + 16);
const _: () = assert!(size_of::<Lookup<[u8; 16]>>() == 40 + 40 + 8);
const _: () = assert!(size_of::<Half<[u8; 16]>>() == 40 + size_of::<FlowEntry<[u8; 16]>>());
