//! Each pod: its link, its programs, its entries, the way to it.

use std::net::IpAddr;

use causeway::{datapath::Direction, leases::Standing, links::Link};
use causeway_common::maps::PodEntry;
use ipnet::IpNet;

use super::{
    Code, Finding, Snapshot,
    snapshot::{Endpoint, Loaded},
};
use crate::cli::output::mac;

pub(super) fn check(snapshot: &Snapshot) -> Vec<Finding> {
    let mut found = Vec::new();
    for endpoint in snapshot.endpoints() {
        let find = |code, about: String| {
            let finding = Finding::new(code, about)
                .with("INTERFACE", &endpoint.host_if)
                .with("ADDRESS", endpoint.addr)
                .with("VALUE", &endpoint.pod);
            match endpoint.mac {
                Some(own) => finding.with("MAC", mac(own)),
                None => finding,
            }
        };
        let Some(link) = snapshot.link(&endpoint.host_if) else {
            let about = format!(
                "{} of pod {} ({}) does not exist",
                endpoint.host_if, endpoint.pod, endpoint.addr
            );
            found.push(find(Code::PodGone, about));
            continue;
        };
        if link.is_up {
            found.extend(way(snapshot, endpoint, link).map(|(code, about)| find(code, about)));
        } else {
            let about = format!("{} of pod {} is down", link.name, endpoint.pod);
            found.push(find(Code::PodDown, about));
        }
        if let Some(loaded) = snapshot.loaded() {
            found.extend(
                entries(loaded, endpoint, link)
                    .into_iter()
                    .map(|(code, about)| find(code, about)),
            );
        }
    }
    found.extend(strangers(snapshot));
    found
}

type Fault = (Code, String);

/// What the host's tables say of the way to the pod.
fn way<'a>(
    snapshot: &'a Snapshot,
    endpoint: &'a Endpoint,
    link: &'a Link,
) -> impl Iterator<Item = Fault> + 'a {
    let (addr, name) = (endpoint.addr, &link.name);
    let whole = IpNet::from(addr);
    let mut routes = snapshot
        .network
        .routes
        .iter()
        .filter(move |route| route.to == whole)
        .peekable();
    let route = match routes.peek().map(|route| route.ifindex) {
        None => Some((Code::RouteMissing, format!("there is no route {whole} to {name}"))),
        Some(_) if routes.any(|route| route.ifindex == link.index) => None,
        Some(other) => {
            let other = snapshot
                .link_by_index(other)
                .map_or_else(|| other.to_string(), |link| link.name.clone());
            Some((
                Code::RouteElsewhere,
                format!("the route {whole} leads to {other}, not {name}"),
            ))
        }
    };
    let neighbour = snapshot
        .network
        .neighbours
        .iter()
        .find(|neighbour| neighbour.addr == addr && neighbour.ifindex == link.index);
    let neighbour = match neighbour {
        None => Some(format!("there is no neighbour {addr} on {name}")),
        Some(known) if endpoint.mac.is_some_and(|own| own != known.mac) => Some(format!(
            "the neighbour {addr} on {name} has the MAC {}, not the pod's",
            mac(known.mac)
        )),
        Some(known) if !known.is_permanent => {
            Some(format!("the neighbour {addr} on {name} is not permanent"))
        }
        Some(_) => None,
    };
    route
        .into_iter()
        .chain(neighbour.map(|about| (Code::Neighbour, about)))
}

/// What the programs know of the pod.
fn entries(loaded: &Loaded, endpoint: &Endpoint, link: &Link) -> Vec<Fault> {
    let mut faults = Vec::new();
    let entry = loaded
        .pods
        .iter()
        .find(|(addr, _)| *addr == endpoint.addr)
        .map(|(_, entry)| entry);
    let addr = endpoint.addr;
    let (pods, ifaces) = names(addr);
    match entry {
        Some(entry) if !entry.is_ready() => {
            faults.push((Code::PodEntry, format!("the entry {addr} of {pods} is not ready")));
        }
        Some(entry) if entry.ifindex != link.index || endpoint.mac.is_some_and(|own| own != entry.mac) => {
            let about = format!("the entry {addr} of {pods} is of another link than {}", link.name);
            faults.push((Code::PodEntry, about));
        }
        Some(_) => {}
        None => faults.push((Code::PodEntry, format!("{pods} has no entry {addr}"))),
    }
    match loaded.sender(link.index, addr.is_ipv4()) {
        Some((sender, mac)) if sender == addr && endpoint.mac.is_none_or(|own| own == mac) => {}
        Some((sender, _)) => faults.push((
            Code::IfaceEntry,
            format!("{ifaces} has {sender} for {}, not {addr}", link.name),
        )),
        None => faults.push((
            Code::IfaceEntry,
            format!("{ifaces} has no entry {} ({})", link.index, link.name),
        )),
    }
    for hook in loaded.hooks.iter().filter(|hook| hook.ifindex == link.index) {
        let code = match hook.direction {
            Direction::Ingress => Code::PodIngress,
            Direction::Egress => Code::PodEgress,
        };
        faults.extend(hook.missing().map(|about| (code, about)));
    }
    faults
}

/// The maps of the address's family: pods, and who may send on an interface.
fn names(addr: IpAddr) -> (&'static str, &'static str) {
    match addr {
        IpAddr::V4(_) => ("cwy_pods", "cwy_ifaces"),
        IpAddr::V6(_) => ("cwy_pods6", "cwy_ifaces6"),
    }
}

/// Pods that the programs know and the state file does not. One whose lease is an orphan's is collected with it.
fn strangers(snapshot: &Snapshot) -> Vec<Finding> {
    let (Some(loaded), Ok(endpoints)) = (snapshot.loaded(), &snapshot.state.endpoints) else {
        return Vec::new();
    };
    if !snapshot.state.earlier.is_empty() {
        return Vec::new();
    }
    let is_orphaned = |addr: IpAddr| {
        let mut orphans = snapshot
            .state
            .leases
            .iter()
            .filter(|lease| lease.standing == Standing::Orphaned);
        orphans.any(|lease| lease.held.address.addr() == addr)
    };
    let is_stranger = |(addr, entry): &&(IpAddr, PodEntry)| {
        entry.flags & PodEntry::DEPARTED == 0
            && !endpoints.iter().any(|endpoint| endpoint.addr == *addr)
            && !is_orphaned(*addr)
    };
    let stranger = |(addr, entry): &(IpAddr, PodEntry)| {
        let interface = snapshot
            .link_by_index(entry.ifindex)
            .map_or_else(|| entry.ifindex.to_string(), |link| link.name.clone());
        let about = format!(
            "{} has {addr} on {interface}, the state file has no such pod",
            names(*addr).0
        );
        Finding::new(Code::NoEndpoint, about)
            .with("ADDRESS", addr)
            .with("INTERFACE", interface)
    };
    loaded.pods.iter().filter(is_stranger).map(stranger).collect()
}
