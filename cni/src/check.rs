//! `azure-vnet` CHECK: whether everything that ADD made is still there. What later plug-ins of the chain have changed is
//! taken from the result that comes with the call.

use std::{
    net::IpAddr,
    os::fd::{AsFd, BorrowedFd},
};

use causeway::{
    attachments,
    datapath::{Datapath, Pod, PodAddresses},
    endpoints::{self, Endpoint, Key},
    go_json::parse_mac,
    ipam::{self, store},
    links::{self, Expected, Link},
    root::Root,
};
use ipnet::IpNet;

use crate::{
    Call, attachment, del,
    error::{CniError, code},
    invocation::{Invocation, Verb},
    netns,
    result::CniResult,
    summary::Summary,
};

/// Names everything of the pod that is not as it should be.
pub(crate) fn run(call: &Call<'_>, summary: &mut Summary) -> Result<(), CniError> {
    let Call {
        root,
        invocation,
        conf,
        ..
    } = call;
    let previous = required(conf.prev_result.as_ref())?;
    let netns = netns::open(&invocation.netns, invocation.own_netns_allowed)?;
    let key = attachment::key(invocation, conf);
    let state = endpoints::readable(root)?;
    let Some(endpoint) = state.find(&key) else {
        return Err(failure(&[format!(
            "container {} has no endpoint in the state",
            key.container
        )]));
    };
    let (addresses, mac) = told(previous, invocation, endpoint)?;
    let own: Vec<IpAddr> = addresses.iter().map(IpNet::addr).collect();
    summary.ip = del::list(&own);
    let mut wrong = faults(
        root,
        endpoint,
        netns.as_fd(),
        &invocation.interface,
        (addresses, mac),
    )?;
    if conf.delegates() {
        call.delegate()?.call(Verb::Check)?;
    } else {
        wrong.extend(inspect_leases(root, &key, &own)?);
    }
    if wrong.is_empty() {
        Ok(())
    } else {
        Err(failure(&wrong))
    }
}

/// What is wrong with a pod's link, and with what the datapath knows of it. `told` are the addresses, and the MAC if it
/// matters.
pub(crate) fn faults(
    root: &Root,
    endpoint: &Endpoint,
    netns: BorrowedFd<'_>,
    interface: &str,
    (addresses, mac): (Vec<IpNet>, Option<[u8; 6]>),
) -> Result<Vec<String>, CniError> {
    let expected = Expected {
        addresses,
        if_name: interface.to_owned(),
        mac,
        host_if: endpoint.host_if_name.clone(),
    };
    let (host, mut wrong) = links::inspect_pod(netns, &expected)?;
    if let Some(host) = host {
        wrong.extend(inspect_datapath(root, endpoint, &expected.addresses, &host)?);
    }
    Ok(wrong)
}

/// `azure-vnet-ipam` CHECK: whether the addresses are still the attachment's. Those of other subnets than its pools' are of
/// other plug-ins.
pub(crate) fn ipam(call: &Call<'_>, summary: &mut Summary) -> Result<(), CniError> {
    let previous = required(call.conf.prev_result.as_ref())?;
    let key = attachment::key(call.invocation, call.conf);
    let space = store::snapshot(call.root)?;
    let held = space.leases(&attachments::holder(&key));
    let held: Vec<IpAddr> = held.iter().map(|lease| lease.address).collect();
    summary.ip = del::list(&held);
    let told: Vec<IpAddr> = previous.ips.iter().map(|ip| ip.address.addr()).collect();
    if held.is_empty() || told.is_empty() {
        return Err(failure(&[format!(
            "no address of prevResult is leased to container {}",
            key.container
        )]));
    }
    let is_ours = |address: &&IpAddr| space.pools.values().any(|pool| pool.subnet.contains(*address));
    let told: Vec<IpAddr> = told.iter().filter(is_ours).copied().collect();
    let wrong = not_leased(&key, &told, &held);
    if wrong.is_empty() {
        Ok(())
    } else {
        Err(failure(&wrong))
    }
}

fn required(previous: Option<&CniResult>) -> Result<&CniResult, CniError> {
    previous.ok_or_else(|| {
        CniError::new(
            code::CONFIGURATION,
            "Required prevResult missing: CHECK needs the result of ADD",
        )
    })
}

fn failure(wrong: &[String]) -> CniError {
    CniError::new(code::PLUGIN, wrong.join("; "))
}

/// Addresses and MAC of the pod's interface as the final result has them. One that names neither sandbox nor index is of
/// the incumbent.
fn told(
    previous: &CniResult,
    invocation: &Invocation,
    endpoint: &Endpoint,
) -> Result<(Vec<IpNet>, Option<[u8; 6]>), CniError> {
    let named = |sandbox: &str| {
        previous
            .interfaces
            .iter()
            .position(|interface| interface.name == invocation.interface && interface.sandbox == sandbox)
    };
    let Some(index) = named(&invocation.netns).or_else(|| named("")) else {
        let msg = format!(
            "prevResult has no interface {} in {}",
            invocation.interface, invocation.netns
        );
        return Err(failure(&[msg]));
    };
    let of_it = previous
        .ips
        .iter()
        .filter(|ip| ip.interface.is_none_or(|of| of == index));
    let (of_ipv4, of_ipv6): (Vec<IpNet>, Vec<IpNet>) = of_it
        .map(|ip| ip.address)
        .partition(|address| address.addr().is_ipv4());
    let mac = parse_mac(&previous.interfaces[index].mac);
    // Ours is not the first one where another plug-in came before.
    let missing = |what: &str| {
        failure(&[format!(
            "prevResult has no {what} of interface {}",
            invocation.interface
        )])
    };
    let own = endpoint.addresses();
    let (own_ipv4, own_ipv6): (Vec<IpNet>, Vec<IpNet>) =
        own.into_iter().partition(|own| own.addr().is_ipv4());
    // Those that others have added are theirs.
    let mut addresses = if own_ipv4.is_empty() && !own_ipv6.is_empty() {
        Vec::new()
    } else {
        vec![*of_ipv4.last().ok_or_else(|| missing("IPv4 address"))?]
    };
    for own in own_ipv6 {
        if !of_ipv6.contains(&own) {
            return Err(missing(&format!("address {own}")));
        }
        addresses.push(own);
    }
    Ok((addresses, mac))
}

fn inspect_datapath(
    root: &Root,
    endpoint: &Endpoint,
    addresses: &[IpNet],
    host: &Link,
) -> Result<Vec<String>, CniError> {
    let Some(addresses) = PodAddresses::among(addresses) else {
        return Ok(Vec::new());
    };
    let Some(datapath) = Datapath::open(root)? else {
        return Ok(vec![
            "the datapath is not loaded: the next ADD loads it".to_owned(),
        ]);
    };
    let pod = Pod {
        addresses,
        ifindex: host.index,
        host_if: host.name.clone(),
        mac: endpoint.mac().unwrap_or_default(),
        host_mac: host.mac.unwrap_or_default(),
        mtu: 0,
        stack_only: false,
        takes_frames: false,
    };
    Ok(datapath.inspect_pod(&pod)?)
}

fn inspect_leases(root: &Root, key: &Key, addresses: &[IpAddr]) -> Result<Vec<String>, CniError> {
    let held = ipam::leases(root, &attachments::holder(key))?;
    let held: Vec<IpAddr> = held.iter().map(|lease| lease.address).collect();
    Ok(not_leased(key, addresses, &held))
}

/// The addresses that are not among those `held`, each by its name.
fn not_leased(key: &Key, addresses: &[IpAddr], held: &[IpAddr]) -> Vec<String> {
    let missing = addresses.iter().filter(|address| !held.contains(address));
    let container = &key.container;
    missing
        .map(|address| format!("the address {address} is not leased to container {container}"))
        .collect()
}
