//! Claims a port for a new translated flow. The line that picks a port is in [`try_candidate`].
//!
//! The reverse entry is the claim: it is inserted with `BPF_NOEXIST`, so the table itself decides who gets a port
//! and nothing is looked up first. Then comes the forward entry; if that fails, the claim is taken back.

use core::ffi::c_void;

use aya_ebpf::{
    EbpfContext as _,
    bindings::{BPF_ANY, BPF_F_CURRENT_NETNS, BPF_NOEXIST},
    helpers::generated::{bpf_loop, bpf_sk_lookup_udp, bpf_sk_release, bpf_skc_lookup_tcp},
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
    maps::{Addr, EEXIST, Entry, FLOWS, Key, PORTS, flow, now},
    next_hop,
    packet::skb,
};

/// `-EBUSY`: the bucket's lock is held on this CPU by a program that we interrupted.
const EBUSY: i32 = -16;

/// What is claimed, and for whom.
pub struct Claim<'a> {
    /// The flow as it comes from the pod or from the node's own socket.
    pub key: &'a Key,
    /// The pod; `None` for a flow of the node itself.
    pub pod: Option<&'a PodEntry>,
    /// Both entries are carried; otherwise they are the kernel's.
    pub carried: bool,
    /// The packet may open a flow. Otherwise only a mapping that exists is found.
    pub opens: bool,
}

/// Claims a port and writes both entries. Returns the port, network order.
#[inline(never)]
pub fn claim(ctx: &TcContext, config: &Config<Addr>, claim: &Claim<'_>) -> Result<[u8; 2], Reason> {
    let Won { port, state } = reserve(ctx, config, claim)?;
    let mut hop = Hop::UNKNOWN;
    if claim.pod.is_some() {
        next_hop::of_frame(ctx, config, claim.key, &mut hop);
    }
    if write_forward(config, claim, &Won { port, state }, &hop).is_err() {
        FLOWS.remove(answer_key(config, claim, port)).ok();
        return Err(Reason::SnatTableFull);
    }
    Ok(port)
}

#[inline(never)]
fn write_forward(config: &Config<Addr>, claim: &Claim<'_>, won: &Won, hop: &Hop) -> Result<(), i32> {
    let mut forward = Entry::kernel(claim.flags(), now());
    forward.nat = Nat::SOURCE;
    forward.nat_addr = config.node_addr;
    forward.nat_port = won.port;
    forward.state = won.state;
    if let Some(pod) = claim.pod {
        forward.in_ifindex = pod.ifindex;
        forward.in_mac = pod.mac;
        forward.leave_by(hop);
    }
    FLOWS.insert(claim.key, forward, u64::from(BPF_ANY))
}

/// Completes the reverse entry in place and in a frame of its own: 512 bytes of stack are all that the caller, the
/// walk and its callback have together.
#[inline(never)]
fn fill_reverse(reverse: &mut Entry, claim: &Claim<'_>, uplink: u32) {
    *reverse = Entry::kernel(claim.flags(), now());
    reverse.nat = Nat::DESTINATION;
    reverse.nat_addr = claim.key.src;
    reverse.nat_port = claim.key.src_port;
    reverse.progress = Progress::NONE.and_peer(Progress::SPOKE).bits();
    reverse.state = claim.state();
    if let Some(pod) = claim.pod {
        reverse.in_ifindex = uplink;
        reverse.leave_by(&Hop {
            exit: Exit::POD,
            flags: 0,
            mtu: pod.mtu,
            ifindex: pod.ifindex,
            dst_mac: pod.mac,
            src_mac: pod.host_mac,
        });
    }
}

impl Claim<'_> {
    #[inline(always)]
    fn state(&self) -> u8 {
        if self.carried {
            State::CARRIED
        } else {
            State::KERNEL
        }
    }

    #[inline(always)]
    fn flags(&self) -> u8 {
        if self.pod.is_some() {
            Flags::WENT_UP
        } else {
            Flags::HOST
        }
    }
}

/// A claimed port, and the state of both halves.
struct Won {
    port: [u8; 2],
    state: u8,
}

/// Walks the candidates until one is ours.
#[inline(always)]
fn reserve(ctx: &TcContext, config: &Config<Addr>, claim: &Claim<'_>) -> Result<Won, Reason> {
    let mut walk = Walk {
        skb: ctx.as_ptr(),
        config,
        claim,
        reverse: Entry::offer(0, [0; 6], 0),
        hash: claim.key.hash(config.seed),
        port: [0; 2],
        state: claim.state(),
        end: Reason::SnatNoPort as u8,
        skip_stale: 0,
    };
    fill_reverse(&mut walk.reverse, claim, skb(ctx).ifindex);
    walk.run();
    if walk.end == STALE {
        // Whether it can be had or not, the second walk takes no other such port.
        remove_expired(config, &answer_key(config, claim, walk.port));
        walk.skip_stale = 1;
        walk.run();
    }
    match walk.end {
        OURS => Ok(Won {
            port: walk.port,
            state: walk.state,
        }),
        end if end == Reason::SnatTableFull as u8 => Err(Reason::SnatTableFull),
        _ if claim.opens => Err(Reason::SnatNoPort),
        _ => Err(Reason::SnatNoMapping),
    }
}

/// [`Walk::end`] when a port was found. No reason has this number.
const OURS: u8 = u8::MAX;
/// [`Walk::end`] when a port belongs to a mapping that seems to have expired.
const STALE: u8 = u8::MAX - 1;

/// State of a walk over the candidates, on the stack of [`reserve`].
struct Walk<'a> {
    skb: *mut c_void,
    config: *const Config<Addr>,
    claim: *const Claim<'a>,
    reverse: Entry,
    hash: u32,
    port: [u8; 2],
    state: u8,
    /// [`OURS`], or the [`Reason`] to give if the walk ends here. A number, because an enum that the verifier sees
    /// change in a loop costs it a state for each variant.
    end: u8,
    /// 1: ports of expired mappings are passed over.
    skip_stale: u8,
}

/// Return values of a callback of `bpf_loop`.
const GO_ON: i64 = 0;
const STOP: i64 = 1;

/// Tries to make candidate number `attempt` ours.
///
/// # Safety
///
/// Called by `bpf_loop` with the [`Walk`] of [`reserve`].
#[expect(
    clippy::needless_borrows_for_generic_args,
    reason = "by value the entry would be copied to the stack"
)]
unsafe extern "C" fn try_candidate(attempt: u32, walk: *mut c_void) -> i64 {
    // SAFETY: the caller's; its pointers are those that `reserve` stored.
    let walk = unsafe { &mut *walk.cast::<Walk<'_>>() };
    // SAFETY: as above.
    let (config, claim) = unsafe { (&*walk.config, &*walk.claim) };
    let own = u16::from_be_bytes(claim.key.src_port);
    let port = match claim.key.protocol {
        TCP | UDP => candidate(own, walk.hash, attempt),
        ICMP => candidate_id(own, walk.hash, attempt),
        // No ports: there is one candidate.
        _ if attempt == 0 => 0,
        _ => return STOP,
    };
    let answer = answer_key(config, claim, port.to_be_bytes());
    walk.port = port.to_be_bytes();
    if let Some(owner) = flow(&answer) {
        if is_ours(claim, owner) {
            // The forward half was lost, or another CPU was first with a packet of this very flow.
            walk.take(claim, &answer, owner.state);
            return STOP;
        }
        let is_stale = claim.opens
            && walk.skip_stale == 0
            && config
                .timeouts
                .expired(owner, answer.protocol, owner.last_seen, now());
        if !is_stale {
            return GO_ON;
        }
        walk.end = STALE;
        return STOP;
    }
    if !claim.opens || is_reserved(claim.key.protocol, port) || host_holds(walk.skb, &answer) {
        return GO_ON;
    }
    match FLOWS.insert(answer, &walk.reverse, u64::from(BPF_NOEXIST)) {
        Ok(()) => {
            walk.end = OURS;
            STOP
        }
        Err(EEXIST | EBUSY) => match flow(&answer) {
            Some(owner) if is_ours(claim, owner) => {
                walk.end = OURS;
                walk.state = owner.state;
                STOP
            }
            _ => GO_ON,
        },
        Err(_) => {
            walk.end = Reason::SnatTableFull as u8;
            STOP
        }
    }
}

impl Walk<'_> {
    /// Walks the candidates of the flow from the first one on.
    #[inline(never)]
    fn run(&mut self) {
        self.end = Reason::SnatNoPort as u8;
        let (callback, state) = (try_candidate as *mut c_void, (&raw mut *self).cast());
        // SAFETY: the callback has the signature that the helper calls (Linux 5.17), and `self` outlives the call.
        unsafe { bpf_loop(PROBES, callback, state, 0) };
    }

    /// Takes a mapping that is the flow's own already. A packet that opens the flow starts its life again.
    #[inline(always)]
    #[expect(
        clippy::needless_borrows_for_generic_args,
        reason = "by value the entry would be copied to the stack"
    )]
    fn take(&mut self, claim: &Claim<'_>, answer: &Key, state: u8) {
        self.end = OURS;
        if claim.opens {
            FLOWS.insert(answer, &self.reverse, u64::from(BPF_ANY)).ok();
        } else {
            self.state = state;
        }
    }
}

#[inline(always)]
fn is_ours(claim: &Claim<'_>, owner: &Entry) -> bool {
    owner.nat == Nat::DESTINATION && owner.nat_addr == claim.key.src && owner.nat_port == claim.key.src_port
}

/// Takes a mapping away that nobody uses any more: both halves.
///
/// Two CPUs may judge the same mapping. The one that inserts the lock, an entry under a protocol number that no packet
/// is looked up with, judges again and removes; the other goes on to its next candidate. Without the lock a late
/// removal could take away what the first one has just claimed.
#[inline(never)]
fn remove_expired(config: &Config<Addr>, answer: &Key) {
    let lock = Key {
        protocol: RESERVED,
        ..*answer
    };
    if FLOWS
        .insert(lock, Entry::kernel(0, now()), u64::from(BPF_NOEXIST))
        .is_err()
    {
        return;
    }
    if let Some(owner) = flow(answer)
        && is_over(config, answer, owner)
    {
        FLOWS.remove(owner.peer_key(answer)).ok();
        FLOWS.remove(answer).ok();
    }
    FLOWS.remove(lock).ok();
}

/// IP protocol 255, "Reserved" at IANA.
const RESERVED: u8 = 255;

/// Whether a mapping has expired: neither half has seen a packet within its idle time. A forward half that has another
/// port meanwhile is another mapping's.
#[inline(always)]
fn is_over(config: &Config<Addr>, answer: &Key, owner: &Entry) -> bool {
    let now = now();
    let expired = |seen| config.timeouts.expired(owner, answer.protocol, seen, now);
    expired(owner.last_seen)
        && flow(&owner.peer_key(answer))
            .is_none_or(|forward| forward.nat_port != answer.dst_port || expired(forward.last_seen))
}

/// NodePorts, `ip_local_reserved_ports` and whatever else userspace has reserved.
#[inline(always)]
fn is_reserved(protocol: u8, port: u16) -> bool {
    if protocol != TCP && protocol != UDP {
        return false;
    }
    let (word, mask) = reserved_bit(protocol == UDP, port);
    PORTS.get(word).is_some_and(|word| word.reserved & mask != 0)
}

/// The IPv4 member of the kernel's `bpf_sock_tuple`, all in network order.
#[repr(C, align(4))]
struct Ipv4Tuple {
    saddr: Addr,
    daddr: Addr,
    sport: [u8; 2],
    dport: [u8; 2],
}

/// Whether a socket of the node would receive the answer: a connection of its own, a listener, a bound socket.
#[inline(always)]
fn host_holds(skb: *mut c_void, answer: &Key) -> bool {
    let mut tuple = Ipv4Tuple {
        saddr: answer.src,
        daddr: answer.dst,
        sport: answer.src_port,
        dport: answer.dst_port,
    };
    const SIZE: u32 = size_of::<Ipv4Tuple>() as u32;
    let netns = BPF_F_CURRENT_NETNS as i64 as u64;
    // SAFETY: `tuple` holds `SIZE` bytes, and the reference that a hit returns is released below.
    let socket = unsafe {
        match answer.protocol {
            TCP => bpf_skc_lookup_tcp(skb, (&raw mut tuple).cast(), SIZE, netns, 0),
            UDP => bpf_sk_lookup_udp(skb, (&raw mut tuple).cast(), SIZE, netns, 0),
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
fn answer_key(config: &Config<Addr>, claim: &Claim<'_>, port: [u8; 2]) -> Key {
    let answer = claim.key.reversed();
    Key {
        dst: config.node_addr,
        dst_port: port,
        ..answer
    }
}
