//! Packets of either family put together by etherparse, checksums right, for [`raw::send_ip`](crate::raw::send_ip): what no
//! honest stack would send, and what a packet should look like.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, bail};
use etherparse::{
    IcmpEchoHeader, Icmpv4Header, Icmpv4Type, Icmpv6Header, Icmpv6Type, IpFragOffset, IpNumber, Ipv4Header,
    Ipv4HeaderSlice, Ipv4Options, Ipv6FragmentHeader, Ipv6Header, Ipv6RawExtHeader, TcpHeader, UdpHeader,
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

/// The same datagram without a checksum: zero (RFC 768), which a datagram of IPv6 must not have (RFC 8200 section 8.1).
pub fn without_udp_checksum(mut packet: Vec<u8>) -> Vec<u8> {
    let header = if is_ipv6(&packet) {
        Ipv6Header::LEN
    } else {
        Ipv4Header::MIN_LEN
    };
    packet[header + 6..header + 8].fill(0);
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

/// The same packet of IPv6 with options for its destination (RFC 8200 section 4.6): eight bytes that say nothing.
pub fn with_destination_options(packet: &[u8]) -> Result<Vec<u8>> {
    const PAD_N: [u8; 6] = [1, 4, 0, 0, 0, 0];
    let (header, payload) = Ipv6Header::from_slice(packet)?;
    let options = Ipv6RawExtHeader::new_raw(header.next_header, &PAD_N)?;
    extended(
        &header,
        IpNumber::IPV6_DESTINATION_OPTIONS,
        &options.to_bytes(),
        payload,
    )
}

/// Cuts a packet into fragments (RFC 791 section 3.2, RFC 8200 section 4.5) of at most `mtu` bytes, in their order.
pub fn fragments(packet: &[u8], mtu: usize, id: u16) -> Result<Vec<Vec<u8>>> {
    if is_ipv6(packet) {
        let (header, payload) = Ipv6Header::from_slice(packet)?;
        return cut(
            payload,
            mtu - Ipv6Header::LEN - Ipv6FragmentHeader::LEN,
            |offset, more, piece| {
                let fragment = Ipv6FragmentHeader::new(header.next_header, offset, more, id.into());
                extended(
                    &header,
                    IpNumber::IPV6_FRAGMENTATION_HEADER,
                    &fragment.to_bytes(),
                    piece,
                )
            },
        );
    }
    let slice = Ipv4HeaderSlice::from_slice(packet)?;
    let header_len = slice.slice().len();
    cut(&packet[header_len..], mtu - header_len, |offset, more, piece| {
        let mut header = slice.to_header();
        header.identification = id;
        header.dont_fragment = false;
        header.more_fragments = more;
        header.fragment_offset = offset;
        finish(header, piece)
    })
}

/// Parts of at most `size` bytes: where each begins, whether more follow, and what is in it.
fn cut(
    payload: &[u8],
    size: usize,
    to_packet: impl Fn(IpFragOffset, bool, &[u8]) -> Result<Vec<u8>>,
) -> Result<Vec<Vec<u8>>> {
    let size = size / 8 * 8;
    let pieces = payload.chunks(size).enumerate();
    pieces
        .map(|(number, piece)| {
            let offset = IpFragOffset::try_new(u16::try_from(number * size / 8)?)?;
            to_packet(offset, (number + 1) * size < payload.len(), piece)
        })
        .collect()
}

/// A packet of IPv6 with one header, `next`, between the first one and what it carries.
fn extended(header: &Ipv6Header, next: IpNumber, between: &[u8], payload: &[u8]) -> Result<Vec<u8>> {
    let header = Ipv6Header {
        payload_length: u16::try_from(between.len() + payload.len())?,
        next_header: next,
        ..header.clone()
    };
    Ok([&header.to_bytes()[..], between, payload].concat())
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

fn is_ipv6(packet: &[u8]) -> bool {
    packet.first().is_some_and(|first| first >> 4 == 6)
}

fn finish(mut header: Ipv4Header, payload: &[u8]) -> Result<Vec<u8>> {
    header.set_payload_len(payload.len())?;
    header.header_checksum = header.calc_header_checksum();
    Ok([header.to_bytes().as_slice(), payload].concat())
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use etherparse::{SlicedPacket, TransportSlice, defrag::IpDefragPool};

    use super::*;

    fn datagram(is_ipv6: bool, len: usize) -> Vec<u8> {
        let data: Vec<u8> = (0..len).map(|at| at as u8).collect();
        let ends: [IpAddr; 2] = if is_ipv6 {
            [1, 2].map(|host| Ipv6Addr::from_bits(host).into())
        } else {
            [1, 2].map(|host| Ipv4Addr::from_bits(host).into())
        };
        udp((ends[0], 7), (ends[1], 8), &data).unwrap()
    }

    /// Another's reassembly makes of the pieces what was cut.
    #[test]
    fn fragments_of_either_family_are_the_whole() {
        for (is_ipv6, header) in [(false, 20), (true, 40)] {
            for len in [1473, 2889, 30_000] {
                let whole = datagram(is_ipv6, len);
                let mut pool = IpDefragPool::<(), ()>::new();
                let mut made = None;
                for piece in fragments(&whole, 1500, 9).unwrap() {
                    assert!(piece.len() <= 1500, "{} bytes", piece.len());
                    let sliced = SlicedPacket::from_ip(&piece).unwrap();
                    made = pool.process_sliced_packet(&sliced, (), ()).unwrap();
                }
                let made = made.map(|made| (made.ip_number, made.payload));
                let expected = (IpNumber::UDP, whole[header..].to_vec());
                assert!(made == Some(expected), "{len} bytes");
            }
        }
    }

    #[test]
    fn options_for_the_destination_stand_before_what_is_carried() {
        let with = with_destination_options(&datagram(true, 5)).unwrap();
        assert_eq!(with.len(), 40 + 8 + 8 + 5);
        let sliced = SlicedPacket::from_ip(&with).unwrap();
        let Some(TransportSlice::Udp(udp)) = sliced.transport else {
            panic!("{:?}", sliced.transport);
        };
        assert_eq!(udp.payload(), [0, 1, 2, 3, 4]);
    }
}
