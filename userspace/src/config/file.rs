//! `/etc/causeway/config.yaml`.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

use causeway_common::maps::{FLOWS_LEAST, FLOWS_MOST};
use serde::{Deserialize, Deserializer, de::Error as _};

use super::{
    Setting,
    range::{self, Cidr, Ports},
};
use crate::{
    apiserver::Document,
    settings::{IdleTimes, Settings},
};

/// A file that says everything, with the defaults and what each key means.
pub const REFERENCE: &str = include_str!("../../../deploy/config.yaml");

/// Where the agent answers unless told otherwise: below the ports of the kernel's own choice, and taken by none of the
/// agents that nodes commonly have.
const LISTEN: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 61_690));

/// The file. What it does not say has its default.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct File {
    #[serde(default, deserialize_with = "interface")]
    uplink: Option<String>,
    pub(super) excluded_ranges: Option<Vec<Cidr>>,
    masqueraded_ranges: Option<Vec<Cidr>>,
    exact_rule: Option<bool>,
    #[serde(rename = "masqueradeIPv6")]
    masquerade_ipv6: Option<bool>,
    node_ports: Option<Ports>,
    reserved_ports: Option<Vec<Ports>>,
    #[serde(default, deserialize_with = "translation_ports")]
    translation_ports: Option<Ports>,
    #[serde(default, deserialize_with = "max_flows")]
    max_flows: Option<u32>,
    #[serde(default, deserialize_with = "pod_quota")]
    pod_quota: Option<u32>,
    #[serde(default, deserialize_with = "outside_quota")]
    outside_quota: Option<u32>,
    #[serde(default, deserialize_with = "timeouts")]
    timeouts: Option<IdleTimes>,
    listen: Option<Listen>,
    pub(super) api_server: Option<Document>,
}

/// Where the agent answers over TCP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listen {
    /// Nowhere.
    Nowhere,
    /// Here, on a loopback address.
    At(SocketAddr),
}

impl File {
    /// What no key can tell by itself.
    ///
    /// # Errors
    ///
    /// The key that contradicts another, and why.
    pub(super) fn check(&self) -> Result<(), String> {
        let most = self.max_flows.unwrap_or_else(|| Settings::default().max_flows);
        let quotas = [("podQuota", self.pod_quota), ("outsideQuota", self.outside_quota)];
        match quotas
            .into_iter()
            .find(|(_, flows)| flows.is_some_and(|flows| flows > most))
        {
            Some((key, flows)) => Err(format!(
                "{key}: {} flows, and the table has room for 1 to {most} (maxFlows)",
                flows.unwrap_or_default()
            )),
            None => Ok(()),
        }
    }

    /// Notes each value but the excluded ranges with its source: `path`, or the default.
    pub(super) fn settings(&self, path: &str, values: &mut Vec<Setting>) -> Settings {
        let default = Settings::default();
        let max_flows = self.max_flows.unwrap_or(default.max_flows);
        let masqueraded = self.masqueraded_ranges.iter().flatten().map(|Cidr(range)| *range);
        let (masqueraded, masqueraded_v6) = range::by_family(masqueraded);
        let settings = Settings {
            uplink: self.uplink.clone(),
            excluded: default.excluded,
            masqueraded,
            exact_rule: self.exact_rule.unwrap_or(default.exact_rule),
            masquerade_ipv6: self.masquerade_ipv6.unwrap_or(default.masquerade_ipv6),
            excluded_v6: default.excluded_v6,
            masqueraded_v6,
            node_ports: chosen(self.node_ports.as_ref(), default.node_ports),
            reserved_ports: self
                .reserved_ports
                .iter()
                .flatten()
                .map(|ports| ports.0.clone())
                .collect(),
            translation_ports: chosen(self.translation_ports.as_ref(), default.translation_ports),
            max_flows,
            // A smaller table is shared out as the usual one is.
            pod_quota: self.pod_quota.unwrap_or(default.pod_quota.min(max_flows / 4)),
            outside_quota: self
                .outside_quota
                .unwrap_or(default.outside_quota.min(max_flows / 2)),
            timeouts: self.timeouts.unwrap_or_default(),
            api_server: None,
        };
        let mut note = |key, value: String, is_chosen: bool| {
            let source = if is_chosen { path } else { "default" };
            values.push(Setting {
                key,
                value,
                source: source.to_owned(),
            });
        };
        let uplink = settings
            .uplink
            .clone()
            .unwrap_or_else(|| "(that of the default route)".to_owned());
        note("uplink", uplink, self.uplink.is_some());
        let list = |items: Vec<String>| format!("[{}]", items.join(", "));
        let of_v4 = settings.masqueraded.iter().map(ToString::to_string);
        let of_v6 = settings.masqueraded_v6.iter().map(ToString::to_string);
        let masqueraded = list(of_v4.chain(of_v6).collect());
        note(
            "masqueradedRanges",
            masqueraded,
            self.masqueraded_ranges.is_some(),
        );
        note(
            "exactRule",
            settings.exact_rule.to_string(),
            self.exact_rule.is_some(),
        );
        note(
            "masqueradeIPv6",
            settings.masquerade_ipv6.to_string(),
            self.masquerade_ipv6.is_some(),
        );
        let ports = |ports: &std::ops::RangeInclusive<u16>| Ports(ports.clone()).to_string();
        note(
            "nodePorts",
            ports(&settings.node_ports),
            self.node_ports.is_some(),
        );
        let reserved = list(settings.reserved_ports.iter().map(ports).collect());
        note("reservedPorts", reserved, self.reserved_ports.is_some());
        note(
            "translationPorts",
            ports(&settings.translation_ports),
            self.translation_ports.is_some(),
        );
        note(
            "maxFlows",
            settings.max_flows.to_string(),
            self.max_flows.is_some(),
        );
        note(
            "podQuota",
            settings.pod_quota.to_string(),
            self.pod_quota.is_some(),
        );
        note(
            "outsideQuota",
            settings.outside_quota.to_string(),
            self.outside_quota.is_some(),
        );
        let times = settings.timeouts.named();
        for (key, seconds) in times {
            let text = seconds.map_or_else(|| "(the kernel's)".to_owned(), |seconds| seconds.to_string());
            note(key, text, seconds.is_some());
        }
        settings
    }

    pub(super) fn listen(&self, path: &str, values: &mut Vec<Setting>) -> Option<SocketAddr> {
        let source = self.listen.map_or("default", |_| path).to_owned();
        let at = match self.listen {
            None => Some(LISTEN),
            Some(Listen::At(address)) => Some(address),
            Some(Listen::Nowhere) => None,
        };
        values.push(Setting {
            key: "listen",
            value: at.map_or_else(|| "none".to_owned(), |address| address.to_string()),
            source,
        });
        at
    }
}

fn chosen(ports: Option<&Ports>, default: std::ops::RangeInclusive<u16>) -> std::ops::RangeInclusive<u16> {
    ports.map_or(default, |ports| ports.0.clone())
}

fn interface<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let name = Option::<String>::deserialize(deserializer)?;
    // `IFNAMSIZ` with the closing zero, and what dev_valid_name() of Linux 6.18 refuses.
    let is_name = |name: &String| {
        !matches!(name.as_str(), "" | "." | "..")
            && name.len() < 16
            && !name.contains(|c: char| c == '/' || c == ':' || c.is_whitespace())
    };
    match name {
        Some(name) if !is_name(&name) => Err(D::Error::custom(format!(
            "uplink: {name:?} cannot be the name of an interface"
        ))),
        name => Ok(name),
    }
}

fn translation_ports<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Ports>, D::Error> {
    let ports = Option::<Ports>::deserialize(deserializer)?;
    let node_ports = crate::node::NODE_PORTS;
    match &ports {
        Some(Ports(range)) if range.start() >= node_ports.start() && range.end() <= node_ports.end() => {
            Err(D::Error::custom(
                "translationPorts has only ports that are nodePorts by default: no translation could take any",
            ))
        }
        _ => Ok(ports),
    }
}

fn max_flows<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
    match Option::<u32>::deserialize(deserializer)? {
        Some(flows) if !(FLOWS_LEAST..=FLOWS_MOST).contains(&flows) => Err(D::Error::custom(format!(
            "maxFlows: {flows} flows: a table is made for {FLOWS_LEAST} to {FLOWS_MOST}"
        ))),
        flows => Ok(flows),
    }
}

fn pod_quota<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
    quota("podQuota", deserializer)
}

fn outside_quota<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
    quota("outsideQuota", deserializer)
}

fn quota<'de, D: Deserializer<'de>>(key: &str, deserializer: D) -> Result<Option<u32>, D::Error> {
    match Option::<u32>::deserialize(deserializer)? {
        Some(0) => Err(D::Error::custom(format!("{key}: 0 flows: nobody could open any"))),
        flows => Ok(flows),
    }
}

fn timeouts<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<IdleTimes>, D::Error> {
    let times = Option::<IdleTimes>::deserialize(deserializer)?;
    match times.and_then(IdleTimes::too_short) {
        Some((name, least)) => Err(D::Error::custom(format!(
            "timeouts: {name} is below {least} s, the least that the RFCs allow"
        ))),
        None => Ok(times),
    }
}

impl<'de> Deserialize<'de> for Listen {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text == "none" {
            return Ok(Self::Nowhere);
        }
        let wrong = || {
            D::Error::custom(format!(
                "listen: {text:?}: write none, or a loopback address and a port, as 127.0.0.1:61690"
            ))
        };
        let address: SocketAddr = text.parse().map_err(|_error| wrong())?;
        if address.ip().is_loopback() {
            Ok(Self::At(address))
        } else {
            Err(wrong())
        }
    }
}
