//! STATUS: whether an ADD would work now, and whether the pods that are there are served. Reads only, takes no lock and
//! asks nobody outside the node: runtimes call it every few seconds.

use causeway::{
    datapath::{Datapath, HookState},
    endpoints,
    ipam::{
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
    address::{check_kernel, local_nics, nics_of},
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
    let carrier = (!carrier.is_empty()).then_some(carrier.as_str());
    let master = call.conf.master.as_deref();
    let on_link = subnet.filter(|_| !call.conf.ipam.settings.has_routed_subnets());
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

/// Whether there is a free address. Returns its subnet, where that is known, and the interface that carries it.
fn inspect_addresses(call: &Call<'_>, netlink: &mut Netlink) -> Result<(Option<IpNet>, String), CniError> {
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
    let prescribed = prescribed_subnets(call.conf)?;
    let is_ipv6 = wants_ipv6_alone(&space, prescribed);
    let pools = || space.pools.values().filter(|pool| pool.is_ipv6() == is_ipv6);
    if pools().next().is_none() {
        return match answer.error {
            // Of the wireserver nothing is known until the first ADD asks it.
            Some(SourceError::Wireserver { .. }) if is_untouched(call.root) => {
                Ok((prescribed.first().copied(), String::new()))
            }
            Some(error) => Err(not_available(error)),
            None => Err(unavailable("no available address pools".to_owned())),
        };
    }
    let suits = |subnet: &IpNet| prescribed.is_empty() || prescribed.contains(subnet);
    let Some(free) = pools().find(|pool| suits(&pool.subnet) && has_free(&space, &pool.id)) else {
        let numbers: Vec<String> = pools().map(|pool| usage(&space, &pool.id)).collect();
        let details = format!("{}; list: {}", numbers.join("; "), answer.origin);
        return Err(unavailable("No available addresses".to_owned()).with_details(details));
    };
    check_kernel(&[free.subnet]).map_err(|error| unavailable(error.msg))?;
    if let Some(exhausted) = exhausted_second(&space, prescribed, free) {
        let details = format!("{}; list: {}", usage(&space, &exhausted), answer.origin);
        return Err(unavailable("No available addresses".to_owned()).with_details(details));
    }
    Ok((Some(free.subnet), free.if_name.clone()))
}

/// Whether a pod would get an address of IPv6 and none of IPv4.
fn wants_ipv6_alone(space: &Space, prescribed: &[IpNet]) -> bool {
    match prescribed {
        [] => space.is_ipv6_alone(&nobody()),
        subnets => subnets.iter().all(|subnet| subnet.addr().is_ipv6()),
    }
}

/// The pool of IPv6 that a pod would get its second address from, if nothing is left in it.
fn exhausted_second(space: &Space, prescribed: &[IpNet], first: &Pool) -> Option<String> {
    let second = if first.is_ipv6() {
        None
    } else if prescribed.is_empty() {
        space.choose_v6(&nobody(), first.carrier())
    } else {
        prescribed.iter().copied().find(|subnet| subnet.addr().is_ipv6())
    };
    let second = second.filter(|_| node::has_ipv6())?.to_string();
    (!has_free(space, &second)).then_some(second)
}

/// The one who asks without having anything.
fn nobody() -> Holder {
    Holder {
        container: String::new(),
        interface: String::new(),
    }
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
