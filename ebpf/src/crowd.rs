//! The maps of the ports of crowded remotes: made when probing has failed, kept true by every claim and every flow that
//! is forgotten. The search itself is [`causeway_common::crowd`].

use core::{
    ffi::c_void,
    ptr::{from_mut, from_ref},
};

use aya_ebpf::helpers::generated::bpf_loop;
use causeway_common::{
    crowd::{CROWD_SLOTS, Crowd, TURNS},
    maps::Config,
    ports::is_of_a_class,
};

use crate::{
    family::maps::CROWDS,
    given::{context, given, given_mut},
    maps::{Addr, Key, config, flow, now, scratch},
    snat::is_reserved,
};

/// The remote's key: that of an answer from it, whatever its port here.
#[inline(always)]
fn remote_of(answer: &Key) -> Key {
    Key {
        dst_port: [0; 2],
        ..*answer
    }
}

/// The remote's slot, whoever uses it.
#[inline(always)]
fn slot(config: &Config<Addr>, remote: &Key) -> Option<&'static mut Crowd<Addr>> {
    let index = remote.hash(config.seed) % CROWD_SLOTS as u32;
    // SAFETY: an element of an array, valid until the program ends. What other CPUs write to it meanwhile are bits that
    // are hints, and a remote that is compared before each use.
    CROWDS.get_ptr_mut(index).map(|crowd| unsafe { &mut *crowd })
}

/// The map of the remote's ports, if it has one.
#[inline(always)]
pub fn of(config: &Config<Addr>, answer: &Key) -> Option<&'static mut Crowd<Addr>> {
    let remote = remote_of(answer);
    slot(config, &remote).filter(|crowd| crowd.is_of(&remote))
}

/// Whether the remote has a map of its ports.
#[inline(always)]
pub fn has_map(answer: &Key) -> bool {
    cwy_crowd_is(from_ref(answer)) != 0
}

/// Verified by itself.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn cwy_crowd_is(answer: *const Key) -> u32 {
    // SAFETY: the caller's reference.
    let (Some(answer), Some(config)) = (unsafe { given(answer) }, config()) else {
        return 0;
    };
    u32::from(of(config, answer).is_some())
}

/// Notes that the port of an answer's key is free, if the remote has a map.
#[inline(always)]
pub fn mark_free(answer: &Key) {
    cwy_crowd_mark(from_ref(answer), 0);
}

/// Notes that the port of an answer's key is taken, if the remote has a map.
#[inline(always)]
pub fn mark_taken(answer: &Key) {
    cwy_crowd_mark(from_ref(answer), 1);
}

/// Verified by itself.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn cwy_crowd_mark(answer: *const Key, is_taken: u32) -> u32 {
    // SAFETY: the caller's reference.
    let (Some(answer), Some(config)) = (unsafe { given(answer) }, config()) else {
        return 0;
    };
    let port = u16::from_be_bytes(answer.dst_port);
    match of(config, answer) {
        Some(crowd) if is_taken != 0 => crowd.mark_taken(port),
        Some(crowd) => crowd.mark_free(port),
        None => {}
    }
    0
}

/// A port that the remote's map shows to be free, of the class of `own`; from then on the map says that it is taken.
#[inline(always)]
pub fn take(answer: &Key, own: u16, hash: u32) -> Option<u16> {
    u16::try_from(cwy_crowd_take(from_ref(answer), u32::from(own), hash)).ok()
}

/// Returns the port, or what is no port. Verified by itself.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn cwy_crowd_take(answer: *const Key, own: u32, hash: u32) -> u32 {
    // SAFETY: the caller's reference.
    let (Some(answer), Some(config)) = (unsafe { given(answer) }, config()) else {
        return NO_PORT;
    };
    let Some(crowd) = of(config, answer) else {
        return NO_PORT;
    };
    let class = u32::from(answer.protocol) << 16 | own & 0xffff;
    for turn in 0..TURNS as u32 {
        let port = cwy_crowd_look(from_mut(crowd), class, hash, turn);
        if port != NO_PORT {
            crowd.mark_taken(port as u16);
            crowd.last_used = now();
            return port;
        }
    }
    NO_PORT
}

/// [`Crowd::look`]; `class` is the protocol above the port. Verified by itself.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn cwy_crowd_look(crowd: *mut Crowd<Addr>, class: u32, hash: u32, turn: u32) -> u32 {
    // SAFETY: the caller's reference.
    let Some(crowd) = (unsafe { given_mut(crowd) }) else {
        return NO_PORT;
    };
    let class = ((class >> 16) as u8, class as u16);
    crowd.look(class, hash, turn as usize).map_or(NO_PORT, u32::from)
}

const NO_PORT: u32 = u32::MAX;

/// Makes a map of the ports of the remote that the last walk was about, by looking at every one of them, some milliseconds'
/// work; again only when the last one is old. Nothing is done for a pod that may have no further flow, or while the slot
/// serves another remote. Whether there is a map that is new.
#[inline(always)]
pub fn build_claimed() -> bool {
    cwy_crowd_build() != 0
}

/// Verified by itself.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn cwy_crowd_build() -> u32 {
    let (Some(config), Some(scratch)) = (config(), scratch()) else {
        return 0;
    };
    let walk = &scratch.walk;
    if walk.may_take == 0 || !walk.key.has_ports() {
        return 0;
    }
    let remote = &mut scratch.remote;
    *remote = remote_of(&walk.answer);
    let now = now();
    let Some(crowd) = slot(config, remote) else {
        return 0;
    };
    let may_begin = if crowd.is_of(remote) {
        crowd.is_old(now)
    } else {
        crowd.is_vacant(now)
    };
    if !may_begin {
        return 0;
    }
    crowd.restart(remote, now);
    let mut state = Build {
        answer: from_mut(remote),
        crowd: from_mut(crowd),
        word: 0,
    };
    let (callback, state) = (look_at_port as *mut c_void, (&raw mut state).cast());
    // SAFETY: the callback has the signature that the helper calls (Linux 5.17), and `state` outlives the call.
    unsafe { bpf_loop(1 << 16, callback, state, 0) };
    1
}

struct Build {
    answer: *mut Key,
    crowd: *mut Crowd<Addr>,
    /// The bits of the word that is being gathered.
    word: u64,
}

/// # Safety
///
/// Called by `bpf_loop` with the [`Build`] of [`cwy_crowd_build`].
unsafe extern "C" fn look_at_port(port: u32, state: *mut c_void) -> i64 {
    // SAFETY: the caller's.
    let state = unsafe { context::<Build>(state) };
    let port = port as u16;
    // SAFETY: as below.
    let answer = unsafe { &mut *state.answer };
    answer.dst_port = port.to_be_bytes();
    let protocol = answer.protocol;
    let is_taken = !is_of_a_class(protocol, port) || is_reserved(protocol, port) || flow(answer).is_some();
    state.word |= u64::from(is_taken) << (port % 64);
    if port % 64 == 63 {
        // SAFETY: a pointer that `cwy_crowd_build` stored, to what nobody else holds.
        unsafe { &mut *state.crowd }.set_word(u32::from(port) / 64, state.word);
        state.word = 0;
    }
    0
}
