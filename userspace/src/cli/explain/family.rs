//! What of an explanation depends on the family of the packet's addresses.

use std::{
    fmt::Debug,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use causeway::datapath::DatapathError;
use causeway_common::{addr::Address, reason::Reason};
use ipnet::IpNet;

use super::view::View;

/// A family, by the type of its addresses as they stand in the maps.
pub(super) trait Family: Address + aya::Pod + Debug {
    /// The names of its maps.
    const MAPS: Maps;
    /// The names of its programs.
    const PROGRAMS: Programs;
    /// Whether flows of it are balanced over the API server's backends and redirected by XDP.
    const HAS_API_SERVER: bool;
    /// What is said of a pod's packet from an interface by which no pod is known.
    const OF_STRANGER: Reason;

    /// The address as everybody else writes it.
    fn ip(self) -> IpAddr;

    /// What the kernel forwards from no interface to another: this network, loopback, multicast and broadcast
    /// (`ip_route_input_slow`, `ip6_forward`, Linux 6.18).
    fn is_never_forwarded(self) -> bool;

    /// The narrowest range with an address, and its class.
    fn range(view: &View<Self>, addr: Self) -> Result<Option<(IpNet, u8)>, DatapathError>;

    /// The backend that new connections of a hash are given; unspecified when there is none.
    fn backend(view: &View<Self>, hash: u32) -> Result<Self, DatapathError>;
}

pub(super) struct Maps {
    pub(super) flows: &'static str,
    pub(super) pods: &'static str,
    pub(super) ifaces: &'static str,
    pub(super) usage: &'static str,
    pub(super) config: &'static str,
}

pub(super) struct Programs {
    pub(super) from_pod: &'static str,
    pub(super) to_pod: &'static str,
    pub(super) from_uplink: &'static str,
    pub(super) to_uplink: &'static str,
}

impl Family for [u8; 4] {
    const MAPS: Maps = Maps {
        flows: "cwy_flows",
        pods: "cwy_pods",
        ifaces: "cwy_ifaces",
        usage: "cwy_usage",
        config: "cwy_cfg",
    };
    const PROGRAMS: Programs = Programs {
        from_pod: "cwy_from_pod",
        to_pod: "cwy_to_pod",
        from_uplink: "cwy_from_uplink",
        to_uplink: "cwy_to_uplink",
    };
    const HAS_API_SERVER: bool = true;
    const OF_STRANGER: Reason = Reason::UnknownInterface;

    fn ip(self) -> IpAddr {
        Ipv4Addr::from(self).into()
    }

    fn is_never_forwarded(self) -> bool {
        matches!(self[0], 0 | 127 | 224..=239 | 255)
    }

    fn range(view: &View<Self>, addr: Self) -> Result<Option<(IpNet, u8)>, DatapathError> {
        let ranges = view.datapath().ranges()?;
        Ok(narrowest(ranges, addr.ip()))
    }

    fn backend(view: &View<Self>, hash: u32) -> Result<Self, DatapathError> {
        view.datapath()
            .backend_at(causeway_common::balance::slot(hash, 0))
    }
}

impl Family for [u8; 16] {
    const MAPS: Maps = Maps {
        flows: "cwy_flows6",
        pods: "cwy_pods6",
        ifaces: "cwy_ifaces6",
        usage: "cwy_usage6",
        config: "cwy_cfg6",
    };
    const PROGRAMS: Programs = Programs {
        from_pod: "cwy_from_pod6",
        to_pod: "cwy_to_pod6",
        from_uplink: "cwy_from_wire6",
        to_uplink: "cwy_to_wire6",
    };
    const HAS_API_SERVER: bool = false;
    const OF_STRANGER: Reason = Reason::SourceAddress;

    fn ip(self) -> IpAddr {
        Ipv6Addr::from(self).into()
    }

    fn is_never_forwarded(self) -> bool {
        self.is_special()
    }

    fn range(view: &View<Self>, addr: Self) -> Result<Option<(IpNet, u8)>, DatapathError> {
        let ranges = view.datapath().ranges_v6()?;
        Ok(narrowest(ranges, addr.ip()))
    }

    fn backend(_: &View<Self>, _: u32) -> Result<Self, DatapathError> {
        Ok(Self::UNSPECIFIED)
    }
}

fn narrowest<N: Into<IpNet>>(ranges: Vec<(N, u8)>, addr: IpAddr) -> Option<(IpNet, u8)> {
    let ranges = ranges.into_iter().map(|(prefix, class)| (prefix.into(), class));
    let around = ranges.filter(|(prefix, _)| prefix.contains(&addr));
    around.max_by_key(|(prefix, _)| prefix.prefix_len())
}
