//! The state files: which address is whose.

use std::{collections::BTreeMap, net::IpAddr};

use causeway::{
    endpoints::{self, EndpointsError},
    ipam::{
        pool::Space,
        store::{self, StoreError},
    },
    leases::Standing,
};

use super::{
    Code, Finding, Snapshot,
    snapshot::{Endpoint, Pinned},
};

pub(super) fn check(snapshot: &Snapshot) -> Vec<Finding> {
    let (state, mut found) = (&snapshot.state, Vec::new());
    let damaged = |code, path: &str, error: &dyn std::error::Error| {
        Finding::new(code, error.to_string()).with("PATH", snapshot.root.path(path).display())
    };
    if let Err(error @ EndpointsError::Corrupt { .. }) = &state.endpoints {
        found.push(damaged(Code::EndpointsDamaged, endpoints::STATE, error));
    }
    if let Err(error @ StoreError::Corrupt { .. }) = &state.space {
        found.push(damaged(Code::LeasesDamaged, store::STATE, error));
    }
    found.extend(given_twice(snapshot.endpoints()));
    if let Ok(space) = &state.space {
        found.extend(not_leased(space, snapshot.endpoints()));
        found.extend(few_left(space));
    }
    let is_noted = |addr: IpAddr| snapshot.endpoints().iter().any(|endpoint| addr == endpoint.addr);
    let orphans = state
        .leases
        .iter()
        .filter(|lease| lease.standing == Standing::Orphaned && !is_noted(lease.held.address.addr()));
    found.extend(orphans.map(|lease| {
        let address = lease.held.address.addr();
        let about = format!("{address} is held for {}, which is gone", lease.host_if);
        Finding::new(Code::LeaseOrphaned, about).with("ADDRESS", address)
    }));
    // Without a datapath they are what a reboot leaves, and the first ADD forgets them.
    if !matches!(snapshot.datapath, Pinned::Absent) {
        found.extend(state.earlier.iter().map(|path| {
            let about = format!("{} names another boot", path.display());
            Finding::new(Code::EarlierBoot, about).with("PATH", path.display())
        }));
    }
    found
}

fn given_twice(endpoints: &[Endpoint]) -> Vec<Finding> {
    let mut holders: BTreeMap<IpAddr, Vec<&Endpoint>> = BTreeMap::new();
    for endpoint in endpoints {
        holders.entry(endpoint.addr).or_default().push(endpoint);
    }
    holders
        .into_iter()
        .filter(|(_, holders)| holders.len() > 1)
        .map(|(addr, holders)| {
            let names: Vec<&str> = holders.iter().map(|holder| holder.pod.as_str()).collect();
            let about = format!("{addr} is the address of {}", names.join(" and of "));
            Finding::new(Code::AddressTwice, about).with("ADDRESS", addr)
        })
        .collect()
}

/// Addresses of pods that are in a pool and held by nobody, or by another. Those of other IPAM plug-ins are in none; one that
/// two pods have has been told already.
fn not_leased(space: &Space, endpoints: &[Endpoint]) -> Vec<Finding> {
    let mut found = Vec::new();
    let is_alone = |endpoint: &&Endpoint| {
        let same = endpoints.iter().filter(|other| other.addr == endpoint.addr);
        same.count() == 1
    };
    for endpoint in endpoints.iter().filter(is_alone) {
        let text = endpoint.addr.to_string();
        let Some(address) = space.pools.values().find_map(|pool| pool.addresses.get(&text)) else {
            continue;
        };
        if !address.in_use || address.id != endpoint.container {
            let about = format!("{text} of pod {} is free by the address state", endpoint.pod);
            found.push(Finding::new(Code::NoLease, about).with("ADDRESS", text));
        }
    }
    found
}

fn few_left(space: &Space) -> Vec<Finding> {
    let mut found = Vec::new();
    for (subnet, pool) in &space.pools {
        let usage = space.usage(subnet, 0, 0);
        if usage.total > 0 && usage.used * 10 > usage.total * 9 {
            let about = format!(
                "{} of {} addresses of {subnet} on {} are in use",
                usage.used, usage.total, pool.if_name
            );
            found.push(Finding::new(Code::FewAddresses, about));
        }
    }
    found
}
