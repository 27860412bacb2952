//! `azure-vnet` DEL: everything of an attachment goes, however much of it is there. The address is given back last, and
//! only when nothing answers to it any more.

use std::{
    collections::BTreeSet,
    fmt::Display,
    net::{IpAddr, Ipv4Addr},
};

use causeway::{
    datapath::{Datapath, DatapathError, Expedited},
    endpoints::{self, EndpointsError, Key},
    ipam::{self, pool::Lease, store::StoreError},
    links::{self, Netlink},
    root::Root,
};
use causeway_common::maps::PodEntry;

use crate::{
    Call, add, address,
    attachment::{self, PATIENCE},
    error::{CniError, code},
    invocation::Verb,
    summary::Summary,
    sweep,
};

/// Disconnects the pod. Nothing to disconnect is success.
pub(crate) fn run(call: &Call<'_>, summary: &mut Summary) -> Result<(), CniError> {
    let Call {
        root,
        invocation,
        conf,
        ..
    } = call;
    let key = attachment::key(invocation, conf);
    {
        let _alone = attachment::lock(root, &key)?;
        let host_if = attachment::host_interface(invocation, conf);
        let addresses = disconnect(root, &key, &host_if, conf.expedite)?;
        summary.ip = list(&addresses);
        if conf.delegates() {
            call.delegate().and_then(|delegate| delegate.call(Verb::Del))?;
        }
    }
    sweep::after_del(root);
    Ok(())
}

/// Removes everything of the attachment, its address last. `host_if` is the name of the host's end where the state does
/// not say; `expedite` is the configuration's. Returns the addresses that it had. The caller holds the attachment's lock.
pub(crate) fn disconnect(
    root: &Root,
    key: &Key,
    host_if: &str,
    expedite: bool,
) -> Result<Vec<IpAddr>, CniError> {
    let state = add::known_endpoints(root)?;
    let endpoint = state.find(key);
    let host_if = match endpoint {
        Some(endpoint) if !endpoint.host_if_name.is_empty() => &endpoint.host_if_name,
        _ => host_if,
    };
    // The newer sandbox of the same pod has the name: the interface of this one is gone.
    let interface = (!state.is_shared(host_if, key)).then_some(host_if);
    let leases = leased(root, key)?;
    let mut addresses: BTreeSet<IpAddr> = endpoint
        .iter()
        .flat_map(|endpoint| endpoint.addresses())
        .map(|net| net.addr())
        .collect();
    addresses.extend(leases.iter().map(|lease| lease.address));

    let mut failures = Failures::default();
    let datapath = Datapath::open(root);
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
        let forgotten = add::forget_endpoint(root, key, datapath.as_ref());
        failures.note("forgetting the endpoint", forgotten);
    }
    for lease in &leases {
        failures.note(
            "giving the address back to the interface",
            address::put_back(lease),
        );
    }
    failures.into_result()?;
    let addresses: Vec<IpAddr> = addresses.into_iter().collect();
    release(root, key, &addresses)?;
    Ok(addresses)
}

/// For the log.
pub(crate) fn list(addresses: &[IpAddr]) -> String {
    addresses
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(",")
}

/// What the attachment holds. A damaged state that nothing can be rebuilt from holds nothing: whoever mends it by
/// deleting it frees everything.
fn leased(root: &Root, key: &Key) -> Result<Vec<Lease>, CniError> {
    match ipam::leases(root, &attachment::holder(key)) {
        Err(error @ StoreError::Corrupt { .. }) => {
            tracing::warn!(%error, "addresses are not known");
            Ok(Vec::new())
        }
        result => Ok(result?),
    }
}

fn release(root: &Root, key: &Key, addresses: &[IpAddr]) -> Result<(), CniError> {
    match ipam::release(root, PATIENCE, &attachment::holder(key), addresses) {
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
    datapath: Option<&Datapath>,
    addresses: &BTreeSet<IpAddr>,
    interface: Option<&str>,
) -> Result<Vec<IpAddr>, CniError> {
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
    for (address, entry) in datapath.pods()? {
        if index.is_some_and(|index| entry.ifindex == index) {
            found.push(address);
        } else if addresses.contains(&IpAddr::V4(address)) && answers_elsewhere(&entry, &mut netlink)? {
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
