//! The form of `/var/run/azure-vnet.json`.
//!
//! Typed is what Causeway reads; the rest of the incumbent's fields are written for it, and kept when others have
//! written them.

use std::{collections::BTreeMap, net::IpAddr, ops::Deref, sync::OnceLock};

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value, json, value::RawValue};

use super::Key;
use crate::{
    datapath::HostPort,
    go_json::{base64, ip_net, no_ip_net, null_default, parse_base64, parse_ip_net},
};

/// The whole file.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct File {
    #[serde(default, deserialize_with = "null_default")]
    pub(super) network: State,
    #[serde(flatten)]
    extra: Map<String, Value>,
}

/// Every network of the node with its endpoints.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct State {
    #[serde(default)]
    pub(super) version: String,
    #[serde(default)]
    pub(super) time_stamp: String,
    /// The boot in which the endpoints were made, Causeway's own.
    #[serde(default, rename = "BootID", skip_serializing_if = "String::is_empty")]
    pub(super) boot: String,
    #[serde(default, deserialize_with = "null_default")]
    pub(super) external_interfaces: BTreeMap<String, ExternalInterface>,
    #[serde(flatten)]
    extra: Map<String, Value>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct ExternalInterface {
    #[serde(default)]
    name: String,
    #[serde(default, deserialize_with = "null_default")]
    pub(super) networks: BTreeMap<String, Network>,
    #[serde(default, deserialize_with = "null_default")]
    subnets: Vec<String>,
    #[serde(default)]
    mac_address: Value,
    #[serde(flatten)]
    extra: Map<String, Value>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Network {
    #[serde(default)]
    id: String,
    #[serde(default, deserialize_with = "null_default")]
    subnets: Vec<Value>,
    #[serde(default, deserialize_with = "null_default")]
    pub(super) endpoints: BTreeMap<String, Endpoint>,
    #[serde(flatten)]
    extra: Map<String, Value>,
}

/// An interface of a pod, as the file has it, and what is read of that.
///
/// A node has hundreds, and a call is about one of them: the others are kept as the text that they are, and not even read.
#[derive(Clone, Debug)]
pub struct Endpoint {
    known: OnceLock<Known>,
    text: Box<RawValue>,
}

/// What is read of an endpoint.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Known {
    /// The key in the file.
    #[serde(default)]
    pub id: String,
    /// Its name in the pod.
    #[serde(default)]
    pub if_name: String,
    /// Name of the host's end.
    #[serde(default)]
    pub host_if_name: String,
    /// The whole container id.
    #[serde(default, rename = "ContainerID")]
    pub container_id: String,
    #[serde(default, rename = "IPAddresses", deserialize_with = "null_default")]
    ip_addresses: Vec<Value>,
    /// Name of the pod, empty when the client did not say.
    #[serde(default, rename = "PODName")]
    pub pod: String,
    /// Kubernetes namespace of the pod, empty when the client did not say.
    #[serde(default, rename = "PODNameSpace")]
    pub namespace: String,
    /// Ports of the node that are the pod's, Causeway's own.
    #[serde(default)]
    pub host_ports: Vec<HostPort>,
    /// What another IPAM plug-in gave, Causeway's own.
    #[serde(default, rename = "IPAMResult")]
    pub ipam_result: Option<Value>,
    #[serde(default)]
    mac_address: Value,
    #[serde(default)]
    network_name_space: Value,
}

impl Deref for Endpoint {
    type Target = Known;

    fn deref(&self) -> &Known {
        self.known.get_or_init(|| {
            let known = serde_json::from_str(self.text.get());
            known.unwrap_or_else(|error| {
                tracing::warn!(%error, "an endpoint in the state is not understood, and left as it is");
                Known::default()
            })
        })
    }
}

impl Serialize for Endpoint {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.text.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Endpoint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self {
            known: OnceLock::new(),
            text: Box::<RawValue>::deserialize(deserializer)?,
        })
    }
}

/// The uplink, as the file has it.
#[derive(Clone, Copy, Debug)]
pub struct UplinkRecord<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its MAC.
    pub mac: [u8; 6],
}

/// What is known of an endpoint when it has been made.
#[derive(Clone, Copy, Debug)]
pub struct NewEndpoint<'a> {
    /// Where it belongs.
    pub key: &'a Key,
    /// The node's interface that carries its subnet.
    pub uplink: &'a UplinkRecord<'a>,
    /// Name of the host's end.
    pub host_if: &'a str,
    /// MAC of the pod's end.
    pub mac: [u8; 6],
    /// Its addresses with their subnets' masks, that of IPv4 first.
    pub addresses: &'a [IpNet],
    /// The gateways of their subnets, at most one of a family.
    pub gateways: &'a [IpAddr],
    /// Name servers of the result.
    pub nameservers: &'a [String],
    /// Path of the pod's namespace, as it was given.
    pub netns: &'a str,
    /// Name of the pod, empty when the client did not say.
    pub pod: &'a str,
    /// Kubernetes namespace of the pod, empty when the client did not say.
    pub namespace: &'a str,
    /// Ports of the node that are the pod's.
    pub host_ports: &'a [HostPort],
    /// What another IPAM plug-in gave: the result of its ADD.
    pub ipam_result: Option<&'a Value>,
}

/// How the incumbent is to treat the networks: it wires and unwires pods of this mode by a host route, as we do.
const MODE: &str = "transparent";
/// The family of a subnet as the incumbent notes it: Linux' `AF_INET` or `AF_INET6`.
fn family(subnet: &IpNet) -> u8 {
    match subnet {
        IpNet::V4(_) => 2,
        IpNet::V6(_) => 10,
    }
}

impl ExternalInterface {
    pub(super) fn new(uplink: &UplinkRecord<'_>) -> Self {
        Self {
            name: uplink.name.to_owned(),
            networks: BTreeMap::new(),
            subnets: Vec::new(),
            mac_address: Value::Null,
            extra: members(json!({
                "BridgeName": "", "DNSInfo": dns(&[]), "IPAddresses": null, "Routes": null,
                "IPv4Gateway": "0.0.0.0", "IPv6Gateway": "::",
            })),
        }
    }

    /// Whether it is another name of this one: in mode `bridge` the incumbent gives the addresses of the interface to a bridge
    /// above it.
    pub(super) fn is_below(&self, bridge: &str) -> bool {
        self.extra.get("BridgeName").and_then(Value::as_str) == Some(bridge)
    }

    pub(super) fn update(&mut self, uplink: &UplinkRecord<'_>, addresses: &[IpNet]) {
        self.mac_address = base64(&uplink.mac).into();
        for subnet in addresses.iter().map(|address| address.trunc().to_string()) {
            if !self.subnets.contains(&subnet) {
                self.subnets.push(subnet);
            }
        }
    }
}

impl Network {
    pub(super) fn new(name: &str) -> Self {
        Self {
            id: name.to_owned(),
            subnets: Vec::new(),
            endpoints: BTreeMap::new(),
            extra: members(json!({
                "Mode": MODE, "VlanId": 0, "DNS": dns(&[]), "EnableSnatOnHost": false, "NetNs": "", "SnatBridgeIP": "",
            })),
        }
    }

    /// Puts the subnets first, where the incumbent takes the next address from.
    pub(super) fn update(&mut self, addresses: &[IpNet]) {
        let subnets: Vec<IpNet> = addresses.iter().map(IpNet::trunc).collect();
        if self.subnets().take(subnets.len()).eq(subnets.iter().copied()) {
            return;
        }
        self.subnets
            .retain(|record| prefix(record).is_none_or(|subnet| !subnets.contains(&subnet)));
        let records = subnets.iter().map(|subnet| {
            json!({ "Family": family(subnet), "Prefix": ip_net(*subnet), "Gateway": "", "PrimaryIP": "" })
        });
        self.subnets.splice(0..0, records);
    }

    pub(super) fn subnets(&self) -> impl Iterator<Item = IpNet> {
        self.subnets.iter().filter_map(prefix)
    }
}

fn prefix(subnet: &Value) -> Option<IpNet> {
    subnet.get("Prefix").and_then(parse_ip_net)
}

/// Bytes of a text that is looked for sixteen places at a time.
const SHORT: usize = 32;

impl Endpoint {
    pub(super) fn new(id: &str, new: &NewEndpoint<'_>) -> serde_json::Result<Self> {
        let gateways: Vec<String> = new.gateways.iter().map(IpAddr::to_string).collect();
        let default_routes: Vec<Value> = new.gateways.iter().map(default_route).collect();
        let addresses: Vec<Value> = new.addresses.iter().copied().map(ip_net).collect();
        let mut endpoint = json!({
            "Id": id, "IfName": new.key.interface, "HostIfName": new.host_if, "ContainerID": new.key.container,
            "IPAddresses": addresses, "PODName": new.pod, "PODNameSpace": new.namespace,
            "SandboxKey": "", "MacAddress": base64(&new.mac), "InfraVnetIP": no_ip_net(), "LocalIP": "",
            "Gateways": gateways, "DNS": dns(new.nameservers), "Routes": default_routes, "VlanID": 0,
            "EnableSnatOnHost": false, "EnableInfraVnet": false, "EnableMultitenancy": false,
            "AllowInboundFromHostToNC": false, "AllowInboundFromNCToHost": false, "NetworkContainerID": "",
            "NetworkNameSpace": new.netns, "SecondaryInterfaces": {},
        });
        if !new.host_ports.is_empty() {
            endpoint["HostPorts"] = serde_json::to_value(new.host_ports)?;
        }
        if let Some(result) = new.ipam_result {
            endpoint["IPAMResult"] = result.clone();
        }
        // One line, as `to_vec` writes entries.
        serde_json::from_str(&endpoint.to_string())
    }

    pub(super) fn is(&self, key: &Key) -> bool {
        self.says(&key.container) && self.container_id == key.container && self.if_name == key.interface
    }

    /// Whether a name without characters that JSON escapes is in it, as what it may be: most are told apart by this.
    pub(super) fn says(&self, name: &str) -> bool {
        // The standard library is fast with short ones, and does not ask the CPU for its features: in a virtual machine each
        // such question is the hypervisor's.
        let beginning = name.get(..SHORT).unwrap_or(name);
        self.text.get().contains(beginning) && self.text.get().contains(name)
    }

    /// MAC of the pod's end.
    pub fn mac(&self) -> Option<[u8; 6]> {
        parse_base64(self.mac_address.as_str()?)?.try_into().ok()
    }

    /// Path of the pod's namespace, as it was given; empty where it is not known.
    pub fn netns(&self) -> &str {
        self.network_name_space.as_str().unwrap_or_default()
    }

    /// Its addresses with their subnets' masks; what cannot be read is left out.
    pub fn addresses(&self) -> Vec<IpNet> {
        self.ip_addresses.iter().filter_map(parse_ip_net).collect()
    }
}

fn default_route(gateway: &IpAddr) -> Value {
    let everywhere = match gateway {
        IpAddr::V4(_) => json!({ "IP": "0.0.0.0", "Mask": base64(&[0; 4]) }),
        IpAddr::V6(_) => json!({ "IP": "::", "Mask": base64(&[0; 16]) }),
    };
    json!({
        "Dst": everywhere, "Src": "", "Gw": gateway.to_string(),
        "Protocol": 0, "DevName": "", "Scope": 0, "Priority": 0, "Table": 0,
    })
}

fn dns(servers: &[String]) -> Value {
    json!({ "Suffix": "", "Servers": servers, "Options": null })
}

fn members(object: Value) -> Map<String, Value> {
    match object {
        Value::Object(members) => members,
        _ => Map::new(),
    }
}
