//! ICMP errors. They belong to the flow of the packet that they quote, and are translated with it: outside and inside
//! (RFC 5508 section 4). Conntrack does not know a carried flow, so what is about one is delivered past the stack.

use core::ptr::from_ref;

use aya_ebpf::{
    EbpfContext as _,
    bindings::__sk_buff,
    helpers::generated::{bpf_l4_csum_replace, bpf_skb_load_bytes, bpf_skb_store_bytes},
    programs::TcContext,
};
use causeway_common::{
    checksum,
    decide::{Role, icmp_query, is_icmp_error},
    flow::{Flags, Nat, State},
    reason::Reason,
    tuple::{ICMP, TCP, UDP},
};

use crate::{
    carry::{redirect, translation},
    maps::{Addr, Entry, Key, config, flow},
    packet::{Ip, skb},
    rewrite::{Failed, Macs, Translation, forward_addr, translate_addr},
};

/// The packet that an error quotes: its header and the first eight bytes behind it (RFC 792). Without padding, as [`Ip`].
#[repr(C)]
struct Quoted {
    key: Key,
    /// Offset of its IPv4 header from the start of the frame.
    l3: u16,
    /// Offset of its transport header.
    l4: u16,
    /// Checksum of its IPv4 header, as in memory.
    check: u16,
    /// 1: it is a question of ICMP.
    asks: u16,
}

impl Quoted {
    const NOTHING: Self = Self {
        key: Key {
            src: [0; 4],
            dst: [0; 4],
            src_port: [0; 2],
            dst_port: [0; 2],
            protocol: 0,
            _pad: [0; 3],
        },
        l3: 0,
        l4: 0,
        check: 0,
        asks: 0,
    };

    #[inline(always)]
    fn l3(&self) -> usize {
        usize::from(self.l3)
    }

    #[inline(always)]
    fn l4(&self) -> usize {
        usize::from(self.l4)
    }

    /// The entry of the direction in which the error goes: the other one than that of the packet it is about.
    #[inline(always)]
    fn own_direction(&self) -> Option<&'static mut Entry> {
        let role = if self.asks == 0 {
            Role::Opens
        } else {
            Role::Answers
        };
        flow(&self.key.reversed()).filter(|entry| entry.is_for(role, self.key.protocol))
    }
}

/// From a pod: an error about a packet that it received. Carried when its flow is.
#[inline(always)]
pub fn from_pod(ctx: &TcContext, ip: &Ip) -> Reason {
    cwy_icmp_pod(ctx.as_ptr().cast(), from_ref(ip))
}

/// Verified by itself.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn cwy_icmp_pod(buffer: *mut __sk_buff, ip: *const Ip) -> Reason {
    let ctx = &TcContext::new(buffer);
    // SAFETY: the caller's reference.
    let Some(ip) = (unsafe { ip.as_ref() }) else {
        return Reason::OtherProtocol;
    };
    let mut quoted = Quoted::NOTHING;
    if !read_quoted(ctx, ip, &mut quoted) {
        return Reason::OtherProtocol;
    }
    // The pod speaks about what it received, so its own direction is the reverse of what it quotes.
    let Some(own) = quoted.own_direction() else {
        return Reason::IcmpError;
    };
    let is_own = quoted.key.dst == ip.src && quoted.key.src == ip.dst && own.in_ifindex == skb(ctx).ifindex;
    if own.state != State::CARRIED || !is_own || ip.ttl <= 1 {
        return Reason::IcmpError;
    }
    carry(ctx, ip, &quoted, own)
}

/// From the wire: an error about a packet that a pod, or a socket of the node, has sent.
/// [`Reason::OtherProtocol`] if it is about something else.
#[inline(always)]
pub fn from_uplink(ctx: &TcContext, ip: &Ip) -> Reason {
    cwy_icmp_wire(ctx.as_ptr().cast(), from_ref(ip))
}

/// Verified by itself.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn cwy_icmp_wire(buffer: *mut __sk_buff, ip: *const Ip) -> Reason {
    let ctx = &TcContext::new(buffer);
    // SAFETY: the caller's reference.
    let Some(ip) = (unsafe { ip.as_ref() }) else {
        return Reason::OtherProtocol;
    };
    let mut quoted = Quoted::NOTHING;
    if !read_quoted(ctx, ip, &mut quoted) {
        return Reason::OtherProtocol;
    }
    let Some(answer) = quoted.own_direction() else {
        return Reason::OtherProtocol;
    };
    if quoted.key.src != ip.dst {
        return Reason::OtherProtocol;
    }
    match (answer.state, answer.nat) {
        (State::CARRIED, _) if answer.in_ifindex == skb(ctx).ifindex && ip.ttl > 1 => {
            carry(ctx, ip, &quoted, answer)
        }
        (State::CARRIED | State::KERNEL, Nat::DESTINATION | Nat::FROM_BACKEND) => {
            match translate(ctx, ip, &quoted, &translation(answer)) {
                Ok(()) if answer.nat == Nat::FROM_BACKEND => Reason::Balanced,
                Ok(()) => Reason::KernelFlowTranslated,
                Err(Failed) => Reason::RewriteFailed,
            }
        }
        _ => Reason::OtherProtocol,
    }
}

/// At the uplink's egress, from a pod or from the node on a pod's behalf: an error about a packet of a flow that we
/// know. [`Reason::OtherProtocol`] if none is meant.
#[inline(always)]
pub fn to_uplink(ctx: &TcContext, ip: &Ip) -> Reason {
    cwy_icmp_out(ctx.as_ptr().cast(), from_ref(ip))
}

/// Verified by itself.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn cwy_icmp_out(skb: *mut __sk_buff, ip: *const Ip) -> Reason {
    let ctx = &TcContext::new(skb);
    // SAFETY: the caller's reference.
    let (Some(ip), Some(config)) = (unsafe { ip.as_ref() }, config()) else {
        return Reason::OtherProtocol;
    };
    let mut quoted = Quoted::NOTHING;
    if !read_quoted(ctx, ip, &mut quoted) {
        return Reason::OtherProtocol;
    }
    // Else it would carry a pod's words, and its address, to a host that the flow has nothing to do with.
    if quoted.key.src != ip.dst {
        return Reason::OtherProtocol;
    }
    let Some(own) = quoted.own_direction() else {
        return Reason::OtherProtocol;
    };
    if own.nat == Nat::TO_BACKEND {
        return match translate(ctx, ip, &quoted, &translation(own)) {
            Ok(()) => Reason::Balanced,
            Err(Failed) => Reason::RewriteFailed,
        };
    }
    if own.nat == Nat::SOURCE && own.nat_addr == config.node_addr {
        return match translate(ctx, ip, &quoted, &translation(own)) {
            Ok(()) => Reason::SnatIcmpError,
            Err(Failed) => Reason::RewriteFailed,
        };
    }
    // A flow that leaves with the pod's own address: so do the errors about it.
    // The pod may have no other answer than this error to what a stranger has sent it.
    let is_answer = own.has(Flags::ANSWER) || own.has(Flags::CAME_OUT) && own.state != State::OFFERED;
    let keeps_address = own.nat == Nat::NONE && is_answer;
    if keeps_address && quoted.key.dst == ip.src {
        Reason::IcmpError
    } else {
        Reason::OtherProtocol
    }
}

/// Translates as the flow is, and redirects.
#[inline(always)]
fn carry(ctx: &TcContext, ip: &Ip, quoted: &Quoted, entry: &Entry) -> Reason {
    let (exit, ifindex, macs) = (entry.exit, entry.out_ifindex, Macs::of(entry));
    let to = translation(entry);
    let outer = if changes_outside(ip, quoted, &to) {
        to
    } else {
        Translation { nat: Nat::NONE, ..to }
    };
    let done = translate_quoted(ctx, ip, quoted, &to).and_then(|()| forward_addr(ctx, ip, &outer, macs));
    match done {
        Ok(()) => redirect(ctx, exit, ifindex),
        Err(Failed) => Reason::RewriteFailed,
    }
}

#[inline(always)]
fn translate(ctx: &TcContext, ip: &Ip, quoted: &Quoted, to: &Translation) -> Result<(), Failed> {
    translate_quoted(ctx, ip, quoted, to)?;
    if changes_outside(ip, quoted, to) {
        translate_addr(ctx, ip, to)
    } else {
        Ok(())
    }
}

/// Whether the error's own address is that of the changed end. An error that the node sends about a pod's packet has the
/// node's address already; of what a router says about a packet to a backend, the virtual address is not the source.
#[inline(always)]
fn changes_outside(ip: &Ip, quoted: &Quoted, to: &Translation) -> bool {
    match to.nat {
        Nat::SOURCE => ip.src != to.addr,
        Nat::FROM_BACKEND => ip.src == quoted.key.dst,
        _ => true,
    }
}

/// Changes the end of the quoted packet that is the same host as the error's changed end: the destination it was
/// sent to if the error's source is translated, and the other way round.
#[inline(always)]
fn translate_quoted(ctx: &TcContext, ip: &Ip, quoted: &Quoted, to: &Translation) -> Result<(), Failed> {
    let skb = ctx.as_ptr().cast();
    if cwy_translate_quoted(skb, ip.l4() as u32, from_ref(quoted), from_ref(to)) == 0 {
        Ok(())
    } else {
        Err(Failed)
    }
}

/// Returns 0 if the quoted packet has been translated; `l4` is the offset of the error. Verified by itself.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn cwy_translate_quoted(
    skb: *mut __sk_buff,
    l4: u32,
    quoted: *const Quoted,
    to: *const Translation,
) -> u32 {
    // SAFETY: the caller's references.
    let (Some(quoted), Some(to)) = (unsafe { quoted.as_ref() }, unsafe { to.as_ref() }) else {
        return 1;
    };
    let edit = Edit {
        ctx: &TcContext::new(skb),
        error_check: l4 as usize + 2,
    };
    u32::from(edit.translate(quoted, to).is_err())
}

/// Writes into the quoted packet and keeps the error's own checksum right with each write.
struct Edit<'a> {
    ctx: &'a TcContext,
    /// Offset of the error's checksum.
    error_check: usize,
}

impl Edit<'_> {
    #[inline(always)]
    fn translate(&self, quoted: &Quoted, to: &Translation) -> Result<(), Failed> {
        let key = &quoted.key;
        let (old_addr, old_port, addr_at, port_at) = match Nat::end(to.nat) {
            Nat::SOURCE => (key.dst, key.dst_port, quoted.l3() + 16, quoted.l4() + 2),
            Nat::DESTINATION => (key.src, key.src_port, quoted.l3() + 12, quoted.l4()),
            _ => return Ok(()),
        };
        let check = checksum::replace_u32(quoted.check, old_addr, to.addr);
        self.store_addr(addr_at, old_addr, to.addr)?;
        self.store(quoted.l3() + 10, quoted.check.to_ne_bytes(), check.to_ne_bytes())?;
        let port_at = if key.protocol == ICMP {
            quoted.l4() + 4
        } else {
            port_at
        };
        if old_port != to.port {
            self.store(port_at, old_port, to.port)?;
        }
        self.fix_transport(quoted, old_addr, to.addr, old_port, to.port)
    }

    /// The quoted transport checksum, where enough of the packet is quoted to hold it. Like nf_nat, a TCP checksum
    /// is updated only with a whole header (`tcp_manip_pkt`, Linux 6.18).
    #[inline(always)]
    fn fix_transport(
        &self,
        quoted: &Quoted,
        old: Addr,
        new: Addr,
        old_port: [u8; 2],
        port: [u8; 2],
    ) -> Result<(), Failed> {
        let (at, has_pseudo_header) = match quoted.key.protocol {
            TCP if self.ctx.len() as usize >= quoted.l4() + 20 => (quoted.l4() + 16, true),
            UDP => (quoted.l4() + 6, true),
            ICMP => (quoted.l4() + 2, false),
            _ => return Ok(()),
        };
        let before: [u8; 2] = load(self.ctx, at).ok_or(Failed)?;
        let mut check = u16::from_ne_bytes(before);
        if quoted.key.protocol == UDP && check == 0 {
            return Ok(());
        }
        if has_pseudo_header {
            check = checksum::replace_u32(check, old, new);
        }
        check = checksum::replace_u16(check, u16::from_ne_bytes(old_port), u16::from_ne_bytes(port));
        if quoted.key.protocol == UDP && check == 0 {
            check = 0xffff;
        }
        self.store(at, before, check.to_ne_bytes())
    }

    #[inline(always)]
    fn store(&self, at: usize, old: [u8; 2], new: [u8; 2]) -> Result<(), Failed> {
        let (from, to) = (u16::from_ne_bytes(old).into(), u16::from_ne_bytes(new).into());
        // SAFETY: two bytes of our stack; the helper checks the offset against the packet.
        done(unsafe { bpf_skb_store_bytes(self.ctx.as_ptr().cast(), at as u32, new.as_ptr().cast(), 2, 0) })?;
        self.fix_error_check(from, to, 2)
    }

    #[inline(always)]
    fn store_addr(&self, at: usize, old: Addr, new: Addr) -> Result<(), Failed> {
        let (from, to) = (u32::from_ne_bytes(old).into(), u32::from_ne_bytes(new).into());
        // SAFETY: as in `store`, with four bytes.
        done(unsafe { bpf_skb_store_bytes(self.ctx.as_ptr().cast(), at as u32, new.as_ptr().cast(), 4, 0) })?;
        self.fix_error_check(from, to, 4)
    }

    /// No pseudo header: ICMPv4 has none.
    #[inline(always)]
    fn fix_error_check(&self, from: u64, to: u64, size: u64) -> Result<(), Failed> {
        let at = self.error_check as u32;
        // SAFETY: integers only; the helper checks the offset against the packet.
        done(unsafe { bpf_l4_csum_replace(self.ctx.as_ptr().cast(), at, from, to, size) })
    }
}

/// Reads the packet that an ICMP error quotes. Whether the packet is an error, and the quoted one has the ports of a
/// flow.
#[inline(never)]
fn read_quoted(ctx: &TcContext, ip: &Ip, quoted: &mut Quoted) -> bool {
    match parse(ctx, ip) {
        Some(parsed) => {
            *quoted = parsed;
            true
        }
        None => false,
    }
}

#[inline(always)]
fn parse(ctx: &TcContext, ip: &Ip) -> Option<Quoted> {
    if ip.protocol != ICMP || ip.is_fragment {
        return None;
    }
    let kind: [u8; 1] = load(ctx, ip.l4())?;
    if !is_icmp_error(kind[0]) {
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
        ICMP => match icmp_query(start[0], start[1])? {
            query if query.asks => ([start[4], start[5]], query.kind, true),
            query => (query.kind, [start[4], start[5]], false),
        },
        _ => return None,
    };
    let key = Key {
        src: [header[12], header[13], header[14], header[15]],
        dst: [header[16], header[17], header[18], header[19]],
        src_port,
        dst_port,
        protocol,
        _pad: [0; 3],
    };
    Some(Quoted {
        key,
        l3: l3 as u16,
        l4: l4 as u16,
        check: u16::from_ne_bytes([header[10], header[11]]),
        asks: u16::from(asks),
    })
}

/// `N` bytes at `offset`, or `None` when the packet is shorter.
#[inline(always)]
fn load<const N: usize>(ctx: &TcContext, offset: usize) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    // SAFETY: `N` bytes of our stack; the helper checks the offset against the packet.
    let result = unsafe {
        bpf_skb_load_bytes(
            ctx.as_ptr().cast(),
            offset as u32,
            bytes.as_mut_ptr().cast(),
            N as u32,
        )
    };
    (result == 0).then_some(bytes)
}

#[inline(always)]
fn done(result: i64) -> Result<(), Failed> {
    if result == 0 { Ok(()) } else { Err(Failed) }
}
