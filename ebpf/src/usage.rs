//! How many flows each opener has. A pod pays for the flows that it opens; those that come in from outside are on one
//! account of the wire. Userspace makes the accounts; without one there is no limit.

use core::{
    hint::black_box,
    intrinsics::{AtomicOrdering, atomic_xadd},
    ptr::from_ref,
};

use causeway_common::{addr::Address, flow::Flags, maps::Usage};

use crate::{
    given::given,
    maps::{Addr, Entry, Key, USAGE, config},
};

/// Whether the opener may have another flow.
#[inline(always)]
pub fn has_room(opener: &Addr) -> bool {
    cwy_has_room(from_ref(opener)) != 0
}

/// Verified by itself.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn cwy_has_room(opener: *const Addr) -> u32 {
    // SAFETY: the caller's reference. On a stack of its own: as in `maps::own`.
    let (Some(opener), Some(config)) = (unsafe { given(opener) }.copied(), config()) else {
        return 0;
    };
    let has_room = match account(&opener) {
        Some(usage) => usage.has_room(config.pod_quota),
        None => wire().is_none_or(|usage| usage.has_room(config.wire_quota)),
    };
    u32::from(has_room)
}

/// Counts a flow for its opener.
#[inline(never)]
pub fn opened(opener: &Addr) {
    add(opener, 1);
}

/// Counts a flow of the opener's no more, which was counted and is forgotten.
#[inline(always)]
pub fn closed(opener: &Addr) {
    add(opener, -1);
}

/// Counts a flow that the sweep keeps.
#[inline(always)]
pub fn swept(key: &Key, entry: &Entry) {
    if entry.has(Flags::COUNTED)
        && let Some(usage) = account(&key.src).or_else(wire)
    {
        usage.swept += 1;
    }
}

#[inline(always)]
fn add(opener: &Addr, flows: i32) {
    if let Some(usage) = account(opener).or_else(wire) {
        // SAFETY: an aligned integer of a map element, which is valid until the program ends.
        unsafe { atomic_xadd::<i32, i32, { AtomicOrdering::Relaxed }>(&raw mut usage.flows, flows) };
    }
}

#[inline(always)]
fn wire() -> Option<&'static mut Usage> {
    // On the stack: a constant of its own would be one more map.
    account(&black_box(Addr::UNSPECIFIED))
}

#[inline(always)]
fn account(opener: &Addr) -> Option<&'static mut Usage> {
    // SAFETY: as in `maps::flow`.
    USAGE.get_ptr_mut(opener).map(|usage| unsafe { &mut *usage })
}
