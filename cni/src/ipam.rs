//! `azure-vnet-ipam`, called by itself: addresses for any plug-in that speaks the IPAM part of the specification.

use std::{io, net::IpAddr};

use causeway::{
    attachments::{self, PATIENCE},
    ipam::{
        self, NAMESERVER,
        pool::{PoolError, Request},
    },
    links::Netlink,
};
use ipnet::{IpNet, Ipv4Net};
use serde_json::{Value, json};

use crate::{
    Call, address, attachment, del,
    error::{CniError, code},
    netconf::NetConf,
    orphans,
    result::{CniResult, Ip, Route},
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
    let prescribed = prescribed_subnet(conf)?;
    let (subnet, _) = pools
        .choose(&holder, prescribed, conf.master.as_deref())
        .map_err(failed("Failed to allocate pool"))?;
    check_subnet(prescribed, subnet).map_err(|error| error.during("Failed to allocate address"))?;
    let held = !ipam::leases(root, &holder)?.is_empty();
    let request = Request {
        address: conf.address,
        quarantine: conf.ipam.quarantine,
        network: conf.name.clone(),
        ..Request::default()
    };
    let lease = pools
        .allocate(&subnet.to_string(), &holder, &request, &|_| false)
        .map_err(failed("Failed to allocate address"))?;
    let mut undo = Undo::default();
    if !held {
        undo.push("releasing the address", Safety::AfterSuccess, || {
            ipam::release(root, PATIENCE, &holder, &[lease.address]).map(drop)
        });
    }
    summary.ip = lease.address.to_string();
    let done = match lease.address {
        IpAddr::V4(address) if !held => {
            let address = Ipv4Net::new(address, lease.subnet.prefix_len()).unwrap_or(address.into());
            address::take_off(&lease, address, &mut undo)
        }
        _ => Ok(()),
    };
    let result = CniResult {
        interfaces: Vec::new(),
        ips: vec![Ip {
            address: IpNet::new(lease.address, lease.subnet.prefix_len()).unwrap_or(lease.subnet),
            gateway: Some(lease.gateway),
            interface: None,
        }],
        routes: vec![Route::default_by(lease.gateway)],
        dns: json!({ "nameservers": [NAMESERVER] }),
    };
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

/// `ipam.subnet` of the configuration.
pub(crate) fn prescribed_subnet(conf: &NetConf) -> Result<Option<IpNet>, CniError> {
    match (&conf.ipam.subnet, conf.ipam.settings.subnet) {
        (Some(text), None) => Err(invalid_pool(text)),
        (_, subnet) => Ok(subnet),
    }
}

/// A prescribed subnet is taken or refused, never replaced.
pub(crate) fn check_subnet(prescribed: Option<IpNet>, chosen: IpNet) -> Result<(), CniError> {
    match prescribed {
        Some(prescribed) if prescribed != chosen => Err(invalid_pool(&prescribed.to_string())),
        _ => Ok(()),
    }
}

fn invalid_pool(subnet: &str) -> CniError {
    CniError::new(
        code::PLUGIN,
        PoolError::InvalidPool(subnet.to_owned()).to_string(),
    )
    .with_details("ipam.subnet of the network configuration is not a subnet of the address list")
}
