//! Walks that are carried: the kernel forwards the first packets, the far end sees the right address, and TCP, UDP and ping
//! all work.

use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::{Result, bail, ensure};
use causeway_tests::{
    capture::Capture,
    fabric::{INTERNET, NODE, PARTNER, PEERED, VNET},
    netns::Netns,
    node::Datapath,
    rig::Rig,
    walk::Walk,
};

const PORT: u16 = 7;

fn carried(rig: &Rig, client: &Netns, server: &Netns, to: Ipv4Addr, seen: Ipv4Addr) -> Result<()> {
    let walk = Walk::direct(client, server, SocketAddrV4::new(to, PORT));
    for (protocol, talk) in [("tcp", walk.tcp(rig)?), ("udp", walk.udp(rig)?)] {
        talk.expect_carried(seen)?;
        let states = rig.node.flow_states(protocol, talk.local)?;
        ensure!(states == ["carried", "carried"], "{protocol} to {to}: {states:?}");
    }
    walk.ping(rig)?.expect_carried(seen)
}

#[test]
fn every_walk_on_a_node_without_tcx() -> Result<()> {
    let rig = Rig::with(Datapath::CausewayClsact, 3)?;
    let (a, b) = (rig.pod("a")?, rig.pod("b")?);
    let status = rig.node.causeway_json("status")?;
    ensure!(status["attached"] == "clsact", "{status}");
    carried(&rig, &a.ns, &b.ns, b.addr, a.addr)?;
    carried(&rig, &a.ns, &rig.fabric.vnet, VNET, a.addr)?;
    carried(&rig, &a.ns, &rig.fabric.internet, INTERNET, NODE)?;
    carried(&rig, &rig.fabric.partner, &b.ns, b.addr, PARTNER)?;
    rig.node.remove(&a)?;
    rig.node.remove(&b)?;
    rig.node.causeway(&["unload"])?;
    let qdiscs = rig.node.ns.output("tc", &["qdisc", "show", "dev", "eth0"])?;
    ensure!(!qdiscs.contains("clsact"), "{qdiscs}");
    Ok(())
}

/// It has hooks for one direction only.
#[test]
fn an_ingress_qdisc_in_the_way_of_a_node_without_tcx_is_named_and_stays() -> Result<()> {
    let rig = Rig::with(Datapath::CausewayClsact, 1)?;
    let tc = |arguments: &str| {
        let arguments: Vec<&str> = arguments.split(' ').collect();
        rig.node.ns.output("tc", &arguments)
    };
    tc("qdisc add dev eth0 ingress")?;
    let Err(refused) = rig.pod("a") else {
        bail!("a pod was added");
    };
    let text = format!("{refused:#}");
    ensure!(text.contains("interface eth0 has an ingress qdisc"), "{text}");
    ensure!(tc("qdisc show dev eth0")?.contains("qdisc ingress"));
    ensure!(tc("filter show dev eth0 ingress")?.trim().is_empty());
    tc("qdisc del dev eth0 ingress")?;
    let pod = rig.pod("a")?;
    carried(&rig, &pod.ns, &rig.fabric.internet, INTERNET, NODE)
}

#[test]
fn pod_to_pod() -> Result<()> {
    let rig = Rig::causeway()?;
    let (a, b) = (rig.pod("a")?, rig.pod("b")?);
    carried(&rig, &a.ns, &b.ns, b.addr, a.addr)?;
    carried(&rig, &b.ns, &a.ns, a.addr, b.addr)
}

#[test]
fn pod_to_a_host_of_the_subnet_with_its_own_address() -> Result<()> {
    let rig = Rig::causeway()?;
    let pod = rig.pod("a")?;
    carried(&rig, &pod.ns, &rig.fabric.vnet, VNET, pod.addr)
}

#[test]
fn pod_to_a_peered_network_with_its_own_address() -> Result<()> {
    let rig = Rig::causeway()?;
    let pod = rig.pod("a")?;
    carried(&rig, &pod.ns, &rig.fabric.vnet, PEERED, pod.addr)
}

#[test]
fn pod_to_the_internet_with_the_nodes_address() -> Result<()> {
    let rig = Rig::causeway()?;
    let pod = rig.pod("a")?;
    carried(&rig, &pod.ns, &rig.fabric.internet, INTERNET, NODE)
}

#[test]
fn a_host_of_the_vnet_to_a_pod() -> Result<()> {
    let rig = Rig::causeway()?;
    let pod = rig.pod("a")?;
    carried(&rig, &rig.fabric.vnet, &pod.ns, pod.addr, VNET)
}

/// The answers go to an address that pods are masqueraded for when *they* open a flow; here they must keep the pod's.
#[test]
fn a_client_outside_the_excluded_ranges_to_a_pod() -> Result<()> {
    let rig = Rig::causeway()?;
    let pod = rig.pod("a")?;
    carried(&rig, &rig.fabric.partner, &pod.ns, pod.addr, PARTNER)?;
    // And a flow that the pod opens towards the same host is masqueraded.
    carried(&rig, &pod.ns, &rig.fabric.partner, PARTNER, NODE)
}

#[test]
fn many_pods_towards_one_server_share_the_nodes_address() -> Result<()> {
    let rig = Rig::causeway()?;
    for name in ["a", "b", "c", "d", "e"] {
        let pod = rig.pod(name)?;
        carried(&rig, &pod.ns, &rig.fabric.internet, INTERNET, NODE)?;
    }
    Ok(())
}

#[test]
fn every_checksum_on_the_wire_is_right() -> Result<()> {
    let rig = Rig::causeway()?;
    let pod = rig.pod("a")?;
    let wire = Capture::start(&rig.fabric.router, "node")?;
    carried(&rig, &pod.ns, &rig.fabric.internet, INTERNET, NODE)?;
    carried(&rig, &pod.ns, &rig.fabric.vnet, VNET, pod.addr)?;
    carried(&rig, &rig.fabric.partner, &pod.ns, pod.addr, PARTNER)?;
    let frames = wire.stop();
    let sent: Vec<_> = frames
        .iter()
        .filter(|frame| !frame.outgoing)
        .filter_map(|frame| frame.ip.as_ref())
        .collect();
    ensure!(
        sent.len() > 300,
        "the capture has only {} packets of the node",
        sent.len()
    );
    let bad: Vec<_> = sent.iter().filter(|ip| !ip.checksums_good).collect();
    ensure!(bad.is_empty(), "{bad:#?}");
    Ok(())
}
