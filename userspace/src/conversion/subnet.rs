//! The API server subnet: its size, its place and its neighbours. Who is in it is said by [`super::tenants`].

use ipnet::IpNet;

use super::{
    Finding,
    azure::Subnet,
    facts::Facts,
    roles::same,
    tenants::{delegation, exclusive, room},
};

/// The longest prefix that AKS takes.
const LONGEST: u8 = 28;
/// What AKS takes for itself in no cluster's network.
/// <https://learn.microsoft.com/azure/aks/concepts-network-ip-address-planning>
const RESERVED: [&str; 4] = ["169.254.0.0/16", "172.30.0.0/16", "172.31.0.0/16", "192.0.2.0/24"];
/// What tells which subnet is meant.
const NAME_IT: &str = "name it: --api-subnet PREFIX or NAME, or give its document: --subnet FILE";

type Check = fn(&Facts, &Subnet) -> Finding;

/// The checks.
pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    let checks: [(&'static str, Check); 10] = [
        ("subnet-size", size),
        ("subnet-in-vnet", inside),
        ("overlap-cluster", overlap_cluster),
        ("overlap-pods", overlap_pods),
        ("overlap-services", overlap_services),
        ("reserved-ranges", reserved),
        ("delegation", delegation),
        ("exclusive", exclusive),
        ("room", room),
        ("same-vnet", same_network),
    ];
    let each = |(id, check): (&'static str, Check)| match &facts.api {
        Ok(api) if api.v4().next().is_some() => check(facts, api),
        Ok(api) => Finding::unknown(id, format!("{} has no IPv4 prefix", api.text()), NAME_IT),
        Err(why) => Finding::unknown(id, format!("the API server subnet is not known: {why}"), NAME_IT),
    };
    checks.into_iter().map(each).collect()
}

fn size(_: &Facts, api: &Subnet) -> Finding {
    match api.v4().find(|prefix| prefix.prefix_len() > LONGEST) {
        None => Finding::pass("subnet-size", format!("{} is a /{LONGEST} or larger", api.text())),
        Some(small) => Finding::fail(
            "subnet-size",
            format!("{small} is smaller than a /{LONGEST}, the least that AKS takes"),
            "give it a larger prefix while it is empty, or make another subnet; a /27 holds three clusters",
        ),
    }
}

fn inside(facts: &Facts, api: &Subnet) -> Finding {
    let id = "subnet-in-vnet";
    if facts.space.is_empty() {
        return Finding::unknown(
            id,
            "the network's addresses are not known",
            "az network vnet show > vnet.json, and --vnet vnet.json; or --vnet-cidr PREFIX",
        );
    }
    let space = list(&facts.space);
    match api
        .v4()
        .find(|prefix| !facts.space.iter().any(|range| range.contains(*prefix)))
    {
        None => Finding::pass(id, format!("{} is inside {space}", api.text())),
        Some(outside) => Finding::fail(
            id,
            format!("{outside} is not inside the network's {space}"),
            "take a prefix inside, or add this one to the network's address space",
        ),
    }
}

fn overlap_cluster(facts: &Facts, api: &Subnet) -> Finding {
    let id = "overlap-cluster";
    let listed = facts.network.iter().flat_map(|network| &network.subnets);
    let is_api = |other: &Subnet| !other.id.is_empty() && other.id.eq_ignore_ascii_case(&api.id);
    let mut others: Vec<&Subnet> = Vec::new();
    for other in facts.nodes.iter().map(|(subnet, _)| subnet).chain(listed) {
        if !is_api(other) && !others.iter().any(|known| same(known, other)) {
            others.push(other);
        }
    }
    if facts.nodes.iter().any(|(node, _)| is_api(node)) {
        return Finding::fail(
            id,
            format!("{} is the subnet of the cluster's own nodes or pods", api.text()),
            "make a subnet of its own for the API server",
        );
    }
    let overlap = |other: &&&Subnet| other.prefixes.iter().any(|range| meets(api, range));
    match others.iter().find(overlap) {
        Some(other) => Finding::fail(
            id,
            format!("{} overlaps with {}", api.text(), other.text()),
            "make a subnet whose prefix nobody has",
        ),
        None if facts.nodes.is_empty() || !facts.missing.is_empty() => {
            Finding::unknown(id, not_all_known(facts), how_to_know(facts))
        }
        None => Finding::pass(
            id,
            format!("overlaps with no other subnet ({} known)", others.len()),
        ),
    }
}

fn overlap_pods(facts: &Facts, api: &Subnet) -> Finding {
    match &facts.pods {
        Some(pods) if pods.is_empty() => {
            Finding::pass("overlap-pods", "pods have addresses of the cluster's subnets")
        }
        pods => overlap("overlap-pods", "pods", "--pod-cidr", pods.as_deref(), api),
    }
}

fn overlap_services(facts: &Facts, api: &Subnet) -> Finding {
    overlap(
        "overlap-services",
        "services",
        "--service-cidr",
        facts.services.as_deref(),
        api,
    )
}

fn overlap(id: &'static str, of: &str, flag: &str, ranges: Option<&[IpNet]>, api: &Subnet) -> Finding {
    let Some(ranges) = ranges else {
        return Finding::unknown(
            id,
            format!("the range of {of} is not known"),
            format!("az aks show > aks.json, and --aks aks.json; or {flag} PREFIX"),
        );
    };
    match ranges.iter().find(|range| meets(api, range)) {
        None => Finding::pass(id, format!("does not overlap with {of}, {}", list(ranges))),
        Some(range) => Finding::fail(
            id,
            format!(
                "{} overlaps with the range of {of}, {range}: nodes would not find the API server",
                api.text()
            ),
            "make the subnet elsewhere: a cluster's ranges cannot be changed",
        ),
    }
}

fn reserved(_: &Facts, api: &Subnet) -> Finding {
    let ranges = RESERVED.iter().filter_map(|text| text.parse::<IpNet>().ok());
    match ranges.into_iter().find(|range| meets(api, range)) {
        None => Finding::pass(
            "reserved-ranges",
            "overlaps with no range that AKS keeps for itself",
        ),
        Some(range) => Finding::fail(
            "reserved-ranges",
            format!("{} overlaps with {range}, which AKS keeps for itself", api.text()),
            "make the subnet elsewhere",
        ),
    }
}

fn same_network(facts: &Facts, api: &Subnet) -> Finding {
    let id = "same-vnet";
    let network = match (api.network(), &facts.network) {
        ("", Some(network))
            if network
                .subnets
                .iter()
                .any(|subnet| subnet.prefixes == api.prefixes) =>
        {
            network.id.as_str()
        }
        (network, _) => network,
    };
    if facts
        .cluster
        .as_ref()
        .is_some_and(|cluster| cluster.managed_network)
    {
        return Finding::unknown(
            id,
            "nodes are in a network that AKS made for the cluster",
            "look in the cluster's node resource group: the subnet has to be in that network",
        );
    }
    let named = facts.nodes.iter().map(|(subnet, _)| subnet.network());
    let missing = facts.missing.iter().filter_map(|subnet| network_of(subnet));
    let networks: Vec<&str> = named
        .chain(missing)
        .filter(|network| !network.is_empty())
        .collect();
    if network.is_empty() || networks.is_empty() {
        return Finding::unknown(
            id,
            "which network the subnets are in is not known",
            "give the documents of the subnets: --subnet FILE, or of the cluster: --aks FILE",
        );
    }
    match networks.iter().find(|other| !other.eq_ignore_ascii_case(network)) {
        None => Finding::pass(
            id,
            format!("in the network of the cluster's subnets, {}", last(network)),
        ),
        Some(other) => Finding::fail(
            id,
            format!(
                "in the network {}, and nodes are in {}",
                last(network),
                last(other)
            ),
            "make the subnet in the nodes' network; a peered one will not do",
        ),
    }
}

fn meets(api: &Subnet, range: &IpNet) -> bool {
    api.prefixes
        .iter()
        .any(|prefix| prefix.contains(range) || range.contains(prefix))
}

fn network_of(subnet: &str) -> Option<&str> {
    let end = subnet.to_ascii_lowercase().rfind("/subnets/")?;
    Some(&subnet[..end])
}

fn not_all_known(facts: &Facts) -> String {
    match facts.missing.as_slice() {
        [] => "the cluster's subnets are not known".to_owned(),
        [only] => format!("no document tells about the cluster's subnet {}", last(only)),
        several => format!(
            "no document tells about {} of the cluster's subnets",
            several.len()
        ),
    }
}

/// How the cluster's subnets can be told.
pub(super) fn how_to_know(facts: &Facts) -> String {
    match facts.missing.first() {
        Some(id) => format!("az network vnet subnet show --ids {id} > nodes.json, and --subnet nodes.json"),
        None => "give the cluster's document and its subnets': --aks FILE --subnet FILE; or --cluster-subnet PREFIX".to_owned(),
    }
}

fn last(id: &str) -> &str {
    id.rsplit('/').next().unwrap_or(id)
}

/// `10.0.0.0/8, fd00::/8`.
pub(super) fn list(ranges: &[IpNet]) -> String {
    ranges.iter().map(IpNet::to_string).collect::<Vec<_>>().join(", ")
}
