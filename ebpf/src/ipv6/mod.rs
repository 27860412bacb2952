//! What IPv6 has of its own. The other modules say `family`, and serve each.

mod header;
pub mod maps;
mod neighbour;

use aya_ebpf::programs::TcContext;

pub use self::{
    header::{IP_END, Ip, PROTOCOL, count_hop, ip, key, quoted, set_ends},
    neighbour::{check_link, check_other, is_source, of_stranger},
};
use crate::maps::{Entry, Key};

/// An address.
pub type Addr = [u8; 16];

/// XDP redirects IPv4 alone.
#[inline(always)]
pub fn show_to_xdp(_: &TcContext, _: &Key, _: &mut Entry) {}
