//! Leases beside what the kernel has: whose pod is still there.

use std::collections::{BTreeSet, HashMap};

use crate::{
    endpoints::{self, Endpoint, EndpointsError, Key, State},
    ipam::{
        pool::{Held, Space},
        store::{self, StoreError},
    },
    links::{LinkError, Netlink},
    root::Root,
};

/// Why leases cannot be judged.
#[derive(Debug, thiserror::Error)]
pub enum LeasesError {
    /// The leases cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The endpoints cannot be read.
    #[error(transparent)]
    Endpoints(#[from] EndpointsError),
    /// The interfaces cannot be read.
    #[error(transparent)]
    Link(#[from] LinkError),
}

/// A lease, and whether its pod is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The address and its holder.
    pub held: Held,
    /// The attachment that it is for.
    pub key: Key,
    /// The pod as `namespace/name`, as far as the client named it.
    pub pod: String,
    /// The host's end of the pod's link; empty where that is not known.
    pub host_if: String,
    /// Whether the pod is there.
    pub standing: Standing,
}

/// Whether the pod of a lease is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Its interface is.
    Held,
    /// Its interface is gone: it ended without a DEL, or an ADD is under way.
    Orphaned,
    /// The lease is for another plug-in's pod, of which nothing is known here.
    Unknown,
}

/// Every lease of this boot, in the order of the addresses. Without readable endpoints, leases of the incumbent are
/// [`Standing::Unknown`].
pub fn audit(root: &Root) -> Result<Vec<Lease>, LeasesError> {
    let (space, state) = (store::snapshot(root)?, endpoints::readable(root)?);
    let names: BTreeSet<String> = Netlink::new()?
        .links()?
        .into_iter()
        .map(|link| link.name)
        .collect();
    let mut leases = judge(&space, &state, &names);
    leases.sort_unstable_by_key(|lease| lease.held.address);
    Ok(leases)
}

fn judge(space: &Space, state: &State, interfaces: &BTreeSet<String>) -> Vec<Lease> {
    let mut endpoints: HashMap<(&str, &str), (Key, &Endpoint)> = HashMap::new();
    for (key, endpoint) in state.keys() {
        let attachment = (endpoint.container_id.as_str(), endpoint.if_name.as_str());
        endpoints.entry(attachment).or_insert((key, endpoint));
    }
    let lease = |held: Held| {
        let holder = &held.holder;
        let noted = endpoints.get(&(holder.container.as_str(), holder.interface.as_str()));
        let host_if = match &noted {
            _ if !held.host_if.is_empty() => held.host_if.clone(),
            Some((_, endpoint)) => endpoint.host_if_name.clone(),
            None => String::new(),
        };
        let standing = if host_if.is_empty() {
            Standing::Unknown
        } else if interfaces.contains(&host_if) {
            Standing::Held
        } else {
            Standing::Orphaned
        };
        let pod = noted
            .as_ref()
            .map(|(_, endpoint)| [&endpoint.namespace, &endpoint.pod]);
        let pod = pod.into_iter().flatten().filter(|name| !name.is_empty());
        Lease {
            pod: pod.map(String::as_str).collect::<Vec<_>>().join("/"),
            key: noted.map_or_else(|| held.key(), |(key, _)| key.clone()),
            held,
            host_if,
            standing,
        }
    };
    space.held().map(lease).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_lease_without_an_interface_is_unknown_and_one_whose_interface_is_gone_an_orphan() {
        let address = |id: &str, host_if: &str, n: u8| json!({ "ID": id, "Addr": format!("10.240.0.{n}"), "InUse": true, "HostIfName": host_if });
        let space: Space = serde_json::from_value(json!({ "Pools": { "10.240.0.0/16": {
            "Subnet": { "IP": "10.240.0.0", "Mask": "//8AAA==" }, "Addresses": {
                "10.240.0.5": address("a", "azv1", 5), "10.240.0.6": address("b", "azv2", 6),
                "10.240.0.7": address("c", "", 7), "10.240.0.8": address("d", "", 8) } } } }))
        .unwrap();
        let state: State = serde_json::from_value(json!({ "ExternalInterfaces": { "eth0": { "Networks": { "azure": {
            "Endpoints": { "d-eth0": { "ContainerID": "d", "IfName": "eth0", "HostIfName": "azv4", "PODName": "web",
                "PODNameSpace": "default" } } } } } } }))
        .unwrap();
        let leases = judge(&space, &state, &BTreeSet::from(["azv1".to_owned()]));
        let seen: Vec<_> = leases
            .iter()
            .map(|lease| (lease.host_if.as_str(), lease.standing))
            .collect();
        assert_eq!(
            seen,
            [
                ("azv1", Standing::Held),
                ("azv2", Standing::Orphaned),
                ("", Standing::Unknown),
                ("azv4", Standing::Orphaned)
            ]
        );
        assert_eq!(
            (leases[3].pod.as_str(), leases[3].key.network.as_str()),
            ("default/web", "azure")
        );
    }
}
