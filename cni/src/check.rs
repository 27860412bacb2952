//! `azure-vnet` CHECK: whether everything that ADD made is still there. What later plug-ins of the chain have changed is
//! taken from the result that comes with the call.

use std::{
    net::IpAddr,
    os::fd::{AsFd, BorrowedFd},
};

use causeway::{
    attachments,
    datapath::{Datapath, Pod},
    endpoints::{self, Endpoint, Key},
    go_json::parse_mac,
    ipam,
    links::{self, Expected, Link},
    root::Root,
};
use ipnet::{IpNet, Ipv4Net};

use crate::{
    Call, attachment,
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
    let (address, mac) = told(previous, invocation)?;
    summary.ip = address.addr().to_string();
    let mut wrong = faults(
        root,
        endpoint,
        netns.as_fd(),
        &invocation.interface,
        (address, mac),
    )?;
    if conf.delegates() {
        call.delegate()?.call(Verb::Check)?;
    } else {
        wrong.extend(inspect_lease(root, &key, address.addr().into())?);
    }
    if wrong.is_empty() {
        Ok(())
    } else {
        Err(failure(&wrong))
    }
}

/// What is wrong with a pod's link, and with what the datapath knows of it. `told` is the address, and the MAC if it
/// matters.
pub(crate) fn faults(
    root: &Root,
    endpoint: &Endpoint,
    netns: BorrowedFd<'_>,
    interface: &str,
    told: (Ipv4Net, Option<[u8; 6]>),
) -> Result<Vec<String>, CniError> {
    let expected = Expected {
        addr: told.0,
        if_name: interface.to_owned(),
        mac: told.1,
        host_if: endpoint.host_if_name.clone(),
    };
    let (host, mut wrong) = links::inspect_pod(netns, &expected)?;
    if let Some(host) = host {
        wrong.extend(inspect_datapath(root, endpoint, told.0, &host)?);
    }
    Ok(wrong)
}

/// `azure-vnet-ipam` CHECK: whether the address is still the attachment's.
pub(crate) fn ipam(call: &Call<'_>, summary: &mut Summary) -> Result<(), CniError> {
    let previous = required(call.conf.prev_result.as_ref())?;
    let key = attachment::key(call.invocation, call.conf);
    let held = ipam::leases(call.root, &attachments::holder(&key))?;
    let is_held = held
        .iter()
        .any(|lease| previous.ips.iter().any(|ip| ip.address.addr() == lease.address));
    summary.ip = held
        .iter()
        .map(|lease| lease.address.to_string())
        .collect::<Vec<_>>()
        .join(",");
    if is_held {
        return Ok(());
    }
    Err(failure(&[format!(
        "no address of prevResult is leased to container {}",
        key.container
    )]))
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

/// Address and MAC of the pod's interface as the final result has them. One that names neither sandbox nor index is of
/// the incumbent.
fn told(previous: &CniResult, invocation: &Invocation) -> Result<(Ipv4Net, Option<[u8; 6]>), CniError> {
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
    let mut address = of_it.filter_map(|ip| match ip.address {
        IpNet::V4(address) => Some(address),
        IpNet::V6(_) => None,
    });
    let mac = parse_mac(&previous.interfaces[index].mac);
    // Ours is not the first one where another plug-in came before.
    let missing = || {
        failure(&[format!(
            "prevResult has no IPv4 address of interface {}",
            invocation.interface
        )])
    };
    Ok((address.next_back().ok_or_else(missing)?, mac))
}

fn inspect_datapath(
    root: &Root,
    endpoint: &Endpoint,
    address: Ipv4Net,
    host: &Link,
) -> Result<Vec<String>, CniError> {
    let Some(datapath) = Datapath::open(root)? else {
        return Ok(vec![
            "the datapath is not loaded: the next ADD loads it".to_owned(),
        ]);
    };
    let pod = Pod {
        addr: address.addr(),
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

fn inspect_lease(root: &Root, key: &Key, address: IpAddr) -> Result<Option<String>, CniError> {
    let held = ipam::leases(root, &attachments::holder(key))?;
    let is_held = held.iter().any(|lease| lease.address == address);
    let missing = || {
        format!(
            "the address {address} is not leased to container {}",
            key.container
        )
    };
    Ok((!is_held).then(missing))
}
