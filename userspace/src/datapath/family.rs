//! The families of addresses, each with maps and a sweep of its own.

use std::{fmt::Debug, net::IpAddr};

use aya::Pod;
use causeway_common::{
    addr::Address,
    maps::{SWEEP_PROGRAM, V6_SWEEP_PROGRAM},
};
use ipnet::{Ipv4Net, Ipv6Net};

/// A family, by the type of its addresses as they stand in the maps.
pub(crate) trait Family: Address<FragmentId: Pod> + Pod + Debug + Ord {
    /// A range of its addresses.
    type Net: Copy + Debug + Ord;

    /// The names of its maps.
    const MAPS: Maps;
    /// The name of the program that sweeps its flows.
    const SWEEP: &'static str;

    /// The address as everybody else writes it.
    fn ip(self) -> IpAddr;

    /// The range of addresses that have the first `len` bits of this one; `None` if it has not so many.
    fn net(self, len: u32) -> Option<Self::Net>;

    /// The first address of a range, and how many bits all of them have in common.
    fn first(net: &Self::Net) -> (Self, u32);

    /// A range without host bits.
    fn trunc(net: &Self::Net) -> Self::Net {
        let (first, len) = Self::first(net);
        first.net(len).unwrap_or(*net)
    }
}

/// The names of a family's maps.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Maps {
    pub(crate) flows: &'static str,
    pub(crate) ages: &'static str,
    pub(crate) pods: &'static str,
    pub(crate) ifaces: &'static str,
    pub(crate) usage: &'static str,
    pub(crate) ranges: &'static str,
    pub(crate) config: &'static str,
}

impl Family for [u8; 4] {
    type Net = Ipv4Net;

    const MAPS: Maps = Maps {
        flows: "cwy_flows",
        ages: "cwy_age_queue",
        pods: "cwy_pods",
        ifaces: "cwy_ifaces",
        usage: "cwy_usage",
        ranges: "cwy_ranges",
        config: "cwy_cfg",
    };
    const SWEEP: &'static str = SWEEP_PROGRAM;

    fn ip(self) -> IpAddr {
        self.into()
    }

    fn net(self, len: u32) -> Option<Ipv4Net> {
        Ipv4Net::new(self.into(), u8::try_from(len).ok()?).ok()
    }

    fn first(net: &Ipv4Net) -> (Self, u32) {
        (net.network().octets(), net.prefix_len().into())
    }
}

impl Family for [u8; 16] {
    type Net = Ipv6Net;

    const MAPS: Maps = Maps {
        flows: "cwy_flows6",
        ages: "cwy_age_queue6",
        pods: "cwy_pods6",
        ifaces: "cwy_ifaces6",
        usage: "cwy_usage6",
        ranges: "cwy_ranges6",
        config: "cwy_cfg6",
    };
    const SWEEP: &'static str = V6_SWEEP_PROGRAM;

    fn ip(self) -> IpAddr {
        self.into()
    }

    fn net(self, len: u32) -> Option<Ipv6Net> {
        Ipv6Net::new(self.into(), u8::try_from(len).ok()?).ok()
    }

    fn first(net: &Ipv6Net) -> (Self, u32) {
        (net.network().octets(), net.prefix_len().into())
    }
}
