//! IPv4 and IPv6: what a measure of both has to know of each.

use std::net::{IpAddr, Ipv4Addr};

use causeway_tests::{dual_stack, fabric::GATEWAY};

use crate::programs::layout::{Layout, V4, V6};

/// A family of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// An address's.
    pub(crate) fn of(addr: IpAddr) -> Self {
        match addr {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// The name in tables.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    /// Where things stand in its frames.
    pub(crate) fn layout(self) -> &'static Layout {
        match self {
            Self::V4 => &V4,
            Self::V6 => &V6,
        }
    }

    /// Bits of an address.
    pub(crate) fn bits(self) -> u32 {
        self.layout().addr() as u32 * 8
    }

    /// The first address of the VNet, in an excluded range, that is sent to or from.
    pub(crate) fn vnet(self) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::new(10, 1, 0, 0).into(),
            Self::V6 => dual_stack::VNET.into(),
        }
    }

    /// An address of the far end towards which nothing is translated.
    pub(crate) fn far(self) -> IpAddr {
        match self {
            Self::V4 => GATEWAY.into(),
            Self::V6 => dual_stack::at(0x1_0001).into(),
        }
    }
}

/// An address as it stands on the wire.
pub(crate) fn octets(addr: IpAddr) -> Vec<u8> {
    match addr {
        IpAddr::V4(addr) => addr.octets().to_vec(),
        IpAddr::V6(addr) => addr.octets().to_vec(),
    }
}
