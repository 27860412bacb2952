//! `cwy_sweep`: an iterator over `cwy_flows`, run by whoever sweeps. Each flow is judged and forgotten where it stands, so
//! a flow that sends meanwhile is not lost, and nothing but the figures leaves the kernel.

use core::ffi::c_void;

use causeway_common::maps::SweepJob;

use crate::{
    forget::{Look, forget_if_over},
    maps::{Entry, Key, SWEEP_JOB, config, flow},
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
    let Some(config) = config() else {
        return;
    };
    // Most are in use: those take no lookup.
    if !config
        .timeouts
        .expired(entry, key.protocol, entry.last_seen, job.now)
    {
        job.scanned += 1;
        usage::swept(&key, entry);
        return;
    }
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
