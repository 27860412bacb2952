//! What the datapath has to know of the API server.

use std::net::Ipv4Addr;

use causeway_common::{
    decide::masquerade,
    maps::{RangeClass, RangeEntry},
};
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::datapath::Range;

/// The ports of the API server on its virtual address (Azure's documentation of API Server VNet Integration).
pub const PORTS: [u16; 2] = [443, 4443];

/// Where the API server is, as the programs see it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ApiServer {
    /// The subnets delegated to it.
    pub subnets: Vec<Ipv4Net>,
    /// Its virtual address.
    pub vip: Option<Ipv4Addr>,
    /// The ports that are spread over the backends.
    pub ports: Vec<u16>,
    /// The backends that take connections; `None` where somebody else balances.
    pub backends: Option<Vec<Ipv4Addr>>,
    /// Addresses that it has given up: TCP connections to them are refused.
    pub given_up: Vec<Ipv4Addr>,
}

impl ApiServer {
    /// Its ranges, over those of the masquerade decision: inside of its subnets nothing is masqueraded, whatever they say.
    pub(super) fn over(&self, others: &[Range]) -> Vec<Range> {
        let own: Vec<Ipv4Net> = self.own().collect();
        let of_others = |address: Ipv4Addr| {
            let containing = others.iter().filter(|(range, _)| range.contains(&address));
            containing.max_by_key(|(range, _)| range.prefix_len()).copied()
        };
        let class_of_given_up = |address: Ipv4Addr| {
            let entry = of_others(address).map(|(_, class)| RangeEntry { class, _pad: [0; 3] });
            let is_own = own.iter().any(|range| range.contains(&address));
            if !is_own && masquerade(entry.as_ref()) {
                RangeClass::CLOSED
            } else {
                RangeClass::RETIRED
            }
        };
        let mut ranges: Vec<Range> = own.iter().map(|range| (*range, RangeClass::API_SERVER)).collect();
        ranges.extend(
            self.given_up
                .iter()
                .map(|address| (host(*address), class_of_given_up(*address))),
        );
        if let Some(vip) = self.vip {
            let class = if self.is_balanced() {
                RangeClass::BALANCED
            } else {
                RangeClass::API_SERVER
            };
            ranges.retain(|(range, _)| *range != host(vip));
            ranges.push((host(vip), class));
        }
        let is_inside = |range: &Ipv4Net| own.iter().any(|own| own.contains(range));
        ranges.extend(others.iter().filter(|(range, _)| !is_inside(range)));
        ranges
    }

    /// Whether this node spreads connections itself.
    pub fn is_balanced(&self) -> bool {
        self.vip.is_some() && self.backends.is_some()
    }

    fn own(&self) -> impl Iterator<Item = Ipv4Net> {
        let hosts = self.vip.iter().chain(self.backends.iter().flatten());
        self.subnets
            .iter()
            .map(Ipv4Net::trunc)
            .chain(hosts.map(|address| host(*address)))
    }
}

/// The range of one address.
pub(crate) fn host(address: Ipv4Addr) -> Ipv4Net {
    Ipv4Net::from(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> Ipv4Net {
        text.parse().unwrap()
    }

    fn class(ranges: &[Range], address: &str) -> u8 {
        let address: Ipv4Addr = address.parse().unwrap();
        let containing = ranges.iter().filter(|(range, _)| range.contains(&address));
        containing
            .max_by_key(|(range, _)| range.prefix_len())
            .map_or(0, |(_, class)| *class)
    }

    #[test]
    fn nothing_inside_of_its_subnets_is_masqueraded_whatever_the_other_ranges_say() {
        let server = ApiServer {
            subnets: vec![net("10.226.0.0/28"), net("198.51.100.0/28")],
            vip: Some([10, 226, 0, 4].into()),
            ..ApiServer::default()
        };
        let others = vec![
            (net("10.0.0.0/8"), RangeClass::MASQUERADED),
            (net("10.226.0.0/29"), RangeClass::MASQUERADED),
            (net("10.226.0.4/32"), RangeClass::MASQUERADED),
        ];
        let ranges = server.over(&others);
        for address in ["10.226.0.4", "10.226.0.5", "10.226.0.15", "198.51.100.7"] {
            assert_eq!(class(&ranges, address), RangeClass::API_SERVER, "{address}");
        }
        assert_eq!(class(&ranges, "10.226.0.16"), RangeClass::MASQUERADED);
    }

    #[test]
    fn an_address_that_was_given_up_is_translated_as_before_and_the_present_one_is_none() {
        let server = ApiServer {
            subnets: vec![net("10.226.0.0/28")],
            vip: Some([10, 226, 0, 5].into()),
            given_up: ["10.226.0.4", "10.9.0.9", "203.0.113.7", "10.226.0.5"]
                .map(|text| text.parse().unwrap())
                .to_vec(),
            ..ApiServer::default()
        };
        let ranges = server.over(&[(net("10.0.0.0/8"), RangeClass::EXCLUDED)]);
        assert_eq!(class(&ranges, "10.226.0.4"), RangeClass::RETIRED);
        assert_eq!(class(&ranges, "10.9.0.9"), RangeClass::RETIRED);
        assert_eq!(class(&ranges, "203.0.113.7"), RangeClass::CLOSED);
        assert_eq!(class(&ranges, "10.226.0.5"), RangeClass::API_SERVER);
    }

    #[test]
    fn a_virtual_address_is_balanced_if_backends_are_given_even_none_that_is_healthy() {
        let mut server = ApiServer {
            vip: Some([10, 226, 0, 4].into()),
            backends: Some(Vec::new()),
            ..ApiServer::default()
        };
        assert_eq!(class(&server.over(&[]), "10.226.0.4"), RangeClass::BALANCED);
        server.backends = None;
        assert_eq!(class(&server.over(&[]), "10.226.0.4"), RangeClass::API_SERVER);
    }
}
