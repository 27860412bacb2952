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
    flow::{Exit, Hop, Nat, State},
    fragment::{At, FragmentEntry, FragmentKey, ROUNDS, waiting_tag},
    reason::Reason,
};

use crate::{
    carry::redirect,
    count::{Hook, bump},
    family::maps::FRAGS,
    given::given,
    maps::{Addr, Entry, Key, config, flow, now},
    masquerade::needs_snat,
    packet::{self, Ip, skb},
    rewrite::{Failed, Macs, Translation, forward, forward_addr},
    translate::{translate, translate_addr, translation},
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
    let id = id(ip, At::FROM_POD);
    if !ip.is_first {
        return match recall(&id) {
            Some(first) if first.nat != Nat::NONE => follow(ctx, ip, first),
            Some(_) => Reason::Fragment,
            None => {
                // It has overtaken its first one, which must not be carried past it: conntrack puts them together.
                by_the_stack(&id);
                Reason::Fragment
            }
        };
    }
    let Ok(transport) = packet::read_first_transport(ctx, ip) else {
        return Reason::Fragment;
    };
    let key = packet::key(ip, &transport);
    match flow(&key) {
        Some(_) if recall(&id).is_some_and(|late| late.nat == Nat::NONE) => Reason::Fragment,
        Some(entry)
            if entry.state == State::CARRIED
                && entry.nat == Nat::SOURCE
                && entry.is_for(transport.role(ip), ip.protocol)
                && entry.in_ifindex == skb(ctx).ifindex
                && ip.total_len <= entry.mtu =>
        {
            lead(ctx, ip, &key, &id, entry)
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
    let id = id(ip, At::FROM_UPLINK);
    if !ip.is_first {
        return match recall(&id) {
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
            lead(ctx, ip, &key, &id, entry)
        }
        _ => {
            // The node's own, or a pod's without translation: the rest need not wait.
            by_the_stack(&id);
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
    match recall(&id(ip, At::TO_UPLINK)) {
        Some(first) if first.nat == Nat::SOURCE => follow(ctx, ip, first),
        Some(_) => Reason::Fragment,
        None if needs_snat(&ip.dst) => Reason::SnatFragment,
        None => Reason::Fragment,
    }
}

/// Notes at the uplink how a first fragment has left: with the address `to`, or as it was ([`Nat::NONE`]).
#[inline(never)]
pub fn left(ip: &Ip, nat: u8, to: &Addr) {
    let to = Translation::new(nat, *to, [0; 2]);
    remember(&id(ip, At::TO_UPLINK), &Hop::UNKNOWN, &to);
}

/// A first fragment of a flow with a translation: sends it on and remembers how.
#[inline(always)]
fn lead(ctx: &TcContext, ip: &Ip, key: &Key, id: &FragmentKey<Addr>, entry: &mut Entry) -> Reason {
    let (hop, to) = (hop(entry), translation(entry));
    entry.last_seen = now();
    if entry.state == State::CARRIED && ip.ttl > 1 {
        remember(id, &hop, &to);
        return match forward(ctx, ip, key, &to, Macs::new(hop.dst_mac, hop.src_mac)) {
            Ok(()) => redirect(ctx, hop.exit, hop.ifindex),
            Err(Failed) => Reason::RewriteFailed,
        };
    }
    remember(id, &Hop::UNKNOWN, &to);
    match translate(ctx, ip, key, &to) {
        Ok(()) => Reason::KernelFlowTranslated,
        Err(Failed) => Reason::RewriteFailed,
    }
}

/// A later fragment goes the way of the first.
#[inline(always)]
fn follow(ctx: &TcContext, ip: &Ip, first: &Remembered) -> Reason {
    let to = Translation::new(first.nat, first.nat_addr, [0; 2]);
    let (exit, ifindex) = (first.exit, first.out_ifindex);
    let macs = Macs::new(first.out_dst_mac, first.out_src_mac);
    if exit == Exit::STACK || ip.ttl <= 1 {
        return match translate_addr(ctx, ip, &to) {
            Ok(()) if to.nat == Nat::SOURCE => Reason::SnatKernel,
            Ok(()) => Reason::KernelFlowTranslated,
            Err(Failed) => Reason::RewriteFailed,
        };
    }
    match forward_addr(ctx, ip, &to, macs) {
        Ok(()) => redirect(ctx, exit, ifindex),
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

#[inline(always)]
fn id(ip: &Ip, at: u8) -> FragmentKey<Addr> {
    FragmentKey {
        src: ip.src,
        dst: ip.dst,
        id: ip.id,
        protocol: ip.protocol,
        at,
    }
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
    let unchanged = Translation::new(Nat::NONE, [0; 4], [0; 2]);
    remember(id, &Hop::UNKNOWN, &unchanged);
}

/// A failure costs the rest of the datagram: its fragments are treated as if they had come first.
#[inline(always)]
fn remember(id: &FragmentKey<Addr>, hop: &Hop, to: &Translation) {
    let first = Remembered {
        nat: to.nat,
        exit: hop.exit,
        _pad: [0; 2],
        out_ifindex: hop.ifindex,
        out_dst_mac: hop.dst_mac,
        out_src_mac: hop.src_mac,
        nat_addr: to.addr,
        first_seen: now(),
    };
    FRAGS.insert(id, first, u64::from(BPF_ANY)).ok();
}

/// Where the entry sends its packets.
#[inline(always)]
fn hop(entry: &Entry) -> Hop {
    Hop {
        exit: entry.exit,
        flags: 0,
        mtu: entry.mtu,
        ifindex: entry.out_ifindex,
        dst_mac: entry.out_dst_mac,
        src_mac: entry.out_src_mac,
    }
}
