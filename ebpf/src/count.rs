//! One counter a reason and hook, per CPU.

use causeway_common::reason::Reason;

use crate::maps::COUNT;

/// The hook a program sits on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    FromPod,
    ToPod,
    FromUplink,
    ToUplink,
}

/// Counts one packet.
#[inline(always)]
pub fn bump(hook: Hook, reason: Reason) {
    let Some(count) = COUNT.get_ptr_mut(reason as u32) else {
        return;
    };
    // SAFETY: a per-CPU element, valid until the program ends; programs do not nest on one CPU at one hook.
    unsafe {
        match hook {
            Hook::FromPod => (*count).from_pod += 1,
            Hook::ToPod => (*count).to_pod += 1,
            Hook::FromUplink => (*count).from_uplink += 1,
            Hook::ToUplink => (*count).to_uplink += 1,
        }
    }
}
