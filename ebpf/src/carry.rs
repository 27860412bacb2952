//! The established path: one lookup has been done, the packet is rewritten and redirected.

use aya_ebpf::{
    helpers::generated::{bpf_redirect, bpf_redirect_peer},
    programs::TcContext,
};
use causeway_common::{
    flow::{Exit, Hop, KEEPALIVE, Nat, Progress},
    reason::Reason,
    tuple::{TAG_CARRIED, TCP},
};

use crate::{
    Outcome,
    maps::{Entry, Key, config, flow, now},
    next_hop,
    packet::{self, Ip, Transport},
    rewrite::{Translation, forward, translate},
};

/// Redirects a packet of a carried flow; the few that the kernel has to see go up the stack.
#[inline(always)]
pub fn carry(ctx: &TcContext, ip: &Ip, transport: &Transport, key: &Key, entry: &mut Entry) -> Outcome {
    if ip.ttl <= 1 {
        return up(ctx, ip, key, &translation(entry), Reason::TtlExpiring);
    }
    if packet::largest_packet(ctx, ip, transport) > u32::from(entry.mtu) {
        return up(ctx, ip, key, &translation(entry), Reason::TooBig);
    }
    let now = now();
    if entry.last_seen != now {
        entry.last_seen = now;
        if entry.exit == Exit::UPLINK {
            next_hop::refresh(ctx, key, entry);
        }
        if entry.nat == Nat::NONE && key.protocol != TCP && now.wrapping_sub(entry.last_up) >= KEEPALIVE {
            entry.last_up = now;
            return up(ctx, ip, key, &Translation::NONE, Reason::StackKeepalive);
        }
    }
    note_progress(key, entry, transport);

    let (hop, to) = (hop(entry), translation(entry));
    if forward(ctx, ip, key, &to, &hop).is_err() {
        return Reason::RewriteFailed.into();
    }
    if hop.exit == Exit::POD {
        // SAFETY: the helper takes integers only; it fails with a drop when the device is gone.
        let action = unsafe { bpf_redirect_peer(hop.ifindex, 0) };
        Outcome {
            reason: Reason::CarriedToPod,
            redirect: action as i32,
        }
    } else {
        packet::set_tag(ctx, TAG_CARRIED);
        // SAFETY: as above.
        let action = unsafe { bpf_redirect(hop.ifindex, 0) };
        Outcome {
            reason: Reason::CarriedToUplink,
            redirect: action as i32,
        }
    }
}

/// Gives a packet of a carried flow to the stack, which answers it itself.
///
/// An answer from outside is translated first: its untranslated tuple means nothing to the stack, which would reset
/// the connection.
#[inline(always)]
fn up(ctx: &TcContext, ip: &Ip, key: &Key, to: &Translation, reason: Reason) -> Outcome {
    let mut inside = *key;
    if to.nat == Nat::DESTINATION {
        if translate(ctx, ip, key, to).is_err() {
            return Reason::RewriteFailed.into();
        }
        inside = Key {
            dst: to.addr,
            dst_port: to.port,
            ..*key
        };
    }
    if let Some(config) = config() {
        packet::set_tag(ctx, inside.tag(config.seed));
    }
    reason.into()
}

/// Notes what the packet says of the connection's life, on both directions' entries.
#[inline(always)]
pub fn note_progress(key: &Key, entry: &mut Entry, transport: &Transport) {
    let seen = Progress::of_packet(key.protocol, transport.flags);
    if !entry.progress().has(seen) {
        entry.progress = entry.progress().with(seen).bits();
        note_on_peer(key, entry, seen);
    }
}

#[inline(never)]
fn note_on_peer(key: &Key, entry: &Entry, seen: Progress) {
    if let Some(peer) = flow(&entry.peer_key(key)) {
        peer.progress = peer.progress().and_peer(seen).bits();
    }
}

/// Where the entry sends its packets.
#[inline(always)]
fn hop(entry: &Entry) -> Hop {
    Hop {
        exit: entry.exit,
        mtu: entry.mtu,
        ifindex: entry.out_ifindex,
        dst_mac: entry.out_dst_mac,
        src_mac: entry.out_src_mac,
    }
}

/// What the entry replaces.
#[inline(always)]
pub fn translation(entry: &Entry) -> Translation {
    Translation {
        nat: entry.nat,
        addr: entry.nat_addr,
        port: entry.nat_port,
    }
}
