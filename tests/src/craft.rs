//! Packets of either family put together by etherparse, checksums right, for [`raw::send_ip`](crate::raw::send_ip): what no
//! honest stack would send, and what a packet should look like.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, bail};
use etherparse::{
    IcmpEchoHeader, Icmpv4Header, Icmpv4Type, Icmpv6Header, Icmpv6Type, IpFragOffset, IpNumber, Ipv4Header,
    Ipv4HeaderSlice, Ipv4Options, Ipv6Header, TcpHeader, UdpHeader,
};

/// Identification of a packet of IPv4 unless it is changed: the kernel replaces a zero.
pub const ID: u16 = 0x4e41;

/// A UDP datagram.
pub fn udp(src: impl Into<SocketAddr>, dst: impl Into<SocketAddr>, data: &[u8]) -> Result<Vec<u8>> {
    let (src, dst) = (src.into(), dst.into());
    let mut udp = UdpHeader::without_ipv4_checksum(src.port(), dst.port(), data.len())?;
    udp.checksum = match (src.ip(), dst.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => udp.calc_checksum_ipv4_raw(from.octets(), to.octets(), data)?,
        (IpAddr::V6(from), IpAddr::V6(to)) => udp.calc_checksum_ipv6_raw(from.octets(), to.octets(), data)?,
        ends => bail!("of two families: {ends:?}"),
    };
    ip(
        [src.ip(), dst.ip()],
        IpNumber::UDP,
        &[&udp.to_bytes(), data].concat(),
    )
}

/// The same datagram of IPv4 without a checksum (RFC 768: zero).
pub fn without_udp_checksum(mut packet: Vec<u8>) -> Vec<u8> {
    packet[26..28].fill(0);
    packet
}

/// A TCP segment.
pub fn tcp(
    src: impl Into<SocketAddr>,
    dst: impl Into<SocketAddr>,
    flags: TcpFlags,
    data: &[u8],
) -> Result<Vec<u8>> {
    let (src, dst) = (src.into(), dst.into());
    let mut tcp = TcpHeader::new(src.port(), dst.port(), flags.seq, 0xffff);
    (tcp.syn, tcp.rst, tcp.ack) = (flags.syn, flags.rst, flags.ack.is_some());
    tcp.acknowledgment_number = flags.ack.unwrap_or_default();
    tcp.checksum = match (src.ip(), dst.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => tcp.calc_checksum_ipv4_raw(from.octets(), to.octets(), data)?,
        (IpAddr::V6(from), IpAddr::V6(to)) => tcp.calc_checksum_ipv6_raw(from.octets(), to.octets(), data)?,
        ends => bail!("of two families: {ends:?}"),
    };
    ip(
        [src.ip(), dst.ip()],
        IpNumber::TCP,
        &[&tcp.to_bytes(), data].concat(),
    )
}

/// What a TCP segment says.
#[derive(Clone, Copy, Debug, Default)]
pub struct TcpFlags {
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgment number, if there is one.
    pub ack: Option<u32>,
    /// SYN.
    pub syn: bool,
    /// RST.
    pub rst: bool,
}

/// An ICMP echo request, or its reply.
pub fn echo(
    src: impl Into<IpAddr>,
    dst: impl Into<IpAddr>,
    id: u16,
    is_reply: bool,
    data: &[u8],
) -> Result<Vec<u8>> {
    let (src, dst) = (src.into(), dst.into());
    let header = IcmpEchoHeader { id, seq: 1 };
    let kind = match (src.is_ipv4(), is_reply) {
        (true, true) => 0,
        (true, false) => 8,
        (false, true) => 129,
        (false, false) => 128,
    };
    icmp(src, dst, (kind, 0), header.to_bytes(), data)
}

/// Any message of the family's ICMP: type, code, the second word and what follows.
pub fn icmp(
    src: impl Into<IpAddr>,
    dst: impl Into<IpAddr>,
    (type_u8, code_u8): (u8, u8),
    bytes5to8: [u8; 4],
    data: &[u8],
) -> Result<Vec<u8>> {
    let ends = [src.into(), dst.into()];
    match ends {
        [IpAddr::V4(_), IpAddr::V4(_)] => {
            let message = Icmpv4Type::Unknown {
                type_u8,
                code_u8,
                bytes5to8,
            };
            let header = Icmpv4Header::with_checksum(message, data);
            ip(ends, IpNumber::ICMP, &[&header.to_bytes(), data].concat())
        }
        [IpAddr::V6(src), IpAddr::V6(dst)] => {
            let message = Icmpv6Type::Unknown {
                type_u8,
                code_u8,
                bytes5to8,
            };
            let header = Icmpv6Header::with_checksum(message, src.octets(), dst.octets(), data)?;
            let message = [&header.to_bytes()[..], data].concat();
            ip(ends, IpNumber::IPV6_ICMP, &message)
        }
        _ => bail!("of two families: {ends:?}"),
    }
}

/// The same packet of IPv4 with its header changed.
pub fn with_header(packet: &[u8], change: impl FnOnce(&mut Ipv4Header)) -> Result<Vec<u8>> {
    let slice = Ipv4HeaderSlice::from_slice(packet)?;
    let mut header = slice.to_header();
    change(&mut header);
    let payload = &packet[slice.slice().len()..];
    finish(header, payload)
}

/// The same packet of IPv4 with options (RFC 791), a multiple of four bytes of them.
pub fn with_options(packet: &[u8], options: &[u8]) -> Result<Vec<u8>> {
    let options = Ipv4Options::try_from(options)?;
    with_header(packet, |header| header.options = options)
}

/// Cuts a packet of IPv4 into fragments (RFC 791 section 3.2) of at most `mtu` bytes, in their order.
pub fn fragments(packet: &[u8], mtu: usize, id: u16) -> Result<Vec<Vec<u8>>> {
    let slice = Ipv4HeaderSlice::from_slice(packet)?;
    let payload = &packet[slice.slice().len()..];
    let size = (mtu - slice.slice().len()) / 8 * 8;
    let pieces = payload.chunks(size).enumerate();
    pieces
        .map(|(number, piece)| {
            let mut header = slice.to_header();
            header.identification = id;
            header.dont_fragment = false;
            header.more_fragments = (number + 1) * size < payload.len();
            header.fragment_offset = IpFragOffset::try_new(u16::try_from(number * size / 8)?)?;
            finish(header, piece)
        })
        .collect()
}

/// A packet of any protocol, from and to these.
pub fn ip(ends: [IpAddr; 2], protocol: IpNumber, payload: &[u8]) -> Result<Vec<u8>> {
    let len = u16::try_from(payload.len()).context("too long for a packet")?;
    match ends {
        [IpAddr::V4(src), IpAddr::V4(dst)] => {
            let mut header = Ipv4Header::new(len, 64, protocol, src.octets(), dst.octets())?;
            header.identification = ID;
            header.dont_fragment = false;
            finish(header, payload)
        }
        [IpAddr::V6(src), IpAddr::V6(dst)] => {
            let header = Ipv6Header {
                payload_length: len,
                next_header: protocol,
                hop_limit: 64,
                source: src.octets(),
                destination: dst.octets(),
                ..Default::default()
            };
            Ok([&header.to_bytes()[..], payload].concat())
        }
        _ => bail!("of two families: {ends:?}"),
    }
}

fn finish(mut header: Ipv4Header, payload: &[u8]) -> Result<Vec<u8>> {
    header.set_payload_len(payload.len())?;
    header.header_checksum = header.calc_header_checksum();
    Ok([header.to_bytes().as_slice(), payload].concat())
}
