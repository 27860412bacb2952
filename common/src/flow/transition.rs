//! What the hooks make of a flow: from no entry to an offer, from there to a carried flow or to one of the kernel's.

use super::{Flags, FlowEntry, Nat, State};
use crate::{addr::Address, decide::Role, reason::Reason, tuple};

/// What an ingress hook does with a packet that is not carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AtIngress {
    /// Write an offer, tag the packet, give it to the stack.
    Offer,
    /// Note on the entry that the packet went up, tag it, give it to the stack.
    Continue,
    /// The entry is carried: redirect.
    Carry,
    /// Give it to the stack untagged.
    Stack(Reason),
    /// Answer it with a reset.
    Reset,
}

/// Decides at an ingress hook. `ifindex` is the interface of arrival; `idle`: neither direction has seen a packet
/// within its lifetime, so what the entry knows is about a flow that is over.
#[inline(always)]
pub fn at_ingress<A: Address>(
    entry: Option<&FlowEntry<A>>,
    role: Role,
    protocol: u8,
    ifindex: u32,
    idle: bool,
) -> AtIngress {
    let Some(entry) = entry else {
        return if role == Role::Opens {
            AtIngress::Offer
        } else {
            AtIngress::Stack(Reason::MidFlow)
        };
    };
    if !entry.is_for(role, protocol) {
        return AtIngress::Stack(Reason::MidFlow);
    }
    if idle && role == Role::Opens {
        return AtIngress::Offer;
    }
    match entry.state {
        State::CARRIED if entry.in_ifindex != ifindex => match role {
            // The pod behind the address is another one now, or the route of the flow has changed.
            Role::Opens => AtIngress::Offer,
            Role::Answers | Role::Continues => AtIngress::Stack(Reason::MidFlow),
        },
        State::CARRIED if protocol == tuple::TCP && role == Role::Opens && entry.progress().is_over() => {
            AtIngress::Offer
        }
        State::CARRIED => AtIngress::Carry,
        State::OFFERED => AtIngress::Continue,
        State::RESET if role == Role::Opens => AtIngress::Offer,
        State::RESET => AtIngress::Reset,
        _ => AtIngress::Stack(Reason::KernelFlow),
    }
}

/// What an egress hook does with a packet that the stack emitted and that needs no translation of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AtEgress {
    /// This direction is carried from now on.
    Promote,
    /// This direction is good; both are carried once the answer is, which is awaited under the reversed key.
    AwaitAnswer,
    /// The kernel changed or made this tuple: both directions stay with it.
    Record,
    /// As `Record`, but only if the question's entry is still an offer. An answer creates nothing by itself.
    SettleQuestion,
    /// The stack emits the tuple of a carried flow for another one. The stack wins.
    Demote,
    /// Nothing to learn.
    Leave(Reason),
}

/// Decides at an egress hook. `unchanged`: the packet's tag fits its tuple, so it came out as it went in.
#[inline(always)]
pub fn at_egress<A: Address>(
    entry: Option<&FlowEntry<A>>,
    role: Role,
    protocol: u8,
    unchanged: bool,
) -> AtEgress {
    let Some(entry) = entry else {
        return match role {
            _ if unchanged => AtEgress::Leave(Reason::MidFlow),
            Role::Opens => AtEgress::Record,
            Role::Answers => AtEgress::SettleQuestion,
            Role::Continues => AtEgress::Leave(Reason::MidFlow),
        };
    };
    match entry.state {
        State::OFFERED if unchanged && entry.has(Flags::WENT_UP) => match (protocol, role) {
            (tuple::TCP, Role::Continues) => AtEgress::Leave(Reason::Offered),
            (tuple::TCP, _) => AtEgress::AwaitAnswer,
            _ => AtEgress::Promote,
        },
        State::OFFERED => match role {
            Role::Opens => AtEgress::Record,
            Role::Answers => AtEgress::SettleQuestion,
            Role::Continues => AtEgress::Leave(Reason::Offered),
        },
        State::CARRIED if unchanged || role != Role::Opens => AtEgress::Leave(Reason::CarriedTakesStack),
        State::CARRIED => AtEgress::Demote,
        _ => AtEgress::Leave(Reason::KernelFlow),
    }
}

/// Whether a pod's packet leaves the uplink with the pod's address because of what is known of its flow: it answers a
/// flow from outside, or its flow left so before.
///
/// A TCP flow that a pod opens is no answer, whatever a stranger's SYN has written under its tuple.
#[inline(always)]
pub fn keeps_address<A: Address>(entry: &FlowEntry<A>, role: Role, protocol: u8) -> bool {
    let opens_tcp = protocol == tuple::TCP && role == Role::Opens;
    let left_before = entry.state != State::OFFERED && entry.has(Flags::CAME_OUT) && entry.nat == Nat::NONE;
    !opens_tcp && (entry.has(Flags::ANSWER) || left_before)
}

/// Whether both directions of a TCP flow may be carried: `entry` has just come out unchanged, `answer` is the
/// entry under the reversed key.
#[inline(always)]
pub fn completes<A: Address>(answer: Option<&FlowEntry<A>>) -> bool {
    answer
        .is_some_and(|answer| answer.state == State::OFFERED && answer.has(Flags::WENT_UP | Flags::CAME_OUT))
}
