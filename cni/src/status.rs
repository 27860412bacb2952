//! STATUS: whether an ADD would work now, and whether the pods that are there are served. Reads only, takes no lock and
//! asks nobody outside the node: runtimes call it every few seconds.

use causeway::{
    datapath::{Datapath, HookState},
    endpoints,
    ipam::{
        self,
        pool::{Holder, Pool, Space},
        source::{self, LocalNic, SourceError},
        store,
    },
    links::Netlink,
    node,
    root::Root,
};
use ipnet::IpNet;

use crate::{
    Call,
    address::{local_nics, nics_of},
    error::{CniError, code},
    invocation::Verb,
    ipam::prescribed_subnets,
};

/// `azure-vnet`.
pub(crate) fn run(call: &Call<'_>) -> Result<(), CniError> {
    inspect_pods(call.root)?;
    let mut netlink = Netlink::new().map_err(not_available)?;
    if call.conf.delegates() {
        call.delegate().and_then(|delegate| delegate.call(Verb::Status))?;
        node::find_uplink(&mut netlink, call.conf.master.as_deref(), None).map_err(not_available)?;
        return Ok(());
    }
    let (subnet, carrier) = inspect_addresses(call, &mut netlink)?;
    let IpNet::V4(subnet) = subnet else {
        return Err(unavailable(format!(
            "pool {subnet} is IPv6: a pod has an address of IPv4, and those of IPv6 beside it"
        )));
    };
    let carrier = (!carrier.is_empty()).then_some(carrier.as_str());
    let master = call.conf.master.as_deref();
    let on_link = (!call.conf.ipam.settings.has_routed_subnets()).then_some(subnet);
    node::find_uplink(&mut netlink, master.or(carrier), on_link).map_err(not_available)?;
    Ok(())
}

/// `azure-vnet-ipam`.
pub(crate) fn ipam(call: &Call<'_>) -> Result<(), CniError> {
    let mut netlink = Netlink::new().map_err(not_available)?;
    inspect_addresses(call, &mut netlink).map(drop)
}

/// The datapath is loaded by the first ADD: that it is not there is a fault only if there are pods.
fn inspect_pods(root: &Root) -> Result<(), CniError> {
    let datapath = Datapath::open(root).map_err(not_available)?;
    let wrong: Vec<String> = if let Some(datapath) = &datapath {
        let mut hooks = datapath.hooks().map_err(not_available)?;
        // Of a pod whose interface is gone, nobody is cut off.
        hooks.retain(|hook| hook.interface.is_some());
        hooks.iter().filter_map(HookState::missing).collect()
    } else {
        let state = endpoints::snapshot(root).ok().flatten().unwrap_or_default();
        let pods = state.endpoints().count();
        let missing =
            || format!("the datapath is not loaded, and there are {pods} pods: the next ADD loads it");
        (pods > 0).then(missing).into_iter().collect()
    };
    if wrong.is_empty() {
        return Ok(());
    }
    Err(CniError::new(code::LIMITED_CONNECTIVITY, wrong.join("; ")))
}

/// Whether there is a free address. Returns its subnet and the interface that carries it.
fn inspect_addresses(call: &Call<'_>, netlink: &mut Netlink) -> Result<(IpNet, String), CniError> {
    let ask = |nics: &[LocalNic]| source::ask_at_once(call.root, &call.conf.ipam.settings, nics);
    let mut answer = ask(&local_nics(netlink)?);
    if matches!(answer.error, Some(SourceError::ForeignMachine { .. })) {
        let links = netlink.links().map_err(not_available)?;
        answer = ask(&nics_of(links, &netlink.all_addresses().map_err(not_available)?));
    }
    if let Some(error @ (SourceError::Environment(_) | SourceError::Settings(_))) = &answer.error {
        return Err(not_available(error));
    }
    let mut space = store::snapshot(call.root).map_err(not_available)?;
    if let Some(list) = &answer.list {
        space.merge(&list.pools);
    }
    let pools = || space.pools.values().filter(|pool| !pool.is_ipv6());
    if pools().next().is_none() {
        return match answer.error {
            // Of the wireserver nothing is known until the first ADD asks it.
            Some(SourceError::Wireserver { .. }) if is_untouched(call.root) => {
                let prescribed = prescribed_subnets(call.conf)?;
                Ok((prescribed.first().copied().unwrap_or_default(), String::new()))
            }
            Some(error) => Err(not_available(error)),
            None => {
                let cause = ipam::only_ipv6(&space, &answer.origin).map(|cause| format!(": {cause}"));
                let msg = format!("no available address pools{}", cause.unwrap_or_default());
                Err(unavailable(msg))
            }
        };
    }
    let prescribed = prescribed_subnets(call.conf)?;
    let suits = |subnet: &IpNet| prescribed.is_empty() || prescribed.contains(subnet);
    let Some(free) = pools().find(|pool| suits(&pool.subnet) && has_free(&space, &pool.id)) else {
        let numbers: Vec<String> = pools().map(|pool| usage(&space, &pool.id)).collect();
        let details = format!("{}; list: {}", numbers.join("; "), answer.origin);
        return Err(unavailable("No available addresses".to_owned()).with_details(details));
    };
    if let Some(exhausted) = exhausted_second(&space, prescribed, free) {
        let details = format!("{}; list: {}", usage(&space, &exhausted), answer.origin);
        return Err(unavailable("No available addresses".to_owned()).with_details(details));
    }
    Ok((free.subnet, free.if_name.clone()))
}

/// The pool of IPv6 that a pod would get its second address from, if nothing is left in it.
fn exhausted_second(space: &Space, prescribed: &[IpNet], first: &Pool) -> Option<String> {
    let nobody = Holder {
        container: String::new(),
        interface: String::new(),
    };
    let carrier = (!first.if_name.is_empty()).then_some(first.if_name.as_str());
    let second = if prescribed.is_empty() {
        space.choose_second(&nobody, carrier)
    } else {
        prescribed.iter().copied().find(|subnet| subnet.addr().is_ipv6())
    };
    let second = second.filter(|_| node::has_ipv6())?.to_string();
    (!has_free(space, &second)).then_some(second)
}

fn is_untouched(root: &Root) -> bool {
    !root.path(source::CACHE).exists()
}

fn has_free(space: &Space, subnet: &str) -> bool {
    let usage = space.usage(subnet, 0, 0);
    usage.used < usage.total
}

fn usage(space: &Space, subnet: &str) -> String {
    let usage = space.usage(subnet, 0, 0);
    format!(
        "{} of {} addresses of pool {subnet} are in use",
        usage.used, usage.total
    )
}

fn not_available(error: impl std::fmt::Display) -> CniError {
    unavailable(error.to_string())
}

fn unavailable(msg: String) -> CniError {
    CniError::new(code::NOT_AVAILABLE, msg)
}
