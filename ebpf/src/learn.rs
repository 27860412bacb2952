//! At the egress hooks: what the stack did to a flow's first packet decides who carries the flow.

use aya_ebpf::bindings::{BPF_ANY, BPF_NOEXIST};
use causeway_common::{
    decide::Role,
    flow::{AtEgress, Exit, Flags, Hop, Nat, State, at_egress, completes},
    reason::Reason,
    tuple::ICMP,
};

use crate::{
    count::{Hook, bump},
    maps::{Entry, FLOWS, Key, flow, now},
};

/// A packet that the stack emitted and that keeps its tuple here.
pub struct Emitted<'a> {
    pub hook: Hook,
    pub key: &'a Key,
    pub role: Role,
    /// The packet went in with this very tuple.
    pub unchanged: bool,
    /// Where it leaves; [`Hop::UNKNOWN`] when the flow may not be carried there.
    pub hop: Hop,
    /// [`Flags`] for the other direction.
    pub answer_flags: u8,
}

/// Learns from one packet.
#[inline(never)]
pub fn learn(packet: &Emitted<'_>) -> Reason {
    let now = now();
    let entry = flow(packet.key);
    if let Some(entry) = entry {
        entry.last_seen = now;
        return match at_egress(Some(entry), packet.role, packet.key.protocol, packet.unchanged) {
            AtEgress::Promote | AtEgress::AwaitAnswer if packet.hop.exit == Exit::STACK => Reason::Offered,
            AtEgress::Promote => promote(packet, &entry.carried_to(&packet.hop), now),
            AtEgress::AwaitAnswer => await_answer(packet, &entry.leaving_by(&packet.hop), now),
            AtEgress::Record => record(packet, now),
            AtEgress::SettleQuestion => settle(packet, now),
            AtEgress::Demote => demote(packet, now),
            AtEgress::Leave(reason) => reason,
        };
    }
    match at_egress::<[u8; 4]>(None, packet.role, packet.key.protocol, packet.unchanged) {
        AtEgress::Record => record(packet, now),
        AtEgress::SettleQuestion => settle(packet, now),
        AtEgress::Leave(reason) => reason,
        AtEgress::Promote | AtEgress::AwaitAnswer | AtEgress::Demote => Reason::MidFlow,
    }
}

#[inline(always)]
fn promote(packet: &Emitted<'_>, carried: &Entry, now: u32) -> Reason {
    if !insert(packet, packet.key, carried, BPF_ANY) {
        return Reason::Offered;
    }
    // An echo reply opens nothing by itself, and the answer to a flow from outside must be known as one.
    let must_await = packet.key.protocol == ICMP || packet.answer_flags & Flags::ANSWER != 0;
    if must_await && packet.role == Role::Opens {
        await_under(&packet.key.reversed(), packet.answer_flags, now);
    }
    Reason::Promoted
}

#[inline(always)]
fn await_answer(packet: &Emitted<'_>, leaving: &Entry, now: u32) -> Reason {
    let answer_key = packet.key.reversed();
    let answer = flow(&answer_key);
    if completes(answer.as_deref()) {
        let Some(answer) = answer else { return Reason::SeenOneWay };
        let both = insert(packet, packet.key, &Entry { state: State::CARRIED, ..*leaving }, BPF_ANY)
            && insert(packet, &answer_key, &Entry { state: State::CARRIED, ..*answer }, BPF_ANY);
        return if both { Reason::Promoted } else { Reason::SeenOneWay };
    }
    if insert(packet, packet.key, leaving, BPF_ANY) {
        await_under(&answer_key, packet.answer_flags, now);
    }
    Reason::SeenOneWay
}

/// Both directions stay with the kernel, unless an entry says that they have a life of their own.
#[inline(always)]
fn record(packet: &Emitted<'_>, now: u32) -> Reason {
    record_one(packet, packet.key, Flags::CAME_OUT, now);
    record_one(packet, &packet.key.reversed(), packet.answer_flags, now);
    Reason::RecordedKernel
}

/// The kernel's answer came under another tuple than the question's offer expects: the question is the kernel's.
#[inline(always)]
fn settle(packet: &Emitted<'_>, now: u32) -> Reason {
    let question_key = packet.key.reversed();
    if !flow(&question_key).is_some_and(|question| question.state == State::OFFERED) {
        return Reason::MidFlow;
    }
    record_one(packet, packet.key, Flags::CAME_OUT, now);
    record_one(packet, &question_key, 0, now);
    Reason::RecordedKernel
}

/// The tuple of a carried flow comes out of the stack for another one: the stack wins.
#[inline(always)]
fn demote(packet: &Emitted<'_>, now: u32) -> Reason {
    bump(packet.hook, Reason::Demoted);
    insert(packet, packet.key, &Entry::kernel(Flags::CAME_OUT, now), BPF_ANY);
    insert(packet, &packet.key.reversed(), &Entry::kernel(packet.answer_flags, now), BPF_ANY);
    Reason::RecordedKernel
}

#[inline(always)]
fn record_one(packet: &Emitted<'_>, key: &Key, flags: u8, now: u32) {
    let kernel = Entry::kernel(flags, now);
    match flow(key) {
        None => insert(packet, key, &kernel, BPF_NOEXIST),
        Some(entry) if entry.state == State::OFFERED && entry.nat == Nat::NONE => {
            insert(packet, key, &kernel, BPF_ANY)
        }
        Some(_) => true,
    };
}

/// A failure costs speed only: the answer takes the stack.
#[inline(always)]
fn await_under(key: &Key, flags: u8, now: u32) {
    if FLOWS.insert(key, Entry::awaited(flags, now), u64::from(BPF_NOEXIST)).is_err() {}
}

#[inline(always)]
fn insert(packet: &Emitted<'_>, key: &Key, entry: &Entry, flags: u32) -> bool {
    let inserted = FLOWS.insert(key, entry, u64::from(flags)).is_ok();
    if !inserted {
        bump(packet.hook, Reason::OfferRefused);
    }
    inserted
}
