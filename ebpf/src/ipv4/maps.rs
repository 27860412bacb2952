//! The maps that hold IPv4 addresses, or serve their translation.
//!
//! No LRU for flows: eviction would cut live ones, and one half of a pair at a time.

use aya_ebpf::{
    btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, ProgramArray, Queue, lpm_trie},
    macros::btf_map,
};
use causeway_common::{
    addr::Address as _,
    balance::BACKEND_SLOTS,
    crowd::{CROWD_SLOTS, Crowd},
    fragment::{FRAGMENT_ENTRIES, FragmentEntry, FragmentKey},
    maps::{
        AGE_ENTRIES, Backend, Balancer, Config, FLOW_ENTRIES, HOOKS, IfaceEntry, POD_ENTRIES, PodEntry,
        PortWord, RANGE_ENTRIES, RangeEntry, RangeKey, USAGE_ENTRIES, Usage,
    },
    moved::{MOVED_ENTRIES, Moved},
    ports::RESERVED_ENTRIES,
    scratch::Scratch,
};

use super::Addr;
use crate::maps::{Entry, Key, config};

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

/// What functions keep beside the stack.
#[btf_map(name = "cwy_scratch")]
pub static SCRATCH: PerCpuArray<Scratch<Addr>, 1> = PerCpuArray::new();

/// How many flows each pod, and the wire, has opened.
#[btf_map(name = "cwy_usage")]
pub static USAGE: HashMap<Addr, Usage, USAGE_ENTRIES> = HashMap::new();

/// Flows in the order in which they began or were looked at last.
#[btf_map(name = "cwy_age_queue")]
pub static AGES: Queue<Key, AGE_ENTRIES> = Queue::new();

/// What is to be known of the node.
#[btf_map(name = "cwy_cfg")]
pub static CFG: Array<Config<Addr>, 1> = Array::new();

/// The programs for IPv6, by hook.
#[btf_map(name = "cwy_ipv6")]
pub static IPV6: ProgramArray<HOOKS> = ProgramArray::new();

/// What the list in force says of a destination.
#[inline(always)]
pub fn range_of(config: &Config<Addr>, dst: &Addr) -> Option<&'static RangeEntry> {
    let key = RangeKey {
        list: config.range_list as u8,
        addr: *dst,
    };
    let bits = RangeKey::<Addr>::LIST_BITS + Addr::BITS;
    RANGES.get(&lpm_trie::Key::new(bits, key))
}

/// The class of a destination, 0 for none.
#[inline(always)]
pub fn class_of(dst: &Addr) -> u8 {
    config()
        .and_then(|config| range_of(config, dst))
        .map_or(0, |range| range.class)
}
