//! At the egress hooks: what the stack did to a flow's first packet decides who carries the flow.

use core::ptr::from_ref;

use aya_ebpf::bindings::BPF_NOEXIST;
use causeway_common::{
    addr::Address as _,
    decide::Role,
    flow::{AtEgress, Exit, Flags, Hop, Nat, State, at_egress, completes},
    reason::Reason,
};

use crate::{
    count::{Hook, bump},
    given::given,
    maps::{Addr, EEXIST, Entry, FLOWS, Key, flow, now, scratch},
    reclaim::remember,
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
    let entry = flow(packet.key);
    let decision = at_egress(
        entry.as_deref(),
        packet.role,
        packet.key.protocol,
        packet.unchanged,
    );
    if let Some(entry) = entry {
        entry.last_seen = now();
        match decision {
            AtEgress::Promote | AtEgress::AwaitAnswer if packet.hop.exit == Exit::STACK => {
                return Reason::Offered;
            }
            AtEgress::Promote => return promote(packet, entry),
            AtEgress::AwaitAnswer => return await_answer(packet, entry),
            AtEgress::Demote => return demote(packet, entry),
            AtEgress::Record | AtEgress::SettleQuestion | AtEgress::Leave(_) => {}
        }
    }
    match decision {
        AtEgress::Record => record(packet),
        AtEgress::SettleQuestion => settle(packet),
        AtEgress::Leave(reason) => reason,
        AtEgress::Promote | AtEgress::AwaitAnswer | AtEgress::Demote => Reason::MidFlow,
    }
}

#[inline(always)]
fn promote(packet: &Emitted<'_>, entry: &mut Entry) -> Reason {
    entry.leave_by(&packet.hop);
    entry.set_state(State::CARRIED);
    // An echo reply opens nothing by itself, and the answer to a flow from outside must be known as one.
    let must_await = packet.key.protocol == Addr::ICMP || packet.answer_flags & Flags::ANSWER != 0;
    if must_await && packet.role == Role::Opens {
        insert(
            packet,
            &packet.key.reversed(),
            State::OFFERED,
            packet.answer_flags,
        );
    }
    Reason::Promoted
}

#[inline(always)]
fn await_answer(packet: &Emitted<'_>, entry: &mut Entry) -> Reason {
    entry.leave_by(&packet.hop);
    let answer_key = packet.key.reversed();
    let answer = flow(&answer_key);
    if completes(answer.as_deref()) {
        if let Some(answer) = answer {
            answer.set_state(State::CARRIED);
        }
        entry.set_state(State::CARRIED);
        return Reason::Promoted;
    }
    match answer {
        None => insert(packet, &answer_key, State::OFFERED, packet.answer_flags),
        // Left by an earlier connection on this tuple, or written again with the offer.
        Some(answer) if answer.state == State::OFFERED && answer.nat == Nat::NONE => {
            answer.flags |= packet.answer_flags;
        }
        Some(_) => {}
    }
    Reason::SeenOneWay
}

/// Both directions stay with the kernel, unless an entry says that they have a life of their own.
#[inline(always)]
fn record(packet: &Emitted<'_>) -> Reason {
    leave_to_kernel(packet, packet.key, Flags::CAME_OUT);
    leave_to_kernel(packet, &packet.key.reversed(), packet.answer_flags);
    Reason::RecordedKernel
}

/// The kernel's answer came under another tuple than the question's offer expects: the question is the kernel's.
#[inline(always)]
fn settle(packet: &Emitted<'_>) -> Reason {
    let question_key = packet.key.reversed();
    if flow(&question_key).is_none_or(|question| question.state != State::OFFERED) {
        return Reason::MidFlow;
    }
    leave_to_kernel(packet, packet.key, Flags::CAME_OUT);
    leave_to_kernel(packet, &question_key, 0);
    Reason::RecordedKernel
}

/// The tuple of a carried flow comes out of the stack for another one: the stack wins.
#[inline(always)]
fn demote(packet: &Emitted<'_>, entry: &mut Entry) -> Reason {
    entry.set_state(State::KERNEL);
    if let Some(answer) = flow(&packet.key.reversed()) {
        answer.set_state(State::KERNEL);
    }
    bump(packet.hook, Reason::Demoted);
    Reason::RecordedKernel
}

#[inline(always)]
fn leave_to_kernel(packet: &Emitted<'_>, key: &Key, flags: u8) {
    match flow(key) {
        None => {
            insert(packet, key, State::KERNEL, flags);
            remember(key);
        }
        Some(entry) if entry.state == State::OFFERED && entry.nat == Nat::NONE => {
            // What went up as a question of its own does not become an answer, or it would keep its address.
            if !entry.has(Flags::WENT_UP) {
                entry.flags |= flags;
            }
            entry.set_state(State::KERNEL);
        }
        Some(_) => {}
    }
}

/// A failure costs speed only: the direction takes the stack.
#[inline(always)]
fn insert(packet: &Emitted<'_>, key: &Key, state: u8, flags: u8) {
    let to_pod = u32::from(packet.hook == Hook::ToPod);
    cwy_learn_insert(from_ref(key), u32::from(state), u32::from(flags), to_pod);
}

/// Verified by itself.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn cwy_learn_insert(key: *const Key, state: u32, flags: u32, to_pod: u32) -> u32 {
    // SAFETY: the caller's reference.
    let (Some(key), Some(scratch)) = (unsafe { given(key) }, scratch()) else {
        return 0;
    };
    let half = &mut scratch.learnt;
    half.key = *key;
    half.entry = Entry::awaited(flags as u8, now());
    half.entry.state = state as u8;
    match FLOWS.insert(&half.key, &half.entry, u64::from(BPF_NOEXIST)) {
        Ok(()) | Err(EEXIST) => {}
        Err(_) => {
            let hook = if to_pod != 0 { Hook::ToPod } else { Hook::ToUplink };
            bump(hook, Reason::RecordRefused);
        }
    }
    0
}
