//! IPv4 packets put together by etherparse, checksums right, for [`raw::send_ip`](crate::raw::send_ip): what no honest stack
//! would send, and what a packet should look like.

use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::{Context, Result};
use etherparse::{
    IcmpEchoHeader, Icmpv4Header, Icmpv4Type, IpFragOffset, IpNumber, Ipv4Header, Ipv4HeaderSlice,
    Ipv4Options, TcpHeader, UdpHeader,
};

/// Identification of a packet unless it is changed: the kernel replaces a zero.
pub const ID: u16 = 0x4e41;

/// A UDP datagram.
pub fn udp(src: SocketAddrV4, dst: SocketAddrV4, data: &[u8]) -> Result<Vec<u8>> {
    let (from, to) = (src.ip().octets(), dst.ip().octets());
    let mut udp = UdpHeader::without_ipv4_checksum(src.port(), dst.port(), data.len())?;
    udp.checksum = udp.calc_checksum_ipv4_raw(from, to, data)?;
    ip(
        *src.ip(),
        *dst.ip(),
        IpNumber::UDP,
        &[&udp.to_bytes(), data].concat(),
    )
}

/// The same datagram without a checksum (RFC 768: zero).
pub fn without_udp_checksum(mut packet: Vec<u8>) -> Vec<u8> {
    packet[26..28].fill(0);
    packet
}

/// A TCP segment.
pub fn tcp(src: SocketAddrV4, dst: SocketAddrV4, flags: TcpFlags, data: &[u8]) -> Result<Vec<u8>> {
    let mut tcp = TcpHeader::new(src.port(), dst.port(), flags.seq, 0xffff);
    (tcp.syn, tcp.rst, tcp.ack) = (flags.syn, flags.rst, flags.ack.is_some());
    tcp.acknowledgment_number = flags.ack.unwrap_or_default();
    tcp.checksum = tcp.calc_checksum_ipv4_raw(src.ip().octets(), dst.ip().octets(), data)?;
    ip(
        *src.ip(),
        *dst.ip(),
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
pub fn echo(src: Ipv4Addr, dst: Ipv4Addr, id: u16, is_reply: bool, data: &[u8]) -> Result<Vec<u8>> {
    let header = IcmpEchoHeader { id, seq: 1 };
    let icmp = if is_reply {
        Icmpv4Type::EchoReply(header)
    } else {
        Icmpv4Type::EchoRequest(header)
    };
    let header = Icmpv4Header::with_checksum(icmp, data);
    ip(src, dst, IpNumber::ICMP, &[&header.to_bytes(), data].concat())
}

/// Any ICMP message: type, code, the second word and what follows.
pub fn icmp(src: Ipv4Addr, dst: Ipv4Addr, kind: (u8, u8), word: [u8; 4], data: &[u8]) -> Result<Vec<u8>> {
    let icmp = Icmpv4Type::Unknown {
        type_u8: kind.0,
        code_u8: kind.1,
        bytes5to8: word,
    };
    let header = Icmpv4Header::with_checksum(icmp, data);
    ip(src, dst, IpNumber::ICMP, &[&header.to_bytes(), data].concat())
}

/// The same packet with its header changed.
pub fn with_header(packet: &[u8], change: impl FnOnce(&mut Ipv4Header)) -> Result<Vec<u8>> {
    let slice = Ipv4HeaderSlice::from_slice(packet)?;
    let mut header = slice.to_header();
    change(&mut header);
    let payload = &packet[slice.slice().len()..];
    finish(header, payload)
}

/// The same packet with options (RFC 791), a multiple of four bytes of them.
pub fn with_options(packet: &[u8], options: &[u8]) -> Result<Vec<u8>> {
    let options = Ipv4Options::try_from(options)?;
    with_header(packet, |header| header.options = options)
}

/// Cuts a packet into fragments (RFC 791 section 3.2) of at most `mtu` bytes, in their order.
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

fn ip(src: Ipv4Addr, dst: Ipv4Addr, protocol: IpNumber, payload: &[u8]) -> Result<Vec<u8>> {
    let len = u16::try_from(payload.len()).context("too long for a packet")?;
    let mut header = Ipv4Header::new(len, 64, protocol, src.octets(), dst.octets())?;
    header.identification = ID;
    header.dont_fragment = false;
    finish(header, payload)
}

fn finish(mut header: Ipv4Header, payload: &[u8]) -> Result<Vec<u8>> {
    header.set_payload_len(payload.len())?;
    header.header_checksum = header.calc_header_checksum();
    Ok([header.to_bytes().as_slice(), payload].concat())
}
