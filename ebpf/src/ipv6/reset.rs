//! Only connections to the API server are refused, and none of those is of IPv6.

use aya_ebpf::programs::TcContext;
use causeway_common::reason::Reason;

use crate::packet::{Ip, Transport};

/// As for IPv4.
#[derive(Clone, Copy)]
pub enum Back {
    /// As for IPv4.
    Out,
    /// As for IPv4.
    In,
}

/// Nothing is refused.
#[inline(always)]
pub fn refuse(_: &TcContext, _: &Ip, _: &Transport, reason: Reason, _: Back) -> Reason {
    reason
}
