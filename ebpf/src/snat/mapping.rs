//! Finds the mapping that a flow has already, by the hint that it left or by walking the candidates that it was chosen from.

use core::{ffi::c_void, ptr::from_ref};

use aya_ebpf::helpers::generated::bpf_loop;
use causeway_common::{
    ports::{CROWD_SEARCH, PROBES, candidate, candidate_from, candidate_id},
    tuple::{ICMP, TCP, UDP},
};

use super::{Won, answer_key, is_ours};
use crate::{
    crowd,
    given::{context, given},
    maps::{Key, config, flow},
    moved,
};

/// The mapping that the flow `key` has already, if any.
#[inline(always)]
pub fn mapping_of(key: &Key) -> Won {
    Won(cwy_find_mapping(from_ref(key)))
}

/// Looks for the flow's mapping among its candidates; towards a crowded remote also where the map of its ports would have
/// given it one. Verified by itself.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn cwy_find_mapping(key: *const Key) -> u32 {
    // SAFETY: the caller's reference.
    let (Some(key), Some(config)) = (unsafe { given(key) }, config()) else {
        return 0;
    };
    let mut search = Lookup {
        key: *key,
        answer: answer_key(config, key, 0),
        hash: key.hash(config.seed),
        found: 0,
    };
    if let Some(port) = moved::port_of(search.hash)
        && look_at(&mut search, port) != 0
    {
        return search.found;
    }
    let state = (&raw mut search).cast();
    // SAFETY: the callback has the signature that the helper calls (Linux 5.17), and `search` outlives the call.
    unsafe { bpf_loop(PROBES, look_at_candidate as *mut c_void, state, 0) };
    if search.found == 0 && search.key.has_ports() && crowd::has_map(&search.answer) {
        // SAFETY: as above.
        unsafe { bpf_loop(CROWD_SEARCH, look_in_crowd as *mut c_void, state, 0) };
    }
    search.found
}

struct Lookup {
    key: Key,
    answer: Key,
    hash: u32,
    found: u32,
}

/// # Safety
///
/// Called by `bpf_loop` with a [`Lookup`].
unsafe extern "C" fn look_at_candidate(attempt: u32, search: *mut c_void) -> i64 {
    // SAFETY: the caller's.
    let search = unsafe { context::<Lookup>(search) };
    let own = u16::from_be_bytes(search.key.src_port);
    match search.key.protocol {
        TCP | UDP => look_at(search, candidate(own, search.hash, attempt)),
        ICMP => look_at(search, candidate_id(own, search.hash, attempt)),
        _ if attempt == 0 => look_at(search, 0),
        _ => 1,
    }
}

/// # Safety
///
/// Called by `bpf_loop` with a [`Lookup`].
unsafe extern "C" fn look_in_crowd(step: u32, search: *mut c_void) -> i64 {
    // SAFETY: the caller's.
    let search = unsafe { context::<Lookup>(search) };
    let own = u16::from_be_bytes(search.key.src_port);
    let port = candidate_from(search.key.protocol, own, search.hash, step);
    look_at(search, port)
}

#[inline(always)]
fn look_at(search: &mut Lookup, port: u16) -> i64 {
    search.answer.dst_port = port.to_be_bytes();
    match flow(&search.answer) {
        Some(owner) if is_ours(&search.key, owner) => {
            search.found = u32::from(port) | Won::IS | u32::from(owner.state) << Won::STATE;
            1
        }
        _ => 0,
    }
}
