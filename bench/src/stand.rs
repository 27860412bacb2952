//! A peer, built: a node in its surroundings with pods, or for the direct veth a pod and a far end.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
};

use anyhow::{Context, Result};
use aya::{EbpfLoader, maps::ProgramArray, programs::TcAttachType};
use causeway_common::maps::FLOW_ENTRIES;
use causeway_tests::{
    dist::Dist,
    dual_stack,
    fabric::{Fabric, NODE},
    netns::{Netns, connect},
    node::{Datapath, Node, Pod},
    offload, rate, stock,
};

use crate::{
    family::Family,
    peer::{Kind, Peer},
    programs::Programs,
    swap,
};

/// Entries of the model's tables, each, for as many flows as Causeway's table has room for.
fn model_entries(build: &Build) -> u32 {
    build.max_flows.map_or(FLOW_ENTRIES as u32, |flows| 2 * flows)
}

/// The far end's own address, outside the excluded ranges.
pub(crate) const FAR: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);

/// What nodes are made of.
#[derive(Clone, Debug, Default)]
pub(crate) struct Build {
    /// An installable tree for [`Peer::OtherBuild`]; else Causeway's own.
    pub(crate) dist: Option<PathBuf>,
    /// An object of kernel programs for it; else Causeway's own.
    pub(crate) object: Option<PathBuf>,
    /// Flows that the tables are made for; else as many as they are without being told.
    pub(crate) max_flows: Option<u32>,
}

/// A built peer.
#[derive(Debug)]
pub(crate) struct Stand {
    /// Which.
    pub(crate) peer: Peer,
    /// The pods; the direct veth has one.
    pub(crate) pods: Vec<Pod>,
    world: World,
    /// The model, attached.
    model: Option<Programs>,
}

#[derive(Debug)]
enum World {
    Node(Box<Surrounded>),
    Wire { far: Netns },
}

#[derive(Debug)]
struct Surrounded {
    node: Node,
    fabric: Fabric,
}

impl Stand {
    /// Builds a peer with `pods` pods. `other` is what [`Peer::OtherBuild`] is.
    pub(crate) fn build(peer: Peer, pods: u8, other: &Build) -> Result<Self> {
        Self::try_build(peer, pods, other, &[Family::V4])
            .with_context(|| format!("cannot build {}", peer.name()))
    }

    /// A routed peer of both families, with `pods` pods: Causeway, the kernel, or what does not look.
    pub(crate) fn dual_stack(peer: Peer, pods: u8) -> Result<Self> {
        Self::try_build(peer, pods, &Build::default(), &[Family::V4, Family::V6])
            .with_context(|| format!("cannot build {} with IPv6", peer.name()))
    }

    fn try_build(peer: Peer, pods: u8, other: &Build, families: &[Family]) -> Result<Self> {
        if peer == Peer::DirectVeth {
            return Self::direct();
        }
        let fabric = Fabric::new()?;
        let pool: Vec<Ipv4Addr> = (0..u8::MAX - 5)
            .map(|n| Ipv4Addr::new(10, 240, 0, 5 + n))
            .collect();
        let ns = Netns::new()?;
        fabric.plug_in(&ns, &pool)?;
        let dist = match (peer, &other.dist) {
            (Peer::OtherBuild, Some(path)) => Some(Dist::at(path)?),
            (Peer::Causeway | Peer::CausewayXdp | Peer::OtherBuild, _) => Some(Dist::from_env()?),
            _ => None,
        };
        let node = Node::installed(ns, datapath(peer), pool, dist)?;
        if let Some(flows) = other.max_flows {
            let settings = serde_json::json!({ "maxFlows": flows });
            node.root
                .write("/run/causeway/settings.json", &settings.to_string())?;
        }
        // A network card computes checksums and cuts segments; the rig's wire does not, to judge them.
        offload::set(&node.ns, "eth0", offload::TX_CHECKSUM, true)?;
        offload::set(&fabric.router, "node", offload::TX_CHECKSUM, true)?;
        translate(peer, &node.ns)?;
        let is_dual = families.contains(&Family::V6);
        if is_dual {
            give_ipv6(peer, &node, &fabric)?;
        }
        let pods = (0..pods)
            .map(|n| node.add(&format!("bench-{n}")))
            .collect::<Result<Vec<Pod>>>()?;
        if is_dual && peer.kind() != Kind::Ours {
            pods.iter().try_for_each(|pod| route_ipv6(&node, pod))?;
        }
        if peer == Peer::FlowTable {
            let mut devices = vec!["eth0".to_owned()];
            for pod in &pods {
                devices.push(node.host_interface(pod)?);
            }
            carry(&node.ns, &devices)?;
        }
        let world = World::Node(Box::new(Surrounded { node, fabric }));
        let mut stand = Self {
            peer,
            pods,
            world,
            model: None,
        };
        stand.pods.iter().try_for_each(|pod| stand.prepare(pod))?;
        if let (Peer::OtherBuild, Some(object)) = (peer, &other.object) {
            swap::programs(&stand.node()?.ns, &stand.pins()?, object)?;
        }
        if peer == Peer::Model {
            stand.model = Some(stand.load_model(other)?);
        }
        Ok(stand)
    }

    /// One more pod. The caller removes it.
    pub(crate) fn add(&self, name: &str) -> Result<Pod> {
        let pod = self.node()?.add(name)?;
        self.prepare(&pod)?;
        Ok(pod)
    }

    /// The host's end of a pod takes frames from a generator.
    fn prepare(&self, pod: &Pod) -> Result<()> {
        let node = self.node()?;
        offload::set(&node.ns, &node.host_interface(pod)?, offload::GRO, true)
    }

    /// The node.
    pub(crate) fn node(&self) -> Result<&Node> {
        match &self.world {
            World::Node(world) => Ok(&world.node),
            World::Wire { .. } => anyhow::bail!("{} has no node", self.peer.name()),
        }
    }

    /// Where a Causeway node has pinned its datapath, in whatever version.
    pub(crate) fn pins(&self) -> Result<PathBuf> {
        let base = self.node()?.root.join("/sys/fs/bpf/causeway");
        let versions = fs::read_dir(&base).with_context(|| format!("no pins in {}", base.display()))?;
        let tree = versions
            .filter_map(Result::ok)
            .map(|entry| entry.path())
            .find(|path| path.join("progs").is_dir());
        tree.with_context(|| format!("no programs are pinned in {}", base.display()))
    }

    /// What the datapath has counted, for an error.
    pub(crate) fn says(&self) -> String {
        let node = self.node().ok().filter(|_| self.peer.kind() == Kind::Ours);
        let status = node.map(|node| node.causeway(&["status"]));
        status.and_then(Result::ok).unwrap_or_default()
    }

    /// The namespace at the far end of the uplink. Its interface there is `node`.
    pub(crate) fn far(&self) -> &Netns {
        match &self.world {
            World::Node(world) => &world.fabric.router,
            World::Wire { far } => far,
        }
    }

    /// A pod's own address.
    pub(crate) fn addr(&self, pod: &Pod, family: Family) -> Result<IpAddr> {
        Ok(match family {
            Family::V4 => pod.addr.into(),
            Family::V6 if self.peer.kind() == Kind::Ours => pod.addr_v6()?.into(),
            Family::V6 => routed_ipv6(pod).into(),
        })
    }

    /// The address that the internet sees of a pod.
    pub(crate) fn seen(&self, pod: &Pod) -> Ipv4Addr {
        if self.peer.translates() { NODE } else { pod.addr }
    }

    /// Destination and source MAC of what a pod sends to an address.
    pub(crate) fn first_hop(&self, pod: &Pod, to: Ipv4Addr) -> Result<([u8; 6], [u8; 6])> {
        match &self.world {
            // On a bridge it may be anybody.
            World::Node(_) if datapath(self.peer).is_bridged() => rate::first_hop(&pod.ns, to),
            World::Node(world) => {
                let node = &world.node;
                Ok((node.ns.mac(&node.host_interface(pod)?)?, pod.ns.mac("eth0")?))
            }
            World::Wire { far } => Ok((far.mac("node")?, pod.ns.mac("eth0")?)),
        }
    }

    /// Destination and source MAC of what the far end sends.
    pub(crate) fn last_hop(&self) -> Result<([u8; 6], [u8; 6])> {
        let to = match &self.world {
            World::Node(world) => world.node.mac()?,
            World::Wire { .. } => self.pods[0].ns.mac("eth0")?,
        };
        Ok((to, self.far().mac("node")?))
    }

    fn direct() -> Result<Self> {
        let (ns, far) = (Netns::new()?, Netns::new()?);
        let addr = Ipv4Addr::new(10, 240, 0, 5);
        connect(&ns, "eth0", &far, "node")?;
        ns.ip(&format!(
            "addr add {addr}/32 dev eth0\nroute add default dev eth0"
        ))?;
        far.ip(&format!("addr add {FAR}/32 dev lo\nroute add {addr} dev node"))?;
        offload::set(&far, "node", offload::GRO, true)?;
        offload::set(&ns, "eth0", offload::GRO, true)?;
        let pod = Pod {
            ns,
            addr,
            name: "bench-0".to_owned(),
            result: serde_json::Value::Null,
        };
        Ok(Self {
            peer: Peer::DirectVeth,
            pods: vec![pod],
            world: World::Wire { far },
            model: None,
        })
    }

    /// Loads the model and puts it on every hook.
    fn load_model(&self, build: &Build) -> Result<Programs> {
        let node = &self.node()?.ns;
        let mut loader = EbpfLoader::new();
        let (addr, entries) = (NODE.to_bits().to_be(), model_entries(build));
        loader
            .map_max_entries("cwb_m_conns", entries)
            .map_max_entries("cwb_m_nat", entries)
            .override_global("CWB_NODE", &addr, true);
        let mut model = Programs::load_with(&mut loader)?;
        let identities = model.map("cwb_m_identity")?;
        let mut trie = aya::maps::lpm_trie::LpmTrie::<_, u32, u32>::try_from(identities)?;
        for (index, prefix) in [[10u8, 0, 0, 0], [203, 0, 0, 0], [198, 51, 0, 0]]
            .iter()
            .enumerate()
        {
            let key = aya::maps::lpm_trie::Key::new(8, u32::from_ne_bytes(*prefix));
            trie.insert(&key, index as u32 + 1, 0)?;
        }
        for (index, name) in [(0, "cwb_model_conn"), (1, "cwb_model_nat"), (2, "cwb_model_pod")] {
            let fd = model.tc(name)?.fd()?.try_clone()?;
            ProgramArray::try_from(model.map("cwb_m_stages")?)?.set(index, &fd, 0)?;
        }
        for pod in &self.pods {
            let host_if = self.node()?.host_interface(pod)?;
            let program = model.tc("cwb_model_in")?;
            node.run(|| program.attach(&host_if, TcAttachType::Ingress))??;
        }
        let program = model.tc("cwb_model_back")?;
        node.run(|| program.attach("eth0", TcAttachType::Ingress))??;
        Ok(model)
    }
}

/// Gives the node, its pods to come and the fabric IPv6.
fn give_ipv6(peer: Peer, node: &Node, fabric: &Fabric) -> Result<()> {
    const PODS: u8 = 20;
    let pods: Vec<_> = (5..5 + u32::from(PODS)).map(dual_stack::at).collect();
    dual_stack::enable(fabric, &node.ns, &pods)?;
    let far = Family::V6.far();
    fabric.router.ip(&format!("addr add {far}/128 dev node nodad"))?;
    if peer.kind() == Kind::Ours {
        return dual_stack::list(node, PODS, &[("fd00:10::/64", &pods)]);
    }
    node.ns.sysctl("net/ipv6/conf/all/forwarding", "1")
}

/// The address of IPv6 of a pod that hangs on the kernel's routing alone.
fn routed_ipv6(pod: &Pod) -> Ipv6Addr {
    dual_stack::at(pod.addr.octets()[3].into())
}

/// Connects it, as `causeway_tests::stock` does for IPv4.
fn route_ipv6(node: &Node, pod: &Pod) -> Result<()> {
    const GATEWAY: &str = dual_stack::GATEWAY;
    let (host_if, addr) = (node.host_interface(pod)?, routed_ipv6(pod));
    for (ns, name) in [(&node.ns, host_if.as_str()), (&pod.ns, "eth0")] {
        ns.sysctl(&format!("net/ipv6/conf/{name}/accept_dad"), "0")?;
        ns.sysctl(&format!("net/ipv6/conf/{name}/disable_ipv6"), "0")?;
    }
    let hex = |mac: [u8; 6]| mac.map(|byte| format!("{byte:02x}")).join(":");
    let [node_mac, pod_mac] = [hex(node.ns.mac(&host_if)?), hex(pod.ns.mac("eth0")?)];
    node.ns.ip(&format!(
        "route add {addr}/128 dev {host_if}\nneigh replace {addr} lladdr {pod_mac} dev {host_if} nud permanent"
    ))?;
    pod.ns.ip(&format!(
        "addr add {addr}/128 dev eth0 nodad\nroute add default via {GATEWAY} dev eth0\n\
         neigh replace {GATEWAY} lladdr {node_mac} dev eth0 nud permanent"
    ))
}

fn datapath(peer: Peer) -> Datapath {
    match peer {
        Peer::Causeway | Peer::OtherBuild => Datapath::Causeway,
        Peer::CausewayXdp => Datapath::CausewayXdp,
        Peer::BridgeNft | Peer::BridgeLegacy | Peer::Bridge => Datapath::Bridge,
        _ => Datapath::Routed,
    }
}

/// The rule, by the tool that the peer is named after.
fn translate(peer: Peer, node: &Netns) -> Result<()> {
    if datapath(peer).is_bridged() {
        // The generator's stations never answer, and an address that is forgotten is flooded to.
        node.ip("link set azure0 type bridge ageing_time 360000")?;
    }
    let program = match peer {
        Peer::BridgeNft => "iptables-nft",
        Peer::BridgeLegacy | Peer::RoutedMasquerade => "iptables-legacy",
        Peer::NftMasquerade | Peer::FlowTable => {
            let rules = [
                "add table ip nat",
                "add set ip nat kept { type ipv4_addr; flags interval; elements = { 10.0.0.0/8, 168.63.129.16 }; }",
                "add chain ip nat post { type nat hook postrouting priority srcnat; }",
                "add rule ip nat post oifname eth0 ip daddr != @kept fib daddr type != local masquerade",
            ];
            return node.output("nft", &[&rules.join("\n")]).map(drop);
        }
        _ => return Ok(()),
    };
    let rule: Vec<&str> = stock::MASQUERADE.split_whitespace().collect();
    node.output(program, &rule).map(drop)
}

/// Whether the kernel has what the peer is made of.
pub(crate) fn is_possible(peer: Peer) -> Result<bool> {
    Ok(peer != Peer::FlowTable || carry(&Netns::new()?, &["lo".to_owned()]).is_ok())
}

/// Has a flow table carry what the kernel forwards between these interfaces.
fn carry(node: &Netns, devices: &[String]) -> Result<()> {
    let devices = devices.join(", ");
    let rules = [
        "add table ip fast",
        &format!("add flowtable ip fast carried {{ hook ingress priority 0; devices = {{ {devices} }}; }}"),
        "add chain ip fast forward { type filter hook forward priority filter; }",
        "add rule ip fast forward meta l4proto { tcp, udp } flow add @carried",
    ];
    node.output("nft", &[&rules.join("\n")]).map(drop)
}
