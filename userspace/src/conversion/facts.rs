//! What is known of the cluster and its network, put together from the documents and the flags.
//!
//! The documents are read by `material`; which subnet is whose is told by `roles`. Owns which group guards it. What nobody
//! has said stays unknown, and is no error.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{
    azure::{Cluster, Network, Subnet},
    document::Document,
    error::InputError,
    evaluate::VirtualNetwork,
    material::Material,
    roles::Roles,
    rules::SecurityGroup,
    spans::Spans,
};

/// What an operator has.
#[derive(Debug, Default)]
pub struct Inputs {
    /// `az aks show`.
    pub cluster: Option<Document>,
    /// `az network vnet show`.
    pub network: Option<Document>,
    /// `az network vnet subnet show`, or lists of them.
    pub subnets: Vec<Document>,
    /// `az network nsg show` or `az network nsg rule list`, told apart by their IDs.
    pub groups: Vec<Document>,
    /// The API server subnet: its prefix, its name or its resource ID.
    pub api_subnet: Option<String>,
    /// Subnets of nodes and of pods, likewise.
    pub cluster_subnets: Vec<String>,
    /// The network's addresses.
    pub network_ranges: Vec<IpNet>,
    /// Pods' addresses, if they are not the network's.
    pub pods: Vec<IpNet>,
    /// Services' addresses.
    pub services: Vec<IpNet>,
    /// The API server subnet's group.
    pub api_group: Option<Named>,
    /// The group of each subnet of nodes and of pods.
    pub cluster_group: Option<Named>,
    /// Where the API server is reached before the conversion.
    pub old_address: Option<IpAddr>,
}

/// A group that is said to be a subnet's.
#[derive(Clone, Debug)]
pub enum Named {
    /// There is none.
    Nothing,
    /// This one.
    Rules(Document),
}

/// What is known.
#[derive(Debug)]
pub struct Facts {
    /// The cluster.
    pub cluster: Option<Cluster>,
    /// The network.
    pub network: Option<Network>,
    /// The network's addresses; none where nobody said.
    pub space: Vec<IpNet>,
    /// The API server subnet, or why it is not known.
    pub api: Result<Subnet, String>,
    /// What guards it.
    pub api_guard: Guard,
    /// The subnets of nodes and of pods that are known, each with what guards it.
    pub nodes: Vec<(Subnet, Guard)>,
    /// Names of those that the cluster has and no document tells about.
    pub missing: Vec<String>,
    /// Pods' addresses if they are not the network's, where somebody said.
    pub pods: Option<Vec<IpNet>>,
    /// Services' addresses, where somebody said.
    pub services: Option<Vec<IpNet>>,
    /// Every group.
    pub groups: Vec<SecurityGroup>,
    /// Where the API server is reached before the conversion.
    pub old_address: Option<IpAddr>,
}

/// What stands between a subnet and the others.
#[derive(Clone, Debug)]
pub enum Guard {
    /// Nobody said; how that can be found out.
    Unknown(String),
    /// Nothing.
    Open,
    /// A group.
    Group(SecurityGroup),
}

impl Facts {
    /// Puts them together, or says everything that is wrong with the documents.
    pub fn gather(mut inputs: Inputs) -> Result<Self, Vec<InputError>> {
        let mut errors = Vec::new();
        let material = Material::read(&mut inputs, &mut errors);
        let roles = Roles::of(&inputs, &material, &mut errors);
        if errors.is_empty() {
            Ok(Self::of(inputs, material, roles))
        } else {
            Err(errors)
        }
    }

    fn of(inputs: Inputs, material: Material, roles: Roles) -> Self {
        let Material {
            cluster,
            network,
            mut groups,
            api_group,
            cluster_group,
            ..
        } = material;
        let guard_of = |subnet: &Subnet, said: Option<&Guard>, flag| {
            said.map_or_else(|| guard(subnet, &groups, flag), Guard::clone)
        };
        let api_guard = match &roles.api {
            Ok(api) => guard_of(api, api_group.as_ref(), "--api-nsg"),
            Err(why) => Guard::Unknown(why.clone()),
        };
        let guarded = |subnet| (guard_of(&subnet, cluster_group.as_ref(), "--cluster-nsg"), subnet);
        let nodes = roles
            .nodes
            .into_iter()
            .map(guarded)
            .map(|(guard, subnet)| (subnet, guard));
        let nodes = nodes.collect();
        let said = |ranges: Vec<IpNet>, of_cluster: fn(&Cluster) -> &Vec<IpNet>| match &cluster {
            Some(cluster) if ranges.is_empty() => Some(of_cluster(cluster).clone()),
            _ => Some(ranges).filter(|ranges| !ranges.is_empty()),
        };
        let pods = said(inputs.pods, |cluster| &cluster.pods);
        let services = said(inputs.services, |cluster| &cluster.services);
        let space = match &network {
            Some(network) if inputs.network_ranges.is_empty() => network.space.clone(),
            _ => inputs.network_ranges,
        };
        for guard in [api_group, cluster_group].into_iter().flatten() {
            if let Guard::Group(group) = guard {
                groups.push(group);
            }
        }
        Self {
            space,
            api: roles.api,
            api_guard,
            nodes,
            missing: roles.missing,
            pods,
            services: services.filter(|ranges| !ranges.is_empty()),
            groups,
            old_address: inputs.old_address,
            cluster,
            network,
        }
    }

    /// What is known of the tag `VirtualNetwork`: the network's addresses, its peers', and the subnets, which are inside.
    pub fn virtual_network(&self) -> VirtualNetwork {
        let peers = self.network.iter().flat_map(|network| &network.peers);
        let subnets = self.api.iter().chain(self.nodes.iter().map(|(subnet, _)| subnet));
        let inside = self
            .space
            .iter()
            .chain(peers)
            .chain(subnets.flat_map(|subnet| &subnet.prefixes));
        VirtualNetwork {
            known: Spans::networks(inside),
        }
    }
}

/// What guards the subnet, by the document about it and the groups that were given.
fn guard(subnet: &Subnet, groups: &[SecurityGroup], flag: &str) -> Guard {
    let Some(details) = &subnet.details else {
        return Guard::Unknown(format!(
            "the group of {} is not known: {flag} FILE, or {flag} none",
            subnet.text()
        ));
    };
    if details.group.is_empty() {
        return Guard::Open;
    }
    match groups
        .iter()
        .find(|group| group.id.eq_ignore_ascii_case(&details.group))
    {
        Some(group) => Guard::Group(group.clone()),
        None => Guard::Unknown(format!(
            "{} is guarded by {}, whose rules are not given: {}",
            subnet.text(),
            details.group.rsplit('/').next().unwrap_or_default(),
            list_rules(&details.group)
        )),
    }
}

fn list_rules(id: &str) -> String {
    let parts: Vec<&str> = id.split('/').collect();
    let after = |key: &str| {
        let at = parts.iter().position(|part| part.eq_ignore_ascii_case(key));
        at.and_then(|at| parts.get(at + 1)).copied().unwrap_or("…")
    };
    format!(
        "az network nsg rule list --resource-group {} --nsg-name {} > nsg.json, and --nsg nsg.json",
        after("resourceGroups"),
        after("networkSecurityGroups")
    )
}
