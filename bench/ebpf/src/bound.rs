//! What the machine allows: the packet goes where it has to go, and nobody has looked at it.

use aya_ebpf::{
    helpers::generated::{bpf_redirect, bpf_redirect_peer},
    macros::{classifier, xdp},
    programs::{TcContext, XdpContext},
};

/// Interface to send to. Set when the object is loaded.
#[unsafe(no_mangle)]
static CWB_TARGET: u32 = 0;

#[classifier]
pub fn cwb_redirect(_: TcContext) -> i32 {
    // SAFETY: the helper takes integers only.
    unsafe { bpf_redirect(target(), 0) as i32 }
}

#[classifier]
pub fn cwb_redirect_peer(_: TcContext) -> i32 {
    // SAFETY: as above.
    unsafe { bpf_redirect_peer(target(), 0) as i32 }
}

#[xdp]
pub fn cwb_redirect_xdp(_: XdpContext) -> u32 {
    // SAFETY: as above.
    unsafe { bpf_redirect(target(), 0) as u32 }
}

#[inline(always)]
fn target() -> u32 {
    // SAFETY: a static; volatile, because the loader writes another value than the compiler has seen.
    unsafe { (&raw const CWB_TARGET).read_volatile() }
}
