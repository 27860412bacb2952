//! One program's own nanoseconds: `BPF_PROG_TEST_RUN` repeats [`cwb_feed`] or [`cwb_feed6`], which makes the packet anew and goes on into
//! the measured program. What it costs itself is measured with [`cwb_nop`] in its place, and taken off.

use aya_ebpf::{
    EbpfContext as _,
    bindings::{__sk_buff, TC_ACT_UNSPEC},
    btf_maps::{Array, ProgramArray},
    macros::{btf_map, classifier},
    programs::TcContext,
};

use crate::{
    generate::{next_flow, random, write},
    layout::{Feed, Layout, V4, V6},
};

#[btf_map(name = "cwb_feed_cfg")]
static FEED: Array<Feed, 1> = Array::new();

/// 0: the measured program; 1: [`cwb_nop`].
#[btf_map(name = "cwb_target")]
static TARGETS: ProgramArray<2> = ProgramArray::new();

#[classifier]
pub fn cwb_feed(ctx: TcContext) -> i32 {
    feed(&ctx, V4)
}

#[classifier]
pub fn cwb_feed6(ctx: TcContext) -> i32 {
    feed(&ctx, V6)
}

#[inline(always)]
fn feed(ctx: &TcContext, layout: Layout) -> i32 {
    let Some(feed) = FEED.get(0) else {
        return TC_ACT_UNSPEC;
    };
    let start = ctx.data();
    if start + layout.headers() > ctx.data_end() {
        return TC_ACT_UNSPEC;
    }
    let Some(flow) = next_flow(&feed.course, random()) else {
        return TC_ACT_UNSPEC;
    };
    write(
        start as *mut u16,
        layout,
        &feed.course,
        flow,
        feed.course.frame_len,
    );
    let skb = ctx.as_ptr().cast::<__sk_buff>();
    // SAFETY: the context is valid for the whole run, and tc programs may write this field.
    unsafe { (*skb).tc_index = 0 };
    // SAFETY: nothing here has a destructor.
    unsafe { TARGETS.tail_call(ctx, feed.target) };
    TC_ACT_UNSPEC
}

#[classifier]
pub fn cwb_nop(_: TcContext) -> i32 {
    TC_ACT_UNSPEC
}
