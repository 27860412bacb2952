//! What a pod may say on its link by ICMPv6: who it is, and nothing about anybody else (RFC 4861, RFC 6105).

use crate::addr::Address as _;

type Addr = [u8; 16];

/// What an ICMPv6 message from a pod is to the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkMessage {
    /// None of its own: an echo, an error, what is routed.
    None,
    /// Says nothing about anybody: a router solicitation without options to check, multicast listener reports.
    Harmless,
    /// A neighbour solicitation or advertisement: its target, and its options, have to be looked at.
    Neighbour {
        /// It says that the target is the sender's own.
        advertises: bool,
    },
    /// Only a router says this: router advertisement, redirect, router renumbering.
    Routers,
}

impl LinkMessage {
    /// By the ICMPv6 type (RFC 4861 section 4, RFC 2710, RFC 3810, RFC 2894).
    #[inline(always)]
    pub const fn of(kind: u8) -> Self {
        match kind {
            130..=133 | 143 => Self::Harmless,
            134 | 137 | 138 => Self::Routers,
            135 => Self::Neighbour { advertises: false },
            136 => Self::Neighbour { advertises: true },
            _ => Self::None,
        }
    }
}

/// Option of a neighbour or router solicitation: the sender's link-layer address (RFC 4861 section 4.6.1).
pub const SOURCE_LINK_LAYER: u8 = 1;
/// Option of a neighbour advertisement: the target's link-layer address.
pub const TARGET_LINK_LAYER: u8 = 2;

/// The pods' gateway, the address of every host end: `fe80::1234:5678:9abc`, as the incumbent has it.
pub const GATEWAY: Addr = [
    0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0x12, 0x34, 0x56, 0x78, 0x9a, 0xbc,
];

/// Whether an address is of the link alone, `fe80::/10` (RFC 4291 section 2.5.6).
#[inline(always)]
pub fn is_link_local(addr: &Addr) -> bool {
    addr[0] == 0xfe && addr[1] & 0xc0 == 0x80
}

/// Whether a pod whose address is `own` may send from `src` to `dst`: from its own address anywhere; from a link-local one,
/// or none at all, what stays on the link.
#[inline(always)]
pub fn may_be_source(src: &Addr, dst: &Addr, own: &Addr) -> bool {
    if src == own {
        return true;
    }
    let stays = dst[0] == 0xff || is_link_local(dst);
    let is_links = is_link_local(src) && *src != GATEWAY || *src == Addr::UNSPECIFIED;
    stays && is_links
}

/// Whether a pod whose address is `own` may advertise `target`: its own addresses, of which the link-local ones are not
/// known, but that of the gateway is nobody's on the pod's side.
#[inline(always)]
pub fn may_advertise(target: &Addr, own: &Addr) -> bool {
    target == own || is_link_local(target) && *target != GATEWAY
}

/// Whether an option of a neighbour message, of which `head` are the first eight bytes, says nothing of another's link-layer
/// address than `own`. An option without length is none (RFC 4861 section 4.6).
#[inline(always)]
pub fn is_own_option(head: [u8; 8], own: [u8; 6]) -> bool {
    let [kind, length, addr @ ..] = head;
    let is_address = kind == SOURCE_LINK_LAYER || kind == TARGET_LINK_LAYER;
    length != 0 && (!is_address || length == 1 && addr == own)
}

/// A walk over the options of a neighbour message, by offsets in bytes from the start of the frame.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    at: u32,
    end: u32,
}

impl Options {
    /// Options that are looked at: a message has one or two.
    pub const MOST: usize = 4;

    /// From `at` to the end of the frame.
    #[inline(always)]
    pub const fn begin(at: u32, end: u32) -> Self {
        Self { at, end }
    }

    /// Offset of the option whose turn it is.
    #[inline(always)]
    pub const fn at(self) -> u32 {
        self.at
    }

    /// Whether none is left.
    #[inline(always)]
    pub const fn is_end(self) -> bool {
        self.at >= self.end
    }

    /// Goes on behind the option with this head, whose length is in units of eight bytes.
    #[inline(always)]
    pub const fn pass(&mut self, head: [u8; 8]) {
        self.at += head[1] as u32 * 8;
    }
}

#[cfg(test)]
mod tests {
    use core::net::Ipv6Addr;

    use super::*;

    fn addr(text: &str) -> Addr {
        text.parse::<Ipv6Addr>().unwrap().octets()
    }

    #[test]
    fn a_pod_sends_from_its_own_address_anywhere_and_from_a_link_local_one_on_the_link() {
        let own = addr("2001:db8::5");
        for (src, dst, may) in [
            ("2001:db8::5", "2001:db8:1::9", true),
            ("2001:db8::5", "ff02::1", true),
            ("2001:db8::6", "2001:db8:1::9", false),
            ("2001:db8::6", "ff02::1", false),
            ("fe80::7", "ff02::2", true),
            ("fe80::7", "fe80::1234:5678:9abc", true),
            ("fe80::7", "2001:db8:1::9", false),
            ("fe80::1234:5678:9abc", "ff02::1", false),
            ("::", "ff02::1:ff00:5", true),
            ("::", "2001:db8:1::9", false),
            ("::1", "fe80::7", false),
        ] {
            assert_eq!(may_be_source(&addr(src), &addr(dst), &own), may, "{src} to {dst}");
        }
    }

    #[test]
    fn a_pod_advertises_itself_alone() {
        let own = addr("2001:db8::5");
        for (target, may) in [
            ("2001:db8::5", true),
            ("fe80::7", true),
            ("fe80::1234:5678:9abc", false),
            ("2001:db8::6", false),
            ("ff02::1", false),
        ] {
            assert_eq!(may_advertise(&addr(target), &own), may, "{target}");
        }
    }

    #[test]
    fn only_routers_say_who_routes() {
        for kind in [134, 137, 138] {
            assert_eq!(LinkMessage::of(kind), LinkMessage::Routers);
        }
        for kind in [128, 129, 1, 2, 3, 4, 139, 140] {
            assert_eq!(LinkMessage::of(kind), LinkMessage::None);
        }
        for kind in [130, 131, 132, 133, 143] {
            assert_eq!(LinkMessage::of(kind), LinkMessage::Harmless);
        }
    }

    #[test]
    fn an_option_has_the_senders_address_or_none() {
        let mac = [2, 0, 0, 0, 0, 5];
        let option = |kind, length, last| [kind, length, 2, 0, 0, 0, 0, last];
        assert!(is_own_option(option(SOURCE_LINK_LAYER, 1, 5), mac));
        assert!(is_own_option(option(TARGET_LINK_LAYER, 1, 5), mac));
        assert!(!is_own_option(option(TARGET_LINK_LAYER, 1, 6), mac));
        assert!(!is_own_option(option(TARGET_LINK_LAYER, 2, 5), mac));
        assert!(is_own_option(option(14, 1, 9), mac), "a nonce, RFC 3971");
        assert!(!is_own_option(option(14, 0, 9), mac));
    }

    #[test]
    fn options_follow_each_other_by_their_lengths() {
        let mut options = Options::begin(78, 78 + 8 + 16);
        assert!(!options.is_end());
        options.pass([14, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!((options.at(), options.is_end()), (86, false));
        options.pass([1, 2, 0, 0, 0, 0, 0, 0]);
        assert!(options.is_end());
    }

    #[test]
    fn the_gateway_is_the_incumbents() {
        assert_eq!(GATEWAY, addr("fe80::1234:5678:9abc"));
    }
}
