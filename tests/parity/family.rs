//! What the traffic of IPv4 and of IPv6 has of its own: addresses, lengths, numbers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use causeway_common::tuple;
use causeway_tests::{dual_stack, fabric};

/// A family of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

use Family::{V4, V6};

/// An error of ICMP: type, code and second word.
pub(crate) type IcmpError = (u8, u8, u32);

impl Family {
    pub(crate) const BOTH: [Self; 2] = [V4, V6];

    pub(crate) fn of(addr: IpAddr) -> Self {
        match addr {
            IpAddr::V4(_) => V4,
            IpAddr::V6(_) => V6,
        }
    }

    /// The node's address.
    pub(crate) fn node(self) -> IpAddr {
        self.choose(fabric::NODE, dual_stack::NODE)
    }

    /// Another host of the node's subnet.
    pub(crate) fn vnet(self) -> IpAddr {
        self.choose(fabric::VNET, dual_stack::VNET)
    }

    /// Another host, in an excluded range.
    pub(crate) fn peered(self) -> IpAddr {
        self.excluded(0, 10)
    }

    /// An address of the excluded range.
    pub(crate) fn excluded(self, subnet: u8, host: u8) -> IpAddr {
        let v6 = Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, subnet.into(), host.into());
        self.choose(Ipv4Addr::new(10, 1, subnet, host), v6)
    }

    /// A host towards which the node's route has a smaller MTU (RFC 2544, RFC 5180).
    pub(crate) fn narrow(self, host: u8) -> IpAddr {
        let v6 = Ipv6Addr::new(0x2001, 2, 0, 0, 0, 0, 0, host.into());
        self.choose(Ipv4Addr::new(198, 18, 0, host), v6)
    }

    /// Host `number` of a range that nobody else has to do with.
    pub(crate) fn stranger(self, number: u32) -> IpAddr {
        let [_, b, c, d] = number.to_be_bytes();
        let v6 = 0x2600_0045 << 96 | u128::from(number);
        self.choose(Ipv4Addr::new(45, b, c, d), Ipv6Addr::from_bits(v6))
    }

    /// A host of a range for documentation (RFC 5737, RFC 3849).
    pub(crate) fn documentation(self, range: u8, host: u16) -> IpAddr {
        let [a, b] = if range == 2 { [192, 0] } else { [203, 0] };
        let v6 = Ipv6Addr::new(0x2001, 0xdb8, range.into(), 0, 0, 0, 0, host);
        self.choose(Ipv4Addr::new(a, b, range, host as u8), v6)
    }

    /// Host `number`, of 22 bits, of a large range (RFC 6598, RFC 3849).
    pub(crate) fn vast(self, number: u32) -> IpAddr {
        let v6 = 0x2001_0db8_0064 << 80 | u128::from(number);
        self.choose(Ipv4Addr::from_bits(0x6440_0000 | number), Ipv6Addr::from_bits(v6))
    }

    /// An address in none of the node's networks.
    pub(crate) fn foreign(self) -> IpAddr {
        self.choose([192, 168, 7, 7], Ipv6Addr::new(0xfd00, 7, 0, 0, 0, 0, 0, 7))
    }

    /// Sources that no packet from outside may have (RFC 1812 section 5.3.7, RFC 4291 section 2.5), and the node's own address.
    pub(crate) fn martians(self) -> Vec<IpAddr> {
        let texts = match self {
            V4 => ["127.0.0.1", "0.0.0.1", "224.0.0.1", "255.255.255.255"],
            V6 => ["::1", "::", "ff0e::1", "ff02::1"],
        };
        let mut all: Vec<IpAddr> = texts.iter().filter_map(|text| text.parse().ok()).collect();
        all.push(self.node());
        all
    }

    /// Destinations to which no router takes a packet.
    pub(crate) fn nowhere(self) -> Vec<IpAddr> {
        let texts: &[&str] = match self {
            V4 => &[
                "224.0.0.1",
                "239.1.2.3",
                "255.255.255.255",
                "127.0.0.1",
                "10.240.255.255",
            ],
            V6 => &["ff02::1", "ff05::1:3", "ff0e::1", "::1"],
        };
        texts.iter().filter_map(|text| text.parse().ok()).collect()
    }

    /// Number of the family's ICMP.
    pub(crate) fn icmp(self) -> u8 {
        match self {
            V4 => 1,
            V6 => 58,
        }
    }

    /// ICMP types of an echo's question and answer (RFC 792, RFC 4443).
    pub(crate) fn echo(self) -> (u8, u8) {
        match self {
            V4 => (8, 0),
            V6 => (128, 129),
        }
    }

    /// ICMP types that conntrack has flows of, the question and its answer (RFC 792, RFC 950, RFC 4443, RFC 4620).
    fn queries(self) -> &'static [(u8, u8)] {
        match self {
            V4 => &[(8, 0), (13, 14), (15, 16), (17, 18)],
            V6 => &[(128, 129), (139, 140)],
        }
    }

    pub(crate) fn is_question(self, kind: u8) -> bool {
        self.queries().iter().any(|query| query.0 == kind)
    }

    pub(crate) fn is_answer(self, kind: u8) -> bool {
        self.queries().iter().any(|query| query.1 == kind)
    }

    /// Whether messages of this type quote a packet that is to be translated with them.
    pub(crate) fn is_error(self, kind: u8) -> bool {
        match self {
            V4 => matches!(kind, 3 | 4 | 11 | 12),
            V6 => matches!(kind, 1..=4),
        }
    }

    /// Of IPv4: net and host unreachable, port unreachable, fragmentation needed, administratively prohibited, source
    /// quench, time exceeded, parameter problem. Of IPv6: no route, prohibited, address and port unreachable, failed
    /// policy, packet too big, time exceeded, parameter problems.
    pub(crate) fn errors(self) -> &'static [IcmpError] {
        match self {
            V4 => &[
                (3, 0, 0),
                (3, 1, 0),
                (3, 3, 0),
                (3, 4, 1400),
                (3, 4, 576),
                (3, 13, 0),
                (4, 0, 0),
                (11, 0, 0),
                (11, 1, 0),
                (12, 0, 0x1400_0000),
            ],
            V6 => &[
                (1, 0, 0),
                (1, 1, 0),
                (1, 3, 0),
                (1, 4, 0),
                (1, 5, 0),
                (2, 0, 1400),
                (2, 0, 1280),
                (3, 0, 0),
                (3, 1, 0),
                (4, 0, 40),
                (4, 1, 6),
            ],
        }
    }

    /// Nobody listens on the port.
    pub(crate) fn port_unreachable(self) -> IcmpError {
        match self {
            V4 => (3, 3, 0),
            V6 => (1, 4, 0),
        }
    }

    /// Somebody's policy forbids it.
    pub(crate) fn prohibited(self) -> IcmpError {
        match self {
            V4 => (3, 13, 0),
            V6 => (1, 1, 0),
        }
    }

    /// ICMP types that are neither query nor error. Of IPv4: router discovery (RFC 1256), traceroute (RFC 1393), security
    /// failures (RFC 2521), extended echo (RFC 8335), no type at all. Of IPv6: certification path (RFC 3971), mobility
    /// (RFC 6275), extended echo, experiments, no type at all.
    pub(crate) fn other_icmp(self) -> &'static [u8] {
        match self {
            V4 => &[9, 10, 30, 40, 42, 255],
            V6 => &[144, 148, 154, 160, 200, 255],
        }
    }

    /// Bytes of an IP header without options or extensions.
    pub(crate) fn header(self) -> usize {
        match self {
            V4 => 20,
            V6 => 40,
        }
    }

    /// The most bytes of a datagram that fit beside the headers in 1500.
    pub(crate) fn largest_datagram(self) -> usize {
        1500 - self.header() - 8
    }

    /// The most bytes of a segment that fit beside the headers in 1500.
    pub(crate) fn largest_segment(self) -> usize {
        1500 - self.header() - 20
    }

    /// Payload of a full fragment on a link of 1500 bytes.
    pub(crate) fn piece(self) -> usize {
        match self {
            V4 => 1480,
            V6 => 1448,
        }
    }

    /// How many bytes an error quotes, that much and more; the least twice as often.
    pub(crate) fn quotes(self) -> [usize; 5] {
        [28, 28, 40, 60, 548].map(|len| len - 20 + self.header())
    }

    /// Ethernet's number for it.
    pub(crate) fn ethertype(self) -> [u8; 2] {
        match self {
            V4 => [0x08, 0x00],
            V6 => [0x86, 0xdd],
        }
    }

    /// Whether flows of a protocol are told apart by ports or identifiers.
    pub(crate) fn has_ports(self, protocol: u8) -> bool {
        match self {
            V4 => tuple::has_ports::<[u8; 4]>(protocol),
            V6 => tuple::has_ports::<[u8; 16]>(protocol),
        }
    }

    fn choose(self, v4: impl Into<Ipv4Addr>, v6: impl Into<Ipv6Addr>) -> IpAddr {
        match self {
            V4 => IpAddr::V4(v4.into()),
            V6 => IpAddr::V6(v6.into()),
        }
    }
}
