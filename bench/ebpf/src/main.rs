//! The bench's kernel programs. This file is the table of contents.
//!
//! | program | where it runs | module |
//! |---|---|---|
//! | `cwb_generate`, `cwb_generate6` | `BPF_PROG_TEST_RUN` with live frames | [`generate`] |
//! | `cwb_count_xdp`, `cwb_count_tc` | the far end of what is measured | [`count`] |
//! | `cwb_redirect`, `cwb_redirect_peer`, `cwb_redirect_xdp` | in place of a datapath: what the machine allows | [`bound`] |
//! | `cwb_model_*` | in place of a datapath: what a feature-rich one costs | [`model`] |
//! | `cwb_feed`, `cwb_feed6`, `cwb_nop` | in front of a program whose nanoseconds are measured | [`feed`] |
//!
//! Nothing here knows Causeway: it is measured as it is installed.
#![no_std]
#![no_main]

mod bound;
mod count;
mod feed;
mod generate;
mod layout;
mod model;
mod packet;

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// GPL-only helpers refuse any other licence string.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
