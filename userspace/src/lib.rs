//! What runs beside the kernel programs: loads and pins them, attaches them, fills their maps, gives pods their
//! links and their addresses. The CNI plug-ins and the `causeway` command are thin users of this library.
//!
//! - [`datapath`]: the pinned programs and maps, and everything that is said to them;
//! - [`links`]: interfaces, addresses, routes and neighbours, over rtnetlink;
//! - [`node`]: what the node is: its uplink, its timeouts; [`settings`]: what was chosen for it;
//! - [`exact_rule`]: the rule that is replaced, for who is no pod;
//! - [`root`]: where all files are, so that several nodes can live on one machine;
//! - [`ipam`], [`endpoints`] and [`leases`]: which addresses are given to whom, and who is still there; [`attachments`]: how
//!   that ends;
//! - [`durable`]: files that survive a power cut;
//! - [`conversion`] and [`plan`]: a cluster's network, before there is one or before it changes.
//!
//! Nothing here decides about a packet: that is in `causeway_common`.

pub mod apiserver;
pub mod attachments;
mod boot;
#[cfg(feature = "cli")]
pub mod config;
#[cfg(feature = "cli")]
pub mod conversion;
pub mod datapath;
pub mod durable;
pub mod endpoints;
pub mod exact_rule;
pub mod go_json;
pub mod ipam;
pub mod leases;
pub mod links;
#[cfg(feature = "cli")]
pub mod migrate;
pub mod node;
#[cfg(feature = "cli")]
pub mod plan;
pub mod program;
#[cfg(feature = "cli")]
pub mod reconcile;
mod restore;
pub mod root;
pub mod settings;
mod sysctl;
