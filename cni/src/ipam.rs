//! `azure-vnet-ipam`, called by itself: addresses for any plug-in that speaks the IPAM part of the specification.

use std::{io, net::IpAddr};

use causeway::{
    attachments::{self, PATIENCE},
    ipam::{
        self, Preference,
        pool::{PoolError, Request},
    },
    links::Netlink,
};
use ipnet::IpNet;
use serde_json::Value;

use crate::{
    Call, address, attachment, del,
    error::{CniError, code},
    netconf::NetConf,
    orphans,
    summary::Summary,
    sweep,
    undo::{Safety, Undo},
};

/// Gives an address and prints the result. If none is free, those whose pods are gone are collected first.
pub(crate) fn add(
    call: &Call<'_>,
    summary: &mut Summary,
    print: impl Fn(&Value) -> io::Result<()>,
) -> Result<(), CniError> {
    orphans::making_room(call.root, || attempt(call, summary, &print))
}

fn attempt(
    call: &Call<'_>,
    summary: &mut Summary,
    print: &impl Fn(&Value) -> io::Result<()>,
) -> Result<(), CniError> {
    let Call { root, conf, .. } = call;
    let holder = attachments::holder(&attachment::key(call.invocation, conf));
    let failed = |step: &'static str| move |error| CniError::from(error).during(step);
    let pools = address::open_ipam(root, conf, &mut Netlink::new()?)?
        .map_err(failed("Failed to parse network configuration"))?;
    let prescribed = prescribed_subnets(conf)?;
    let choice = pools
        .choose(&holder, preference(prescribed, &[]), conf.master.as_deref())
        .map_err(failed("Failed to allocate pool"))?;
    check_subnets(prescribed, &choice.subnets).map_err(|error| error.during("Failed to allocate address"))?;
    address::check_kernel(&choice.subnets)?;
    let held = ipam::leases(root, &holder)?;
    let request = Request {
        addresses: conf.addresses.clone(),
        quarantine: conf.ipam.quarantine,
        network: conf.name.clone(),
        ..Request::default()
    };
    let leases = pools
        .allocate(&choice.subnets, &holder, &request, &|_| false)
        .map_err(failed("Failed to allocate address"))?;
    let addresses: Vec<IpAddr> = leases.iter().map(|lease| lease.address).collect();
    let mut undo = Undo::default();
    if held.is_empty() {
        undo.push("releasing the address", Safety::AfterSuccess, || {
            ipam::release(root, PATIENCE, &holder, &addresses).map(drop)
        });
    }
    summary.ip = del::list(&addresses);
    let mut new = leases.iter().filter(|lease| !held.contains(lease));
    let done = new.try_for_each(|lease| address::take_off(lease, &mut undo));
    let result = address::told(&leases.iter().collect::<Vec<_>>());
    let printed = done
        .and_then(|()| result.to_json(conf.version))
        .and_then(|result| print(&result).map_err(|error| CniError::unprinted(&error)));
    match printed {
        Ok(()) => {
            undo.keep();
            Ok(())
        }
        Err(error) => Err(undo.because_of(error)),
    }
}

/// Takes the address back. None to take back is success.
pub(crate) fn del(call: &Call<'_>, summary: &mut Summary) -> Result<(), CniError> {
    let holder = attachments::holder(&attachment::key(call.invocation, call.conf));
    let failed = |error: CniError| error.during("Failed to release address");
    for lease in ipam::leases(call.root, &holder).unwrap_or_default() {
        attachments::put_back(&lease).map_err(|error| failed(error.into()))?;
    }
    let freed = ipam::release(call.root, PATIENCE, &holder, &[]).map_err(|error| failed(error.into()))?;
    summary.ip = del::list(&freed);
    sweep::leftovers(call.root);
    Ok(())
}

/// `ipam.subnet` of the configuration: none, one, or one of each family.
pub(crate) fn prescribed_subnets(conf: &NetConf) -> Result<&[IpNet], CniError> {
    match (&conf.ipam.subnet, &conf.ipam.settings.subnets[..]) {
        (Some(text), []) => Err(invalid_pool(text)),
        (_, subnets) => Ok(subnets),
    }
}

/// The prescribed subnets and no others, else those that are known.
pub(crate) fn preference<'a>(prescribed: &'a [IpNet], known: &'a [IpNet]) -> Preference<'a> {
    if prescribed.is_empty() {
        Preference::First(known)
    } else {
        Preference::Only(prescribed)
    }
}

/// A prescribed subnet is taken or refused, never replaced.
pub(crate) fn check_subnets(prescribed: &[IpNet], chosen: &[IpNet]) -> Result<(), CniError> {
    match prescribed.iter().find(|subnet| !chosen.contains(subnet)) {
        Some(subnet) => Err(invalid_pool(&subnet.to_string())),
        None => Ok(()),
    }
}

fn invalid_pool(subnet: &str) -> CniError {
    CniError::new(
        code::PLUGIN,
        PoolError::InvalidPool(subnet.to_owned()).to_string(),
    )
    .with_details("ipam.subnet of the network configuration is not a subnet of the address list")
}
