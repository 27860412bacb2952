//! The API server as an administrator describes it: `apiServer` in the agent's file, and under `causeway` in the conflist.

use std::{net::Ipv4Addr, str::FromStr};

use causeway_common::{balance::BACKENDS, maps::Balancer};
use ipnet::Ipv4Net;
use serde::{Deserialize, Deserializer, Serialize, de};

use super::probe_document::{DAY, Probe, ProbeDocument};
use crate::settings::{API_SERVER_PORTS, ApiServer};

/// The port of the load balancer's health probe (Azure's documentation of API Server VNet Integration).
const HEALTH_PORT: u16 = 9988;
/// Seconds that connections to what is gone may go on.
const DRAIN: u32 = 30;

/// What stands in a document. A key that is absent has its default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Document {
    /// The subnets delegated to the API server.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "ranges")]
    pub subnets: Option<Vec<Ipv4Net>>,
    /// Its virtual address.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "address")]
    pub vip: Option<Ipv4Addr>,
    /// Its ports there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ports: Option<Vec<u16>>,
    /// The port of health probes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health_port: Option<u16>,
    /// Whether the public addresses are in use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
    /// The addresses of the public endpoint.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "addresses")]
    pub public_addresses: Option<Vec<Ipv4Addr>>,
    /// Seconds that connections to what is gone may go on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drain_seconds: Option<u32>,
    /// API servers among which this node spreads connections to the virtual address.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "addresses")]
    pub backends: Option<Vec<Ipv4Addr>>,
    /// How it is found out whether a backend is healthy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub probe: Option<ProbeDocument>,
}

fn address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Ipv4Addr>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    text.map(|text| parse(&text, "an IPv4 address, as 10.226.0.4"))
        .transpose()
}

fn addresses<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<Ipv4Addr>>, D::Error> {
    list(deserializer, "an IPv4 address, as 10.226.0.4")
}

fn ranges<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<Ipv4Net>>, D::Error> {
    list(deserializer, "a range of IPv4 addresses, as 10.226.0.0/28")
}

fn list<'de, T: FromStr, D: Deserializer<'de>>(
    deserializer: D,
    what: &str,
) -> Result<Option<Vec<T>>, D::Error> {
    let texts = Option::<Vec<String>>::deserialize(deserializer)?;
    let parse = |texts: Vec<String>| texts.iter().map(|text| parse(text, what)).collect();
    texts.map(parse).transpose()
}

fn parse<T: FromStr, E: de::Error>(text: &str, what: &str) -> Result<T, E> {
    text.trim()
        .parse()
        .map_err(|_error| E::custom(format!("{text:?} is not {what}")))
}

/// Who may use the public endpoint: anybody, or nobody.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Mode {
    /// There is a public endpoint.
    Public,
    /// There is none: connections to its addresses are refused.
    #[default]
    Private,
}

impl Mode {
    /// As it is written.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Public => "public",
            Self::Private => "private",
        }
    }
}

impl FromStr for Mode {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let all = [Self::Public, Self::Private];
        let named = all.into_iter().find(|mode| mode.name() == text);
        named.ok_or("it is public or private")
    }
}

/// The API server, with every default filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// [`Document::subnets`].
    pub subnets: Vec<Ipv4Net>,
    /// [`Document::vip`].
    pub vip: Option<Ipv4Addr>,
    /// [`Document::ports`].
    pub ports: Vec<u16>,
    /// [`Document::health_port`].
    pub health_port: u16,
    /// [`Document::mode`].
    pub mode: Mode,
    /// [`Document::public_addresses`].
    pub public_addresses: Vec<Ipv4Addr>,
    /// [`Document::drain_seconds`].
    pub drain_seconds: u32,
    /// [`Document::backends`].
    pub backends: Option<Vec<Ipv4Addr>>,
    /// [`Document::probe`].
    pub probe: Probe,
}

impl Document {
    /// The document with the keys of `over` in place of its own where they are there.
    #[must_use]
    pub fn with(self, over: Self) -> Self {
        Self {
            subnets: over.subnets.or(self.subnets),
            vip: over.vip.or(self.vip),
            ports: over.ports.or(self.ports),
            health_port: over.health_port.or(self.health_port),
            mode: over.mode.or(self.mode),
            public_addresses: over.public_addresses.or(self.public_addresses),
            drain_seconds: over.drain_seconds.or(self.drain_seconds),
            backends: over.backends.or(self.backends),
            probe: over.probe.or(self.probe),
        }
    }

    /// Fills in the defaults.
    ///
    /// # Errors
    ///
    /// The first thing that makes no sense, with the key that has to be changed.
    pub fn check(self) -> Result<Description, String> {
        let description = Description {
            subnets: self.subnets.unwrap_or_default(),
            vip: self.vip,
            ports: self.ports.unwrap_or_else(|| API_SERVER_PORTS.to_vec()),
            health_port: self.health_port.unwrap_or(HEALTH_PORT),
            mode: self.mode.unwrap_or_default(),
            public_addresses: self.public_addresses.unwrap_or_default(),
            drain_seconds: self.drain_seconds.unwrap_or(DRAIN),
            // An empty list is nobody's wish to refuse every connection.
            backends: self.backends.filter(|backends| !backends.is_empty()),
            probe: self.probe.unwrap_or_default().with_defaults(),
        };
        description.fault().map_or(Ok(description), Err)
    }
}

impl Description {
    fn fault(&self) -> Option<String> {
        if let Some(range) = self.subnets.iter().find(|range| **range != range.trunc()) {
            return Some(format!(
                "subnets: {range} has bits behind its prefix: write {}",
                range.trunc()
            ));
        }
        if let Some(vip) = self.vip
            && !self.subnets.is_empty()
            && !self.subnets.iter().any(|range| range.contains(&vip))
        {
            return Some(format!(
                "vip: {vip} is in none of the subnets: it is an address of the delegated subnet"
            ));
        }
        if self.ports.is_empty() || self.ports.len() > Balancer::PORTS {
            return Some(format!("ports: write 1 to {} of them", Balancer::PORTS));
        }
        if self.ports.contains(&0) || self.health_port == 0 {
            return Some("ports: 0 is no port".to_owned());
        }
        let unusable = |address: &&Ipv4Addr| {
            address.is_unspecified()
                || address.is_loopback()
                || address.is_multicast()
                || address.is_broadcast()
        };
        let all = self.vip.iter().chain(&self.public_addresses);
        if let Some(address) = all.chain(self.backends.iter().flatten()).find(unusable) {
            return Some(format!("{address} cannot be the address of a server"));
        }
        if let Some(vip) = self.vip
            && self.public_addresses.contains(&vip)
        {
            return Some(format!("publicAddresses: {vip} is the vip, which is private"));
        }
        if self.drain_seconds > DAY {
            return Some(format!("drainSeconds: {} is more than a day", self.drain_seconds));
        }
        self.fault_of_backends().or_else(|| self.probe.fault())
    }

    fn fault_of_backends(&self) -> Option<String> {
        let backends = self.backends.as_ref()?;
        let Some(vip) = self.vip else {
            return Some("backends: without a vip there is nothing to spread".to_owned());
        };
        if backends.contains(&vip) {
            return Some(format!("backends: {vip} is the vip"));
        }
        (backends.len() > BACKENDS).then(|| {
            format!(
                "backends: {} are named, and there may be {BACKENDS}",
                backends.len()
            )
        })
    }

    /// Each value under its key.
    pub fn values(&self) -> impl Iterator<Item = (&'static str, String)> {
        let list = |items: Vec<String>| format!("[{}]", items.join(", "));
        let addresses = |all: &[Ipv4Addr]| list(all.iter().map(ToString::to_string).collect());
        [
            (
                "apiServer.subnets",
                list(self.subnets.iter().map(ToString::to_string).collect()),
            ),
            (
                "apiServer.vip",
                self.vip
                    .map_or_else(|| "(none)".to_owned(), |vip| vip.to_string()),
            ),
            (
                "apiServer.ports",
                list(self.ports.iter().map(ToString::to_string).collect()),
            ),
            ("apiServer.healthPort", self.health_port.to_string()),
            ("apiServer.mode", self.mode.name().to_owned()),
            ("apiServer.publicAddresses", addresses(&self.public_addresses)),
            ("apiServer.drainSeconds", self.drain_seconds.to_string()),
            (
                "apiServer.backends",
                addresses(self.backends.as_deref().unwrap_or_default()),
            ),
        ]
        .into_iter()
    }

    /// What the programs have to know if nobody probes backends and nothing is given up.
    pub fn at_rest(&self) -> ApiServer {
        ApiServer {
            subnets: self.subnets.clone(),
            vip: self.vip,
            ports: self.ports.clone(),
            backends: self.backends.clone(),
            given_up: match self.mode {
                Mode::Public => Vec::new(),
                Mode::Private => self.public_addresses.clone(),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> Result<Description, String> {
        let document: Document = serde_json::from_str(text).map_err(|error| error.to_string())?;
        document.check()
    }

    #[test]
    fn what_is_not_said_has_the_defaults_of_azure() {
        let server = check(r#"{"vip": "10.226.0.4"}"#).unwrap();
        assert_eq!((server.ports, server.health_port), (vec![443, 4443], 9988));
        assert_eq!((server.mode, server.backends), (Mode::Private, None));
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_the_name_of_its_key() {
        for (text, part) in [
            (r#"{"vip": "10.226.1.4", "subnets": ["10.226.0.0/28"]}"#, "vip"),
            (r#"{"subnets": ["10.226.0.4/28"]}"#, "10.226.0.0/28"),
            (r#"{"ports": []}"#, "ports"),
            (r#"{"ports": [1,2,3,4,5,6,7,8,9]}"#, "ports"),
            (r#"{"ports": [0]}"#, "ports"),
            (r#"{"backends": ["10.226.0.5"]}"#, "vip"),
            (r#"{"vip": "10.226.0.4", "backends": ["10.226.0.4"]}"#, "backends"),
            (r#"{"vip": "127.0.0.1"}"#, "127.0.0.1"),
            (
                r#"{"vip": "10.226.0.4", "publicAddresses": ["10.226.0.4"]}"#,
                "publicAddresses",
            ),
            (r#"{"drainSeconds": 90000}"#, "drainSeconds"),
            (r#"{"probe": {"timeoutSeconds": 0}}"#, "timeoutSeconds"),
            (r#"{"probe": {"path": "ready z"}}"#, "probe.path"),
            (r#"{"probe": {"kind": "smtp"}}"#, "smtp"),
            (r#"{"vpi": "10.226.0.4"}"#, "vpi"),
            (r#"{"vip": "10.226.0"}"#, "\"10.226.0\""),
            (r#"{"backends": ["x"]}"#, "\"x\" is not an IPv4 address"),
            (r#"{"subnets": ["10.226.0.4"]}"#, "10.226.0.0/28"),
        ] {
            let error = check(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn one_document_over_another_changes_what_it_says_alone() {
        let below: Document = serde_json::from_str(r#"{"vip": "10.226.0.4", "drainSeconds": 7}"#).unwrap();
        let over: Document = serde_json::from_str(r#"{"vip": "10.226.0.5", "mode": "public"}"#).unwrap();
        let both = below.with(over).check().unwrap();
        assert_eq!(both.vip, Some([10, 226, 0, 5].into()));
        assert_eq!((both.drain_seconds, both.mode), (7, Mode::Public));
    }
}
