//! A frame as it stood on a wire, taken apart by etherparse so that nothing of ours judges our own packets.

use std::{
    fmt,
    net::{IpAddr, SocketAddrV4},
};

use etherparse::{
    LinkSlice, NetSlice, SlicedPacket, TransportSlice, checksum::Sum16BitWords, icmpv4, icmpv6,
};

/// One captured frame.
#[derive(Clone, Debug)]
pub struct Frame {
    /// Whether the interface sent it; otherwise it received it.
    pub outgoing: bool,
    /// Sender of the frame.
    pub src_mac: [u8; 6],
    /// Receiver of the frame.
    pub dst_mac: [u8; 6],
    /// Its IPv4 packet, if it holds one.
    pub ip: Option<Packet>,
    /// Its IPv6 packet, if it holds one.
    pub ipv6: Option<Packet>,
}

/// An IP packet.
#[derive(Clone, Debug)]
pub struct Packet {
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// IP protocol number.
    pub protocol: u8,
    /// Time to live, hop limit.
    pub ttl: u8,
    /// Length of the whole packet in bytes, by its header.
    pub len: u16,
    /// Identification; 0 of IPv6.
    pub id: u16,
    /// The flag "don't fragment", which IPv6 has not.
    pub dont_fragment: bool,
    /// Part of a fragmented packet.
    pub fragment: bool,
    /// Source port; identifier of an echo; 0 otherwise.
    pub src_port: u16,
    /// Destination port; 0 otherwise.
    pub dst_port: u16,
    /// ICMP type and code.
    pub icmp: Option<(u8, u8)>,
    /// Whether the header's checksum and, unless a fragment, the transport's are those of the bytes.
    pub checksums_good: bool,
    /// The packet itself, without what a frame adds to its end.
    pub bytes: Bytes,
}

/// Bytes of a packet, shown in one line.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Bytes(pub Vec<u8>);

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl Packet {
    /// Source address and port of a packet of IPv4.
    pub fn sender(&self) -> Option<SocketAddrV4> {
        match self.src {
            IpAddr::V4(src) => Some(SocketAddrV4::new(src, self.src_port)),
            IpAddr::V6(_) => None,
        }
    }

    /// What the header is followed by; of IPv6 the extensions, if there are any.
    pub fn payload(&self) -> &[u8] {
        self.bytes.0.get(self.header_len()..).unwrap_or_default()
    }

    /// The header and the first eight bytes behind it: the least that an ICMP error quotes (RFC 792).
    pub fn quotable(&self) -> &[u8] {
        let end = self.bytes.0.len().min(self.header_len() + 8);
        &self.bytes.0[..end]
    }

    fn header_len(&self) -> usize {
        match self.bytes.0.first() {
            Some(byte) if byte >> 4 == 4 => usize::from(byte & 0x0f) * 4,
            Some(_) => 40,
            None => 0,
        }
    }

    /// What an ICMP error quotes: the packet that it is about, or the beginning of it.
    pub fn quoted(&self) -> &[u8] {
        self.payload().get(8..).unwrap_or_default()
    }
}

impl Frame {
    /// Takes a frame apart; `None` when etherparse finds no Ethernet header or a header that lies.
    pub fn parse(outgoing: bool, bytes: &[u8]) -> Option<Self> {
        let sliced = SlicedPacket::from_ethernet(bytes).ok()?;
        let Some(LinkSlice::Ethernet2(link)) = &sliced.link else {
            return None;
        };
        Some(Self {
            outgoing,
            src_mac: link.source(),
            dst_mac: link.destination(),
            ip: packet(&sliced),
            ipv6: packet_of_ipv6(&sliced, bytes),
        })
    }
}

/// [`Packet::checksums_good`] of the IP packet in a frame, if it holds one that etherparse can read.
pub fn checksums_good(bytes: &[u8]) -> Option<bool> {
    match SlicedPacket::from_ethernet(bytes).ok()?.net {
        Some(NetSlice::Ipv4(ip)) => Some(sums_are_good(&ip)),
        Some(NetSlice::Ipv6(ip)) => {
            let (header, carried) = (ip.header(), ip.payload());
            let pseudo_header = Sum16BitWords::new()
                .add_16bytes(header.source())
                .add_16bytes(header.destination());
            let protocol = carried.ip_number.0;
            Some(carried.fragmented || sum_is_good(pseudo_header, protocol, carried.payload))
        }
        _ => None,
    }
}

fn packet(sliced: &SlicedPacket<'_>) -> Option<Packet> {
    let Some(NetSlice::Ipv4(ip)) = &sliced.net else {
        return None;
    };
    let header = ip.header();
    let (src_port, dst_port, icmp) = transport(sliced);
    Some(Packet {
        src: header.source_addr().into(),
        dst: header.destination_addr().into(),
        protocol: header.protocol().0,
        ttl: header.ttl(),
        len: header.total_len(),
        id: header.identification(),
        dont_fragment: header.dont_fragment(),
        fragment: header.is_fragmenting_payload(),
        src_port,
        dst_port,
        icmp,
        checksums_good: sums_are_good(ip),
        bytes: Bytes([header.slice(), ip.payload().payload].concat()),
    })
}

fn packet_of_ipv6(sliced: &SlicedPacket<'_>, bytes: &[u8]) -> Option<Packet> {
    let Some(NetSlice::Ipv6(ip)) = &sliced.net else {
        return None;
    };
    let (header, carried) = (ip.header(), ip.payload());
    let len = 40 + header.payload_length();
    let (src_port, dst_port, icmp) = transport(sliced);
    Some(Packet {
        src: header.source_addr().into(),
        dst: header.destination_addr().into(),
        protocol: carried.ip_number.0,
        ttl: header.hop_limit(),
        len,
        id: 0,
        dont_fragment: false,
        fragment: carried.fragmented,
        src_port,
        dst_port,
        icmp,
        checksums_good: checksums_good(bytes) == Some(true),
        bytes: Bytes(bytes.get(14..14 + usize::from(len))?.to_vec()),
    })
}

/// Both ports, and type and code of an ICMP message. Of an echo the identifier is the first port.
fn transport(sliced: &SlicedPacket<'_>) -> (u16, u16, Option<(u8, u8)>) {
    let id = |is_echo: bool, [high, low, ..]: [u8; 4]| {
        if is_echo {
            u16::from_be_bytes([high, low])
        } else {
            0
        }
    };
    match &sliced.transport {
        Some(TransportSlice::Tcp(tcp)) => (tcp.source_port(), tcp.destination_port(), None),
        Some(TransportSlice::Udp(udp)) => (udp.source_port(), udp.destination_port(), None),
        Some(TransportSlice::Icmpv4(message)) => {
            let (kind, code) = (message.type_u8(), message.code_u8());
            let is_echo = [icmpv4::TYPE_ECHO_REQUEST, icmpv4::TYPE_ECHO_REPLY].contains(&kind);
            (id(is_echo, message.bytes5to8()), 0, Some((kind, code)))
        }
        Some(TransportSlice::Icmpv6(message)) => {
            let (kind, code) = (message.type_u8(), message.code_u8());
            let is_echo = [icmpv6::TYPE_ECHO_REQUEST, icmpv6::TYPE_ECHO_REPLY].contains(&kind);
            (id(is_echo, message.bytes5to8()), 0, Some((kind, code)))
        }
        _ => (0, 0, None),
    }
}

fn sums_are_good(ip: &etherparse::Ipv4Slice<'_>) -> bool {
    let header = ip.header();
    let header_good = header.header_checksum() == header.to_header().calc_header_checksum();
    let transport_good =
        header.is_fragmenting_payload() || transport_sum_is_good(header.source(), header.destination(), ip);
    header_good && transport_good
}

fn transport_sum_is_good(src: [u8; 4], dst: [u8; 4], ip: &etherparse::Ipv4Slice<'_>) -> bool {
    const ICMP: u8 = 1;
    let (protocol, bytes) = (ip.header().protocol().0, ip.payload().payload);
    if protocol == ICMP {
        return Sum16BitWords::new().add_slice(bytes).ones_complement() == 0;
    }
    sum_is_good(
        Sum16BitWords::new().add_4bytes(src).add_4bytes(dst),
        protocol,
        bytes,
    )
}

/// RFC 1071 section 1 (3): the sum over everything covered, checksum included, is all ones. `addrs`: that over the
/// addresses of a pseudo header.
fn sum_is_good(addrs: Sum16BitWords, protocol: u8, bytes: &[u8]) -> bool {
    const TCP: u8 = 6;
    const UDP: u8 = 17;
    const ICMPV6: u8 = 58;
    if !matches!(protocol, TCP | UDP | ICMPV6) {
        return true;
    }
    let pseudo_header = addrs
        .add_2bytes([0, protocol])
        .add_2bytes((bytes.len() as u16).to_be_bytes());
    // RFC 768: a UDP checksum of zero means that none was computed.
    let none_computed = protocol == UDP && bytes.get(6..8) == Some(&[0, 0]);
    none_computed || pseudo_header.add_slice(bytes).ones_complement() == 0
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;

    use super::*;

    fn datagram() -> Vec<u8> {
        let builder = PacketBuilder::ethernet2([1; 6], [2; 6])
            .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 9)
            .udp(7, 8);
        let mut bytes = Vec::new();
        builder.write(&mut bytes, b"odd").unwrap();
        bytes
    }

    #[test]
    fn a_datagram_is_read_field_by_field() {
        let frame = Frame::parse(false, &datagram()).unwrap();
        let ip = frame.ip.unwrap();
        assert_eq!((ip.src, ip.src_port), (IpAddr::from([10, 0, 0, 1]), 7));
        assert_eq!((ip.dst, ip.dst_port), (IpAddr::from([10, 0, 0, 2]), 8));
        assert_eq!((ip.ttl, ip.protocol, ip.len, ip.fragment), (9, 17, 31, false));
        assert!(ip.checksums_good);
        assert_eq!(ip.bytes.0, datagram()[14..]);
        assert_eq!(ip.payload()[8..], *b"odd");
    }

    #[test]
    fn one_changed_bit_anywhere_in_the_packet_is_seen() {
        // From the TTL on; a changed length or version is a packet that cannot be read at all.
        for at in 14 + 8..datagram().len() {
            let mut bytes = datagram();
            bytes[at] ^= 0x10;
            let read = Frame::parse(false, &bytes).and_then(|frame| frame.ip);
            assert!(read.is_none_or(|ip| !ip.checksums_good), "byte {at}");
        }
    }
}
