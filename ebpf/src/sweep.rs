//! `cwy_sweep`: an iterator over `cwy_flows`, run by whoever sweeps. Each flow is judged and forgotten where it stands, so
//! a flow that sends meanwhile is not lost, and nothing but the figures leaves the kernel.

use core::ffi::c_void;

use causeway_common::maps::SweepJob;

use crate::{
    forget::{Look, forget_if_over},
    maps::{Key, SWEEP_JOB, flow},
    usage,
};

/// `struct bpf_iter__bpf_map_elem` (Linux 5.8).
#[repr(C)]
pub struct MapElement {
    meta: *mut c_void,
    map: *mut c_void,
    key: *const Key,
    value: *mut c_void,
}

/// Looks at one element. Not at the end of the iteration, where there is none.
#[inline(always)]
pub fn handle(element: &MapElement) {
    let Some(job) = SWEEP_JOB.get_ptr_mut(0) else {
        return;
    };
    if element.key.is_null() {
        return;
    }
    // SAFETY: a key of the map, which is not null; the job is an array's element. Both are valid until the program ends.
    let (key, job): (Key, &mut SweepJob) = unsafe { (*element.key, &mut *job) };
    let (scanned, deleted) = match forget_if_over(&key, job.now) {
        Look::Gone => (0, 0),
        Look::Kept => (1, 0),
        Look::KeptByPeer => {
            job.kept_by_peer += 1;
            (1, 0)
        }
        Look::Forgotten => (1, 1),
        Look::BothForgotten => (2, 2),
    };
    job.scanned += scanned;
    job.deleted += deleted;
    if deleted == 0
        && let Some(entry) = flow(&key)
    {
        usage::swept(&key, entry);
    }
}
