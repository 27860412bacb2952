//! The headers between an IPv6 header and what it carries (RFC 8200 section 4): followed so far, and no farther.

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

/// What is known of a packet behind the extension headers that have been followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chain {
    /// The next header: the transport's once the walk is over.
    pub protocol: u8,
    /// Where it begins, in bytes from the start of the frame.
    pub l4: u8,
    /// There is a fragment header, and it is about a part of a packet. One about a whole packet is as none (RFC 6946).
    pub is_fragment: bool,
    /// The transport header is in this packet.
    pub is_first: bool,
    /// There are no options that each router has to look at, and the walk came to its end.
    pub is_plain: bool,
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

    const FRAGMENT: u32 = 1 << 16;
    const FIRST: u32 = 1 << 17;
    const PLAIN: u32 = 1 << 18;

    /// Before the header `next`, which begins at `l4`.
    #[inline(always)]
    pub const fn begin(next: u8, l4: u8) -> Self {
        Self {
            protocol: next,
            l4,
            is_fragment: false,
            is_first: true,
            is_plain: true,
        }
    }

    /// What is to be done next.
    #[inline(always)]
    pub const fn step(self) -> Step {
        let is_extension = matches!(
            self.protocol,
            HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION | MOBILITY | HOST_IDENTITY | SHIM
        );
        if is_extension && self.is_first && self.l4 != 0 {
            Step::Read
        } else {
            Step::End
        }
    }

    /// Goes on behind the header whose first eight bytes are `header`.
    #[inline(always)]
    pub fn follow(&mut self, header: [u8; 8]) {
        let length = match self.protocol {
            FRAGMENT => {
                let offset_and_more = u16::from_be_bytes([header[2], header[3]]);
                self.is_fragment = offset_and_more & 0xfff9 != 0;
                self.is_first = offset_and_more & 0xfff8 == 0;
                8
            }
            AUTHENTICATION => (u32::from(header[1]) + 2) * 4,
            _ => (u32::from(header[1]) + 1) * 8,
        };
        if self.protocol == HOP_BY_HOP {
            self.is_plain = false;
        }
        self.protocol = header[0];
        match u8::try_from(u32::from(self.l4) + length) {
            Ok(l4) => self.l4 = l4,
            Err(_) => self.give_up(),
        }
    }

    /// What follows is not known.
    #[inline(always)]
    pub const fn give_up(&mut self) {
        self.is_plain = false;
        self.l4 = 0;
    }

    /// As one word.
    #[inline(always)]
    pub const fn bits(self) -> u32 {
        let fragment = if self.is_fragment { Self::FRAGMENT } else { 0 };
        let first = if self.is_first { Self::FIRST } else { 0 };
        let plain = if self.is_plain { Self::PLAIN } else { 0 };
        self.protocol as u32 | (self.l4 as u32) << 8 | fragment | first | plain
    }

    /// From [`Self::bits`].
    #[inline(always)]
    pub const fn of_bits(bits: u32) -> Self {
        Self {
            protocol: bits as u8,
            l4: (bits >> 8) as u8,
            is_fragment: bits & Self::FRAGMENT != 0,
            is_first: bits & Self::FIRST != 0,
            is_plain: bits & Self::PLAIN != 0,
        }
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
        assert_eq!(Chain::of_bits(chain.bits()), chain);
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
            (chain.protocol, chain.l4, chain.step()),
            (6, IP_END + 8 + 24, Step::End)
        );
        assert!(chain.is_plain && !chain.is_fragment && chain.is_first);
    }

    #[test]
    fn options_for_routers_are_theirs() {
        let chain = walk(HOP_BY_HOP, &[header(58, 0)]);
        assert_eq!((chain.protocol, chain.is_plain), (58, false));
    }

    #[test]
    fn an_authentication_header_counts_in_words() {
        assert_eq!(walk(AUTHENTICATION, &[header(17, 4)]).l4, IP_END + 24);
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
            assert_eq!((chain.is_fragment, chain.is_first), (is_fragment, is_first));
            assert_eq!(chain.step(), Step::End);
        }
    }

    #[test]
    fn behind_a_later_fragment_nothing_is_followed() {
        let chain = walk(FRAGMENT, &[[DESTINATION, 0, 0, 8, 0, 0, 0, 1]]);
        assert_eq!(chain.step(), Step::End);
    }

    #[test]
    fn what_is_too_long_is_not_plain() {
        let chain = walk(DESTINATION, &[header(6, 25)]);
        assert_eq!((chain.l4, chain.is_plain, chain.step()), (0, false, Step::End));
    }
}
