//! Which addresses the pods of this node may have, by the several ways there are to know.
//!
//! | `ipam.environment` | source |
//! |---|---|
//! | `azure`, or none | the fabric's wireserver, over HTTP; the last good answer is kept (`wireserver`, `cache`) |
//! | `mas`, `fileIpam` | a file, [`INTERFACES`] (`file`) |
//! | `nic` | the secondary addresses that the node's interfaces carry (`own`) |
//! | `static` | a list in the configuration (`own`) |
//! | `podCIDRs` | the Node object of Kubernetes, as `causeway pod-cidrs` noted it ([`pod_cidrs`]) |
//! | `null` | none: a pool without addresses |
//!
//! Owns what of a list is used. Knows nothing of who holds an address ([`super::pool`]).

mod cache;
mod file;
mod http;
mod listed;
mod own;
pub mod pod_cidrs;
mod wireserver;

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
    time::Duration,
};

use ipnet::IpNet;

use crate::{durable::LockError, go_json::ShapeError, root::Root};

/// Where the incumbent reads the list of environment `mas`.
pub const INTERFACES: &str = "/etc/kubernetes/interfaces.json";
/// The wireserver's answer, as it was last seen.
pub const CACHE: &str = "/run/causeway/address-list.json";

/// An interface of the node, as far as a list is matched with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalNic {
    /// Its name.
    pub name: String,
    /// Its Ethernet address.
    pub mac: [u8; 6],
    /// Its own addresses.
    pub addresses: Vec<IpAddr>,
    /// Those of them that are not the first of their subnet, with the subnet's mask.
    pub secondary: Vec<IpNet>,
}

/// What the configuration says about where addresses come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// `ipam.environment`.
    pub environment: String,
    /// `ipam.addresses`, of environment `static`.
    pub addresses: Vec<String>,
    /// `ipam.subnet`, of a family at most one.
    pub subnets: Vec<IpNet>,
    /// The interface that the addresses must be of.
    pub master: Option<String>,
    /// How old the wireserver's answer may become (`ipam.queryInterval`).
    pub query_interval: Duration,
}

impl Settings {
    /// The incumbent's `ipam.queryInterval`.
    pub const QUERY_INTERVAL: Duration = Duration::from_secs(10);

    /// Of environment `environment`, everything else as it is when the configuration does not say.
    pub fn new(environment: impl Into<String>) -> Self {
        Self {
            environment: environment.into(),
            addresses: Vec::new(),
            subnets: Vec::new(),
            master: None,
            query_interval: Self::QUERY_INTERVAL,
        }
    }

    /// Whether the subnets are the pods' alone, and routed to this node: an interface with an address in one is no uplink.
    pub fn has_routed_subnets(&self) -> bool {
        is_pod_cidrs(&self.environment)
    }
}

fn is_pod_cidrs(environment: &str) -> bool {
    environment.eq_ignore_ascii_case(pod_cidrs::ENVIRONMENT)
}

/// Addresses of one subnet that pods may have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourcePool {
    /// The subnet, without host bits.
    pub subnet: IpNet,
    /// The interface that the fabric delivers these addresses to; empty where that is not known.
    pub interface: String,
    /// 0 for the primary NIC, 1 for others: those are taken first.
    pub priority: i64,
    /// Addresses for pods: no primary one, no gateway, none of the node's own.
    pub addresses: BTreeSet<IpAddr>,
    /// The interface itself has the free ones: they are taken off it, and put back.
    pub on_interface: bool,
}

/// What a list gives.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceList {
    /// One pool for every subnet.
    pub pools: Vec<SourcePool>,
    /// Entries that were left out, and why.
    pub skipped: Vec<String>,
    /// Whether one of them was left out because its interface is not there.
    pub misses_an_interface: bool,
}

/// The answer of a source.
#[derive(Debug)]
pub struct Answer {
    /// The list; `None` where there is none, not even an old one.
    pub list: Option<SourceList>,
    /// Why there is no list, or only an old one.
    pub error: Option<SourceError>,
    /// Where it comes from, and how old it is, for people.
    pub origin: String,
}

/// Why there is no list.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The environment has no meaning.
    #[error(
        "Invalid configuration: ipam.environment {0:?} is not known; use azure (the wireserver), mas ({INTERFACES}), \
         nic, static, podCIDRs or null"
    )]
    Environment(String),
    /// The settings of the environment are incomplete or wrong.
    #[error("Invalid configuration: {0}")]
    Settings(String),
    /// The file cannot be read.
    #[error("cannot read the address list {path}: {source}; ipam.environment \"mas\" needs that file")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The file is no JSON.
    #[error("the address list {path} is not JSON: {source}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Line and column.
        source: serde_json::Error,
    },
    /// The file is JSON of another form.
    #[error("the address list {path} is not understood: {source}")]
    Shape {
        /// The file.
        path: PathBuf,
        /// What is wrong where.
        source: ShapeError,
    },
    /// The list is for another machine.
    #[error(
        "the address list {origin} names the interfaces {listed}, but this node has {local}: correct the list's \
         MacAddress, or move that interface to this node"
    )]
    ForeignMachine {
        /// The list.
        origin: String,
        /// MACs of the list.
        listed: String,
        /// The node's interfaces.
        local: String,
    },
    /// The wireserver gave no usable answer.
    #[error("cannot get the address list from {url}: {problem}")]
    Wireserver {
        /// What was asked.
        url: String,
        /// What went wrong.
        problem: String,
    },
    /// What the Node object says was not noted, or cannot be used.
    #[error("cannot get the node's podCIDRs from {path}: {problem}; `causeway pod-cidrs` writes that file")]
    PodCidrs {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// Another process is asking, and does not come to an end.
    #[error("cannot get the address list: another process has been asking for it: {0}")]
    Waiting(#[from] LockError),
}

/// Asks the source for a node with the interfaces `local`. May wait for the network, so not to be called under a lock.
pub fn ask(root: &Root, settings: &Settings, local: &[LocalNic]) -> Answer {
    match settings.environment.as_str() {
        "azure" => wireserver::ask(root, settings.query_interval, local),
        _ => ask_at_once(root, settings, local),
    }
}

/// As [`ask`], but waits for nobody: of the wireserver, what was seen last.
pub fn ask_at_once(root: &Root, settings: &Settings, local: &[LocalNic]) -> Answer {
    match settings.environment.as_str() {
        "azure" => wireserver::last_seen(root, local),
        "mas" | "fileIpam" => file::read(&root.path(INTERFACES), local),
        "nic" => Answer::of(
            Ok(own::nic(local, settings.master.as_deref())),
            "the interfaces' secondary addresses",
        ),
        "static" => Answer::of(own::fixed(settings, local), "ipam.addresses of the configuration"),
        "null" => Answer::of(Ok(own::nothing()), "ipam.environment null"),
        other if is_pod_cidrs(other) => pod_cidrs::ask(root, settings, local),
        other => Answer::of(Err(SourceError::Environment(other.to_owned())), ""),
    }
}

impl Answer {
    fn of(list: Result<SourceList, SourceError>, origin: impl Into<String>) -> Self {
        let (list, error) = match list {
            Ok(list) => (Some(list), None),
            Err(error) => (None, Some(error)),
        };
        Self {
            list,
            error,
            origin: origin.into(),
        }
    }
}

/// Whether the address is the subnet's own, its gateway or its broadcast address.
fn is_reserved(subnet: &IpNet, address: IpAddr) -> bool {
    // RFC 3021: point-to-point subnets have neither.
    let has_ends = subnet.max_prefix_len() - subnet.prefix_len() > 1;
    has_ends && (address == subnet.network() || address == gateway(subnet) || address == subnet.broadcast())
}

/// The subnet's gateway as the fabric and the incumbent have it: the first address.
pub fn gateway(subnet: &IpNet) -> IpAddr {
    match subnet.network() {
        IpAddr::V4(network) => Ipv4Addr::from_bits(network.to_bits() | 1).into(),
        IpAddr::V6(network) => Ipv6Addr::from_bits(network.to_bits() | 1).into(),
    }
}
