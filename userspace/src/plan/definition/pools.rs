//! Masters and agents: how many, with how many addresses, in which subnet.

use std::net::Ipv4Addr;

use super::{
    super::json::{Node, Value},
    MOST_ADDRESSES, MOST_AGENTS, Pool, Said,
    reader::{Reader, shown},
};

impl Reader<'_> {
    pub(super) fn masters(&mut self, node: &Node, max_pods: u32, addresses: Option<u32>) -> Pool {
        let mut pool = self.pool(node, "master", max_pods, addresses);
        match node.get("count") {
            None if matches!(&node.value, Value::Object(members) if members.is_empty()) => {}
            None => self.missing(node, "count", "1, 3 or 5"),
            Some(count) => match &count.value {
                Value::Number(text) if matches!(text.as_str(), "1" | "3" | "5") => {
                    pool.count = text.parse().unwrap_or(1);
                }
                other => self.error(&count.at, format!("expected 1, 3 or 5, found {}", shown(other))),
            },
        }
        pool
    }

    pub(super) fn agents<'n>(
        &mut self,
        properties: &'n Node,
        max_pods: u32,
        addresses: Option<u32>,
    ) -> Vec<(&'n Node, Pool)> {
        let Some(list) = properties.get("agentPoolProfiles") else {
            self.missing(properties, "agentPoolProfiles", "a list of pools");
            return Vec::new();
        };
        let Value::List(nodes) = &list.value else {
            self.error(
                &list.at,
                format!("expected a list of pools, found {}", shown(&list.value)),
            );
            return Vec::new();
        };
        let mut pools: Vec<(&Node, Pool)> = Vec::new();
        for node in nodes {
            if !self.is_object(node) {
                continue;
            }
            let (name, at) = self.string(node, "name").unwrap_or_default();
            if node.get("name").is_none() {
                self.missing(node, "name", "a name");
            } else if !is_pool_name(&name) {
                self.error(
                    &at,
                    format!("{name:?} is no pool's name: up to 12 small letters and digits, a letter first"),
                );
            } else if pools.iter().any(|(_, pool)| pool.name == name) || name == "master" {
                self.error(&at, format!("there is a pool {name:?} already"));
            }
            let mut pool = self.pool(node, &name, max_pods, addresses);
            match node.get("count") {
                None => self.missing(node, "count", format!("a number from 1 to {MOST_AGENTS}")),
                Some(count) => pool.count = self.number(count, 1, MOST_AGENTS).unwrap_or(1),
            }
            pools.push((node, pool));
        }
        pools
    }

    /// What masters and agents have in common.
    pub(super) fn pool(&mut self, node: &Node, name: &str, max_pods: u32, addresses: Option<u32>) -> Pool {
        let profile = self.string(node, "availabilityProfile");
        let is_scale_set = match &profile {
            Some((kind, _)) if kind == "VirtualMachineScaleSets" => true,
            Some((kind, at)) if !kind.is_empty() && kind != "AvailabilitySet" => {
                self.error(
                    at,
                    format!("expected AvailabilitySet or VirtualMachineScaleSets, found {kind:?}"),
                );
                false
            }
            _ => false,
        };
        let own = node
            .get("kubernetesConfig")
            .filter(|config| self.is_object(config));
        let max_pods = own.and_then(|config| self.max_pods(config)).unwrap_or(max_pods);
        let default = addresses.unwrap_or(max_pods + 1);
        let said = node
            .get("ipAddressCount")
            .map(|said| (said, self.number(said, 0, MOST_ADDRESSES)));
        if let (None, true) = (&said, default > MOST_ADDRESSES) {
            self.error(
                &node.at,
                format!("{default} addresses a node: a network interface holds {MOST_ADDRESSES}"),
            );
        }
        let addresses = match said {
            None | Some((_, Some(0) | None)) => default,
            Some((said, Some(count))) => {
                if count < default {
                    self.warn(
                        &said.at,
                        format!(
                            "{} of {max_pods} pods have an address: the others wait",
                            count - 1
                        ),
                    );
                }
                count
            }
        };
        Pool {
            name: name.to_owned(),
            at: node.at.clone(),
            is_scale_set,
            count: 1,
            max_pods,
            addresses,
            subnet: self
                .subnet_id(node, "vnetSubnetId")
                .map_or_else(String::new, |(_, name)| name),
        }
    }

    /// Network and name in a subnet's ID.
    pub(super) fn subnet_id(&mut self, node: &Node, key: &str) -> Option<(String, String)> {
        let (id, at) = self.string(node, key).filter(|(id, _)| !id.is_empty())?;
        let parts: Vec<&str> = id.split('/').collect();
        let fixed = [
            "",
            "subscriptions",
            "resourceGroups",
            "providers",
            "Microsoft.Network",
            "virtualNetworks",
            "subnets",
        ];
        let here = [0, 1, 3, 5, 6, 7, 9].map(|index| parts.get(index).copied().unwrap_or("?"));
        let is_id = parts.len() == 11 && here.iter().zip(fixed).all(|(a, b)| a.eq_ignore_ascii_case(b));
        if !is_id || parts.iter().skip(1).any(|part| part.is_empty()) {
            let form =
                "/subscriptions/…/resourceGroups/…/providers/Microsoft.Network/virtualNetworks/…/subnets/…";
            self.error(&at, format!("expected a subnet's ID, {form}"));
            return None;
        }
        Some((parts[..9].join("/"), parts[10].to_owned()))
    }

    /// Whether the subnets are there before the cluster: all of them, or none, and all of one network.
    pub(super) fn subnets(&mut self, master: &Node, agents: &[(&Node, Pool)]) -> bool {
        let nodes: Vec<&Node> = std::iter::once(master)
            .chain(agents.iter().map(|(node, _)| *node))
            .collect();
        let has = |node: &&&Node| {
            node.get("vnetSubnetId")
                .is_some_and(|id| id.value != Value::String(String::new()))
        };
        if nodes.iter().filter(has).count() == 0 {
            return false;
        }
        for node in nodes.iter().filter(|node| !has(node)) {
            self.error(
                &node.at,
                "there is no vnetSubnetId here, and there is one elsewhere: masters and pools all have one, or none has",
            );
        }
        let mut first: Option<String> = None;
        let mut ids: Vec<(&Node, &str)> = nodes.into_iter().map(|node| (node, "vnetSubnetId")).collect();
        ids.push((master, "agentVnetSubnetID"));
        for (node, key) in ids {
            let before = self.faults.len();
            let found = self.subnet_id(node, key);
            if key == "vnetSubnetId" {
                // Said already where the pool was read.
                self.faults.truncate(before);
            }
            let (Some((network, _)), Some(at)) = (found, node.get(key).map(|id| id.at.clone())) else {
                continue;
            };
            match &first {
                None => first = Some(network),
                Some(known) if known.eq_ignore_ascii_case(&network) => {}
                Some(known) => self.error(&at, format!("is in another network than {known}")),
            }
        }
        true
    }

    pub(super) fn first_static(
        &mut self,
        node: &Node,
        masters: &Pool,
        custom: bool,
    ) -> Option<Said<Ipv4Addr>> {
        let key = "firstConsecutiveStaticIP";
        if custom && masters.is_scale_set && node.get("agentVnetSubnetID").is_none() {
            self.missing(
                node,
                "agentVnetSubnetID",
                "the ID of the agents' subnet, as masters are a scale set",
            );
        }
        let said = self.string(node, key).filter(|(text, _)| !text.is_empty());
        let Some((text, at)) = said else {
            if custom && !masters.is_scale_set {
                self.missing(
                    node,
                    key,
                    "the first master's address, as the subnet is there before the cluster",
                );
            }
            return None;
        };
        if masters.is_scale_set {
            self.error(
                &at,
                "masters that are a scale set have no address of their choice: leave it out",
            );
            return None;
        }
        let Ok(value) = text.parse() else {
            self.error(
                &at,
                format!("expected an address such as 10.240.255.5, found {text:?}"),
            );
            return None;
        };
        if !custom {
            self.warn(&at, "is not used: it takes a vnetSubnetId");
            return None;
        }
        Some(Said {
            value,
            at,
            is_written: true,
        })
    }
}

fn is_pool_name(name: &str) -> bool {
    let mut letters = name.chars();
    letters.next().is_some_and(|c| c.is_ascii_lowercase())
        && name.len() <= 12
        && letters.all(|c| c.is_ascii_lowercase() || c.is_ascii_digit())
}
