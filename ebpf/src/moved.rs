//! Finds the port of a flow that has another than its own, whatever else has become free. What the hints are:
//! [`causeway_common::moved`].

use core::ptr::from_ref;

use causeway_common::moved::{Moved, index};

use crate::{
    family::maps::MOVED,
    given::given,
    maps::{Key, config},
};

/// The port that the flow was given in place of its own. A hint: the entry of the answers says whose it is.
#[inline(always)]
pub fn port_of(hash: u32) -> Option<u16> {
    u16::try_from(cwy_moved_port(hash)).ok()
}

/// Returns the port, or what is no port. Verified by itself.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn cwy_moved_port(hash: u32) -> u32 {
    element(hash)
        .and_then(|moved| moved.port_of(hash))
        .map_or(u32::MAX, u32::from)
}

/// Notes which port the flow `key` has.
#[inline(always)]
pub fn note(key: &Key, port: u16) {
    cwy_moved_note(from_ref(key), u32::from(port));
}

/// What is known of the flow's port is about a flow that is over.
#[inline(always)]
pub fn forget(key: &Key) {
    cwy_moved_note(from_ref(key), u32::from(u16::from_be_bytes(key.src_port)));
}

/// A flow with its own port is found without a hint. Verified by itself.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn cwy_moved_note(key: *const Key, port: u32) -> u32 {
    // SAFETY: the caller's reference.
    let (Some(key), Some(config)) = (unsafe { given(key) }, config()) else {
        return 0;
    };
    let (hash, port) = (key.hash(config.seed), port as u16);
    let Some(moved) = element(hash) else {
        return 0;
    };
    if port == u16::from_be_bytes(key.src_port) {
        moved.forget(hash);
    } else {
        moved.note(hash, port);
    }
    0
}

#[inline(always)]
fn element(hash: u32) -> Option<&'static mut Moved> {
    // SAFETY: an element of an array, valid until the program ends. What other CPUs write to it meanwhile are hints.
    MOVED.get_ptr_mut(index(hash)).map(|moved| unsafe { &mut *moved })
}
