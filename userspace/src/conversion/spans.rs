//! Sets of addresses and of ports, as sorted spans of numbers.
//!
//! An IPv4 address is the number of its IPv4-mapped IPv6 address (RFC 4291, section 2.5.5.2), so that one set holds both
//! families and `*` is one span.

use std::{
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// The numbers of the IPv4 addresses.
const V4: Span = (0xffff_0000_0000, 0xffff_ffff_ffff);

/// The first and the last number.
type Span = (u128, u128);

/// A set of numbers: spans in order, disjoint, with a gap between any two.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spans(Vec<Span>);

impl Spans {
    /// Every number.
    pub fn all() -> Self {
        Self(vec![(0, u128::MAX)])
    }

    /// The numbers from the first to the last one, both included; none if the first is above the last.
    pub fn range(first: u128, last: u128) -> Self {
        Self(if first <= last {
            vec![(first, last)]
        } else {
            Vec::new()
        })
    }

    /// The addresses of a network.
    pub fn network(network: IpNet) -> Self {
        let span = Self::range(number(network.network()), number(network.broadcast()));
        match network {
            IpNet::V4(_) => span,
            // `::/0` is every IPv6 address and no IPv4 one.
            IpNet::V6(_) => span.minus(&Self::range(V4.0, V4.1)),
        }
    }

    /// The addresses of several networks.
    pub fn networks<'a>(networks: impl IntoIterator<Item = &'a IpNet>) -> Self {
        Self::sorted(
            networks
                .into_iter()
                .flat_map(|&network| Self::network(network).0)
                .collect(),
        )
    }

    /// The addresses from the first to the last one.
    pub fn addresses(first: IpAddr, last: IpAddr) -> Self {
        Self::range(number(first), number(last))
    }

    /// Whether it has no number.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether it has this number.
    pub fn has(&self, number: u128) -> bool {
        let next = self.0.partition_point(|&(_, last)| last < number);
        self.0.get(next).is_some_and(|&(first, _)| first <= number)
    }

    /// Whether it has every number of the other one.
    pub fn covers(&self, other: &Self) -> bool {
        other.minus(self).is_empty()
    }

    /// The numbers of either.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        Self::sorted(self.0.iter().chain(&other.0).copied().collect())
    }

    /// The numbers of both.
    #[must_use]
    pub fn and(&self, other: &Self) -> Self {
        let (mut common, mut mine, mut theirs) =
            (Vec::new(), self.0.iter().peekable(), other.0.iter().peekable());
        while let (Some(&&a), Some(&&b)) = (mine.peek(), theirs.peek()) {
            let both = (a.0.max(b.0), a.1.min(b.1));
            if both.0 <= both.1 {
                common.push(both);
            }
            if a.1 < b.1 {
                mine.next();
            } else {
                theirs.next();
            }
        }
        Self(common)
    }

    /// The numbers that the other one has not.
    #[must_use]
    pub fn minus(&self, other: &Self) -> Self {
        self.and(&other.complement())
    }

    fn complement(&self) -> Self {
        let (mut gaps, mut next) = (Vec::new(), Some(0));
        for &(first, last) in &self.0 {
            if let Some(start) = next.filter(|&start| start < first) {
                gaps.push((start, first - 1));
            }
            next = last.checked_add(1);
        }
        gaps.extend(next.map(|start| (start, u128::MAX)));
        Self(gaps)
    }

    fn sorted(mut spans: Vec<Span>) -> Self {
        spans.sort_unstable();
        let mut joined: Vec<Span> = Vec::with_capacity(spans.len());
        for (first, last) in spans {
            match joined.last_mut() {
                Some(before) if first <= before.1.saturating_add(1) => before.1 = before.1.max(last),
                _ => joined.push((first, last)),
            }
        }
        Self(joined)
    }

    /// As addresses: networks where a span is one, else the first and the last address; `any` for all there are.
    pub fn address_text(&self) -> String {
        if *self == Self::all() {
            return "any".to_owned();
        }
        self.text(|(first, last)| {
            let (first, last) = (address(first), address(last));
            match network_of(first, last) {
                Some(network) if network.prefix_len() == network.max_prefix_len() => first.to_string(),
                Some(network) => network.to_string(),
                None => format!("{first} to {last}"),
            }
        })
    }

    /// As numbers: `443, 4443-4450`.
    pub fn number_text(&self) -> String {
        self.text(|(first, last)| {
            if first == last {
                first.to_string()
            } else {
                format!("{first}-{last}")
            }
        })
    }

    fn text(&self, of_span: impl Fn(Span) -> String) -> String {
        const SHOWN: usize = 4;
        let shown: Vec<String> = self.0.iter().take(SHOWN).map(|&span| of_span(span)).collect();
        let mut text = if shown.is_empty() {
            "none".to_owned()
        } else {
            shown.join(", ")
        };
        if self.0.len() > SHOWN {
            write!(text, " and {} more", self.0.len() - SHOWN).ok();
        }
        text
    }
}

/// The number of an address.
pub fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().to_bits(),
        IpAddr::V6(address) => address.to_bits(),
    }
}

fn address(number: u128) -> IpAddr {
    if (V4.0..=V4.1).contains(&number) {
        Ipv4Addr::from_bits(number as u32).into()
    } else {
        Ipv6Addr::from_bits(number).into()
    }
}

fn network_of(first: IpAddr, last: IpAddr) -> Option<IpNet> {
    let network: IpNet = match (first, last) {
        (IpAddr::V4(first), IpAddr::V4(last)) => {
            let length = (first.to_bits() ^ last.to_bits()).leading_zeros();
            Ipv4Net::new(first, length as u8).ok()?.into()
        }
        (IpAddr::V6(first), IpAddr::V6(last)) => {
            let length = (first.to_bits() ^ last.to_bits()).leading_zeros();
            Ipv6Net::new(first, length as u8).ok()?.into()
        }
        _ => return None,
    };
    (network.network() == first && network.broadcast() == last).then_some(network)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// So many numbers that an oracle can hold all of them.
    const SMALL: u128 = 64;

    fn spans(text: &str) -> Spans {
        let networks: Vec<IpNet> = text
            .split_whitespace()
            .map(|word| word.parse().unwrap())
            .collect();
        Spans::networks(&networks)
    }

    fn small_set() -> impl Strategy<Value = (Spans, BTreeSet<u128>)> {
        prop::collection::vec((0..SMALL, 0..SMALL), 0..6).prop_map(|pairs| {
            let mut oracle = BTreeSet::new();
            let mut set = Spans::default();
            for (a, b) in pairs {
                let (first, last) = (a.min(b), a.max(b));
                oracle.extend(first..=last);
                set = set.plus(&Spans::range(first, last));
            }
            (set, oracle)
        })
    }

    fn members(set: &Spans) -> BTreeSet<u128> {
        (0..SMALL).filter(|&number| set.has(number)).collect()
    }

    fn is_normal(set: &Spans) -> bool {
        set.0.iter().all(|&(first, last)| first <= last)
            && set.0.windows(2).all(|two| two[0].1 + 1 < two[1].0)
    }

    proptest! {
        #[test]
        fn sets_are_what_enumeration_says((a, a_oracle) in small_set(), (b, b_oracle) in small_set()) {
            prop_assert_eq!(members(&a), a_oracle.clone());
            prop_assert_eq!(members(&a.plus(&b)), a_oracle.union(&b_oracle).copied().collect());
            prop_assert_eq!(members(&a.and(&b)), a_oracle.intersection(&b_oracle).copied().collect());
            prop_assert_eq!(members(&a.minus(&b)), a_oracle.difference(&b_oracle).copied().collect());
            prop_assert_eq!(a.covers(&b), b_oracle.is_subset(&a_oracle));
            prop_assert_eq!(a.is_empty(), a_oracle.is_empty());
            for set in [&a, &a.plus(&b), &a.and(&b), &a.minus(&b)] {
                prop_assert!(is_normal(set), "{:?}", set);
            }
        }

        #[test]
        fn a_network_has_the_addresses_with_its_bits(base: u32, length in 0_u8..=32, other: u32) {
            let network = Ipv4Net::new(Ipv4Addr::from_bits(base), length).unwrap();
            let mask = if length == 0 { 0 } else { u32::MAX << (32 - length) };
            let set = Spans::network(network.into());
            for address in [other, base, base & mask, base | !mask, (base & mask).wrapping_sub(1), (base | !mask).wrapping_add(1)] {
                let number = number(IpAddr::V4(Ipv4Addr::from_bits(address)));
                prop_assert_eq!(set.has(number), address & mask == base & mask);
            }
        }

        #[test]
        fn a_network_is_written_as_it_is_read(base: u128, length in 0_u8..=128) {
            let network = IpNet::V6(Ipv6Net::new(Ipv6Addr::from_bits(base), length).unwrap().trunc());
            prop_assume!(!network.contains(&IpAddr::from(Ipv6Addr::from_bits(V4.0))));
            let text = Spans::network(network).address_text();
            let written = text.parse().unwrap_or_else(|_| IpNet::from(text.parse::<IpAddr>().unwrap()));
            prop_assert_eq!(written, network);
        }
    }

    #[test]
    fn addresses_are_written_as_networks_where_they_are_some() {
        let texts = [
            spans("10.0.0.0/8").address_text(),
            spans("10.0.0.4/32").address_text(),
            spans("10.0.0.0/24 10.0.1.0/24").address_text(),
            spans("10.0.1.0/24 10.0.2.0/24").address_text(),
            spans("fd00::/64").address_text(),
            spans("").address_text(),
            Spans::all().address_text(),
            spans("1.0.0.0/32 3.0.0.0/32 5.0.0.0/32 7.0.0.0/32 9.0.0.0/32").address_text(),
        ];
        assert_eq!(
            texts,
            [
                "10.0.0.0/8",
                "10.0.0.4",
                "10.0.0.0/23",
                "10.0.1.0 to 10.0.2.255",
                "fd00::/64",
                "none",
                "any",
                "1.0.0.0, 3.0.0.0, 5.0.0.0, 7.0.0.0 and 1 more",
            ]
        );
        assert_eq!(
            Spans::range(443, 443)
                .plus(&Spans::range(1024, 65_535))
                .number_text(),
            "443, 1024-65535"
        );
    }
}
