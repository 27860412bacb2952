//! The maps that hold IPv6 addresses.

use aya_ebpf::{
    btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, Queue, lpm_trie},
    macros::btf_map,
};
use causeway_common::{
    addr::Address as _,
    crowd::{CROWD_SLOTS, Crowd},
    fragment::{FRAGMENT_ENTRIES, FragmentEntry, FragmentKey},
    maps::{
        AGE_ENTRIES, Config, FLOW_ENTRIES, IfaceEntry, POD_ENTRIES, PodEntry, PortWord, RANGE_ENTRIES,
        RangeEntry, RangeKey, USAGE_ENTRIES, Usage,
    },
    moved::{MOVED_ENTRIES, Moved},
    ports::RESERVED_ENTRIES,
    scratch::Scratch,
};

use super::Addr;
use crate::maps::{Entry, Key};

/// Both directions of every flow, by the tuple on the wire at the hook.
#[btf_map(name = "cwy_flows6")]
pub static FLOWS: HashMap<Key, Entry, FLOW_ENTRIES> = HashMap::new();

/// The pods of this node, by address.
#[btf_map(name = "cwy_pods6")]
pub static PODS: HashMap<Addr, PodEntry, POD_ENTRIES> = HashMap::new();

/// Who may send on a host veth, by ifindex.
#[btf_map(name = "cwy_ifaces6")]
pub static IFACES: HashMap<u32, IfaceEntry<Addr>, POD_ENTRIES> = HashMap::new();

/// Ranges that are not masqueraded, in two lists. Nothing is where one of them is `::/0`.
#[btf_map(name = "cwy_ranges6")]
pub static RANGES: LpmTrie<RangeKey<Addr>, RangeEntry, RANGE_ENTRIES> = LpmTrie::new();

/// Ports that no translated flow may take, of either family.
#[btf_map(name = "cwy_ports")]
pub static PORTS: Array<PortWord, RESERVED_ENTRIES> = Array::new();

/// Datagrams whose first fragment has passed.
#[btf_map(name = "cwy_frags6")]
pub static FRAGS: LruHashMap<FragmentKey<Addr>, FragmentEntry<Addr>, FRAGMENT_ENTRIES> = LruHashMap::new();

/// Maps of the ports towards crowded remotes.
#[btf_map(name = "cwy_crowds6")]
pub static CROWDS: Array<Crowd<Addr>, CROWD_SLOTS> = Array::new();

/// Hints to the ports of flows that have another than their own.
#[btf_map(name = "cwy_moved6")]
pub static MOVED: Array<Moved, MOVED_ENTRIES> = Array::new();

/// What functions keep beside the stack.
#[btf_map(name = "cwy_scratch6")]
pub static SCRATCH: PerCpuArray<Scratch<Addr>, 1> = PerCpuArray::new();

/// How many flows each pod, and the wire, has opened.
#[btf_map(name = "cwy_usage6")]
pub static USAGE: HashMap<Addr, Usage, USAGE_ENTRIES> = HashMap::new();

/// Flows in the order in which they began or were looked at last.
#[btf_map(name = "cwy_age_queue6")]
pub static AGES: Queue<Key, AGE_ENTRIES> = Queue::new();

/// What is to be known of the node.
#[btf_map(name = "cwy_cfg6")]
pub static CFG: Array<Config<Addr>, 1> = Array::new();

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
