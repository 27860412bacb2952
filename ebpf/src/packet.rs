//! Reads headers. The only place, with `rewrite`, that knows offsets; a header is whole or absent.

use core::{
    mem::offset_of,
    ptr::{from_mut, from_ref},
};

use aya_ebpf::{EbpfContext as _, bindings::__sk_buff, programs::TcContext};
use causeway_common::{
    addr::Address as _,
    decide::{Role, role},
    reason::Reason,
    tuple::{TCP, UDP},
};

pub use crate::family::{IP_END, Ip, ip, key};
use crate::{
    family::{Addr, PROTOCOL},
    given::{given, given_mut},
    headers::Headers,
    maps::Entry,
};

/// Length of an Ethernet header without a tag.
pub const ETH_LEN: usize = 14;
const ICMP: u8 = Addr::ICMP;

/// `PACKET_HOST`: the frame is addressed to the interface that received it.
const PACKET_HOST: u32 = 0;

/// A MAC address.
pub type Mac = [u8; 6];

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
    let transport = if linear > PROTOCOL as u32 && byte(ctx, PROTOCOL) == Some(TCP) {
        20
    } else {
        8
    };
    let wanted = IP_END as u32 + transport;
    let len = ctx.len();
    // A failure leaves the buffer as it was; parsing then finds the header absent.
    linear < wanted && linear < len && ctx.skb.pull_data(if len < wanted { len } else { wanted }).is_ok()
}

/// What [`cwy_ip`] and [`cwy_transport`] say of a header that is there. None is absent for this reason.
const THERE: Reason = Reason::CarriedToPod;

/// As [`ip`], where time does not count: verified once, and not for each of the ways a header can look.
#[inline(always)]
pub fn read_ip(ctx: &TcContext) -> Result<Ip, Reason> {
    let mut ip = Ip::NOTHING;
    match cwy_ip(ctx.as_ptr().cast(), from_mut(&mut ip)) {
        THERE => Ok(ip),
        reason => Err(reason),
    }
}

/// As [`transport`], like [`read_ip`].
#[inline(always)]
pub fn read_transport(ctx: &TcContext, ip: &Ip) -> Result<Transport, Reason> {
    if ip.is_fragment && !ip.is_portless() {
        return Err(Reason::Fragment);
    }
    read_first_transport(ctx, ip)
}

/// As [`first_transport`], like [`read_ip`].
#[inline(always)]
pub fn read_first_transport(ctx: &TcContext, ip: &Ip) -> Result<Transport, Reason> {
    let mut transport = Transport::PORTLESS;
    match cwy_transport(ctx.as_ptr().cast(), from_ref(ip), from_mut(&mut transport)) {
        THERE => Ok(transport),
        reason => Err(reason),
    }
}

/// Verified by itself.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn cwy_ip(skb: *mut __sk_buff, into: *mut Ip) -> Reason {
    // SAFETY: the caller's own, which nobody else holds.
    let Some(into) = (unsafe { given_mut(into) }) else {
        return Reason::Malformed;
    };
    match ip(&TcContext::new(skb)) {
        Ok(ip) => {
            *into = ip;
            THERE
        }
        Err(reason) => reason,
    }
}

/// Verified by itself.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn cwy_transport(skb: *mut __sk_buff, ip: *const Ip, into: *mut Transport) -> Reason {
    // SAFETY: the caller's reference, and its own, which nobody else holds.
    let (Some(ip), Some(into)) = (unsafe { given(ip) }, unsafe { given_mut(into) }) else {
        return Reason::Malformed;
    };
    match first_transport(&TcContext::new(skb), ip) {
        Ok(transport) => {
            *into = transport;
            THERE
        }
        Err(reason) => reason,
    }
}

/// The transport header of a packet that belongs to a flow we know how to follow, or why there is none.
#[inline(always)]
pub fn transport(ctx: &impl Headers, ip: &Ip) -> Result<Transport, Reason> {
    if ip.is_fragment && !ip.is_portless() {
        return Err(Reason::Fragment);
    }
    first_transport(ctx, ip)
}

/// As [`transport`], also for a first fragment.
#[inline(always)]
pub fn first_transport(ctx: &impl Headers, ip: &Ip) -> Result<Transport, Reason> {
    if !ip.is_plain() {
        return Err(Reason::OtherProtocol);
    }
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
    // SAFETY: as above; the length of an IP header is a multiple of 4, so these offsets are even.
    let word = |offset: usize| unsafe { (*((start + offset) as *const u16)).to_ne_bytes() };
    // SAFETY: as above. The kernel puts the headers on word boundaries wherever the machine needs it (`NET_IP_ALIGN`).
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
        _ => match Addr::icmp_query(read(0), read(1)) {
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

#[inline(always)]
fn joined([[a, b], [c, d]]: [[u8; 2]; 2]) -> u32 {
    u32::from_ne_bytes([a, b, c, d])
}

impl Transport {
    /// Both ports, one word in memory order.
    #[inline(always)]
    pub fn ports(&self) -> u32 {
        self.ports
    }

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
        role::<Addr>(ip.protocol, self.flags)
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
