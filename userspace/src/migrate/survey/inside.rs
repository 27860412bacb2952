//! A pod of the state file, looked at from within.

use std::{
    fs::File,
    io,
    net::IpAddr,
    path::{Path, PathBuf},
};

use ipnet::{IpNet, Ipv4Net};

use super::super::{
    MigrateError,
    journal::Pod,
    kernel::{self, Device, Kernel},
};
use crate::endpoints::Endpoint;

/// How a pod is called.
pub(super) fn name(endpoint: &Endpoint) -> String {
    if endpoint.pod.is_empty() {
        endpoint.container_id.clone()
    } else {
        format!("{}/{}", endpoint.namespace, endpoint.pod)
    }
}

/// A pod on the bridge as it is, or why it cannot be taken over.
pub(super) fn look_inside(name: &str, endpoint: &Endpoint, host: &Device) -> Result<Pod, String> {
    let who = format!("pod {name} ({})", host.name);
    let netns = PathBuf::from(endpoint.netns());
    let file = open_netns(&netns).map_err(|error| {
        format!(
            "{who}: its network namespace {:?} cannot be entered: {error}; if the pod is gone, delete its interface",
            netns.display()
        )
    })?;
    let unreadable = |error: MigrateError| format!("{who}: {error}");
    let mut inside = Kernel::inside(&file).map_err(unreadable)?;
    let device = inside.device(&endpoint.if_name).map_err(unreadable)?;
    let Some(device) = device.filter(|device| device.peer == Some(host.index)) else {
        return Err(format!(
            "{who}: {} in the namespace {} is not the other end: the state file is wrong about this pod",
            endpoint.if_name,
            netns.display()
        ));
    };
    let noted: Vec<IpAddr> = endpoint.addresses().iter().map(IpNet::addr).collect();
    let addresses = inside.addresses(device.index).map_err(unreadable)?;
    let own = addresses
        .iter()
        .filter_map(kernel::local)
        .find(|(address, _)| noted.contains(&IpAddr::V4(*address)));
    let Some((address, length)) = own else {
        return Err(format!(
            "{who}: its interface has not the address that the state file says"
        ));
    };
    if inside.has_global_ipv6(device.index).map_err(unreadable)? {
        return Err(format!(
            "{who}: it has an IPv6 address: only IPv4 can be taken over"
        ));
    }
    Ok(Pod {
        name: name.to_owned(),
        container: endpoint.container_id.clone(),
        netns,
        if_name: device.name,
        host_if: host.name.clone(),
        address: Ipv4Net::new(address, length).unwrap_or(address.into()),
        mac: device.mac,
        port: host.port.clone(),
        routes: inside.routes(device.index).map_err(unreadable)?,
    })
}

/// Opens a network namespace, and nothing else of that name.
pub(in crate::migrate) fn open_netns(path: &Path) -> io::Result<File> {
    if !path.is_absolute() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "it is not known where it is",
        ));
    }
    let file = File::open(path)?;
    let kind = rustix::fs::fstatfs(&file)?.f_type;
    if kind == libc::NSFS_MAGIC {
        Ok(file)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no namespace"))
    }
}
