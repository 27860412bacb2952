//! Forgets flows: both halves, with what else remembers them.
//!
//! The half that holds the port goes first. A packet that comes between still leaves with the port, and the next one
//! claims it anew; the other way round it would renew a half that is about to go.

use core::ptr::from_ref;

use causeway_common::{
    flow::{Flags, Nat, State},
    lifetime::Timeouts,
};

use crate::{
    crowd,
    maps::{AGES, Entry, FLOWS, Key, config, flow},
    usage,
};

/// Forgets the flow of which `key` is one direction.
#[inline(always)]
pub fn forget(key: &Key) {
    let Some(entry) = flow(key) else {
        return;
    };
    let peer_key = entry.peer_key(key);
    let holds_port = entry.nat == Nat::DESTINATION;
    if holds_port {
        forget_half(key);
    }
    if flow(&peer_key).is_some_and(|peer| is_peer(key, &peer_key, peer)) {
        forget_half(&peer_key);
    }
    if !holds_port {
        forget_half(key);
    }
}

/// [`forget`] in a frame of its own.
#[inline(never)]
pub fn end(key: &Key) {
    forget(key);
}

/// Whether an entry under the key of the peer is the peer's. A forward half that was lost and written anew may have
/// another port: it is not the peer of the half that was left behind.
#[inline(always)]
fn is_peer(key: &Key, peer_key: &Key, peer: &Entry) -> bool {
    peer.peer_key(peer_key) == *key
}

/// Forgets one direction.
#[inline(always)]
pub fn forget_half(key: &Key) {
    cwy_forget_half(from_ref(key));
}

/// Verified by itself.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn cwy_forget_half(key: *const Key) -> u32 {
    // SAFETY: the caller's reference.
    let (Some(key), Some(config)) = (unsafe { key.as_ref() }, config()) else {
        return 0;
    };
    if let Some(entry) = flow(key) {
        usage::closed(key, entry);
        if entry.nat == Nat::DESTINATION {
            crowd::mark_free(config, key);
        }
        FLOWS.remove(key).ok();
    }
    0
}

/// What became of a flow that was looked at.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Look {
    /// There is no entry under the key.
    Gone,
    /// Its time has not come.
    Kept,
    /// It is idle, and the other direction is not.
    KeptByPeer,
    /// It was over, and this direction has been forgotten.
    Forgotten,
    /// It was over, and both directions have been forgotten.
    BothForgotten,
}

/// Forgets the flow of which `key` is one direction if it is over at `now`. An offer goes alone: the answer that is
/// awaited with it has an end of its own, and goes with it if that has come too.
#[inline(always)]
pub fn forget_if_over(key: &Key, now: u32) -> Look {
    match cwy_forget(from_ref(key), now) {
        1 => Look::Kept,
        2 => Look::KeptByPeer,
        3 => Look::Forgotten,
        4 => Look::BothForgotten,
        _ => Look::Gone,
    }
}

/// Returns a [`Look`] as a number. Verified by itself.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn cwy_forget(key: *const Key, now: u32) -> u32 {
    // SAFETY: the caller's reference.
    let (Some(key), Some(config)) = (unsafe { key.as_ref() }, config()) else {
        return Look::Gone as u32;
    };
    look(&config.timeouts, key, now) as u32
}

#[inline(always)]
fn look(timeouts: &Timeouts, key: &Key, now: u32) -> Look {
    let Some(entry) = flow(key) else {
        return Look::Gone;
    };
    if !timeouts.expired(entry, key.protocol, entry.last_seen, now) {
        return Look::Kept;
    }
    let peer_key = entry.peer_key(key);
    let is_offer = entry.state == State::OFFERED;
    match flow(&peer_key).filter(|peer| is_peer(key, &peer_key, peer)) {
        None => forget_half(key),
        Some(peer) if timeouts.expired(peer, key.protocol, peer.last_seen, now) => {
            forget(key);
            return Look::BothForgotten;
        }
        Some(_) if is_offer => {
            forget_half(key);
            // The other direction is found in the queue under its own key from here on.
            AGES.push(peer_key, 0).ok();
        }
        Some(_) => return Look::KeptByPeer,
    }
    Look::Forgotten
}

/// Copies what is to be kept of an entry that is overwritten: whether its opener pays for it.
#[inline(always)]
pub fn kept_flags(before: Option<&Entry>) -> u8 {
    before.map_or(0, |entry| entry.flags & Flags::COUNTED)
}
