//! Writes the lost half of a translated flow again: that of the answers by the flow's own packets, once a second, and by
//! an answer that finds no entry; the flow's own by its next packet, here for a carried flow, in `snat` for one that
//! takes the stack.

use core::{ffi::c_void, ptr::from_ref};

use aya_ebpf::{
    EbpfContext as _,
    bindings::{__sk_buff, BPF_F_INGRESS, BPF_NOEXIST},
    helpers::generated::{bpf_for_each_map_elem, bpf_redirect},
    programs::TcContext,
};
use causeway_common::{
    flow::{Exit, Flags, Nat, State},
    reason::Reason,
};

use crate::{
    count::{Hook, bump},
    given::{context, given},
    maps::{Addr, Entry, FLOWS, Key, PODS, config, flow, has_budget, now, pod, scratch},
    next_hop,
    packet::skb,
    snat::{self, Won},
};

/// Searches that a CPU makes in a second. Each looks at every pod.
const SEARCHES: u32 = 100;

/// Sees to it that the answers of a translated flow find their way. `entry` is the flow's forward half.
///
/// If another flow has the port meanwhile, this one has lost it: the caller sees to it that its forward half goes, and
/// that no packet leaves with a port that is not its own. Whether the flow still has its port.
#[inline(always)]
pub fn answers_of(key: &Key, entry: &Entry) -> bool {
    cwy_answers_of(from_ref(key), from_ref(entry)) != 0
}

/// Verified by itself.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn cwy_answers_of(key: *const Key, entry: *const Entry) -> u32 {
    // SAFETY: the caller's references.
    let (Some(key), Some(entry)) = (unsafe { given(key) }, unsafe { given(entry) }) else {
        return 0;
    };
    let answer = entry.peer_key(key);
    match flow(&answer) {
        None => write_answer(key, entry, &answer),
        Some(owner) if owner.nat_addr == key.src && owner.nat_port == key.src_port => {}
        Some(_) => return 0,
    }
    1
}

#[inline(never)]
fn write_answer(key: &Key, entry: &Entry, answer: &Key) {
    let Some(scratch) = scratch() else {
        return;
    };
    let half = &mut scratch.answer;
    let flags = entry.flags & (Flags::HOST | Flags::WENT_UP);
    snat::fill_answer(half, key, flags, entry.state);
    half.progress = entry.progress().swapped().bits();
    if half.exit == Exit::STACK && !entry.has(Flags::HOST) {
        return;
    }
    if FLOWS.insert(answer, &*half, u64::from(BPF_NOEXIST)).is_ok() {
        bump(Hook::FromPod, Reason::MappingRestored);
    }
}

/// An answer to the node's address that finds no entry may belong to a pod's flow that has lost it. Most flows keep
/// their port, so it is looked for among the pods under the port it came to. When it is found the packet begins anew.
/// [`Reason::OtherProtocol`] if there is none.
#[inline(always)]
pub fn lost_answer(ctx: &TcContext, answer: &Key) -> Reason {
    if cwy_lost_answer(from_ref(answer)) == 0 {
        return Reason::OtherProtocol;
    }
    begin_anew(ctx)
}

/// A pod's packet in mid-flow that finds no entry may belong to a flow that has lost it: conntrack knows no more than its
/// first packet, so the stack could drop it. If the mapping is found, the entry is written with the route that the
/// kernel has now, and the packet begins anew. [`Reason::MidFlow`] if there is none.
#[inline(always)]
pub fn lost_flow(ctx: &TcContext, key: &Key) -> Reason {
    let found = snat::mapping_of(key);
    if !found.is_carried() || cwy_restore_forward(ctx.as_ptr().cast(), from_ref(key), found.0) == 0 {
        return Reason::MidFlow;
    }
    begin_anew(ctx)
}

/// Whether the entry was written: the route has to be known. Verified by itself.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn cwy_restore_forward(skb: *mut __sk_buff, key: *const Key, found: u32) -> u32 {
    // SAFETY: the caller's reference.
    let (Some(key), Some(config), Some(scratch)) = (unsafe { given(key) }, config(), scratch()) else {
        return 0;
    };
    scratch.restored.key = *key;
    let (key, forward) = (&scratch.restored.key, &mut scratch.restored.entry);
    let Some(pod) = pod(&key.src) else {
        return 0;
    };
    let ctx = &TcContext::new(skb);
    *forward = Entry::kernel(Flags::WENT_UP | Flags::CAME_OUT | Flags::COUNTED, now());
    forward.state = State::CARRIED;
    forward.nat = Nat::SOURCE;
    forward.nat_addr = config.node_addr;
    forward.nat_port = Won(found).port().to_be_bytes();
    forward.exit = Exit::UPLINK;
    forward.in_ifindex = pod.ifindex;
    forward.in_mac = pod.mac;
    forward.out_ifindex = config.uplink_ifindex;
    next_hop::refresh(ctx, key, forward);
    if forward.mtu == 0 || forward.out_dst_mac == [0; 6] {
        return 0;
    }
    u32::from(FLOWS.insert(key, &*forward, u64::from(BPF_NOEXIST)).is_ok())
}

#[inline(always)]
fn begin_anew(ctx: &TcContext) -> Reason {
    // SAFETY: the helper takes integers only.
    unsafe { bpf_redirect(skb(ctx).ifindex, u64::from(BPF_F_INGRESS)) };
    Reason::FlowRestored
}

/// Whether the half was found and written. Verified by itself.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn cwy_lost_answer(answer: *const Key) -> u32 {
    // SAFETY: the caller's reference.
    let (Some(answer), Some(scratch)) = (unsafe { given(answer) }, scratch()) else {
        return 0;
    };
    scratch.lost = *answer;
    let answer = &scratch.lost;
    let has_budget = || has_budget(Reason::FlowRestored as u32, SEARCHES);
    if !answer.has_ports() || flow(answer).is_some() || !has_budget() {
        return 0;
    }
    let mut is_found: u32 = 0;
    let (pods, callback) = ((&raw const PODS).cast_mut().cast(), look_at_pod as *mut c_void);
    // SAFETY: the callback has the signature that the helper calls (Linux 5.13), and `is_found` outlives the call.
    unsafe { bpf_for_each_map_elem(pods, callback, (&raw mut is_found).cast(), 0) };
    is_found
}

/// # Safety
///
/// Called by `bpf_for_each_map_elem` on `cwy_pods`, with the word of [`cwy_lost_answer`] that says whether one was found.
unsafe extern "C" fn look_at_pod(
    _map: *mut c_void,
    addr: *const Addr,
    _pod: *mut c_void,
    is_found: *mut c_void,
) -> i64 {
    // SAFETY: the caller's.
    let (addr, is_found) = unsafe { (*addr, context::<u32>(is_found)) };
    let Some(scratch) = scratch() else {
        return 1;
    };
    let answer = &scratch.lost;
    let forward_key = Key {
        src: addr,
        ..answer.reversed()
    };
    let Some(forward) = flow(&forward_key) else {
        return 0;
    };
    let is_its_own =
        forward.nat == Nat::SOURCE && forward.nat_addr == answer.dst && forward.nat_port == answer.dst_port;
    if !is_its_own {
        return 0;
    }
    write_answer(&forward_key, forward, answer);
    *is_found = 1;
    1
}
