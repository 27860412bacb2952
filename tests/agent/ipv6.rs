//! The half of the datapath that serves IPv6 is kept as the other is.

use std::{fs, net::Ipv6Addr, path::PathBuf};

use anyhow::{Context, Result, ensure};
use aya::maps::{HashMap, Map, ProgramArray};
use causeway_common::maps::{IfaceEntry, PodEntry, Usage};
use causeway_tests::{
    agent::Agent,
    dual_stack::{Connection, at, list_alone},
    netns::Netns,
    rig::Rig,
};
use rustix::mount::{UnmountFlags, mount_bind, unmount};

use crate::{
    healing::{map, pins},
    hooks::take_off,
};

/// What the programs for IPv6 depend on, each thing by itself, under a pod of both families.
#[test]
fn the_half_that_serves_ipv6() -> Result<()> {
    let rig = Rig::dual_stack()?;
    let (a, b) = (rig.pod("a")?, rig.pod("b")?);
    let to = b.addr_v6()?;
    let index = rig.node.ns.ifindex(&rig.node.host_interface(&b)?)?;
    let mut agent = Agent::start(&rig.node)?;
    let mut flow = Connection::open(&a.ns, &b.ns, to, 7000)?;
    flow.chat(5)?;
    let mut pods: HashMap<_, [u8; 16], PodEntry> = HashMap::try_from(Map::HashMap(map(&rig, "cwy_pods6")?))?;
    let mut ifaces: HashMap<_, u32, IfaceEntry<[u8; 16]>> =
        HashMap::try_from(Map::HashMap(map(&rig, "cwy_ifaces6")?))?;
    let mut usage: HashMap<_, [u8; 16], Usage> = HashMap::try_from(Map::HashMap(map(&rig, "cwy_usage6")?))?;
    let mut programs = ProgramArray::try_from(Map::ProgramArray(map(&rig, "cwy_ipv6")?))?;
    let tree = pins(&rig);

    pods.remove(&to.octets())?;
    agent.wait_for("the entry in cwy_pods6", |_| {
        Ok(pods.get(&to.octets(), 0).is_ok_and(|pod| pod.is_ready()))
    })?;
    ifaces.remove(&index)?;
    agent.wait_for("the entry in cwy_ifaces6", |_| Ok(ifaces.get(&index, 0).is_ok()))?;
    usage.remove(&to.octets())?;
    agent.wait_for("the pod's account", |_| Ok(usage.get(&to.octets(), 0).is_ok()))?;
    usage.remove(&[0; 16])?;
    agent.wait_for("the wire's account", |_| Ok(usage.get(&[0; 16], 0).is_ok()))?;
    programs.clear_index(&0)?;
    agent.wait_for("the programs behind those for IPv4", |_| {
        let before = rig.node.count("ipv6")?;
        flow.chat(5)?;
        Ok(rig.node.count("ipv6")? == before)
    })?;
    for pin in ["maps/cwy_flows6", "progs/cwy_from_pod6"] {
        fs::remove_file(tree.join(pin))?;
        agent.wait_for(pin, |_| Ok(tree.join(pin).exists()))?;
    }
    let before = rig.node.count("carried_to_pod")?;
    flow.chat(20)?;
    ensure!(
        rig.node.count("carried_to_pod")? >= before + 40,
        "the flow is not carried any more"
    );
    agent.end()
}

/// A pod with an address of IPv6 and none of IPv4, in a namespace that has a name of its own.
struct Lone<'a> {
    rig: &'a Rig,
    ns: Netns,
    place: PathBuf,
    name: &'a str,
    host_if: String,
    addr: Ipv6Addr,
}

impl<'a> Lone<'a> {
    fn add(rig: &'a Rig, name: &'a str) -> Result<Self> {
        let ns = Netns::new()?;
        let place = rig.node.root.join(&format!("/run/netns/{name}"));
        fs::create_dir_all(place.parent().context("a parent")?)?;
        fs::write(&place, "")?;
        mount_bind(ns.path(), &place)?;
        let result = rig.node.plugin("ADD", name, &place.display().to_string())?;
        let text = result["ips"][0]["address"].as_str().unwrap_or_default();
        let addr = text.trim_end_matches("/64").parse();
        let host_if = result["interfaces"][1]["name"].as_str();
        Ok(Self {
            rig,
            ns,
            place,
            name,
            host_if: host_if.context("no host interface")?.to_owned(),
            addr: addr.with_context(|| format!("no address of IPv6 alone in {result}"))?,
        })
    }

    fn remove(self) -> Result<()> {
        let place = self.place.display().to_string();
        self.rig.node.plugin("DEL", self.name, &place)?;
        ensure!(self.ns.mac("eth0").is_err(), "the DEL left the interface");
        Ok(unmount(&self.place, UnmountFlags::DETACH)?)
    }
}

impl Drop for Lone<'_> {
    fn drop(&mut self) {
        // Removed, it is no mount any more.
        unmount(&self.place, UnmountFlags::DETACH).ok();
    }
}

/// What the programs and the kernel have of a pod without an address of IPv4, each thing by itself; and a restart.
#[test]
fn a_pod_with_ipv6_alone() -> Result<()> {
    let rig = Rig::dual_stack()?;
    let addresses = [at(5), at(6)];
    list_alone(&rig.node, &[("fd00:10::/64", &addresses)])?;
    let (a, b) = (Lone::add(&rig, "a")?, Lone::add(&rig, "b")?);
    let (to, octets) = (b.addr, b.addr.octets());
    let index = rig.node.ns.ifindex(&b.host_if)?;
    let mut agent = Agent::start(&rig.node)?;
    let mut flow = Connection::open(&a.ns, &b.ns, to, 7000)?;
    flow.chat(5)?;
    ensure!(agent.metric("causeway_pods{state=\"ready\"}")? == 2);
    ensure!(
        agent.metric("causeway_reconcile_mended_total")? == 0,
        "{}",
        agent.log()
    );
    let mut pods: HashMap<_, [u8; 16], PodEntry> = HashMap::try_from(Map::HashMap(map(&rig, "cwy_pods6")?))?;
    let mut ifaces: HashMap<_, u32, IfaceEntry<[u8; 16]>> =
        HashMap::try_from(Map::HashMap(map(&rig, "cwy_ifaces6")?))?;
    let before = pods.get(&octets, 0)?;

    pods.remove(&octets)?;
    agent.wait_for("the entry in cwy_pods6", |_| {
        let as_before = |pod: PodEntry| (pod.ifindex, pod.flags) == (before.ifindex, before.flags);
        Ok(pods.get(&octets, 0).is_ok_and(as_before))
    })?;
    ifaces.remove(&index)?;
    agent.wait_for("the entry in cwy_ifaces6", |_| Ok(ifaces.get(&index, 0).is_ok()))?;
    for direction in ["ingress", "egress"] {
        take_off(&rig, &b.host_if, direction)?;
        agent.wait_for(direction, |_| {
            let status = rig.node.causeway_json("status")?;
            let hooks = status["hooks"].as_array().context("no hooks")?;
            ensure!(hooks.len() == 6, "{status}");
            Ok(hooks.iter().all(|hook| !hook["attached"].is_null()))
        })?;
    }
    let node = &rig.node.ns;
    let has = |what: &str| {
        let shown = node.output("ip", &["-6", what, "show", "dev", &b.host_if])?;
        Ok::<_, anyhow::Error>(shown.contains(&to.to_string()))
    };
    node.ip(&format!("route del {to}"))?;
    agent.wait_for("the route", |_| has("route"))?;
    node.ip(&format!("neigh del {to} dev {}", b.host_if))?;
    agent.wait_for("the neighbour", |_| has("neigh"))?;
    fs::remove_file(rig.node.root.join("/var/run/azure-vnet.json"))?;
    agent.wait_for("the endpoints", |_| {
        Ok(rig.node.root.join("/var/run/azure-vnet.json").exists())
    })?;
    agent.wait_for("readiness", |agent| Ok(agent.get("/readyz").is_ok()))?;
    flow.chat(5)?;

    agent.end()?;
    let mut agent = Agent::start(&rig.node)?;
    let carried = rig.node.count("carried_to_pod")?;
    flow.chat(20)?;
    ensure!(
        rig.node.count("carried_to_pod")? >= carried + 40,
        "the flow is not carried any more"
    );
    ensure!(
        agent.metric("causeway_reconcile_mended_total")? == 0,
        "{}",
        agent.log()
    );

    let mac = b.ns.mac("eth0")?;
    node.ip(&format!("link del {}", b.host_if))?;
    agent.wait_for("the interface", |_| {
        Ok(Connection::open(&a.ns, &b.ns, to, 7001).is_ok())
    })?;
    ensure!(b.ns.mac("eth0")? == mac, "another MAC");
    ensure!(
        b.ns.output("ip", &["-4", "addr", "show", "dev", "eth0"])?
            .is_empty()
    );
    agent.wait_for("readiness", |agent| Ok(agent.get("/readyz").is_ok()))?;
    a.remove()?;
    b.remove()?;
    ensure!(rig.node.causeway_json("status")?["pods"]["ready"] == 0);
    agent.end()
}
