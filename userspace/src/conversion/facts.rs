//! What is known of the cluster and its network, put together from the documents and the flags.
//!
//! Owns which subnet is whose, and which group guards it. What nobody has said stays unknown, and is no error.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{
    azure::{Cluster, DELEGATE, Network, Subnet},
    document::{Document, Kind},
    error::InputError,
    evaluate::VirtualNetwork,
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

impl Default for Guard {
    fn default() -> Self {
        Self::Unknown(String::new())
    }
}

impl Facts {
    /// Puts them together, or says everything that is wrong with the documents.
    pub fn gather(inputs: Inputs) -> Result<Self, Vec<InputError>> {
        let (mut errors, mut nameless) = (Vec::new(), Vec::new());
        let mut keep = |error| errors.push(error);
        let cluster = inputs.cluster.and_then(|document| {
            let read = document
                .one(Kind::Cluster)
                .and_then(|document| Cluster::read(&document));
            read.map_err(&mut keep).ok()
        });
        let network = inputs.network.and_then(|document| {
            let read = document
                .one(Kind::Network)
                .and_then(|document| Network::read(&document));
            read.map_err(&mut keep).ok()
        });
        let mut shown = Vec::new();
        for document in inputs.subnets {
            let read = document.each(Kind::Subnet);
            let read = read.and_then(|each| each.iter().map(Subnet::read).collect::<Result<Vec<_>, _>>());
            shown.extend(read.map_err(&mut keep).unwrap_or_default());
        }
        let mut read_group = |document: Document| {
            let read = document
                .group()
                .and_then(|document| SecurityGroup::read(&document));
            read.map_err(&mut keep).ok()
        };
        let mut groups: Vec<SecurityGroup> = Vec::new();
        for document in inputs.groups {
            let anonymous = document.fault(
                "does not say whose rules these are: give the file as --api-nsg or as --cluster-nsg instead",
            );
            match read_group(document) {
                Some(group) if group.id.is_empty() => nameless.push(anonymous),
                group => groups.extend(group),
            }
        }
        let mut named = |named: Option<Named>| match named? {
            Named::Nothing => Some(Guard::Open),
            Named::Rules(document) => read_group(document).map(Guard::Group),
        };
        let (api_group, cluster_group) = (named(inputs.api_group), named(inputs.cluster_group));
        let subnets = Subnets {
            shown: &shown,
            listed: network.as_ref().map_or(&[], |network| &network.subnets),
        };
        let mut nodes = Vec::new();
        for text in &inputs.cluster_subnets {
            nodes.extend(subnets.said(text, "--cluster-subnet").map_err(&mut keep).ok());
        }
        let mut missing = Vec::new();
        for id in cluster.iter().flat_map(|cluster| &cluster.subnets) {
            match subnets.by_id(id) {
                Some(subnet) => nodes.push(subnet.clone()),
                None if inputs.cluster_subnets.is_empty() => missing.push(id.clone()),
                None => {}
            }
        }
        let said = inputs
            .api_subnet
            .as_deref()
            .map(|text| subnets.said(text, "--api-subnet"));
        let api = match said.transpose().map_err(&mut keep).ok().flatten() {
            Some(subnet) => Ok(subnet),
            None => subnets.guess_api(cluster.as_ref(), &nodes),
        };
        if cluster.is_none() && inputs.cluster_subnets.is_empty() {
            let is_api = |subnet: &Subnet| api.as_ref().is_ok_and(|api| same(api, subnet));
            nodes.extend(shown.iter().filter(|subnet| !is_api(subnet)).cloned());
        }
        let mut once: Vec<Subnet> = Vec::new();
        for subnet in nodes {
            if !once.iter().any(|known| same(known, &subnet)) {
                once.push(subnet);
            }
        }
        errors.extend(nameless);
        if !errors.is_empty() {
            return Err(errors);
        }
        let api_guard = match &api {
            Ok(api) => api_group
                .clone()
                .unwrap_or_else(|| guard(api, &groups, "--api-nsg")),
            Err(_) => api_group.clone().unwrap_or_default(),
        };
        let guarded = |subnet: Subnet| {
            let guard = cluster_group
                .clone()
                .unwrap_or_else(|| guard(&subnet, &groups, "--cluster-nsg"));
            (subnet, guard)
        };
        let nodes = once.into_iter().map(guarded).collect();
        for guard in [api_group, cluster_group].into_iter().flatten() {
            if let Guard::Group(group) = guard {
                groups.push(group);
            }
        }
        let or_cluster = |flag: Vec<IpNet>, of: fn(&Cluster) -> &Vec<IpNet>| match (flag.is_empty(), &cluster)
        {
            (false, _) => Some(flag),
            (true, cluster) => cluster.as_ref().map(|cluster| of(cluster).clone()),
        };
        let space = match &network {
            Some(network) if inputs.network_ranges.is_empty() => network.space.clone(),
            _ => inputs.network_ranges,
        };
        Ok(Self {
            space,
            api,
            api_guard,
            nodes,
            missing,
            pods: or_cluster(inputs.pods, |cluster| &cluster.pods),
            services: or_cluster(inputs.services, |cluster| &cluster.services)
                .filter(|ranges| !ranges.is_empty()),
            groups,
            old_address: inputs.old_address,
            cluster,
            network,
        })
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

/// The subnets that documents tell about.
struct Subnets<'a> {
    /// With a document of their own.
    shown: &'a [Subnet],
    /// In the network's.
    listed: &'a [Subnet],
}

impl Subnets<'_> {
    fn all(&self) -> impl Iterator<Item = &Subnet> {
        // A document of its own tells more, and may be the younger one.
        let is_shown = |listed: &&Subnet| self.shown.iter().any(|shown| same(shown, listed));
        self.shown
            .iter()
            .chain(self.listed.iter().filter(move |listed| !is_shown(listed)))
    }

    fn by_id(&self, id: &str) -> Option<&Subnet> {
        self.all()
            .find(|subnet| !id.is_empty() && subnet.id.eq_ignore_ascii_case(id))
    }

    /// The one that a flag means, by its prefix, its name or its resource ID.
    fn said(&self, text: &str, flag: &str) -> Result<Subnet, InputError> {
        if let Ok(prefix) = text.parse::<IpNet>() {
            if prefix != prefix.trunc() {
                let message = format!("{text} has bits behind its prefix: write {}", prefix.trunc());
                return Err(InputError::new(flag, message));
            }
            let known = self.all().find(|subnet| subnet.prefixes.contains(&prefix));
            return Ok(known.cloned().unwrap_or_else(|| Subnet::bare(prefix)));
        }
        let named =
            |subnet: &&Subnet| subnet.id.eq_ignore_ascii_case(text) || subnet.name.eq_ignore_ascii_case(text);
        self.all().find(named).cloned().ok_or_else(|| {
            InputError::new(
                flag,
                format!("{text:?} is no prefix such as 10.226.0.0/28, and no document tells about a subnet of that name"),
            )
        })
    }

    /// The API server subnet, if it is not said: where the API server is, or what only can be meant.
    fn guess_api(&self, cluster: Option<&Cluster>, nodes: &[Subnet]) -> Result<Subnet, String> {
        if let Some(subnet) = cluster.and_then(|cluster| self.by_id(&cluster.api_subnet)) {
            return Ok(subnet.clone());
        }
        let mut delegated: Vec<&Subnet> = self.all().filter(|subnet| is_delegated(subnet)).collect();
        delegated.dedup_by(|a, b| same(a, b));
        if let [first, rest @ ..] = delegated.as_slice()
            && rest.iter().all(|other| same(first, other))
        {
            return Ok((*first).clone());
        }
        if delegated.len() > 1 {
            let names: Vec<String> = delegated.iter().map(|subnet| subnet.text()).collect();
            return Err(format!("several subnets are delegated: {}", names.join(", ")));
        }
        let is_node = |subnet: &Subnet| nodes.iter().any(|node| same(node, subnet));
        let mut others = self.shown.iter().filter(|subnet| !is_node(subnet));
        match (others.next(), others.next()) {
            (Some(only), None) if !nodes.is_empty() || self.shown.len() == 1 && cluster.is_none() => {
                Ok(only.clone())
            }
            _ => Err("nothing says which subnet is for the API server".to_owned()),
        }
    }
}

fn is_delegated(subnet: &Subnet) -> bool {
    let delegations = subnet.details.iter().flat_map(|details| &details.delegations);
    delegations
        .into_iter()
        .any(|service| service.eq_ignore_ascii_case(DELEGATE))
}

/// Whether they are one, by the ID, or by the prefixes where only one has an ID.
pub(super) fn same(a: &Subnet, b: &Subnet) -> bool {
    if a.id.is_empty() || b.id.is_empty() {
        a.prefixes == b.prefixes
    } else {
        a.id.eq_ignore_ascii_case(&b.id)
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
