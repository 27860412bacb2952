//! The headers between an IPv6 header and what it carries (RFC 8200 section 4): followed so far, and no farther.

use crate::tuple::has_ports;

/// Hop-by-hop options.
const HOP_BY_HOP: u8 = 0;
/// Routing header.
const ROUTING: u8 = 43;
/// Fragment header.
const FRAGMENT: u8 = 44;
/// Authentication header (RFC 4302).
const AUTHENTICATION: u8 = 51;
/// Destination options.
const DESTINATION: u8 = 60;
/// Mobility header (RFC 6275).
const MOBILITY: u8 = 135;
/// Host identity protocol (RFC 7401).
const HOST_IDENTITY: u8 = 139;
/// Shim6 (RFC 5533).
const SHIM: u8 = 140;

/// Whether a next header is one that is followed, and no protocol.
#[inline(always)]
pub const fn is_extension(next: u8) -> bool {
    matches!(
        next,
        HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION | MOBILITY | HOST_IDENTITY | SHIM
    )
}

/// What is known of a packet behind the extension headers that have been followed. One word, as it is handed on: taken
/// apart and put together again at each header, every flag would double what the verifier looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chain {
    /// From the lowest byte: the next header; where it begins; the last fragment header's offset and flag (RFC 8200 section
    /// 4.5), in whose reserved bits [`Self::kind`].
    bits: u32,
}

/// What is to be done next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// `protocol` is no extension header, or what follows is not in this packet.
    End,
    /// The first eight bytes at `l4` are to be read.
    Read,
}

impl Chain {
    /// Headers that are followed. A sender has no need of more (RFC 8200 section 4.1 has six).
    pub const MOST: usize = 6;

    /// Offset, in eight bytes, and whether more fragments follow.
    const FRAGMENT: u32 = 0xfff9 << 16;
    /// The offset alone.
    const OFFSET: u32 = 0xfff8 << 16;
    /// Where [`Self::kind`] stands, in reserved bits.
    const KIND: u32 = 17;

    /// Of [`Self::kind`]: neither of the others.
    pub const PLAIN: u8 = 0;
    /// Of [`Self::kind`]: the walk did not come to its end.
    pub const NOT_PLAIN: u8 = 1;
    /// Of [`Self::kind`], after [`Self::end`]: flows of the protocol are told apart by their addresses alone. Of a later
    /// fragment whose protocol only the first one tells, nobody knows.
    pub const PORTLESS: u8 = 2;
    /// Of [`Self::kind`]: there are options that each router has to look at (RFC 8200 section 4.3).
    pub const FOR_ROUTERS: u8 = 3;

    /// Before the header `next`, which begins at `l4`.
    #[inline(always)]
    pub const fn begin(next: u8, l4: u8) -> Self {
        Self {
            bits: next as u32 | (l4 as u32) << 8,
        }
    }

    /// The next header: the transport's once the walk is over.
    #[inline(always)]
    pub const fn protocol(self) -> u8 {
        self.bits as u8
    }

    /// Where it begins, in bytes from the start of the frame; 0 if that is not known.
    #[inline(always)]
    pub const fn l4(self) -> u8 {
        (self.bits >> 8) as u8
    }

    /// There is a fragment header, and it is about a part of a packet. One about a whole packet is as none (RFC 6946).
    #[inline(always)]
    pub const fn is_fragment(self) -> bool {
        self.bits & Self::FRAGMENT != 0
    }

    /// The transport header is in this packet.
    #[inline(always)]
    pub const fn is_first(self) -> bool {
        self.bits & Self::OFFSET == 0
    }

    /// The walk came to its end.
    #[inline(always)]
    pub const fn is_plain(self) -> bool {
        self.kind() != Self::NOT_PLAIN
    }

    /// Bits that say what the headers come to.
    #[inline(always)]
    pub const fn kind(self) -> u8 {
        (self.bits >> Self::KIND) as u8 & 3
    }

    /// After the walk: says whether it came to its end, and what the protocol is.
    #[inline(always)]
    #[must_use]
    pub const fn end(mut self) -> Self {
        if matches!(self.step(), Step::Read) {
            self.give_up();
        } else if !has_ports::<[u8; 16]>(self.protocol()) && !is_extension(self.protocol()) && self.is_plain()
        {
            self.set_kind(Self::PORTLESS);
        }
        self
    }

    /// What is to be done next.
    #[inline(always)]
    pub const fn step(self) -> Step {
        if is_extension(self.protocol()) && self.is_first() && self.l4() != 0 {
            Step::Read
        } else {
            Step::End
        }
    }

    /// Goes on behind the header whose first eight bytes are `header`.
    #[inline(always)]
    pub fn follow(&mut self, header: [u8; 8]) {
        let [next, units, offset, more, ..] = header;
        let mut said = self.bits & !0xffff;
        let length = match self.protocol() {
            FRAGMENT => {
                let part = u32::from(u16::from_be_bytes([offset, more])) << 16;
                said = said & !Self::FRAGMENT | part & Self::FRAGMENT;
                8
            }
            AUTHENTICATION => (u32::from(units) + 2) * 4,
            HOP_BY_HOP => {
                said |= u32::from(Self::FOR_ROUTERS) << Self::KIND;
                (u32::from(units) + 1) * 8
            }
            _ => (u32::from(units) + 1) * 8,
        };
        let l4 = u32::from(self.l4()) + length;
        self.bits = said | u32::from(next);
        // Options for every router come first or not at all (RFC 8200 section 4.1).
        if l4 > u32::from(u8::MAX) || next == HOP_BY_HOP {
            self.give_up();
        } else {
            self.bits |= l4 << 8;
        }
    }

    /// What follows is not known.
    #[inline(always)]
    pub const fn give_up(&mut self) {
        self.bits &= !0xff00;
        self.set_kind(Self::NOT_PLAIN);
    }

    #[inline(always)]
    const fn set_kind(&mut self, kind: u8) {
        self.bits = self.bits & !(3 << Self::KIND) | (kind as u32) << Self::KIND;
    }

    /// As one word.
    #[inline(always)]
    pub const fn bits(self) -> u32 {
        self.bits
    }

    /// From [`Self::bits`].
    #[inline(always)]
    pub const fn of_bits(bits: u32) -> Self {
        Self { bits }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IP_END: u8 = 54;

    fn walk(first: u8, headers: &[[u8; 8]]) -> Chain {
        let mut chain = Chain::begin(first, IP_END);
        for header in headers {
            assert_eq!(chain.step(), Step::Read);
            chain.follow(*header);
        }
        chain
    }

    fn header(next: u8, length: u8) -> [u8; 8] {
        [next, length, 0, 0, 0, 0, 0, 0]
    }

    #[test]
    fn a_transport_header_is_the_end() {
        for protocol in [6, 17, 58, 50, 59, 47] {
            assert_eq!(walk(protocol, &[]).step(), Step::End, "{protocol}");
        }
    }

    #[test]
    fn options_for_the_destination_are_passed_over() {
        let chain = walk(DESTINATION, &[header(ROUTING, 0), header(6, 2)]);
        assert_eq!(
            (chain.protocol(), chain.l4(), chain.step()),
            (6, IP_END + 8 + 24, Step::End)
        );
        assert!(chain.is_plain() && !chain.is_fragment() && chain.is_first());
    }

    #[test]
    fn options_for_every_router_come_first_or_not_at_all() {
        let first = walk(HOP_BY_HOP, &[header(DESTINATION, 0), header(58, 0)]).end();
        assert_eq!(
            (first.protocol(), first.l4(), first.kind()),
            (58, IP_END + 16, Chain::FOR_ROUTERS)
        );
        assert!(first.is_plain());
        let cut_short = walk(HOP_BY_HOP, &[header(DESTINATION, 255)]).end();
        assert_eq!((cut_short.l4(), cut_short.is_plain()), (0, false));
        let second = walk(DESTINATION, &[header(HOP_BY_HOP, 0)]);
        assert_eq!(
            (second.step(), second.end().kind()),
            (Step::End, Chain::NOT_PLAIN)
        );
    }

    #[test]
    fn an_authentication_header_counts_in_words() {
        assert_eq!(walk(AUTHENTICATION, &[header(17, 4)]).l4(), IP_END + 24);
    }

    #[test]
    fn a_fragment_header_says_which_part_it_is() {
        let part = |offset_and_more: u16| {
            let [high, low] = offset_and_more.to_be_bytes();
            walk(FRAGMENT, &[[17, 0, high, low, 0, 0, 0, 1]])
        };
        for (offset_and_more, is_fragment, is_first) in [
            (0, false, true),
            (1, true, true),
            (8, true, false),
            (9, true, false),
            (6, false, true),
        ] {
            let chain = part(offset_and_more);
            assert_eq!((chain.is_fragment(), chain.is_first()), (is_fragment, is_first));
            assert_eq!(chain.step(), Step::End);
        }
    }

    #[test]
    fn behind_a_later_fragment_nothing_is_followed() {
        let chain = walk(FRAGMENT, &[[DESTINATION, 0, 0, 8, 0, 0, 0, 1]]);
        assert_eq!(chain.step(), Step::End);
    }

    #[test]
    fn what_is_at_the_end_has_ports_or_none() {
        let kind = |chain: Chain| chain.end().kind();
        let fragment = |next, at| walk(FRAGMENT, &[[next, 0, 0, at, 0, 0, 0, 1]]);
        for protocol in [6, 17, 58] {
            assert_eq!(kind(walk(DESTINATION, &[header(protocol, 0)])), Chain::PLAIN);
        }
        for protocol in [47, 50, 59, 132, 253] {
            assert_eq!(kind(walk(protocol, &[])), Chain::PORTLESS, "{protocol}");
            assert_eq!(kind(fragment(protocol, 8)), Chain::PORTLESS, "{protocol}");
            let behind = walk(HOP_BY_HOP, &[header(protocol, 0)]);
            assert_eq!(kind(behind), Chain::PORTLESS, "{protocol}");
        }
        assert_eq!(kind(fragment(DESTINATION, 8)), Chain::PLAIN);
    }

    #[test]
    fn a_walk_that_was_cut_short_knows_nothing() {
        let chain = walk(ROUTING, &[header(DESTINATION, 0)]).end();
        assert_eq!((chain.l4(), chain.kind()), (0, Chain::NOT_PLAIN));
    }

    #[test]
    fn what_is_too_long_is_not_plain() {
        let chain = walk(DESTINATION, &[header(6, 25)]);
        assert_eq!(
            (chain.l4(), chain.is_plain(), chain.step()),
            (0, false, Step::End)
        );
    }
}
