//! The end of an attachment. Everything of it goes, however much of it is there. The address is given back last, and only
//! when nothing answers to it any more.

use std::{collections::BTreeSet, fmt::Display, net::IpAddr};

use causeway_common::maps::PodEntry;
use thiserror::Error;

use super::{PATIENCE, holder};
use crate::{
    datapath::{Datapath, DatapathError, Expedited},
    endpoints::{self, Endpoints, EndpointsError, Key},
    ipam::{
        self,
        pool::Lease,
        store::{Reading, StoreError},
    },
    links::{self, LinkError, Netlink},
    root::Root,
};

/// Why an attachment could not be ended.
#[derive(Debug, Error)]
pub enum DisconnectError {
    /// The leases cannot be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The endpoints cannot be read or written.
    #[error(transparent)]
    Endpoints(#[from] EndpointsError),
    /// An interface cannot be read.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The datapath does not forget the pod, or keeps its ports.
    #[error(transparent)]
    Datapath(#[from] DatapathError),
    /// Something of it is still there.
    #[error("Failed to delete endpoint: {0}; the address is kept until a DEL succeeds")]
    Incomplete(String),
}

/// Removes everything of the attachment, its address last. `host_if` is the name of the host's end where the state does
/// not say; `expedite` is the configuration's. Returns the addresses that it had. The caller holds the attachment's lock.
pub fn disconnect(
    root: &Root,
    key: &Key,
    host_if: &str,
    expedite: bool,
) -> Result<Vec<IpAddr>, DisconnectError> {
    let noted = endpoints::Reading::of(root)?;
    let state = noted.state();
    let endpoint = state.find(key);
    let host_if = match endpoint {
        Some(endpoint) if !endpoint.host_if_name.is_empty() => &endpoint.host_if_name,
        _ => host_if,
    };
    // The newer sandbox of the same pod has the name: the interface of this one is gone.
    let interface = (!state.is_shared(host_if, key)).then_some(host_if);
    let mut held = leased(root)?;
    let leases = held.space().leases(&holder(key));
    let mut addresses: BTreeSet<IpAddr> = endpoint
        .iter()
        .flat_map(|endpoint| endpoint.addresses())
        .map(|net| net.addr())
        .collect();
    addresses.extend(leases.iter().map(|lease| lease.address));

    let mut failures = Failures::default();
    let datapath = Datapath::at_hand(root);
    let datapath = failures.note("opening the datapath", datapath).flatten();
    let expedited = Expedited::begin(expedite);
    let removed = forget_pods(datapath.as_ref(), &addresses, interface);
    let found = failures.note("removing the pod from the datapath", removed);
    addresses.extend(found.into_iter().flatten());
    if let Some(interface) = interface {
        failures.note("removing the interface", links::disconnect_pod(interface));
    }
    drop(expedited);
    if endpoint.is_some() || is_damaged(root) {
        let forgotten = forget(root, key, datapath.as_ref(), Some(noted));
        failures.note("forgetting the endpoint", forgotten);
    }
    for lease in &leases {
        failures.note("giving the address back to the interface", put_back(lease));
    }
    failures.into_result()?;
    let addresses: Vec<IpAddr> = addresses.into_iter().collect();
    release(root, key, &addresses, held)?;
    Ok(addresses)
}

/// What is held. A damaged state that nothing can be rebuilt from holds nothing: whoever mends it by deleting it frees
/// everything.
fn leased(root: &Root) -> Result<Reading, DisconnectError> {
    match Reading::of(root) {
        Err(error @ StoreError::Corrupt { .. }) => {
            tracing::warn!(%error, "addresses are not known");
            Ok(Reading::default())
        }
        result => Ok(result?),
    }
}

fn release(root: &Root, key: &Key, addresses: &[IpAddr], held: Reading) -> Result<(), DisconnectError> {
    match ipam::release_as(root, PATIENCE, &holder(key), addresses, Some(held)) {
        Err(error @ StoreError::Corrupt { .. }) => {
            tracing::warn!(%error, "no address is released");
            Ok(())
        }
        result => Ok(result.map(drop)?),
    }
}

fn is_damaged(root: &Root) -> bool {
    matches!(endpoints::snapshot(root), Err(EndpointsError::Corrupt { .. }))
}

/// Makes the programs forget the addresses, and every other one on the interface. Returns what it found there.
fn forget_pods(
    datapath: Option<&Datapath>,
    addresses: &BTreeSet<IpAddr>,
    interface: Option<&str>,
) -> Result<Vec<IpAddr>, DisconnectError> {
    let Some(datapath) = datapath else {
        return Ok(Vec::new());
    };
    let mut netlink = Netlink::new()?;
    let index = match interface {
        Some(name) => netlink.link(name)?.map(|link| link.index),
        None => None,
    };
    let mut found = Vec::new();
    let mut foreign = BTreeSet::new();
    for (address, entry) in datapath.addresses()? {
        if index.is_some_and(|index| entry.ifindex == index) {
            found.push(address);
        } else if addresses.contains(&address) && answers_elsewhere(&entry, &mut netlink)? {
            foreign.insert(address);
        }
    }
    let all: BTreeSet<IpAddr> = addresses.iter().chain(&found).copied().collect();
    let mut errors: Vec<DatapathError> = Vec::new();
    for address in all.difference(&foreign) {
        errors.extend(datapath.remove_pod(*address).err());
    }
    match errors.into_iter().next() {
        Some(error) => Err(error.into()),
        None => Ok(found),
    }
}

/// Whether the entry is of a live interface. Asked of those that are not this attachment's: an outdated endpoint must
/// not cost another pod its flows.
fn answers_elsewhere(entry: &PodEntry, netlink: &mut Netlink) -> Result<bool, DisconnectError> {
    Ok(entry.is_ready() && netlink.link_by_index(entry.ifindex)?.is_some())
}

/// What went wrong on the way. The way is gone to its end all the same.
#[derive(Default)]
struct Failures(Vec<String>);

impl Failures {
    fn note<T, E: Display>(&mut self, what: &str, result: Result<T, E>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                self.0.push(format!("{what}: {error}"));
                None
            }
        }
    }

    fn into_result(self) -> Result<(), DisconnectError> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(DisconnectError::Incomplete(self.0.join("; ")))
        }
    }
}

/// Frees the endpoint's ports and takes it out of the state, if it is there.
pub fn forget_endpoint(root: &Root, key: &Key, datapath: Option<&Datapath>) -> Result<(), DisconnectError> {
    forget(root, key, datapath, None)
}

fn forget(
    root: &Root,
    key: &Key,
    datapath: Option<&Datapath>,
    noted: Option<endpoints::Reading>,
) -> Result<(), DisconnectError> {
    let mut endpoints = Endpoints::open_as(root, PATIENCE, noted)?;
    let Some(endpoint) = endpoints.remove(key) else {
        return Ok(());
    };
    if let Some(datapath) = datapath.filter(|_| !endpoint.host_ports.is_empty()) {
        // The lock is held: nobody else notes one of these ports meanwhile.
        let others = endpoints.state().endpoints();
        let kept: Vec<_> = others
            .flat_map(|(_, endpoint)| endpoint.host_ports.iter().copied())
            .collect();
        datapath.free_ports(&endpoint.host_ports, &kept)?;
    }
    Ok(endpoints.save()?)
}

/// An address that was taken off its interface for the pod goes back, once nothing answers to it any more.
pub fn put_back(lease: &Lease) -> Result<(), LinkError> {
    if lease.on_interface {
        links::put_address(&lease.uplink, lease.net())?;
    }
    Ok(())
}
