//! The families of addresses, and what the bench of each is made of.

use std::{
    fmt::{Debug, Display},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use causeway_common::{
    addr::Address,
    maps::{PROGRAM_NAMES, V6_PROGRAM_NAMES},
};

use super::Hook;

/// A family, by the type of its addresses as they are written.
pub(crate) trait Family: Copy + Eq + Debug + Display + Into<IpAddr> + Send + Sync + 'static {
    /// An address as it stands in the maps.
    type Octets: Address + aya::Pod + Debug;

    const NODE: Self;
    /// The pods.
    const PODS: [Self; 2];
    /// A host that sees the node's address alone, and its neighbours.
    const INTERNET: Self;
    const NEIGHBOURS: [Self; 2];
    /// Whom hosts outside have for an account.
    const UNSPECIFIED: Self;
    /// Ranges that are not masqueraded.
    const EXCLUDED: &[(Self, u32)];
    /// Length of the subnet's prefix.
    const SUBNET_BITS: u32;
    /// What the names of its maps end in.
    const MAP_SUFFIX: &str;
    /// Where what the IP header carries begins in a frame.
    const L4: usize;

    fn octets(self) -> Self::Octets;

    /// What the programs are loaded from.
    fn object() -> &'static [u8];

    fn program(hook: Hook) -> &'static str;

    /// The source of a packet in a frame.
    fn source(frame: &[u8]) -> Self;
}

impl Family for Ipv4Addr {
    type Octets = [u8; 4];

    const NODE: Self = Self::new(10, 240, 0, 4);
    const PODS: [Self; 2] = [Self::new(10, 240, 0, 5), Self::new(10, 240, 0, 6)];
    const INTERNET: Self = Self::new(203, 0, 113, 10);
    const NEIGHBOURS: [Self; 2] = [Self::new(203, 0, 113, 1), Self::new(203, 0, 113, 2)];
    const UNSPECIFIED: Self = Self::UNSPECIFIED;
    const EXCLUDED: &[(Self, u32)] = &[(Self::new(10, 0, 0, 0), 8), (Self::new(168, 63, 129, 16), 32)];
    const SUBNET_BITS: u32 = 16;
    const MAP_SUFFIX: &str = "";
    const L4: usize = 14 + 20;

    fn octets(self) -> [u8; 4] {
        Self::octets(&self)
    }

    fn object() -> &'static [u8] {
        causeway::datapath::OBJECT
    }

    fn program(hook: Hook) -> &'static str {
        PROGRAM_NAMES[hook as usize]
    }

    fn source(frame: &[u8]) -> Self {
        let octets: [u8; 4] = frame[26..30].try_into().unwrap();
        octets.into()
    }
}

impl Family for Ipv6Addr {
    type Octets = [u8; 16];

    const NODE: Self = Self::new(0xfd00, 0x10, 0, 0, 0, 0, 0, 4);
    const PODS: [Self; 2] = [
        Self::new(0xfd00, 0x10, 0, 0, 0, 0, 0, 5),
        Self::new(0xfd00, 0x10, 0, 0, 0, 0, 0, 6),
    ];
    const INTERNET: Self = Self::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x10);
    const NEIGHBOURS: [Self; 2] = [
        Self::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1),
        Self::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2),
    ];
    const UNSPECIFIED: Self = Self::UNSPECIFIED;
    const EXCLUDED: &[(Self, u32)] = &[(Self::new(0xfc00, 0, 0, 0, 0, 0, 0, 0), 7)];
    const SUBNET_BITS: u32 = 64;
    const MAP_SUFFIX: &str = "6";
    const L4: usize = 14 + 40;

    fn octets(self) -> [u8; 16] {
        Self::octets(&self)
    }

    fn object() -> &'static [u8] {
        causeway::datapath::OBJECT_V6
    }

    fn program(hook: Hook) -> &'static str {
        V6_PROGRAM_NAMES[hook as usize]
    }

    fn source(frame: &[u8]) -> Self {
        let octets: [u8; 16] = frame[22..38].try_into().unwrap();
        octets.into()
    }
}

/// Tests of either family: each of these functions with its addresses.
macro_rules! of_both_families {
    ($($name:ident),+ $(,)?) => {
        mod ipv4 {
            $(#[test]
            fn $name() {
                super::$name::<std::net::Ipv4Addr>();
            })+
        }

        mod ipv6 {
            $(#[test]
            fn $name() {
                super::$name::<std::net::Ipv6Addr>();
            })+
        }
    };
}

pub(crate) use of_both_families;
