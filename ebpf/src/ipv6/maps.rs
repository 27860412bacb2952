//! The maps that hold IPv6 addresses.

use aya_ebpf::{
    btf_maps::{Array, HashMap, Queue},
    macros::btf_map,
};
use causeway_common::maps::{
    AGE_ENTRIES, Config, FLOW_ENTRIES, IfaceEntry, POD_ENTRIES, PodEntry, USAGE_ENTRIES, Usage,
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

/// How many flows each pod, and the wire, has opened.
#[btf_map(name = "cwy_usage6")]
pub static USAGE: HashMap<Addr, Usage, USAGE_ENTRIES> = HashMap::new();

/// Flows in the order in which they began or were looked at last.
#[btf_map(name = "cwy_age_queue6")]
pub static AGES: Queue<Key, AGE_ENTRIES> = Queue::new();

/// What is to be known of the node.
#[btf_map(name = "cwy_cfg6")]
pub static CFG: Array<Config<Addr>, 1> = Array::new();
