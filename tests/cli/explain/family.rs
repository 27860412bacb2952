//! What of the stage depends on the family of the packets' addresses.

use std::{
    fmt::Debug,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use anyhow::Result;
use causeway_common::{addr::Address, reason::Reason};
use causeway_tests::{
    dual_stack,
    fabric::{GATEWAY, INTERNET, NODE, PEERED, VNET, WIRESERVER},
    netns::Netns,
    node::{Datapath, Pod},
    rig::Rig,
};

use crate::scene::Scene;

/// A family, by the type of its addresses as they stand in the maps.
pub(super) trait Family: Address + aya::Pod + Debug {
    /// EtherType.
    const ETHERTYPE: [u8; 2];
    /// The filter of netfilter.
    const FILTER: &'static str;
    /// The map of the flows.
    const FLOWS: &'static str;
    /// The programs, in the order of the hooks.
    const PROGRAMS: [&'static str; 4];
    /// Hosts outside: of the internet, and of networks that keep the pods' addresses. To the first six the node knows no
    /// better way than to its router.
    const OUTSIDE: [Self; 8];
    const NODE: Self;
    /// What is for many.
    const MANY: Self;
    /// What is said of packets that nobody has sent: the link's own protocols come when they like.
    const OF_THE_LINK: &'static [Reason];
    /// Kinds of answers that there have to be at least.
    const KINDS: usize;

    fn ip(self) -> IpAddr;
    fn pod(pod: &Pod) -> Result<Self>;
    /// A node with two pods, which masquerades the family.
    fn scene(datapath: Datapath) -> Result<Scene>;
    /// Has the node know its next hops from here on.
    fn find_hops(node: &Netns, router: &Netns) -> Result<()>;
}

impl Family for [u8; 4] {
    const ETHERTYPE: [u8; 2] = [0x08, 0x00];
    const FILTER: &'static str = "iptables";
    const FLOWS: &'static str = "cwy_flows";
    const PROGRAMS: [&'static str; 4] = ["cwy_from_pod", "cwy_to_pod", "cwy_from_uplink", "cwy_to_uplink"];
    const OUTSIDE: [Self; 8] = [
        INTERNET.octets(),
        [8, 8, 8, 8],
        [172, 16, 3, 4],
        [169, 254, 169, 254],
        PEERED.octets(),
        [10, 99, 0, 1],
        VNET.octets(),
        WIRESERVER.octets(),
    ];
    const NODE: Self = NODE.octets();
    const MANY: Self = [224, 0, 0, 5];
    const OF_THE_LINK: &'static [Reason] = &[Reason::Arp];
    const KINDS: usize = 25;

    fn ip(self) -> IpAddr {
        Ipv4Addr::from(self).into()
    }

    fn pod(pod: &Pod) -> Result<Self> {
        Ok(pod.addr.octets())
    }

    fn scene(datapath: Datapath) -> Result<Scene> {
        Scene::with(datapath, 20, 2)
    }

    fn find_hops(node: &Netns, _: &Netns) -> Result<()> {
        [GATEWAY, VNET]
            .iter()
            .try_for_each(|to| node.output("ping", &["-c1", "-W2", &to.to_string()]).map(drop))
    }
}

impl Family for [u8; 16] {
    const ETHERTYPE: [u8; 2] = [0x86, 0xdd];
    const FILTER: &'static str = "ip6tables";
    const FLOWS: &'static str = "cwy_flows6";
    const PROGRAMS: [&'static str; 4] = ["cwy_from_pod6", "cwy_to_pod6", "cwy_from_wire6", "cwy_to_wire6"];
    const OUTSIDE: [Self; 8] = [
        dual_stack::INTERNET.octets(),
        Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 8).octets(),
        Ipv6Addr::new(0x2a00, 0, 0, 0, 0, 0, 0, 9).octets(),
        Ipv6Addr::new(0xfd00, 0x99, 0, 0, 0, 0, 0, 1).octets(),
        Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 7).octets(),
        Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0x0808, 0x0808).octets(),
        dual_stack::VNET.octets(),
        dual_stack::at(0x1_0099).octets(),
    ];
    const NODE: Self = dual_stack::NODE.octets();
    const MANY: Self = Ipv6Addr::new(0xff05, 0, 0, 0, 0, 0, 0, 5).octets();
    // The node asks for its neighbours by packets that look like any of its own as they leave.
    const OF_THE_LINK: &'static [Reason] = &[Reason::NeighbourDiscovery, Reason::NotFromPod];
    // Protocols without ports are not followed, and there is no wireserver.
    const KINDS: usize = 22;

    fn ip(self) -> IpAddr {
        Ipv6Addr::from(self).into()
    }

    fn pod(pod: &Pod) -> Result<Self> {
        Ok(pod.addr_v6()?.octets())
    }

    fn scene(_: Datapath) -> Result<Scene> {
        Scene::of(Rig::masquerading_ipv6()?, 2)
    }

    fn find_hops(node: &Netns, router: &Netns) -> Result<()> {
        let mac = router.mac("node")?.map(|byte| format!("{byte:02x}")).join(":");
        // Whoever has been silenced answers no solicitation.
        node.ip(&format!(
            "neigh replace fe80::1 lladdr {mac} dev eth0 nud permanent"
        ))
    }
}
