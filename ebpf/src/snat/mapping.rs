//! Finds the mapping that a flow has already, by the hint that it left or by walking the candidates that it was chosen from.

use core::{
    ffi::c_void,
    ptr::{from_mut, from_ref},
};

use aya_ebpf::helpers::generated::bpf_loop;
use causeway_common::{
    addr::Address as _,
    ports::{CROWD_SEARCH, PROBES, candidate, candidate_from, candidate_id},
    scratch::Lookup,
    tuple::{TCP, UDP},
};

use super::{Won, answer_key, is_ours};
use crate::{
    crowd,
    given::{context, given},
    maps::{Addr, Key, config, flow, scratch},
    moved,
};

/// The mapping that the flow `key` has already, if any.
#[inline(always)]
pub fn mapping_of(key: &Key) -> Won {
    Won(cwy_find_mapping(from_ref(key)))
}

/// [`mapping_of`] the flow that claims. Verified by itself.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn cwy_find_claimed() -> u32 {
    scratch().map_or(0, |scratch| mapping_of(&scratch.walk.key).0)
}

/// Looks for the flow's mapping among its candidates; towards a crowded remote also where the map of its ports would have
/// given it one. Verified by itself.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn cwy_find_mapping(key: *const Key) -> u32 {
    // SAFETY: the caller's reference.
    let (Some(key), Some(config), Some(scratch)) = (unsafe { given(key) }, config(), scratch()) else {
        return 0;
    };
    let search = &mut scratch.lookup;
    search.key = *key;
    search.answer = answer_key(config, key, 0);
    search.hash = key.hash(config.seed);
    search.found = 0;
    if let Some(port) = moved::port_of(search.hash)
        && look_at(search, port) != 0
    {
        return search.found;
    }
    let mut pointer = from_mut(search);
    let state = (&raw mut pointer).cast();
    // SAFETY: the callback has the signature that the helper calls (Linux 5.17), and `pointer` outlives the call.
    unsafe { bpf_loop(PROBES, look_at_candidate as *mut c_void, state, 0) };
    // SAFETY: this CPU's scratch, and the callback's reference to it has ended.
    let search = unsafe { &mut *pointer };
    if search.found == 0 && search.key.has_ports() && crowd::has_map(&search.answer) {
        // SAFETY: as above.
        unsafe { bpf_loop(CROWD_SEARCH, look_in_crowd as *mut c_void, state, 0) };
    }
    scratch.lookup.found
}

/// # Safety
///
/// Called by `bpf_loop` with a pointer to a [`Lookup`].
unsafe extern "C" fn look_at_candidate(attempt: u32, search: *mut c_void) -> i64 {
    // SAFETY: the caller's.
    let search = unsafe { &mut **context::<*mut Lookup<Addr>>(search) };
    let own = u16::from_be_bytes(search.key.src_port);
    match search.key.protocol {
        TCP | UDP => look_at(search, candidate(own, search.hash, attempt)),
        Addr::ICMP => look_at(search, candidate_id(own, search.hash, attempt)),
        _ if attempt == 0 => look_at(search, 0),
        _ => 1,
    }
}

/// # Safety
///
/// Called by `bpf_loop` with a pointer to a [`Lookup`].
unsafe extern "C" fn look_in_crowd(step: u32, search: *mut c_void) -> i64 {
    // SAFETY: the caller's.
    let search = unsafe { &mut **context::<*mut Lookup<Addr>>(search) };
    let own = u16::from_be_bytes(search.key.src_port);
    let port = candidate_from(search.key.protocol, own, search.hash, step);
    look_at(search, port)
}

#[inline(always)]
fn look_at(search: &mut Lookup<Addr>, port: u16) -> i64 {
    search.answer.dst_port = port.to_be_bytes();
    match flow(&search.answer) {
        Some(owner) if is_ours(&search.key, owner) => {
            search.found = u32::from(port) | Won::IS | u32::from(owner.state) << Won::STATE;
            1
        }
        _ => 0,
    }
}
