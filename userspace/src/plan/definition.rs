//! What of a cluster definition is about addresses, with the engine's defaults and by its rules.
//!
//! The rules are those of aks-engine's `pkg/api/vlabs/validate.go` and of Azure's documentation of the plug-in
//! (<https://learn.microsoft.com/azure/virtual-network/deploy-container-networking>), where that says more.

mod pools;
mod reader;

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use self::reader::Reader;
use super::{
    Fault, Severity,
    json::{Node, Place, Value},
};

/// Without a word about it.
const MAX_PODS: u32 = 30;
/// As AKS and the plug-in's documentation have it.
const MOST_PODS: u32 = 250;
/// Without a word about it, where pods' addresses are not the subnet's.
const KUBENET_MAX_PODS: u32 = 110;
/// What a network interface holds.
const MOST_ADDRESSES: u32 = 256;
/// Agents of a pool.
pub const MOST_AGENTS: u32 = 100;
/// Host bits that the engine asks of Azure CNI's cluster subnet.
const HOST_BITS: u8 = 9;

/// A definition, as far as it is about addresses.
#[derive(Clone, Debug)]
pub struct Definition {
    /// Whether everything is right that numbers are reckoned from.
    pub is_whole: bool,
    /// Whether pods have addresses of the nodes' subnet: Azure CNI.
    pub azure_cni: bool,
    /// `networkPlugin`.
    pub plugin: String,
    /// Whether the subnets are there before the cluster.
    pub custom: bool,
    /// `clusterSubnet`.
    pub cluster_subnet: Said<Ipv4Net>,
    /// `serviceCidr`.
    pub services: Said<Ipv4Net>,
    /// `vnetCidr`.
    pub network: Option<Said<Ipv4Net>>,
    /// `firstConsecutiveStaticIP`.
    pub first_static: Option<Said<Ipv4Addr>>,
    /// The masters.
    pub masters: Pool,
    /// The agents.
    pub pools: Vec<Pool>,
}

/// A value and where it stands, or stood if it were written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said<T> {
    /// The value.
    pub value: T,
    /// Its place, or its object's.
    pub at: Place,
    /// Whether it is not the default.
    pub is_written: bool,
}

/// Nodes of one kind.
#[derive(Clone, Debug)]
pub struct Pool {
    /// `master`, or the pool's.
    pub name: String,
    /// Where it begins.
    pub at: Place,
    /// Whether they are a scale set.
    pub is_scale_set: bool,
    /// How many.
    pub count: u32,
    /// Of each.
    pub max_pods: u32,
    /// Of each, its own among them.
    pub addresses: u32,
    /// Last part of the subnet's ID; empty for the cluster's own.
    pub subnet: String,
}

impl Definition {
    /// Reads it, and adds what is wrong. `None` if it is no cluster definition at all.
    pub fn read(root: &Node, faults: &mut Vec<Fault>) -> Option<Self> {
        let before = faults.len();
        let mut reader = Reader { faults };
        let properties = reader.model(root)?;
        let none = |at: &Place| Node {
            at: at.clone(),
            value: Value::Object(Vec::new()),
        };
        let orchestrator = reader.object(properties, "orchestratorProfile").cloned();
        let orchestrator = orchestrator.unwrap_or_else(|| none(&properties.at));
        reader.orchestrator(&orchestrator);
        let config = match orchestrator.get("kubernetesConfig") {
            Some(node) => reader.is_object(node).then(|| node.clone()),
            None => None,
        };
        let config = config.unwrap_or_else(|| none(&orchestrator.at));
        let plugin = reader.plugin(&config);
        let azure_cni = plugin == "azure";
        let defaults = if azure_cni {
            (MAX_PODS, None)
        } else {
            (KUBENET_MAX_PODS, Some(1))
        };
        let max_pods = reader.max_pods(&config).unwrap_or(defaults.0);
        let cluster_subnet = reader.cluster_subnet(&config, azure_cni);
        let services = reader.network(&config, "serviceCidr").unwrap_or_else(|| Said {
            value: Ipv4Net::new_assert(Ipv4Addr::new(10, 0, 0, 0), 16),
            at: config.at.clone(),
            is_written: false,
        });
        reader.dns_service(&config, &services);
        let master = reader.object(properties, "masterProfile").cloned();
        let master = master.unwrap_or_else(|| none(&properties.at));
        let masters = reader.masters(&master, max_pods, defaults.1);
        let agents = reader.agents(properties, max_pods, defaults.1);
        let custom = reader.subnets(&master, &agents);
        let first_static = reader.first_static(&master, &masters, custom);
        let network = reader.network(&master, "vnetCidr");
        let pools = agents.into_iter().map(|(_, pool)| pool).collect();
        let is_whole = faults[before..]
            .iter()
            .all(|fault| fault.severity == Severity::Warning);
        Some(Self {
            is_whole,
            azure_cni,
            plugin,
            custom,
            cluster_subnet,
            services,
            network,
            first_static,
            masters,
            pools,
        })
    }
}

impl Reader<'_> {
    /// The properties of a definition of this model.
    fn model<'n>(&mut self, root: &'n Node) -> Option<&'n Node> {
        if !self.is_object(root) {
            return None;
        }
        match root.get("apiVersion").map(|version| (&version.value, version)) {
            Some((Value::String(version), _)) if version == "vlabs" => {}
            Some((_, version)) => {
                self.error(&version.at, "expected \"vlabs\": other models have other fields");
            }
            None => self.missing(root, "apiVersion", "\"vlabs\""),
        }
        self.object(root, "properties")
    }

    fn orchestrator(&mut self, profile: &Node) {
        if let Some(kind) = self.string(profile, "orchestratorType")
            && kind.0 != "Kubernetes"
        {
            self.error(&kind.1, format!("expected \"Kubernetes\", found {:?}", kind.0));
        }
    }

    /// The plug-in, or the one that a policy brings along.
    fn plugin(&mut self, config: &Node) -> String {
        let plugin = self
            .string(config, "networkPlugin")
            .filter(|(name, _)| !name.is_empty());
        let policy = self
            .string(config, "networkPolicy")
            .map_or_else(String::new, |(name, _)| name);
        match (plugin, policy.as_str()) {
            (Some((name, at)), _) => {
                if !["azure", "kubenet", "flannel", "cilium"].contains(&name.as_str()) {
                    self.error(
                        &at,
                        format!("expected azure, kubenet, flannel or cilium, found {name:?}"),
                    );
                }
                name
            }
            (None, "none" | "calico") => "kubenet".to_owned(),
            (None, "cilium") => "cilium".to_owned(),
            (None, _) => "azure".to_owned(),
        }
    }

    fn max_pods(&mut self, config: &Node) -> Option<u32> {
        let legacy = config
            .get("maxPods")
            .filter(|node| node.value != Value::Number("0".to_owned()));
        let legacy = legacy.and_then(|node| self.number(node, 5, MOST_PODS));
        let kubelet = config.get("kubeletConfig")?;
        if !self.is_object(kubelet) {
            return legacy;
        }
        let Some(node) = kubelet.get("--max-pods") else {
            return legacy;
        };
        let Value::String(text) = &node.value else {
            self.error(
                &node.at,
                format!("expected a number in quotes, such as \"{MAX_PODS}\""),
            );
            return legacy;
        };
        let pods = text.parse().ok().filter(|pods| (1..=MOST_PODS).contains(pods));
        if pods.is_none() {
            self.error(
                &node.at,
                format!("expected a number in quotes, from 1 to {MOST_PODS}, found {text:?}"),
            );
        }
        pods.or(legacy)
    }

    fn cluster_subnet(&mut self, config: &Node, azure_cni: bool) -> Said<Ipv4Net> {
        let default = if azure_cni {
            Ipv4Net::new_assert(Ipv4Addr::new(10, 240, 0, 0), 12)
        } else {
            Ipv4Net::new_assert(Ipv4Addr::new(10, 244, 0, 0), 16)
        };
        let Some(said) = self.network(config, "clusterSubnet") else {
            return Said {
                value: default,
                at: config.at.clone(),
                is_written: false,
            };
        };
        let bits = said.value.max_prefix_len() - said.value.prefix_len();
        if azure_cni && bits < HOST_BITS {
            self.error(
                &said.at,
                format!(
                    "{} has {bits} bits for nodes and pods; Azure CNI needs {HOST_BITS}: a /{} or larger",
                    said.value,
                    32 - HOST_BITS
                ),
            );
        }
        said
    }

    fn dns_service(&mut self, config: &Node, services: &Said<Ipv4Net>) {
        let Some((text, at)) = self.string(config, "dnsServiceIP") else {
            return;
        };
        match text.parse::<Ipv4Addr>() {
            Err(_) => self.error(
                &at,
                format!("expected an address such as 10.0.0.10, found {text:?}"),
            ),
            Ok(address) if !services.value.contains(&address) => {
                self.error(
                    &at,
                    format!("{address} is not among the services' {}", services.value),
                );
            }
            Ok(_) => {}
        }
    }
}
