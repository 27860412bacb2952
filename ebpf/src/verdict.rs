//! The end of every program: the reason is counted, told and turned into what the kernel is to do.

use aya_ebpf::{
    bindings::{TC_ACT_REDIRECT, TC_ACT_SHOT, TC_ACT_UNSPEC},
    programs::TcContext,
};
use causeway_common::{
    event::EventKind,
    reason::{Reason, Verdict},
};

use crate::{
    count::{self, Hook},
    event,
};

/// Counts the reason and turns it into a tc action.
///
/// "Not ours" is `TC_ACT_UNSPEC` and never `TC_ACT_OK`: under tcx the latter ends the chain, and programs that
/// follow ours would not run.
#[inline(always)]
pub fn finish(ctx: &TcContext, hook: Hook, reason: Reason) -> i32 {
    count::bump(hook, reason);
    log(ctx, hook, reason);
    if EventKind::is_told_last(reason as u32) {
        event::tell(ctx, hook, reason);
    }
    match reason.verdict() {
        Verdict::Carried | Verdict::Refused => TC_ACT_REDIRECT,
        Verdict::Stack | Verdict::Noted => TC_ACT_UNSPEC,
        Verdict::Dropped => TC_ACT_SHOT,
    }
}

/// One line a packet, for whoever debugs the programs. A release object has neither the code nor the map behind it.
#[cfg(feature = "log")]
#[inline(always)]
fn log(ctx: &TcContext, hook: Hook, reason: Reason) {
    aya_log_ebpf::info!(
        ctx,
        "hook {} reason {} length {}",
        hook as u8,
        reason as u8,
        ctx.len()
    );
}

#[cfg(not(feature = "log"))]
#[inline(always)]
fn log(_: &TcContext, _: Hook, _: Reason) {}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// GPL-only helpers refuse any other licence string.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
