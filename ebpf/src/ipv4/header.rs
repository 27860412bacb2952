//! The IPv4 header (RFC 791).

use aya_ebpf::bindings::bpf_fib_lookup;
use aya_ebpf::programs::TcContext;
use causeway_common::{
    addr::Address as _,
    checksum,
    reason::Reason,
    tuple::{FlowKey, ICMP, TCP, UDP, has_ports},
};

use super::Addr;
use crate::{
    headers::Headers,
    icmp::{Quoted, load},
    maps::Key,
    packet::{self, ETH_LEN, Transport},
};

/// Offset of the protocol.
pub const PROTOCOL: usize = ETH_LEN + 9;
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
pub const ETHERTYPE_IPV6: u16 = 0x86dd;

const AF_INET: u8 = 2;

/// An IPv4 header. Without padding: functions that are verified by themselves take it by reference. Aligned to words, or it
/// would be copied byte by byte.
#[repr(C, align(4))]
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
    has_good_checksum: bool,
    _pad: [u8; 2],
}

const _: () = assert!(size_of::<Ip>() == 4 + 4 + 2 + 2 + 6 + 2);

impl Ip {
    /// To be read into.
    pub const NOTHING: Self = Self {
        src: Addr::UNSPECIFIED,
        dst: Addr::UNSPECIFIED,
        total_len: 0,
        id: [0; 2],
        protocol: 0,
        ttl: 0,
        l4: 0,
        is_fragment: false,
        is_first: false,
        has_good_checksum: false,
        _pad: [0; 2],
    };

    /// Whether what follows the header is what its protocol field says.
    #[inline(always)]
    pub const fn is_plain(&self) -> bool {
        true
    }

    /// Whether the kernel has to look at the packet's options, though its flow is carried: what they ask for can wait.
    #[inline(always)]
    pub const fn is_for_routers(&self) -> bool {
        false
    }

    /// Whether the packet is of a flow that is told apart by its addresses alone.
    #[inline(always)]
    pub fn is_portless(&self) -> bool {
        !has_ports::<Addr>(self.protocol)
    }

    /// Whether a router takes the packet (RFC 1812 section 5.2.2).
    #[inline(always)]
    pub fn is_sound(&self) -> bool {
        self.has_good_checksum
    }

    /// Offset of the payload from the start of the frame.
    #[inline(always)]
    pub fn l4(&self) -> usize {
        usize::from(self.l4)
    }
}

/// The IPv4 header, or why there is none.
#[inline(always)]
pub fn ip(ctx: &impl Headers) -> Result<Ip, Reason> {
    match packet::u16_at(ctx, 12).map(u16::from_be_bytes) {
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
        _pad: [0; 2],
    })
}

/// The flow that a packet belongs to.
#[inline(always)]
pub fn key(ip: &Ip, transport: &Transport) -> Key {
    let word = u32::from_ne_bytes;
    FlowKey::from_words([
        word(ip.src),
        word(ip.dst),
        transport.ports(),
        word([ip.protocol, 0, 0, 0]),
    ])
}

/// Decrements the time to live.
///
/// # Safety
///
/// `header` points to the first [`IP_END`] bytes of the packet.
#[inline(always)]
pub unsafe fn count_hop(_: &impl Headers, header: *mut u8, ip: &Ip) {
    let before = u16::from_ne_bytes([ip.ttl, ip.protocol]);
    let after = u16::from_ne_bytes([ip.ttl.wrapping_sub(1), ip.protocol]);
    // SAFETY: the caller's; the offsets are even.
    unsafe {
        *header.add(TTL).cast::<u16>() = after;
        let check = header.add(IP_CHECK).cast::<u16>();
        *check = checksum::replace_u16(*check, before, after);
    }
}

/// Enters the ends of a flow into a question for its route.
#[inline(always)]
pub fn set_ends(request: &mut bpf_fib_lookup, key: &Key) {
    request.family = AF_INET;
    request.__bindgen_anon_3.ipv4_src = u32::from_ne_bytes(key.src);
    request.__bindgen_anon_4.ipv4_dst = u32::from_ne_bytes(key.dst);
}

/// The identification of a fragment's datagram.
#[inline(always)]
pub fn fragment_id(_: &TcContext, ip: &Ip) -> Option<[u8; 2]> {
    Some(ip.id)
}

/// Four bytes at `offset`, or `None` when the frame is shorter.
#[inline(always)]
pub fn addr_at(ctx: &impl Headers, offset: usize) -> Option<Addr> {
    let ([a, b], [c, d]) = (packet::u16_at(ctx, offset)?, packet::u16_at(ctx, offset + 2)?);
    Some([a, b, c, d])
}

/// The packet that an ICMP error quotes; read into `into`. `None` if the packet is no error, or the quoted one has no ports of a flow.
#[inline(always)]
pub fn quoted(ctx: &TcContext, ip: &Ip, into: &mut Quoted) -> Option<()> {
    if ip.protocol != ICMP || ip.is_fragment {
        return None;
    }
    let kind: [u8; 1] = load(ctx, ip.l4())?;
    let length: [u8; 2] = load(ctx, ETH_LEN + 2)?;
    // Its checksum says nothing of what a frame has behind the packet.
    if !Addr::is_icmp_error(kind[0]) || ctx.len() != ETH_LEN as u32 + u32::from(u16::from_be_bytes(length)) {
        return None;
    }
    let l3 = ip.l4() + 8;
    let header: [u8; 20] = load(ctx, l3)?;
    let header_len = usize::from(header[0] & 0x0f) * 4;
    let is_later_fragment = u16::from_be_bytes([header[6], header[7]]) & 0x1fff != 0;
    if header[0] >> 4 != 4 || header_len < 20 || is_later_fragment {
        return None;
    }
    let l4 = l3 + header_len;
    let start: [u8; 8] = load(ctx, l4)?;
    let protocol = header[9];
    let (src_port, dst_port, asks) = match protocol {
        TCP | UDP => ([start[0], start[1]], [start[2], start[3]], false),
        ICMP => match Addr::icmp_query(start[0], start[1])? {
            query if query.asks => ([start[4], start[5]], query.kind, true),
            query => (query.kind, [start[4], start[5]], false),
        },
        _ => return None,
    };
    into.key = Key {
        src: [header[12], header[13], header[14], header[15]],
        dst: [header[16], header[17], header[18], header[19]],
        src_port,
        dst_port,
        protocol,
        _pad: [0; 3],
    };
    into.l3 = l3 as u16;
    into.l4 = l4 as u16;
    into.check = u16::from_ne_bytes([header[10], header[11]]);
    into.asks = u16::from(asks);
    Some(())
}
