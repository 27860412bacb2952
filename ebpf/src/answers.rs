//! Answers from the wire to translated flows that are not carried, or that have lost their entry.

use core::ptr::from_ref;

use aya_ebpf::{EbpfContext as _, bindings::__sk_buff, programs::TcContext};
use causeway_common::{
    decide::Role,
    flow::{Nat, State},
    reason::Reason,
    tuple::UDP,
};

use crate::{
    carry::{note_progress, set_inside_tag},
    given::given,
    heal,
    maps::{Entry, Key, config, flow, now},
    packet::{self, Ip, Transport},
    translate::{translate, translation},
};

/// The answer of a kernel flow; `None` if it is none.
#[inline(always)]
pub fn kernel_answer(
    ctx: &TcContext,
    ip: &Ip,
    transport: &Transport,
    key: &Key,
    entry: &mut Entry,
) -> Option<Reason> {
    let is_answer = matches!(entry.nat, Nat::DESTINATION | Nat::FROM_BACKEND);
    (is_answer && entry.is_for(transport.role(ip), ip.protocol))
        .then(|| answer(ctx, ip, transport, key, entry))
}

/// Gives the answer of a kernel flow its pod's address back, then lets the stack go on with it.
#[inline(never)]
fn answer(ctx: &TcContext, ip: &Ip, transport: &Transport, key: &Key, entry: &mut Entry) -> Reason {
    let to = translation(entry);
    entry.last_seen = now();
    note_progress(key, entry, transport);
    if translate(ctx, ip, key, &to).is_err() {
        return Reason::RewriteFailed;
    }
    set_inside_tag(ctx, key, &to);
    if to.nat == Nat::FROM_BACKEND {
        Reason::Balanced
    } else {
        Reason::KernelFlowTranslated
    }
}

/// The answer to a translated packet of a protocol without ports. [`Reason::OtherProtocol`] if it is none.
#[inline(always)]
pub fn portless_answer(ctx: &TcContext, ip: &Ip) -> Reason {
    cwy_portless(ctx.as_ptr().cast(), from_ref(ip))
}

/// Verified by itself.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn cwy_portless(skb: *mut __sk_buff, ip: *const Ip) -> Reason {
    let ctx = &TcContext::new(skb);
    // SAFETY: the caller's reference.
    let Some(ip) = (unsafe { given(ip) }) else {
        return Reason::OtherProtocol;
    };
    let key = packet::key(ip, &Transport::PORTLESS);
    match flow(&key) {
        Some(entry) if entry.state == State::KERNEL && entry.nat == Nat::DESTINATION => {
            answer(ctx, ip, &Transport::PORTLESS, &key, entry)
        }
        Some(entry) => {
            entry.last_seen = now();
            Reason::OtherProtocol
        }
        None => Reason::OtherProtocol,
    }
}

/// What may be the answer to a flow that has lost its entry. [`Reason::OtherProtocol`] if it is none.
#[inline(always)]
pub fn lost_answer(ctx: &TcContext, ip: &Ip, transport: &Transport) -> Reason {
    let is_to_node = config().is_some_and(|config| ip.dst == config.node_addr);
    if is_to_node && (ip.protocol == UDP || transport.role(ip) != Role::Opens) {
        heal::lost_answer(ctx, &packet::key(ip, transport))
    } else {
        Reason::OtherProtocol
    }
}
