//! Packets as the writer puts them together, byte by byte: two lanes get the same packet with another port in it.
//!
//! etherparse builds honest packets; these may lie. It judges what comes out.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::family::Family;

/// TCP flag bits (RFC 9293 section 3.1).
pub(crate) mod flag {
    pub(crate) const FIN: u8 = 0x01;
    pub(crate) const SYN: u8 = 0x02;
    pub(crate) const RST: u8 = 0x04;
    pub(crate) const PSH: u8 = 0x08;
    pub(crate) const ACK: u8 = 0x10;
    pub(crate) const URG: u8 = 0x20;
    pub(crate) const ECE: u8 = 0x40;
    pub(crate) const CWR: u8 = 0x80;
}

/// ICMP types of IPv4 with an identifier, the question and its answer (RFC 792, RFC 950). [`Family::echo`] has each family's.
pub(crate) mod query {
    pub(crate) const ECHO: (u8, u8) = (8, 0);
    pub(crate) const TIMESTAMP: (u8, u8) = (13, 14);
    pub(crate) const INFORMATION: (u8, u8) = (15, 16);
    pub(crate) const ADDRESS_MASK: (u8, u8) = (17, 18);
}

/// IP protocol numbers.
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;

/// Length of an Ethernet header.
pub(crate) const ETH: usize = 14;

/// One end of a packet's flow: address, and port or echo identifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    At(IpAddr, u16),
    /// The node's address and the port that this lane gave the flow.
    Mapped,
}

impl End {
    fn addr(self) -> Option<IpAddr> {
        match self {
            Self::At(addr, _) => Some(addr),
            Self::Mapped => None,
        }
    }
}

/// A header between that of IPv6 and what it carries (RFC 8200 section 4).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Extension {
    pub(crate) number: u8,
    /// All of it, a multiple of 8 bytes. The first one is written over: the number of what follows.
    pub(crate) bytes: &'static [u8],
}

/// What is wrong with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flaw {
    None,
    /// Checksum of TCP, UDP or ICMP.
    Checksum,
    /// Checksum of the IPv4 header.
    IpChecksum,
    /// The length in the IP header: more than there is.
    IpLength,
    /// The length in the UDP header: more than there is.
    UdpLength,
    /// The length in the UDP header: less than there is.
    UdpShort,
    /// The length in the UDP header: 0.
    UdpNoLength,
    /// The length in the TCP header: less than a header.
    TcpHeaderShort,
    /// The length in the TCP header: more than the packet.
    TcpHeaderLong,
    /// The frame is for another station on the link.
    OtherStation,
    /// The frame is for all of them.
    EveryStation,
}

/// What a packet carries.
#[derive(Clone, Debug)]
pub(crate) enum Body {
    Tcp {
        seq: u32,
        ack: u32,
        flags: u8,
        len: usize,
    },
    Udp {
        len: usize,
        checksum: bool,
    },
    /// A question or its answer. The identifier is the port of the end that asks.
    Query {
        kind: u8,
        code: u8,
        seq: u16,
        len: usize,
    },
    /// An error that quotes a packet; `quote` bytes of it.
    Error {
        kind: u8,
        code: u8,
        rest: u32,
        quoted: Box<Spec>,
        quote: usize,
    },
    /// A protocol without ports.
    Other {
        protocol: u8,
        bytes: Vec<u8>,
    },
}

/// Which part of a datagram a fragment is: bytes from `from` on, `len` of them, the last one or not.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Piece {
    pub(crate) from: usize,
    pub(crate) len: usize,
    pub(crate) last: bool,
}

/// A packet before the lane's port is known.
#[derive(Clone, Debug)]
pub(crate) struct Spec {
    pub(crate) src: End,
    pub(crate) dst: End,
    /// Of IPv6 the hop limit.
    pub(crate) ttl: u8,
    /// Of IPv6 the traffic class.
    pub(crate) tos: u8,
    /// Of IPv4.
    pub(crate) dont_fragment: bool,
    /// A multiple of 4 bytes, 40 at most.
    pub(crate) tcp_options: &'static [u8],
    /// Of IPv4. A multiple of 4 bytes, 40 at most.
    pub(crate) options: &'static [u8],
    /// Of IPv6.
    pub(crate) extensions: &'static [Extension],
    pub(crate) body: Body,
    pub(crate) flaw: Flaw,
    /// Bytes behind the end of the IP packet.
    pub(crate) padding: usize,
    pub(crate) piece: Option<Piece>,
}

impl Body {
    /// Bytes behind the first eight of what it is in an IPv4 packet.
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Udp { len, .. } | Self::Query { len, .. } => *len,
            Self::Tcp { len, .. } => 12 + len,
            Self::Error { quote, .. } => *quote,
            Self::Other { bytes, .. } => bytes.len().saturating_sub(8),
        }
    }

    /// A usual question or answer of ICMP.
    pub(crate) fn query(kind: u8, seq: u16, len: usize) -> Self {
        Self::Query {
            kind,
            code: 0,
            seq,
            len,
        }
    }
}

impl Spec {
    pub(crate) fn new(src: End, dst: End, body: Body) -> Self {
        Self {
            src,
            dst,
            ttl: 64,
            tos: 0,
            dont_fragment: true,
            tcp_options: &[],
            options: &[],
            extensions: &[],
            body,
            flaw: Flaw::None,
            padding: 0,
            piece: None,
        }
    }

    /// Of one of its ends at least the address is known.
    pub(crate) fn family(&self) -> Family {
        let addr = self.src.addr().or(self.dst.addr());
        addr.map_or(Family::V4, Family::of)
    }

    /// IP protocol number.
    pub(crate) fn protocol(&self) -> u8 {
        match &self.body {
            Body::Tcp { .. } => TCP,
            Body::Udp { .. } => UDP,
            Body::Query { .. } | Body::Error { .. } => self.family().icmp(),
            Body::Other { protocol, .. } => *protocol,
        }
    }

    /// Writes the frame behind what is in `out`; `None`, and nothing, when it needs a port that the lane has not given. `id` is
    /// the identification of IPv4, and the flow label of IPv6: by it what comes out is known again.
    pub(crate) fn write(
        &self,
        out: &mut Vec<u8>,
        macs: [[u8; 6]; 2],
        id: u16,
        mapped: Option<u16>,
    ) -> Option<()> {
        let start = out.len();
        let mut station = macs[0];
        match self.flaw {
            Flaw::OtherStation => station[5] ^= 1,
            Flaw::EveryStation => station = [0xff; 6],
            _ => {}
        }
        out.extend(station);
        out.extend(macs[1]);
        out.extend(self.family().ethertype());
        let written = self.write_ip(out, id, mapped);
        match written {
            Some(()) => out.resize(out.len() + self.padding, 0xa5),
            None => out.truncate(start),
        }
        written
    }

    fn write_ip(&self, out: &mut Vec<u8>, id: u16, mapped: Option<u16>) -> Option<()> {
        let resolve = |end| match end {
            End::At(addr, port) => Some((addr, port)),
            End::Mapped => Some((self.family().node(), mapped?)),
        };
        let (src, dst) = (resolve(self.src)?, resolve(self.dst)?);
        match (src.0, dst.0) {
            (IpAddr::V4(from), IpAddr::V4(to)) => self.write_ipv4(out, id, [from, to], (src, dst), mapped),
            (IpAddr::V6(from), IpAddr::V6(to)) => self.write_ipv6(out, id, [from, to], (src, dst), mapped),
            _ => None,
        }
    }

    fn write_ipv4(
        &self,
        out: &mut Vec<u8>,
        id: u16,
        addrs: [Ipv4Addr; 2],
        ends: Ends,
        mapped: Option<u16>,
    ) -> Option<()> {
        let start = out.len();
        let header_len = 20 + self.options.len();
        out.push(0x40 | (header_len / 4) as u8);
        out.push(self.tos);
        out.extend([0; 2]);
        out.extend(id.to_be_bytes());
        out.extend([0, 0, self.ttl, self.protocol(), 0, 0]);
        out.extend(addrs.into_iter().flat_map(|addr| addr.octets()));
        out.extend(self.options);
        self.write_transport(out, ends, mapped)?;
        let mut fragment = u16::from(self.dont_fragment) << 14;
        if let Some(piece) = self.piece {
            piece.cut(out, start + header_len);
            fragment = (piece.from / 8) as u16 | u16::from(!piece.last) << 13;
        }
        let len = (out.len() - start + self.beyond()) as u16;
        let header = &mut out[start..start + header_len];
        header[2..4].copy_from_slice(&len.to_be_bytes());
        header[6..8].copy_from_slice(&fragment.to_be_bytes());
        let mut check = checksum(header, 0);
        if self.flaw == Flaw::IpChecksum {
            check ^= 0x0101;
        }
        header[10..12].copy_from_slice(&check.to_be_bytes());
        Some(())
    }

    fn write_ipv6(
        &self,
        out: &mut Vec<u8>,
        id: u16,
        addrs: [Ipv6Addr; 2],
        ends: Ends,
        mapped: Option<u16>,
    ) -> Option<()> {
        let (start, id) = (out.len(), u32::from(id).to_be_bytes());
        let head = 6 << 28 | u32::from(self.tos) << 20 | u32::from_be_bytes(id);
        out.extend(head.to_be_bytes());
        out.extend([0, 0, 0, self.ttl]);
        out.extend(addrs.into_iter().flat_map(|addr| addr.octets()));
        // Where the number of the next header stands.
        let mut number_at = start + 6;
        for extension in self.extensions {
            out[number_at] = extension.number;
            number_at = out.len();
            out.extend(extension.bytes);
        }
        if self.piece.is_some() {
            out[number_at] = FRAGMENT;
            number_at = out.len();
            out.extend([0; 4]);
            out.extend(id);
        }
        out[number_at] = self.protocol();
        let payload = out.len();
        self.write_transport(out, ends, mapped)?;
        if let Some(piece) = self.piece {
            piece.cut(out, payload);
            let part = piece.from as u16 | u16::from(!piece.last);
            out[payload - 6..payload - 4].copy_from_slice(&part.to_be_bytes());
        }
        let len = (out.len() - start - 40 + self.beyond()) as u16;
        out[start + 4..start + 6].copy_from_slice(&len.to_be_bytes());
        Some(())
    }

    /// What the length says beyond what there is.
    fn beyond(&self) -> usize {
        if self.flaw == Flaw::IpLength { 200 } else { 0 }
    }

    fn write_transport(
        &self,
        out: &mut Vec<u8>,
        ((src, src_port), (dst, dst_port)): Ends,
        mapped: Option<u16>,
    ) -> Option<()> {
        let start = out.len();
        let check_at = match &self.body {
            Body::Tcp { seq, ack, flags, len } => {
                out.extend(src_port.to_be_bytes());
                out.extend(dst_port.to_be_bytes());
                out.extend(seq.to_be_bytes());
                out.extend(ack.to_be_bytes());
                let words = match self.flaw {
                    Flaw::TcpHeaderShort => 4,
                    Flaw::TcpHeaderLong => 15,
                    _ => 5 + self.tcp_options.len() / 4,
                };
                out.extend([(words as u8) << 4, *flags, 0xff, 0xff, 0, 0, 0, 0]);
                out.extend(self.tcp_options);
                fill(out, *len, *seq);
                16
            }
            Body::Udp { len, .. } => {
                out.extend(src_port.to_be_bytes());
                out.extend(dst_port.to_be_bytes());
                let length = match self.flaw {
                    Flaw::UdpLength => 8 + len + 100,
                    Flaw::UdpShort => 8 + len / 2,
                    Flaw::UdpNoLength => 0,
                    _ => 8 + len,
                };
                out.extend((length as u16).to_be_bytes());
                out.extend([0; 2]);
                fill(out, *len, *len as u32);
                6
            }
            Body::Query { kind, code, seq, len } => {
                let id = if self.family().is_answer(*kind) {
                    dst_port
                } else {
                    src_port
                };
                out.extend([*kind, *code, 0, 0]);
                out.extend(id.to_be_bytes());
                out.extend(seq.to_be_bytes());
                fill(out, *len, u32::from(*seq));
                2
            }
            Body::Error {
                kind,
                code,
                rest,
                quoted,
                quote,
            } => {
                out.extend([*kind, *code, 0, 0]);
                out.extend(rest.to_be_bytes());
                let packet = out.len();
                quoted.write_ip(out, 0xfffe, mapped)?;
                out.truncate(packet + quote);
                2
            }
            Body::Other { bytes, .. } => {
                out.extend(bytes);
                return Some(());
            }
        };
        if matches!(self.body, Body::Udp { checksum: false, .. }) {
            return Some(());
        }
        let out = &mut out[start..];
        let numbers = u32::from(self.protocol()) + out.len() as u32;
        let pseudo = match (src, dst) {
            (IpAddr::V4(_), _) if matches!(self.body, Body::Query { .. } | Body::Error { .. }) => 0,
            (IpAddr::V4(src), IpAddr::V4(dst)) => sum(&src.octets(), sum(&dst.octets(), numbers)),
            (IpAddr::V6(src), IpAddr::V6(dst)) => sum(&src.octets(), sum(&dst.octets(), numbers)),
            _ => return None,
        };
        let mut check = checksum(out, pseudo);
        if self.flaw == Flaw::Checksum {
            check ^= 0x0101;
        }
        if check == 0 && self.protocol() == UDP {
            check = 0xffff;
        }
        out[check_at..check_at + 2].copy_from_slice(&check.to_be_bytes());
        Some(())
    }
}

impl Piece {
    /// Leaves this part of what begins at `start`.
    fn cut(self, out: &mut Vec<u8>, start: usize) {
        out.copy_within(start + self.from..start + self.from + self.len, start);
        out.truncate(start + self.len);
    }
}

/// Address and port of a packet's source and of its destination.
type Ends = ((IpAddr, u16), (IpAddr, u16));

/// Number of IPv6's fragment header.
pub(crate) const FRAGMENT: u8 = 44;

fn fill(out: &mut Vec<u8>, len: usize, seed: u32) {
    out.extend((0..len).map(|i| (i as u32).wrapping_mul(7).wrapping_add(seed) as u8));
}

/// One's complement sum of 16-bit words, not folded (RFC 1071).
fn sum(bytes: &[u8], start: u32) -> u32 {
    let (words, rest) = bytes.as_chunks::<2>();
    let last = rest.first().map_or(0, |&byte| u32::from(byte) << 8);
    // A packet is too short for an overflow; the compiler does not know.
    words.iter().fold(start + last, |sum, &word| {
        sum.wrapping_add(u32::from(u16::from_be_bytes(word)))
    })
}

/// Internet checksum (RFC 1071) of bytes, on top of a sum.
pub(crate) fn checksum(bytes: &[u8], start: u32) -> u16 {
    let mut sum = sum(bytes, start);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
