//! Connections to the API server's virtual address, where this node spreads them over the backends itself: those of pods
//! and of the node, by whatever way they came (a ClusterIP that the kernel has translated, too).
//!
//! It is done at the uplink, behind the stack, so the stack sees the virtual address in both directions. The entry of the
//! answers is the claim, as with a port (`snat`): it is inserted with `BPF_NOEXIST`, and a backend towards which the tuple
//! is another flow's is passed over.

use core::ptr::from_ref;

use aya_ebpf::{
    EbpfContext as _,
    bindings::{__sk_buff, BPF_ANY, BPF_NOEXIST},
    programs::TcContext,
};
use causeway_common::{
    addr::Address as _,
    balance::{BACKEND_TRIES, slot},
    decide::{Role, is_given_up, tcp_flags::RST},
    flow::{Flags, Hop, Nat, State},
    maps::RangeClass,
    reason::Reason,
    tuple::TCP,
};

use crate::{
    carry::note_progress,
    end::forget_half,
    family::maps::{BACKENDS, BALANCER, class_of},
    forget::kept_flags,
    given::given,
    maps::{Addr, Entry, FLOWS, Key, config, flow, now, own, pod},
    next_hop,
    packet::{self, Ip, Transport},
    reclaim::remember,
    rewrite::Translation,
    snat::{fill_answer, taken::host_holds},
    translate::{translate, translation},
    usage,
};

/// What is said of a packet that is no matter of this module. No packet of it has this reason.
pub const NOT_OURS: Reason = Reason::MidFlow;

/// Who sends a packet: bits of a word.
pub struct From;

impl From {
    /// A pod; else the node itself.
    pub const POD: u32 = 1;
    /// The flow may be carried.
    pub const CARRIABLE: u32 = 2;
}

/// A segment that has, or is to have, a backend, or that is refused; of another one [`NOT_OURS`]. The caller
/// [refuses](crate::reset::refuse) what is to be refused. `from`: bits of [`From`].
///
/// In steps beside each other, not below: 512 bytes of stack are all that a program's functions have together.
#[inline(always)]
pub fn to_api_server(ctx: &TcContext, ip: &Ip, transport: &Transport, from: u32) -> Reason {
    if ip.protocol != TCP || ip.is_fragment {
        return NOT_OURS;
    }
    let skb = ctx.as_ptr().cast();
    match cwy_to_api(skb, from_ref(ip), from_ref(transport)) {
        OPENS => cwy_open(skb, from_ref(ip), from_ref(transport), from),
        reason => reason,
    }
}

/// Whether the flow of an entry is a matter of this module.
#[inline(always)]
pub fn is_ours(entry: &Entry) -> bool {
    entry.nat == Nat::TO_BACKEND || entry.state == State::RESET
}

/// What [`cwy_to_api`] says of a segment that opens a connection to a backend. No other packet of it has this reason.
const OPENS: Reason = Reason::Offered;

/// Verified by itself.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn cwy_to_api(skb: *mut __sk_buff, ip: *const Ip, transport: *const Transport) -> Reason {
    // SAFETY: the caller's references.
    let (Some(ip), Some(transport)) = (unsafe { given(ip) }, unsafe { given(transport) }) else {
        return NOT_OURS;
    };
    let key = packet::key(ip, transport);
    let opens = transport.role(ip) == Role::Opens;
    let is_reset = transport.flags & RST != 0;
    if let Some(entry) = flow(&key) {
        if entry.state == State::RESET {
            if opens {
                // The tuple begins anew.
                entry.set_state(State::KERNEL);
            } else if is_reset {
                // It shows that the opener has no connection any more.
                note_progress(&key, entry, transport);
            } else {
                return Reason::Drained;
            }
        }
        if entry.nat == Nat::TO_BACKEND && !(opens && entry.progress().is_over()) {
            let to = translation(entry);
            entry.last_seen = now();
            note_progress(&key, entry, transport);
            return finish(&TcContext::new(skb), ip, &key, &to);
        }
    }
    by_class(&key, opens, is_reset)
}

/// A segment whose flow has no backend.
#[inline(always)]
fn by_class(key: &Key, opens: bool, is_reset: bool) -> Reason {
    match class_of(&key.dst) {
        class if opens && is_given_up(class) => Reason::RetiredAddress,
        // To a backend itself, from a port whose answers are taken for those to the virtual address.
        RangeClass::API_SERVER if opens => match flow(&key.reversed()) {
            Some(answer) if answer.nat == Nat::FROM_BACKEND => {
                if !answer.progress().is_over() {
                    return Reason::BalanceRefused;
                }
                forget_half(&key.reversed());
                NOT_OURS
            }
            _ => NOT_OURS,
        },
        RangeClass::BALANCED
            if !is_reset
                && BALANCER
                    .get(0)
                    .is_some_and(|balancer| balancer.serves(key.dst_port)) =>
        {
            if opens {
                OPENS
            } else {
                Reason::NotBalanced
            }
        }
        _ => NOT_OURS,
    }
}

#[inline(always)]
fn finish(ctx: &TcContext, ip: &Ip, key: &Key, to: &Translation) -> Reason {
    match translate(ctx, ip, key, to) {
        Ok(()) => Reason::Balanced,
        Err(_) => Reason::RewriteFailed,
    }
}

/// Gives a new connection its backend. Verified by itself.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn cwy_open(skb: *mut __sk_buff, ip: *const Ip, transport: *const Transport, from: u32) -> Reason {
    // SAFETY: the caller's references.
    let (Some(ip), Some(transport)) = (unsafe { given(ip) }, unsafe { given(transport) }) else {
        return NOT_OURS;
    };
    let key = packet::key(ip, transport);
    let backend = cwy_choose(skb, from_ref(&key), from);
    if backend == 0 {
        return Reason::NoBackend;
    }
    if backend < REASONS || cwy_write_balanced(skb, from_ref(&key), from, backend) != 0 {
        return Reason::BalanceRefused;
    }
    let to = Translation::new(Nat::TO_BACKEND, backend.to_ne_bytes(), key.dst_port);
    finish(&TcContext::new(skb), ip, &key, &to)
}

/// The key under which the answers of `backend` arrive.
#[inline(always)]
fn answer_key(key: &Key, backend: Addr) -> Key {
    Key {
        src: backend,
        ..key.reversed()
    }
}

/// Results of [`cwy_choose`] below this are no address: 0 when there is no backend, 1 when there is none whose tuple is free.
/// An address that is such a number is in no network of hosts (0.0.0.0/8, RFC 1122 section 3.2.1.3).
const REASONS: u32 = 2;

/// Claims the tuple of the answers from a backend. Returns its address as it lies in memory, or below [`REASONS`] why
/// there is none. Verified by itself.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn cwy_choose(skb: *mut __sk_buff, key: *const Key, from: u32) -> u32 {
    // SAFETY: the caller's reference.
    let (Some(key), Some(config)) = (unsafe { given(key) }, config()) else {
        return 0;
    };
    let hash = key.hash(config.seed);
    for attempt in 0..BACKEND_TRIES {
        let Some(backend) = BACKENDS.get(slot(hash, attempt)) else {
            return 0;
        };
        let addr = backend.addr;
        if addr == Addr::UNSPECIFIED {
            return 0;
        }
        if cwy_claim_backend(skb, from_ref(key), from, u32::from_ne_bytes(addr)) == 0 {
            return u32::from_ne_bytes(addr);
        }
    }
    1
}

/// Claims the tuple of the answers from one backend. Returns 0 if it is ours. Verified by itself.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn cwy_claim_backend(skb: *mut __sk_buff, key: *const Key, from: u32, addr: u32) -> u32 {
    // SAFETY: the caller's reference.
    let Some(key) = (unsafe { own(key) }) else {
        return 1;
    };
    let answer = answer_key(&key, addr.to_ne_bytes());
    match flow(&answer) {
        // Left by an earlier connection, of this tuple or of another one to the backend itself.
        Some(owner)
            if owner.nat == Nat::FROM_BACKEND && owner.nat_addr == key.dst || owner.progress().is_over() =>
        {
            forget_half(&answer);
        }
        Some(_) => return 1,
        None => {}
    }
    if from & From::POD == 0 && host_holds(skb.cast(), &answer) {
        return 1;
    }
    let mut half = Entry::kernel(0, 0);
    answer_half(&mut half, &key, from);
    u32::from(FLOWS.insert(&answer, &half, u64::from(BPF_NOEXIST)).is_err())
}

#[inline(always)]
fn answer_half(half: &mut Entry, key: &Key, from: u32) {
    let flags = if from & From::POD != 0 {
        Flags::WENT_UP
    } else {
        Flags::HOST
    };
    fill_answer(half, key, flags, state(from));
    half.nat = Nat::FROM_BACKEND;
    half.nat_addr = key.dst;
    half.nat_port = key.dst_port;
}

#[inline(always)]
fn state(from: u32) -> u8 {
    if from & From::CARRIABLE != 0 {
        State::CARRIED
    } else {
        State::KERNEL
    }
}

/// Writes the flow's own entry. Returns 0; or takes the claim back if there is no room for it, or the pod has as many flows
/// as it may have. Verified by itself.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn cwy_write_balanced(skb: *mut __sk_buff, key: *const Key, from: u32, backend: u32) -> u32 {
    // SAFETY: the caller's reference.
    let Some(key) = (unsafe { own(key) }) else {
        return 1;
    };
    let backend = backend.to_ne_bytes();
    let of_pod = from & From::POD != 0;
    let before = flow(&key);
    let is_known = before.is_some();
    let kept = kept_flags(before.as_deref());
    let is_counted = kept & Flags::COUNTED != 0;
    let flags = if of_pod {
        Flags::WENT_UP | Flags::COUNTED
    } else {
        Flags::HOST
    };
    let mut forward = Entry::kernel(flags, now());
    forward.nat = Nat::TO_BACKEND;
    forward.nat_addr = backend;
    forward.nat_port = key.dst_port;
    forward.state = state(from);
    if of_pod && let Some(pod) = pod(&key.src) {
        forward.in_ifindex = pod.ifindex;
        forward.in_mac = pod.mac;
        let mut hop = Hop::UNKNOWN;
        next_hop::of_frame(&TcContext::new(skb), &key, &mut hop);
        forward.leave_by(&hop);
    }
    let has_room = !of_pod || is_counted || usage::has_room(&key.src);
    if !has_room || FLOWS.insert(&key, &forward, u64::from(BPF_ANY)).is_err() {
        forget_half(&answer_key(&key, backend));
        return 1;
    }
    if of_pod && !is_counted {
        usage::opened(&key.src);
    }
    if !is_known {
        remember(&key);
    }
    0
}

/// Sees to it that the answers of a flow with a backend find their way, once a second. Verified by itself.
#[inline(always)]
pub fn answers_of(key: &Key, entry: &Entry) {
    cwy_balanced_of(from_ref(key), from_ref(entry));
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn cwy_balanced_of(key: *const Key, entry: *const Entry) -> u32 {
    // SAFETY: the caller's references.
    let (Some(key), Some(entry)) = (unsafe { given(key) }, unsafe { given(entry) }) else {
        return 0;
    };
    let answer = answer_key(key, entry.nat_addr);
    if flow(&answer).is_none() {
        let of_pod = if entry.has(Flags::HOST) { 0 } else { From::POD };
        let carriable = if entry.state == State::CARRIED {
            From::CARRIABLE
        } else {
            0
        };
        let mut half = Entry::kernel(0, 0);
        answer_half(&mut half, key, of_pod | carriable);
        half.progress = entry.progress().swapped().bits();
        FLOWS.insert(&answer, &half, u64::from(BPF_NOEXIST)).ok();
    }
    0
}
