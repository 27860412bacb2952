//! What a cluster needs, whether it fits, and how far it can grow.
//!
//! Azure gives an interface that asks for no address of its own the lowest free one of the subnet. So masters' own
//! addresses and the internal load balancer's, which are chosen, have to be above what is given until then.

mod ranges;

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use serde::Serialize;

use super::{
    Fault, Prefix, Severity,
    definition::{Definition, MOST_AGENTS, Pool},
    json::Place,
};

/// Azure's own in every subnet: the first four and the last one.
pub const AZURES_OWN: u64 = 5;
/// How far above the first master the internal load balancer is.
const BALANCER: u32 = 10;
/// Addresses that a virtual network holds.
const MOST_IN_NETWORK: u64 = 65_536;

/// The numbers.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    /// `networkPlugin`.
    pub network_plugin: String,
    /// Whether the subnets are there before the cluster.
    pub custom_network: bool,
    /// Masters first.
    pub pools: Vec<PoolNeeds>,
    /// Each subnet.
    pub subnets: Vec<SubnetNeeds>,
    /// The masters' own addresses, and the load balancer's, where they are chosen.
    pub chosen: Option<Chosen>,
    /// Addresses in all.
    pub needed: u64,
}

/// A pool.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PoolNeeds {
    /// Its name.
    pub name: String,
    /// Nodes.
    pub count: u32,
    /// Pods a node.
    pub max_pods: u32,
    /// Addresses a node, its own among them.
    pub addresses_per_node: u32,
    /// Addresses in all.
    pub needed: u64,
    /// Its subnet's name.
    pub subnet: String,
    /// Nodes it can have in all if it alone grows, until the subnet is full or the engine takes no more; of masters, none more.
    pub most: Option<u32>,
}

/// A subnet.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SubnetNeeds {
    /// Its name; `cluster` for the one that comes with the cluster.
    pub name: String,
    /// Its prefix, where somebody said.
    pub prefix: Option<Ipv4Net>,
    /// Addresses without Azure's own.
    pub usable: Option<u64>,
    /// Addresses that are needed.
    pub needed: u64,
    /// Addresses that are left; below 0 if it does not fit.
    pub free: Option<i64>,
}

/// Chosen addresses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Chosen {
    /// The masters', in their order.
    pub masters: Vec<Ipv4Addr>,
    /// The internal load balancer's; with one master there is none.
    pub load_balancer: Option<Ipv4Addr>,
}

impl Chosen {
    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = Ipv4Addr> {
        self.masters.iter().copied().chain(self.load_balancer)
    }
}

/// Reckons, and adds what does not fit. The numbers are wrong where the definition is.
pub fn reckon(definition: &Definition, prefixes: &[Prefix], faults: &mut Vec<Fault>) -> Plan {
    let mut reckoning = Reckoning {
        definition,
        prefixes,
        faults,
    };
    let chosen = reckoning.chosen();
    let mut subnets = reckoning.subnets(chosen.as_ref());
    reckoning.overlaps(&subnets);
    reckoning.dynamic(&subnets, chosen.as_ref());
    let pools = reckoning.pools(&subnets);
    if !definition.azure_cni {
        reckoning.kubenet();
    }
    subnets.sort_by(|a, b| a.name.cmp(&b.name));
    Plan {
        network_plugin: definition.plugin.clone(),
        custom_network: definition.custom,
        needed: subnets.iter().map(|subnet| subnet.needed).sum(),
        pools,
        subnets,
        chosen,
    }
}

struct Reckoning<'a> {
    definition: &'a Definition,
    prefixes: &'a [Prefix],
    faults: &'a mut Vec<Fault>,
}

impl Reckoning<'_> {
    fn all(&self) -> impl Iterator<Item = &Pool> {
        std::iter::once(&self.definition.masters).chain(&self.definition.pools)
    }

    /// The masters' addresses and the load balancer's: counted in the last byte, by the engine's templates.
    fn chosen(&mut self) -> Option<Chosen> {
        let definition = self.definition;
        let (first, at) = match &definition.first_static {
            Some(first) => (first.value, first.at.clone()),
            None if definition.custom => return None,
            None => (self.default_first(), definition.masters.at.clone()),
        };
        let [a, b, c, last] = first.octets();
        let after = |more: u32| {
            u8::try_from(u32::from(last) + more)
                .ok()
                .map(|last| Ipv4Addr::new(a, b, c, last))
        };
        // A scale set's machines have their addresses one behind the other.
        let step = if definition.masters.is_scale_set {
            definition.masters.addresses
        } else {
            1
        };
        let masters: Vec<Ipv4Addr> = (0..definition.masters.count)
            .map_while(|index| after(index * step))
            .collect();
        let load_balancer = match (definition.masters.count, definition.masters.is_scale_set) {
            (1, _) => None,
            (_, true) => Some(Ipv4Addr::new(a, b, 255, BALANCER as u8)),
            (_, false) => after(BALANCER),
        };
        if definition.masters.is_scale_set && masters.len() < definition.masters.count as usize {
            self.warn(
                &at,
                format!(
                    "masters are {step} addresses apart from {first} on, and the engine counts in the last byte: not all of \
                     {} have room up to 255",
                    definition.masters.count
                ),
            );
            return None;
        }
        let is_one_missing = definition.masters.count > 1 && load_balancer.is_none();
        if is_one_missing || masters.len() < definition.masters.count as usize {
            self.error(
                &at,
                format!(
                    "the internal load balancer is {BALANCER} above {first} in the last byte, which ends at 255: choose a \
                     last byte of {} or less",
                    255 - BALANCER - 1
                ),
            );
            return None;
        }
        let chosen = Chosen {
            masters,
            load_balancer,
        };
        let name = &definition.masters.subnet;
        if let Some(prefix) = self.prefix(name) {
            for (index, address) in chosen.all().enumerate() {
                let whose = if index < chosen.masters.len() {
                    format!("master {index}")
                } else {
                    "the internal load balancer".to_owned()
                };
                if !prefix.contains(&address) {
                    self.error(
                        &at,
                        format!("{whose} has {address}, which is not in the subnet, {prefix}"),
                    );
                    break;
                } else if is_azures(prefix, address) {
                    self.error(
                        &at,
                        format!("{whose} has {address}, which is Azure's own in {prefix}"),
                    );
                }
            }
        }
        Some(chosen)
    }

    /// The engine's choice: near the end of the cluster's own subnet.
    fn default_first(&self) -> Ipv4Addr {
        let [a, b, c, _] = self.own_prefix().broadcast().octets();
        Ipv4Addr::new(
            a,
            b,
            c,
            if self.definition.masters.is_scale_set {
                4
            } else {
                5
            },
        )
    }

    /// The prefix of the subnet that comes with the cluster.
    fn own_prefix(&self) -> Ipv4Net {
        if self.definition.azure_cni {
            self.definition.cluster_subnet.value
        } else {
            Ipv4Net::new_assert(Ipv4Addr::new(10, 240, 0, 0), 16)
        }
    }

    /// The prefix of a subnet, where somebody said: the only one's is `clusterSubnet`, by the plug-in's documentation.
    fn prefix(&self, name: &str) -> Option<Ipv4Net> {
        if !self.definition.custom {
            return Some(self.own_prefix());
        }
        let said = |prefix: &&Prefix| prefix.subnet.eq_ignore_ascii_case(name);
        let is_only = self.all().all(|pool| pool.subnet.eq_ignore_ascii_case(name));
        let only = |prefix: &&Prefix| is_only && prefix.subnet.is_empty();
        let found = self
            .prefixes
            .iter()
            .find(said)
            .or_else(|| self.prefixes.iter().find(only));
        let cluster = &self.definition.cluster_subnet;
        let by_definition = is_only && self.definition.azure_cni && cluster.is_written;
        found
            .map(|prefix| prefix.prefix)
            .or_else(|| by_definition.then_some(cluster.value))
    }

    fn subnets(&mut self, chosen: Option<&Chosen>) -> Vec<SubnetNeeds> {
        let mut subnets: Vec<SubnetNeeds> = Vec::new();
        let pools: Vec<(String, u64, Place)> = self
            .all()
            .map(|pool| (pool.subnet.clone(), needs(pool), pool.at.clone()))
            .collect();
        let mut unknown = Vec::new();
        for (index, (name, needed, at)) in pools.into_iter().enumerate() {
            let balancer =
                u64::from(index == 0 && chosen.is_some_and(|chosen| chosen.load_balancer.is_some()));
            let shown = if name.is_empty() {
                "cluster".to_owned()
            } else {
                name.clone()
            };
            if let Some(known) = subnets
                .iter_mut()
                .find(|known| known.name.eq_ignore_ascii_case(&shown))
            {
                known.needed += needed + balancer;
                continue;
            }
            let prefix = self.prefix(&name);
            if prefix.is_none() {
                unknown.push((name.clone(), at));
            }
            subnets.push(SubnetNeeds {
                name: shown,
                prefix,
                usable: prefix.map(usable),
                needed: needed + balancer,
                free: None,
            });
        }
        for (name, at) in unknown {
            self.warn(
                &at,
                format!(
                    "the prefix of the subnet {name} is not in the definition: say it, --subnet {name}=PREFIX"
                ),
            );
        }
        for subnet in &mut subnets {
            subnet.free = subnet
                .usable
                .map(|usable| usable.cast_signed() - subnet.needed.cast_signed());
            if let (Some(free), Some(usable), Some(prefix)) = (subnet.free, subnet.usable, subnet.prefix)
                && free < 0
            {
                let at = self.definition.cluster_subnet.at.clone();
                let text = format!(
                    "the subnet {prefix} has {usable} addresses without Azure's {AZURES_OWN}, and {} are needed: {} too few",
                    subnet.needed, -free
                );
                self.faults.push(Fault::new(Severity::Error, &at, text));
            }
        }
        let needed: u64 = subnets.iter().map(|subnet| subnet.needed).sum();
        if needed > MOST_IN_NETWORK {
            let at = self.definition.masters.at.clone();
            self.error(
                &at,
                format!("{needed} addresses are needed, and a virtual network holds {MOST_IN_NETWORK}"),
            );
        }
        subnets
    }

    /// How far each pool can grow.
    fn pools(&self, subnets: &[SubnetNeeds]) -> Vec<PoolNeeds> {
        let of = |(index, pool): (usize, &Pool)| {
            let name = if pool.subnet.is_empty() {
                "cluster"
            } else {
                &pool.subnet
            };
            let subnet = subnets
                .iter()
                .find(|subnet| subnet.name.eq_ignore_ascii_case(name));
            let free = subnet.and_then(|subnet| subnet.free);
            let more = free.map(|free| free.div_euclid(pool.addresses.max(1).into()));
            let most = more.map(|more| {
                (i64::from(pool.count) + more)
                    .clamp(0, MOST_AGENTS.into())
                    .cast_unsigned() as u32
            });
            PoolNeeds {
                name: pool.name.clone(),
                count: pool.count,
                max_pods: pool.max_pods,
                addresses_per_node: pool.addresses,
                needed: needs(pool),
                subnet: name.to_owned(),
                most: most.filter(|_| index > 0),
            }
        };
        self.all().enumerate().map(of).collect()
    }

    fn error(&mut self, at: &Place, message: impl Into<String>) {
        self.faults.push(Fault::new(Severity::Error, at, message));
    }

    fn warn(&mut self, at: &Place, message: impl Into<String>) {
        self.faults.push(Fault::new(Severity::Warning, at, message));
    }
}

/// Addresses of a subnet without Azure's own.
pub fn usable(prefix: Ipv4Net) -> u64 {
    (1_u64 << (32 - prefix.prefix_len())).saturating_sub(AZURES_OWN)
}

/// Whether Azure keeps the address for itself.
pub fn is_azures(prefix: Ipv4Net, address: Ipv4Addr) -> bool {
    address == prefix.broadcast()
        || u64::from(address.to_bits().wrapping_sub(prefix.network().to_bits())) < AZURES_OWN - 1
}

fn needs(pool: &Pool) -> u64 {
    u64::from(pool.count) * u64::from(pool.addresses)
}
