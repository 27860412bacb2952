//! Every map of the project. Layouts, writers and readers: `causeway_common::maps`.
//!
//! No LRU for flows: eviction would cut live ones, and one half of a pair at a time.

use core::ptr::from_ref;

use aya_ebpf::{
    btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, Queue, RingBuf, lpm_trie},
    macros::btf_map,
};
use causeway_common::{
    addr::Address,
    balance::BACKEND_SLOTS,
    crowd::{CROWD_SLOTS, Crowd},
    flow::FlowEntry,
    fragment::{FRAGMENT_ENTRIES, FragmentEntry, FragmentKey},
    lifetime::seconds,
    maps::{
        AGE_ENTRIES, Backend, Balancer, Budget, Config, Count, EVENT_BYTES, FLOW_ENTRIES, IfaceEntry,
        POD_ENTRIES, PodEntry, PortWord, RANGE_ENTRIES, RangeEntry, RangeKey, SweepJob, USAGE_ENTRIES, Usage,
    },
    moved::{MOVED_ENTRIES, Moved},
    ports::RESERVED_ENTRIES,
    reason::COUNT_ENTRIES,
    tuple::FlowKey,
};

/// The family that the programs are built for.
pub type Addr = [u8; 4];
/// Key of `cwy_flows`.
pub type Key = FlowKey<Addr>;
/// Value of `cwy_flows`.
pub type Entry = FlowEntry<Addr>;

/// `-EEXIST` of an insert with `BPF_NOEXIST`: somebody was first.
pub const EEXIST: i32 = -17;

/// Both directions of every flow, by the tuple on the wire at the hook.
#[btf_map(name = "cwy_flows")]
pub static FLOWS: HashMap<Key, Entry, FLOW_ENTRIES> = HashMap::new();

/// The pods of this node, by address.
#[btf_map(name = "cwy_pods")]
pub static PODS: HashMap<Addr, PodEntry, POD_ENTRIES> = HashMap::new();

/// Who may send on a host veth, by ifindex.
#[btf_map(name = "cwy_ifaces")]
pub static IFACES: HashMap<u32, IfaceEntry<Addr>, POD_ENTRIES> = HashMap::new();

/// Ranges that are not masqueraded, in two lists.
#[btf_map(name = "cwy_ranges")]
pub static RANGES: LpmTrie<RangeKey<Addr>, RangeEntry, RANGE_ENTRIES> = LpmTrie::new();

/// Ports that no translated flow may take.
#[btf_map(name = "cwy_ports")]
pub static PORTS: Array<PortWord, RESERVED_ENTRIES> = Array::new();

/// How the API server's virtual address is spread.
#[btf_map(name = "cwy_balancer")]
pub static BALANCER: Array<Balancer, 1> = Array::new();

/// The backends of the API server's virtual address, by slot.
#[btf_map(name = "cwy_backends")]
pub static BACKENDS: Array<Backend<Addr>, BACKEND_SLOTS> = Array::new();

/// Datagrams whose first fragment has passed.
#[btf_map(name = "cwy_frags")]
pub static FRAGS: LruHashMap<FragmentKey<Addr>, FragmentEntry<Addr>, FRAGMENT_ENTRIES> = LruHashMap::new();

/// Maps of the ports towards crowded remotes.
#[btf_map(name = "cwy_crowds")]
pub static CROWDS: Array<Crowd<Addr>, CROWD_SLOTS> = Array::new();

/// Hints to the ports of flows that have another than their own.
#[btf_map(name = "cwy_moved")]
pub static MOVED: Array<Moved, MOVED_ENTRIES> = Array::new();

/// How many flows each pod, and the wire, has opened.
#[btf_map(name = "cwy_usage")]
pub static USAGE: HashMap<Addr, Usage, USAGE_ENTRIES> = HashMap::new();

/// Flows in the order in which they began or were looked at last.
#[btf_map(name = "cwy_age_queue")]
pub static AGES: Queue<Key, AGE_ENTRIES> = Queue::new();

/// What each CPU may still do in this second, by reason.
#[btf_map(name = "cwy_budgets")]
pub static BUDGETS: PerCpuArray<Budget, COUNT_ENTRIES> = PerCpuArray::new();

/// Samples of dropped packets.
#[btf_map(name = "cwy_events")]
pub static EVENTS: RingBuf<(), EVENT_BYTES> = RingBuf::new();

/// The sweep's task and figures.
#[btf_map(name = "cwy_sweep_job")]
pub static SWEEP_JOB: Array<SweepJob, 1> = Array::new();

/// What is to be known of the node.
#[btf_map(name = "cwy_cfg")]
pub static CFG: Array<Config<Addr>, 1> = Array::new();

/// Packets by reason and hook.
#[btf_map(name = "cwy_count")]
pub static COUNT: PerCpuArray<Count, COUNT_ENTRIES> = PerCpuArray::new();

/// The node's configuration. `None` cannot happen (an array has all its elements), but the verifier asks.
#[inline(always)]
pub fn config() -> Option<&'static Config<Addr>> {
    CFG.get(0)
}

/// What the list in force says of a destination.
#[inline(always)]
pub fn range_of(config: &Config<Addr>, dst: &Addr) -> Option<&'static RangeEntry> {
    let key = RangeKey {
        list: config.range_list as u8,
        addr: *dst,
    };
    let bits = RangeKey::<Addr>::LIST_BITS + <Addr as Address>::BITS;
    RANGES.get(&lpm_trie::Key::new(bits, key))
}

/// The class of a destination, 0 for none.
#[inline(always)]
pub fn class_of(dst: &Addr) -> u8 {
    config()
        .and_then(|config| range_of(config, dst))
        .map_or(0, |range| range.class)
}

/// The entry of a flow, to read and to note times and progress in place.
///
/// The element may be reused for another flow while we hold it (a preallocated hash recycles at once). A field read
/// late can then belong to that other flow: what goes into a packet is copied out before any helper call.
#[inline(always)]
pub fn flow(key: &Key) -> Option<&'static mut Entry> {
    // SAFETY: the kernel returns a valid element or null, valid until the program ends; programs on other CPUs
    // write the same plain integers, and a lost update of a time or a progress bit is harmless.
    FLOWS.get_ptr_mut(key).map(|entry| unsafe { &mut *entry })
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
    unsafe { key.as_ref() }.copied()
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
    let (Some(key), Some(entry)) = (unsafe { key.as_ref() }, unsafe { entry.as_ref() }) else {
        return 0;
    };
    let Some(config) = config() else {
        return 0;
    };
    let over = |seen| config.timeouts.expired(entry, key.protocol, seen, now);
    u32::from(over(entry.last_seen) && flow(&entry.peer_key(key)).is_none_or(|peer| over(peer.last_seen)))
}

/// The pod that has this address.
#[inline(always)]
pub fn pod(addr: &Addr) -> Option<&'static PodEntry> {
    // SAFETY: as in `flow`; programs never write this map.
    PODS.get_ptr(addr).map(|pod| unsafe { &*pod })
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
    IFACES.get_ptr(ifindex).map(|iface| unsafe { &*iface })
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
