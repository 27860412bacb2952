//! ADD for what is there already. The runtime must not ADD twice without a DEL, but one that was killed, or lost the answer,
//! may not know better: it gets the answer again if it asks for the same, and hears what is different if not. The pod works
//! for somebody, and is left as it is.

use std::{collections::BTreeSet, fs::File, net::IpAddr, os::fd::AsFd as _};

use causeway::{
    attachments,
    endpoints::{Endpoint, Key, State},
    go_json::mac_text,
    ipam::{self, pool::Lease, store, store::StoreError},
    links::{Link, Netlink},
    root::Root,
};
use ipnet::IpNet;

use crate::{
    Call, address, check, del,
    error::{CniError, code},
    result::CniResult,
};

/// The result of the ADD that has made the attachment; `None` if it is to be made. It is if its interface is gone, or if a
/// killed ADD has left it unfinished.
pub(crate) fn answer(
    call: &Call<'_>,
    state: &State,
    key: &Key,
    netns: &File,
    netlink: &mut Netlink,
) -> Result<Option<CniResult>, CniError> {
    let Some(endpoint) = state.find(key) else {
        return Ok(None);
    };
    let Some(host) = netlink.link(&endpoint.host_if_name)? else {
        return Ok(None);
    };
    let foreign = foreign(call, endpoint)?;
    if !foreign.is_empty() {
        return Err(exists(key, &host, &foreign));
    }
    let faults = check::faults(
        call.root,
        endpoint,
        netns.as_fd(),
        &call.invocation.interface,
        (endpoint.addresses(), endpoint.mac()),
    )?;
    if !faults.is_empty() {
        tracing::warn!(
            faults = faults.join("; "),
            "an endpoint is unfinished, and is made anew"
        );
        return Ok(None);
    }
    let mut different = differences(call, endpoint, &host);
    let given = match given(call, endpoint, key)? {
        Ok(given) => given,
        Err(unknown) => {
            different.push(unknown);
            CniResult::default()
        }
    };
    if !different.is_empty() {
        return Err(exists(key, &host, &different));
    }
    tracing::info!(container = key.container, "the pod is connected already");
    Ok(Some(result(call, endpoint, &host, given)))
}

/// Why nothing can be said of the pod, by which it could be known for the one that is asked for.
fn foreign(call: &Call<'_>, endpoint: &Endpoint) -> Result<Vec<String>, CniError> {
    let mut foreign = Vec::new();
    if endpoint.netns() != call.invocation.netns {
        foreign.push(format!("it is in the namespace {:?}", endpoint.netns()));
    }
    if endpoint.addresses().is_empty() {
        foreign.push("no address of it is noted".to_owned());
    }
    if is_theirs(call.root, &endpoint.container_id)? {
        foreign.push("azure-vnet's own plug-in has connected it".to_owned());
    }
    Ok(foreign)
}

/// Whether the incumbent has leased the container's address: its pods are wired otherwise, and that is no fault of theirs.
fn is_theirs(root: &Root, container: &str) -> Result<bool, CniError> {
    let space = match store::snapshot(root) {
        Err(StoreError::Corrupt { .. }) => return Ok(false),
        read => read?,
    };
    let mut held = space.held();
    Ok(held.any(|held| held.holder.container == container && held.network.is_empty()))
}

/// What this call asks for and the pod has otherwise.
fn differences(call: &Call<'_>, endpoint: &Endpoint, host: &Link) -> Vec<String> {
    let conf = call.conf;
    let mut different = Vec::new();
    let own: Vec<IpAddr> = endpoint.addresses().iter().map(IpNet::addr).collect();
    if conf.addresses.iter().any(|wanted| !own.contains(wanted)) {
        let wanted = del::list(&conf.addresses);
        different.push(format!("it has the address {}, not {wanted}", del::list(&own)));
    }
    if let Some((wanted, own)) = conf.mac.zip(endpoint.mac()).filter(|(wanted, own)| wanted != own) {
        different.push(format!(
            "it has the MAC {}, not {}",
            mac_text(own),
            mac_text(wanted)
        ));
    }
    if let Some(wanted) = conf.mtu.filter(|wanted| *wanted < host.mtu) {
        different.push(format!("it has an MTU of {} bytes, not {wanted}", host.mtu));
    }
    let ports = |ports: &[_]| {
        ports
            .iter()
            .map(|port| format!("{port:?}"))
            .collect::<BTreeSet<_>>()
    };
    if ports(&conf.host_ports) != ports(&endpoint.host_ports) {
        different.push("it has other ports of the node".to_owned());
    }
    different
}

/// What the pod's IPAM plug-in gave it, or why that is not known.
fn given(call: &Call<'_>, endpoint: &Endpoint, key: &Key) -> Result<Result<CniResult, String>, CniError> {
    if call.conf.delegates() {
        let noted = endpoint.ipam_result.as_ref();
        let given = noted.and_then(|noted| CniResult::from_json(noted, "").ok());
        return Ok(given.ok_or_else(|| "what its IPAM plug-in gave is not noted".to_owned()));
    }
    let held = match ipam::leases(call.root, &attachments::holder(key)) {
        Err(StoreError::Corrupt { .. }) => Vec::new(),
        leases => leases?,
    };
    let mut leases: Vec<&Lease> = Vec::new();
    for address in endpoint.addresses().iter().map(IpNet::addr) {
        match held.iter().find(|lease| lease.address == address) {
            Some(lease) => leases.push(lease),
            None => return Ok(Err(format!("its address {address} is not leased to it"))),
        }
    }
    Ok(Ok(address::told(&leases)))
}

fn result(call: &Call<'_>, endpoint: &Endpoint, host: &Link, given: CniResult) -> CniResult {
    CniResult::of_pod(
        call,
        &endpoint.host_if_name,
        [endpoint.mac().unwrap_or_default(), host.mac.unwrap_or_default()],
        host.mtu,
        given,
    )
}

fn exists(key: &Key, host: &Link, different: &[String]) -> CniError {
    let details = format!(
        "interface {} of container {}: {}",
        host.name,
        key.container,
        different.join("; ")
    );
    CniError::new(
        code::INTERNAL,
        "failed to create endpoint: Endpoint already exists",
    )
    .with_details(details)
}
