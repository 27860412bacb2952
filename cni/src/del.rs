//! `azure-vnet` DEL: everything of an attachment goes, however much of it is there. The address is given back last, and
//! only when nothing answers to it any more.

use std::{
    collections::BTreeSet,
    fmt::Display,
    net::{IpAddr, Ipv4Addr},
};

use causeway::{
    datapath::{Datapath, DatapathError},
    endpoints::{self, EndpointsError, Key},
    ipam::{Ipam, store::StoreError},
    links::{self, Netlink},
    root::Root,
};
use causeway_common::maps::PodEntry;

use crate::{
    add,
    attachment::{self, PATIENCE},
    error::{CniError, code},
    invocation::Invocation,
    netconf::NetConf,
    summary::Summary,
    sweep,
};

/// Disconnects the pod. Nothing to disconnect is success.
pub(crate) fn run(
    root: &Root,
    invocation: &Invocation,
    conf: &NetConf,
    summary: &mut Summary,
) -> Result<(), CniError> {
    let key = attachment::key(invocation, conf);
    let _alone = attachment::lock(root, &key)?;
    let state = add::known_endpoints(root)?;
    let endpoint = state.find(&key);
    let host_if = match endpoint {
        Some(endpoint) if !endpoint.host_if_name.is_empty() => endpoint.host_if_name.clone(),
        _ => attachment::host_interface(invocation, conf),
    };
    // The newer sandbox of the same pod has the name: the interface of this one is gone.
    let interface = (!state.is_shared(&host_if, &key)).then_some(host_if.as_str());
    let mut addresses: BTreeSet<IpAddr> = endpoint
        .iter()
        .flat_map(|endpoint| endpoint.addresses())
        .map(|net| net.addr())
        .collect();
    addresses.extend(leased(root, &key)?);

    let mut failures = Failures::default();
    let removed = forget_pods(root, &addresses, interface);
    addresses.extend(
        failures
            .note("removing the pod from the datapath", removed)
            .into_iter()
            .flatten(),
    );
    if let Some(interface) = interface {
        failures.note("removing the interface", links::disconnect_pod(interface));
    }
    if endpoint.is_some() || is_damaged(root) {
        failures.note("forgetting the endpoint", add::forget_endpoint(root, &key));
    }
    summary.ip = addresses
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(",");
    failures.into_result()?;
    release(root, &key, &addresses)?;
    sweep::after_del(root);
    Ok(())
}

/// What the attachment holds. A damaged state that nothing can be rebuilt from holds nothing: whoever mends it by
/// deleting it frees everything.
fn leased(root: &Root, key: &Key) -> Result<Vec<IpAddr>, CniError> {
    match Ipam::without_source(root, PATIENCE).leases(&attachment::holder(key)) {
        Ok(leases) => Ok(leases.into_iter().map(|lease| lease.address).collect()),
        Err(error @ StoreError::Corrupt { .. }) => {
            tracing::warn!(%error, "addresses are not known");
            Ok(Vec::new())
        }
        Err(error) => Err(error.into()),
    }
}

fn release(root: &Root, key: &Key, addresses: &BTreeSet<IpAddr>) -> Result<(), CniError> {
    let addresses: Vec<IpAddr> = addresses.iter().copied().collect();
    match Ipam::without_source(root, PATIENCE).release(&attachment::holder(key), &addresses) {
        Err(error @ StoreError::Corrupt { .. }) => {
            tracing::warn!(%error, "no address is released");
            Ok(())
        }
        result => result.map(drop).map_err(CniError::from),
    }
}

fn is_damaged(root: &Root) -> bool {
    matches!(endpoints::snapshot(root), Err(EndpointsError::Corrupt { .. }))
}

/// Makes the programs forget the addresses, and every other one on the interface. Returns what it found there.
fn forget_pods(
    root: &Root,
    addresses: &BTreeSet<IpAddr>,
    interface: Option<&str>,
) -> Result<Vec<IpAddr>, CniError> {
    let Some(datapath) = Datapath::open(root)? else {
        return Ok(Vec::new());
    };
    let mut netlink = Netlink::new()?;
    let index = match interface {
        Some(name) => netlink.link(name)?.map(|link| link.index),
        None => None,
    };
    let mut found = Vec::new();
    let mut foreign = BTreeSet::new();
    for (address, entry) in datapath.pods()? {
        if index.is_some_and(|index| entry.ifindex == index) {
            found.push(address);
        } else if answers_elsewhere(&entry, &mut netlink)? {
            foreign.insert(address);
        }
    }
    let known = addresses.iter().filter_map(|address| match address {
        IpAddr::V4(address) => Some(*address),
        IpAddr::V6(_) => None,
    });
    let all: BTreeSet<Ipv4Addr> = known.chain(found.iter().copied()).collect();
    let mut errors: Vec<DatapathError> = Vec::new();
    for address in all.difference(&foreign) {
        errors.extend(datapath.remove_pod(*address).err());
    }
    match errors.into_iter().next() {
        Some(error) => Err(error.into()),
        None => Ok(found.into_iter().map(IpAddr::V4).collect()),
    }
}

/// Whether the entry is of a live interface. Asked of those that are not this attachment's: an outdated endpoint must
/// not cost another pod its flows.
fn answers_elsewhere(entry: &PodEntry, netlink: &mut Netlink) -> Result<bool, CniError> {
    Ok(entry.is_ready() && netlink.link_by_index(entry.ifindex)?.is_some())
}

/// What went wrong on the way. The way is gone to its end all the same.
#[derive(Default)]
struct Failures(Vec<String>);

impl Failures {
    fn note<T, E: Failure>(&mut self, what: &str, result: Result<T, E>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                self.0.push(format!("{what}: {}", error.text()));
                None
            }
        }
    }

    fn into_result(self) -> Result<(), CniError> {
        if self.0.is_empty() {
            return Ok(());
        }
        let msg = format!(
            "Failed to delete endpoint: {}; the address is kept until a DEL succeeds",
            self.0.join("; ")
        );
        Err(CniError::new(code::TRY_AGAIN, msg))
    }
}

trait Failure {
    fn text(&self) -> String;
}

impl Failure for CniError {
    fn text(&self) -> String {
        self.msg.clone()
    }
}

impl<E: Display + std::error::Error> Failure for E {
    fn text(&self) -> String {
        self.to_string()
    }
}
