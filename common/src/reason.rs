//! Why a packet got the verdict it got. A reason is an index into `cwy_count`, a name in `causeway status` and a
//! row of `docs/debugging.md`; this table is the only list of them.

/// What becomes of the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Rewritten by us and redirected, past the stack.
    Carried,
    /// Left to the kernel (`TC_ACT_UNSPEC`: later programs on the hook run too).
    Stack,
    /// Dropped (`TC_ACT_SHOT`).
    Dropped,
    /// Not let through: the sender gets a TCP reset in its place.
    Refused,
    /// Not a verdict: something worth counting that happened beside one.
    Noted,
}

impl Verdict {
    /// The word people see.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Carried => "carried",
            Self::Stack => "stack",
            Self::Dropped => "dropped",
            Self::Refused => "refused",
            Self::Noted => "noted",
        }
    }
}

macro_rules! reasons {
    ($($variant:ident, $verdict:ident, $name:literal, $meaning:literal;)+) => {
        /// Why a packet got its verdict. The discriminant is the index into `cwy_count`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub enum Reason {
            $(#[doc = $meaning] $variant,)+
        }

        impl Reason {
            /// Every reason, in the order of the map.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// The name in `causeway status`.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            /// One sentence for a person who debugs.
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$variant => $meaning,)+ }
            }

            /// What becomes of a packet with this reason.
            #[inline(always)]
            pub const fn verdict(self) -> Verdict {
                match self { $(Self::$variant => Verdict::$verdict,)+ }
            }
        }
    };
}

reasons! {
    CarriedToPod, Carried, "carried_to_pod", "redirected into the pod's namespace";
    RoomMade, Carried, "room_made", "first packet that found no room: flows that were over have been forgotten, and the packet begins anew";
    FlowRestored, Carried, "flow_restored", "packet of a translated flow that had lost this direction's entry: written again, and the packet begins anew";
    FragmentWaits, Carried, "fragment_waits", "fragment that overtook its first one: put behind what has arrived meanwhile";
    CarriedToUplink, Carried, "carried_to_uplink", "redirected to the uplink";

    NotIp, Stack, "not_ip", "neither IPv4 nor IPv6 nor ARP";
    Arp, Stack, "arp", "ARP, answered by the kernel";
    Ipv6, Stack, "ipv6", "IPv6, routed by the kernel";
    Vlan, Stack, "vlan", "VLAN tagged";
    NotForUs, Stack, "not_for_us", "addressed to another station on the link";
    Malformed, Stack, "malformed", "header truncated or its lengths contradict each other: the kernel judges it";
    Fragment, Stack, "fragment", "IP fragment that needs no translation of ours";
    OtherProtocol, Stack, "other_protocol", "neither TCP, UDP nor an ICMP query, and needs no translation";
    IcmpError, Stack, "icmp_error", "ICMP error about a flow that is not carried or not known: the kernel judges it";
    SnatIcmpError, Stack, "snat_icmp_error", "ICMP error about a packet of a translated flow, translated with it";
    NeverOffered, Stack, "never_offered", "a destination that is never carried, or IP options: left to the kernel";
    Offered, Stack, "offered", "first packets of a flow: the kernel decides";
    OfferRefused, Stack, "offer_refused", "first packets of a flow, not offered because cwy_flows is full: the kernel keeps the flow";
    OfferQuota, Stack, "offer_quota", "first packets of a flow, not offered because the pod, or all hosts outside, have as many as they may have: the kernel keeps the flow";
    MidFlow, Stack, "mid_flow", "no entry, and not a packet that may open a flow";
    KernelFlow, Stack, "kernel_flow", "the kernel translates or ends this flow: it stays with the kernel";
    KernelFlowTranslated, Stack, "kernel_flow_nat", "flow of the kernel, with SNAT of ours: translated, then given to the stack";
    AddressChanged, Stack, "address_changed", "flow of an address that the node no longer has: forgotten, the stack goes on with the packet";
    TtlExpiring, Stack, "ttl_expiring", "TTL 1 or 0: the kernel answers with time exceeded";
    TooBig, Stack, "too_big", "larger than the next link's MTU: the kernel answers or fragments";
    StackKeepalive, Stack, "stack_keepalive", "packet of a carried flow, let up so that conntrack remembers the flow";
    Promoted, Stack, "promoted", "came out of the stack unchanged: the flow is carried from now on";
    SeenOneWay, Stack, "seen_one_way", "came out of the stack unchanged: carried once the answer does so too";
    RecordedKernel, Stack, "recorded_kernel", "the kernel changed or made this tuple: the flow stays with the kernel";
    CarriedTakesStack, Stack, "carried_takes_stack", "packet of a carried flow that took the stack";
    SnatPromoted, Stack, "snat_promoted", "first packet translated here, the flow is carried from now on";
    SnatKernel, Stack, "snat_kernel", "packet of a kernel flow, translated here";
    NotToPod, Stack, "not_to_pod", "arrives on the uplink for an address that is no pod's";
    NotFromPod, Stack, "not_from_pod", "leaves the uplink with a source that is no pod's";
    HostFlowTranslated, Stack, "host_flow_nat", "flow of the node itself whose port a pod's flow holds: translated to another";

    SourceAddress, Dropped, "source_address", "source address is not this pod's";
    SourceMac, Dropped, "source_mac", "source MAC is not this pod's";
    ArpSpoofed, Dropped, "arp_spoofed", "ARP sender is not this pod";
    UnknownInterface, Dropped, "unknown_interface", "no pod is registered for this interface";
    Wireserver, Dropped, "wireserver", "pod towards 168.63.129.16 port 80 or 32526: VM credentials are not for pods";
    SpoofedFromWire, Dropped, "spoofed_from_wire", "arrives on the uplink with the address of a pod of this node";
    PodDeparted, Dropped, "pod_departed", "source is a pod that has been removed";
    SnatFragment, Dropped, "snat_fragment", "fragment that would need translation, and whose first one has not passed";
    SnatProtocol, Dropped, "snat_protocol", "no ports, and another flow of the node has this protocol towards this remote; or ICMP that is neither a query nor about a flow";
    SnatMalformed, Dropped, "snat_malformed", "would need translation and cannot be parsed";
    SnatNoMapping, Dropped, "snat_no_mapping", "mid-flow packet that would need translation and has no mapping";
    SnatNoPort, Dropped, "snat_no_port", "no free port for this remote address and port";
    SnatQuota, Dropped, "snat_quota", "the pod has as many flows as it may have: the new one is refused";
    SnatTableFull, Dropped, "snat_table_full", "cwy_flows is full: the new flow is refused";
    SnatNotReady, Dropped, "snat_not_ready", "the node's address is not known yet, or the pod is not ready";
    SnatCollision, Dropped, "snat_collision", "kernel-translated flow on the tuple of a carried one: the newcomer is refused";
    RewriteFailed, Dropped, "rewrite_failed", "the kernel refused a rewrite helper";

    RecordRefused, Noted, "record_refused", "what the kernel did to a flow could not be noted because cwy_flows is full";
    Reclaimed, Noted, "reclaimed", "flow that was over, forgotten to make room for another";
    MappingRestored, Noted, "mapping_restored", "a translated flow had lost the entry of the other direction, or takes the stack: written again";
    FragmentAlone, Noted, "fragment_alone", "fragment whose first one did not come while it waited: left to the stack, which may be waiting for it";
    Demoted, Noted, "demoted", "carried flow given back to the kernel: its tuple also came out of a translation";
    PortRetried, Noted, "port_retried", "a socket of the node holds the port, the next candidate was tried";
    NextHopMoved, Noted, "next_hop_moved", "the next hop's MAC or device changed under a carried flow";

    // Behind the others, whose numbers older pins know.
    CarriedByXdp, Carried, "carried_by_xdp", "redirected into the pod's namespace by XDP, before the frame became a packet";
    Balanced, Stack, "balanced", "of a connection to the API server's virtual address: sent to its backend, or the answer";
    RetiredAddress, Refused, "retired_address", "opens a connection to an address that the API server has given up: refused";
    NoBackend, Refused, "no_backend", "opens a connection to the API server's virtual address while no backend is healthy: refused";
    BalanceRefused, Refused, "balance_refused", "opens a connection to the API server that cannot be told from another one, or for which cwy_flows has no room: refused";
    NotBalanced, Refused, "not_balanced", "of a connection to the API server's virtual address that is not known: reset";
    Drained, Refused, "drained", "of a connection whose API server or backend is gone, after the time to drain: reset";
    NeighbourDiscovery, Stack, "neighbour_discovery", "neighbour discovery or multicast listener discovery of IPv6: the kernel's";
    NeighbourSpoofed, Dropped, "neighbour_spoofed", "ICMPv6 by which a pod speaks for another's address or as a router, or might";
}

/// Entries of `cwy_count`: room for reasons to come without a change of the layout.
pub const COUNT_ENTRIES: usize = 128;

const _: () = assert!(Reason::ALL.len() <= COUNT_ENTRIES);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn discriminants_index_the_list_and_names_are_unique() {
        for (index, &reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(reason as usize, index);
            let same_name = Reason::ALL
                .iter()
                .filter(|other| other.name() == reason.name())
                .count();
            assert_eq!(same_name, 1, "{}", reason.name());
        }
    }

    #[test]
    fn every_reason_is_explained_in_the_debugging_guide() {
        let guide = include_str!("../../docs/debugging.md");
        for reason in Reason::ALL {
            assert!(
                guide.contains(&format!("| `{}` |", reason.name())),
                "no row for {}",
                reason.name()
            );
        }
    }
}
