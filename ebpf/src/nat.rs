//! What is done to flows that are translated, as the other modules ask for it. Each line is a room of its own.

use aya_ebpf::{
    EbpfContext as _, bindings::__sk_buff, helpers::generated::bpf_redirect, programs::TcContext,
};
use causeway_common::{flow::Nat, fragment::round_of, reason::Reason, tuple::TCP};

pub use crate::{
    answers::{kernel_answer, lost_answer, portless_answer},
    fragment::{from_pod as fragment_from_pod, to_uplink as fragment_to_uplink},
    host::to_uplink as of_node,
    masquerade::{judge_unparsed, of_pod, without_ports},
    moved::forget as forget_moved,
    quoted::{translate_error, translate_quoted},
    translate::{replace_addr, translate, translate_transport, translation},
};
use crate::{
    balance,
    carry::Turn,
    crowd,
    end::{forget, forget_half},
    fragment, heal,
    host::ENDED,
    maps::{Addr, Entry, Key, config, flow},
    masquerade::{LOST, needs_snat},
    moved,
    packet::{self, Ip, Transport, skb},
    reclaim::make_room,
    reset::{self, Back},
    snat::{self, CLAIMS},
    to_uplink::of_stack,
};

/// The key under which the other direction of a flow is stored; `key` is this direction's.
#[inline(always)]
pub fn peer_key(key: &Key, entry: &Entry) -> Key {
    entry.peer_key(key)
}

/// Looks after the translation of a carried flow, once a second.
#[inline(always)]
pub fn look_after(key: &Key, entry: &Entry) -> Result<(), Turn> {
    if entry.nat == Nat::SOURCE && config().is_some_and(|config| config.node_addr != entry.nat_addr) {
        return Err(Turn::Forget);
    }
    if entry.nat == Nat::SOURCE && !heal::answers_of(key, entry) {
        return Err(Turn::Lost);
    }
    if entry.nat == Nat::TO_BACKEND {
        balance::answers_of(key, entry);
    }
    Ok(())
}

/// What becomes of a pod's packet that [`give_up`](crate::offer::give_up) has looked at with this result.
#[inline(always)]
pub fn after_stack(ctx: &TcContext, ip: &Ip, transport: &Transport, reason: Reason) -> Reason {
    if reason == Reason::Drained {
        return reset::refuse(ctx, ip, transport, reason, Back::Out);
    }
    if reason == Reason::MidFlow && ip.protocol == TCP && needs_snat(&ip.dst) {
        return heal::lost_flow(ctx, &packet::key(ip, transport));
    }
    reason
}

/// A fragment from the wire; `tag` is what the packet came with.
#[inline(always)]
pub fn fragment_from_uplink(ctx: &TcContext, ip: &Ip, tag: u16) -> Reason {
    fragment::from_uplink(ctx, ip, round_of(tag))
}

/// Refuses a packet that is about to leave by the uplink.
#[inline(always)]
pub fn refuse(ctx: &TcContext, ip: &Ip, transport: &Transport, reason: Reason) -> Reason {
    reset::refuse(ctx, ip, transport, reason, Back::In)
}

/// What is left to do for a packet that leaves the uplink: a flow that is over, or has lost its port, goes; and room is made
/// for one that was refused.
#[inline(always)]
pub fn settle(ctx: &TcContext, reason: Reason) -> Reason {
    let mut reason = reason;
    if reason == ENDED {
        end_of(ctx, false);
        reason = of_stack(ctx);
    }
    match reason {
        LOST => {
            end_of(ctx, true);
            Reason::SnatNoMapping
        }
        // Meanwhile another CPU has begun it again.
        ENDED => Reason::SnatNoPort,
        CLAIMS => or_begin_anew(ctx, snat::settle(ctx)),
        reason => or_begin_anew(ctx, reason),
    }
}

/// Ends the flow of a packet, or that whose answers its own would meet; or its own half alone.
#[inline(always)]
pub fn end_of(ctx: &TcContext, half: bool) {
    cwy_end_of(ctx.as_ptr().cast(), u32::from(half));
}

/// Verified by itself.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn cwy_end_of(skb: *mut __sk_buff, half: u32) -> u32 {
    let ctx = &TcContext::new(skb);
    let Ok(ip) = packet::read_ip(ctx) else {
        return 0;
    };
    let transport = match packet::read_first_transport(ctx, &ip) {
        Ok(transport) => transport,
        Err(Reason::OtherProtocol) if ip.is_portless() => Transport::PORTLESS,
        Err(_) => return 0,
    };
    let mut key = packet::key(&ip, &transport);
    if half != 0 {
        forget_half(&key);
        return 1;
    }
    if ip.is_portless() && flow(&key).is_none() {
        key = key.reversed();
    }
    forget(&key);
    1
}

/// After a flow was refused for want of room or a port: if room can be made, the packet passes the uplink's egress once more.
#[inline(always)]
fn or_begin_anew(ctx: &TcContext, reason: Reason) -> Reason {
    let is_refused =
        reason == Reason::SnatTableFull || reason == Reason::SnatQuota || reason == Reason::SnatNoPort;
    if !is_refused || !make_room() {
        return reason;
    }
    // SAFETY: the helper takes integers only.
    unsafe { bpf_redirect(skb(ctx).ifindex, 0) };
    Reason::RoomMade
}

/// The port that the answers' half of a translated flow holds.
pub struct HeldPort {
    is_held: bool,
    was_moved: bool,
    inside: (Addr, [u8; 2]),
}

impl HeldPort {
    /// That of an entry that is about to be removed.
    #[inline(always)]
    pub fn of(key: &Key, entry: &Entry) -> Self {
        let is_held = entry.nat == Nat::DESTINATION;
        Self {
            is_held,
            was_moved: is_held && entry.nat_port != key.dst_port,
            inside: (entry.nat_addr, entry.nat_port),
        }
    }

    /// Another flow may have it. `key` is the entry's, and is used up: the frame is the last of a deep call.
    #[inline(always)]
    pub fn give_back(self, key: &mut Key) {
        if self.is_held {
            crowd::mark_free(key);
        }
        if self.was_moved {
            *key = Key {
                src: self.inside.0,
                src_port: self.inside.1,
                ..key.reversed()
            };
            moved::forget(key);
        }
    }
}
