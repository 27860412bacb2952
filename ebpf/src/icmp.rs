//! ICMP errors. They belong to the flow of the packet that they quote, and are translated with it: outside and inside
//! (RFC 5508 section 4). Conntrack does not know a carried flow, so what is about one is delivered past the stack.

use core::ptr::from_ref;

use aya_ebpf::{
    EbpfContext as _, bindings::__sk_buff, helpers::generated::bpf_skb_load_bytes, programs::TcContext,
};
use causeway_common::{
    decide::Role,
    flow::{Flags, Nat, State},
    reason::Reason,
};

use crate::{
    carry::redirect,
    family,
    given::given,
    maps::{Addr, Entry, config, flow, scratch},
    nat::{self, translation},
    packet::{Ip, skb},
    rewrite::{Failed, Macs, forward_addr},
};

/// The packet that an error quotes.
pub type Quoted = causeway_common::icmp::Quoted<Addr>;

/// The entry of the direction in which the error goes: the other one than that of the packet it is about.
#[inline(always)]
fn own_direction(quoted: &Quoted) -> Option<&'static mut Entry> {
    let role = if quoted.asks == 0 {
        Role::Opens
    } else {
        Role::Answers
    };
    flow(&quoted.key.reversed()).filter(|entry| entry.is_for(role, quoted.key.protocol))
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
    let Some(ip) = (unsafe { given(ip) }) else {
        return Reason::OtherProtocol;
    };
    let Some(quoted) = read_quoted(ctx, ip) else {
        return Reason::OtherProtocol;
    };
    // The pod speaks about what it received, so its own direction is the reverse of what it quotes.
    let Some(own) = own_direction(quoted) else {
        return Reason::IcmpError;
    };
    let is_own = quoted.key.dst == ip.src && quoted.key.src == ip.dst && own.in_ifindex == skb(ctx).ifindex;
    if own.state != State::CARRIED || !is_own || ip.ttl <= 1 {
        return Reason::IcmpError;
    }
    carry(ctx, ip, quoted, own)
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
    let Some(ip) = (unsafe { given(ip) }) else {
        return Reason::OtherProtocol;
    };
    let Some(quoted) = read_quoted(ctx, ip) else {
        return Reason::OtherProtocol;
    };
    let Some(answer) = own_direction(quoted) else {
        return Reason::OtherProtocol;
    };
    if quoted.key.src != ip.dst {
        return Reason::OtherProtocol;
    }
    match (answer.state, answer.nat) {
        (State::CARRIED, _) if answer.in_ifindex == skb(ctx).ifindex && ip.ttl > 1 => {
            carry(ctx, ip, quoted, answer)
        }
        (State::CARRIED | State::KERNEL, Nat::DESTINATION | Nat::FROM_BACKEND) => {
            match nat::translate_error(ctx, ip, quoted, &translation(answer)) {
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
    let (Some(ip), Some(config)) = (unsafe { given(ip) }, config()) else {
        return Reason::OtherProtocol;
    };
    let Some(quoted) = read_quoted(ctx, ip) else {
        return Reason::OtherProtocol;
    };
    // Else it would carry a pod's words, and its address, to a host that the flow has nothing to do with.
    if quoted.key.src != ip.dst {
        return Reason::OtherProtocol;
    }
    let Some(own) = own_direction(quoted) else {
        return Reason::OtherProtocol;
    };
    if own.nat == Nat::TO_BACKEND {
        return match nat::translate_error(ctx, ip, quoted, &translation(own)) {
            Ok(()) => Reason::Balanced,
            Err(Failed) => Reason::RewriteFailed,
        };
    }
    if own.nat == Nat::SOURCE && own.nat_addr == config.node_addr {
        return match nat::translate_error(ctx, ip, quoted, &translation(own)) {
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
    let translated = nat::translate_quoted(ctx, ip, quoted, &translation(entry));
    match translated.and_then(|outer| forward_addr(ctx, ip, &outer, macs)) {
        Ok(()) => redirect(ctx, exit, ifindex),
        Err(Failed) => Reason::RewriteFailed,
    }
}

/// Reads the packet that an ICMP error quotes; `None` if the packet is no error, or the quoted one has no ports of a flow.
#[inline(always)]
fn read_quoted(ctx: &TcContext, ip: &Ip) -> Option<&'static Quoted> {
    let quoted = &mut scratch()?.quoted;
    family::quoted(ctx, ip, quoted)?;
    Some(quoted)
}

/// `N` bytes at `offset`, or `None` when the packet is shorter.
#[inline(always)]
pub fn load<const N: usize>(ctx: &TcContext, offset: usize) -> Option<[u8; N]> {
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
