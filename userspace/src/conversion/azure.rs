//! Clusters, networks and subnets, as far as a conversion is about them.

use ipnet::IpNet;
use serde_json::Value;

use super::{document::Document, error::InputError};
use crate::go_json::{Fields, ShapeError};

/// The service that the subnet is delegated to.
pub const DELEGATE: &str = "Microsoft.ContainerService/managedClusters";

/// `az aks show`.
#[derive(Clone, Debug, Default)]
pub struct Cluster {
    /// Its name.
    pub name: String,
    /// Resource IDs of the subnets of nodes and of pods, each once.
    pub subnets: Vec<String>,
    /// Whether nodes are in a network that AKS made.
    pub managed_network: bool,
    /// Whether the API server is in the network already.
    pub integrated: bool,
    /// Where it is then.
    pub api_subnet: String,
    /// Whether the API server has no public address.
    pub private: bool,
    /// Who may come in by the public address; everybody if there are none.
    pub authorized: Vec<String>,
    /// Pods' addresses, if they are not the network's.
    pub pods: Vec<IpNet>,
    /// Services' addresses.
    pub services: Vec<IpNet>,
    /// Whether one of its families is IPv6.
    pub dual_stack: bool,
    /// The kind of its identity, and the identities.
    pub identity: (String, Vec<String>),
}

/// `az network vnet show`.
#[derive(Clone, Debug, Default)]
pub struct Network {
    /// Its resource ID.
    pub id: String,
    /// Its addresses.
    pub space: Vec<IpNet>,
    /// Addresses of the networks that it is connected with.
    pub peers: Vec<IpNet>,
    /// Its subnets.
    pub subnets: Vec<Subnet>,
    /// Whether traffic inside is encrypted.
    pub encrypted: bool,
}

/// A subnet.
#[derive(Clone, Debug, Default)]
pub struct Subnet {
    /// Its resource ID; empty where only the prefix is known.
    pub id: String,
    /// Its name, or its prefix.
    pub name: String,
    /// Its addresses.
    pub prefixes: Vec<IpNet>,
    /// What only a document says.
    pub details: Option<Details>,
}

/// What `az network vnet subnet show` says besides the prefix.
#[derive(Clone, Debug, Default)]
pub struct Details {
    /// Services that it is delegated to.
    pub delegations: Vec<String>,
    /// Resource IDs of what has an address in it.
    pub tenants: Vec<String>,
    /// Types of the services that hold it.
    pub links: Vec<String>,
    /// Resource IDs of private endpoints.
    pub endpoints: Vec<String>,
    /// Resource ID of its network security group; empty for none.
    pub group: String,
    /// Resource ID of its route table; empty for none.
    pub routes: String,
}

impl Cluster {
    /// Reads one.
    pub fn read(document: &Document) -> Result<Self, InputError> {
        Self::of(document).map_err(|error| document.shape(&error))
    }

    fn of(document: &Document) -> Result<Self, ShapeError> {
        let fields = Fields::of(&document.value, "")?;
        let mut cluster = Self {
            name: fields.string("name")?.to_owned(),
            ..Self::default()
        };
        for pool in fields.objects("agentPoolProfiles")? {
            let nodes = pool.string("vnetSubnetId")?;
            cluster.managed_network |= nodes.is_empty();
            for subnet in [nodes, pool.string("podSubnetId")?] {
                if !subnet.is_empty()
                    && !cluster
                        .subnets
                        .iter()
                        .any(|known| known.eq_ignore_ascii_case(subnet))
                {
                    cluster.subnets.push(subnet.to_owned());
                }
            }
        }
        if let Some(access) = fields.object("apiServerAccessProfile")? {
            cluster.integrated = access.flag("enableVnetIntegration")?;
            access.string("subnetId")?.clone_into(&mut cluster.api_subnet);
            cluster.private = access.flag("enablePrivateCluster")?;
            cluster.authorized = access.strings("authorizedIpRanges")?;
        }
        if let Some(network) = fields.object("networkProfile")? {
            cluster.pods = networks(&network, "podCidr", "podCidrs")?;
            cluster.services = networks(&network, "serviceCidr", "serviceCidrs")?;
            cluster.dual_stack = network
                .strings("ipFamilies")?
                .iter()
                .any(|family| family.eq_ignore_ascii_case("IPv6"));
        }
        if let Some(identity) = fields.object("identity")? {
            let assigned = identity.get("userAssignedIdentities").and_then(Value::as_object);
            let ids = assigned.map_or_else(Vec::new, |assigned| assigned.keys().cloned().collect());
            cluster.identity = (identity.string("type")?.to_owned(), ids);
        }
        Ok(cluster)
    }
}

impl Network {
    /// Reads one.
    pub fn read(document: &Document) -> Result<Self, InputError> {
        Self::of(document).map_err(|error| document.shape(&error))
    }

    fn of(document: &Document) -> Result<Self, ShapeError> {
        let fields = Fields::of(&document.value, "")?;
        let mut network = Self {
            id: fields.string("id")?.to_owned(),
            ..Self::default()
        };
        if let Some(space) = fields.object("addressSpace")? {
            network.space = networks(&space, "addressPrefix", "addressPrefixes")?;
        }
        for peering in fields.objects("virtualNetworkPeerings")? {
            let access = peering
                .get("allowVirtualNetworkAccess")
                .is_none_or(|value| value == true);
            if access && peering.string("peeringState")?.eq_ignore_ascii_case("Connected") {
                for key in ["remoteAddressSpace", "remoteVirtualNetworkAddressSpace"] {
                    if let Some(space) = peering.object(key)? {
                        network
                            .peers
                            .extend(networks(&space, "addressPrefix", "addressPrefixes")?);
                    }
                }
            }
        }
        network.subnets = fields
            .objects("subnets")?
            .iter()
            .map(Subnet::of)
            .collect::<Result<_, _>>()?;
        if let Some(encryption) = fields.object("encryption")? {
            network.encrypted = encryption.flag("enabled")?;
        }
        Ok(network)
    }
}

impl Subnet {
    /// Reads one.
    pub fn read(document: &Document) -> Result<Self, InputError> {
        Fields::of(&document.value, "")
            .and_then(|fields| Self::of(&fields))
            .map_err(|error| document.shape(&error))
    }

    /// One of which only the prefix is known.
    pub fn bare(prefix: IpNet) -> Self {
        Self {
            name: prefix.to_string(),
            prefixes: vec![prefix],
            ..Self::default()
        }
    }

    fn of(fields: &Fields<'_>) -> Result<Self, ShapeError> {
        let ids = |key: &str, id: &str| {
            let each = fields.objects(key)?;
            each.iter()
                .map(|each| each.string(id).map(str::to_owned))
                .collect::<Result<Vec<_>, _>>()
        };
        let reference = |key: &str| match fields.object(key)? {
            Some(resource) => resource.string("id").map(str::to_owned),
            None => Ok(String::new()),
        };
        let mut links = ids("serviceAssociationLinks", "linkedResourceType")?;
        links.extend(ids("resourceNavigationLinks", "linkedResourceType")?);
        let id = fields.string("id")?.to_owned();
        let name = match fields.string("name")? {
            "" => id.rsplit('/').next().unwrap_or_default().to_owned(),
            name => name.to_owned(),
        };
        Ok(Self {
            id,
            name,
            prefixes: networks(fields, "addressPrefix", "addressPrefixes")?,
            details: Some(Details {
                delegations: ids("delegations", "serviceName")?,
                tenants: ids("ipConfigurations", "id")?,
                links,
                endpoints: ids("privateEndpoints", "id")?,
                group: reference("networkSecurityGroup")?,
                routes: reference("routeTable")?,
            }),
        })
    }

    /// The IPv4 ones of its prefixes.
    pub fn v4(&self) -> impl Iterator<Item = &IpNet> {
        self.prefixes
            .iter()
            .filter(|prefix| matches!(prefix, IpNet::V4(_)))
    }

    /// The resource ID of its network; empty where it is not known.
    pub fn network(&self) -> &str {
        match self.id.to_ascii_lowercase().rfind("/subnets/") {
            Some(end) => &self.id[..end],
            None => "",
        }
    }

    /// Name and prefixes.
    pub fn text(&self) -> String {
        let prefixes: Vec<String> = self.prefixes.iter().map(IpNet::to_string).collect();
        match prefixes.join(", ") {
            prefixes if prefixes == self.name => prefixes,
            prefixes => format!("{} ({prefixes})", self.name),
        }
    }
}

/// The networks under the plural key, or the one under the singular.
fn networks(fields: &Fields<'_>, one: &str, many: &str) -> Result<Vec<IpNet>, ShapeError> {
    let expected = "a range such as 10.240.0.0/16";
    let parse = |text: &str| text.parse::<IpNet>().ok().map(|network| network.trunc());
    let listed = fields.strings(many)?;
    if listed.is_empty() {
        return Ok(fields.parsed(one, expected, parse)?.into_iter().collect());
    }
    let each = listed
        .iter()
        .map(|text| parse(text).ok_or_else(|| fields.unlike(many, expected)));
    each.collect()
}
