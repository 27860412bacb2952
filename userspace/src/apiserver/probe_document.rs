//! How it is found out whether an API server is well: `apiServer.probe`.

use serde::{Deserialize, Serialize};

/// Seconds in a day: nobody waits longer.
pub(super) const DAY: u32 = 86_400;

/// `probe` of a [`Document`](super::Document).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ProbeDocument {
    /// What the health port is asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<ProbeKind>,
    /// The path of a request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Seconds between two probes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interval_seconds: Option<u32>,
    /// Seconds that a probe may take.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_seconds: Option<u32>,
    /// Probes in a row that must succeed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub healthy_after: Option<u32>,
    /// Probes in a row that must fail.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unhealthy_after: Option<u32>,
}

/// What a probe asks the health port, besides a TCP connection to each of the ports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ProbeKind {
    /// Nothing: the ports alone.
    None,
    /// A connection.
    #[default]
    Tcp,
    /// `GET` of the path, answered by a status of 200 to 299.
    Http,
    /// The same over TLS. Whose certificate it is, is not asked: as by the kubelet's probes.
    Https,
}

/// How a backend is probed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// [`ProbeDocument::kind`].
    pub kind: ProbeKind,
    /// [`ProbeDocument::path`].
    pub path: String,
    /// [`ProbeDocument::interval_seconds`].
    pub interval_seconds: u32,
    /// [`ProbeDocument::timeout_seconds`].
    pub timeout_seconds: u32,
    /// [`ProbeDocument::healthy_after`].
    pub healthy_after: u32,
    /// [`ProbeDocument::unhealthy_after`].
    pub unhealthy_after: u32,
}

impl ProbeDocument {
    /// Fills in the defaults.
    pub(super) fn with_defaults(self) -> Probe {
        Probe {
            kind: self.kind.unwrap_or_default(),
            path: self.path.unwrap_or_else(|| "/readyz".to_owned()),
            interval_seconds: self.interval_seconds.unwrap_or(5),
            timeout_seconds: self.timeout_seconds.unwrap_or(2),
            healthy_after: self.healthy_after.unwrap_or(1),
            unhealthy_after: self.unhealthy_after.unwrap_or(3),
        }
    }
}

impl Probe {
    pub(super) fn fault(&self) -> Option<String> {
        let numbers = [
            ("intervalSeconds", self.interval_seconds),
            ("timeoutSeconds", self.timeout_seconds),
            ("healthyAfter", self.healthy_after),
            ("unhealthyAfter", self.unhealthy_after),
        ];
        if let Some((name, value)) = numbers.iter().find(|(_, value)| *value == 0 || *value > DAY) {
            return Some(format!("probe.{name}: {value} is not in 1 to {DAY}"));
        }
        let is_path = self.path.starts_with('/') && self.path.chars().all(|c| c.is_ascii_graphic());
        (!is_path).then(|| format!("probe.path: {:?} is no path: write it as /readyz", self.path))
    }
}
