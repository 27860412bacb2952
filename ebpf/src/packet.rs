//! Reads headers. The only place, with `rewrite`, that knows offsets; a header is whole or absent.

use core::mem::offset_of;

use aya_ebpf::{EbpfContext as _, bindings::__sk_buff, programs::TcContext};
use causeway_common::{
    checksum,
    decide::{Role, icmp_query, role},
    reason::Reason,
    tuple::{FlowKey, ICMP, TCP, UDP, has_ports},
};

use crate::{
    headers::Headers,
    maps::{Addr, Entry, Key},
};

/// Length of an Ethernet header without a tag.
pub const ETH_LEN: usize = 14;
/// Offset of the IPv4 header's time to live.
pub const TTL: usize = ETH_LEN + 8;
/// Offset of the IPv4 header's checksum.
pub const IP_CHECK: usize = ETH_LEN + 10;
/// Offset of the IPv4 source address.
pub const IP_SRC: usize = ETH_LEN + 12;
/// Offset of the IPv4 destination address.
pub const IP_DST: usize = ETH_LEN + 16;
/// End of an IPv4 header without options.
pub const IP_END: usize = ETH_LEN + 20;

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_IPV6: u16 = 0x86dd;

/// `PACKET_HOST`: the frame is addressed to the interface that received it.
const PACKET_HOST: u32 = 0;

/// A MAC address.
pub type Mac = [u8; 6];

/// An IPv4 header. Without padding: functions that are verified by themselves take it by reference.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Ip {
    pub src: Addr,
    pub dst: Addr,
    /// Length of the packet by its header, bytes.
    pub total_len: u16,
    /// Identification, network order.
    pub id: [u8; 2],
    pub protocol: u8,
    pub ttl: u8,
    /// Offset of the payload from the start of the frame. A byte, so that the verifier knows a bound wherever the
    /// compiler keeps it.
    l4: u8,
    /// More fragments follow, or this is not the first one.
    pub is_fragment: bool,
    /// The transport header is in this packet.
    pub is_first: bool,
    /// Whether the header's checksum is right. A router drops a packet whose is not (RFC 1812 section 5.2.2): the
    /// kernel does, so such a packet is the kernel's. With options it is taken for right.
    pub has_good_checksum: bool,
}

const _: () = assert!(size_of::<Ip>() == 4 + 4 + 2 + 2 + 6);

impl Ip {
    /// Offset of the payload from the start of the frame.
    #[inline(always)]
    pub fn l4(&self) -> usize {
        usize::from(self.l4)
    }
}

/// What a transport header says of the flow. Without padding, as [`Ip`].
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Transport {
    /// Source and destination port as they stand in the packet, one word in memory order.
    ports: u32,
    /// TCP flags, or the ICMP type.
    pub flags: u8,
    /// Length of the transport header, bytes.
    pub header_len: u8,
    _pad: [u8; 2],
}

/// The context as the kernel's struct.
#[inline(always)]
pub fn skb(ctx: &TcContext) -> &__sk_buff {
    // SAFETY: the kernel passes a valid context for the whole run of the program.
    unsafe { &*ctx.as_ptr().cast() }
}

/// Writes the tag that tells our egress hooks what became of this packet (`FlowKey::tag`).
#[inline(always)]
pub fn set_tag(ctx: &TcContext, tag: u16) {
    // SAFETY: `tc_index` may be written by tc programs, as 32 bits.
    unsafe { (*ctx.as_ptr().cast::<__sk_buff>()).tc_index = u32::from(tag) }
}

/// The tag that [`set_tag`] wrote, or 0.
#[inline(always)]
pub fn tag(ctx: &TcContext) -> u16 {
    skb(ctx).tc_index as u16
}

/// Whether the frame is for the interface that received it.
#[inline(always)]
pub fn is_for_us(ctx: &TcContext) -> bool {
    skb(ctx).pkt_type == PACKET_HOST
}

/// Brings the headers into the linear part of the buffer where they are not, which real senders never do.
///
/// Pulls only as much as is missing: pulling into the payload of a GSO list is costly, and on kernels before 6.16
/// it can crash. Whether anything was brought in.
#[inline(always)]
pub fn linearise_headers(ctx: &TcContext) -> bool {
    let linear = (ctx.data_end() - ctx.data()) as u32;
    let wanted = if linear > (ETH_LEN + 9) as u32 && byte(ctx, ETH_LEN + 9) == Some(TCP) {
        54
    } else {
        42
    };
    let len = ctx.len();
    // A failure leaves the buffer as it was; parsing then finds the header absent.
    linear < wanted && linear < len && ctx.skb.pull_data(if len < wanted { len } else { wanted }).is_ok()
}

/// The IPv4 header, or why there is none.
#[inline(always)]
pub fn ip(ctx: &impl Headers) -> Result<Ip, Reason> {
    match u16_at(ctx, 12).map(u16::from_be_bytes) {
        Some(ETHERTYPE_IPV4) => {}
        Some(ETHERTYPE_ARP) => return Err(Reason::Arp),
        Some(ETHERTYPE_IPV6) => return Err(Reason::Ipv6),
        _ => return Err(Reason::NotIp),
    }
    let (start, end) = (ctx.start(), ctx.end());
    if start + IP_END > end {
        return Err(Reason::Malformed);
    }
    // SAFETY: `IP_END` bytes were checked to be in the buffer. The kernel puts this header on a word boundary
    // wherever the machine needs it (`NET_IP_ALIGN`).
    let word = |offset: usize| unsafe { *((start + ETH_LEN + offset) as *const u32) };
    let words = [word(0), word(4), word(8), word(12), word(16)];
    let [version_and_length, _, length_high, length_low] = words[0].to_ne_bytes();
    let [id_high, id_low, fragment_high, fragment_low] = words[1].to_ne_bytes();
    let [ttl, protocol, _, _] = words[2].to_ne_bytes();

    let header_len = usize::from(version_and_length & 0x0f) * 4;
    let total_len = match u16::from_be_bytes([length_high, length_low]) {
        // BIG TCP (Linux 6.3): the field cannot hold the length of a GSO packet above 64 KiB.
        0 if ctx.is_gso() => (ctx.length() - ETH_LEN as u32).min(u32::from(u16::MAX)) as u16,
        total_len => total_len,
    };
    let fits = usize::from(total_len) >= header_len && u32::from(total_len) + ETH_LEN as u32 <= ctx.length();
    if version_and_length >> 4 != 4 || header_len < 20 || !fits {
        return Err(Reason::Malformed);
    }
    let fragment = u16::from_be_bytes([fragment_high, fragment_low]);
    Ok(Ip {
        src: words[3].to_ne_bytes(),
        dst: words[4].to_ne_bytes(),
        protocol,
        ttl,
        total_len,
        l4: (ETH_LEN + header_len) as u8,
        is_fragment: fragment & 0x3fff != 0,
        is_first: fragment & 0x1fff == 0,
        has_good_checksum: header_len != 20 || checksum::is_good(words),
        id: [id_high, id_low],
    })
}

/// The transport header of a packet that belongs to a flow we know how to follow, or why there is none.
#[inline(always)]
pub fn transport(ctx: &impl Headers, ip: &Ip) -> Result<Transport, Reason> {
    if ip.is_fragment && has_ports(ip.protocol) {
        return Err(Reason::Fragment);
    }
    first_transport(ctx, ip)
}

/// As [`transport`], also for a first fragment.
#[inline(always)]
pub fn first_transport(ctx: &impl Headers, ip: &Ip) -> Result<Transport, Reason> {
    let header_len = match ip.protocol {
        TCP => 20,
        UDP | ICMP => 8,
        _ => return Err(Reason::OtherProtocol),
    };
    let (start, end) = (ctx.start() + ip.l4(), ctx.end());
    if start + header_len > end || usize::from(ip.total_len) + ETH_LEN < ip.l4() + header_len {
        return Err(Reason::Malformed);
    }
    // SAFETY: `header_len` bytes, 8 at least, were checked to be in the buffer.
    let read = |offset: usize| unsafe { *((start + offset) as *const u8) };
    // SAFETY: as above; an IPv4 header's length is a multiple of 4, so these offsets are even.
    let word = |offset: usize| unsafe { (*((start + offset) as *const u16)).to_ne_bytes() };
    // SAFETY: as above, and as in `ip`.
    let ports = || unsafe { *(start as *const u32) };
    match ip.protocol {
        TCP => {
            if start + 20 > end {
                return Err(Reason::Malformed);
            }
            let data_offset = (read(12) >> 4) * 4;
            if data_offset < 20 || usize::from(ip.total_len) + ETH_LEN < ip.l4() + usize::from(data_offset) {
                return Err(Reason::Malformed);
            }
            Ok(Transport {
                ports: ports(),
                flags: read(13),
                header_len: data_offset,
                _pad: [0; 2],
            })
        }
        UDP => {
            let length = u16::from_be_bytes(word(4));
            let is_whole = !ip.is_fragment && !ctx.is_gso();
            if length < 8 || is_whole && usize::from(length) + ip.l4() > usize::from(ip.total_len) + ETH_LEN {
                return Err(Reason::Malformed);
            }
            Ok(Transport {
                ports: ports(),
                flags: 0,
                header_len: 8,
                _pad: [0; 2],
            })
        }
        _ => match icmp_query(read(0), read(1)) {
            Some(query) => {
                let (id, kind) = (word(4), query.kind);
                let ports = if query.asks { [id, kind] } else { [kind, id] };
                Ok(Transport {
                    ports: joined(ports),
                    flags: read(0),
                    header_len: 8,
                    _pad: [0; 2],
                })
            }
            None => Err(Reason::OtherProtocol),
        },
    }
}

/// The flow that a packet belongs to.
#[inline(always)]
pub fn key(ip: &Ip, transport: &Transport) -> Key {
    let word = u32::from_ne_bytes;
    FlowKey::from_words([
        word(ip.src),
        word(ip.dst),
        transport.ports,
        word([ip.protocol, 0, 0, 0]),
    ])
}

#[inline(always)]
fn joined([[a, b], [c, d]]: [[u8; 2]; 2]) -> u32 {
    u32::from_ne_bytes([a, b, c, d])
}

impl Transport {
    /// What a protocol without ports has.
    pub const PORTLESS: Self = Self {
        ports: 0,
        flags: 0,
        header_len: 0,
        _pad: [0; 2],
    };

    /// Destination port, network order.
    #[inline(always)]
    pub fn dst_port(&self) -> [u8; 2] {
        let [_, _, high, low] = self.ports.to_ne_bytes();
        [high, low]
    }

    /// What the packet is to its flow.
    #[inline(always)]
    pub fn role(&self, ip: &Ip) -> Role {
        role(ip.protocol, self.flags)
    }
}

/// Length in bytes of the largest IP packet that this buffer becomes on the link.
#[inline(always)]
pub fn largest_packet(ctx: &TcContext, ip: &Ip, transport: &Transport) -> u32 {
    match skb(ctx).gso_size {
        0 => u32::from(ip.total_len),
        segment => segment + (ip.l4() - ETH_LEN) as u32 + u32::from(transport.header_len),
    }
}

/// Source MAC of the frame.
#[inline(always)]
pub fn src_mac(ctx: &impl Headers) -> Mac {
    mac_at(ctx, 6)
}

/// Destination MAC of the frame.
#[inline(always)]
pub fn dst_mac(ctx: &impl Headers) -> Mac {
    mac_at(ctx, 0)
}

/// Whether the frame has the source MAC with which the flow arrives.
#[inline(always)]
pub fn is_from(ctx: &TcContext, entry: &Entry) -> bool {
    const { assert!(offset_of!(Entry, in_mac) % 2 == 0) };
    let start = ctx.data();
    if start + 12 > ctx.data_end() {
        return false;
    }
    let known = (&raw const entry.in_mac).cast::<u8>();
    // SAFETY: six bytes of the entry, aligned as asserted; twelve bytes were checked to be in the buffer, which
    // begins at an even address.
    unsafe {
        let (first, last) = (known.cast::<u16>(), known.add(2).cast::<u16>());
        *first == *((start + 6) as *const u16)
            && *last == *((start + 8) as *const u16)
            && *last.add(1) == *((start + 10) as *const u16)
    }
}

/// Six bytes at `offset`, or zeros when the frame is shorter.
#[inline(always)]
pub fn mac_at(ctx: &impl Headers, offset: usize) -> Mac {
    let (start, end) = (ctx.start() + offset, ctx.end());
    if start + 6 > end {
        return [0; 6];
    }
    // SAFETY: six bytes were checked to be in the buffer, at an even offset.
    let word = |i: usize| unsafe { *((start + i) as *const u16) }.to_ne_bytes();
    let ([a, b], [c, d], [e, f]) = (word(0), word(2), word(4));
    [a, b, c, d, e, f]
}

/// Four bytes at `offset`, or `None` when the frame is shorter.
#[inline(always)]
pub fn addr_at(ctx: &impl Headers, offset: usize) -> Option<Addr> {
    let ([a, b], [c, d]) = (u16_at(ctx, offset)?, u16_at(ctx, offset + 2)?);
    Some([a, b, c, d])
}

/// Two bytes at an even `offset`, or `None` when the frame is shorter.
#[inline(always)]
pub fn u16_at(ctx: &impl Headers, offset: usize) -> Option<[u8; 2]> {
    let start = ctx.start() + offset;
    if start + 2 > ctx.end() {
        return None;
    }
    // SAFETY: two bytes were checked to be in the buffer, at an even offset.
    Some(unsafe { *(start as *const u16) }.to_ne_bytes())
}

#[inline(always)]
fn byte(ctx: &impl Headers, offset: usize) -> Option<u8> {
    let start = ctx.start() + offset;
    if start + 1 > ctx.end() {
        return None;
    }
    // SAFETY: the byte was checked to be in the buffer.
    Some(unsafe { *(start as *const u8) })
}
