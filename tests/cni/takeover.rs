//! The incumbent and Causeway take over from each other on a node with pods, through the state files that they share.

use std::{fs, net::Ipv4Addr};

use anyhow::{Context, Result};
use causeway_tests::{
    fabric::{GATEWAY, INTERNET, NODE, VNET},
    netns::{Netns, connect},
};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::{
    call::{World, address},
    pods::{add, del, id},
};

const ENDPOINTS: &str = "/var/run/azure-vnet.json";
const LEASES: &str = "/var/run/azure-vnet-ipam.json";

/// A pod of the incumbent, and its name for the host's end.
struct Theirs {
    ns: Netns,
    host_if: &'static str,
}

impl Theirs {
    /// Wires a pod as the incumbent does in mode `bridge`, where [`bridge`] has been made.
    fn plug(world: &World, address: Ipv4Addr, host_if: &'static str) -> Result<Self> {
        let ns = Netns::new()?;
        connect(&world.node.ns, host_if, &ns, "eth0")?;
        world.node.ns.ip(&format!(
            "link set {host_if} master azure0\nlink set {host_if} type bridge_slave hairpin on"
        ))?;
        ns.ip(&format!(
            "addr add {address}/16 dev eth0\nroute add default via {GATEWAY}"
        ))?;
        Ok(Self { ns, host_if })
    }

    /// Wires a pod as the incumbent does in mode `transparent`.
    fn wire(world: &World, address: Ipv4Addr, host_if: &'static str) -> Result<Self> {
        let ns = Netns::new()?;
        connect(&world.node.ns, host_if, &ns, "eth0")?;
        let mac = world
            .node
            .ns
            .mac(host_if)?
            .map(|byte| format!("{byte:02x}"))
            .join(":");
        world
            .node
            .ns
            .ip(&format!("route add {address}/32 dev {host_if}"))?;
        world
            .node
            .ns
            .sysctl(&format!("net/ipv4/conf/{host_if}/proxy_arp"), "1")?;
        ns.ip(&format!(
            "addr add {address}/16 dev eth0 noprefixroute\nroute add 169.254.1.1/32 dev eth0 scope link\n\
             route add default via 169.254.1.1\nneigh add 169.254.1.1 lladdr {mac} dev eth0 nud permanent"
        ))?;
        Ok(Self { ns, host_if })
    }
}

/// The incumbent's bridge: the uplink is a port of it, and it has the uplink's MAC, addresses and routes.
fn bridge(world: &World) -> Result<()> {
    let mac = world
        .node
        .ns
        .mac("eth0")?
        .map(|byte| format!("{byte:02x}"))
        .join(":");
    world.node.ns.ip(&format!(
        "link add azure0 address {mac} type bridge forward_delay 0\naddr del {NODE}/16 dev eth0\nlink set eth0 master azure0\n\
         link set azure0 up\naddr add {NODE}/16 dev azure0\nroute add default via {GATEWAY}"
    ))
}

/// What the incumbent writes about a pod, with the fields of its own that this does not depend on.
fn endpoint(container: &str, host_if: &str, address: Ipv4Addr, ns: &Netns) -> Value {
    json!({ "Id": format!("{}-eth0", &container[..8]), "SandboxKey": "", "IfName": "eth0", "HostIfName": host_if,
        "MacAddress": "AgAAAAAJ", "InfraVnetIP": { "IP": "", "Mask": null }, "LocalIP": "",
        "IPAddresses": [{ "IP": address, "Mask": "//8AAA==" }], "Gateways": ["10.240.0.1"],
        "DNS": { "Suffix": "", "Servers": ["168.63.129.16"], "Options": null }, "Routes": [], "VlanID": 0,
        "EnableSnatOnHost": false, "EnableInfraVnet": false, "EnableMultitenancy": false,
        "NetworkNameSpace": ns.path(), "ContainerID": container, "PODName": "theirs", "PODNameSpace": "default" })
}

fn now() -> String {
    // As Go prints it, with the offset of a time zone.
    "2099-01-02T03:04:05.678901234+02:00".to_owned()
}

/// The files of a node where the incumbent has one pod at 10.240.0.5.
fn write_state(world: &World, container: &str, pod: &Theirs, mode: &str) -> Result<()> {
    let endpoint = endpoint(container, pod.host_if, Ipv4Addr::new(10, 240, 0, 5), &pod.ns);
    let network = json!({ "Id": "azure", "Mode": mode, "VlanId": 0,
        "Subnets": [{ "Family": 2, "Prefix": { "IP": "10.240.0.0", "Mask": "//8AAA==" }, "Gateway": "", "PrimaryIP": "" }],
        "Endpoints": { format!("{}-eth0", &container[..8]): endpoint }, "DNS": { "Suffix": "", "Servers": null, "Options": null },
        "EnableSnatOnHost": false, "NetNs": "", "SnatBridgeIP": "" });
    let state = json!({ "Network": { "Version": "v1.4.20", "TimeStamp": now(), "ExternalInterfaces": { "eth0": {
        "Name": "eth0", "Networks": { "azure": network }, "Subnets": ["10.240.0.0/16"],
        "BridgeName": if mode == "bridge" { "azure0" } else { "" },
        "DNSInfo": { "Suffix": "", "Servers": null, "Options": null }, "MacAddress": "AA06CgsM", "IPAddresses": null,
        "Routes": null, "IPv4Gateway": "0.0.0.0", "IPv6Gateway": "::" } } } });
    let free = |host: u8| json!({ "ID": "", "Addr": format!("10.240.0.{host}"), "InUse": false });
    let mut addresses: Map<String, Value> = (6..9)
        .map(|host| (format!("10.240.0.{host}"), free(host)))
        .collect();
    addresses.insert(
        "10.240.0.5".to_owned(),
        json!({ "ID": container, "Addr": "10.240.0.5", "InUse": true }),
    );
    let pool = json!({ "Id": "10.240.0.0/16", "IfName": "eth0", "Subnet": { "IP": "10.240.0.0", "Mask": "//8AAA==" },
        "Gateway": "10.240.0.1", "Addresses": addresses, "IsIPv6": false, "Priority": 0, "RefCount": 1 });
    let leases = json!({ "IPAM": { "Version": "v1.4.20", "TimeStamp": now(), "AddressSpaces": { "local": {
        "Id": "local", "Scope": 0, "Pools": { "10.240.0.0/16": pool } } } } });
    world
        .node
        .root
        .write(ENDPOINTS, &serde_json::to_string_pretty(&state)?)?;
    world
        .node
        .root
        .write(LEASES, &serde_json::to_string_pretty(&leases)?)
}

#[test]
fn the_incumbents_pods_keep_their_addresses_and_are_deleted_like_ours() -> Result<()> {
    let world = World::new(4)?;
    let container = "3f813b02".repeat(8);
    let theirs = Theirs::wire(&world, Ipv4Addr::new(10, 240, 0, 5), "azv0123456789a")?;
    write_state(&world, &container, &theirs, "transparent")?;
    let ours = Netns::new()?;
    let given = address(&add(&world, 1, &ours)?.ok()?)?;
    assert_eq!(given.octets()[3], 6, "the first that is free");
    // Neither has noticed anything of the other.
    ours.output("ping", &["-c1", "-i0.2", "-w5", "10.240.0.5"])?;
    theirs
        .ns
        .output("ping", &["-c1", "-i0.2", "-w5", &given.to_string()])?;
    theirs.ns.output("ping", &["-c1", "-i0.2", "-w5", "10.240.0.4"])?;
    let listed = world.network("GET_ENDPOINT_STATE", "")?.stdin("").ok()?;
    assert_eq!(
        listed["ContainerInterfaces"]["3f813b02-eth0"]["ContainerID"],
        container
    );
    // A second ADD of its pod harms it as little as one of ours.
    let again = world.network("ADD", &container)?.netns(&theirs.ns).error()?;
    assert!(again.msg.contains("already exists"), "{again:?}");
    assert_eq!(world.leases()?.len(), 2);
    for _ in 0..2 {
        world.network("DEL", &container)?.netns(&theirs.ns).ok()?;
    }
    assert_eq!(world.leases()?, [(given, id(1))]);
    assert!(!theirs.ns.output("ip", &["link"])?.contains("eth0"));
    del(&world, 1)?.ok()?;
    world.assert_empty()
}

#[test]
fn a_node_with_the_incumbents_bridge_is_taken_over_as_it_is() -> Result<()> {
    let world = World::new(4)?;
    let container = "3f813b02".repeat(8);
    bridge(&world)?;
    let theirs = Theirs::plug(&world, Ipv4Addr::new(10, 240, 0, 5), "azv0123456789a")?;
    write_state(&world, &container, &theirs, "bridge")?;
    let reach = |ns: &Netns, to: Ipv4Addr| ns.output("ping", &["-c1", "-i0.2", "-w5", &to.to_string()]);
    reach(&theirs.ns, NODE)?;
    let ours = [Netns::new()?, Netns::new()?];
    let given = address(&add(&world, 1, &ours[0])?.ok()?)?;
    assert_eq!(given.octets()[3], 6, "the first that is free");
    add(&world, 2, &ours[1])?.ok()?;
    // The bridge is the uplink: it has the node's address. Its interface's record has our pods, for the incumbent to find.
    assert_eq!(
        world.node.causeway_json("status")?["uplink"]["interface"],
        "azure0"
    );
    assert_eq!(world.endpoints()?.len(), 3);
    for to in [NODE, VNET, INTERNET] {
        reach(&ours[0], to)?;
    }
    reach(&ours[1], given)?;
    reach(&theirs.ns, NODE)?;
    reach(&theirs.ns, VNET)?;
    // A DEL takes its pod away, and leaves the bridge.
    for _ in 0..2 {
        world.network("DEL", &container)?.netns(&theirs.ns).ok()?;
    }
    assert!(!theirs.ns.output("ip", &["link"])?.contains("eth0"));
    assert_eq!(world.leases()?.len(), 2);
    reach(&ours[0], INTERNET)?;
    for n in [1, 2] {
        del(&world, n)?.ok()?;
    }
    world.node.causeway(&["unload"])?;
    world
        .node
        .ns
        .output("ping", &["-c1", "-i0.2", "-w5", &VNET.to_string()])?;
    let ports = world
        .node
        .ns
        .output("ip", &["link", "show", "master", "azure0"])?;
    assert!(ports.contains("eth0"), "{ports}");
    world.assert_empty()
}

/// The incumbent's types of its file of endpoints, as far as it reads them.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
#[expect(dead_code, reason = "that they can be read is the test")]
struct GoEndpoint {
    id: String,
    if_name: String,
    host_if_name: String,
    mac_address: String,
    #[serde(rename = "IPAddresses")]
    ip_addresses: Vec<GoNet>,
    gateways: Vec<Ipv4Addr>,
    #[serde(rename = "DNS")]
    dns: GoDns,
    routes: Option<Vec<Value>>,
    #[serde(rename = "VlanID")]
    vlan_id: i64,
    enable_snat_on_host: bool,
    network_name_space: String,
    #[serde(rename = "ContainerID")]
    container_id: String,
    #[serde(rename = "PODName")]
    pod_name: String,
    #[serde(rename = "PODNameSpace")]
    pod_name_space: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
#[expect(dead_code, reason = "that they can be read is the test")]
struct GoNet {
    #[serde(rename = "IP")]
    ip: Ipv4Addr,
    mask: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
#[expect(dead_code, reason = "that they can be read is the test")]
struct GoDns {
    suffix: String,
    servers: Option<Vec<String>>,
    options: Option<Vec<String>>,
}

/// Reads both files with the incumbent's types, and writes them as it does: without the keys that are only ours.
fn rewrite_as_the_incumbent(world: &World) -> Result<()> {
    const OURS: [&str; 6] = [
        "BootID",
        "HolderIfName",
        "HolderNetwork",
        "LeasedAt",
        "ReleasedAt",
        "HostPorts",
    ];
    fn forget(value: &mut Value, keys: &[&str]) {
        match value {
            Value::Object(members) => {
                members.retain(|name, _| !keys.contains(&name.as_str()));
                members.values_mut().for_each(|member| forget(member, keys));
            }
            Value::Array(items) => items.iter_mut().for_each(|item| forget(item, keys)),
            _ => {}
        }
    }
    for (file, section, more) in [(ENDPOINTS, "Network", None), (LEASES, "IPAM", Some("HostIfName"))] {
        let path = world.node.root.join(file);
        let mut state: Value = serde_json::from_str(&fs::read_to_string(&path)?)?;
        let keys: Vec<&str> = OURS.into_iter().chain(more).collect();
        forget(&mut state, &keys);
        state[section]["TimeStamp"] = now().into();
        let endpoints =
            state["Network"]["ExternalInterfaces"]["eth0"]["Networks"]["azure"]["Endpoints"].as_object();
        for (key, endpoint) in endpoints.into_iter().flatten() {
            let read: GoEndpoint =
                serde_json::from_value(endpoint.clone()).with_context(|| format!("{key}: {endpoint}"))?;
            assert_eq!(read.id, *key);
        }
        fs::write(&path, serde_json::to_string_pretty(&state)?)?;
    }
    Ok(())
}

#[test]
fn our_pods_outlive_a_turn_of_the_incumbent() -> Result<()> {
    let world = World::new(4)?;
    let pods = [Netns::new()?, Netns::new()?, Netns::new()?];
    for (n, ns) in [(1, &pods[0]), (2, &pods[1])] {
        add(&world, n, ns)?.ok()?;
    }
    rewrite_as_the_incumbent(&world)?;
    let held = world.leases()?;
    assert_eq!(held.len(), 2);
    // It has deleted one of them meanwhile: the address is free in its file, the endpoint gone, the link with it.
    let path = world.node.root.join(LEASES);
    let mut leases: Value = serde_json::from_str(&fs::read_to_string(&path)?)?;
    let pool = &mut leases["IPAM"]["AddressSpaces"]["local"]["Pools"]["10.240.0.0/16"];
    pool["Addresses"]["10.240.0.6"] = json!({ "ID": "", "Addr": "10.240.0.6", "InUse": false });
    fs::write(&path, leases.to_string())?;
    let path = world.node.root.join(ENDPOINTS);
    let mut state: Value = serde_json::from_str(&fs::read_to_string(&path)?)?;
    let endpoints =
        state["Network"]["ExternalInterfaces"]["eth0"]["Networks"]["azure"]["Endpoints"].as_object_mut();
    let endpoints = endpoints.context("no endpoints")?;
    endpoints.retain(|_, endpoint| endpoint["ContainerID"] != id(2));
    fs::write(&path, state.to_string())?;
    pods[1].ip("link del eth0")?;
    // Causeway again: its pod is served, the other address can be had, and everything goes by DEL.
    pods[0].output("ping", &["-c1", "-i0.2", "-w5", "10.240.0.4"])?;
    let given = address(&add(&world, 3, &pods[2])?.env("CNI_ARGS", "IP=10.240.0.6").ok()?)?;
    assert_eq!(given.octets()[3], 6);
    pods[0].output("ping", &["-c1", "-i0.2", "-w5", "10.240.0.6"])?;
    del(&world, 2)?.ok()?;
    pods[2].output("ping", &["-c1", "-i0.2", "-w5", "10.240.0.4"])?;
    for n in [1, 3] {
        del(&world, n)?.ok()?;
    }
    world.assert_empty()
}
