//! Fragments. The first one has the ports and decides; what it decided is remembered for the rest, which have only
//! addresses and an identification. A fragment that needs translation and cannot have it does not leave.

use core::ptr::from_ref;

use aya_ebpf::{
    EbpfContext as _,
    bindings::{__sk_buff, BPF_ANY, BPF_F_INGRESS},
    helpers::generated::bpf_redirect,
    programs::TcContext,
};
use causeway_common::{
    addr::Address as _,
    flow::{Exit, Nat, State},
    fragment::{At, FragmentEntry, FragmentKey, ROUNDS, waiting_tag},
    reason::Reason,
};

use crate::{
    carry::redirect,
    count::{Hook, bump},
    family::{fragment_id, maps::FRAGS},
    given::given,
    maps::{Addr, Entry, Key, config, flow, now, scratch},
    masquerade::needs_snat,
    packet::{self, Ip, skb},
    rewrite::{Failed, Macs, Translation, step},
    translate::{translate, translate_alone, translation},
};

type Remembered = FragmentEntry<Addr>;

/// From a pod, past the guard: carried with its flow if that is translated, since such a flow may not meet conntrack
/// again. Everything else takes the stack.
#[inline(always)]
pub fn from_pod(ctx: &TcContext, ip: &Ip) -> Reason {
    cwy_part_pod(ctx.as_ptr().cast(), from_ref(ip))
}

/// Verified by itself.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn cwy_part_pod(buffer: *mut __sk_buff, ip: *const Ip) -> Reason {
    let ctx = &TcContext::new(buffer);
    // SAFETY: the caller's reference.
    let Some(ip) = (unsafe { given(ip) }) else {
        return Reason::SnatFragment;
    };
    if ip.ttl <= 1 {
        return Reason::Fragment;
    }
    let Some(id) = id(ctx, ip, At::FROM_POD) else {
        return Reason::Fragment;
    };
    if !ip.is_first {
        return match recall(id) {
            Some(first) if first.nat != Nat::NONE => follow(ctx, ip, first),
            Some(_) => Reason::Fragment,
            None => {
                // It has overtaken its first one, which must not be carried past it: conntrack puts them together.
                by_the_stack(id);
                Reason::Fragment
            }
        };
    }
    let Ok(transport) = packet::read_first_transport(ctx, ip) else {
        return Reason::Fragment;
    };
    let key = packet::key(ip, &transport);
    match flow(&key) {
        Some(_) if recall(id).is_some_and(|late| late.nat == Nat::NONE) => Reason::Fragment,
        Some(entry)
            if entry.state == State::CARRIED
                && entry.nat == Nat::SOURCE
                && entry.is_for(transport.role(ip), ip.protocol)
                && entry.in_ifindex == skb(ctx).ifindex
                && ip.total_len <= entry.mtu =>
        {
            lead(ctx, ip, &key, id, entry)
        }
        _ => Reason::Fragment,
    }
}

/// From the wire. [`Reason::OtherProtocol`] if it is not about a translated flow.
#[inline(always)]
pub fn from_uplink(ctx: &TcContext, ip: &Ip, round: u16) -> Reason {
    cwy_part_wire(ctx.as_ptr().cast(), from_ref(ip), u32::from(round))
}

/// Verified by itself.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn cwy_part_wire(buffer: *mut __sk_buff, ip: *const Ip, round: u32) -> Reason {
    let ctx = &TcContext::new(buffer);
    // SAFETY: the caller's reference.
    let Some(ip) = (unsafe { given(ip) }) else {
        return Reason::OtherProtocol;
    };
    let round = round as u16;
    let Some(id) = id(ctx, ip, At::FROM_UPLINK) else {
        return Reason::OtherProtocol;
    };
    if !ip.is_first {
        return match recall(id) {
            Some(first) if first.nat != Nat::NONE => follow(ctx, ip, first),
            Some(_) => Reason::OtherProtocol,
            None => wait(ctx, ip, round),
        };
    }
    let Ok(transport) = packet::read_first_transport(ctx, ip) else {
        return Reason::OtherProtocol;
    };
    let key = packet::key(ip, &transport);
    match flow(&key) {
        Some(entry)
            if entry.state != State::OFFERED
                && entry.nat == Nat::DESTINATION
                && entry.is_for(transport.role(ip), ip.protocol) =>
        {
            lead(ctx, ip, &key, id, entry)
        }
        _ => {
            // The node's own, or a pod's without translation: the rest need not wait.
            by_the_stack(id);
            Reason::OtherProtocol
        }
    }
}

/// A later fragment that leaves the uplink, with a pod as its source.
#[inline(always)]
pub fn to_uplink(ctx: &TcContext, ip: &Ip) -> Reason {
    cwy_part_out(ctx.as_ptr().cast(), from_ref(ip))
}

/// Verified by itself.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn cwy_part_out(buffer: *mut __sk_buff, ip: *const Ip) -> Reason {
    let ctx = &TcContext::new(buffer);
    // SAFETY: the caller's reference.
    let Some(ip) = (unsafe { given(ip) }) else {
        return Reason::SnatFragment;
    };
    match id(ctx, ip, At::TO_UPLINK).and_then(recall) {
        Some(first) if first.nat == Nat::SOURCE => follow(ctx, ip, first),
        Some(_) => Reason::Fragment,
        None if needs_snat(&ip.dst) => Reason::SnatFragment,
        None => Reason::Fragment,
    }
}

/// Notes at the uplink how a first fragment has left: with the address `to`, or as it was ([`Nat::NONE`]).
#[inline(never)]
pub fn left(ctx: &TcContext, ip: &Ip, nat: u8, to: &Addr) {
    if let (Some(id), Some(scratch)) = (id(ctx, ip, At::TO_UPLINK), scratch()) {
        note(&mut scratch.fragment, nat, to);
        remember(id, &scratch.fragment);
    }
}

/// A first fragment of a flow with a translation: sends it on and remembers how.
#[inline(never)]
fn lead(ctx: &TcContext, ip: &Ip, key: &Key, id: &FragmentKey<Addr>, entry: &mut Entry) -> Reason {
    let Some(scratch) = scratch() else {
        return Reason::RewriteFailed;
    };
    let moves_on = entry.state == State::CARRIED && ip.ttl > 1;
    let first = &mut scratch.fragment;
    note(first, entry.nat, &entry.nat_addr);
    if moves_on {
        first.exit = entry.exit;
        first.out_ifindex = entry.out_ifindex;
        first.out_dst_mac = entry.out_dst_mac;
        first.out_src_mac = entry.out_src_mac;
    }
    let to = translation(entry);
    entry.last_seen = now();
    remember(id, first);
    if translate(ctx, ip, key, &to).is_err() {
        return Reason::RewriteFailed;
    }
    if moves_on {
        move_on(ctx, ip, first)
    } else {
        Reason::KernelFlowTranslated
    }
}

/// A later fragment goes the way of the first.
#[inline(never)]
fn follow(ctx: &TcContext, ip: &Ip, first: &Remembered) -> Reason {
    let Some(scratch) = scratch() else {
        return Reason::RewriteFailed;
    };
    // Copied before any helper call: the element may be another datagram's afterwards.
    scratch.fragment = *first;
    let first = &scratch.fragment;
    let to = Translation::new(first.nat, first.nat_addr, [0; 2]);
    if translate_alone(ctx, ip, &to).is_err() {
        return Reason::RewriteFailed;
    }
    if first.exit != Exit::STACK && ip.ttl > 1 {
        return move_on(ctx, ip, first);
    }
    if to.nat == Nat::SOURCE {
        Reason::SnatKernel
    } else {
        Reason::KernelFlowTranslated
    }
}

/// Sends a fragment on that has been translated.
#[inline(never)]
fn move_on(ctx: &TcContext, ip: &Ip, first: &Remembered) -> Reason {
    match step(ctx, ip, Macs::new(first.out_dst_mac, first.out_src_mac)) {
        Ok(()) => redirect(ctx, first.exit, first.out_ifindex),
        Err(Failed) => Reason::RewriteFailed,
    }
}

/// A later fragment for the node whose first one has not come: it is received again, behind what has arrived
/// meanwhile. Reordering on a link is by a few packets; after [`ROUNDS`] the stack has it, which it may be for.
#[inline(always)]
fn wait(ctx: &TcContext, ip: &Ip, round: u16) -> Reason {
    if config().is_none_or(|config| config.node_addr != ip.dst) {
        return Reason::OtherProtocol;
    }
    if round >= ROUNDS {
        bump(Hook::FromUplink, Reason::FragmentAlone);
        return Reason::OtherProtocol;
    }
    packet::set_tag(ctx, waiting_tag(round + 1));
    // SAFETY: the helper takes integers only.
    unsafe { bpf_redirect(skb(ctx).ifindex, u64::from(BPF_F_INGRESS)) };
    Reason::FragmentWaits
}

/// What tells the fragments of a packet apart at a hook: the fields of its [`FragmentKey`], which is in the scratch.
#[inline(always)]
fn id(ctx: &TcContext, ip: &Ip, at: u8) -> Option<&'static FragmentKey<Addr>> {
    let key = &mut scratch()?.fragment_key;
    key.src = ip.src;
    key.dst = ip.dst;
    key.id = fragment_id(ctx, ip)?;
    key.protocol = ip.protocol;
    key.at = at;
    Some(key)
}

#[inline(always)]
fn recall(id: &FragmentKey<Addr>) -> Option<&'static Remembered> {
    // SAFETY: the kernel returns a valid element or null, valid until the program ends; it is written as a whole.
    let first = FRAGS.get_ptr(id).map(|first| unsafe { &*first })?;
    first.is_current(now()).then_some(first)
}

/// Notes that the datagram's fragments are the stack's.
#[inline(always)]
fn by_the_stack(id: &FragmentKey<Addr>) {
    if let Some(scratch) = scratch() {
        note(&mut scratch.fragment, Nat::NONE, &Addr::UNSPECIFIED);
        remember(id, &scratch.fragment);
    }
}

/// What is known of a datagram whose fragments go by the stack.
#[inline(always)]
fn note(first: &mut Remembered, nat: u8, addr: &Addr) {
    *first = Remembered {
        nat,
        exit: Exit::STACK,
        _pad: [0; 2],
        out_ifindex: 0,
        out_dst_mac: [0; 6],
        out_src_mac: [0; 6],
        nat_addr: *addr,
        first_seen: now(),
    };
}

/// A failure costs the rest of the datagram: its fragments are treated as if they had come first.
#[inline(always)]
fn remember(id: &FragmentKey<Addr>, first: &Remembered) {
    FRAGS.insert(id, first, u64::from(BPF_ANY)).ok();
}
