//! Addresses as they stand on the wire, and what their family has of its own.

use crate::{
    checksum,
    icmp::{self, IcmpQuery},
};

/// An IP address in network byte order, usable as part of a map key.
pub trait Address: Copy + Eq {
    /// What fragments of one packet have in common beside its addresses and protocol: the identification, network order,
    /// with zeros behind it where that saves padding.
    type FragmentId: Copy + Eq + core::fmt::Debug;

    /// The family's name: `ipv4`, `ipv6`.
    const FAMILY: &'static str;
    /// Length in bits: the longest prefix of the family.
    const BITS: u32;
    /// The unspecified address (`0.0.0.0`, `::`).
    const UNSPECIFIED: Self;
    /// The family's ICMP: `IPPROTO_ICMP`, `IPPROTO_ICMPV6`.
    const ICMP: u8;
    /// Whether the checksum of the family's ICMP covers the addresses of the packet (RFC 792, RFC 4443 section 2.3).
    const ICMP_COVERS_ADDRESSES: bool;
    /// The platform's host, which answers DNS, health probes and, on two TCP ports, hands out the VM's credentials;
    /// unspecified where the family has none.
    const WIRESERVER: Self;

    /// What an ICMP message is that has an identifier; `None` for another one.
    fn icmp_query(kind: u8, code: u8) -> Option<IcmpQuery>;

    /// Whether an ICMP type quotes a packet of another flow.
    fn is_icmp_error(kind: u8) -> bool;

    /// Updates a checksum that covers an address, which changed from `old` to `new`. Bytes as they lie in memory.
    fn replace_in(check: u16, old: &Self, new: &Self) -> u16;

    /// The address folded into 32 bits, for hashing.
    fn fold(self) -> u32;

    /// An address that no unicast flow between two hosts can have as its destination: unspecified, loopback,
    /// link-local, multicast, limited broadcast (RFC 6890).
    fn is_special(self) -> bool;
}

impl Address for [u8; 4] {
    type FragmentId = [u8; 2];

    const FAMILY: &'static str = "ipv4";
    const BITS: u32 = 32;
    const UNSPECIFIED: Self = [0; 4];
    const ICMP: u8 = 1;
    const ICMP_COVERS_ADDRESSES: bool = false;
    const WIRESERVER: Self = [168, 63, 129, 16];

    #[inline(always)]
    fn icmp_query(kind: u8, code: u8) -> Option<IcmpQuery> {
        icmp::v4_query(kind, code)
    }

    #[inline(always)]
    fn is_icmp_error(kind: u8) -> bool {
        icmp::is_v4_error(kind)
    }

    #[inline(always)]
    fn replace_in(check: u16, old: &Self, new: &Self) -> u16 {
        checksum::replace_u32(check, *old, *new)
    }

    #[inline(always)]
    fn fold(self) -> u32 {
        u32::from_ne_bytes(self)
    }

    #[inline(always)]
    fn is_special(self) -> bool {
        let [a, b, ..] = self;
        a == 0 || a == 127 || a >= 224 || (a == 169 && b == 254)
    }
}

impl Address for [u8; 16] {
    type FragmentId = [u8; 6];

    const FAMILY: &'static str = "ipv6";
    const BITS: u32 = 128;
    const UNSPECIFIED: Self = [0; 16];
    const ICMP: u8 = 58;
    const ICMP_COVERS_ADDRESSES: bool = true;
    const WIRESERVER: Self = Self::UNSPECIFIED;

    #[inline(always)]
    fn icmp_query(kind: u8, code: u8) -> Option<IcmpQuery> {
        icmp::v6_query(kind, code)
    }

    #[inline(always)]
    fn is_icmp_error(kind: u8) -> bool {
        icmp::is_v6_error(kind)
    }

    #[inline(always)]
    fn replace_in(check: u16, old: &Self, new: &Self) -> u16 {
        checksum::replace_by(check, checksum::difference(old, new))
    }

    #[inline(always)]
    fn fold(self) -> u32 {
        let word = |i: usize| u32::from_ne_bytes([self[i], self[i + 1], self[i + 2], self[i + 3]]);
        word(0) ^ word(4).rotate_left(7) ^ word(8).rotate_left(15) ^ word(12).rotate_left(23)
    }

    #[inline(always)]
    fn is_special(self) -> bool {
        let [a, b, ..] = self;
        let loopback_or_unspecified = self[..15].iter().all(|&byte| byte == 0) && self[15] <= 1;
        a == 0xff || (a == 0xfe && b & 0xc0 == 0x80) || loopback_or_unspecified
    }
}

#[cfg(test)]
mod tests {
    use core::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    #[test]
    fn special_addresses_are_those_of_the_standard_library() {
        for text in [
            "0.0.0.0",
            "127.0.0.1",
            "169.254.169.254",
            "224.0.0.1",
            "239.255.255.250",
            "255.255.255.255",
        ] {
            let addr: Ipv4Addr = text.parse().unwrap();
            assert!(addr.octets().is_special(), "{text}");
        }
        for text in [
            "10.240.0.5",
            "168.63.129.16",
            "169.253.0.1",
            "203.0.113.9",
            "1.1.1.1",
        ] {
            let addr: Ipv4Addr = text.parse().unwrap();
            assert!(!addr.octets().is_special(), "{text}");
        }
        for (text, special) in [
            ("::", true),
            ("::1", true),
            ("fe80::1", true),
            ("ff02::1", true),
            ("2001:db8::1", false),
            ("fc00::1", false),
        ] {
            let addr: Ipv6Addr = text.parse().unwrap();
            assert_eq!(addr.octets().is_special(), special, "{text}");
        }
    }
}
