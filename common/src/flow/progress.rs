//! How far a flow has come, by what both ends have sent.

use crate::{decide::tcp_flags, tuple};

/// What both directions of a flow have sent so far: four bits for this direction, four for its peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress(u8);

impl Progress {
    /// Nothing yet.
    pub const NONE: Self = Self(0);
    /// A packet was seen.
    pub const SPOKE: Self = Self(1);
    /// TCP FIN was seen.
    pub const FIN: Self = Self(2);
    /// TCP RST was seen.
    pub const RST: Self = Self(4);
    /// A TCP packet without SYN was seen: the handshake is over, if the other side has spoken as well.
    pub const PAST_SYN: Self = Self(8);

    const PEER_SHIFT: u32 = 4;

    /// From the bits of [`super::FlowEntry::progress`].
    #[inline(always)]
    pub const fn from_bits(bits: u8) -> Self {
        Self(bits)
    }

    /// As stored in [`super::FlowEntry::progress`].
    #[inline(always)]
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// What one packet adds to its direction.
    #[inline(always)]
    pub const fn of_packet(protocol: u8, flags: u8) -> Self {
        let mut bits = Self::SPOKE.0;
        if protocol == tuple::TCP {
            if flags & tcp_flags::FIN != 0 {
                bits |= Self::FIN.0;
            }
            if flags & tcp_flags::RST != 0 {
                bits |= Self::RST.0;
            }
            if flags & tcp_flags::SYN == 0 {
                bits |= Self::PAST_SYN.0;
            }
        }
        Self(bits)
    }

    /// With the bits of this direction added.
    #[inline(always)]
    #[must_use]
    pub const fn with(self, bits: Self) -> Self {
        Self(self.0 | bits.0)
    }

    /// With `bits` of this direction added on the peer's side.
    #[inline(always)]
    #[must_use]
    pub const fn and_peer(self, bits: Self) -> Self {
        Self(self.0 | ((bits.0 & 0x0f) << Self::PEER_SHIFT))
    }

    /// The same history as the other direction's entry stores it.
    #[inline(always)]
    #[must_use]
    pub const fn swapped(self) -> Self {
        Self(self.0.rotate_left(Self::PEER_SHIFT))
    }

    /// Whether this direction has all of `bits`.
    #[inline(always)]
    pub const fn has(self, bits: Self) -> bool {
        self.0 & bits.0 == bits.0
    }

    /// Whether both directions have `bits`.
    #[inline(always)]
    pub const fn both(self, bits: Self) -> bool {
        self.has(bits) && self.swapped().has(bits)
    }

    /// Without `bits` in either direction.
    #[inline(always)]
    #[must_use]
    pub const fn without(self, bits: Self) -> Self {
        Self(self.0 & !(bits.0 | bits.0 << Self::PEER_SHIFT))
    }

    /// Whether one direction has `bits`.
    #[inline(always)]
    pub const fn either(self, bits: Self) -> bool {
        self.has(bits) || self.swapped().has(bits)
    }

    /// Whether a TCP connection has ended, so that a SYN opens a new one on the same tuple.
    #[inline(always)]
    pub const fn is_over(self) -> bool {
        self.either(Self::RST) || self.both(Self::FIN)
    }
}
