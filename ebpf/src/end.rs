//! Ends flows before their time.
//!
//! The half that holds the port goes first. A packet that comes between still leaves with the port, and the next one
//! claims it anew; the other way round it would renew a half that is about to go.

use core::ptr::from_ref;

use causeway_common::flow::Nat;

use crate::{
    forget::{is_peer, remove},
    maps::{Key, flow, own},
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
    unsafe { own(key) }.map_or(0, |key| flow(&key).map_or(0, |entry| remove(&key, entry)))
}
