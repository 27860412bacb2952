//! What a datagram's first fragment decides for the rest: later fragments have no ports (RFC 791 section 3.2).

use crate::addr::Address;

/// Key of `cwy_frags`: the fragments of one datagram at one hook.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FragmentKey<A: Address> {
    /// Source address as seen at the hook, network order.
    pub src: A,
    /// Destination address as seen at the hook, network order.
    pub dst: A,
    /// Identification of the packet.
    pub id: A::FragmentId,
    /// IP protocol number.
    pub protocol: u8,
    /// One of [`At`]: a datagram passes several hooks, with one identification.
    pub at: u8,
}

/// Values of [`FragmentKey::at`].
#[derive(Debug)]
pub struct At;

impl At {
    /// `cwy_from_pod`.
    pub const FROM_POD: u8 = 1;
    /// `cwy_from_uplink`.
    pub const FROM_UPLINK: u8 = 2;
    /// `cwy_to_uplink`.
    pub const TO_UPLINK: u8 = 3;
}

/// Value of `cwy_frags`: how the first fragment was sent on.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FragmentEntry<A> {
    /// One of [`Nat`](crate::flow::Nat).
    pub nat: u8,
    /// One of [`Exit`](crate::flow::Exit).
    pub exit: u8,
    /// Zero.
    pub _pad: [u8; 2],
    /// Interface to redirect to.
    pub out_ifindex: u32,
    /// Destination MAC of the redirected frame.
    pub out_dst_mac: [u8; 6],
    /// Source MAC of the redirected frame.
    pub out_src_mac: [u8; 6],
    /// New address, network order.
    pub nat_addr: A,
    /// `CLOCK_MONOTONIC` seconds of the first fragment.
    pub first_seen: u32,
}

const _: () = assert!(size_of::<FragmentKey<[u8; 4]>>() == 4 + 4 + 2 + 1 + 1);
const _: () = assert!(size_of::<FragmentKey<[u8; 16]>>() == 16 + 16 + 6 + 1 + 1);
const _: () = assert!(size_of::<FragmentEntry<[u8; 4]>>() == 4 + 4 + 6 + 6 + 4 + 4);
const _: () = assert!(size_of::<FragmentEntry<[u8; 16]>>() == 4 + 4 + 6 + 6 + 16 + 4);

/// Entries of `cwy_frags`: datagrams under way. An LRU: none lives longer than [`LIFETIME`].
pub const FRAGMENT_ENTRIES: usize = 8192;

/// Seconds for which a datagram's fragments belong together: `net.ipv4.ipfrag_time` of Linux 6.18. Later the
/// identification may be another datagram's.
pub const LIFETIME: u32 = 30;

/// How often a fragment that overtook its first one is put behind what has arrived meanwhile.
pub const ROUNDS: u16 = 64;

impl<A: Address> FragmentEntry<A> {
    /// Whether the entry is about fragments that arrive at `now` (seconds of the same clock).
    #[inline(always)]
    pub fn is_current(&self, now: u32) -> bool {
        now.wrapping_sub(self.first_seen) <= LIFETIME
    }
}

/// Which round a fragment is in, by the tag on it; a packet that has not waited is in round 0.
#[inline(always)]
pub fn round_of(tag: u16) -> u16 {
    let round = tag.wrapping_sub(WAITING);
    if round <= ROUNDS { round } else { 0 }
}

/// The tag of a fragment that waits, in round `round` (1 to [`ROUNDS`]).
#[inline(always)]
pub fn waiting_tag(round: u16) -> u16 {
    WAITING + round
}

const WAITING: u16 = 0xff00;

const _: () = assert!(WAITING + ROUNDS < crate::tuple::TAG_CARRIED);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fragment_waits_a_bounded_number_of_rounds() {
        let mut tag = 0;
        for round in 1..=ROUNDS {
            tag = waiting_tag(round);
            assert_eq!(round_of(tag), round);
        }
        assert_eq!(round_of(tag), ROUNDS);
        assert_eq!(round_of(0), 0);
        assert_eq!(round_of(crate::tuple::TAG_CARRIED), 0);
    }
}
