//! What IPv6 has of its own. The other modules say `family`, and serve each.

mod header;
pub mod maps;
mod neighbour;
pub mod sums;

use aya_ebpf::programs::TcContext;

pub use self::{
    header::{
        IP_DST, IP_END, IP_SRC, Ip, PROTOCOL, addr_at, count_hop, fragment_id, ip, key, quoted, set_ends,
    },
    neighbour::{check_link, check_other, is_source, of_stranger},
};
use crate::maps::{Entry, Key};

/// An address.
pub type Addr = [u8; 16];

/// The header where time counts. Verified once all the same: with extensions or without, it can look in too many ways.
pub use crate::packet::read_ip as ip_at_once;

/// The header has no checksum.
pub const QUOTED_CHECK: Option<usize> = None;

/// XDP redirects IPv4 alone.
#[inline(always)]
pub fn show_to_xdp(_: &TcContext, _: &Key, _: &mut Entry) {}
