//! `cwy_to_uplink`: tc egress on the uplink, the last place before the wire. A pod's packet that needs translation
//! leaves translated or not at all.

use aya_ebpf::{btf_maps::lpm_trie, programs::TcContext};
use causeway_common::{
    addr::Address,
    decide::{Role, is_guarded, masquerade},
    flow::{Flags, Hop, Nat, State, keeps_address},
    maps::{Config, PodEntry},
    reason::Reason,
    tuple::{TAG_CARRIED, TAG_NONE, TCP, has_ports},
};

use crate::{
    carry::{note_progress, translation},
    count::Hook,
    forget::kept_flags,
    fragment, heal, host, icmp,
    learn::{Emitted, learn},
    maps::{Addr, Entry, Key, RANGES, config, flow, iface, is_idle, now, pod},
    next_hop,
    packet::{self, Ip, Transport, skb},
    rewrite::{Translation, translate},
    snat::{self, Claim},
};

/// `None` for a packet that one of our ingress hooks has carried here: it is counted there.
#[inline(always)]
pub fn handle(ctx: &TcContext) -> Option<Reason> {
    if packet::tag(ctx) == TAG_CARRIED {
        packet::set_tag(ctx, TAG_NONE);
        return None;
    }
    packet::linearise_headers(ctx);
    Some(classify(ctx).unwrap_or_else(|reason| reason))
}

#[inline(always)]
fn classify(ctx: &TcContext) -> Result<Reason, Reason> {
    let ip = match packet::ip(ctx) {
        Ok(ip) => ip,
        Err(reason) => return Err(judge_unparsed(ctx, reason)),
    };
    let config = config().ok_or(Reason::NotFromPod)?;
    if !ip.is_first && has_ports(ip.protocol) {
        return match sender(ctx, config, &ip, None)? {
            Some(_) => Ok(fragment::to_uplink(ctx, &ip)),
            None => Ok(Reason::Fragment),
        };
    }
    let transport = match packet::first_transport(ctx, &ip) {
        Ok(transport) => transport,
        Err(Reason::OtherProtocol) if !has_ports(ip.protocol) => Transport::PORTLESS,
        Err(reason) => {
            return match sender(ctx, config, &ip, None)? {
                Some(_) => without_ports(ctx, config, &ip, reason),
                None if reason == Reason::OtherProtocol => Ok(icmp::to_uplink(ctx, config, &ip)),
                None => Ok(reason),
            };
        }
    };
    match sender(ctx, config, &ip, Some(transport.dst_port()))? {
        Some(pod) => Ok(of_pod(ctx, config, pod, &ip, &transport)),
        None if ip.is_fragment && has_ports(ip.protocol) => Ok(Reason::Fragment),
        None => Ok(host::to_uplink(ctx, config, &ip, &transport)),
    }
}

/// The pod that sends the packet; `None` for the node itself.
#[inline(always)]
fn sender(
    ctx: &TcContext,
    config: &Config<Addr>,
    ip: &Ip,
    dst_port: Option<[u8; 2]>,
) -> Result<Option<&'static PodEntry>, Reason> {
    let guarded = is_guarded(ip.dst, ip.protocol, dst_port);
    let Some(pod) = pod(&ip.src) else {
        // The kernel may have translated both ends; the interface of arrival still tells that a pod is behind it.
        if guarded && iface(skb(ctx).ingress_ifindex).is_some() {
            return Err(Reason::Wireserver);
        }
        return if ip.src == config.node_addr {
            Ok(None)
        } else {
            Err(Reason::NotFromPod)
        };
    };
    if guarded {
        return Err(Reason::Wireserver);
    }
    if pod.flags & PodEntry::DEPARTED != 0 {
        return Err(Reason::PodDeparted);
    }
    Ok(Some(pod))
}

/// A pod's packet that has no ports: an ICMP error, another protocol, or nonsense.
#[inline(always)]
fn without_ports(ctx: &TcContext, config: &Config<Addr>, ip: &Ip, reason: Reason) -> Result<Reason, Reason> {
    if reason == Reason::OtherProtocol {
        let error = icmp::to_uplink(ctx, config, ip);
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
fn judge_unparsed(ctx: &TcContext, reason: Reason) -> Reason {
    match packet::addr_at(ctx, packet::IP_SRC) {
        Some(src) if reason == Reason::Malformed && pod(&src).is_some() => Reason::SnatMalformed,
        _ => reason,
    }
}

/// In a frame of its own, as the node's packets: together they leave no room for what they call.
#[inline(never)]
fn of_pod(ctx: &TcContext, config: &Config<Addr>, pod: &PodEntry, ip: &Ip, transport: &Transport) -> Reason {
    from_pod(ctx, config, pod, ip, transport).unwrap_or_else(|reason| reason)
}

#[inline(always)]
fn from_pod(
    ctx: &TcContext,
    config: &Config<Addr>,
    pod: &PodEntry,
    ip: &Ip,
    transport: &Transport,
) -> Result<Reason, Reason> {
    let key = packet::key(ip, transport);
    let role = transport.role(ip);
    let unchanged = packet::tag(ctx) == key.tag(config.seed) && skb(ctx).vlan_present == 0;
    let entry = flow(&key);
    let mut keeps_its_address = false;
    let mut offered = false;
    let mut kept = 0;
    let is_known = entry.is_some();
    if let Some(entry) = entry {
        // A SYN after the end opens a new connection: it claims its port anew.
        let reopens = ip.protocol == TCP && role == Role::Opens && entry.progress().is_over();
        if entry.nat == Nat::SOURCE && entry.nat_addr == config.node_addr && !reopens {
            return known(ctx, ip, transport, &key, role, unchanged, entry);
        }
        // Without ports no ingress hook has looked at the entry's age.
        let is_stale = !has_ports(ip.protocol) && is_idle(&key, entry, now());
        keeps_its_address = !is_stale && keeps_address(entry, role, ip.protocol);
        kept = kept_flags(Some(entry));
        offered = entry.state == State::OFFERED && entry.has(Flags::WENT_UP);
    }
    let keeps = keeps_its_address || !needs_snat(&key.dst);
    if keeps && ip.is_fragment {
        // The stack has put the tag on no fragment, so nothing is learnt from one.
        fragment::left(ip, Nat::NONE, &config.node_addr);
        return Ok(Reason::Fragment);
    }
    if keeps {
        return Ok(keep_address(
            ctx,
            config,
            &key,
            role,
            unchanged && pod.may_be_carried(),
        ));
    }
    if !pod.is_ready() || config.node_addr == Addr::UNSPECIFIED {
        return Err(Reason::SnatNotReady);
    }
    let claim = Claim {
        of_pod: true,
        carried: unchanged && offered && pod.may_be_carried(),
        opens: role == Role::Opens,
        is_counted: kept & Flags::COUNTED != 0,
        is_known,
    };
    let port = match snat::claim(ctx, &key, &claim) {
        Err(Reason::SnatNoPort) if !has_ports(ip.protocol) => return Err(Reason::SnatProtocol),
        claimed => claimed?,
    };
    let to = Translation {
        nat: Nat::SOURCE,
        addr: config.node_addr,
        port,
    };
    if ip.is_fragment {
        fragment::left(ip, Nat::SOURCE, &config.node_addr);
    }
    translate(ctx, ip, &key, &to).map_err(|_failed| Reason::RewriteFailed)?;
    Ok(if claim.carried {
        Reason::SnatPromoted
    } else {
        Reason::SnatKernel
    })
}

/// A packet that leaves with the pod's address: only its flow is learnt.
#[inline(never)]
fn keep_address(ctx: &TcContext, config: &Config<Addr>, key: &Key, role: Role, unchanged: bool) -> Reason {
    let mut hop = Hop::UNKNOWN;
    next_hop::of_frame(ctx, config, key, &mut hop);
    learn(&Emitted {
        hook: Hook::ToUplink,
        key,
        role,
        unchanged,
        hop,
        answer_flags: 0,
    })
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
        fragment::left(ip, Nat::SOURCE, &to.addr);
    }
    if entry.last_seen != now() && !heal::answers_of(key, entry) {
        return Err(Reason::SnatNoMapping);
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
    masquerade(RANGES.get(&lpm_trie::Key::new(<Addr as Address>::BITS, *dst)))
}
