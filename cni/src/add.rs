//! `azure-vnet` ADD: an address, a link, the datapath. In an order that never shows the network a pod that the
//! datapath does not know, and that can be taken back from every point.

use std::{
    collections::BTreeSet,
    fs::File,
    io,
    net::{IpAddr, Ipv4Addr},
    os::fd::AsFd,
};

use causeway::{
    datapath::{Datapath, Pod},
    endpoints::{self, Endpoints, EndpointsError, Key, NewEndpoint, State, UplinkRecord},
    ipam::{
        Ipam, NAMESERVER,
        pool::{Holder, Lease},
        source::LocalNic,
    },
    links::{self, Netlink, PodLink, PodNetwork},
    node::{self, Uplink},
    root::Root,
};
use ipnet::{IpNet, Ipv4Net};
use serde_json::{Value, json};

use crate::{
    attachment::{self, PATIENCE},
    error::{CniError, code},
    invocation::Invocation,
    netconf::{IPAM_KIND, NetConf},
    netns,
    result::{self, Interfaces},
    summary::Summary,
    sweep,
    undo::{Safety, Undo},
};

/// Connects the pod and prints the result.
pub(crate) fn run(
    root: &Root,
    invocation: &Invocation,
    conf: &NetConf,
    summary: &mut Summary,
    print: impl FnOnce(&Value) -> io::Result<()>,
) -> Result<(), CniError> {
    check_ipam_kind(conf)?;
    let netns = netns::open(&invocation.netns, invocation.own_netns_allowed)?;
    let key = attachment::key(invocation, conf);
    let holder = attachment::holder(&key);
    let _alone = attachment::lock(root, &key)?;
    let state = known_endpoints(root)?;
    let mut netlink = Netlink::new()?;
    refuse_existing(&state, &key, &mut netlink)?;

    let nics = local_nics(&mut netlink)?;
    let mut ipam = Ipam::new(root, PATIENCE, &conf.ipam.environment, &nics)
        .map_err(|error| ipam_failure(error, "Failed to allocate pool"))?;
    let (subnet, uplink) = choose_uplink(&mut ipam, &holder, conf, &state, &mut netlink)?;
    let datapath = Datapath::ensure(root, &uplink)?;
    node::enable_forwarding(root)?;
    let host_if = attachment::host_interface(invocation, conf);
    clear_remnants(&datapath, &mut netlink, &host_if)?;
    let busy = answering(&datapath, &mut netlink)?;
    let lease = ipam
        .allocate(&subnet.to_string(), &holder, conf.address, &busy)
        .map_err(|error| ipam_failure(error, "Failed to allocate address"))?;
    summary.ip = lease.address.to_string();

    let pod = Connection {
        root,
        invocation,
        conf,
        key,
        netns,
        uplink,
        datapath,
        host_if,
    };
    let mut undo = Undo::default();
    undo.push("releasing the address", Safety::AfterSuccess, || {
        ipam.release(&holder, &[lease.address]).map(drop)
    });
    let done = pod.make(&lease, &mut undo).and_then(|result| {
        print(&result).map_err(|error| CniError::new(code::IO, format!("cannot print the result: {error}")))
    });
    match done {
        Ok(()) => {
            undo.keep();
            sweep::after_add(&pod.datapath);
            Ok(())
        }
        Err(error) => Err(undo.because_of(error)),
    }
}

/// A pod that has an address and is to get its link.
struct Connection<'a> {
    root: &'a Root,
    invocation: &'a Invocation,
    conf: &'a NetConf,
    key: Key,
    netns: File,
    uplink: Uplink,
    datapath: Datapath,
    host_if: String,
}

impl Connection<'_> {
    /// Makes the link, tells the datapath, notes the endpoint. Returns the result to print.
    fn make<'a>(&'a self, lease: &Lease, undo: &mut Undo<'a>) -> Result<Value, CniError> {
        let Self {
            root,
            invocation,
            conf,
            key,
            uplink,
            datapath,
            host_if,
            ..
        } = self;
        let address = v4(lease.address)?;
        let network = PodNetwork {
            addr: address,
            prefix_len: lease.subnet.prefix_len(),
            if_name: invocation.interface.clone(),
            host_if: host_if.clone(),
            mtu: uplink.mtu,
            mac: conf.mac,
        };
        let pod = |link: &PodLink| Pod {
            addr: address,
            ifindex: link.host_ifindex,
            host_if: host_if.clone(),
            mac: link.mac,
            host_mac: link.host_mac,
            mtu: u16::try_from(uplink.mtu).unwrap_or(u16::MAX),
        };
        // Told while the link is still down: no packet of the pod finds the datapath unprepared.
        let admit = |link: &PodLink| -> Result<(), CniError> {
            undo.push("removing the pod from the datapath", Safety::Always, move || {
                datapath.remove_pod(address).map(drop)
            });
            Ok(datapath.add_pod(&pod(link))?)
        };
        let link = links::connect_pod(self.netns.as_fd(), &network, admit)?;
        undo.push("removing the interface", Safety::Always, || {
            links::disconnect_pod(host_if).map(drop)
        });
        let pod = pod(&link);
        self.note_endpoint(lease, &pod)?;
        undo.push("forgetting the endpoint", Safety::Always, || {
            forget_endpoint(root, key)
        });
        let interfaces = Interfaces {
            name: &invocation.interface,
            mac: link.mac,
            sandbox: &invocation.netns,
            host_name: host_if,
            host_mac: link.host_mac,
        };
        Ok(result::network(conf.version, lease, &interfaces, &self.dns()))
    }

    /// Name servers of the configuration, even an empty list, before those of the network.
    fn dns(&self) -> Value {
        self.conf
            .dns
            .clone()
            .unwrap_or_else(|| json!({ "nameservers": [NAMESERVER] }))
    }

    fn note_endpoint(&self, lease: &Lease, pod: &Pod) -> Result<(), EndpointsError> {
        let subnet = lease.subnet;
        let servers = self.dns();
        let servers = servers["nameservers"].as_array().into_iter().flatten();
        let nameservers: Vec<String> = servers
            .filter_map(|server| Some(server.as_str()?.to_owned()))
            .collect();
        let mut endpoints = Endpoints::open(self.root, PATIENCE)?;
        endpoints.insert(&NewEndpoint {
            key: &self.key,
            uplink: &UplinkRecord {
                name: &self.uplink.name,
                mac: self.uplink.mac,
            },
            host_if: &pod.host_if,
            mac: pod.mac,
            address: IpNet::new(lease.address, subnet.prefix_len()).unwrap_or(subnet),
            subnet,
            gateway: lease.gateway,
            nameservers: &nameservers,
            netns: &self.invocation.netns,
            pod: self.invocation.pod(),
            namespace: self.invocation.namespace(),
        });
        endpoints.save()
    }
}

fn check_ipam_kind(conf: &NetConf) -> Result<(), CniError> {
    if conf.ipam.kind == IPAM_KIND {
        return Ok(());
    }
    let msg = format!(
        "ipam.type {:?} is not supported: set it to {IPAM_KIND:?} in the network configuration",
        conf.ipam.kind
    );
    Err(CniError::new(code::CONFIGURATION, msg))
}

/// A damaged state hinders nobody: it is put aside when the endpoint is noted.
pub(crate) fn known_endpoints(root: &Root) -> Result<State, CniError> {
    match endpoints::snapshot(root) {
        Ok(state) => Ok(state.unwrap_or_default()),
        Err(error @ EndpointsError::Corrupt { .. }) => {
            tracing::warn!(%error, "endpoints of before are not known");
            Ok(State::default())
        }
        Err(error) => Err(error.into()),
    }
}

/// The runtime must not ADD twice without DEL. What is there works for somebody and is left as it is; an endpoint
/// whose interface is gone is replaced.
fn refuse_existing(state: &State, key: &Key, netlink: &mut Netlink) -> Result<(), CniError> {
    match state.find(key) {
        Some(endpoint) if netlink.link(&endpoint.host_if_name)?.is_some() => {
            let details = format!(
                "interface {} of container {}",
                endpoint.host_if_name, key.container
            );
            Err(CniError::new(
                code::INTERNAL,
                "failed to create endpoint: Endpoint already exists",
            )
            .with_details(details))
        }
        _ => Ok(()),
    }
}

/// The node's own interfaces, to match the address list with.
pub(crate) fn local_nics(netlink: &mut Netlink) -> Result<Vec<LocalNic>, CniError> {
    let addresses = netlink.addresses()?;
    let own = |index: u32| {
        let own = addresses.iter().filter(|address| address.ifindex == index);
        own.map(|address| IpAddr::V4(address.addr)).collect()
    };
    let nics = netlink.links()?.into_iter().filter_map(|link| {
        Some(LocalNic {
            mac: link.mac?,
            addresses: own(link.index),
            name: link.name,
        })
    });
    Ok(nics.collect())
}

/// The subnet of the configuration, else that of the network's other pods, else the best; and the interface that
/// carries it.
fn choose_uplink(
    ipam: &mut Ipam<'_>,
    holder: &Holder,
    conf: &NetConf,
    state: &State,
    netlink: &mut Netlink,
) -> Result<(Ipv4Net, Uplink), CniError> {
    let prescribed = crate::ipam::prescribed_subnet(conf)?;
    let preferred = prescribed.or_else(|| state.subnet(&conf.name));
    let master = conf.master.as_deref();
    let (subnet, carrier) = ipam
        .choose(holder, preferred, master)
        .map_err(|error| ipam_failure(error, "Failed to allocate pool"))?;
    crate::ipam::check_subnet(prescribed, subnet).map_err(|error| {
        error.during("Failed to allocate pool: Failed to delegate: Failed to allocate address")
    })?;
    let IpNet::V4(subnet) = subnet else {
        return Err(CniError::new(
            code::CONFIGURATION,
            format!("pool {subnet} is IPv6: only IPv4 pods are supported"),
        ));
    };
    let carrier = (!carrier.is_empty()).then_some(carrier.as_str());
    Ok((
        subnet,
        node::find_uplink(netlink, master.or(carrier), Some(subnet))?,
    ))
}

/// A killed ADD of the same attachment, or the last sandbox of the same pod, may have left the interface.
fn clear_remnants(datapath: &Datapath, netlink: &mut Netlink, host_if: &str) -> Result<(), CniError> {
    let Some(link) = netlink.link(host_if)? else {
        return Ok(());
    };
    tracing::warn!(interface = host_if, "an interface of an earlier ADD is removed");
    for (address, entry) in datapath.pods()? {
        if entry.ifindex == link.index {
            datapath.remove_pod(address)?;
        }
    }
    links::disconnect_pod(host_if)?;
    Ok(())
}

/// Addresses that answer on an interface of the node. With the leases lost they are free in the state file, and must
/// not be given to a second pod all the same.
fn answering(datapath: &Datapath, netlink: &mut Netlink) -> Result<BTreeSet<IpAddr>, CniError> {
    let pods = datapath.pods()?;
    if !pods.iter().any(|(_, entry)| entry.is_ready()) {
        return Ok(BTreeSet::new());
    }
    let interfaces: BTreeSet<u32> = netlink.links()?.iter().map(|link| link.index).collect();
    let live = pods
        .iter()
        .filter(|(_, entry)| entry.is_ready() && interfaces.contains(&entry.ifindex));
    Ok(live.map(|(address, _)| IpAddr::V4(*address)).collect())
}

/// Takes the endpoint out of the state, if it is there.
pub(crate) fn forget_endpoint(root: &Root, key: &Key) -> Result<(), EndpointsError> {
    let mut endpoints = Endpoints::open(root, PATIENCE)?;
    match endpoints.remove(key) {
        Some(_) => endpoints.save(),
        None => Ok(()),
    }
}

fn v4(address: IpAddr) -> Result<Ipv4Addr, CniError> {
    match address {
        IpAddr::V4(address) => Ok(address),
        IpAddr::V6(address) => Err(CniError::new(
            code::PLUGIN,
            format!("address {address} is IPv6: only IPv4 pods are supported"),
        )),
    }
}

/// The incumbent's text: its IPAM is another process.
fn ipam_failure(error: impl Into<CniError>, step: &str) -> CniError {
    error
        .into()
        .during(step)
        .during("Failed to allocate pool: Failed to delegate")
}
