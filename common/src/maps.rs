//! Names, sizes and values of the maps, except `cwy_flows` ([`crate::flow`]) and `cwy_count` ([`crate::reason`]).
//!
//! | map | key | value | written by | read by |
//! |---|---|---|---|---|
//! | `cwy_flows` | [`FlowKey`](crate::tuple::FlowKey) | [`FlowEntry`](crate::flow::FlowEntry) | programs; userspace deletes | programs |
//! | `cwy_pods` | pod address | [`PodEntry`] | CNI | programs |
//! | `cwy_ifaces` | ifindex of the host veth | [`IfaceEntry`] | CNI | programs |
//! | `cwy_ranges` | list and prefix ([`RangeKey`]) | [`RangeEntry`] | CNI, agent | programs |
//! | `cwy_ports` | word index | [`PortWord`] | CNI, agent | programs |
//! | `cwy_balancer` | 0 | [`Balancer`] | agent | programs |
//! | `cwy_backends` | slot ([`crate::balance::slot`]) | [`Backend`] | agent | programs |
//! | `cwy_frags` | [`FragmentKey`](crate::fragment::FragmentKey) | [`FragmentEntry`](crate::fragment::FragmentEntry) | programs | programs |
//! | `cwy_crowds` | hash of the remote | [`Crowd`](crate::crowd::Crowd) | programs | programs |
//! | `cwy_moved` | hash of the flow | [`Moved`](crate::moved::Moved) | programs | programs |
//! | `cwy_usage` | pod address, 0.0.0.0 for the wire | [`Usage`] | programs; CNI adds and removes | programs |
//! | `cwy_age_queue` | none | [`FlowKey`](crate::tuple::FlowKey) | programs | programs |
//! | `cwy_budgets` | [`Reason`](crate::reason::Reason) | [`Budget`] per CPU | programs | programs |
//! | `cwy_events` | none | [`Event`](crate::event::Event) | programs | command line |
//! | `cwy_sweep_job` | 0 | [`SweepJob`] | sweeper, `cwy_sweep` | sweeper, `cwy_sweep` |
//! | `cwy_cfg` | 0 | [`Config`] | CNI, agent | programs |
//! | `cwy_ipv6` | hook | program for IPv6 | CNI | programs |
//! | `cwy_scratch` | 0 | [`Scratch`](crate::scratch::Scratch) per CPU | programs | programs |
//! | `cwy_count` | [`Reason`](crate::reason::Reason) | [`Count`] per CPU | programs | command line |
//!
//! For IPv6 there are, with the addresses of that family, those of [`V6_MAP_NAMES`].

use crate::lifetime::Timeouts;

/// Version of the layouts in this crate, part of the pin path. A change of any key or value increments it.
pub const SCHEMA: u32 = 2;

/// Entries of `cwy_flows` unless another number was chosen: two a flow, so 262,144 flows, the kernel's default
/// `nf_conntrack_max` on such nodes.
pub const FLOW_ENTRIES: usize = 524_288;
/// The fewest flows that a table may be made for: as many as one pod opens in a burst.
pub const FLOWS_LEAST: u32 = 1 << 14;
/// The most: a gigabyte of `cwy_flows`.
pub const FLOWS_MOST: u32 = 1 << 22;
/// Entries of `cwy_pods` and `cwy_ifaces`. AKS allows 250 pods a node; departed pods stay for a while.
pub const POD_ENTRIES: usize = 1024;
/// Entries of `cwy_age_queue`: a key for each flow, whatever number was chosen.
pub const AGE_ENTRIES: usize = FLOW_ENTRIES / 2;
/// Entries of `cwy_usage`: the pods and the wire.
pub const USAGE_ENTRIES: usize = POD_ENTRIES + 1;
/// Entries of `cwy_ipv6`: a program for each tc hook.
pub const HOOKS: usize = 4;
/// Bytes of `cwy_events`.
pub const EVENT_BYTES: usize = 256 << 10;
/// Flows that a pod may have at a time: a quarter of the table, and as many as fill all ports towards one remote.
pub const POD_QUOTA: u32 = FLOW_ENTRIES as u32 / 8;
/// Flows that all hosts outside may open towards the pods of the node: half of the table.
pub const WIRE_QUOTA: u32 = FLOW_ENTRIES as u32 / 4;
/// Ranges that a list may have.
pub const RANGES: usize = 16_384;
/// Entries of `cwy_ranges`: the list in force, and the one that is being made.
pub const RANGE_ENTRIES: usize = 2 * RANGES;

/// A pod of this node. All zero but `flags` and `changed` once it has departed.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodEntry {
    /// Index of the host end of the pod's veth pair, the target of `bpf_redirect_peer`.
    pub ifindex: u32,
    /// MAC of the pod's interface.
    pub mac: [u8; 6],
    /// MAC of the host end, which is the pod's gateway.
    pub host_mac: [u8; 6],
    /// MTU of the pod's interface in bytes.
    pub mtu: u16,
    /// [`PodEntry::READY`], [`PodEntry::DEPARTED`], [`PodEntry::STACK_ONLY`], [`PodEntry::TAKES_FRAMES`],
    /// [`PodEntry::WITHOUT_IPV4`].
    pub flags: u16,
    /// `CLOCK_MONOTONIC` seconds of the last change.
    pub changed: u32,
}

impl PodEntry {
    /// The programs are attached: flows of the pod may be carried and translated.
    pub const READY: u16 = 1;
    /// The pod has been removed. What is still under way from it is dropped, not sent with its address.
    pub const DEPARTED: u16 = 2;
    /// Every packet of the pod takes the stack: a queueing discipline of its interfaces has to see them all (the
    /// `bandwidth` plug-in's limits, say).
    pub const STACK_ONLY: u16 = 4;
    /// The pod's interface takes frames that `cwy_xdp_uplink` redirects: it polls (NAPI), which a veth does once GRO has
    /// been turned on (Linux 5.13).
    pub const TAKES_FRAMES: u16 = 8;
    /// The pod has this address of IPv6 alone: with it the programs leave the pod's interface. The programs themselves do not
    /// look at it.
    pub const WITHOUT_IPV4: u16 = 16;

    /// Whether flows of the pod may be translated.
    #[inline(always)]
    pub fn is_ready(&self) -> bool {
        self.flags & Self::READY != 0
    }

    /// The destination MAC of the pod's frames on the wire, `dst_mac`, if XDP may redirect them to the pod; else zeros,
    /// which no frame is addressed to.
    #[inline(always)]
    pub fn frames_at(&self, dst_mac: [u8; 6]) -> [u8; 6] {
        if self.flags & Self::TAKES_FRAMES != 0 && self.may_be_carried() {
            dst_mac
        } else {
            [0; 6]
        }
    }

    /// Whether flows of the pod may be carried.
    #[inline(always)]
    pub fn may_be_carried(&self) -> bool {
        self.flags & (Self::READY | Self::STACK_ONLY) == Self::READY
    }
}

/// Who may send on an interface.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IfaceEntry<A> {
    /// The pod's address.
    pub addr: A,
    /// The pod's MAC.
    pub mac: [u8; 6],
    /// Zero.
    pub _pad: [u8; 2],
}

/// What is looked up in `cwy_ranges`, behind the length of the prefix in bits, which counts `list`, too.
///
/// A list is exchanged as a whole: the next one is made beside the one in force, and [`Config::range_list`] says
/// which one that is. So every packet is judged by one list, the old one or the new one.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RangeKey<A> {
    /// The list that the range is of.
    pub list: u8,
    /// The range's address.
    pub addr: A,
}

impl<A> RangeKey<A> {
    /// Bits of `list`.
    pub const LIST_BITS: u32 = u8::BITS;
}

/// What a range of addresses is to the masquerade decision ([`crate::decide::masquerade`]).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RangeEntry {
    /// One of [`RangeClass`].
    pub class: u8,
    /// Zero.
    pub _pad: [u8; 3],
}

/// Values of [`RangeEntry::class`].
#[derive(Debug)]
pub struct RangeClass;

impl RangeClass {
    /// Never masqueraded.
    pub const EXCLUDED: u8 = 1;
    /// Masqueraded, inside a wider excluded range.
    pub const MASQUERADED: u8 = 2;
    /// The API server's: never masqueraded, whatever the other ranges say.
    pub const API_SERVER: u8 = 3;
    /// The API server's virtual address, which this node spreads over its backends. Never masqueraded.
    pub const BALANCED: u8 = 4;
    /// An address that the API server has given up: TCP connections to it are refused. Never masqueraded.
    pub const RETIRED: u8 = 5;
    /// As [`RangeClass::RETIRED`], and masqueraded: a public address.
    pub const CLOSED: u8 = 6;
}

/// How the API server's virtual address is spread over its backends.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Balancer {
    /// TCP ports, network order; zeros for none.
    pub ports: [[u8; 2]; Self::PORTS],
}

impl Balancer {
    /// Ports that there may be.
    pub const PORTS: usize = 8;

    /// Whether connections to a port (network order) are spread.
    #[inline(always)]
    pub fn serves(&self, port: [u8; 2]) -> bool {
        port != [0; 2] && self.ports.contains(&port)
    }
}

/// The backend that stands in a slot.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backend<A> {
    /// Its address, network order; unspecified while no backend is healthy.
    pub addr: A,
}

/// 64 ports of the reserved-port bitmap ([`crate::ports::reserved_bit`]).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortWord {
    /// Bit `port % 64` is set for a reserved port.
    pub reserved: u64,
}

/// What the programs know of the node. Replaced as a whole.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config<A> {
    /// Primary address of the uplink: the new source of masqueraded packets.
    pub node_addr: A,
    /// Index of the uplink.
    pub uplink_ifindex: u32,
    /// MTU of the uplink in bytes.
    pub uplink_mtu: u32,
    /// Random, made when the datapath is loaded and kept for its life: seeds port probing and tags.
    pub seed: u32,
    /// Flows that a pod may have at a time.
    pub pod_quota: u32,
    /// Flows that all hosts outside may have towards pods at a time.
    pub wire_quota: u32,
    /// The list of `cwy_ranges` in force: 0 or 1.
    pub range_list: u32,
    /// Idle times in seconds.
    pub timeouts: Timeouts,
}

/// How many flows one opener has. A flow is counted when its first packet is offered or translated, and no more when it
/// is forgotten.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Flows at present. Changed by atomic additions; below zero if more were forgotten than counted.
    pub flows: i32,
    /// Flows that the sweep under way has counted.
    pub swept: i32,
}

impl Usage {
    /// Whether another flow may be opened under `quota`.
    #[inline(always)]
    pub fn has_room(self, quota: u32) -> bool {
        i64::from(self.flows) < i64::from(quota)
    }
}

/// How much of something rare a CPU may still do in a second: events of one reason, searches for a lost mapping.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Budget {
    /// `CLOCK_MONOTONIC` second to which `spent` belongs.
    pub second: u32,
    /// What has been spent in it.
    pub spent: u32,
}

impl Budget {
    /// Spends one, if less than `most` have been spent in the second `now`.
    #[inline(always)]
    pub fn spend(&mut self, now: u32, most: u32) -> bool {
        if self.second != now {
            self.second = now;
            self.spent = 0;
        }
        let may = self.spent < most;
        if may {
            self.spent += 1;
        }
        may
    }
}

/// Entries that `cwy_sweep` forgets in one pass over the table; one more if the last was half of a pair. What else is over
/// stays for the next pass. It bounds what a pass costs: to forget an entry takes longer than to look at one that lives.
pub const SWEEP_MOST: u32 = 1 << 17;

/// What `cwy_sweep` is to do, and what it did. One sweep runs at a time.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SweepJob {
    /// `CLOCK_MONOTONIC` seconds at which a flow must be over to be forgotten.
    pub now: u32,
    /// Entries looked at.
    pub scanned: u32,
    /// Entries forgotten.
    pub deleted: u32,
    /// Entries that are idle and stay because the other direction is not.
    pub kept_by_peer: u32,
}

/// How often a reason was given, by hook. Packets; a GSO packet counts once.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// At `cwy_from_pod`.
    pub from_pod: u64,
    /// At `cwy_to_pod`.
    pub to_pod: u64,
    /// At `cwy_from_uplink`.
    pub from_uplink: u64,
    /// At `cwy_to_uplink`.
    pub to_uplink: u64,
}

// No padding: the sizes are the sums of the fields.
const _: () = assert!(size_of::<PodEntry>() == 4 + 6 + 6 + 2 + 2 + 4);
const _: () = assert!(size_of::<IfaceEntry<[u8; 4]>>() == 4 + 6 + 2);
const _: () = assert!(size_of::<IfaceEntry<[u8; 16]>>() == 16 + 6 + 2);
const _: () = assert!(size_of::<RangeEntry>() == 4);
const _: () = assert!(size_of::<PortWord>() == 8);
const _: () = assert!(size_of::<Balancer>() == 16);
const _: () = assert!(size_of::<Backend<[u8; 4]>>() == 4);
const _: () = assert!(size_of::<Timeouts>() == 8 * 4);
const _: () = assert!(size_of::<RangeKey<[u8; 4]>>() == 1 + 4);
const _: () = assert!(size_of::<RangeKey<[u8; 16]>>() == 1 + 16);
const _: () = assert!(size_of::<Config<[u8; 4]>>() == 4 + 4 + 4 + 4 + 4 + 4 + 4 + 32);
const _: () = assert!(size_of::<Config<[u8; 16]>>() == 16 + 4 + 4 + 4 + 4 + 4 + 4 + 32);
const _: () = assert!(size_of::<Count>() == 4 * 8);
const _: () = assert!(size_of::<Usage>() == 4 + 4);
const _: () = assert!(size_of::<Budget>() == 4 + 4);
const _: () = assert!(size_of::<SweepJob>() == 4 * 4);

/// The names of the maps, as `bpftool` and the pin directory show them.
pub const MAP_NAMES: [&str; 19] = [
    "cwy_flows",
    "cwy_pods",
    "cwy_ifaces",
    "cwy_ranges",
    "cwy_ports",
    "cwy_balancer",
    "cwy_backends",
    "cwy_frags",
    "cwy_crowds",
    "cwy_moved",
    "cwy_usage",
    "cwy_age_queue",
    "cwy_budgets",
    "cwy_events",
    "cwy_sweep_job",
    "cwy_cfg",
    "cwy_scratch",
    "cwy_count",
    IPV6_MAP,
];

/// The map by which the programs for IPv4 hand over what is of IPv6.
pub const IPV6_MAP: &str = "cwy_ipv6";

/// The names of the maps that are there once a pod has an IPv6 address: layouts as those of IPv4, with other addresses.
pub const V6_MAP_NAMES: [&str; 11] = [
    "cwy_flows6",
    "cwy_pods6",
    "cwy_ifaces6",
    "cwy_ranges6",
    "cwy_frags6",
    "cwy_crowds6",
    "cwy_moved6",
    "cwy_usage6",
    "cwy_age_queue6",
    "cwy_cfg6",
    "cwy_scratch6",
];

/// Maps that the programs of both families have in common.
pub const SHARED_MAP_NAMES: [&str; 5] = [
    "cwy_ports",
    "cwy_budgets",
    "cwy_events",
    "cwy_sweep_job",
    "cwy_count",
];

/// The names of the programs, as `bpftool` and the pin directory show them.
pub const PROGRAM_NAMES: [&str; HOOKS] = ["cwy_from_pod", "cwy_to_pod", "cwy_from_uplink", "cwy_to_uplink"];
/// The programs for IPv6, in the places of those for IPv4 on whose hooks they go on.
pub const V6_PROGRAM_NAMES: [&str; HOOKS] =
    ["cwy_from_pod6", "cwy_to_pod6", "cwy_from_wire6", "cwy_to_wire6"];
/// As [`SWEEP_PROGRAM`], for IPv6.
pub const V6_SWEEP_PROGRAM: &str = "cwy_sweep6";
/// The name of the XDP program, and of its pin: there only where it is asked for.
pub const XDP_PROGRAM: &str = "cwy_xdp_uplink";
/// The name of the iterator program that sweeps, and of its pin.
pub const SWEEP_PROGRAM: &str = "cwy_sweep";

/// The name of the program that puts a frame on an interface, and of its pin.
pub const INJECT_PROGRAM: &str = "cwy_inject";

/// `BPF_OBJ_NAME_LEN` less the closing zero (Linux 6.18): longer names are cut by the kernel.
const NAME_MAX: usize = 15;

const _: () = {
    assert!(are_short(&MAP_NAMES) && are_short(&V6_MAP_NAMES));
    assert!(are_short(&PROGRAM_NAMES) && are_short(&V6_PROGRAM_NAMES));
    assert!(are_short(&[
        XDP_PROGRAM,
        SWEEP_PROGRAM,
        V6_SWEEP_PROGRAM,
        INJECT_PROGRAM
    ]));
};

const fn are_short(names: &[&str]) -> bool {
    let mut i = 0;
    while i < names.len() {
        if names[i].len() > NAME_MAX {
            return false;
        }
        i += 1;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{flow::FlowEntry, tuple::FlowKey};

    #[test]
    fn a_budget_is_anew_every_second() {
        let mut budget = Budget::default();
        let mut spend = |now| (0..5).filter(|_| budget.spend(now, 3)).count();
        assert_eq!((spend(7), spend(7), spend(8)), (3, 0, 3));
    }

    #[test]
    fn a_usage_below_zero_has_room() {
        let usage = |flows| Usage { flows, swept: 0 };
        assert!(usage(-1).has_room(1) && usage(0).has_room(1) && !usage(1).has_room(1));
        assert!(!usage(0).has_room(0));
    }

    /// Linux 6.18: an element of a preallocated hash has a header of 48 bytes and key and value rounded up to 8;
    /// a bucket has 16 bytes.
    #[test]
    fn the_flow_table_fits_the_memory_that_the_readme_names() {
        let (key, value) = (size_of::<FlowKey<[u8; 4]>>(), size_of::<FlowEntry<[u8; 4]>>());
        assert!(
            2 * (key + value) + key <= 160,
            "bytes a flow: both directions, and its place in the queue"
        );
        let total = FLOW_ENTRIES * (48 + key.next_multiple_of(8) + value.next_multiple_of(8) + 16);
        assert_eq!(total, 64 << 20);
    }
}
