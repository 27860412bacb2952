//! Walks the candidates until one is ours. The lines that pick a port are in [`try_candidate`] and [`try_crowd`], the one
//! that makes it ours in [`cwy_try_port`].

use core::{ffi::c_void, hint::black_box, ptr::from_mut};

use aya_ebpf::{
    bindings::{__sk_buff, BPF_ANY, BPF_NOEXIST},
    helpers::generated::bpf_loop,
};
use causeway_common::{
    addr::Address as _,
    ports::{CROWD_TRIES, CROWDED_PROBES, PROBES, candidate, candidate_id},
    reason::Reason,
    scratch::Walk,
    tuple::{TCP, UDP},
};

use super::{
    Claim, Won,
    halves::fill_answer,
    is_ours,
    taken::{host_holds, is_reserved},
};
use crate::{
    crowd,
    given::context,
    maps::{Addr, EEXIST, FLOWS, config, flow, is_expired, now, scratch},
    moved, usage,
};

/// `-EBUSY`: the bucket's lock is held on this CPU by a program that we interrupted.
const EBUSY: i32 = -16;

/// Finds a port for the flow that claims and makes it the flow's, by the entry of the answers; or finds that which it has
/// already. Returns a [`Won`]. Verified by itself.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn cwy_reserve(skb: *mut __sk_buff) -> u32 {
    let (Some(config), Some(scratch)) = (config(), scratch()) else {
        return Reason::SnatNotReady as u32;
    };
    let walk = &mut scratch.walk;
    let claim = &Claim::of_bits(walk.claim);
    if !claim.opens {
        return Won::ASKS;
    }
    walk.answer.src = walk.key.dst;
    walk.answer.dst = config.node_addr;
    walk.answer.src_port = walk.key.dst_port;
    walk.answer.dst_port = [0; 2];
    walk.answer.protocol = walk.key.protocol;
    walk.answer._pad = [0; 3];
    walk.hash = walk.key.hash(config.seed);
    walk.state = claim.state();
    walk.is_new = 0;
    fill_answer(&mut walk.reverse, &walk.key, claim.flags(), claim.state());
    let is_free = claim.is_counted || !claim.of_pod;
    // Looked at again from where it is kept, of which the verifier knows nothing: it would go both ways to the end.
    walk.may_take = u8::from(is_free || usage::has_room(&walk.key.src));
    let walk = from_mut(walk);
    Search { skb, walk }.find();
    let walk = &scratch.walk;
    let port = u32::from(u16::from_be_bytes(walk.answer.dst_port));
    match walk.end {
        STALE => port | Won::IS_STALE,
        OURS => {
            let is_new = if walk.is_new != 0 { Won::IS_NEW } else { 0 };
            port | Won::IS | is_new | u32::from(walk.state) << Won::STATE
        }
        end if end == Reason::SnatTableFull as u8 => u32::from(end),
        _ if walk.may_take == 0 => Reason::SnatQuota as u32,
        _ => Reason::SnatNoPort as u32,
    }
}

/// [`Walk::end`] when a port was found. No reason has this number.
const OURS: u8 = u8::MAX;
/// [`Walk::end`] when a port belongs to a mapping that seems to have expired.
const STALE: u8 = u8::MAX - 1;

/// A walk with the packet that it is for.
struct Search {
    skb: *mut __sk_buff,
    walk: *mut Walk<Addr>,
}

/// Return values of a callback of `bpf_loop`.
const GO_ON: u32 = 0;
const STOP: u32 = 1;

impl Search {
    #[inline(always)]
    fn walk(&mut self) -> &mut Walk<Addr> {
        // SAFETY: that of this CPU's scratch, which nobody holds a reference to while the search goes on.
        unsafe { &mut *self.walk }
    }

    /// Takes what the flow has already; or probes; and towards a crowded remote takes what its map of ports shows to be free.
    #[inline(always)]
    fn find(&mut self) {
        self.walk().end = Reason::SnatNoPort as u8;
        let hint = moved::port_of(self.walk().hash);
        self.walk().may_have_hint = u8::from(hint.is_some());
        if let Some(port) = hint
            && self.has_already(port)
        {
            try_port(self, port);
        }
        if self.walk().end == OURS {
            return;
        }
        let is_crowded = crowd::has_map(&self.walk().answer);
        self.run(try_candidate, if is_crowded { CROWDED_PROBES } else { PROBES });
        if self.walk().end == OURS && is_crowded {
            crowd::mark_taken(&self.walk().answer);
        }
        let may_go_on = self.walk().may_take != 0 && self.walk().key.has_ports();
        if self.walk().end != Reason::SnatNoPort as u8 || !may_go_on {
            return;
        }
        self.run(try_crowd, CROWD_TRIES);
        if self.walk().end == Reason::SnatNoPort as u8 && is_crowded {
            // Every port is taken: perhaps by somebody who needs it no more.
            self.run(try_candidate, PROBES);
        }
    }

    /// Whether the flow goes on with a port that is not its own. Of TCP that has ended only the tuple is left, which begins
    /// anew with its own port if that is free.
    #[inline(always)]
    fn has_already(&mut self, port: u16) -> bool {
        let walk = self.walk();
        walk.answer.dst_port = port.to_be_bytes();
        flow(&walk.answer).is_some_and(|owner| {
            is_ours(&walk.key, owner) && !(walk.key.protocol == TCP && owner.progress().is_over())
        })
    }

    #[inline(always)]
    fn run(&mut self, callback: unsafe extern "C" fn(u32, *mut c_void) -> i64, times: u32) {
        self.walk().end = Reason::SnatNoPort as u8;
        let (callback, state) = (callback as *mut c_void, (&raw mut *self).cast());
        // SAFETY: the callback has the signature that the helper calls (Linux 5.17), and `self` outlives the call.
        unsafe { bpf_loop(times, callback, state, 0) };
    }
}

/// Tries candidate number `attempt` of the flow's sequence.
///
/// # Safety
///
/// Called by `bpf_loop` with a [`Search`].
unsafe extern "C" fn try_candidate(attempt: u32, search: *mut c_void) -> i64 {
    // SAFETY: the caller's.
    let search = unsafe { context::<Search>(search) };
    let key = &search.walk().key;
    let own = u16::from_be_bytes(key.src_port);
    let port = match key.protocol {
        TCP | UDP => candidate(own, search.walk().hash, attempt),
        Addr::ICMP => candidate_id(own, search.walk().hash, attempt),
        // No ports: there is one candidate.
        _ if attempt == 0 => 0,
        _ => return i64::from(STOP),
    };
    try_port(search, port)
}

/// Tries a port that the remote's map shows to be free.
///
/// # Safety
///
/// As for [`try_candidate`].
unsafe extern "C" fn try_crowd(_attempt: u32, search: *mut c_void) -> i64 {
    // SAFETY: the caller's.
    let search = unsafe { context::<Search>(search) };
    let own = u16::from_be_bytes(search.walk().key.src_port);
    let walk = &*search.walk();
    match crowd::take(&walk.answer, own, walk.hash) {
        Some(port) => try_port(search, port),
        None => i64::from(STOP),
    }
}

#[inline(always)]
fn try_port(search: &mut Search, port: u16) -> i64 {
    let end = cwy_try_port(search.skb, u32::from(port));
    // The verifier knows nothing of the result, and a callback may return 0 or 1 only.
    i64::from(black_box(end) & STOP)
}

/// Tries to make a port the walk's. Returns [`GO_ON`] or [`STOP`]. Verified by itself.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn cwy_try_port(skb: *mut __sk_buff, port: u32) -> u32 {
    let Some(scratch) = scratch() else {
        return STOP;
    };
    let (walk, port) = (&mut scratch.walk, port as u16);
    walk.answer.dst_port = port.to_be_bytes();
    let (answer, reverse) = (&walk.answer, &walk.reverse);
    if let Some(owner) = flow(answer) {
        if is_ours(&walk.key, owner) {
            // The forward half was lost, or another CPU was first with a packet of this very flow. Its life begins anew.
            walk.end = OURS;
            FLOWS.insert(answer, reverse, u64::from(BPF_ANY)).ok();
            return STOP;
        }
        let is_stale = walk.may_take != 0
            && walk.skip_stale == 0
            && is_expired(owner, answer.protocol, owner.last_seen, now());
        if !is_stale {
            return GO_ON;
        }
        walk.end = STALE;
        return STOP;
    }
    if walk.may_take == 0 || is_reserved(answer.protocol, port) || host_holds(skb.cast(), answer) {
        return GO_ON;
    }
    match FLOWS.insert(answer, reverse, u64::from(BPF_NOEXIST)) {
        Ok(()) => {
            walk.end = OURS;
            walk.is_new = 1;
            STOP
        }
        Err(EEXIST | EBUSY) => match flow(answer) {
            Some(owner) if is_ours(&walk.key, owner) => {
                walk.end = OURS;
                walk.state = owner.state;
                STOP
            }
            _ => GO_ON,
        },
        Err(_) => {
            walk.end = Reason::SnatTableFull as u8;
            STOP
        }
    }
}
