//! `azure-vnet-ipam`, called by itself: addresses for any plug-in that speaks the IPAM part of the specification.

use std::{collections::BTreeSet, io};

use causeway::{
    ipam::{Ipam, NAMESERVER, pool::PoolError},
    links::Netlink,
    root::Root,
};
use ipnet::IpNet;
use serde_json::{Value, json};

use crate::{
    add::local_nics,
    attachment::{self, PATIENCE},
    error::{CniError, code},
    invocation::Invocation,
    netconf::NetConf,
    result,
    summary::Summary,
    undo::{Safety, Undo},
};

/// Gives an address and prints the result.
pub(crate) fn add(
    root: &Root,
    invocation: &Invocation,
    conf: &NetConf,
    summary: &mut Summary,
    print: impl FnOnce(&Value) -> io::Result<()>,
) -> Result<(), CniError> {
    let holder = attachment::holder(&attachment::key(invocation, conf));
    let failed = |step: &'static str| move |error| CniError::from(error).during(step);
    let nics = local_nics(&mut Netlink::new()?)?;
    let mut ipam = Ipam::new(root, PATIENCE, &conf.ipam.environment, &nics)
        .map_err(failed("Failed to parse network configuration"))?;
    let prescribed = prescribed_subnet(conf)?;
    let (subnet, _) = ipam
        .choose(&holder, prescribed, conf.master.as_deref())
        .map_err(failed("Failed to allocate pool"))?;
    check_subnet(prescribed, subnet).map_err(|error| error.during("Failed to allocate address"))?;
    let held = !ipam.leases(&holder)?.is_empty();
    let lease = ipam
        .allocate(&subnet.to_string(), &holder, conf.address, &BTreeSet::new())
        .map_err(failed("Failed to allocate address"))?;
    let mut undo = Undo::default();
    if !held {
        undo.push("releasing the address", Safety::AfterSuccess, || {
            ipam.release(&holder, &[lease.address]).map(drop)
        });
    }
    summary.ip = lease.address.to_string();
    match print(&result::addresses(
        conf.version,
        &lease,
        &json!({ "nameservers": [NAMESERVER] }),
    )) {
        Ok(()) => {
            undo.keep();
            Ok(())
        }
        Err(error) => Err(undo.because_of(CniError::new(
            code::IO,
            format!("cannot print the result: {error}"),
        ))),
    }
}

/// Takes the address back. None to take back is success.
pub(crate) fn del(
    root: &Root,
    invocation: &Invocation,
    conf: &NetConf,
    summary: &mut Summary,
) -> Result<(), CniError> {
    let holder = attachment::holder(&attachment::key(invocation, conf));
    let freed = Ipam::without_source(root, PATIENCE)
        .release(&holder, &[])
        .map_err(|error| CniError::from(error).during("Failed to release address"))?;
    summary.ip = freed
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(",");
    Ok(())
}

/// `ipam.subnet` of the configuration.
pub(crate) fn prescribed_subnet(conf: &NetConf) -> Result<Option<IpNet>, CniError> {
    let Some(text) = &conf.ipam.subnet else {
        return Ok(None);
    };
    match text.parse::<IpNet>() {
        Ok(subnet) => Ok(Some(subnet.trunc())),
        Err(_) => Err(invalid_pool(text)),
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
