//! The families of addresses, each with maps and a sweep of its own.

use std::{fmt::Debug, net::IpAddr};

use aya::Pod;
use causeway_common::{
    addr::Address,
    maps::{SWEEP_PROGRAM, V6_SWEEP_PROGRAM},
};

/// A family, by the type of its addresses as they stand in the maps.
pub(crate) trait Family: Address + Pod + Debug + Ord {
    /// The names of its maps.
    const MAPS: Maps;
    /// The name of the program that sweeps its flows.
    const SWEEP: &'static str;

    /// The address as everybody else writes it.
    fn ip(self) -> IpAddr;
}

/// The names of a family's maps.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Maps {
    pub(crate) flows: &'static str,
    pub(crate) pods: &'static str,
    pub(crate) ifaces: &'static str,
    pub(crate) usage: &'static str,
    pub(crate) config: &'static str,
}

impl Family for [u8; 4] {
    const MAPS: Maps = Maps {
        flows: "cwy_flows",
        pods: "cwy_pods",
        ifaces: "cwy_ifaces",
        usage: "cwy_usage",
        config: "cwy_cfg",
    };
    const SWEEP: &'static str = SWEEP_PROGRAM;

    fn ip(self) -> IpAddr {
        self.into()
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
    const SWEEP: &'static str = V6_SWEEP_PROGRAM;

    fn ip(self) -> IpAddr {
        self.into()
    }
}
