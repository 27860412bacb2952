//! Takes a mapping from a flow that is over, for one that wants its port.

use aya_ebpf::bindings::BPF_NOEXIST;

use crate::{
    end::forget,
    maps::{Entry, FLOWS, Key, flow, is_expired, now, scratch},
};

/// Takes away the mapping at which the last walk has stopped, if nobody uses it any more: both halves. Whether it can be had or
/// not, the next walk takes no other such port.
///
/// Two CPUs may judge the same mapping. The one that inserts the lock, an entry under a protocol number that no packet
/// is looked up with, judges again and removes; the other goes on to its next candidate. Without the lock a late
/// removal could take away what the first one has just claimed. Whether this one has
/// removed it. Verified by itself.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn cwy_remove_expired() -> u32 {
    let Some(scratch) = scratch() else {
        return 0;
    };
    let walk = &mut scratch.walk;
    walk.skip_stale = 1;
    // One key for both, its protocol changed in place.
    let answer = &mut walk.answer;
    let (protocol, mut removed) = (answer.protocol, 0);
    answer.protocol = RESERVED;
    let lock = &mut walk.reverse;
    *lock = Entry::kernel(0, now());
    if FLOWS.insert(&*answer, &*lock, u64::from(BPF_NOEXIST)).is_err() {
        return 0;
    }
    answer.protocol = protocol;
    if let Some(owner) = flow(answer)
        && is_over(answer, owner)
    {
        forget(answer);
        removed = 1;
    }
    answer.protocol = RESERVED;
    FLOWS.remove(&*answer).ok();
    removed
}

/// IP protocol 255, "Reserved" at IANA.
const RESERVED: u8 = 255;

/// Whether a mapping has expired: neither half has seen a packet within its idle time. A forward half that has another
/// port meanwhile is another mapping's.
#[inline(always)]
fn is_over(answer: &Key, owner: &Entry) -> bool {
    let now = now();
    let expired = |seen| is_expired(owner, answer.protocol, seen, now);
    expired(owner.last_seen)
        && flow(&owner.peer_key(answer))
            .is_none_or(|forward| forward.nat_port != answer.dst_port || expired(forward.last_seen))
}
