//! Ranges of addresses and of ports, as people write them.

use std::{fmt, ops::RangeInclusive};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{
    Deserialize, Deserializer,
    de::{Error, Visitor},
};

/// A range of addresses, without host bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cidr(pub(super) IpNet);

/// The ranges of each family.
pub(super) fn by_family(ranges: impl IntoIterator<Item = IpNet>) -> (Vec<Ipv4Net>, Vec<Ipv6Net>) {
    let (mut of_v4, mut of_v6) = (Vec::new(), Vec::new());
    for range in ranges {
        match range {
            IpNet::V4(range) => of_v4.push(range),
            IpNet::V6(range) => of_v6.push(range),
        }
    }
    (of_v4, of_v6)
}

impl<'de> Deserialize<'de> for Cidr {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let range: IpNet = text.trim().parse().map_err(|_error| {
            let example = match text.trim().parse::<std::net::IpAddr>() {
                Ok(address) => IpNet::from(address).to_string(),
                Err(_) => "10.0.0.0/8".to_owned(),
            };
            D::Error::custom(format!(
                "{text:?} is no range of addresses: write it as {example}"
            ))
        })?;
        if range != range.trunc() {
            return Err(D::Error::custom(format!(
                "{text} has bits behind its prefix: write {}",
                range.trunc()
            )));
        }
        Ok(Self(range))
    }
}

/// Ports: a number, or the first and the last one as `30000-32767`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ports(pub(super) RangeInclusive<u16>);

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (first, last) = (self.0.start(), self.0.end());
        if first == last {
            write!(f, "{first}")
        } else {
            write!(f, "{first}-{last}")
        }
    }
}

impl<'de> Deserialize<'de> for Ports {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(PortsVisitor)
    }
}

struct PortsVisitor;

impl Visitor<'_> for PortsVisitor {
    type Value = Ports;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a port, or ports as 30000-32767")
    }

    fn visit_u64<E: Error>(self, port: u64) -> Result<Ports, E> {
        self.visit_str(&port.to_string())
    }

    fn visit_i64<E: Error>(self, port: i64) -> Result<Ports, E> {
        self.visit_str(&port.to_string())
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Ports, E> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let port = |text: &str| {
            text.trim().parse::<u16>().map_err(|_error| {
                E::custom(format!(
                    "{text:?} is no port: write a number from 0 to 65535, or two as 30000-32767"
                ))
            })
        };
        let (first, last) = (port(first)?, port(last)?);
        if first > last {
            return Err(E::custom(format!(
                "in {text} the first port is above the last one"
            )));
        }
        Ok(Ports(first..=last))
    }
}
