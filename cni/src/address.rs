//! Where a pod's addresses come from: the addresses of this node, or another IPAM plug-in. And the uplink that goes
//! with it.

use std::{collections::BTreeSet, net::IpAddr};

use causeway::{
    apiserver,
    attachments::{self, PATIENCE},
    datapath::{Datapath, PodAddresses},
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
use ipnet::IpNet;
use serde_json::{Value, json};

use crate::{
    Call,
    delegate::Delegate,
    error::{CniError, code},
    invocation::Verb,
    netconf::{IPAM_KIND, NetConf},
    result::{CniResult, Ip, Route},
    undo::{Safety, Undo},
};

/// Addresses, and what they need to be used.
pub(crate) struct Ground {
    /// The addresses that the datapath knows the pod by.
    pub(crate) served: PodAddresses,
    /// Every address, that of IPv4 first, with its subnet's gateway for the result: the pod itself goes by another one.
    pub(crate) ips: Vec<Ip>,
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
    /// Every address with its subnet's mask.
    pub(crate) fn addresses(&self) -> Vec<IpNet> {
        self.ips.iter().map(|ip| ip.address).collect()
    }

    /// Addresses, routes and name service for the result.
    pub(crate) fn told(&self) -> CniResult {
        let alone = |ip: &Ip| Ip {
            interface: None,
            ..ip.clone()
        };
        CniResult {
            interfaces: Vec::new(),
            ips: self.ips.iter().map(alone).collect(),
            routes: self.routes.clone(),
            dns: self.dns.clone(),
        }
    }

    /// The gateway to note for a family, if there is an address of it.
    pub(crate) fn gateway(&self, is_ipv4: bool) -> Option<IpAddr> {
        let mut of_family = self
            .ips
            .iter()
            .filter(|ip| ip.address.addr().is_ipv4() == is_ipv4);
        let own = if is_ipv4 {
            links::GATEWAY.into()
        } else {
            links::GATEWAY_V6.into()
        };
        of_family.next().map(|ip| ip.gateway.unwrap_or(own))
    }

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
        let holder = attachments::holder(applicant.key);
        let ipam = open_ipam(root, conf, netlink)?
            .map_err(|error| ipam_failure(error, "Failed to allocate pool"))?;
        let (subnets, uplink) = choose_uplink(&ipam, &holder, conf, applicant.state, netlink)?;
        let has_ipv6 = subnets.iter().any(|subnet| subnet.addr().is_ipv6());
        let datapath = prepare(call, &uplink, netlink, applicant.host_if, has_ipv6)?;
        let request = Request {
            addresses: conf.addresses.clone(),
            quarantine: conf.ipam.quarantine,
            network: conf.name.clone(),
            host_if: applicant.host_if.to_owned(),
            now: 0,
        };
        let leases = ipam
            .allocate(&subnets, &holder, &request, &|address| {
                answers(&datapath, address)
            })
            .map_err(|error| ipam_failure(error, "Failed to allocate address"))?;
        undo.push("releasing the address", Safety::AfterSuccess, {
            let addresses: Vec<IpAddr> = leases.iter().map(|lease| lease.address).collect();
            move || ipam::release(root, PATIENCE, &holder, &addresses).map(drop)
        });
        for lease in &leases {
            take_off(lease, undo)?;
        }
        let CniResult { ips, routes, dns, .. } = told(&leases.iter().collect::<Vec<_>>());
        Ok(Self {
            served: served(&conf.ipam.kind, &ips)?,
            ips,
            routes,
            dns,
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
        let served = served(&conf.ipam.kind, &given.ips)?;
        let (of_ipv4, of_ipv6): (Vec<Ip>, Vec<Ip>) =
            given.ips.into_iter().partition(|ip| ip.address.addr().is_ipv4());
        let has_ipv6 = !of_ipv6.is_empty();
        let ips = [of_ipv4, of_ipv6].concat();
        let subnet = ips.first().map(|ip| ip.address.trunc());
        check_kernel(subnet.as_slice())?;
        let uplink = node::find_uplink(netlink, conf.master.as_deref(), subnet)?;
        let datapath = prepare(call, &uplink, netlink, applicant.host_if, has_ipv6)?;
        let mut routes = given.routes;
        for ip in &ips {
            let own = ip.address.addr();
            if answers(&datapath, own) {
                let msg = format!(
                    "the IPAM plug-in {:?} gave {own}, to which another pod of this node answers",
                    conf.ipam.kind
                );
                return Err(CniError::new(code::PLUGIN, msg));
            }
            let is_default =
                |route: &Route| route.to.prefix_len() == 0 && route.to.addr().is_ipv4() == own.is_ipv4();
            if !routes.iter().any(is_default) {
                // The pod has one, whatever the plug-in said.
                routes.extend(ip.gateway.map(Route::default_by));
            }
        }
        Ok(Self {
            served,
            ips,
            routes,
            dns: given.dns,
            uplink,
            datapath,
        })
    }
}

/// What a result says of leases. The name server has an address of IPv4 alone: a pod without one does not reach it.
pub(crate) fn told(leases: &[&Lease]) -> CniResult {
    let ip = |lease: &&Lease| Ip {
        address: lease.net(),
        gateway: Some(lease.gateway),
        interface: None,
    };
    CniResult {
        interfaces: Vec::new(),
        ips: leases.iter().map(ip).collect(),
        routes: leases
            .iter()
            .map(|lease| Route::default_by(lease.gateway))
            .collect(),
        dns: if leases.iter().any(|lease| lease.address.is_ipv4()) {
            json!({ "nameservers": [NAMESERVER] })
        } else {
            Value::Null
        },
    }
}

/// The addresses that the datapath is to know the pod by, among those that the IPAM plug-in gave: without one it would look at
/// nothing that the pod sends.
fn served(kind: &str, ips: &[Ip]) -> Result<PodAddresses, CniError> {
    let refused = |problem: &str| {
        let msg = format!("the IPAM plug-in {kind:?} gave {problem}");
        Err(CniError::new(code::PLUGIN, msg))
    };
    let addresses: Vec<IpNet> = ips.iter().map(|ip| ip.address).collect();
    let of_ipv4 = addresses.iter().filter(|net| net.addr().is_ipv4()).count();
    if of_ipv4 > 1 {
        return refused(&format!("{of_ipv4} addresses of IPv4: a pod's interface has one"));
    }
    match PodAddresses::among(&addresses) {
        Some(served) => Ok(served),
        None if addresses.is_empty() => refused("no address"),
        None => refused(&format!(
            "{} addresses of IPv6 and none of IPv4: without that a pod's interface has one",
            addresses.len()
        )),
    }
}

/// A pod that has IPv6 alone is nothing to a kernel without it. `subnets` are those of its addresses, that of IPv4 first.
pub(crate) fn check_kernel(subnets: &[IpNet]) -> Result<(), CniError> {
    match subnets.first() {
        Some(subnet @ IpNet::V6(_)) if !node::has_ipv6() => {
            let msg = format!(
                "{subnet} is IPv6, and the kernel of this node speaks IPv4 alone: start it with IPv6 \
                 (without \"ipv6.disable=1\"), or give pods addresses of IPv4"
            );
            Err(CniError::new(code::PLUGIN, msg))
        }
        _ => Ok(()),
    }
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
        &nics_of(links, &netlink.all_addresses()?),
    ))
}

/// The node's interfaces that have an address, to match the address list with.
pub(crate) fn local_nics(netlink: &mut Netlink) -> Result<Vec<LocalNic>, CniError> {
    let addresses = netlink.all_addresses()?;
    // Every interface has an address of IPv6: what counts is one that others can reach.
    let counting = addresses.iter().filter(|address| counts(address));
    let indices: BTreeSet<u32> = counting.map(|address| address.ifindex).collect();
    let mut links = Vec::new();
    for index in indices {
        links.extend(netlink.link_by_index(index)?);
    }
    Ok(nics_of(links, &addresses))
}

/// Those of the interfaces that are Ethernet, with their addresses.
pub(crate) fn nics_of(links: Vec<Link>, addresses: &[Address<IpAddr>]) -> Vec<LocalNic> {
    let of = |index: u32| {
        let counting = addresses.iter().filter(|address| counts(address));
        counting.filter(move |address| address.ifindex == index)
    };
    let nics = links.into_iter().filter_map(|link| {
        Some(LocalNic {
            mac: link.mac?,
            addresses: of(link.index).map(|address| address.addr).collect(),
            secondary: of(link.index)
                .filter(|address| address.is_secondary)
                .filter_map(|address| IpNet::new(address.addr, address.prefix_len).ok())
                .collect(),
            name: link.name,
        })
    });
    nics.collect()
}

fn counts(address: &Address<IpAddr>) -> bool {
    (address.addr.is_ipv4() || address.is_global) && !address.addr.is_loopback()
}

/// The subnets of the configuration, else those of the network's other pods, else the best; and the interface that
/// carries them.
fn choose_uplink(
    ipam: &Ipam<'_>,
    holder: &Holder,
    conf: &NetConf,
    state: &State,
    netlink: &mut Netlink,
) -> Result<(Vec<IpNet>, Uplink), CniError> {
    let prescribed = crate::ipam::prescribed_subnets(conf)?;
    let known = state.subnets(&conf.name);
    let master = conf.master.as_deref();
    let choice = ipam
        .choose(holder, crate::ipam::preference(prescribed, &known), master)
        .map_err(|error| ipam_failure(error, "Failed to allocate pool"))?;
    crate::ipam::check_subnets(prescribed, &choice.subnets).map_err(|error| {
        error.during("Failed to allocate pool: Failed to delegate: Failed to allocate address")
    })?;
    let mut subnets = choice.subnets;
    check_kernel(&subnets)?;
    if subnets.len() > 1 && !node::has_ipv6() {
        tracing::warn!("the address list has a subnet of IPv6, but the kernel speaks IPv4 alone");
        subnets.truncate(1);
    }
    let carrier = (!choice.carrier.is_empty()).then_some(choice.carrier.as_str());
    let first = subnets.first().copied();
    let on_link = first.filter(|_| !conf.ipam.settings.has_routed_subnets());
    Ok((subnets, node::find_uplink(netlink, master.or(carrier), on_link)?))
}

fn prepare(
    call: &Call<'_>,
    uplink: &Uplink,
    netlink: &mut Netlink,
    host_if: &str,
    has_ipv6: bool,
) -> Result<Datapath, CniError> {
    let datapath = Datapath::ensure(call.root, uplink, call.conf.expedite)?;
    if let Some(wanted) = call.conf.uplink_xdp {
        datapath.set_xdp(uplink, wanted)?;
    }
    if let Some((document, server)) = &call.conf.api_server {
        apiserver::conflist::follow(call.root, &datapath, document, server)?;
    }
    node::enable_forwarding(call.root)?;
    if has_ipv6 {
        node::enable_forwarding_v6(call.root)?;
    }
    clear_remnants(&datapath, netlink, host_if)?;
    Ok(datapath)
}

/// A killed ADD of the same attachment, or the last sandbox of the same pod, may have left the interface.
fn clear_remnants(datapath: &Datapath, netlink: &mut Netlink, host_if: &str) -> Result<(), CniError> {
    let Some(link) = netlink.link(host_if)? else {
        return Ok(());
    };
    tracing::warn!(interface = host_if, "an interface of an earlier ADD is removed");
    for (address, entry) in datapath.addresses()? {
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
    let live = || -> Result<bool, CniError> {
        let IpAddr::V4(address) = address else {
            return Ok(Netlink::new()?.leads_to_pod(address)?);
        };
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
pub(crate) fn take_off(lease: &Lease, undo: &mut Undo<'_>) -> Result<(), CniError> {
    if !lease.on_interface {
        return Ok(());
    }
    let (uplink, address) = (lease.uplink.clone(), lease.net());
    links::take_address(&uplink, address)?;
    undo.push(
        "giving the address back to the interface",
        Safety::Always,
        move || links::put_address(&uplink, address),
    );
    Ok(())
}

/// The incumbent's text: its IPAM is another process.
fn ipam_failure(error: impl Into<CniError>, step: &str) -> CniError {
    error
        .into()
        .during(step)
        .during("Failed to allocate pool: Failed to delegate")
}
