//! What the node was before: `/var/lib/causeway/migration.json`, written before anything is changed, and removed when
//! everything is as it was. What is in it is never overwritten by what is found later.

use std::{net::Ipv4Addr, path::PathBuf};

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use super::{MigrateError, netlink::Body, rules::Rule};
use crate::{boot, durable, root::Root};

/// The file.
pub const JOURNAL: &str = "/var/lib/causeway/migration.json";
const VERSION: u32 = 1;

/// How far the node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Phase {
    /// Between the bridge and Causeway.
    Applying,
    /// Causeway's.
    Applied,
    /// Between Causeway and the bridge.
    RollingBack,
    /// On the bridge, and its flows the kernel's; the programs are being taken away.
    Unloading,
}

/// The node before it was changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Journal {
    version: u32,
    boot: String,
    pub(super) phase: Phase,
    pub(super) bridge: Bridge,
    pub(super) uplink: Uplink,
    pub(super) rules: Vec<Rule>,
    /// Destinations that the rules leave alone.
    pub(super) excluded: Vec<Ipv4Net>,
    pub(super) pods: Vec<Pod>,
}

/// The incumbent's bridge. Objects of the kernel are as it printed them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Bridge {
    pub(super) name: String,
    /// In 1/100 s.
    pub(super) forward_delay: u32,
    pub(super) addresses: Vec<Body>,
    /// Without those that the kernel makes for addresses.
    pub(super) routes: Vec<Body>,
    /// Those that are permanent.
    pub(super) neighbours: Vec<Body>,
}

/// The interface below the bridge.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Uplink {
    pub(super) name: String,
    pub(super) mac: [u8; 6],
    pub(super) mtu: u32,
    /// The node's primary address.
    pub(super) address: Ipv4Net,
    /// Its settings as a port.
    pub(super) port: Body,
}

/// A pod on the bridge.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Pod {
    /// `namespace/name`, or the container id where the client did not say.
    pub(super) name: String,
    pub(super) container: String,
    pub(super) netns: PathBuf,
    /// Its interface.
    pub(super) if_name: String,
    /// The host's end.
    pub(super) host_if: String,
    pub(super) address: Ipv4Net,
    pub(super) mac: [u8; 6],
    /// The settings of the host's end as a port.
    pub(super) port: Body,
    /// The routes by its interface.
    pub(super) routes: Vec<Body>,
}

impl Pod {
    pub(super) fn addr(&self) -> Ipv4Addr {
        self.address.addr()
    }
}

impl Journal {
    pub(super) fn new(
        bridge: Bridge,
        uplink: Uplink,
        (rules, excluded): (Vec<Rule>, Vec<Ipv4Net>),
        pods: Vec<Pod>,
    ) -> Self {
        Self {
            version: VERSION,
            boot: boot::id().to_owned(),
            phase: Phase::Applying,
            bridge,
            uplink,
            rules,
            excluded,
            pods,
        }
    }

    /// The journal of a migration, `None` where there was none in this boot: an earlier one is over with its boot.
    pub(super) fn load(root: &Root) -> Result<Option<Self>, MigrateError> {
        let path = root.path(JOURNAL);
        let failed = |what: String| MigrateError::Journal {
            path: path.clone(),
            what,
        };
        let Some(bytes) = durable::read(&path).map_err(|error| failed(error.to_string()))? else {
            return Ok(None);
        };
        let journal: Self = serde_json::from_slice(&bytes).map_err(|error| failed(error.to_string()))?;
        if journal.version != VERSION {
            return Err(failed(format!(
                "it is of version {}, not {VERSION}",
                journal.version
            )));
        }
        Ok((journal.boot == boot::id()).then_some(journal))
    }

    pub(super) fn save(&self, root: &Root) -> Result<(), MigrateError> {
        let path = root.path(JOURNAL);
        let bytes = serde_json::to_vec_pretty(self).map_err(std::io::Error::from);
        bytes
            .and_then(|bytes| durable::write(&path, &bytes))
            .map_err(|error| MigrateError::Journal {
                path,
                what: error.to_string(),
            })
    }

    pub(super) fn remove(root: &Root) -> Result<(), MigrateError> {
        let path = root.path(JOURNAL);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(MigrateError::Journal {
                path,
                what: error.to_string(),
            }),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn journal() -> Journal {
        let bridge = Bridge {
            name: "azure0".to_owned(),
            forward_delay: 1500,
            addresses: vec![Body::new(&[1, 2])],
            routes: Vec::new(),
            neighbours: Vec::new(),
        };
        let uplink = Uplink {
            name: "eth0".to_owned(),
            mac: [2; 6],
            mtu: 1500,
            address: "10.240.0.4/16".parse().unwrap(),
            port: Body::default(),
        };
        Journal::new(bridge, uplink, (Vec::new(), Vec::new()), Vec::new())
    }

    #[test]
    fn a_journal_is_read_as_it_was_written_and_ends_with_its_boot() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::new(directory.path());
        assert_eq!(Journal::load(&root).unwrap(), None);
        let mut journal = journal();
        journal.save(&root).unwrap();
        assert_eq!(Journal::load(&root).unwrap(), Some(journal.clone()));
        journal.boot = "an-earlier-one".to_owned();
        journal.save(&root).unwrap();
        assert_eq!(Journal::load(&root).unwrap(), None);
        Journal::remove(&root).unwrap();
        Journal::remove(&root).unwrap();
    }

    #[test]
    fn a_journal_of_another_version_or_a_damaged_one_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::new(directory.path());
        let other = Journal {
            version: VERSION + 1,
            ..journal()
        };
        other.save(&root).unwrap();
        assert!(
            Journal::load(&root)
                .unwrap_err()
                .to_string()
                .contains("version 2")
        );
        std::fs::write(root.path(JOURNAL), "{").unwrap();
        assert!(Journal::load(&root).is_err());
    }
}
