//! Walks that are carried: the kernel forwards the first packets, the far end sees the right address, and TCP, UDP and ping
//! all work.

use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::{Result, ensure};
use causeway_tests::{
    capture::Capture,
    fabric::{INTERNET, NODE, PARTNER, PEERED, VNET},
    netns::Netns,
    rig::Rig,
    walk::Walk,
};

const PORT: u16 = 7;

fn carried(rig: &Rig, client: &Netns, server: &Netns, to: Ipv4Addr, seen: Ipv4Addr) -> Result<()> {
    let walk = Walk::direct(client, server, SocketAddrV4::new(to, PORT));
    walk.tcp(rig)?.expect_carried(seen)?;
    walk.udp(rig)?.expect_carried(seen)?;
    walk.ping(rig)?.expect_carried(seen)
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
