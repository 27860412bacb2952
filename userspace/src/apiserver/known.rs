//! What is known of the API server on this node, as it stands in a file.

use std::{collections::BTreeMap, fs, io, net::Ipv4Addr};

use serde::{Deserialize, Serialize};

use super::Mode;
use crate::{datapath::End, durable, root::Root};

/// Where it notes what it knows. `/run` forgets at boot, as connections do.
pub const STATE: &str = "/run/causeway/apiserver.json";

/// Seconds beyond the drain in which connections to an address that was given up are refused: so long may a resolver have it
/// (the time to live of Azure's private zones is 300 s).
pub(super) const REFUSED: u32 = 300;

/// What is known of the API server on this node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Known {
    /// Its virtual address.
    pub vip: Option<Ipv4Addr>,
    /// Whether its public endpoint is in use.
    pub mode: Mode,
    /// Seconds since 1970 of the last change of either.
    pub changed: Option<u64>,
    /// How often the virtual address has changed.
    pub changes: u64,
    /// What is gone and not over yet.
    pub gone: Vec<Gone>,
    /// The backends.
    pub backends: BTreeMap<Ipv4Addr, BackendState>,
}

/// Something that is gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Gone {
    /// Its address.
    pub address: Ipv4Addr,
    /// It was a backend.
    pub is_backend: bool,
    /// It is the public endpoint's, and refused for as long as there is none.
    pub is_public: bool,
    /// `CLOCK_MONOTONIC` seconds from which on its connections are ended.
    pub until: u32,
    /// Rounds in which they were.
    pub rounds: u32,
    /// Connections that were ended.
    pub ended: usize,
    /// Nothing is left to be done.
    pub is_over: bool,
}

/// A backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BackendState {
    /// Whether connections are opened to it.
    pub is_healthy: bool,
    /// Seconds since 1970 since when that is so.
    pub since: u64,
    /// Probes in a row that said otherwise.
    pub against: u32,
    /// What was wrong at the last probe.
    pub fault: Option<String>,
}

impl Known {
    /// What was noted; nothing if that cannot be read.
    pub(super) fn noted(root: &Root) -> Self {
        let noted = durable::read(&root.path(STATE)).ok().flatten();
        let known = noted.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        known.unwrap_or_default()
    }

    /// Notes it.
    pub(super) fn note(&self, root: &Root) -> io::Result<()> {
        let path = root.path(STATE);
        path.parent().map_or(Ok(()), fs::create_dir_all)?;
        durable::write(&path, &serde_json::to_vec_pretty(self)?)
    }
}

impl Gone {
    /// Whether there is still something to it at `now`, `CLOCK_MONOTONIC` seconds. The public endpoint's addresses are refused
    /// for as long as there is none.
    pub(super) fn is_kept(&self, now: u32) -> bool {
        let is_refused = !self.is_backend && now < self.until.saturating_add(REFUSED);
        !self.is_over || self.is_public || is_refused
    }

    /// What it was.
    pub fn end(&self) -> End {
        if self.is_backend {
            End::Backend(self.address)
        } else {
            End::Address(self.address)
        }
    }
}
