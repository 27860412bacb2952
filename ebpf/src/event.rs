//! Tells whoever listens about packets that are dropped, refused or begin a flow: samples, so many a second, CPU and reason.

use core::hint::black_box;

use aya_ebpf::{
    EbpfContext as _,
    bindings::{__sk_buff, BPF_RB_AVAIL_DATA},
    helpers::generated::{bpf_ktime_get_coarse_ns, bpf_ringbuf_query, bpf_skb_load_bytes},
    programs::TcContext,
};
use causeway_common::{
    event::{EVENT_PACKET, Event, EventKind},
    reason::Reason,
};

use crate::{
    count::Hook,
    maps::{EVENTS, has_budget},
    packet::{self, ETH_LEN},
};

/// Writes an event, if one is to be told of the reason, this CPU may still write one of it in this second and the buffer has room.
#[inline(always)]
pub fn tell(ctx: &TcContext, hook: Hook, reason: Reason) {
    cwy_tell(ctx.as_ptr().cast(), hook as u32, reason as u32);
}

/// Verified by itself.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn cwy_tell(skb: *mut __sk_buff, hook: u32, reason: u32) -> u32 {
    let ctx = &TcContext::new(skb);
    let Some(kind) = EventKind::of_number(reason) else {
        return 0;
    };
    if !has_budget(reason, kind.rate()) {
        return 0;
    }
    let ring = (&raw const EVENTS).cast_mut().cast();
    // SAFETY: the map, which nobody writes to here.
    if unsafe { bpf_ringbuf_query(ring, u64::from(BPF_RB_AVAIL_DATA)) } >= kind.room() {
        return 0;
    }
    let Some(mut record) = EVENTS.reserve_untyped::<Event>(0) else {
        return 0;
    };
    let event = record.as_mut_ptr();
    let length = ctx.len();
    const LAST: u32 = EVENT_PACKET as u32 - 1;
    const { assert!(EVENT_PACKET.is_power_of_two()) };
    // One less than what is copied. Masked behind the barrier and never compared with zero: the verifier of Linux 6.1 learns
    // no lower bound from that, and asks for one.
    let behind_first = black_box(length.wrapping_sub(ETH_LEN as u32 + 1).min(LAST)) & LAST;
    let captured = behind_first + 1;
    // SAFETY: `event` is the record's memory, written field by field; the bytes of the packet that are not copied are
    // zeroed first.
    unsafe {
        (*event).time = bpf_ktime_get_coarse_ns();
        (*event).ifindex = packet::skb(ctx).ifindex;
        (*event).length = length;
        (*event).reason = reason as u8;
        (*event).hook = hook as u8;
        (*event)._pad = 0;
        (*event).packet = [0; EVENT_PACKET];
        let to = (&raw mut (*event).packet).cast();
        let may_copy = length > ETH_LEN as u32;
        let copied = may_copy && bpf_skb_load_bytes(ctx.as_ptr(), ETH_LEN as u32, to, captured) == 0;
        (*event).captured = if copied { captured as u16 } else { 0 };
    }
    record.submit(0);
    1
}
