//! A node as azure-vnet leaves it in mode `bridge`: its bridge, its rules of ebtables and iptables, its pods and its files.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    ops::Deref,
    process::Command,
};

use anyhow::{Context, Result};
use causeway::go_json::base64;
use causeway_tests::{
    dist::Dist,
    fabric::{Fabric, GATEWAY, INTERNET, NODE, PARTNER, SUBNET_BITS},
    leak::LeakWatch,
    netns::{Netns, connect},
    node::{Datapath, Node, Pod},
    rules, stock,
};
use serde_json::{Map, Value, json};

/// Leads to [`INTERNET`], port 8080.
pub(crate) const SERVICE_OUTSIDE: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 10), 80);
/// Leads to the last pod, port 8080.
pub(crate) const SERVICE_INSIDE: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 11), 80);
/// Leads to the last pod, port 8080, from outside.
pub(crate) const HOST_PORT: u16 = 8088;
/// Leads to the last pod, port 8080, from outside, with the node's address as source.
pub(crate) const NODE_PORT: u16 = 30_080;
/// Where everybody listens.
pub(crate) const PORT: u16 = 8080;

const BRIDGE: &str = "azure0";
const ENDPOINTS: &str = "/var/run/azure-vnet.json";
const LEASES: &str = "/var/run/azure-vnet-ipam.json";

/// The node in its surroundings, watched.
pub(crate) struct Site {
    pub(crate) node: Node,
    pub(crate) fabric: Fabric,
    pub(crate) pods: Vec<Theirs>,
    watch: LeakWatch,
}

/// A pod of the incumbent's.
pub(crate) struct Theirs {
    pub(crate) pod: Pod,
    host_if: String,
    mac: [u8; 6],
}

impl Deref for Theirs {
    type Target = Pod;

    fn deref(&self) -> &Pod {
        &self.pod
    }
}

impl Site {
    /// A node with this many pods, and two more addresses.
    pub(crate) fn new(pods: u8) -> Result<Self> {
        let (fabric, ns) = (Fabric::new()?, Netns::new()?);
        let pool: Vec<Ipv4Addr> = (5..7 + pods)
            .map(|host| Ipv4Addr::new(10, 240, 0, host))
            .collect();
        fabric.plug_in(&ns, &pool)?;
        // Of the cloud's own, below all that the kernel makes up: so the bridge, which takes the lowest of its ports', has it.
        ns.ip("link set eth0 address 00:0d:3a:0a:0b:0c")?;
        let node = Node::plugged_in(ns, Datapath::Causeway, pool)?;
        make_bridge(&node.ns)?;
        let pods = (0..pods)
            .map(|n| Theirs::plug(&node.ns, n))
            .collect::<Result<Vec<_>>>()?;
        write_state(&node, &pods)?;
        let last = pods.last().context("a node without pods")?.addr;
        rules::cluster_ip(&node.ns, SERVICE_OUTSIDE, SocketAddrV4::new(INTERNET, PORT))?;
        rules::cluster_ip(&node.ns, SERVICE_INSIDE, SocketAddrV4::new(last, PORT))?;
        rules::host_port(&node.ns, HOST_PORT, SocketAddrV4::new(last, PORT))?;
        rules::node_port(&node.ns, NODE_PORT, SocketAddrV4::new(last, PORT))?;
        let rule: Vec<&str> = stock::MASQUERADE.split_whitespace().collect();
        node.ns.output("iptables", &rule)?;
        // The kernel's own: a port would wait for fifteen seconds.
        node.ns
            .ip(&format!("link set {BRIDGE} type bridge forward_delay 1500"))?;
        let watch = LeakWatch::start(&fabric.router, "node", NODE, node.mac()?, PARTNER)?;
        Ok(Self {
            node,
            fabric,
            pods,
            watch,
        })
    }

    /// Nothing has left the node with an address or a MAC that it must not leave with.
    pub(crate) fn assert_no_leak(&self) {
        let leaks = self.watch.leaks();
        assert!(leaks.is_empty(), "leaked onto the wire: {leaks:#?}");
    }

    /// Runs `causeway migrate`.
    pub(crate) fn migrate(&self, verb: &str) -> Result<Value> {
        let text = self.node.causeway(&["migrate", verb, "--json"])?;
        serde_json::from_str(&text).with_context(|| format!("migrate {verb} printed: {text}"))
    }

    /// Causeway's command line on this node.
    pub(crate) fn command(&self, arguments: &[&str]) -> Result<Command> {
        let mut command = self.node.ns.command(Dist::from_env()?.cli());
        command
            .args(arguments)
            .env("CAUSEWAY_ROOT", self.node.root.path());
        Ok(command)
    }

    /// Puts the rule where the other program keeps its rules.
    pub(crate) fn use_legacy_rule(&self) -> Result<()> {
        for (program, rule) in [
            ("iptables", stock::MASQUERADE.replace("-A", "-D")),
            ("iptables-legacy", stock::MASQUERADE.to_owned()),
        ] {
            let words: Vec<&str> = rule.split_whitespace().collect();
            self.node.ns.output(program, &words)?;
        }
        Ok(())
    }

    /// Puts ip-masq-agent's chain in the place of the rule.
    pub(crate) fn use_agents_chain(&self) -> Result<()> {
        let deleted = stock::MASQUERADE.replace("-A", "-D");
        for rule in [
            deleted.as_str(),
            "-t nat -N IP-MASQ-AGENT",
            "-t nat -A IP-MASQ-AGENT -d 10.0.0.0/8 -j RETURN",
            "-t nat -A IP-MASQ-AGENT -d 192.0.2.0/24 -j RETURN",
            "-t nat -A IP-MASQ-AGENT -j MASQUERADE",
            "-t nat -I POSTROUTING 1 -m addrtype ! --dst-type LOCAL -j IP-MASQ-AGENT",
        ] {
            let words: Vec<&str> = rule.split_whitespace().collect();
            self.node.ns.output("iptables", &words)?;
        }
        Ok(())
    }

    /// The incumbent adds a pod, whatever its bridge leads to.
    pub(crate) fn plug_another(&mut self) -> Result<()> {
        let number = u8::try_from(self.pods.len())?;
        self.pods.push(Theirs::plug(&self.node.ns, number)?);
        write_state(&self.node, &self.pods)
    }

    /// The last pod: services lead to it.
    pub(crate) fn server(&self) -> &Theirs {
        &self.pods[self.pods.len() - 1]
    }
}

fn make_bridge(node: &Netns) -> Result<()> {
    node.sysctl("net/ipv4/ip_forward", "1")?;
    let mac = text(node.mac("eth0")?);
    // The ports of the first pods take part at once.
    node.ip(&format!(
        "link add {BRIDGE} type bridge forward_delay 0\naddr del {NODE}/{SUBNET_BITS} dev eth0\nlink set eth0 master {BRIDGE}\n\
         link set {BRIDGE} up\nlink set eth0 type bridge_slave hairpin on\naddr add {NODE}/{SUBNET_BITS} dev {BRIDGE}\n\
         route add default via {GATEWAY}"
    ))?;
    node.sysctl("net/bridge/bridge-nf-call-iptables", "1")?;
    ebtables(
        node,
        &format!("POSTROUTING -s Unicast -o eth0 -j snat --to-src {mac} --snat-arp --snat-target ACCEPT"),
    )?;
    ebtables(
        node,
        &format!(
            "PREROUTING -p ARP --arp-op Request --arp-ip-dst {NODE} -j arpreply --arpreply-mac {mac} --arpreply-target DROP"
        ),
    )?;
    ebtables(
        node,
        "PREROUTING -p ARP -i eth0 --arp-op Reply -j dnat --to-dst ff:ff:ff:ff:ff:ff --dnat-target ACCEPT",
    )
}

fn ebtables(node: &Netns, rule: &str) -> Result<()> {
    let arguments: Vec<&str> = ["-t", "nat", "-A"].into_iter().chain(rule.split(' ')).collect();
    node.output("ebtables", &arguments).map(drop)
}

impl Theirs {
    fn plug(node: &Netns, n: u8) -> Result<Self> {
        let (ns, host_if) = (Netns::new()?, format!("azv0123456789{n:x}"));
        let addr = Ipv4Addr::new(10, 240, 0, 5 + n);
        connect(node, &host_if, &ns, "eth0")?;
        node.ip(&format!(
            "link set {host_if} master {BRIDGE}\nlink set {host_if} type bridge_slave hairpin on"
        ))?;
        ns.ip(&format!(
            "addr add {addr}/{SUBNET_BITS} dev eth0\nroute add default via {GATEWAY}"
        ))?;
        let own = ns.mac("eth0")?;
        let mac = text(own);
        ebtables(
            node,
            &format!(
                "PREROUTING -p ARP --arp-op Request --arp-ip-dst {addr} -j arpreply --arpreply-mac {mac} --arpreply-target DROP"
            ),
        )?;
        ebtables(
            node,
            &format!(
                "PREROUTING -p IPv4 -i eth0 --ip-dst {addr} -j dnat --to-dst {mac} --dnat-target ACCEPT"
            ),
        )?;
        node.ip(&format!(
            "neigh add {addr} lladdr {mac} dev {BRIDGE} nud permanent"
        ))?;
        Ok(Self {
            pod: Pod {
                ns,
                addr,
                name: format!("pod{}", addr.octets()[3]),
                result: Value::Null,
            },
            host_if,
            mac: own,
        })
    }

    fn endpoint(&self) -> Value {
        let container = self.container_id();
        json!({ "Id": format!("{}-eth0", &container[..8]), "SandboxKey": "", "IfName": "eth0", "HostIfName": self.host_if,
            "MacAddress": base64(&self.mac), "InfraVnetIP": { "IP": "", "Mask": null }, "LocalIP": "",
            "IPAddresses": [{ "IP": self.addr, "Mask": "//8AAA==" }], "Gateways": [GATEWAY],
            "DNS": { "Suffix": "", "Servers": ["168.63.129.16"], "Options": null }, "Routes": [], "VlanID": 0,
            "EnableSnatOnHost": false, "EnableInfraVnet": false, "EnableMultitenancy": false, "NetworkNameSpace": self.ns.path(),
            "ContainerID": container, "PODName": self.name, "PODNameSpace": "default" })
    }
}

fn write_state(node: &Node, pods: &[Theirs]) -> Result<()> {
    const NOW: &str = "2099-01-02T03:04:05.678901234+02:00";
    let endpoints: Map<String, Value> = pods
        .iter()
        .map(|pod| (format!("{}-eth0", &pod.container_id()[..8]), pod.endpoint()))
        .collect();
    let dns = json!({ "Suffix": "", "Servers": null, "Options": null });
    let network = json!({ "Id": "azure", "Mode": "bridge", "VlanId": 0, "Endpoints": endpoints, "DNS": dns,
        "Subnets": [{ "Family": 2, "Prefix": { "IP": "10.240.0.0", "Mask": "//8AAA==" }, "Gateway": "", "PrimaryIP": "" }],
        "EnableSnatOnHost": false, "NetNs": "", "SnatBridgeIP": "" });
    let interface = json!({ "Name": "eth0", "Networks": { "azure": network }, "Subnets": ["10.240.0.0/16"],
        "BridgeName": BRIDGE, "DNSInfo": dns, "MacAddress": "AA06CgsM", "IPAddresses": null, "Routes": null,
        "IPv4Gateway": "0.0.0.0", "IPv6Gateway": "::" });
    let state = json!({ "Network": { "Version": "v1.1.0", "TimeStamp": NOW, "ExternalInterfaces": { "eth0": interface } } });
    let lease = |addr: &Ipv4Addr| {
        let holder = pods
            .iter()
            .find(|pod| pod.addr == *addr)
            .map(|pod| pod.container_id())
            .unwrap_or_default();
        (
            addr.to_string(),
            json!({ "ID": holder, "Addr": addr, "InUse": !holder.is_empty() }),
        )
    };
    let addresses: Map<String, Value> = node.pool.iter().map(lease).collect();
    let pool = json!({ "Id": "10.240.0.0/16", "IfName": "eth0", "Subnet": { "IP": "10.240.0.0", "Mask": "//8AAA==" },
        "Gateway": "10.240.0.1", "Addresses": addresses, "IsIPv6": false, "Priority": 0, "RefCount": 1 });
    let leases = json!({ "IPAM": { "Version": "v1.1.0", "TimeStamp": NOW, "AddressSpaces": { "local": {
        "Id": "local", "Scope": 0, "Pools": { "10.240.0.0/16": pool } } } } });
    node.root
        .write(ENDPOINTS, &serde_json::to_string_pretty(&state)?)?;
    node.root.write(LEASES, &serde_json::to_string_pretty(&leases)?)?;
    for lock in ["azure-vnet.lock", "azure-vnet-ipam.lock"] {
        node.root.write(&format!("/var/run/azure-vnet/{lock}"), "")?;
    }
    Ok(())
}

fn text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}
