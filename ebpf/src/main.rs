//! The kernel programs: carry on ingress, learn on egress. This file is the table of contents.
//!
//! | program | hook | module |
//! |---|---|---|
//! | `cwy_from_pod` | tc ingress, host veth | [`from_pod`] |
//! | `cwy_to_pod` | tc egress, host veth | [`to_pod`] |
//! | `cwy_from_uplink` | tc ingress, uplink | [`from_uplink`] |
//! | `cwy_to_uplink` | tc egress, uplink | [`to_uplink`] |
//! | `cwy_xdp_uplink` | XDP, uplink, where it is asked for | [`xdp_uplink`] |
//! | `cwy_from_pod6` … `cwy_to_wire6` | none: [`hand_over`] goes on there with IPv6 | `main_ipv6.rs` |
//! | `cwy_inject` | none: userspace runs it on a frame | here |
//! | `cwy_sweep` | iterator over `cwy_flows`, run by userspace | [`sweep`] |
//!
//! The decisions are in `causeway-common`; here a packet is parsed, looked up, rewritten and counted. At ingress any
//! doubt gives the packet to the kernel untouched. At the uplink's egress nothing stands behind us: a packet that
//! needs translation and cannot have it is dropped by name.
#![no_std]
#![no_main]
// The target has no compare-and-swap, so `core` offers no atomic type of 32 bits; an atomic addition it has.
#![feature(core_intrinsics)]
// Keys and values of maps by reference: by value they would be on the stack twice.
#![expect(
    clippy::needless_borrows_for_generic_args,
    reason = "512 bytes of stack are all that a program's functions have together"
)]
#![expect(internal_features, reason = "there is no other way to an atomic addition")]

mod answers;
mod balance;
mod carry;
mod count;
mod crowd;
mod end;
mod event;
#[path = "ipv4/mod.rs"]
mod family;
mod forget;
mod fragment;
mod from_pod;
mod from_uplink;
mod given;
mod guard;
mod headers;
mod heal;
mod host;
mod icmp;
mod learn;
mod maps;
mod masquerade;
mod moved;
mod nat;
mod next_hop;
mod offer;
mod packet;
mod quoted;
mod reclaim;
mod reset;
mod rewrite;
mod snat;
mod sweep;
mod to_pod;
mod to_uplink;
mod translate;
mod usage;
mod verdict;
mod xdp_uplink;

use aya_ebpf::{
    bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC},
    macros::{classifier, xdp},
    programs::{TcContext, XdpContext},
};
use count::Hook;
use family::hand_over;
use verdict::finish;

/// Pods to everywhere: source check, carry, offer.
#[classifier]
pub fn cwy_from_pod(ctx: TcContext) -> i32 {
    hand_over(&ctx, Hook::FromPod);
    finish(&ctx, Hook::FromPod, reclaim::after_offer(from_pod::handle(&ctx)))
}

/// What the stack delivers to a pod: promote, or record that the kernel keeps the flow.
#[classifier]
pub fn cwy_to_pod(ctx: TcContext) -> i32 {
    hand_over(&ctx, Hook::ToPod);
    finish(&ctx, Hook::ToPod, to_pod::handle(&ctx))
}

/// The wire to the node: reverse SNAT, carry, offer.
#[classifier]
pub fn cwy_from_uplink(ctx: TcContext) -> i32 {
    hand_over(&ctx, Hook::FromUplink);
    finish(
        &ctx,
        Hook::FromUplink,
        reclaim::after_offer(from_uplink::handle(&ctx)),
    )
}

/// What the stack sends to the wire: SNAT, promote, record. The one place where SNAT is decided.
#[classifier]
pub fn cwy_to_uplink(ctx: TcContext) -> i32 {
    hand_over(&ctx, Hook::ToUplink);
    match to_uplink::handle(&ctx) {
        Some(reason) => finish(&ctx, Hook::ToUplink, nat::settle(&ctx, reason)),
        None => TC_ACT_UNSPEC,
    }
}

/// The wire to the node, before a frame becomes a packet: reverse SNAT and carry, for what needs nothing else.
#[xdp]
pub fn cwy_xdp_uplink(ctx: XdpContext) -> u32 {
    xdp_uplink::handle(&ctx)
}

/// Userspace runs it on a frame of its own (`BPF_PROG_TEST_RUN`), with the interface in `cb[0]`: sends the frame there.
#[classifier]
pub fn cwy_inject(ctx: TcContext) -> i32 {
    let ifindex = packet::skb(&ctx).cb[0];
    match ctx.clone_redirect(ifindex, 0) {
        Ok(()) => TC_ACT_SHOT,
        Err(_) => TC_ACT_UNSPEC,
    }
}

/// Userspace runs it over `cwy_flows`: forgets what is over.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/bpf_map_elem")]
pub extern "C" fn cwy_sweep(element: &sweep::MapElement) -> i32 {
    sweep::handle(element);
    0
}
