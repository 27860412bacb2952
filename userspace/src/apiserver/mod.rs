//! The API server in the cluster's own network (AKS *API Server VNet Integration*): its subnet, its virtual address, and
//! what becomes of connections when that changes.
//!
//! [`Document`] is what people write, [`ApiServer`](crate::settings::ApiServer) what the programs follow. Between the two
//! stands the [`Steward`]: it knows which address was given up when, and which backends are healthy.

pub mod conflist;
mod document;
#[cfg(feature = "cli")]
mod drain;
#[cfg(feature = "cli")]
mod known;
#[cfg(feature = "cli")]
mod probe;
mod probe_document;
#[cfg(feature = "cli")]
mod sockets;
#[cfg(feature = "cli")]
mod steward;
#[cfg(feature = "cli")]
mod tls;

pub use document::{Description, Document, Mode};
#[cfg(feature = "cli")]
pub use known::{BackendState, Gone, Known, STATE};
#[cfg(feature = "cli")]
pub use probe::{probe, reach};
pub use probe_document::{Probe, ProbeDocument, ProbeKind};
#[cfg(feature = "cli")]
pub use sockets::own_connections;
#[cfg(feature = "cli")]
pub use steward::Steward;
