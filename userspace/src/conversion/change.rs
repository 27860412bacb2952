//! What the conversion changes for those who use the cluster, and what stands in its way besides the subnet.

use ipnet::IpNet;

use super::{
    Finding,
    facts::Facts,
    rules::Peer,
    spans::{Spans, number},
};

/// What tells about the cluster.
const SHOW: &str = "az aks show > aks.json, and --aks aks.json";

/// The checks.
pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    vec![
        permissions(facts),
        old_address(facts),
        authorized(facts),
        private_cluster(facts),
        one_way(facts),
        restart(facts),
        encryption(facts),
        dual_stack(facts),
    ]
}

fn is_converted(facts: &Facts) -> bool {
    facts.cluster.as_ref().is_some_and(|cluster| cluster.integrated)
}

fn permissions(facts: &Facts) -> Finding {
    let id = "permissions";
    let fix = "az role assignment list --assignee IDENTITY --scope SUBNET-ID, of both subnets; \
               az role assignment create --role \"Network Contributor\" where it is missing";
    let needed = "needs Network Contributor on the API server subnet and on the cluster's";
    match facts.cluster.as_ref().map(|cluster| &cluster.identity) {
        None => Finding::unknown(id, format!("the cluster's identity {needed}"), fix),
        Some((kind, _)) if kind.is_empty() || kind.eq_ignore_ascii_case("None") => Finding::unknown(
            id,
            format!("the cluster has a service principal, which {needed}"),
            fix,
        ),
        Some((kind, ids)) => {
            let names: Vec<&str> = ids.iter().filter_map(|id| id.rsplit('/').next()).collect();
            let who = if names.is_empty() {
                String::new()
            } else {
                format!(" {}", names.join(", "))
            };
            Finding::unknown(id, format!("the cluster's identity ({kind}{who}) {needed}"), fix)
        }
    }
}

fn old_address(facts: &Facts) -> Finding {
    let id = "old-address";
    if is_converted(facts) {
        return Finding::pass(id, "the API server has its address already");
    }
    let fix = "write them for the host name, or for the API server subnet as well, before the conversion";
    let Some(address) = facts.old_address else {
        return Finding::warn(
            id,
            "the API server gets another address, under the same host name: firewalls and rules by the old one stop \
             to match",
            format!("{fix}; --old-address IP looks for it in the groups given"),
        );
    };
    let found = rules_about(facts, IpNet::from(address));
    if found.is_empty() {
        return Finding::warn(
            id,
            format!(
                "the API server leaves {address}: no rule of the {} groups given has it, firewalls may",
                facts.groups.len()
            ),
            fix,
        );
    }
    Finding::warn(
        id,
        format!(
            "the API server leaves {address}, which is in {}",
            found.join(", ")
        ),
        fix,
    )
}

fn authorized(facts: &Facts) -> Finding {
    let id = "authorized-ranges";
    match &facts.cluster {
        None => Finding::unknown(
            id,
            "whether the API server admits only some addresses is not known",
            SHOW,
        ),
        Some(cluster) if cluster.authorized.is_empty() => Finding::pass(id, "none are set"),
        Some(cluster) => Finding::warn(
            id,
            format!("the public address admits only {}", cluster.authorized.join(", ")),
            "nodes and pods need none of them afterwards, they come from inside; clients outside still do",
        ),
    }
}

fn private_cluster(facts: &Facts) -> Finding {
    let id = "private-cluster";
    match &facts.cluster {
        None => Finding::unknown(id, "whether the cluster is private is not known", SHOW),
        Some(cluster) if cluster.private && !cluster.integrated => Finding::warn(
            id,
            "the cluster is private, by a private link, which goes: whoever reaches the API server through it has to \
             reach the API server subnet instead",
            "say --enable-private-cluster again when converting, or it becomes public",
        ),
        Some(_) => Finding::pass(id, "no private link to be replaced"),
    }
}

fn one_way(facts: &Facts) -> Finding {
    if is_converted(facts) {
        return Finding::pass("one-way", "the cluster is converted already");
    }
    Finding::warn(
        "one-way",
        "the conversion cannot be taken back",
        "try it on a cluster that can be lost, in the same region",
    )
}

fn restart(facts: &Facts) -> Finding {
    if is_converted(facts) {
        return Finding::pass("restart", "the cluster is converted already");
    }
    Finding::warn(
        "restart",
        "every node gets a new image, so every workload restarts; and the region's capacity is not kept for the \
         cluster until it has been stopped and started once",
        "choose a time; az aks stop and az aks start at once after az aks update",
    )
}

fn encryption(facts: &Facts) -> Finding {
    let id = "vnet-encryption";
    match &facts.network {
        None => Finding::unknown(
            id,
            "whether the network encrypts is not known",
            "az network vnet show > vnet.json, and --vnet vnet.json",
        ),
        Some(network) if network.encrypted => Finding::warn(
            id,
            "the network encrypts, which API Server VNet Integration does not support: newer node sizes are refused, \
             older ones run without",
            "az network vnet update --enable-encryption false, or keep the cluster as it is",
        ),
        Some(_) => Finding::pass(id, "the network does not encrypt"),
    }
}

fn dual_stack(facts: &Facts) -> Finding {
    let id = "dual-stack";
    let wide = facts
        .api
        .as_ref()
        .is_ok_and(|api| api.prefixes.iter().any(|prefix| matches!(prefix, IpNet::V6(_))));
    let families = facts.cluster.as_ref().map(|cluster| cluster.dual_stack);
    match families {
        _ if wide => Finding::warn(
            id,
            "the API server subnet has an IPv6 prefix: the API server may get an IPv6 address, and cannot get rid of it",
            "take a subnet with an IPv4 prefix alone",
        ),
        Some(true) => Finding::warn(
            id,
            "the cluster is dual-stack: the API server may get an IPv6 address, and cannot get rid of it",
            "take a subnet with an IPv4 prefix alone, and try it on another dual-stack cluster",
        ),
        Some(false) => Finding::pass(id, "the cluster has IPv4 alone"),
        None => Finding::unknown(id, "whether the cluster is dual-stack is not known", SHOW),
    }
}

/// The rules of any group that name this address, and not by a tag or by everything.
fn rules_about(facts: &Facts, address: IpNet) -> Vec<String> {
    let address = Spans::network(address);
    let mut found = Vec::new();
    for group in &facts.groups {
        for rule in &group.rules {
            let names = |peer: &Peer| match peer {
                Peer::Addresses(addresses) => addresses.covers(&address) && !is_everything(addresses),
                _ => false,
            };
            if rule.source.iter().chain(&rule.destination).any(names) {
                found.push(format!("{}: {} ({})", group.name, rule.name, rule.priority));
            }
        }
    }
    found
}

fn is_everything(addresses: &Spans) -> bool {
    let far = ["8.8.8.8", "192.0.2.1", "10.0.0.1"]
        .iter()
        .filter_map(|text| text.parse().ok());
    far.map(number).all(|number| addresses.has(number))
}
