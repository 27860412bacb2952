//! What can be asked of the state.

use ipnet::IpNet;

use super::{
    Key,
    format::{Endpoint, Network, State},
};
use crate::boot;

impl State {
    /// No endpoint outlives a boot.
    pub(super) fn end_earlier_boot(&mut self) {
        if !boot::is_over(&self.boot, &self.time_stamp) {
            return;
        }
        let mut ended = 0;
        for interface in self.external_interfaces.values_mut() {
            for network in interface.networks.values_mut() {
                ended += network.endpoints.len();
                network.endpoints.clear();
            }
        }
        if ended > 0 {
            tracing::info!(ended, "endpoints of an earlier boot are forgotten");
        }
    }

    /// The endpoint of that key.
    pub fn find(&self, key: &Key) -> Option<&Endpoint> {
        let interfaces = self.external_interfaces.values();
        let mut networks = interfaces.filter_map(|interface| interface.networks.get(&key.network));
        networks.find_map(|network| network.endpoints.values().find(|endpoint| endpoint.is(key)))
    }

    /// Whether an endpoint other than that of `key` has the host's end `host_if`. In mode `transparent` the name
    /// follows from the pod, not the container, so the sandboxes of one pod share it.
    pub fn is_shared(&self, host_if: &str, key: &Key) -> bool {
        self.endpoints().any(|(network, endpoint)| {
            let has_it = endpoint.says(host_if) && endpoint.host_if_name == host_if;
            has_it && !(network == key.network && endpoint.is(key))
        })
    }

    /// The subnets that the network takes its addresses from, at most one of a family.
    pub fn subnets(&self, network: &str) -> Vec<IpNet> {
        let interfaces = self.external_interfaces.values();
        let mut networks = interfaces.filter_map(|interface| interface.networks.get(network));
        let known: Vec<IpNet> = networks.next().into_iter().flat_map(Network::subnets).collect();
        let first = |is_ipv4: bool| known.iter().find(|subnet| subnet.addr().is_ipv4() == is_ipv4);
        [first(true), first(false)]
            .into_iter()
            .flatten()
            .copied()
            .collect()
    }

    /// All endpoints, with their keys.
    pub fn keys(&self) -> impl Iterator<Item = (Key, &Endpoint)> {
        self.endpoints().map(|(network, endpoint)| {
            let key = Key {
                network: network.to_owned(),
                container: endpoint.container_id.clone(),
                interface: endpoint.if_name.clone(),
            };
            (key, endpoint)
        })
    }

    /// All endpoints, with their networks' names.
    pub fn endpoints(&self) -> impl Iterator<Item = (&str, &Endpoint)> {
        self.external_interfaces.values().flat_map(|interface| {
            interface.networks.iter().flat_map(|(name, network)| {
                network
                    .endpoints
                    .values()
                    .map(move |endpoint| (name.as_str(), endpoint))
            })
        })
    }
}
