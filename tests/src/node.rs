//! A node: a namespace with an uplink, and the datapath that is tried on it.

use std::{
    io::Write,
    net::{Ipv4Addr, SocketAddrV4},
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::{
    dist::Dist,
    dual_stack,
    fabric::{self, Fabric},
    netns::{self, Netns, stdout_of},
    scratch::Scratch,
    stock,
};

/// What moves the packets of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Datapath {
    /// Causeway, brought up by its CNI plug-in.
    Causeway,
    /// The same, attached as on kernels without tcx.
    CausewayClsact,
    /// The same, with XDP on the uplink.
    CausewayXdp,
    /// The kernel's routing, without translation.
    Routed,
    /// The kernel's routing and the MASQUERADE rule.
    RoutedMasquerade,
    /// A bridge with the uplink enslaved, without translation.
    Bridge,
    /// What Causeway replaces: a bridge with the uplink enslaved, and the MASQUERADE rule.
    BridgeMasquerade,
}

impl Datapath {
    /// Whether pods are added by our plug-in.
    pub fn is_causeway(self) -> bool {
        matches!(self, Self::Causeway | Self::CausewayClsact | Self::CausewayXdp)
    }

    /// Whether pods hang on a bridge.
    pub fn is_bridged(self) -> bool {
        matches!(self, Self::Bridge | Self::BridgeMasquerade)
    }
}

/// A pod: a namespace with `eth0`.
#[derive(Debug)]
pub struct Pod {
    /// Its namespace.
    pub ns: Netns,
    /// Its address.
    pub addr: Ipv4Addr,
    /// Its name, unique on the node.
    pub name: String,
    /// What the plug-in printed; of a stock datapath the address of IPv6, if there is one.
    pub result: Value,
}

impl Pod {
    /// The id by which the runtime knows the pod's sandbox: 64 hexadecimal digits.
    pub fn container_id(&self) -> String {
        container_id(&self.name)
    }

    /// Sender's and receiver's MAC of what the pod sends: its own and its gateway's.
    pub fn macs(&self) -> Result<[[u8; 6]; 2]> {
        let neighbours = self.ns.json("ip", &["-j", "neigh", "show", "dev", "eth0"])?;
        let text = neighbours[0]["lladdr"].as_str().unwrap_or_default();
        let gateway = netns::parse_mac(text).context("the pod knows no gateway")?;
        Ok([self.ns.mac("eth0")?, gateway])
    }
}

/// A node.
#[derive(Debug)]
pub struct Node {
    /// Its namespace. The uplink is `eth0`.
    pub ns: Netns,
    /// Its files.
    pub root: Scratch,
    /// Addresses for pods.
    pub pool: Vec<Ipv4Addr>,
    datapath: Datapath,
    dist: Option<Dist>,
    taken: AtomicUsize,
    /// Pods of a stock datapath get IPv6 beside IPv4.
    has_ipv6: AtomicBool,
}

impl Node {
    /// A node with `pool_size` addresses for pods, plugged into the fabric.
    pub fn new(fabric: &Fabric, datapath: Datapath, pool_size: u8) -> Result<Self> {
        let pool: Vec<Ipv4Addr> = (0..pool_size).map(|n| Ipv4Addr::new(10, 240, 0, 5 + n)).collect();
        let ns = Netns::new()?;
        fabric.plug_in(&ns, &pool)?;
        Self::plugged_in(ns, datapath, pool)
    }

    /// Another node beside the first one, at [`fabric::SECOND_NODE`].
    pub fn second(fabric: &Fabric, datapath: Datapath, pool_size: u8) -> Result<Self> {
        let pool: Vec<Ipv4Addr> = (0..pool_size).map(|n| Ipv4Addr::new(10, 240, 2, 5 + n)).collect();
        let ns = Netns::new()?;
        fabric.plug_in_second(&ns, &pool)?;
        Self::at(ns, fabric::SECOND_NODE, datapath, pool)
    }

    /// A node in a namespace that has its uplink, `eth0`, with the primary address and a default route.
    pub fn plugged_in(ns: Netns, datapath: Datapath, pool: Vec<Ipv4Addr>) -> Result<Self> {
        Self::at(ns, fabric::NODE, datapath, pool)
    }

    fn at(ns: Netns, addr: Ipv4Addr, datapath: Datapath, pool: Vec<Ipv4Addr>) -> Result<Self> {
        let dist = datapath.is_causeway().then(Dist::from_env).transpose()?;
        Self::with_programs(ns, addr, datapath, pool, dist)
    }

    /// As [`Self::plugged_in`], with the programs of `dist`.
    pub fn installed(ns: Netns, datapath: Datapath, pool: Vec<Ipv4Addr>, dist: Option<Dist>) -> Result<Self> {
        Self::with_programs(ns, fabric::NODE, datapath, pool, dist)
    }

    fn with_programs(
        ns: Netns,
        addr: Ipv4Addr,
        datapath: Datapath,
        pool: Vec<Ipv4Addr>,
        dist: Option<Dist>,
    ) -> Result<Self> {
        let node = Self {
            ns,
            root: Scratch::new()?,
            pool,
            datapath,
            dist,
            taken: AtomicUsize::new(0),
            has_ipv6: AtomicBool::new(false),
        };
        node.write_interfaces(addr)?;
        stock::prepare(&node.ns, datapath)?;
        Ok(node)
    }

    /// Runs other programs from here on, as after an upgrade. Returns those of before.
    pub fn exchange_programs(&mut self, programs: Dist) -> Result<Dist> {
        self.dist.replace(programs).context("this node runs no Causeway")
    }

    /// Adds a pod as a container runtime does.
    pub fn add(&self, name: &str) -> Result<Pod> {
        let config = self.plugin_config();
        self.add_with(name, &config.unwrap_or_default())
    }

    /// As [`Self::add`], with a configuration of the caller's.
    pub fn add_with(&self, name: &str, config: &Value) -> Result<Pod> {
        let ns = Netns::new()?;
        if !self.datapath.is_causeway() {
            let addr = self.next_address()?;
            stock::add(&self.ns, &ns, addr, self.datapath)?;
            let result = if self.has_ipv6.load(Ordering::Relaxed) {
                let of_ipv6 = dual_stack::at(addr.octets()[3].into());
                stock::add_ipv6(&self.ns, &ns, addr, of_ipv6)?;
                json!({ "ips": [{ "address": format!("{of_ipv6}/64") }] })
            } else {
                Value::Null
            };
            return Ok(Pod {
                ns,
                addr,
                name: name.to_owned(),
                result,
            });
        }
        let result = self.plugin_with("ADD", name, &ns.path(), config)?;
        let address = result["ips"][0]["address"]
            .as_str()
            .and_then(|text| text.split('/').next()?.parse().ok());
        let addr = address.with_context(|| format!("the plug-in's result has no address: {result}"))?;
        Ok(Pod {
            ns,
            addr,
            name: name.to_owned(),
            result,
        })
    }

    /// Has a stock datapath masquerade IPv6 as well, and gives it to all pods from here on.
    pub fn masquerade_ipv6(&self) -> Result<()> {
        self.has_ipv6.store(true, Ordering::Relaxed);
        stock::masquerade_ipv6(&self.ns)
    }

    /// Removes a pod as a container runtime does: the plug-in first, while the namespace is still there.
    pub fn remove(&self, pod: &Pod) -> Result<()> {
        self.plugin("DEL", &pod.name, &pod.ns.path()).map(drop)
    }

    /// The node's MAC on the wire.
    pub fn mac(&self) -> Result<[u8; 6]> {
        self.ns.mac("eth0")
    }

    /// The name of the host's end of a pod's veth pair.
    pub fn host_interface(&self, pod: &Pod) -> Result<String> {
        let links = pod.ns.json("ip", &["-j", "link", "show", "dev", "eth0"])?;
        let index = links[0]["link_index"]
            .as_u64()
            .context("the pod's eth0 is not one end of a veth pair")?;
        let links = self.ns.json("ip", &["-j", "link", "show"])?;
        let host = links
            .as_array()
            .into_iter()
            .flatten()
            .find(|link| link["ifindex"].as_u64() == Some(index));
        let name = host.and_then(|link| link["ifname"].as_str());
        name.map(str::to_owned)
            .with_context(|| format!("the node has no interface {index}"))
    }

    /// Changes the MTU of a pod's link, at both ends.
    pub fn set_pod_mtu(&self, pod: &Pod, mtu: u16) -> Result<()> {
        let host_if = self.host_interface(pod)?;
        self.ns.ip(&format!("link set {host_if} mtu {mtu}"))?;
        pod.ns.ip(&format!("link set eth0 mtu {mtu}"))
    }

    /// The Causeway command line, to be run on this node.
    pub fn causeway(&self, args: &[&str]) -> Result<String> {
        stdout_of(self.causeway_command(args)?.output(), || {
            format!("causeway {}", args.join(" "))
        })
    }

    /// As [`Self::causeway`], not started yet.
    pub fn causeway_command(&self, args: &[&str]) -> Result<Command> {
        self.causeway_through(&[], args)
    }

    /// As [`Self::causeway_command`], by a program that becomes the command, with its arguments.
    pub fn causeway_through(&self, through: &[&str], args: &[&str]) -> Result<Command> {
        let cli = self.dist()?.cli();
        let mut words = through.iter().map(std::ffi::OsStr::new).chain([cli.as_os_str()]);
        let mut command = self.program(words.next().unwrap_or(cli.as_os_str()));
        command.args(words).args(args);
        Ok(command)
    }

    /// What the command line prints with `--json`.
    pub fn causeway_json(&self, verb: &str) -> Result<Value> {
        let text = self.causeway(&[verb, "--json"])?;
        serde_json::from_str(&text).with_context(|| format!("causeway {verb} --json printed: {text}"))
    }

    /// How often the datapath gave a reason, over all hooks (`causeway status`).
    pub fn count(&self, reason: &str) -> Result<u64> {
        let status = self.causeway_json("status")?;
        let counts = status["counters"]
            .as_array()
            .with_context(|| format!("no counters in {status}"))?;
        let row = counts.iter().find(|row| row["reason"] == reason);
        let hooks = ["fromPod", "toPod", "fromUplink", "toUplink"];
        Ok(row.map_or(0, |row| hooks.iter().filter_map(|&hook| row[hook].as_u64()).sum()))
    }

    /// The states of the flow entries in which a client's address and port stand, before or after a translation.
    pub fn flow_states(&self, protocol: &str, client: SocketAddrV4) -> Result<Vec<String>> {
        let pod = client.ip().to_string();
        let args = ["flows", "--json", "--proto", protocol, "--pod", &pod];
        let flows: Value = serde_json::from_str(&self.causeway(&args)?).context("causeway flows --json")?;
        let is_client = |addr: &Value, port: &Value| *addr == pod.as_str() && *port == client.port();
        let with_client = |flow: &&Value| {
            is_client(&flow["source"], &flow["sourcePort"])
                || is_client(&flow["destination"], &flow["destinationPort"])
                || is_client(&flow["nat"]["address"], &flow["nat"]["port"])
        };
        let flows = flows["flows"].as_array().context("no list of flows")?;
        Ok(flows
            .iter()
            .filter(with_client)
            .filter_map(|flow| Some(flow["state"].as_str()?.to_owned()))
            .collect())
    }

    /// Calls the CNI plug-in for a pod. An empty answer is `null`; an error holds the plug-in's own.
    pub fn plugin(&self, verb: &str, pod: &str, netns: &str) -> Result<Value> {
        self.plugin_with(verb, pod, netns, &self.plugin_config()?)
    }

    /// The plug-in's configuration on this node.
    pub fn plugin_config(&self) -> Result<Value> {
        let mut config = self.dist()?.plugin_config()?;
        if self.datapath == Datapath::CausewayXdp {
            config["uplinkXdp"] = true.into();
        }
        Ok(config)
    }

    /// As [`Self::plugin`], with a configuration of the caller's.
    pub fn plugin_with(&self, verb: &str, pod: &str, netns: &str, config: &Value) -> Result<Value> {
        let dist = self.dist()?;
        let mut command = self.with_environment(Command::new(dist.plugin("azure-vnet")));
        command
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", container_id(pod))
            .env("CNI_NETNS", netns)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", dist.plugins())
            .env(
                "CNI_ARGS",
                format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={pod}"),
            )
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = self.ns.spawn(&mut command)?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin
                .write_all(config.to_string().as_bytes())
                .context("writing the configuration")?;
        }
        let text = stdout_of(child.wait_with_output(), || format!("azure-vnet {verb} {pod}"))?;
        if text.trim().is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_str(&text).with_context(|| format!("azure-vnet {verb} {pod} printed: {text}"))
    }

    fn program(&self, path: &std::ffi::OsStr) -> Command {
        self.with_environment(self.ns.command(path))
    }

    fn with_environment(&self, mut command: Command) -> Command {
        command.env("CAUSEWAY_ROOT", self.root.path());
        if self.datapath == Datapath::CausewayClsact {
            command.env("CAUSEWAY_ATTACH", "clsact");
        }
        command
    }

    fn dist(&self) -> Result<&Dist> {
        self.dist
            .as_ref()
            .with_context(|| format!("this node runs {:?}, not Causeway", self.datapath))
    }

    fn next_address(&self) -> Result<Ipv4Addr> {
        let taken = self.taken.fetch_add(1, Ordering::Relaxed);
        self.pool
            .get(taken)
            .copied()
            .with_context(|| format!("all {} addresses are taken", self.pool.len()))
    }

    /// The file that the cloud leaves on a node: which addresses belong to which network card.
    fn write_interfaces(&self, addr: Ipv4Addr) -> Result<()> {
        let mac = self.mac()?.map(|byte| format!("{byte:02X}")).join(":");
        let mut addresses = vec![json!({ "Address": addr, "IsPrimary": true })];
        addresses.extend(
            self.pool
                .iter()
                .map(|addr| json!({ "Address": addr, "IsPrimary": false })),
        );
        let subnet =
            json!({ "Prefix": format!("10.240.0.0/{}", fabric::SUBNET_BITS), "IPAddresses": addresses });
        let interface = json!({ "MacAddress": mac, "IsPrimary": true, "IPSubnets": [subnet] });
        self.root.write(
            "/etc/kubernetes/interfaces.json",
            &json!({ "Interfaces": [interface] }).to_string(),
        )
    }
}

/// 64 hexadecimal digits that differ in the first eight for names that differ (FNV-1a).
fn container_id(pod: &str) -> String {
    let hash = pod.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| {
        (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3)
    });
    format!("{hash:016x}").repeat(4)
}
