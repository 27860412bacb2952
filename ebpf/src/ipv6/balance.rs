//! The API server's virtual address is one of IPv4: nothing of IPv6 is spread over backends. This is what the other modules
//! hear where those of IPv4 speak of it.

use aya_ebpf::programs::TcContext;
use causeway_common::reason::Reason;

use crate::{
    maps::{Entry, Key},
    packet::{Ip, Transport},
};

/// As for IPv4. No packet has this reason.
pub const NOT_OURS: Reason = Reason::MidFlow;

/// As for IPv4.
pub struct From;

impl From {
    /// As for IPv4.
    pub const POD: u32 = 1;
    /// As for IPv4.
    pub const CARRIABLE: u32 = 2;
}

/// No segment is for the API server.
#[inline(always)]
pub fn to_api_server(_: &TcContext, _: &Ip, _: &Transport, _: u32) -> Reason {
    NOT_OURS
}

/// No flow has a backend.
#[inline(always)]
pub fn is_ours(_: &Entry) -> bool {
    false
}

/// As [`is_ours`].
#[inline(always)]
pub fn answers_of(_: &Key, _: &Entry) {}
