//! Destinations as spans of addresses, as sets of nftables have them.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use causeway_common::{decide::masquerade, maps::RangeEntry};
use ipnet::IpNet;

/// Addresses of one family, first and last of each span, in order and apart from each other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Spans(Vec<(u128, u128)>);

impl Spans {
    /// The destinations that are not masqueraded: the longest prefix decides, as it does in `cwy_ranges`.
    pub(super) fn excluded<N: Copy + Into<IpNet>>(ranges: &[(N, u8)]) -> Self {
        let mut widest_first: Vec<(IpNet, u8)> = ranges
            .iter()
            .map(|(net, class)| ((*net).into(), *class))
            .collect();
        widest_first.sort_by_key(|(net, _)| net.prefix_len());
        let mut spans: BTreeMap<u128, u128> = BTreeMap::new();
        for (net, class) in widest_first {
            let (first, last) = ends(&net);
            // Prefixes nest: what overlaps this one is of a wider one, and is around it.
            let around = spans.range(..=first).next_back().map(|(from, to)| (*from, *to));
            if let Some((from, to)) = around.filter(|(_, to)| *to >= first) {
                spans.remove(&from);
                let before = first.checked_sub(1).map(|to| (from, to));
                let behind = last.checked_add(1).map(|from| (from, to));
                let rest = [before, behind].into_iter().flatten();
                spans.extend(rest.filter(|(from, to)| from <= to));
            }
            if !is_masqueraded(class) {
                spans.insert(first, last);
            }
        }
        Self::joined(spans)
    }

    fn joined(spans: BTreeMap<u128, u128>) -> Self {
        let mut joined: Vec<(u128, u128)> = Vec::new();
        for (first, last) in spans {
            match joined.last_mut() {
                Some(before) if before.1.checked_add(1) == Some(first) => before.1 = last,
                _ => joined.push((first, last)),
            }
        }
        Self(joined)
    }

    /// Whether every address of the network is in a span.
    pub(super) fn hold(&self, net: &IpNet) -> bool {
        let (first, last) = ends(net);
        self.0.iter().any(|(from, to)| *from <= first && last <= *to)
    }

    /// The spans as nft(8) writes them, addresses of IPv4 or of IPv6.
    pub(super) fn texts(&self, is_ipv4: bool) -> impl Iterator<Item = String> + '_ {
        let text = move |number: u128| -> IpAddr {
            if is_ipv4 {
                Ipv4Addr::from(number as u32).into()
            } else {
                Ipv6Addr::from(number).into()
            }
        };
        self.0
            .iter()
            .map(move |(first, last)| format!("{}-{}", text(*first), text(*last)))
    }
}

fn ends(net: &IpNet) -> (u128, u128) {
    let number = |addr| match addr {
        IpAddr::V4(addr) => u32::from(addr).into(),
        IpAddr::V6(addr) => addr.into(),
    };
    (number(net.network()), number(net.broadcast()))
}

fn is_masqueraded(class: u8) -> bool {
    masquerade(Some(&RangeEntry { class, _pad: [0; 3] }))
}

#[cfg(test)]
mod tests {
    use causeway_common::maps::RangeClass;
    use ipnet::{Ipv4Net, Ipv6Net};
    use proptest::prelude::*;

    use super::*;

    const EX: u8 = RangeClass::EXCLUDED;
    const MASQ: u8 = RangeClass::MASQUERADED;

    fn texts(ranges: &[(&str, u8)]) -> Vec<String> {
        let ranges: Vec<(IpNet, u8)> = ranges
            .iter()
            .map(|(net, class)| (net.parse().unwrap(), *class))
            .collect();
        let is_ipv4 = ranges.iter().all(|(net, _)| net.addr().is_ipv4());
        Spans::excluded(&ranges).texts(is_ipv4).collect()
    }

    #[test]
    fn the_longest_prefix_decides() {
        assert_eq!(
            texts(&[("10.0.0.0/8", EX), ("168.63.129.16/32", EX)]),
            ["10.0.0.0-10.255.255.255", "168.63.129.16-168.63.129.16"]
        );
        assert_eq!(
            texts(&[
                ("10.0.0.0/8", EX),
                ("10.9.0.0/16", MASQ),
                ("10.9.1.0/24", RangeClass::API_SERVER)
            ]),
            [
                "10.0.0.0-10.8.255.255",
                "10.9.1.0-10.9.1.255",
                "10.10.0.0-10.255.255.255"
            ]
        );
        assert_eq!(texts(&[("0.0.0.0/0", EX)]), ["0.0.0.0-255.255.255.255"]);
        assert_eq!(
            texts(&[("0.0.0.0/1", EX), ("128.0.0.0/1", EX)]),
            ["0.0.0.0-255.255.255.255"]
        );
        assert_eq!(
            texts(&[("255.255.255.255/32", MASQ), ("255.0.0.0/8", EX)]),
            ["255.0.0.0-255.255.255.254"]
        );
        assert!(texts(&[("10.0.0.0/8", MASQ)]).is_empty() && texts(&[]).is_empty());
    }

    #[test]
    fn addresses_of_ipv6_have_their_whole_length() {
        let everything = "::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff";
        assert_eq!(texts(&[("::/0", EX)]), [everything]);
        assert_eq!(
            texts(&[("fc00::/7", EX), ("fd00::/8", MASQ)]),
            ["fc00::-fcff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"]
        );
        assert_eq!(
            texts(&[("::/0", EX), ("ffff::/16", MASQ), ("::/128", MASQ)]),
            ["::1-fffe:ffff:ffff:ffff:ffff:ffff:ffff:ffff"]
        );
        let none: [(Ipv6Net, u8); 0] = [];
        assert_eq!(Spans::excluded(&none).texts(false).count(), 0);
    }

    #[test]
    fn a_network_is_held_by_spans_that_touch() {
        let net = |text: &str| -> IpNet { text.parse().unwrap() };
        let spans = Spans::excluded(&[(net("10.0.0.0/9"), EX), (net("10.128.0.0/9"), EX)]);
        assert!(spans.hold(&net("10.0.0.0/8")) && spans.hold(&net("10.9.0.1/32")));
        assert!(!spans.hold(&net("8.0.0.0/6")) && !spans.hold(&net("0.0.0.0/0")));
        let holed = Spans::excluded(&[(net("10.0.0.0/8"), EX), (net("10.9.0.1/32"), MASQ)]);
        assert!(!holed.hold(&net("10.0.0.0/8")) && holed.hold(&net("10.8.0.0/16")));
    }

    #[test]
    fn every_address_is_judged_as_the_map_judges_it() {
        let net = (any::<u32>(), 0..=32u8).prop_map(|(addr, length)| {
            // Close together, so that they nest.
            Ipv4Net::new_assert((addr & 0xff00_0fff).into(), length).trunc()
        });
        let list = proptest::collection::btree_map(net, 1..=6u8, 0..24);
        proptest!(|(list in list)| {
            let ranges: Vec<(Ipv4Net, u8)> = list.into_iter().collect();
            let Spans(found) = Spans::excluded(&ranges);
            for pair in found.windows(2) {
                prop_assert!(pair[0].1 + 1 < pair[1].0);
            }
            let edges = ranges.iter().flat_map(|(net, _)| {
                let (first, last) = (u32::from(net.network()), u32::from(net.broadcast()));
                [first.wrapping_sub(1), first, last, last.wrapping_add(1)]
            });
            for number in edges.chain([0, u32::MAX]) {
                let addr = Ipv4Addr::from(number);
                let longest = ranges.iter().filter(|(net, _)| net.contains(&addr)).max_by_key(|(net, _)| net.prefix_len());
                let expected = longest.is_some_and(|(_, class)| !is_masqueraded(*class));
                let is_in = found.iter().any(|(first, last)| (first..=last).contains(&&u128::from(number)));
                prop_assert_eq!(is_in, expected, "{}", addr);
            }
        });
    }
}
