//! Where a pod's address comes from: the addresses of this node, or another IPAM plug-in. And the uplink that goes
//! with it.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
};

use causeway::{
    apiserver,
    attachments::{self, PATIENCE},
    datapath::Datapath,
    endpoints::{Key, State},
    ipam::{
        self, Ipam, IpamError, NAMESERVER,
        pool::{Holder, Lease, Request},
        source::LocalNic,
    },
    links::{self, Address, Link, Netlink},
    node::{self, Uplink},
    root::Root,
};
use ipnet::{IpNet, Ipv4Net};
use serde_json::{Value, json};

use crate::{
    Call,
    delegate::Delegate,
    error::{CniError, code},
    invocation::Verb,
    netconf::{IPAM_KIND, NetConf},
    result::Route,
    undo::{Safety, Undo},
};

/// An address, and what it needs to be used.
pub(crate) struct Ground {
    /// The address with its subnet's mask.
    pub(crate) address: Ipv4Net,
    /// The subnet's gateway, for the result: the pod itself goes by another one.
    pub(crate) gateway: Option<IpAddr>,
    pub(crate) routes: Vec<Route>,
    pub(crate) dns: Value,
    pub(crate) uplink: Uplink,
    pub(crate) datapath: Datapath,
}

/// Whom the address is for.
pub(crate) struct Applicant<'a> {
    pub(crate) key: &'a Key,
    pub(crate) host_if: &'a str,
    /// Endpoints that are there already.
    pub(crate) state: &'a State,
}

impl Ground {
    /// Gets an address, and the datapath ready on the uplink. `undo` learns how to give it back.
    pub(crate) fn obtain<'a>(
        call: &'a Call<'a>,
        applicant: &Applicant<'_>,
        netlink: &mut Netlink,
        undo: &mut Undo<'a>,
    ) -> Result<Self, CniError> {
        if call.conf.ipam.kind == IPAM_KIND {
            Self::own(call, applicant, netlink, undo)
        } else {
            Self::delegated(call, applicant, netlink, undo)
        }
    }

    fn own<'a>(
        call: &'a Call<'a>,
        applicant: &Applicant<'_>,
        netlink: &mut Netlink,
        undo: &mut Undo<'a>,
    ) -> Result<Self, CniError> {
        let Call { root, conf, .. } = call;
        refuse_ipv6(conf)?;
        let holder = attachments::holder(applicant.key);
        let ipam = open_ipam(root, conf, netlink)?
            .map_err(|error| ipam_failure(error, "Failed to allocate pool"))?;
        let (subnet, uplink) = choose_uplink(&ipam, &holder, conf, applicant.state, netlink)?;
        let datapath = prepare(call, &uplink, netlink, applicant.host_if)?;
        let request = Request {
            address: conf.address,
            quarantine: conf.ipam.quarantine,
            network: conf.name.clone(),
            host_if: applicant.host_if.to_owned(),
            now: 0,
        };
        let lease = ipam
            .allocate(&subnet.to_string(), &holder, &request, &|address| {
                answers(&datapath, address)
            })
            .map_err(|error| ipam_failure(error, "Failed to allocate address"))?;
        undo.push("releasing the address", Safety::AfterSuccess, {
            let address = lease.address;
            move || ipam::release(root, PATIENCE, &holder, &[address]).map(drop)
        });
        let address = v4(lease.address)?;
        let address = Ipv4Net::new(address, lease.subnet.prefix_len()).unwrap_or(address.into());
        take_off(&lease, address, undo)?;
        Ok(Self {
            address,
            gateway: Some(lease.gateway),
            routes: vec![Route::default_by(lease.gateway)],
            dns: json!({ "nameservers": [NAMESERVER] }),
            uplink,
            datapath,
        })
    }

    fn delegated<'a>(
        call: &'a Call<'a>,
        applicant: &Applicant<'_>,
        netlink: &mut Netlink,
        undo: &mut Undo<'a>,
    ) -> Result<Self, CniError> {
        let conf = call.conf;
        let delegate = call.delegate()?;
        let given = delegate.add()?;
        undo.push("the DEL of the IPAM plug-in", Safety::AfterSuccess, move || {
            delegate.call(Verb::Del).map_err(|error| error.msg)
        });
        let [ip] = &given.ips[..] else {
            let msg = format!(
                "the IPAM plug-in {:?} gave {} addresses: a pod's interface has one, of IPv4",
                conf.ipam.kind,
                given.ips.len()
            );
            return Err(CniError::new(code::PLUGIN, msg));
        };
        let IpNet::V4(address) = ip.address else {
            return Err(is_ipv6(&ip.address));
        };
        let uplink = node::find_uplink(netlink, conf.master.as_deref(), Some(address.trunc()))?;
        let datapath = prepare(call, &uplink, netlink, applicant.host_if)?;
        if answers(&datapath, address.addr().into()) {
            let msg = format!(
                "the IPAM plug-in {:?} gave {}, to which another pod of this node answers",
                conf.ipam.kind,
                address.addr()
            );
            return Err(CniError::new(code::PLUGIN, msg));
        }
        let gateway = ip.gateway;
        let mut routes = given.routes;
        if !routes.iter().any(|route| route.to.prefix_len() == 0) {
            // The pod has one, whatever the plug-in said.
            routes.extend(gateway.map(Route::default_by));
        }
        Ok(Self {
            address,
            gateway,
            routes,
            dns: given.dns,
            uplink,
            datapath,
        })
    }
}

fn refuse_ipv6(conf: &NetConf) -> Result<(), CniError> {
    let Some(asked @ IpAddr::V6(_)) = conf.address else {
        return Ok(());
    };
    let msg = format!(
        "failed to allocate the requested address {asked}: it is IPv6, and pods get IPv4 addresses; ask for one of the \
         address list, or for none"
    );
    let places = "ips in runtimeConfig or args.cni, IP in CNI_ARGS, ipam.ipAddress";
    Err(CniError::new(code::CONFIGURATION, msg).with_details(places))
}

impl<'a> Call<'a> {
    /// The IPAM plug-in that the configuration names, if it is another's.
    pub(crate) fn delegate(&'a self) -> Result<Delegate<'a>, CniError> {
        Delegate::find(&self.conf.ipam.kind, &self.invocation.path, self.bytes)
    }
}

/// The addresses of this node. Most nodes have many interfaces, those of pods, and few with an address: only if the list
/// means one without are all looked at.
pub(crate) fn open_ipam<'a>(
    root: &'a Root,
    conf: &NetConf,
    netlink: &mut Netlink,
) -> Result<Result<Ipam<'a>, IpamError>, CniError> {
    let ipam = Ipam::new(root, PATIENCE, &conf.ipam.settings, &local_nics(netlink)?);
    if !ipam.as_ref().is_ok_and(Ipam::misses_an_interface) {
        return Ok(ipam);
    }
    let links = netlink.links()?;
    Ok(Ipam::new(
        root,
        PATIENCE,
        &conf.ipam.settings,
        &nics_of(links, &netlink.addresses()?),
    ))
}

/// The node's interfaces that have an address, to match the address list with.
pub(crate) fn local_nics(netlink: &mut Netlink) -> Result<Vec<LocalNic>, CniError> {
    let addresses = netlink.addresses()?;
    let indices: BTreeSet<u32> = addresses.iter().map(|address| address.ifindex).collect();
    let mut links = Vec::new();
    for index in indices {
        links.extend(netlink.link_by_index(index)?);
    }
    Ok(nics_of(links, &addresses))
}

/// Those of the interfaces that are Ethernet, with their addresses.
pub(crate) fn nics_of(links: Vec<Link>, addresses: &[Address]) -> Vec<LocalNic> {
    let of = |index: u32| addresses.iter().filter(move |address| address.ifindex == index);
    let net = |address: &Address| Some(IpNet::V4(Ipv4Net::new(address.addr, address.prefix_len).ok()?));
    let nics = links.into_iter().filter_map(|link| {
        Some(LocalNic {
            mac: link.mac?,
            addresses: of(link.index).map(|address| address.addr.into()).collect(),
            secondary: of(link.index)
                .filter(|address| address.is_secondary)
                .filter_map(net)
                .collect(),
            name: link.name,
        })
    });
    nics.collect()
}

/// The subnet of the configuration, else that of the network's other pods, else the best; and the interface that
/// carries it.
fn choose_uplink(
    ipam: &Ipam<'_>,
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
        return Err(is_ipv6(&subnet));
    };
    let carrier = (!carrier.is_empty()).then_some(carrier.as_str());
    Ok((
        subnet,
        node::find_uplink(netlink, master.or(carrier), Some(subnet))?,
    ))
}

fn prepare(
    call: &Call<'_>,
    uplink: &Uplink,
    netlink: &mut Netlink,
    host_if: &str,
) -> Result<Datapath, CniError> {
    let datapath = Datapath::ensure(call.root, uplink, call.conf.expedite)?;
    if let Some(wanted) = call.conf.uplink_xdp {
        datapath.set_xdp(uplink, wanted)?;
    }
    if let Some((document, server)) = &call.conf.api_server {
        apiserver::conflist::follow(call.root, &datapath, document, server)?;
    }
    node::enable_forwarding(call.root)?;
    clear_remnants(&datapath, netlink, host_if)?;
    Ok(datapath)
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

/// Whether the address answers on an interface of the node. With the leases lost it is free in the state file, and must
/// not be given to a second pod all the same. One of which that cannot be told is not given either.
fn answers(datapath: &Datapath, address: IpAddr) -> bool {
    let IpAddr::V4(address) = address else {
        return false;
    };
    let live = || -> Result<bool, CniError> {
        match datapath.pod(address)? {
            Some(entry) if entry.is_ready() => Ok(Netlink::new()?.link_by_index(entry.ifindex)?.is_some()),
            _ => Ok(false),
        }
    };
    live().unwrap_or_else(|error| {
        tracing::warn!(%address, error = error.msg, "cannot tell whether an address answers");
        true
    })
}

/// An address that the uplink carries itself is the node's until it is taken off.
pub(crate) fn take_off(lease: &Lease, address: Ipv4Net, undo: &mut Undo<'_>) -> Result<(), CniError> {
    if !lease.on_interface {
        return Ok(());
    }
    links::take_address(&lease.uplink, address)?;
    let uplink = lease.uplink.clone();
    undo.push(
        "giving the address back to the interface",
        Safety::Always,
        move || links::put_address(&uplink, address),
    );
    Ok(())
}

fn v4(address: IpAddr) -> Result<Ipv4Addr, CniError> {
    match address {
        IpAddr::V4(address) => Ok(address),
        IpAddr::V6(address) => Err(is_ipv6(&address)),
    }
}

fn is_ipv6(what: &dyn std::fmt::Display) -> CniError {
    CniError::new(
        code::PLUGIN,
        format!("{what} is IPv6: only IPv4 pods are supported"),
    )
}

/// The incumbent's text: its IPAM is another process.
fn ipam_failure(error: impl Into<CniError>, step: &str) -> CniError {
    error
        .into()
        .during(step)
        .during("Failed to allocate pool: Failed to delegate")
}
