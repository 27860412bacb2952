//! Ranges that have to be apart, and addresses that are given before they are asked for.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::{AZURES_OWN, Chosen, Reckoning, SubnetNeeds};

impl Reckoning<'_> {
    /// Ranges that have to be apart, and one that has to be inside.
    pub(super) fn overlaps(&mut self, subnets: &[SubnetNeeds]) {
        let definition = self.definition;
        let (services, cluster) = (&definition.services, &definition.cluster_subnet);
        let which = |is_written: bool| if is_written { "" } else { " (the default)" };
        for subnet in subnets {
            let Some(prefix) = subnet.prefix else { continue };
            if meet(services.value, prefix) {
                self.warn(
                    &services.at,
                    format!(
                        "serviceCidr {}{} overlaps with the subnet {prefix}: a service and a node may have one address; \
                         choose another serviceCidr",
                        services.value,
                        which(services.is_written)
                    ),
                );
            }
            if !definition.azure_cni && meet(cluster.value, prefix) {
                self.error(
                    &cluster.at,
                    format!(
                        "clusterSubnet {}, of pods, overlaps with the nodes' subnet {prefix}",
                        cluster.value
                    ),
                );
            }
            if let Some(network) = &definition.network
                && definition.custom
                && !network.value.contains(&prefix)
            {
                self.warn(
                    &network.at,
                    format!(
                        "vnetCidr {} does not have the subnet {prefix}: traffic to it is masqueraded",
                        network.value
                    ),
                );
            }
        }
        if let Some(network) = &definition.network {
            let has_met = subnets
                .iter()
                .any(|subnet| subnet.prefix.is_some_and(|prefix| meet(services.value, prefix)));
            if !has_met && meet(services.value, network.value) {
                self.warn(
                    &services.at,
                    format!(
                        "serviceCidr {}{} overlaps with vnetCidr {}: pods do not reach hosts with these addresses",
                        services.value,
                        which(services.is_written),
                        network.value
                    ),
                );
            }
            if !definition.custom {
                self.warn(&network.at, "is not used: it takes a vnetSubnetId");
            }
        }
        if !definition.azure_cni && meet(services.value, cluster.value) {
            self.error(
                &services.at,
                format!(
                    "serviceCidr {} overlaps with pods' clusterSubnet {}",
                    services.value, cluster.value
                ),
            );
        }
        for (index, one) in subnets.iter().enumerate() {
            for other in &subnets[index + 1..] {
                if let (Some(a), Some(b)) = (one.prefix, other.prefix)
                    && meet(a, b)
                {
                    let at = definition.masters.at.clone();
                    self.error(
                        &at,
                        format!("the subnets {} {a} and {} {b} overlap", one.name, other.name),
                    );
                }
            }
        }
    }

    /// What Azure gives, from the lowest address on, must not reach what is chosen before it is taken.
    pub(super) fn dynamic(&mut self, subnets: &[SubnetNeeds], chosen: Option<&Chosen>) {
        let (Some(chosen), Some(first)) = (chosen, &self.definition.first_static) else {
            return;
        };
        let name = &self.definition.masters.subnet;
        let subnet = subnets
            .iter()
            .find(|subnet| subnet.name.eq_ignore_ascii_case(name));
        let Some((subnet, prefix)) = subnet.and_then(|subnet| Some((subnet, subnet.prefix?))) else {
            return;
        };
        let given = subnet.needed - chosen.all().count() as u64;
        let lowest = u64::from(prefix.network().to_bits()) + AZURES_OWN - 1;
        let below = u64::from(first.value.to_bits()).saturating_sub(lowest);
        if given > below && prefix.contains(&first.value) {
            self.warn(
                &first.at,
                format!(
                    "{given} addresses are given from {} on, {} among them: it may be taken before the master asks for it; \
                     choose a higher one",
                    Ipv4Addr::from_bits(lowest as u32),
                    first.value
                ),
            );
        }
    }

    /// Where pods' addresses are not the subnet's, each node has a /24 of them.
    pub(super) fn kubenet(&mut self) {
        let cluster = &self.definition.cluster_subnet;
        let nodes: u64 = self.all().map(|pool| u64::from(pool.count)).sum();
        let blocks = 1_u64
            .checked_shl(24_u32.saturating_sub(cluster.value.prefix_len().into()))
            .unwrap_or(0);
        let blocks = if cluster.value.prefix_len() > 24 {
            0
        } else {
            blocks
        };
        if nodes > blocks {
            let at = cluster.at.clone();
            let text = format!(
                "{} has {blocks} blocks of 256 addresses, and {nodes} nodes take one each",
                cluster.value
            );
            self.error(&at, text);
        }
    }
}

fn meet(a: Ipv4Net, b: Ipv4Net) -> bool {
    a.contains(&b) || b.contains(&a)
}
