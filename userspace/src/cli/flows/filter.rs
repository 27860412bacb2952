//! Which flows `causeway flows` shows.

use std::{net::IpAddr, str::FromStr};

use causeway_common::{
    addr::Address,
    flow::{FlowEntry, State},
    tuple::{self, FlowKey},
};
use clap::Args;
use ipnet::IpNet;

use super::state_name;

/// Which flows to show.
#[derive(Args, Default)]
pub(crate) struct Filter {
    /// Source: ADDRESS[/LENGTH][:PORT] or :PORT
    #[arg(long, value_name = "ENDPOINT")]
    src: Option<EndpointFilter>,
    /// Destination, in the same words
    #[arg(long, value_name = "ENDPOINT")]
    dst: Option<EndpointFilter>,
    /// Flows of this pod: to it, from it, translated for it
    #[arg(long, value_name = "ADDRESS")]
    pod: Option<IpAddr>,
    /// tcp, udp, icmp, icmpv6 or a number
    #[arg(long, value_name = "PROTOCOL", value_parser = parse_protocol)]
    proto: Option<u8>,
    /// offered, carried, kernel or reset
    #[arg(long, value_name = "STATE", value_parser = parse_state)]
    state: Option<u8>,
    /// Show at most COUNT rows
    #[arg(long, value_name = "COUNT")]
    pub(super) limit: Option<usize>,
}

impl Filter {
    /// The first so many of all.
    pub(crate) fn first(limit: usize) -> Self {
        Self {
            limit: Some(limit),
            ..Self::default()
        }
    }

    /// Whether all of its parts match.
    pub(super) fn matches<A: Address + Into<IpAddr>>(&self, key: &FlowKey<A>, entry: &FlowEntry<A>) -> bool {
        let is = |filter: &Option<EndpointFilter>, addr: A, port| {
            filter
                .as_ref()
                .is_none_or(|filter| filter.matches(addr.into(), port))
        };
        is(&self.src, key.src, key.src_port)
            && is(&self.dst, key.dst, key.dst_port)
            && self.proto.is_none_or(|protocol| protocol == key.protocol)
            && self.state.is_none_or(|state| state == entry.state)
            && self
                .pod
                .is_none_or(|pod| [key.src, key.dst, entry.nat_addr].map(Into::into).contains(&pod))
    }
}

/// Addresses, ports, or both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct EndpointFilter {
    prefix: Option<IpNet>,
    port: Option<u16>,
}

impl EndpointFilter {
    fn matches(&self, addr: IpAddr, port: [u8; 2]) -> bool {
        self.prefix.is_none_or(|prefix| prefix.contains(&addr))
            && self.port.is_none_or(|wanted| wanted == u16::from_be_bytes(port))
    }
}

impl FromStr for EndpointFilter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (addr, port) = split(text);
        let port = port
            .map(|port| port.parse().map_err(|_| format!("{port:?} is no port")))
            .transpose()?;
        let prefix = match addr {
            "" if port.is_some() => None,
            addr => Some(parse_prefix(addr).ok_or_else(|| format!("{addr:?} is no address or prefix"))?),
        };
        Ok(Self { prefix, port })
    }
}

/// Address and port. An address of IPv6 has brackets where a port follows (RFC 3986 section 3.2.2).
fn split(text: &str) -> (&str, Option<&str>) {
    if let Some((addr, rest)) = text.strip_prefix('[').and_then(|text| text.split_once(']')) {
        return (addr, rest.strip_prefix(':'));
    }
    match text.split_once(':') {
        Some((addr, port)) if !port.contains(':') => (addr, Some(port)),
        _ => (text, None),
    }
}

fn parse_prefix(text: &str) -> Option<IpNet> {
    text.parse()
        .ok()
        .or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
}

/// `tcp`, `udp`, `icmp`, `icmpv6` or a number.
pub(crate) fn parse_protocol(text: &str) -> Result<u8, String> {
    match text.to_ascii_lowercase().as_str() {
        "tcp" => Ok(tuple::TCP),
        "udp" => Ok(tuple::UDP),
        "icmp" => Ok(tuple::ICMP),
        "icmpv6" => Ok(<[u8; 16]>::ICMP),
        number => number
            .parse()
            .map_err(|_| "use tcp, udp, icmp, icmpv6 or a number".to_owned()),
    }
}

fn parse_state(text: &str) -> Result<u8, String> {
    [State::OFFERED, State::CARRIED, State::KERNEL, State::RESET]
        .into_iter()
        .find(|&state| state_name(state) == text)
        .ok_or_else(|| "use offered, carried, kernel or reset".to_owned())
}

#[cfg(test)]
mod tests {
    use super::{
        super::tests::{entry, key},
        *,
    };

    fn matches(filter: &Filter) -> bool {
        filter.matches(&key(), &entry())
    }

    #[test]
    fn endpoints_are_addresses_prefixes_and_ports() {
        let parse = |text: &str| text.parse::<EndpointFilter>();
        let net = |text: &str| Some(text.parse().unwrap());
        assert_eq!(
            parse("10.0.0.1"),
            Ok(EndpointFilter {
                prefix: net("10.0.0.1/32"),
                port: None
            })
        );
        assert_eq!(
            parse("10.0.0.0/8:53"),
            Ok(EndpointFilter {
                prefix: net("10.0.0.0/8"),
                port: Some(53)
            })
        );
        for (text, prefix, port) in [
            ("fd00::5", "fd00::5/128", None),
            ("fd00::/64", "fd00::/64", None),
            ("[fd00::5]:53", "fd00::5/128", Some(53)),
            ("[fd00::/64]:53", "fd00::/64", Some(53)),
        ] {
            let prefix = net(prefix);
            assert_eq!(parse(text), Ok(EndpointFilter { prefix, port }), "{text}");
        }
        assert_eq!(
            parse(":443"),
            Ok(EndpointFilter {
                prefix: None,
                port: Some(443)
            })
        );
        for wrong in [
            "",
            ":",
            "10.0.0",
            "10.0.0.1:x",
            "10.0.0.1:70000",
            "10.0.0.0/33",
            "host",
        ] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn every_filter_must_match() {
        let endpoint = |text: &str| Some(text.parse().unwrap());
        assert!(matches(&Filter::default()));
        assert!(matches(&Filter {
            src: endpoint("10.240.0.0/16"),
            dst: endpoint(":443"),
            ..Filter::default()
        }));
        assert!(!matches(&Filter {
            src: endpoint("10.240.0.0/16"),
            dst: endpoint(":80"),
            ..Filter::default()
        }));
        assert!(!matches(&Filter {
            proto: Some(tuple::UDP),
            ..Filter::default()
        }));
        assert!(!matches(&Filter {
            state: Some(State::KERNEL),
            ..Filter::default()
        }));
    }

    #[test]
    fn a_pods_flows_are_those_with_its_address_anywhere() {
        for addr in ["10.240.0.9", "203.0.113.9", "10.240.0.4"] {
            assert!(
                matches(&Filter {
                    pod: addr.parse().ok(),
                    ..Filter::default()
                }),
                "{addr}"
            );
        }
        assert!(!matches(&Filter {
            pod: "10.240.0.5".parse().ok(),
            ..Filter::default()
        }));
    }

    #[test]
    fn states_are_parsed_by_the_names_they_are_shown_with() {
        for state in [State::OFFERED, State::CARRIED, State::KERNEL, State::RESET] {
            assert_eq!(parse_state(state_name(state)), Ok(state));
        }
        assert!(parse_state(super::super::UNKNOWN).is_err());
        assert_eq!(parse_protocol("ICMP"), Ok(1));
        assert!(parse_protocol("256").is_err());
    }
}
