//! The maps, and how they are read. Those that hold addresses are the [family](crate::family)'s; layouts, writers and
//! readers: `causeway_common::maps`.

use core::ptr::from_ref;

use aya_ebpf::{
    btf_maps::{Array, PerCpuArray, RingBuf},
    macros::btf_map,
};
use causeway_common::{
    flow::FlowEntry,
    lifetime::seconds,
    maps::{Budget, Config, Count, EVENT_BYTES, IfaceEntry, PodEntry, SweepJob},
    reason::COUNT_ENTRIES,
    scratch::Scratch,
    tuple::FlowKey,
};

pub use crate::family::{
    Addr,
    maps::{AGES, FLOWS, PODS, USAGE},
};
use crate::{
    family::maps::{CFG, IFACES, SCRATCH},
    given::{given, given_mut},
    nat,
};

/// Key of `cwy_flows`.
pub type Key = FlowKey<Addr>;
/// Value of `cwy_flows`.
pub type Entry = FlowEntry<Addr>;

/// `-EEXIST` of an insert with `BPF_NOEXIST`: somebody was first.
pub const EEXIST: i32 = -17;

/// What each CPU may still do in this second, by reason.
#[btf_map(name = "cwy_budgets")]
pub static BUDGETS: PerCpuArray<Budget, COUNT_ENTRIES> = PerCpuArray::new();

/// Samples of dropped packets.
#[btf_map(name = "cwy_events")]
pub static EVENTS: RingBuf<(), EVENT_BYTES> = RingBuf::new();

/// The sweep's task and figures.
#[btf_map(name = "cwy_sweep_job")]
pub static SWEEP_JOB: Array<SweepJob, 1> = Array::new();

/// Packets by reason and hook.
#[btf_map(name = "cwy_count")]
pub static COUNT: PerCpuArray<Count, COUNT_ENTRIES> = PerCpuArray::new();

/// The node's configuration. `None` cannot happen (an array has all its elements), but the verifier asks.
#[inline(always)]
pub fn config() -> Option<&'static Config<Addr>> {
    // SAFETY: an element of a map, valid until the program ends; userspace replaces it whole.
    CFG.get_ptr(0).and_then(|config| unsafe { given(config) })
}

/// This CPU's room beside the stack. Each function uses its own part of it, and none is called below itself.
#[inline(always)]
pub fn scratch() -> Option<&'static mut Scratch<Addr>> {
    let scratch = SCRATCH.get_ptr_mut(0)?;
    // SAFETY: a per-CPU element, valid until the program ends. No other program on a hook runs on this CPU before that, and
    // whoever asks touches no part but its own.
    unsafe { given_mut(scratch) }
}

/// The entry of a flow, to read and to note times and progress in place.
///
/// The element may be reused for another flow while we hold it (a preallocated hash recycles at once). A field read
/// late can then belong to that other flow: what goes into a packet is copied out before any helper call.
#[inline(always)]
pub fn flow(key: &Key) -> Option<&'static mut Entry> {
    let entry = FLOWS.get_ptr_mut(key)?;
    // SAFETY: the kernel returns a valid element or null, valid until the program ends; programs on other CPUs
    // write the same plain integers, and a lost update of a time or a progress bit is harmless.
    unsafe { given_mut(entry) }
}

/// The key that a function which is verified by itself has been given by reference, on its own stack: before Linux 6.2 no
/// helper takes a map's key or value from the memory behind such a reference.
///
/// # Safety
///
/// `key` is null or points to a key.
#[inline(always)]
pub unsafe fn own(key: *const Key) -> Option<Key> {
    // SAFETY: the caller's.
    unsafe { given(key) }.copied()
}

/// Whether a direction of a flow is idle for longer than it may be: `seen` is when its last packet came.
#[inline(always)]
pub fn is_expired(entry: &Entry, protocol: u8, seen: u32, now: u32) -> bool {
    cwy_is_expired(from_ref(entry), u32::from(protocol), seen, now) != 0
}

/// Verified by itself.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn cwy_is_expired(entry: *const Entry, protocol: u32, seen: u32, now: u32) -> u32 {
    // SAFETY: the caller's reference.
    let (Some(entry), Some(config)) = (unsafe { given(entry) }, config()) else {
        return 0;
    };
    u32::from(config.timeouts.expired(entry, protocol as u8, seen, now))
}

/// Whether neither direction of a flow has seen a packet within its lifetime.
#[inline(always)]
pub fn is_idle(key: &Key, entry: &Entry, now: u32) -> bool {
    cwy_is_idle(from_ref(key), from_ref(entry), now) != 0
}

/// Verified by itself.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn cwy_is_idle(key: *const Key, entry: *const Entry, now: u32) -> u32 {
    // SAFETY: the caller's references.
    let (Some(key), Some(entry)) = (unsafe { given(key) }, unsafe { given(entry) }) else {
        return 0;
    };
    let over = |seen| is_expired(entry, key.protocol, seen, now);
    u32::from(
        over(entry.last_seen) && flow(&nat::peer_key(key, entry)).is_none_or(|peer| over(peer.last_seen)),
    )
}

/// The pod that has this address.
#[inline(always)]
pub fn pod(addr: &Addr) -> Option<&'static PodEntry> {
    // SAFETY: as in `flow`; programs never write this map.
    PODS.get_ptr(addr).and_then(|pod| unsafe { given(pod) })
}

/// Whether a pod of this node has this address at present.
#[inline(always)]
pub fn is_present_pod(addr: &Addr) -> bool {
    pod(addr).is_some_and(|pod| pod.flags & PodEntry::DEPARTED == 0)
}

/// The pod that may send on this interface.
#[inline(always)]
pub fn iface(ifindex: u32) -> Option<&'static IfaceEntry<Addr>> {
    // SAFETY: as in `pod`.
    IFACES.get_ptr(ifindex).and_then(|iface| unsafe { given(iface) })
}

/// Whether this CPU may still do something that is paid for under `reason` in this second.
#[inline(always)]
pub fn has_budget(reason: u32, most: u32) -> bool {
    // SAFETY: a per-CPU element, valid until the program ends; a program that interrupts us may spend one too many.
    BUDGETS
        .get_ptr_mut(reason)
        .is_some_and(|budget| unsafe { (*budget).spend(now(), most) })
}

/// Whole seconds of `CLOCK_MONOTONIC_COARSE`, the clock of all times in the maps.
#[inline(always)]
pub fn now() -> u32 {
    seconds(nanoseconds())
}

/// `CLOCK_MONOTONIC_COARSE` in nanoseconds.
#[inline(always)]
pub fn nanoseconds() -> u64 {
    // SAFETY: the helper takes no argument and touches no memory of ours.
    unsafe { aya_ebpf::helpers::generated::bpf_ktime_get_coarse_ns() }
}
