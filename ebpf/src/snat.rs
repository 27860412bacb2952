//! Claims a port for a new translated flow. The lines that pick a port are in [`try_candidate`] and [`try_crowd`], the one that makes it ours in [`cwy_try_port`].
//!
//! The reverse entry is the claim: it is inserted with `BPF_NOEXIST`, so the table itself decides who gets a port
//! and nothing is looked up first. Then comes the forward entry; if that fails, the claim is taken back.

use core::{
    ffi::c_void,
    hint::black_box,
    ptr::{from_mut, from_ref},
};

use aya_ebpf::{
    EbpfContext as _,
    bindings::{__sk_buff, BPF_ANY, BPF_F_CURRENT_NETNS, BPF_NOEXIST},
    helpers::generated::{bpf_loop, bpf_sk_lookup_udp, bpf_sk_release, bpf_skc_lookup_tcp},
    programs::TcContext,
};
use causeway_common::{
    flow::{Exit, Flags, Hop, Nat, Progress, State},
    maps::Config,
    ports::{
        CROWD_SEARCH, CROWD_TRIES, CROWDED_PROBES, PROBES, candidate, candidate_from, candidate_id,
        reserved_bit,
    },
    reason::Reason,
    tuple::{ICMP, TCP, UDP, has_ports},
};

use crate::{
    count::{Hook, bump},
    crowd,
    forget::{forget, forget_half},
    maps::{Addr, EEXIST, Entry, FLOWS, Key, PORTS, config, flow, now, pod},
    next_hop,
    reclaim::remember,
    usage,
};

/// `-EBUSY`: the bucket's lock is held on this CPU by a program that we interrupted.
const EBUSY: i32 = -16;

/// Who claims, and what may be done for it.
pub struct Claim {
    /// The flow is of a pod, whose address is the key's source; otherwise it is of the node itself.
    pub of_pod: bool,
    /// Both entries are carried; otherwise they are the kernel's.
    pub carried: bool,
    /// The packet may open a flow. Otherwise only a mapping that exists is found.
    pub opens: bool,
    /// The flow's entry counts towards the pod's quota already.
    pub is_counted: bool,
    /// The flow has an entry.
    pub is_known: bool,
}

impl Claim {
    const OF_POD: u32 = 1;
    const CARRIED: u32 = 2;
    const OPENS: u32 = 4;
    const IS_COUNTED: u32 = 8;
    const IS_KNOWN: u32 = 16;
    /// Beside the others: ports of expired mappings are passed over.
    const SKIPS_STALE: u32 = 32;

    #[inline(always)]
    fn bits(&self) -> u32 {
        u32::from(self.of_pod)
            | u32::from(self.carried) << 1
            | u32::from(self.opens) << 2
            | u32::from(self.is_counted) << 3
            | u32::from(self.is_known) << 4
    }

    #[inline(always)]
    fn of_bits(bits: u32) -> Self {
        Self {
            of_pod: bits & Self::OF_POD != 0,
            carried: bits & Self::CARRIED != 0,
            opens: bits & Self::OPENS != 0,
            is_counted: bits & Self::IS_COUNTED != 0,
            is_known: bits & Self::IS_KNOWN != 0,
        }
    }

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
        if self.of_pod { Flags::WENT_UP } else { Flags::HOST }
    }
}

/// Claims a port for the flow `key`, as it comes from the pod or from the node's own socket, and writes both entries.
/// Returns the port, network order.
///
/// In two steps beside each other, not below: 512 bytes of stack are all that a program's functions have together.
#[inline(always)]
pub fn claim(ctx: &TcContext, key: &Key, claim: &Claim) -> Result<[u8; 2], Reason> {
    let skb = ctx.as_ptr().cast();
    let won = if claim.opens {
        reserve(skb, key, claim)
    } else {
        mapping_of(key)
    };
    if won.has(Won::IS) {
        return if cwy_write_forward(skb, from_ref(key), claim.bits(), won.0) == 0 {
            Ok(won.port().to_be_bytes())
        } else {
            Err(Reason::SnatTableFull)
        };
    }
    Err(if won.0 == Reason::SnatTableFull as u32 {
        Reason::SnatTableFull
    } else if won.0 == Reason::SnatQuota as u32 {
        Reason::SnatQuota
    } else if won.0 == Reason::SnatNoPort as u32 {
        Reason::SnatNoPort
    } else {
        Reason::SnatNoMapping
    })
}

#[inline(always)]
fn reserve(skb: *mut __sk_buff, key: &Key, claim: &Claim) -> Won {
    let won = Won(cwy_reserve(skb, from_ref(key), claim.bits()));
    if !won.has(Won::IS_STALE) {
        return won;
    }
    // Whether it can be had or not, the second walk takes no other such port.
    cwy_remove_expired(from_ref(key), won.0);
    Won(cwy_reserve(skb, from_ref(key), claim.bits() | Claim::SKIPS_STALE))
}

/// What a search has found: a port in the lower half, and bits beside it. Without [`Won::IS`] or [`Won::IS_STALE`], the
/// [`Reason`] that there is none as a number.
#[derive(Clone, Copy)]
pub struct Won(pub u32);

impl Won {
    /// There is a port.
    const IS: u32 = 1 << 16;
    /// The mapping has not been there before.
    const IS_NEW: u32 = 1 << 17;
    /// The port belongs to a mapping that seems to have expired.
    const IS_STALE: u32 = 1 << 18;
    /// Where the state of the mapping begins.
    const STATE: u32 = 24;

    #[inline(always)]
    fn has(self, bit: u32) -> bool {
        self.0 & bit != 0
    }

    #[inline(always)]
    pub fn port(self) -> u16 {
        self.0 as u16
    }

    #[inline(always)]
    fn state(self) -> u8 {
        (self.0 >> Self::STATE) as u8
    }

    /// Whether there is a mapping, of a flow that is carried.
    #[inline(always)]
    pub fn is_carried(self) -> bool {
        self.has(Self::IS) && self.state() == State::CARRIED
    }
}

/// The mapping that the flow `key` has already, if any.
#[inline(always)]
pub fn mapping_of(key: &Key) -> Won {
    Won(cwy_find_mapping(from_ref(key)))
}

/// Looks for the flow's mapping among its candidates; towards a crowded remote also where the map of its ports would have
/// given it one. Verified by itself.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn cwy_find_mapping(key: *const Key) -> u32 {
    // SAFETY: the caller's reference.
    let (Some(key), Some(config)) = (unsafe { key.as_ref() }, config()) else {
        return 0;
    };
    let mut search = Lookup {
        key: *key,
        answer: answer_key(config, key, 0),
        hash: key.hash(config.seed),
        found: 0,
    };
    let state = (&raw mut search).cast();
    // SAFETY: the callback has the signature that the helper calls (Linux 5.17), and `search` outlives the call.
    unsafe { bpf_loop(PROBES, look_at_candidate as *mut c_void, state, 0) };
    if search.found == 0 && has_ports(search.key.protocol) && crowd::has_map(config, &search.answer) {
        // SAFETY: as above.
        unsafe { bpf_loop(CROWD_SEARCH, look_in_crowd as *mut c_void, state, 0) };
    }
    search.found
}

struct Lookup {
    key: Key,
    answer: Key,
    hash: u32,
    found: u32,
}

/// # Safety
///
/// Called by `bpf_loop` with a [`Lookup`].
unsafe extern "C" fn look_at_candidate(attempt: u32, search: *mut c_void) -> i64 {
    // SAFETY: the caller's.
    let search = unsafe { &mut *search.cast::<Lookup>() };
    let own = u16::from_be_bytes(search.key.src_port);
    match search.key.protocol {
        TCP | UDP => look_at(search, candidate(own, search.hash, attempt)),
        ICMP => look_at(search, candidate_id(own, search.hash, attempt)),
        _ if attempt == 0 => look_at(search, 0),
        _ => 1,
    }
}

/// # Safety
///
/// Called by `bpf_loop` with a [`Lookup`].
unsafe extern "C" fn look_in_crowd(step: u32, search: *mut c_void) -> i64 {
    // SAFETY: the caller's.
    let search = unsafe { &mut *search.cast::<Lookup>() };
    let own = u16::from_be_bytes(search.key.src_port);
    let port = candidate_from(search.key.protocol, own, search.hash, step);
    look_at(search, port)
}

#[inline(always)]
fn look_at(search: &mut Lookup, port: u16) -> i64 {
    search.answer.dst_port = port.to_be_bytes();
    match flow(&search.answer) {
        Some(owner) if is_ours(&search.key, owner) => {
            search.found = u32::from(port) | Won::IS | u32::from(owner.state) << Won::STATE;
            1
        }
        _ => 0,
    }
}

/// Finds a port and makes it the flow's, by the entry of the answers; or finds that which it has already. Returns a
/// [`Won`]. Verified by itself.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn cwy_reserve(skb: *mut __sk_buff, key: *const Key, claim: u32) -> u32 {
    // SAFETY: the caller's reference.
    let (Some(key), Some(config)) = (unsafe { key.as_ref() }, config()) else {
        return Reason::SnatNotReady as u32;
    };
    let skips_stale = claim & Claim::SKIPS_STALE != 0;
    let claim = &Claim::of_bits(claim);
    let is_free = claim.is_counted || !claim.of_pod;
    let has_room = is_free || usage::has_room(config, &key.src);
    // SAFETY: integers, arrays of integers and a raw pointer: all zeros is a value. Written in place, a part of it would
    // not be on the stack twice.
    let mut search: Search = unsafe { core::mem::zeroed() };
    search.skb = skb;
    let walk = &mut search.walk;
    walk.key = *key;
    walk.answer.src = key.dst;
    walk.answer.dst = config.node_addr;
    walk.answer.src_port = key.dst_port;
    walk.answer.protocol = key.protocol;
    walk.hash = key.hash(config.seed);
    walk.state = claim.state();
    walk.skip_stale = u8::from(skips_stale);
    walk.may_take = u8::from(has_room);
    fill_reverse(&mut search.walk.reverse, key, claim, config.uplink_ifindex);
    search.find(config);
    let walk = &search.walk;
    let port = u32::from(u16::from_be_bytes(walk.answer.dst_port));
    match walk.end {
        STALE => port | Won::IS_STALE,
        OURS => {
            let is_new = if walk.is_new != 0 { Won::IS_NEW } else { 0 };
            port | Won::IS | is_new | u32::from(walk.state) << Won::STATE
        }
        end if end == Reason::SnatTableFull as u8 => u32::from(end),
        _ if !has_room => Reason::SnatQuota as u32,
        _ => Reason::SnatNoPort as u32,
    }
}

/// Writes the entry of the flow's own direction, with what [`cwy_reserve`] has won. Returns 0; or takes the mapping back if
/// there is no room. Verified by itself.
#[unsafe(no_mangle)]
#[inline(never)]
#[expect(
    clippy::needless_borrows_for_generic_args,
    reason = "by value the entry would be copied to the stack"
)]
extern "C" fn cwy_write_forward(skb: *mut __sk_buff, key: *const Key, claim: u32, won: u32) -> u32 {
    // SAFETY: the caller's reference.
    let (Some(key), Some(config)) = (unsafe { key.as_ref() }, config()) else {
        return 1;
    };
    let (claim, won) = (&Claim::of_bits(claim), Won(won));
    let mut forward = Entry::kernel(claim.flags(), now());
    forward.nat = Nat::SOURCE;
    forward.nat_addr = config.node_addr;
    forward.nat_port = won.port().to_be_bytes();
    forward.state = won.state();
    if claim.of_pod {
        forward.flags |= Flags::COUNTED;
        if let Some(pod) = pod(&key.src) {
            forward.in_ifindex = pod.ifindex;
            forward.in_mac = pod.mac;
        }
        let mut hop = Hop::UNKNOWN;
        next_hop::of_frame(&TcContext::new(skb), config, key, &mut hop);
        forward.leave_by(&hop);
    }
    if FLOWS.insert(key, &forward, u64::from(BPF_ANY)).is_err() {
        forget_half(config, &answer_key(config, key, won.port()));
        return 1;
    }
    let is_new = won.has(Won::IS_NEW);
    if claim.of_pod && !claim.is_counted && is_new {
        usage::opened(&key.src);
    }
    if !claim.is_known {
        remember(key);
        if !is_new {
            bump(Hook::ToUplink, Reason::MappingRestored);
        }
    }
    0
}

/// Completes the reverse entry in place, in a frame of its own.
#[inline(never)]
fn fill_reverse(reverse: &mut Entry, key: &Key, claim: &Claim, uplink: u32) {
    *reverse = Entry::kernel(claim.flags(), now());
    reverse.nat = Nat::DESTINATION;
    reverse.nat_addr = key.src;
    reverse.nat_port = key.src_port;
    reverse.progress = Progress::NONE.and_peer(Progress::SPOKE).bits();
    reverse.state = claim.state();
    if claim.of_pod
        && let Some(pod) = pod(&key.src)
    {
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

/// [`Walk::end`] when a port was found. No reason has this number.
const OURS: u8 = u8::MAX;
/// [`Walk::end`] when a port belongs to a mapping that seems to have expired.
const STALE: u8 = u8::MAX - 1;

/// A walk with what its callbacks need beside it.
struct Search {
    skb: *mut __sk_buff,
    walk: Walk,
}

/// State of a walk over the candidates. No pointers: it is passed to a function that is verified by itself.
#[repr(C)]
struct Walk {
    /// The flow that claims.
    key: Key,
    /// The key of its answers, to the port that was tried last.
    answer: Key,
    /// The entry that makes a port ours.
    reverse: Entry,
    hash: u32,
    /// State of both halves.
    state: u8,
    /// [`OURS`], or the [`Reason`] to give if the walk ends here. A number, because an enum that the verifier sees
    /// change in a loop costs it a state for each variant.
    end: u8,
    /// 1: ports of expired mappings are passed over.
    skip_stale: u8,
    /// 1: a free port may be taken; 0: the pod has as many flows as it may have.
    may_take: u8,
    /// 1: the mapping that was found has not been there before.
    is_new: u8,
    _pad: [u8; 3],
}

/// Return values of a callback of `bpf_loop`.
const GO_ON: u32 = 0;
const STOP: u32 = 1;

impl Search {
    /// Probes; and towards a crowded remote takes what its map of ports shows to be free.
    #[inline(always)]
    fn find(&mut self, config: &Config<Addr>) {
        let is_crowded = crowd::has_map(config, &self.walk.answer);
        self.run(try_candidate, if is_crowded { CROWDED_PROBES } else { PROBES });
        if self.walk.end == OURS && is_crowded {
            crowd::mark_taken(config, &self.walk.answer);
        }
        let may_go_on = self.walk.may_take != 0 && has_ports(self.walk.key.protocol);
        if self.walk.end != Reason::SnatNoPort as u8 || !may_go_on {
            return;
        }
        self.run(try_crowd, CROWD_TRIES);
        if self.walk.end == Reason::SnatNoPort as u8 {
            // No map yet, or one that shows no free port and may be old.
            crowd::build(&self.walk.answer);
            self.run(try_crowd, CROWD_TRIES);
        }
        if self.walk.end == Reason::SnatNoPort as u8 && is_crowded {
            // Every port is taken: perhaps by somebody who needs it no more.
            self.run(try_candidate, PROBES);
        }
    }

    #[inline(always)]
    fn run(&mut self, callback: unsafe extern "C" fn(u32, *mut c_void) -> i64, times: u32) {
        self.walk.end = Reason::SnatNoPort as u8;
        let (callback, state) = (callback as *mut c_void, (&raw mut *self).cast());
        // SAFETY: the callback has the signature that the helper calls (Linux 5.17), and `self` outlives the call.
        unsafe { bpf_loop(times, callback, state, 0) };
    }
}

/// Tries candidate number `attempt` of the flow's sequence.
///
/// # Safety
///
/// Called by `bpf_loop` with a [`Search`].
unsafe extern "C" fn try_candidate(attempt: u32, search: *mut c_void) -> i64 {
    // SAFETY: the caller's.
    let search = unsafe { &mut *search.cast::<Search>() };
    let key = &search.walk.key;
    let own = u16::from_be_bytes(key.src_port);
    let port = match key.protocol {
        TCP | UDP => candidate(own, search.walk.hash, attempt),
        ICMP => candidate_id(own, search.walk.hash, attempt),
        // No ports: there is one candidate.
        _ if attempt == 0 => 0,
        _ => return i64::from(STOP),
    };
    try_port(search, port)
}

/// Tries a port that the remote's map shows to be free.
///
/// # Safety
///
/// As for [`try_candidate`].
unsafe extern "C" fn try_crowd(_attempt: u32, search: *mut c_void) -> i64 {
    // SAFETY: the caller's.
    let search = unsafe { &mut *search.cast::<Search>() };
    let own = u16::from_be_bytes(search.walk.key.src_port);
    match crowd::take(&search.walk.answer, own, search.walk.hash) {
        Some(port) => try_port(search, port),
        None => i64::from(STOP),
    }
}

#[inline(always)]
fn try_port(search: &mut Search, port: u16) -> i64 {
    let end = cwy_try_port(search.skb, from_mut(&mut search.walk), u32::from(port));
    // The verifier knows nothing of the result, and a callback may return 0 or 1 only.
    i64::from(black_box(end) & STOP)
}

/// Tries to make a port ours. Returns [`GO_ON`] or [`STOP`]. Verified by itself.
#[unsafe(no_mangle)]
#[inline(never)]
#[expect(
    clippy::needless_borrows_for_generic_args,
    reason = "by value the entry would be copied to the stack"
)]
extern "C" fn cwy_try_port(skb: *mut __sk_buff, walk: *mut Walk, port: u32) -> u32 {
    // SAFETY: the caller's reference.
    let (Some(walk), Some(config)) = (unsafe { walk.as_mut() }, config()) else {
        return STOP;
    };
    let port = port as u16;
    walk.answer.dst_port = port.to_be_bytes();
    let answer = &walk.answer;
    if let Some(owner) = flow(answer) {
        if is_ours(&walk.key, owner) {
            // The forward half was lost, or another CPU was first with a packet of this very flow. Its life begins anew.
            walk.end = OURS;
            FLOWS.insert(answer, &walk.reverse, u64::from(BPF_ANY)).ok();
            return STOP;
        }
        let is_stale = walk.may_take != 0
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
    if walk.may_take == 0 || is_reserved(answer.protocol, port) || host_holds(skb.cast(), answer) {
        return GO_ON;
    }
    match FLOWS.insert(answer, &walk.reverse, u64::from(BPF_NOEXIST)) {
        Ok(()) => {
            walk.end = OURS;
            walk.is_new = 1;
            STOP
        }
        Err(EEXIST | EBUSY) => match flow(answer) {
            Some(owner) if is_ours(&walk.key, owner) => {
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

#[inline(always)]
fn is_ours(key: &Key, owner: &Entry) -> bool {
    owner.nat == Nat::DESTINATION && owner.nat_addr == key.src && owner.nat_port == key.src_port
}

/// Takes a mapping away that nobody uses any more: both halves.
///
/// Two CPUs may judge the same mapping. The one that inserts the lock, an entry under a protocol number that no packet
/// is looked up with, judges again and removes; the other goes on to its next candidate. Without the lock a late
/// removal could take away what the first one has just claimed. Whether this one has removed it. Verified by itself.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn cwy_remove_expired(key: *const Key, won: u32) -> u32 {
    // SAFETY: the caller's reference.
    let (Some(key), Some(config)) = (unsafe { key.as_ref() }, config()) else {
        return 0;
    };
    let answer = &answer_key(config, key, won as u16);
    let mut removed = 0;
    let lock = Key {
        protocol: RESERVED,
        ..*answer
    };
    if FLOWS
        .insert(lock, Entry::kernel(0, now()), u64::from(BPF_NOEXIST))
        .is_err()
    {
        return 0;
    }
    if let Some(owner) = flow(answer)
        && is_over(config, answer, owner)
    {
        forget(config, answer);
        removed = 1;
    }
    FLOWS.remove(lock).ok();
    removed
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
pub fn is_reserved(protocol: u8, port: u16) -> bool {
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

/// The key under which the answer to a flow arrives that was translated to `port`.
#[inline(always)]
fn answer_key(config: &Config<Addr>, key: &Key, port: u16) -> Key {
    Key {
        dst: config.node_addr,
        dst_port: port.to_be_bytes(),
        ..key.reversed()
    }
}
