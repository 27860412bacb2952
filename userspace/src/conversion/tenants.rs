//! Who is in the API server subnet, who may come in, and for how many there is room.

use std::collections::BTreeSet;

use ipnet::IpNet;

use super::{
    Finding,
    azure::{DELEGATE, Details, Subnet},
    facts::Facts,
};

/// Azure's own in every subnet: network, gateway, two for DNS, broadcast.
/// <https://learn.microsoft.com/azure/virtual-network/virtual-networks-faq>
const AZURES_OWN: u128 = 5;
/// What a cluster takes at least: one for the load balancer, the rest for API servers.
const CLUSTERS_OWN: u128 = 9;
/// The load balancer before a cluster's API servers, in the cluster's own resource group.
const BALANCER: &str = "kube-apiserver";

pub(super) fn delegation(_: &Facts, api: &Subnet) -> Finding {
    let id = "delegation";
    let Some(Details { delegations, .. }) = &api.details else {
        return unseen(id, api);
    };
    let (right, wrong): (Vec<&String>, Vec<_>) = delegations
        .iter()
        .partition(|service| service.eq_ignore_ascii_case(DELEGATE));
    match (right.first(), wrong.first()) {
        (_, Some(other)) => Finding::fail(
            id,
            format!("{} is delegated to {other}", api.text()),
            "make a subnet of its own: a delegation that is in use cannot be changed",
        ),
        (Some(_), None) => Finding::pass(id, format!("delegated to {DELEGATE}")),
        (None, None) => Finding::fail(
            id,
            format!("{} is not delegated", api.text()),
            format!(
                "az network vnet subnet update --ids {} --delegations {DELEGATE}",
                or_id(&api.id)
            ),
        ),
    }
}

pub(super) fn exclusive(_: &Facts, api: &Subnet) -> Finding {
    let id = "exclusive";
    let Some(details) = &api.details else {
        return unseen(id, api);
    };
    let mut strangers: Vec<String> = details
        .endpoints
        .iter()
        .map(|endpoint| resource(endpoint))
        .collect();
    let links = details
        .links
        .iter()
        .filter(|link| !link.eq_ignore_ascii_case(DELEGATE));
    strangers.extend(links.map(|link| format!("a service of {link}")));
    strangers.extend(
        details
            .tenants
            .iter()
            .filter(|id| balancer(id).is_none())
            .map(|id| resource(id)),
    );
    if strangers.is_empty() {
        return match clusters(details) {
            0 => Finding::pass(id, "empty"),
            n => Finding::pass(
                id,
                format!("API servers of {} and nothing else", several(n, "cluster")),
            ),
        };
    }
    let shown: Vec<String> = strangers.iter().take(3).cloned().collect();
    let more = strangers.len() - shown.len();
    let more = if more > 0 {
        format!(" and {more} more")
    } else {
        String::new()
    };
    Finding::fail(
        id,
        format!("{} also holds {}{more}", api.text(), shown.join(", ")),
        "only API servers may be in it: move the others, or make a subnet of its own",
    )
}

pub(super) fn room(facts: &Facts, api: &Subnet) -> Finding {
    let usable: u128 = api.v4().map(|prefix| usable(*prefix)).sum();
    let (mut others, mut there) = (0, 0);
    if let Some(details) = &api.details {
        there = clusters(details);
        others = details.tenants.iter().filter(|id| balancer(id).is_none()).count() as u128;
    }
    let is_in = facts.cluster.as_ref().is_some_and(|cluster| {
        cluster.integrated
            && (cluster.api_subnet.is_empty() || cluster.api_subnet.eq_ignore_ascii_case(&api.id))
    });
    let used = others + there as u128 * CLUSTERS_OWN;
    let free = usable.saturating_sub(used);
    let (fit, more) = (usable / CLUSTERS_OWN, free / CLUSTERS_OWN);
    let what = format!(
        "{}: {usable} addresses without Azure's {AZURES_OWN} a prefix, {CLUSTERS_OWN} or more a cluster: {}",
        api.text(),
        fits(fit)
    );
    let in_use = match (there, others, &api.details) {
        (_, _, None) => "; what is in it is not known".to_owned(),
        (0, 0, _) => "; none is in use".to_owned(),
        (0, n, _) => format!("; {n} in use, {free} free"),
        (n, others, _) => format!(
            "; {} in it and {others} other addresses in use: {more} more fit",
            several(n, "cluster")
        ),
    };
    let reason = format!("{what}{in_use}");
    if more > 0 || (is_in && used <= usable) {
        return match api.details {
            Some(_) => Finding::pass("room", reason),
            None => Finding::unknown("room", reason, see(api)),
        };
    }
    Finding::fail(
        "room",
        reason,
        "make a larger subnet: a full one stops API servers from scaling, and can take them down",
    )
}

/// The addresses of a subnet that are not Azure's own.
fn usable(prefix: IpNet) -> u128 {
    let bits = u32::from(prefix.max_prefix_len() - prefix.prefix_len());
    1_u128
        .checked_shl(bits)
        .unwrap_or(u128::MAX)
        .saturating_sub(AZURES_OWN)
}

/// How many clusters have their API server in the subnet. Only their load balancers show among its tenants.
fn clusters(details: &Details) -> usize {
    let balancers: BTreeSet<String> = details.tenants.iter().filter_map(|id| balancer(id)).collect();
    let linked = details
        .links
        .iter()
        .any(|link| link.eq_ignore_ascii_case(DELEGATE));
    balancers.len().max(usize::from(linked))
}

/// The load balancer of a cluster's API servers, if the address is of one.
fn balancer(tenant: &str) -> Option<String> {
    let tenant = tenant.to_ascii_lowercase();
    let (balancer, _) = tenant.split_once("/frontendipconfigurations/")?;
    balancer
        .ends_with(&format!("/loadbalancers/{BALANCER}"))
        .then(|| balancer.to_owned())
}

/// `networkInterfaces/nic-1` of a longer ID.
fn resource(id: &str) -> String {
    let parts: Vec<&str> = id.split('/').collect();
    let provider = parts
        .iter()
        .position(|part| part.eq_ignore_ascii_case("providers"));
    match provider.and_then(|at| Some((parts.get(at + 2)?, parts.get(at + 3)?))) {
        Some((kind, name)) => format!("{kind}/{name}"),
        None => id.to_owned(),
    }
}

fn unseen(id: &'static str, api: &Subnet) -> Finding {
    Finding::unknown(
        id,
        format!("of {} only the prefix is known", api.text()),
        see(api),
    )
}

fn see(api: &Subnet) -> String {
    format!(
        "az network vnet subnet show --ids {} > api.json, and --subnet api.json",
        or_id(&api.id)
    )
}

/// A resource ID, or the word for it.
fn or_id(id: &str) -> &str {
    if id.is_empty() { "ID" } else { id }
}

fn fits(clusters: u128) -> String {
    match clusters {
        0 => "none fits".to_owned(),
        1 => "one fits".to_owned(),
        n => format!("{n} fit"),
    }
}

fn several(count: usize, what: &str) -> String {
    if count == 1 {
        format!("one {what}")
    } else {
        format!("{count} {what}s")
    }
}
