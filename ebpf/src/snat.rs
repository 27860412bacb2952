//! Claims a port for a new translated flow. The line that picks a port is in [`claim`].
//!
//! The reverse entry is the claim: it is inserted with `BPF_NOEXIST`, so the table itself decides who gets a port
//! and nothing is looked up first. Then comes the forward entry; if that fails, the claim is taken back.

use aya_ebpf::{
    EbpfContext as _,
    bindings::{BPF_ANY, BPF_F_CURRENT_NETNS, BPF_NOEXIST, bpf_sock_tuple},
    helpers::generated::{bpf_sk_lookup_udp, bpf_sk_release, bpf_skc_lookup_tcp},
    programs::TcContext,
};
use causeway_common::{
    flow::{Exit, Flags, Hop, Nat, Progress, State},
    maps::{Config, PodEntry},
    ports::{PROBES, candidate, candidate_id, reserved_bit},
    reason::Reason,
    tuple::{ICMP, TCP, UDP},
};

use crate::{
    count::{Hook, bump},
    maps::{Addr, Entry, FLOWS, Key, PORTS, flow, now},
};

/// `-EEXIST` of `bpf_map_update_elem`.
const EEXIST: i32 = -17;
/// `-EBUSY`: the bucket's lock is held on this CPU by a program that we interrupted.
const EBUSY: i32 = -16;

/// What is claimed.
pub struct Claim {
    /// The flow as it comes from the pod (or from the node's own socket).
    pub key: Key,
    /// Both entries are carried; otherwise they are the kernel's.
    pub carried: bool,
    /// The packet may open a flow. Otherwise only a mapping that exists is found.
    opens: bool,
    /// The forward entry, without its translation.
    forward: Entry,
    /// The reverse entry.
    reverse: Entry,
}

impl Claim {
    /// For a flow of a pod.
    #[inline(always)]
    pub fn for_pod(key: &Key, pod: &PodEntry, uplink: &Hop, carried: bool, opens: bool) -> Self {
        let to_pod = Hop {
            exit: Exit::POD,
            mtu: pod.mtu,
            ifindex: pod.ifindex,
            dst_mac: pod.mac,
            src_mac: pod.host_mac,
        };
        let state = if carried { State::CARRIED } else { State::KERNEL };
        let mut claim = Self::of(key, Flags::WENT_UP, opens);
        claim.carried = carried;
        claim.forward = Entry { state, in_ifindex: pod.ifindex, in_mac: pod.mac, ..claim.forward.leaving_by(uplink) };
        claim.reverse = Entry { state, in_ifindex: uplink.ifindex, ..claim.reverse.leaving_by(&to_pod) };
        claim
    }

    /// For a flow of the node itself.
    #[inline(always)]
    pub fn for_host(key: &Key) -> Self {
        Self::of(key, Flags::HOST, true)
    }

    #[inline(always)]
    fn of(key: &Key, flags: u8, opens: bool) -> Self {
        let kernel = Entry::kernel(flags, now());
        let awaiting = Progress::NONE.and_peer(Progress::SPOKE).bits();
        let reverse = Entry {
            nat: Nat::DESTINATION,
            nat_addr: key.src,
            nat_port: key.src_port,
            progress: awaiting,
            ..kernel
        };
        Self { key: *key, carried: false, opens, forward: kernel, reverse }
    }
}

/// Claims a port and writes both entries. Returns the port, network order.
#[inline(never)]
pub fn claim(ctx: &TcContext, config: &Config<Addr>, claim: &Claim) -> Result<[u8; 2], Reason> {
    let port = reserve(ctx, config, claim)?;
    let forward = Entry { nat: Nat::SOURCE, nat_addr: config.node_addr, nat_port: port, ..claim.forward };
    if FLOWS.insert(claim.key, forward, u64::from(BPF_ANY)).is_err() {
        if FLOWS.remove(answer_key(config, claim, port)).is_err() {}
        return Err(Reason::SnatTableFull);
    }
    Ok(port)
}

/// Walks the candidates until one is ours.
#[inline(always)]
fn reserve(ctx: &TcContext, config: &Config<Addr>, claim: &Claim) -> Result<[u8; 2], Reason> {
    let key = &claim.key;
    let own = u16::from_be_bytes(key.src_port);
    let hash = key.hash(config.seed);
    let mut attempt = 0;
    while attempt < PROBES {
        let port = if key.protocol == ICMP { candidate_id(own, hash, attempt) } else { candidate(own, hash, attempt) };
        let answer = answer_key(config, claim, port.to_be_bytes());
        match try_port(ctx, config, claim, port, &answer) {
            Attempt::Ours => return Ok(port.to_be_bytes()),
            Attempt::Taken => {}
            Attempt::TableFull => return Err(Reason::SnatTableFull),
        }
        attempt += 1;
    }
    Err(if claim.opens { Reason::SnatNoPort } else { Reason::SnatNoMapping })
}

enum Attempt {
    Ours,
    Taken,
    TableFull,
}

/// Tries to make one port ours.
#[inline(never)]
fn try_port(ctx: &TcContext, config: &Config<Addr>, claim: &Claim, port: u16, answer: &Key) -> Attempt {
    if let Some(owner) = flow(answer) {
        let is_ours = owner.nat == Nat::DESTINATION
            && owner.nat_addr == claim.key.src
            && owner.nat_port == claim.key.src_port;
        if is_ours {
            // Another CPU was first with a packet of this very flow, or its forward half was lost.
            if claim.opens && FLOWS.insert(answer, claim.reverse, u64::from(BPF_ANY)).is_err() {}
            return Attempt::Ours;
        }
        if !claim.opens || !is_over(config, answer, owner) {
            return Attempt::Taken;
        }
        // A mapping nobody uses any more. Its two halves go together.
        let forward = owner.peer_key(answer);
        if FLOWS.remove(answer).is_err() {}
        if FLOWS.remove(forward).is_err() {}
    }
    if !claim.opens || is_reserved(claim.key.protocol, port) || host_holds(ctx, answer) {
        return Attempt::Taken;
    }
    match FLOWS.insert(answer, claim.reverse, u64::from(BPF_NOEXIST)) {
        Ok(()) => Attempt::Ours,
        Err(EEXIST | EBUSY) => Attempt::Taken,
        Err(_) => Attempt::TableFull,
    }
}

/// Whether a mapping has expired: neither half has seen a packet within its idle time.
#[inline(always)]
fn is_over(config: &Config<Addr>, answer: &Key, owner: &Entry) -> bool {
    let now = now();
    let forward_seen = flow(&owner.peer_key(answer)).map_or(owner.last_seen, |forward| forward.last_seen);
    let expired = |seen| config.timeouts.expired(owner, answer.protocol, seen, now);
    expired(owner.last_seen) && expired(forward_seen)
}

/// NodePorts, `ip_local_reserved_ports` and whatever else userspace has reserved.
#[inline(always)]
fn is_reserved(protocol: u8, port: u16) -> bool {
    if protocol == ICMP {
        return false;
    }
    let (word, mask) = reserved_bit(protocol == UDP, port);
    PORTS.get(word).is_some_and(|word| word.reserved & mask != 0)
}

/// Whether a socket of the node would receive the answer: a connection of its own, a listener, a bound socket.
#[inline(always)]
fn host_holds(ctx: &TcContext, answer: &Key) -> bool {
    // SAFETY: integers only: all zeros is a value.
    let mut tuple: bpf_sock_tuple = unsafe { core::mem::zeroed() };
    tuple.__bindgen_anon_1.ipv4.saddr = u32::from_ne_bytes(answer.src);
    tuple.__bindgen_anon_1.ipv4.daddr = u32::from_ne_bytes(answer.dst);
    tuple.__bindgen_anon_1.ipv4.sport = u16::from_ne_bytes(answer.src_port);
    tuple.__bindgen_anon_1.ipv4.dport = u16::from_ne_bytes(answer.dst_port);
    /// Size of the IPv4 member of `bpf_sock_tuple`.
    const SIZE: u32 = 12;
    let netns = BPF_F_CURRENT_NETNS as i64 as u64;
    // SAFETY: `tuple` holds `SIZE` bytes, and the reference that a hit returns is released below.
    let socket = unsafe {
        match answer.protocol {
            TCP => bpf_skc_lookup_tcp(ctx.as_ptr(), &raw mut tuple, SIZE, netns, 0),
            UDP => bpf_sk_lookup_udp(ctx.as_ptr(), &raw mut tuple, SIZE, netns, 0),
            _ => return false,
        }
    };
    if socket.is_null() {
        return false;
    }
    // SAFETY: a non-null result holds a reference, released once.
    unsafe { bpf_sk_release(socket.cast()) };
    bump(Hook::ToUplink, Reason::PortRetried);
    true
}

/// The key under which the answer to this claim arrives.
#[inline(always)]
fn answer_key(config: &Config<Addr>, claim: &Claim, port: [u8; 2]) -> Key {
    let answer = claim.key.reversed();
    Key { dst: config.node_addr, dst_port: port, ..answer }
}
