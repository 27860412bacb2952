//! Which subnet is whose: by what is said, else by what the documents tell.

use ipnet::IpNet;

use super::{
    azure::{Cluster, DELEGATE, Subnet},
    error::InputError,
    facts::Inputs,
    material::Material,
};

/// Whose the subnets are.
pub(super) struct Roles {
    /// The API servers', or why it is not known.
    pub(super) api: Result<Subnet, String>,
    /// Those of nodes and of pods, each once.
    pub(super) nodes: Vec<Subnet>,
    /// IDs of those that the cluster has and no document tells about.
    pub(super) missing: Vec<String>,
}

impl Roles {
    /// Adds what is wrong with the flags.
    pub(super) fn of(inputs: &Inputs, material: &Material, errors: &mut Vec<InputError>) -> Self {
        let subnets = Subnets {
            shown: &material.subnets,
            listed: material.network.as_ref().map_or(&[], |network| &network.subnets),
        };
        let mut said =
            |text: &String, flag| subnets.said(text, flag).map_err(|error| errors.push(error)).ok();
        let (mut nodes, mut missing) = (Vec::new(), Vec::new());
        let flags = &inputs.cluster_subnets;
        nodes.extend(flags.iter().filter_map(|text| said(text, "--cluster-subnet")));
        let api = inputs
            .api_subnet
            .as_ref()
            .and_then(|text| said(text, "--api-subnet"));
        for id in material.cluster.iter().flat_map(|cluster| &cluster.subnets) {
            match subnets.by_id(id) {
                Some(subnet) => nodes.push(subnet.clone()),
                None if flags.is_empty() => missing.push(id.clone()),
                None => {}
            }
        }
        let api = api.map_or_else(|| subnets.guess_api(material.cluster.as_ref(), &nodes), Ok);
        if material.cluster.is_none() && flags.is_empty() {
            let is_api = |subnet: &Subnet| api.as_ref().is_ok_and(|api| same(api, subnet));
            nodes.extend(material.subnets.iter().filter(|subnet| !is_api(subnet)).cloned());
        }
        let mut once: Vec<Subnet> = Vec::new();
        for subnet in nodes {
            if !once.iter().any(|known| same(known, &subnet)) {
                once.push(subnet);
            }
        }
        Self {
            api,
            nodes: once,
            missing,
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
        let delegated = |subnets: &mut dyn Iterator<Item = &Subnet>| -> Vec<Subnet> {
            subnets.filter(|subnet| is_delegated(subnet)).cloned().collect()
        };
        let (shown, all) = (delegated(&mut self.shown.iter()), delegated(&mut self.all()));
        match (shown.as_slice(), all.as_slice()) {
            ([only], _) | ([], [only]) => return Ok(only.clone()),
            (_, []) => {}
            (_, several) => {
                let names: Vec<String> = several.iter().map(Subnet::text).collect();
                return Err(format!("several subnets are delegated: {}", names.join(", ")));
            }
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
