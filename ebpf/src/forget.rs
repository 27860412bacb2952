//! Forgets flows that are over: both halves, with what else remembers them. The half
//! that holds the port goes first, as where flows are ended.

use core::ptr::from_ref;

use causeway_common::flow::{Flags, Nat, State};

use crate::{
    given::given,
    maps::{AGES, Entry, FLOWS, Key, flow, is_expired, own, scratch},
    nat::{self, HeldPort},
    usage,
};

/// Whether an entry under the key of the peer is the peer's. A forward half that was lost and written anew may have
/// another port: it is not the peer of the half that was left behind.
#[inline(always)]
pub fn is_peer(key: &Key, peer_key: &Key, peer: &Entry) -> bool {
    nat::peer_key(peer_key, peer) == *key
}

/// Removes the entry of a half. Who has removed it does what goes with it. Returns 1 if it was still there, else 0.
#[inline(always)]
pub fn remove(key: &Key, entry: &Entry) -> u32 {
    cwy_remove(from_ref(key), from_ref(entry))
}

/// Verified by itself.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn cwy_remove(key: *const Key, entry: *const Entry) -> u32 {
    // SAFETY: the caller's references.
    let (Some(mut key), Some(entry)) = (unsafe { own(key) }, unsafe { given(entry) }) else {
        return 0;
    };
    let is_counted = entry.has(Flags::COUNTED);
    let port = HeldPort::of(&key, entry);
    if FLOWS.remove(&key).is_err() {
        return 0;
    }
    if is_counted {
        usage::closed(&key.src);
    }
    port.give_back(&mut key);
    1
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

/// Forgets the flow of which the key that came out of the queue last is one direction, if it is over at `now`. An offer goes
/// alone: the answer that is awaited with it has an end of its own, and goes with it if that has come too.
#[inline(always)]
pub fn forget_oldest_if_over(now: u32) -> Look {
    match cwy_forget(now) {
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
extern "C" fn cwy_forget(now: u32) -> u32 {
    let Some(scratch) = scratch() else {
        return Look::Gone as u32;
    };
    let key = &scratch.oldest;
    flow(key).map_or(Look::Gone, |entry| look(key, entry, now)) as u32
}

/// [`forget_oldest_if_over`] of an entry at hand. Each half is looked up once at most: a sweep has a million of them.
#[inline(always)]
pub fn look(key: &Key, entry: &Entry, now: u32) -> Look {
    if !is_expired(entry, key.protocol, entry.last_seen, now) {
        return Look::Kept;
    }
    let peer_key = nat::peer_key(key, entry);
    let is_offer = entry.state == State::OFFERED;
    let peer = flow(&peer_key).filter(|peer| is_peer(key, &peer_key, peer));
    let halves = match peer {
        None => remove(key, entry),
        Some(peer) if is_expired(peer, key.protocol, peer.last_seen, now) => {
            // The half that holds the port goes first.
            if entry.nat == Nat::DESTINATION {
                let own = remove(key, entry);
                own + remove(&peer_key, peer)
            } else {
                let others = remove(&peer_key, peer);
                others + remove(key, entry)
            }
        }
        Some(_) if is_offer => {
            // The other direction is found in the queue under its own key from here on.
            AGES.push(peer_key, 0).ok();
            remove(key, entry)
        }
        Some(_) => return Look::KeptByPeer,
    };
    match halves {
        0 => Look::Gone,
        1 => Look::Forgotten,
        _ => Look::BothForgotten,
    }
}

/// Copies what is to be kept of an entry that is overwritten: whether its opener pays for it.
#[inline(always)]
pub fn kept_flags(before: Option<&Entry>) -> u8 {
    before.map_or(0, |entry| entry.flags & Flags::COUNTED)
}
