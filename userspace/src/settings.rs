//! What an administrator has chosen for the node's datapath.
//!
//! The agent reads its files and notes here what follows from them, so that a plug-in that has to load the datapath
//! while no agent runs loads it with the same choice. `/run` forgets at boot, as the datapath itself does; the choice that
//! was right last is kept beyond, for a boot with files that are wrong.

mod api_server;

use std::{
    io,
    net::Ipv6Addr,
    ops::RangeInclusive,
    path::{Path, PathBuf},
};

use causeway_common::{
    decide::WIRESERVER,
    lifetime::Timeouts,
    maps::{FLOW_ENTRIES, POD_QUOTA, RangeClass, WIRE_QUOTA},
};
use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

pub use self::api_server::{ApiServer, PORTS as API_SERVER_PORTS};
use crate::{
    datapath::{Range, RangeV6},
    durable,
    node::{NODE_PORTS, Sysctls},
    root::Root,
};

/// Where they are noted.
pub const FILE: &str = "/run/causeway/settings.json";
/// Where the last choice that was right is kept.
pub const KEPT: &str = "/var/lib/causeway/settings.json";

/// The choice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Settings {
    /// Name of the uplink; without one it is found by the default route.
    pub uplink: Option<String>,
    /// Destinations that are not masqueraded.
    pub excluded: Vec<Ipv4Net>,
    /// Destinations inside of them that are.
    pub masqueraded: Vec<Ipv4Net>,
    /// Whether the kernel masquerades who is no pod, as the rule that is replaced did ([`crate::exact_rule`]).
    pub exact_rule: bool,
    /// Whether pods' IPv6 is masqueraded, too. The rule that is replaced is one of IPv4.
    pub masquerade_ipv6: bool,
    /// As [`Self::excluded`], of IPv6.
    pub excluded_v6: Vec<Ipv6Net>,
    /// As [`Self::masqueraded`], of IPv6.
    pub masqueraded_v6: Vec<Ipv6Net>,
    /// The cluster's NodePorts, which no translation takes.
    pub node_ports: RangeInclusive<u16>,
    /// Further ports that no translation takes.
    pub reserved_ports: Vec<RangeInclusive<u16>>,
    /// The ports that translations may take.
    pub translation_ports: RangeInclusive<u16>,
    /// Flows that the table is made for when the datapath is loaded.
    pub max_flows: u32,
    /// Flows that a pod may have at a time.
    pub pod_quota: u32,
    /// Flows that all hosts outside may have towards pods at a time.
    pub outside_quota: u32,
    /// Idle times in place of the kernel's.
    pub timeouts: IdleTimes,
    /// Where the API server is, if it is in the cluster's network.
    pub api_server: Option<ApiServer>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            uplink: None,
            // What the rule that is replaced leaves alone: `! -d 10.0.0.0/8` and `! --dst-range 168.63.129.16`.
            excluded: vec![
                Ipv4Net::new_assert([10, 0, 0, 0].into(), 8),
                Ipv4Net::new_assert(WIRESERVER.into(), 32),
            ],
            masqueraded: Vec::new(),
            exact_rule: false,
            masquerade_ipv6: false,
            // Unique local addresses (RFC 4193): what 10.0.0.0/8 is to IPv4.
            excluded_v6: vec![Ipv6Net::new_assert(Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0), 7)],
            masqueraded_v6: Vec::new(),
            node_ports: NODE_PORTS,
            reserved_ports: Vec::new(),
            translation_ports: 0..=u16::MAX,
            max_flows: FLOW_ENTRIES as u32 / 2,
            pod_quota: POD_QUOTA,
            outside_quota: WIRE_QUOTA,
            timeouts: IdleTimes::default(),
            api_server: None,
        }
    }
}

impl Settings {
    /// What was noted on this node since it booted, else what was kept from before; the defaults where nothing was, or
    /// nothing that can be read.
    pub fn noted(root: &Root) -> Self {
        let mut files = [FILE, KEPT].into_iter();
        files.find_map(|file| read(&root.path(file))).unwrap_or_default()
    }

    /// Notes them.
    pub fn note(&self, root: &Root) -> Result<(), SettingsError> {
        self.write(&root.path(FILE))
    }

    /// Keeps them for the next boot.
    pub fn keep(&self, root: &Root) -> Result<(), SettingsError> {
        self.write(&root.path(KEPT))
    }

    fn write(&self, path: &Path) -> Result<(), SettingsError> {
        let failed = |source| SettingsError {
            path: path.to_owned(),
            source,
        };
        let bytes = serde_json::to_vec_pretty(self).map_err(|error| failed(error.into()))?;
        if durable::read(path).ok().flatten().as_ref() == Some(&bytes) {
            return Ok(());
        }
        path.parent()
            .map_or(Ok(()), std::fs::create_dir_all)
            .and_then(|()| durable::write(path, &bytes))
            .map_err(failed)
    }

    /// The list for the masquerade decision.
    pub fn ranges(&self) -> Vec<Range> {
        let of = |class| move |range: &Ipv4Net| (*range, class);
        let excluded = self.excluded.iter().map(of(RangeClass::EXCLUDED));
        let others: Vec<Range> = excluded
            .chain(self.masqueraded.iter().map(of(RangeClass::MASQUERADED)))
            .collect();
        match &self.api_server {
            Some(server) => server.over(&others),
            None => others,
        }
    }

    /// As [`Self::ranges`], of IPv6: everything is excluded unless it was chosen otherwise.
    pub fn ranges_v6(&self) -> Vec<RangeV6> {
        if !self.masquerade_ipv6 {
            return vec![(Ipv6Net::default(), RangeClass::EXCLUDED)];
        }
        let of = |class| move |range: &Ipv6Net| (*range, class);
        let excluded = self.excluded_v6.iter().map(of(RangeClass::EXCLUDED));
        excluded
            .chain(self.masqueraded_v6.iter().map(of(RangeClass::MASQUERADED)))
            .collect()
    }

    /// Every port that no translation may take, `net.ipv4.ip_local_reserved_ports` among them.
    pub fn reserved(&self, sysctls: &Sysctls) -> Vec<RangeInclusive<u16>> {
        let mut reserved = sysctls.reserved.clone();
        reserved.push(self.node_ports.clone());
        reserved.extend_from_slice(&self.reserved_ports);
        let (first, last) = (*self.translation_ports.start(), *self.translation_ports.end());
        reserved.extend(first.checked_sub(1).map(|end| 0..=end));
        reserved.extend(last.checked_add(1).map(|start| start..=u16::MAX));
        reserved
    }

    /// The idle times for the programs.
    pub fn timeouts(&self, sysctls: &Sysctls) -> Timeouts {
        self.timeouts.over(sysctls.timeouts)
    }
}

fn read(path: &Path) -> Option<Settings> {
    let read = durable::read(path).and_then(|bytes| match bytes {
        Some(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(io::Error::other),
        None => Ok(None),
    });
    read.unwrap_or_else(|error| {
        tracing::warn!(%error, path = %path.display(), "what the agent has noted cannot be read");
        None
    })
}

/// The settings cannot be noted.
#[derive(Debug, thiserror::Error)]
#[error("cannot note the settings in {path}: {source}", path = path.display())]
pub struct SettingsError {
    path: PathBuf,
    source: io::Error,
}

impl SettingsError {
    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Idle times in seconds, those that were chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct IdleTimes {
    /// [`Timeouts::tcp_opening`].
    pub tcp_opening: Option<u32>,
    /// [`Timeouts::tcp_established`].
    pub tcp_established: Option<u32>,
    /// [`Timeouts::tcp_closing`].
    pub tcp_closing: Option<u32>,
    /// [`Timeouts::tcp_reset`].
    pub tcp_reset: Option<u32>,
    /// [`Timeouts::udp`].
    pub udp: Option<u32>,
    /// [`Timeouts::udp_stream`].
    pub udp_stream: Option<u32>,
    /// [`Timeouts::icmp`].
    pub icmp: Option<u32>,
}

impl IdleTimes {
    /// These, and the `base` where nothing was chosen.
    pub fn over(self, base: Timeouts) -> Timeouts {
        Timeouts {
            offered: base.offered,
            tcp_opening: self.tcp_opening.unwrap_or(base.tcp_opening),
            tcp_established: self.tcp_established.unwrap_or(base.tcp_established),
            tcp_closing: self.tcp_closing.unwrap_or(base.tcp_closing),
            tcp_reset: self.tcp_reset.unwrap_or(base.tcp_reset),
            udp: self.udp.unwrap_or(base.udp),
            udp_stream: self.udp_stream.unwrap_or(base.udp_stream),
            icmp: self.icmp.unwrap_or(base.icmp),
        }
    }

    /// Each with its name in the configuration.
    pub fn named(self) -> [(&'static str, Option<u32>); 7] {
        [
            ("timeouts.tcpOpening", self.tcp_opening),
            ("timeouts.tcpEstablished", self.tcp_established),
            ("timeouts.tcpClosing", self.tcp_closing),
            ("timeouts.tcpReset", self.tcp_reset),
            ("timeouts.udp", self.udp),
            ("timeouts.udpStream", self.udp_stream),
            ("timeouts.icmp", self.icmp),
        ]
    }

    /// The first one that is below what the RFCs allow: its name, and the least value in seconds.
    pub fn too_short(self) -> Option<(&'static str, u32)> {
        let chosen = self.over(Timeouts::FLOOR).named();
        let least = Timeouts::FLOOR.named();
        let pairs = chosen.into_iter().zip(least);
        pairs
            .filter(|(chosen, least)| chosen.1 < least.1)
            .map(|(_, least)| least)
            .next()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_noted_is_read_back_and_damage_is_the_default() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::new(directory.path());
        assert_eq!(Settings::noted(&root), Settings::default());
        let settings = Settings {
            uplink: Some("eth1".to_owned()),
            masqueraded: vec!["10.9.0.0/16".parse().unwrap()],
            reserved_ports: vec![8080..=8080, 9000..=9010],
            timeouts: IdleTimes {
                udp: Some(200),
                ..IdleTimes::default()
            },
            ..Settings::default()
        };
        settings.note(&root).unwrap();
        assert_eq!(Settings::noted(&root), settings);
        std::fs::write(root.path(FILE), "{").unwrap();
        assert_eq!(Settings::noted(&root), Settings::default());
    }

    #[test]
    fn what_was_kept_counts_until_something_is_noted() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::new(directory.path());
        let of_quota = |pod_quota| Settings {
            pod_quota,
            ..Settings::default()
        };
        of_quota(7).keep(&root).unwrap();
        assert_eq!(Settings::noted(&root), of_quota(7));
        of_quota(8).note(&root).unwrap();
        assert_eq!(Settings::noted(&root), of_quota(8));
        std::fs::write(root.path(FILE), "{").unwrap();
        assert_eq!(Settings::noted(&root), of_quota(7));
    }

    #[test]
    fn ports_outside_of_those_for_translations_are_reserved() {
        let settings = Settings {
            translation_ports: 1024..=60_999,
            ..Settings::default()
        };
        let reserved = settings.reserved(&Sysctls::read());
        let is_reserved = |port: u16| reserved.iter().any(|range| range.contains(&port));
        for port in [0, 1, 1023, 30_000, 32_767, 61_000, 65_535] {
            assert!(is_reserved(port), "{port}");
        }
        for port in [1024, 29_999, 32_768, 60_999] {
            assert!(!is_reserved(port), "{port}");
        }
    }

    #[test]
    fn an_idle_time_below_the_rfcs_is_named() {
        let mut times = IdleTimes::default();
        assert_eq!(times.too_short(), None);
        times.udp = Some(119);
        assert_eq!(times.too_short(), Some(("udp", 120)));
        times.udp = Some(120);
        times.tcp_established = Some(7_439);
        assert_eq!(times.too_short(), Some(("tcpEstablished", 7_440)));
    }
}
