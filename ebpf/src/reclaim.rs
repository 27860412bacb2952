//! Makes room in a full table, without a daemon: a queue holds the key of every flow in the order in which they began.
//! Whoever finds no room looks at the oldest few, forgets those that are over, and puts the others at the end. So the
//! work of a packet is bounded, and in time every flow is looked at.
//!
//! Called from the programs' own frames: the verifier allows eight below each other, and 512 bytes for all of them.

use core::{
    ffi::c_void,
    ptr::{from_mut, from_ref},
};

use aya_ebpf::{
    bindings::BPF_EXIST,
    helpers::generated::{bpf_loop, bpf_map_pop_elem},
};
use causeway_common::reason::Reason;

use crate::{
    count::{Hook, bump},
    forget::{Look, forget_oldest_if_over},
    given::{context, given},
    maps::{AGES, Key, flow, now, scratch},
};

/// How many flows one packet looks at.
const LOOKS: u32 = 16;
/// How many keys of the full queue are looked at for one whose flow is gone.
const KEYS: usize = 4;

/// Puts a flow that has just begun into the queue. A full queue holds keys of flows long gone, which are let go.
#[inline(always)]
pub fn remember(key: &Key) {
    cwy_remember(from_ref(key));
}

/// Verified by itself.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn cwy_remember(key: *const Key) -> u32 {
    // SAFETY: the caller's reference.
    let (Some(key), Some(scratch)) = (unsafe { given(key) }, scratch()) else {
        return 0;
    };
    scratch.remembered = *key;
    let key = &scratch.remembered;
    for _ in 0..KEYS {
        if AGES.push(key, 0).is_ok() {
            return 0;
        }
        let oldest = &mut scratch.oldest;
        if pop(oldest) && flow(oldest).is_some() {
            AGES.push(&*oldest, 0).ok();
        }
    }
    AGES.push(key, u64::from(BPF_EXIST)).ok();
    0
}

/// Takes the key out of the queue that has been there longest. Whether there was one.
#[inline(always)]
fn pop(oldest: &mut Key) -> bool {
    let ages = (&raw const AGES).cast_mut().cast();
    // SAFETY: a key of ours, which is as large as an element of the map.
    unsafe { bpf_map_pop_elem(ages, from_mut(oldest).cast()) == 0 }
}

/// After a flow was not offered for want of room: room is made for the next packet.
#[inline(always)]
pub fn after_offer(reason: Reason) -> Reason {
    if reason == Reason::OfferRefused || reason == Reason::OfferQuota {
        make_room();
    }
    reason
}

/// Looks at the oldest flows, and forgets those that are over. Whether there were any.
#[inline(always)]
pub fn make_room() -> bool {
    cwy_make_room() != 0
}

/// [`make_room`]. Returns how many those were. Verified by itself.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn cwy_make_room() -> u32 {
    let mut forgotten: u32 = 0;
    let (callback, state) = (look_at_oldest as *mut c_void, (&raw mut forgotten).cast());
    // SAFETY: the callback has the signature that the helper calls (Linux 5.17), and `forgotten` outlives the call.
    unsafe { bpf_loop(LOOKS, callback, state, 0) };
    forgotten
}

/// # Safety
///
/// Called by `bpf_loop` with the count of [`cwy_make_room`].
unsafe extern "C" fn look_at_oldest(_look: u32, forgotten: *mut c_void) -> i64 {
    // SAFETY: the caller's.
    let forgotten = unsafe { context::<u32>(forgotten) };
    let Some(scratch) = scratch() else {
        return 1;
    };
    if !pop(&mut scratch.oldest) {
        return 1;
    }
    match forget_oldest_if_over(now()) {
        Look::Forgotten | Look::BothForgotten => {
            *forgotten += 1;
            bump(Hook::ToUplink, Reason::Reclaimed);
        }
        Look::Kept | Look::KeptByPeer => {
            AGES.push(&scratch.oldest, 0).ok();
        }
        Look::Gone => {}
    }
    0
}
