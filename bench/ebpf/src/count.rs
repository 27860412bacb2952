//! The counters: they see what arrives, count what was expected and drop it, so that nothing behind them costs time.

use aya_ebpf::{
    bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC, xdp_action},
    btf_maps::{Array, PerCpuArray},
    macros::{btf_map, classifier, xdp},
    programs::{TcContext, XdpContext},
};

use crate::{
    layout::{Counted, Expect, Layout, V4, V6},
    packet::Headers,
};

#[btf_map(name = "cwb_expect")]
static EXPECT: Array<Expect, 1> = Array::new();

#[btf_map(name = "cwb_counted")]
static COUNTED: PerCpuArray<Counted, 1> = PerCpuArray::new();

#[xdp]
pub fn cwb_count_xdp(ctx: XdpContext) -> u32 {
    match is_expected(ctx.data(), ctx.data_end(), (ctx.data_end() - ctx.data()) as u32) {
        true => xdp_action::XDP_DROP,
        false => xdp_action::XDP_PASS,
    }
}

#[classifier]
pub fn cwb_count_tc(ctx: TcContext) -> i32 {
    match is_expected(ctx.data(), ctx.data_end(), ctx.len()) {
        true => TC_ACT_SHOT,
        false => TC_ACT_UNSPEC,
    }
}

#[inline(always)]
fn is_expected(start: usize, end: usize, len: u32) -> bool {
    let (Some(expect), Some(counted)) = (EXPECT.get(0), COUNTED.get_ptr_mut(0)) else {
        return false;
    };
    let packet = (start, end, len);
    if expect.is_ipv6 == 0 {
        count(packet, expect, counted, V4)
    } else {
        count(packet, expect, counted, V6)
    }
}

/// Counts a packet, if it is expected. Whether it is.
#[inline(always)]
fn count(
    (start, end, len): (usize, usize, u32),
    expect: &Expect,
    counted: *mut Counted,
    layout: Layout,
) -> bool {
    let Some(headers) = Headers::parse(start, end, layout) else {
        return false;
    };
    let is_expected = headers.is_at(layout.src, &expect.src, &expect.src_mask)
        && headers.is_at(layout.dst, &expect.dst, &expect.dst_mask);
    if !is_expected {
        return false;
    }
    // SAFETY: a per-CPU element lives as long as the program, and nothing else on this CPU writes it meanwhile.
    unsafe {
        (*counted).packets += 1;
        (*counted).bytes += u64::from(len);
        if expect.verify != 0 && (*counted).packets.is_multiple_of(64) && !headers.sums_are_right() {
            (*counted).bad += 1;
        }
    }
    true
}
