//! Builds packets with etherparse and reads results with it.

use std::net::{IpAddr, Ipv4Addr};

use etherparse::{
    IcmpEchoHeader, Icmpv4Header, Icmpv4Type, IpHeaders, NetHeaders, PacketBuilder, PacketBuilderStep,
    PacketHeaders, SlicedPacket, TcpHeader, TransportHeader, TransportSlice,
};

use crate::bench::Family;

pub(crate) type Mac = [u8; 6];

/// Both ends of a flow.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ends<F = Ipv4Addr> {
    pub(crate) src: F,
    pub(crate) src_port: u16,
    pub(crate) dst: F,
    pub(crate) dst_port: u16,
}

impl<F> Ends<F> {
    pub(crate) fn reversed(self) -> Self {
        Self {
            src: self.dst,
            src_port: self.dst_port,
            dst: self.src,
            dst_port: self.src_port,
        }
    }
}

/// Frame addresses: source, destination.
pub(crate) type Link = (Mac, Mac);

/// The headers up to IP's.
fn ip<F: Family>(link: Link, ends: Ends<F>, ttl: u8) -> PacketBuilderStep<IpHeaders> {
    let builder = PacketBuilder::ethernet2(link.0, link.1);
    match (ends.src.into(), ends.dst.into()) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => builder.ipv4(src.octets(), dst.octets(), ttl),
        (IpAddr::V6(src), IpAddr::V6(dst)) => builder.ipv6(src.octets(), dst.octets(), ttl),
        ends => panic!("of two families: {ends:?}"),
    }
}

pub(crate) fn udp<F: Family>(link: Link, ends: Ends<F>, ttl: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    ip(link, ends, ttl)
        .udp(ends.src_port, ends.dst_port)
        .write(&mut frame, payload)
        .unwrap();
    frame
}

pub(crate) fn tcp<F: Family>(
    link: Link,
    ends: Ends<F>,
    ttl: u8,
    flags: impl Fn(&mut TcpHeader),
    payload: &[u8],
) -> Vec<u8> {
    let mut header = TcpHeader::new(ends.src_port, ends.dst_port, 1000, 64_000);
    flags(&mut header);
    let mut frame = Vec::new();
    ip(link, ends, ttl)
        .tcp_header(header)
        .write(&mut frame, payload)
        .unwrap();
    frame
}

pub(crate) fn syn<F: Family>(link: Link, ends: Ends<F>) -> Vec<u8> {
    tcp(link, ends, 64, |header| header.syn = true, &[])
}

pub(crate) fn ack<F: Family>(link: Link, ends: Ends<F>) -> Vec<u8> {
    tcp(link, ends, 64, |header| header.ack = true, b"data")
}

/// An echo request (`src_port` is the identifier) or reply (`dst_port` is the identifier).
pub(crate) fn echo<F: Family>(link: Link, ends: Ends<F>, request: bool) -> Vec<u8> {
    let builder = ip(link, ends, 64);
    let id = if request { ends.src_port } else { ends.dst_port };
    let (mut frame, data) = (Vec::new(), b"ping");
    let is_ipv4 = ends.src.into().is_ipv4();
    let written = match (is_ipv4, request) {
        (true, true) => builder.icmpv4_echo_request(id, 7).write(&mut frame, data),
        (true, false) => builder.icmpv4_echo_reply(id, 7).write(&mut frame, data),
        (false, true) => builder.icmpv6_echo_request(id, 7).write(&mut frame, data),
        (false, false) => builder.icmpv6_echo_reply(id, 7).write(&mut frame, data),
    };
    written.unwrap();
    frame
}

/// The ports of a datagram or segment of either family, whose checksums have to be right.
pub(crate) fn ports(frame: &[u8]) -> (u16, u16) {
    assert_eq!(
        causeway_tests::frame::checksums_good(frame),
        Some(true),
        "{frame:02x?}"
    );
    match SlicedPacket::from_ethernet(frame).unwrap().transport {
        Some(TransportSlice::Udp(udp)) => (udp.source_port(), udp.destination_port()),
        Some(TransportSlice::Tcp(tcp)) => (tcp.source_port(), tcp.destination_port()),
        other => panic!("no ports: {other:?}"),
    }
}

/// What etherparse reads from a frame of IPv4.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) link: Link,
    pub(crate) src: Ipv4Addr,
    pub(crate) dst: Ipv4Addr,
    pub(crate) ttl: u8,
    /// Ports, or the echo identifier twice.
    pub(crate) ports: (u16, u16),
    pub(crate) payload: Vec<u8>,
}

/// Parses a frame and asserts that each checksum is the one etherparse computes. `udp_checksum` is what a UDP
/// checksum must be instead, where the sender left it out.
pub(crate) fn seen(frame: &[u8], udp_checksum: Option<u16>) -> Seen {
    let headers = PacketHeaders::from_ethernet_slice(frame).unwrap();
    let link = headers.link.unwrap().ethernet2().unwrap();
    let Some(NetHeaders::Ipv4(ip, _)) = headers.net else {
        panic!("not IPv4: {frame:02x?}")
    };
    assert_eq!(
        ip.header_checksum,
        ip.calc_header_checksum(),
        "IPv4 header checksum"
    );
    let payload = headers.payload.slice();
    let ports = match headers.transport.unwrap() {
        TransportHeader::Tcp(tcp) => {
            assert_eq!(
                tcp.checksum,
                tcp.calc_checksum_ipv4(&ip, payload).unwrap(),
                "TCP checksum"
            );
            (tcp.source_port, tcp.destination_port)
        }
        TransportHeader::Udp(udp) => {
            let expected = udp_checksum.unwrap_or_else(|| udp.calc_checksum_ipv4(&ip, payload).unwrap());
            assert_eq!(udp.checksum, expected, "UDP checksum");
            (udp.source_port, udp.destination_port)
        }
        TransportHeader::Icmpv4(Icmpv4Header { icmp_type, checksum }) => {
            assert_eq!(checksum, icmp_type.calc_checksum(payload), "ICMP checksum");
            let (Icmpv4Type::EchoRequest(IcmpEchoHeader { id, .. })
            | Icmpv4Type::EchoReply(IcmpEchoHeader { id, .. })) = icmp_type
            else {
                panic!("not an echo: {icmp_type:?}")
            };
            (id, id)
        }
        other => panic!("not a transport of this bench: {other:?}"),
    };
    Seen {
        link: (link.source, link.destination),
        src: ip.source.into(),
        dst: ip.destination.into(),
        ttl: ip.time_to_live,
        ports,
        payload: payload.to_vec(),
    }
}
