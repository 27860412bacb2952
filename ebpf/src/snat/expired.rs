//! Takes a mapping from a flow that is over, for one that wants its port.

use aya_ebpf::bindings::BPF_NOEXIST;
use causeway_common::maps::Config;

use super::answer_key;
use crate::{
    end::forget,
    given::given,
    maps::{Addr, Entry, FLOWS, Key, config, flow, now},
};

/// Takes a mapping away that nobody uses any more: both halves.
///
/// Two CPUs may judge the same mapping. The one that inserts the lock, an entry under a protocol number that no packet
/// is looked up with, judges again and removes; the other goes on to its next candidate. Without the lock a late
/// removal could take away what the first one has just claimed. Whether this one has removed it. Verified by itself.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn cwy_remove_expired(key: *const Key, won: u32) -> u32 {
    // SAFETY: the caller's reference.
    let (Some(key), Some(config)) = (unsafe { given(key) }, config()) else {
        return 0;
    };
    // One key for both, its protocol changed in place: this frame is among the largest of a deep call.
    let mut answer = answer_key(config, key, won as u16);
    let mut removed = 0;
    answer.protocol = RESERVED;
    if FLOWS
        .insert(&answer, Entry::kernel(0, now()), u64::from(BPF_NOEXIST))
        .is_err()
    {
        return 0;
    }
    answer.protocol = key.protocol;
    if let Some(owner) = flow(&answer)
        && is_over(config, &answer, owner)
    {
        forget(&answer);
        removed = 1;
    }
    answer.protocol = RESERVED;
    FLOWS.remove(&answer).ok();
    removed
}

/// IP protocol 255, "Reserved" at IANA.
const RESERVED: u8 = 255;

/// Whether a mapping has expired: neither half has seen a packet within its idle time. A forward half that has another
/// port meanwhile is another mapping's.
#[inline(always)]
fn is_over(config: &Config<Addr>, answer: &Key, owner: &Entry) -> bool {
    let now = now();
    let expired = |seen| config.timeouts.expired(owner, answer.protocol, seen, now);
    expired(owner.last_seen)
        && flow(&owner.peer_key(answer))
            .is_none_or(|forward| forward.nat_port != answer.dst_port || expired(forward.last_seen))
}
