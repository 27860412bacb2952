//! The kernel programs for IPv6, each of which goes on where that of IPv4 on the same hook leaves off
//! (`hand_over` in `main.rs`). The modules are those of IPv4; what the families have of their own is in [`family`], and the
//! API server has no address of IPv6 ([`balance`], [`reset`]).
//!
//! | program | hook | module |
//! |---|---|---|
//! | `cwy_from_pod6` | tc ingress, host veth | [`from_pod`] |
//! | `cwy_to_pod6` | tc egress, host veth | [`to_pod`] |
//! | `cwy_from_wire6` | tc ingress, uplink | [`from_uplink`] |
//! | `cwy_to_wire6` | tc egress, uplink | [`to_uplink`] |
//! | `cwy_sweep6` | iterator over `cwy_flows6`, run by userspace | [`sweep`] |
#![no_std]
#![no_main]
// As in `main.rs`.
#![feature(core_intrinsics)]
#![expect(
    clippy::needless_borrows_for_generic_args,
    reason = "512 bytes of stack are all that a program's functions have together"
)]
#![expect(internal_features, reason = "there is no other way to an atomic addition")]

mod answers;
#[path = "ipv6/balance.rs"]
mod balance;
mod carry;
mod count;
mod crowd;
mod end;
mod event;
#[path = "ipv6/mod.rs"]
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
#[path = "ipv6/reset.rs"]
mod reset;
mod rewrite;
mod snat;
mod sweep;
mod to_pod;
mod to_uplink;
mod translate;
mod usage;
mod verdict;

use aya_ebpf::{bindings::TC_ACT_UNSPEC, macros::classifier, programs::TcContext};
use count::Hook;
use verdict::finish;

/// Pods to everywhere: source check, carry, offer.
#[classifier]
pub fn cwy_from_pod6(ctx: TcContext) -> i32 {
    finish(&ctx, Hook::FromPod, reclaim::after_offer(from_pod::handle(&ctx)))
}

/// What the stack delivers to a pod: promote, or record that the kernel keeps the flow.
#[classifier]
pub fn cwy_to_pod6(ctx: TcContext) -> i32 {
    finish(&ctx, Hook::ToPod, to_pod::handle(&ctx))
}

/// The wire to the node: carry, offer.
#[classifier]
pub fn cwy_from_wire6(ctx: TcContext) -> i32 {
    finish(
        &ctx,
        Hook::FromUplink,
        reclaim::after_offer(from_uplink::handle(&ctx)),
    )
}

/// What the stack sends to the wire: SNAT, promote, record.
#[classifier]
pub fn cwy_to_wire6(ctx: TcContext) -> i32 {
    match to_uplink::handle(&ctx) {
        Some(reason) => finish(&ctx, Hook::ToUplink, nat::settle(&ctx, reason)),
        None => TC_ACT_UNSPEC,
    }
}

/// Userspace runs it over `cwy_flows6`: forgets what is over.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/bpf_map_elem")]
pub extern "C" fn cwy_sweep6(element: &sweep::MapElement) -> i32 {
    sweep::handle(element);
    0
}
