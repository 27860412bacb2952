//! A pod's packet at the uplink: masqueraded, balanced over backends, or left with the pod's address.

use core::ptr::{from_mut, from_ref};

use aya_ebpf::{EbpfContext as _, bindings::__sk_buff, programs::TcContext};
use causeway_common::{
    addr::Address as _,
    decide::{Role, masquerade},
    flow::{Flags, Nat, State, keeps_address},
    maps::{Config, PodEntry},
    reason::Reason,
    tuple::TCP,
};

use crate::{
    balance,
    carry::note_progress,
    family::{IP_SRC, addr_at, maps::range_of},
    forget::kept_flags,
    fragment,
    given::{given, given_mut},
    heal, icmp,
    maps::{Addr, Entry, Key, config, flow, is_idle, now, pod},
    packet::{self, Ip, Transport, skb},
    snat::{self, Claim},
    to_uplink::keep_address,
    translate::{translate, translation},
};

/// In frames of their own, as the node's packets: together they leave no room for what they call.
#[inline(always)]
pub fn of_pod(ctx: &TcContext, pod: &PodEntry, ip: &Ip, transport: &Transport) -> Reason {
    let skb = ctx.as_ptr().cast();
    let mut seen = 0;
    match cwy_known(skb, from_ref(ip), from_ref(transport), from_mut(&mut seen)) {
        NOT_KNOWN => {
            let is_ready = if pod.is_ready() { Seen::READY } else { 0 };
            let may_be_carried = if pod.may_be_carried() { Seen::CARRIABLE } else { 0 };
            let seen = seen | is_ready | may_be_carried;
            match to_api_server(ctx, ip, transport, seen) {
                balance::NOT_OURS => cwy_not_known(skb, from_ref(ip), from_ref(transport), seen),
                reason => reason,
            }
        }
        reason => reason,
    }
}

/// What may be a matter of the API server's: what has a backend, opens a connection, or is of one that nobody knows.
#[inline(always)]
fn to_api_server(ctx: &TcContext, ip: &Ip, transport: &Transport, seen: u32) -> Reason {
    if transport.role(ip) != Role::Opens && seen & (Seen::KNOWN | Seen::BALANCED) == Seen::KNOWN {
        return balance::NOT_OURS;
    }
    let carriable = Seen::UNCHANGED | Seen::OFFERED | Seen::CARRIABLE;
    let from = if seen & carriable == carriable {
        balance::From::POD | balance::From::CARRIABLE
    } else {
        balance::From::POD
    };
    balance::to_api_server(ctx, ip, transport, from)
}

/// What is said of a packet whose flow has lost its port: its entry has to [go](crate::nat::settle). No other packet that
/// leaves has this reason.
pub const LOST: Reason = Reason::AddressChanged;

/// What [`cwy_known`] says of a packet whose flow has no translation. No other packet has this reason.
const NOT_KNOWN: Reason = Reason::MidFlow;

/// What has been seen of a packet whose flow has no translation: bits of a word.
struct Seen;

impl Seen {
    /// It came out of the stack as it went in.
    const UNCHANGED: u32 = 1;
    /// Its flow keeps the pod's address.
    const KEEPS_ADDRESS: u32 = 2;
    /// Its flow was offered, and went up.
    const OFFERED: u32 = 4;
    /// Its flow counts towards the pod's quota.
    const COUNTED: u32 = 8;
    /// Its flow has an entry.
    const KNOWN: u32 = 16;
    /// [`PodEntry::is_ready`] of its pod.
    const READY: u32 = 32;
    /// [`PodEntry::may_be_carried`] of its pod.
    const CARRIABLE: u32 = 64;
    /// [`balance::is_ours`] of its flow's entry.
    const BALANCED: u32 = 128;
}

/// A pod's packet whose flow has its translation; of another one [`NOT_KNOWN`], and in `seen` bits of [`Seen`]. Verified
/// by itself.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn cwy_known(
    buffer: *mut __sk_buff,
    ip: *const Ip,
    transport: *const Transport,
    seen: *mut u32,
) -> Reason {
    let ctx = &TcContext::new(buffer);
    // SAFETY: the caller's references, null at worst; `seen` is the caller's own word, which nobody else holds.
    let (ip, transport, seen) = unsafe { (given(ip), given(transport), given_mut(seen)) };
    let (Some(ip), Some(transport), Some(seen), Some(config)) = (ip, transport, seen, config()) else {
        return Reason::SnatNotReady;
    };
    let key = packet::key(ip, transport);
    let unchanged = packet::tag(ctx) == key.tag(config.seed) && skb(ctx).vlan_present == 0;
    let mut bits = if unchanged { Seen::UNCHANGED } else { 0 };
    if let Some(entry) = flow(&key) {
        let is_translated = entry.nat == Nat::SOURCE && entry.nat_addr == config.node_addr;
        let role = transport.role(ip);
        // A SYN after the end opens a new connection: it claims its port anew.
        let reopens = ip.protocol == TCP && role == Role::Opens && entry.progress().is_over();
        if is_translated && !entry.is_for(role, ip.protocol) {
            return Reason::SnatNoMapping;
        }
        if is_translated && !reopens && entry.state != State::RESET {
            return known(ctx, ip, transport, &key, role, unchanged, entry).unwrap_or_else(|reason| reason);
        }
        bits |= if balance::is_ours(entry) {
            Seen::KNOWN | Seen::BALANCED
        } else {
            Seen::KNOWN
        };
        // Without ports no ingress hook has looked at the entry's age.
        let is_stale = ip.is_portless() && is_idle(&key, entry, now());
        if !is_stale && keeps_address(entry, role, ip.protocol) {
            bits |= Seen::KEEPS_ADDRESS;
        }
        if kept_flags(Some(entry)) & Flags::COUNTED != 0 {
            bits |= Seen::COUNTED;
        }
        if entry.state == State::OFFERED && entry.has(Flags::WENT_UP) {
            bits |= Seen::OFFERED;
        }
    }
    *seen = bits;
    NOT_KNOWN
}

/// A pod's packet whose flow has no translation; `seen`: bits of [`Seen`]. Verified by itself.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn cwy_not_known(
    skb: *mut __sk_buff,
    ip: *const Ip,
    transport: *const Transport,
    seen: u32,
) -> Reason {
    // SAFETY: the caller's references.
    let (Some(ip), Some(transport), Some(config)) =
        (unsafe { given(ip) }, unsafe { given(transport) }, config())
    else {
        return Reason::SnatNotReady;
    };
    let ctx = &TcContext::new(skb);
    not_known(ctx, config, ip, transport, seen).unwrap_or_else(|reason| reason)
}

#[inline(always)]
fn not_known(
    ctx: &TcContext,
    config: &Config<Addr>,
    ip: &Ip,
    transport: &Transport,
    seen: u32,
) -> Result<Reason, Reason> {
    let has = |bits| seen & bits == bits;
    let key = packet::key(ip, transport);
    let role = transport.role(ip);
    if has(Seen::KEEPS_ADDRESS) || !needs_snat(&key.dst) {
        if ip.is_fragment {
            // The stack has put the tag on no fragment, so nothing is learnt from one.
            fragment::left(ctx, ip, Nat::NONE, &config.node_addr);
            return Ok(Reason::Fragment);
        }
        return Ok(keep_address(
            ctx,
            &key,
            role,
            has(Seen::UNCHANGED | Seen::CARRIABLE),
        ));
    }
    if !has(Seen::READY) || config.node_addr == Addr::UNSPECIFIED {
        return Err(Reason::SnatNotReady);
    }
    if ip.protocol == Addr::ICMP && role == Role::Answers {
        // Only questions are translated.
        return Err(Reason::SnatNoMapping);
    }
    let claim = Claim {
        of_pod: true,
        carried: has(Seen::UNCHANGED | Seen::OFFERED | Seen::CARRIABLE),
        opens: role == Role::Opens,
        is_counted: has(Seen::COUNTED),
        is_known: has(Seen::KNOWN),
    };
    snat::ask(&key, &claim)
}

/// A packet of a flow that has its translation.
#[inline(always)]
fn known(
    ctx: &TcContext,
    ip: &Ip,
    transport: &Transport,
    key: &Key,
    role: Role,
    unchanged: bool,
    entry: &mut Entry,
) -> Result<Reason, Reason> {
    let is_carried = entry.state == State::CARRIED;
    if is_carried && role == Role::Opens && !unchanged && !ip.is_fragment {
        return Err(Reason::SnatCollision);
    }
    let to = translation(entry);
    if ip.is_fragment {
        fragment::left(ctx, ip, Nat::SOURCE, &to.addr);
    }
    if entry.last_seen != now() && !heal::answers_of(key, entry) {
        return Err(LOST);
    }
    entry.last_seen = now();
    note_progress(key, entry, transport);
    translate(ctx, ip, key, &to).map_err(|_failed| Reason::RewriteFailed)?;
    Ok(if is_carried {
        Reason::CarriedTakesStack
    } else {
        Reason::SnatKernel
    })
}

#[inline(always)]
pub fn needs_snat(dst: &Addr) -> bool {
    config().is_none_or(|config| masquerade(range_of(config, dst)))
}

/// A pod's packet that has no ports: an ICMP error, another protocol, or nonsense.
#[inline(always)]
pub fn without_ports(ctx: &TcContext, ip: &Ip, reason: Reason) -> Result<Reason, Reason> {
    if reason == Reason::OtherProtocol {
        let error = icmp::to_uplink(ctx, ip);
        if error != Reason::OtherProtocol {
            return Ok(error);
        }
    }
    if !needs_snat(&ip.dst) {
        return Err(reason);
    }
    Err(if reason == Reason::OtherProtocol {
        Reason::SnatProtocol
    } else {
        Reason::SnatMalformed
    })
}

/// A header that contradicts itself still shows a source. The kernel forwards no such packet; if one comes all the
/// same, it is not sent with a pod's address.
#[inline(always)]
pub fn judge_unparsed(ctx: &TcContext, reason: Reason) -> Reason {
    if reason != Reason::Malformed {
        return reason;
    }
    // Zeros are no pod's address.
    let src = addr_at(ctx, IP_SRC).unwrap_or(Addr::UNSPECIFIED);
    pod(&src).map_or(reason, |_| Reason::SnatMalformed)
}
