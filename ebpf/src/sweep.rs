//! `cwy_sweep`: an iterator over `cwy_flows`, run by whoever sweeps. Each flow is judged and forgotten where it stands, so
//! a flow that sends meanwhile is not lost, and nothing but the figures leaves the kernel.

use core::ffi::c_void;

use causeway_common::maps::{SWEEP_MOST, SweepJob};

use crate::{
    forget::{Look, look},
    maps::{Entry, Key, SWEEP_JOB},
    usage,
};

/// `struct bpf_iter__bpf_map_elem` (Linux 5.8).
#[repr(C)]
pub struct MapElement {
    meta: *mut c_void,
    map: *mut c_void,
    key: *const Key,
    value: *const Entry,
}

/// Looks at one element. Not at the end of the iteration, where there is none.
#[inline(always)]
pub fn handle(element: &MapElement) {
    let Some(job) = SWEEP_JOB.get_ptr_mut(0) else {
        return;
    };
    if element.key.is_null() || element.value.is_null() {
        return;
    }
    // SAFETY: key and value of an element of the map, which are not null; the job is an array's element. All are valid
    // until the program ends.
    let (key, entry, job): (Key, &Entry, &mut SweepJob) =
        unsafe { (*element.key, &*element.value, &mut *job) };
    let look = if job.deleted < SWEEP_MOST {
        look(&key, entry, job.now)
    } else {
        Look::Kept
    };
    match look {
        // Another one has forgotten it, or it went with the other direction.
        Look::Gone => {}
        Look::Forgotten | Look::BothForgotten => {
            let halves = if look == Look::Forgotten { 1 } else { 2 };
            job.scanned += halves;
            job.deleted += halves;
        }
        Look::Kept | Look::KeptByPeer => {
            job.scanned += 1;
            job.kept_by_peer += u32::from(look == Look::KeptByPeer);
            usage::swept(&key, entry);
        }
    }
}
