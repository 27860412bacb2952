//! The IPv6 header and its extensions (RFC 8200).

use core::ffi::c_void;

use aya_ebpf::{
    EbpfContext as _,
    bindings::{__sk_buff, bpf_fib_lookup},
    helpers::generated::bpf_loop,
    programs::TcContext,
};
use causeway_common::{
    addr::Address as _,
    extension::{Chain, Step},
    reason::Reason,
    tuple::{TCP, UDP},
};

use super::Addr;
use crate::{
    given::context,
    headers::Headers,
    icmp::{Quoted, load},
    maps::Key,
    packet::{self, ETH_LEN, Transport},
};

/// Offset of the next header.
pub const PROTOCOL: usize = ETH_LEN + 6;
/// Offset of the hop limit.
const HOP_LIMIT: usize = ETH_LEN + 7;
/// Offset of the source address.
pub const IP_SRC: usize = ETH_LEN + 8;
/// Offset of the destination address.
pub const IP_DST: usize = ETH_LEN + 24;
/// End of an IPv6 header without extensions.
pub const IP_END: usize = ETH_LEN + 40;

const ETHERTYPE_IPV6: u16 = 0x86dd;
const AF_INET6: u8 = 10;
const ICMP: u8 = Addr::ICMP;

/// An IPv6 header with what its extensions say. Without padding: functions that are verified by themselves take it by
/// reference.
#[repr(C, align(4))]
#[derive(Clone, Copy)]
pub struct Ip {
    pub src: Addr,
    pub dst: Addr,
    /// Length of the packet by its header, bytes; at most what a `u16` holds.
    pub total_len: u16,
    /// The protocol behind the extensions.
    pub protocol: u8,
    /// Hop limit.
    pub ttl: u8,
    /// Offset of the payload from the start of the frame. A byte, so that the verifier knows a bound wherever the
    /// compiler keeps it.
    l4: u8,
    /// It is a fragment, and not a whole packet that calls itself one (RFC 6946).
    pub is_fragment: bool,
    /// The transport header is in this packet.
    pub is_first: bool,
    /// What the headers between this one and the payload come to: [`Chain::kind`].
    chain: u8,
}

const _: () = assert!(size_of::<Ip>() == 16 + 16 + 2 + 6);

impl Ip {
    /// To be read into.
    pub const NOTHING: Self = Self {
        src: Addr::UNSPECIFIED,
        dst: Addr::UNSPECIFIED,
        total_len: 0,
        protocol: 0,
        ttl: 0,
        l4: 0,
        is_fragment: false,
        is_first: false,
        chain: Chain::NOT_PLAIN,
    };

    /// Whether what follows the header is what its protocol field says.
    #[inline(always)]
    pub const fn is_plain(&self) -> bool {
        self.chain != Chain::NOT_PLAIN
    }

    /// Whether the kernel has to look at the packet's options, though its flow is carried: some packets it drops for them.
    #[inline(always)]
    pub const fn is_for_routers(&self) -> bool {
        self.chain == Chain::FOR_ROUTERS
    }

    /// Whether the packet is of a flow that is told apart by its addresses alone.
    #[inline(always)]
    pub const fn is_portless(&self) -> bool {
        self.chain == Chain::PORTLESS
    }

    /// Whether a router takes the packet: there is no checksum that could be wrong.
    #[inline(always)]
    pub const fn is_sound(&self) -> bool {
        true
    }

    /// Offset of the payload from the start of the frame.
    #[inline(always)]
    pub fn l4(&self) -> usize {
        usize::from(self.l4)
    }
}

/// The IPv6 header, or why there is none.
#[inline(always)]
pub fn ip(ctx: &TcContext) -> Result<Ip, Reason> {
    match packet::u16_at(ctx, 12).map(u16::from_be_bytes) {
        Some(ETHERTYPE_IPV6) => {}
        _ => return Err(Reason::NotIp),
    }
    let (start, end) = (ctx.start(), ctx.end());
    if start + IP_END > end {
        return Err(Reason::Malformed);
    }
    // SAFETY: `IP_END` bytes were checked to be in the buffer. The kernel puts this header on a word boundary
    // wherever the machine needs it (`NET_IP_ALIGN`).
    let word = |offset: usize| unsafe { *((start + ETH_LEN + offset) as *const u32) };
    let addr = |offset| {
        addr([
            word(offset),
            word(offset + 4),
            word(offset + 8),
            word(offset + 12),
        ])
    };
    let [version, ..] = word(0).to_ne_bytes();
    let [length_high, length_low, next, ttl] = word(4).to_ne_bytes();
    let payload_len = match u16::from_be_bytes([length_high, length_low]) {
        // BIG TCP (Linux 5.19): the field cannot hold the length of a GSO packet above 64 KiB.
        0 if ctx.is_gso() => ctx.length() - IP_END as u32,
        length => u32::from(length),
    };
    if version >> 4 != 6 || payload_len + IP_END as u32 > ctx.length() {
        return Err(Reason::Malformed);
    }
    let mut ip = Ip {
        src: addr(8),
        dst: addr(24),
        total_len: (payload_len + 40).min(u32::from(u16::MAX)) as u16,
        protocol: next,
        ttl,
        l4: IP_END as u8,
        is_fragment: false,
        is_first: true,
        chain: Chain::PLAIN,
    };
    if !matches!(next, TCP | UDP | ICMP) {
        let begin = Chain::begin(next, IP_END as u8);
        let chain = Chain::of_bits(cwy_extensions(ctx.as_ptr().cast(), begin.bits()));
        ip.protocol = chain.protocol();
        ip.l4 = chain.l4();
        ip.is_fragment = chain.is_fragment();
        ip.is_first = chain.is_first();
        ip.chain = chain.kind();
    }
    Ok(ip)
}

/// Follows the extension headers from where `chain` stands. Takes and returns [`Chain::bits`]. Verified by itself.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn cwy_extensions(skb: *mut __sk_buff, chain: u32) -> u32 {
    let mut walk = Walk { skb, chain };
    // SAFETY: the callback has the signature that the helper calls (Linux 5.17), and `walk` outlives the call.
    unsafe {
        let state = (&raw mut walk).cast();
        bpf_loop(Chain::MOST as u32, follow as *mut c_void, state, 0);
    }
    Chain::of_bits(walk.chain).end().bits()
}

struct Walk {
    skb: *mut __sk_buff,
    /// [`Chain::bits`].
    chain: u32,
}

/// # Safety
///
/// Called by `bpf_loop` with a [`Walk`].
unsafe extern "C" fn follow(_header: u32, walk: *mut c_void) -> i64 {
    // SAFETY: the caller's.
    let walk = unsafe { context::<Walk>(walk) };
    let mut chain = Chain::of_bits(walk.chain);
    if chain.step() == Step::End {
        return 1;
    }
    match load::<8>(&TcContext::new(walk.skb), usize::from(chain.l4())) {
        Some(header) => chain.follow(header),
        None => chain.give_up(),
    }
    walk.chain = chain.bits();
    0
}

/// The flow that a packet belongs to.
#[inline(always)]
pub fn key(ip: &Ip, transport: &Transport) -> Key {
    let [a, b, c, d] = transport.ports().to_ne_bytes();
    Key {
        src: ip.src,
        dst: ip.dst,
        src_port: [a, b],
        dst_port: [c, d],
        protocol: ip.protocol,
        _pad: [0; 3],
    }
}

/// What the header's sum changes by when the hop limit, the second byte of its word, is one less.
const ONE_HOP_LESS: u32 = !(u16::from_ne_bytes([0, 1]) as u32);

/// Decrements the hop limit.
///
/// # Safety
///
/// `header` points to the first [`IP_END`] bytes of the packet.
#[inline(always)]
pub unsafe fn count_hop(ctx: &impl Headers, header: *mut u8, ip: &Ip) {
    // SAFETY: the caller's.
    unsafe { *header.add(HOP_LIMIT) = ip.ttl.wrapping_sub(1) };
    ctx.has_changed(ONE_HOP_LESS);
}

/// Enters the ends of a flow into a question for its route.
#[inline(always)]
pub fn set_ends(request: &mut bpf_fib_lookup, key: &Key) {
    request.family = AF_INET6;
    request.__bindgen_anon_3.ipv6_src = words(&key.src);
    request.__bindgen_anon_4.ipv6_dst = words(&key.dst);
}

/// The identification of a fragment's packet; `None` if the fragment header is not the last before what `ip` calls its
/// payload.
#[inline(always)]
pub fn fragment_id(ctx: &TcContext, ip: &Ip) -> Option<[u8; 6]> {
    let header: [u8; 8] = load(ctx, ip.l4().checked_sub(8).filter(|at| *at >= IP_END)?)?;
    let [next, reserved, _, offset_and_more, a, b, c, d] = header;
    let is_it = next == ip.protocol && reserved == 0 && offset_and_more & 6 == 0;
    is_it.then_some([a, b, c, d, 0, 0])
}

/// The address at `offset`, or `None` when the frame is shorter.
#[inline(always)]
pub fn addr_at(ctx: &TcContext, offset: usize) -> Option<Addr> {
    load(ctx, offset)
}

/// The packet that an ICMPv6 error quotes; read into `into`. `None` if the packet is no error, or the quoted one has no ports of a flow
/// behind its headers.
#[inline(always)]
pub fn quoted(ctx: &TcContext, ip: &Ip, into: &mut Quoted) -> Option<()> {
    if ip.protocol != ICMP || ip.is_fragment || !ip.is_plain() {
        return None;
    }
    let kind: [u8; 1] = load(ctx, ip.l4())?;
    let length: [u8; 2] = load(ctx, ETH_LEN + 4)?;
    // Its checksum says nothing of what a frame has behind the packet.
    if !Addr::is_icmp_error(kind[0]) || ctx.len() != IP_END as u32 + u32::from(u16::from_be_bytes(length)) {
        return None;
    }
    let l3 = ip.l4() + 8;
    let head: [u8; 8] = load(ctx, l3)?;
    let mut chain = Chain::begin(head[6], (l3 + 40).min(usize::from(u8::MAX)) as u8);
    if !matches!(head[6], TCP | UDP | ICMP) {
        chain = Chain::of_bits(cwy_extensions(ctx.as_ptr().cast(), chain.bits()));
    }
    if head[0] >> 4 != 6 || chain.l4() == 0 || chain.l4() == u8::MAX || !chain.is_first() {
        return None;
    }
    let (protocol, l4) = (chain.protocol(), usize::from(chain.l4()));
    let start: [u8; 8] = load(ctx, l4)?;
    let (src_port, dst_port, asks) = match protocol {
        TCP | UDP => ([start[0], start[1]], [start[2], start[3]], false),
        ICMP => match Addr::icmp_query(start[0], start[1])? {
            query if query.asks => ([start[4], start[5]], query.kind, true),
            query => (query.kind, [start[4], start[5]], false),
        },
        _ => return None,
    };
    into.key = Key {
        src: load(ctx, l3 + 8)?,
        dst: load(ctx, l3 + 24)?,
        src_port,
        dst_port,
        protocol,
        _pad: [0; 3],
    };
    into.l3 = l3 as u16;
    into.l4 = l4 as u16;
    into.check = 0;
    into.asks = u16::from(asks);
    Some(())
}

#[inline(always)]
fn addr(words: [u32; 4]) -> Addr {
    // SAFETY: both are sixteen bytes, and any bytes are an address.
    unsafe { core::mem::transmute(words) }
}

#[inline(always)]
pub fn words(addr: &Addr) -> [u32; 4] {
    // SAFETY: as in `addr`.
    unsafe { core::mem::transmute(*addr) }
}
