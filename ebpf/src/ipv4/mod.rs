//! What IPv4 has of its own. The other modules say `family`, and serve each.

mod arp;
mod header;
pub mod maps;
pub mod sums;

use aya_ebpf::programs::TcContext;

use self::header::ETHERTYPE_IPV6;
use crate::{count::Hook, packet};

/// An address.
pub type Addr = [u8; 4];

/// Offset of the header's checksum from its start.
pub const QUOTED_CHECK: Option<usize> = Some(IP_CHECK - packet::ETH_LEN);

pub use self::{
    arp::{check_link, check_other, is_source, of_stranger},
    header::{
        IP_CHECK, IP_DST, IP_END, IP_SRC, Ip, PROTOCOL, TTL, addr_at, count_hop, fragment_id, ip, key,
        quoted, set_ends,
    },
};
pub use crate::xdp_uplink::show_to_xdp;
/// The header where time counts.
pub use header::ip as ip_at_once;

/// Goes on with a packet of IPv6 in the program of its own for this hook, where it is loaded: it is once a pod has an
/// address of that family. Does not return then.
///
/// Called by a program itself: the verifier allows few bytes of stack below a function that goes on elsewhere.
#[inline(always)]
pub fn hand_over(ctx: &TcContext, hook: Hook) {
    if packet::skb(ctx).protocol == u32::from(ETHERTYPE_IPV6.to_be()) {
        // SAFETY: nothing of this program is in use any more.
        unsafe { maps::IPV6.tail_call(ctx, hook as u32) };
    }
}
