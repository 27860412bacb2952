//! Nodes with XDP on the uplink: answers are redirected into the pod before they are packets, and everything else is as it is
//! without.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use causeway_tests::{
    echo::Echo,
    fabric::{INTERNET, NODE, PARTNER, SUBNET_BITS},
    netns::Netns,
    node::{Datapath, Node},
    offload,
    ping::Pinger,
    rig::Rig,
    stream,
    talk::{Tcp, Udp},
    walk::Walk,
};

const PORT: u16 = 7;
const SERVER: SocketAddrV4 = SocketAddrV4::new(INTERNET, PORT);
/// A flow is shown to XDP in the second after its first.
const SHOWN_WITHIN: Duration = Duration::from_secs(10);

fn frames(rig: &Rig) -> Result<u64> {
    rig.node.count("carried_by_xdp")
}

/// Has `turns` conversations until XDP has carried most of the answers to the last one's questions.
fn until_redirected(rig: &Rig, what: &str, mut turns: impl FnMut(u16) -> Result<()>) -> Result<()> {
    const TURNS: u16 = 20;
    let begun = Instant::now();
    loop {
        let before = frames(rig)?;
        turns(TURNS).with_context(|| what.to_owned())?;
        if frames(rig)? - before >= u64::from(TURNS) / 2 {
            return Ok(());
        }
        ensure!(begun.elapsed() < SHOWN_WITHIN, "{what}: not one answer by XDP");
    }
}

#[test]
fn answers_over_tcp_and_udp_and_to_pings_go_into_the_pod_as_frames() -> Result<()> {
    let rig = Rig::with(Datapath::CausewayXdp, 3)?;
    let pod = rig.pod("a")?;
    let status = rig.node.causeway_json("status")?;
    ensure!(status["xdp"] == true && status["attached"] == "tcx", "{status}");
    let _echo = Echo::start(&rig.fabric.internet, PORT)?;
    let mut tcp = Tcp::connect(&pod.ns, SERVER)?;
    until_redirected(&rig, "TCP", |turns| tcp.chat(turns.into()))?;
    let udp = Udp::connect(&pod.ns, SERVER)?;
    until_redirected(&rig, "UDP", |turns| udp.chat(turns.into()))?;
    let pinger = Pinger::new(&pod.ns, 4711)?;
    until_redirected(&rig, "ping", |turns| pinger.chat(INTERNET, turns))
}

#[test]
fn every_walk_is_carried_as_without_xdp() -> Result<()> {
    let rig = Rig::with(Datapath::CausewayXdp, 3)?;
    let (a, b) = (rig.pod("a")?, rig.pod("b")?);
    let partner = &rig.fabric.partner;
    for (client, server, to, seen) in [
        (&a.ns, &rig.fabric.internet, INTERNET, NODE),
        (&a.ns, &b.ns, b.addr, a.addr),
        (partner, &b.ns, b.addr, PARTNER),
    ] {
        let walk = Walk::direct(client, server, SocketAddrV4::new(to, PORT));
        walk.tcp(&rig)?.expect_carried(seen)?;
        walk.udp(&rig)?.expect_carried(seen)?;
        walk.ping(&rig)?.expect_carried(seen)?;
    }
    rig.node.remove(&a)?;
    rig.node.remove(&b)?;
    rig.node.causeway(&["unload"])?;
    let link = rig.node.ns.json("ip", &["-j", "link", "show", "dev", "eth0"])?;
    ensure!(link[0]["xdp"].is_null(), "{link}");
    Ok(())
}

#[test]
fn a_flow_from_outside_to_a_pod_comes_as_frames_too() -> Result<()> {
    let rig = Rig::with(Datapath::CausewayXdp, 3)?;
    let pod = rig.pod("a")?;
    let _echo = Echo::start(&pod.ns, PORT)?;
    let server = SocketAddrV4::new(pod.addr, PORT);
    let mut tcp = Tcp::connect(&rig.fabric.partner, server)?;
    until_redirected(&rig, "TCP", |turns| tcp.chat(turns.into()))?;
    let udp = Udp::connect(&rig.fabric.partner, server)?;
    until_redirected(&rig, "UDP", |turns| udp.chat(turns.into()))
}

#[test]
fn a_stream_in_both_directions_arrives_whole() -> Result<()> {
    let rig = Rig::with(Datapath::CausewayXdp, 3)?;
    let pod = rig.pod("a")?;
    let begun = Instant::now();
    // A stream that is over in a second is not shown to XDP.
    for mebibytes in [64, 256, 1024] {
        stream::exchange(&pod.ns, &rig.fabric.internet, SERVER, mebibytes << 20)?;
        if frames(&rig)? > 1000 {
            return Ok(());
        }
    }
    bail!("{} frames in {:?}", frames(&rig)?, begun.elapsed())
}

/// Packets of a sender on this machine come with a checksum that its device was to complete. A frame has nobody who does.
#[test]
fn checksums_that_the_wire_does_not_complete_are_left_to_the_packet() -> Result<()> {
    let rig = Rig::with(Datapath::CausewayXdp, 3)?;
    let pod = rig.pod("a")?;
    for ns in [&rig.fabric.internet, &rig.fabric.router] {
        for interface in ["eth0", "node", "internet"] {
            if ns.ifindex(interface).is_ok() {
                offload::set(ns, interface, offload::TX_CHECKSUM, true)?;
            }
        }
    }
    let _echo = Echo::start(&rig.fabric.internet, PORT)?;
    let (mut tcp, udp) = (Tcp::connect(&pod.ns, SERVER)?, Udp::connect(&pod.ns, SERVER)?);
    let begun = Instant::now();
    let mut turns = 0;
    while begun.elapsed() < Duration::from_millis(2500) {
        tcp.chat(20)?;
        udp.chat(20)?;
        turns += 40;
    }
    // One sum in 65,535 is both.
    let redirected = frames(&rig)?;
    ensure!(redirected < turns / 50, "{redirected} of {turns}");
    Ok(())
}

#[test]
fn a_driver_that_cannot_is_named_and_nothing_is_half_done() -> Result<()> {
    let ns = Netns::new()?;
    // A bridge has no XDP of its own.
    ns.ip("link add eth0 type bridge")?;
    ns.ip(&format!(
        "addr add {NODE}/{SUBNET_BITS} dev eth0\nlink set eth0 up\nroute add default via 10.240.0.1"
    ))?;
    let node = Node::plugged_in(ns, Datapath::CausewayXdp, vec![Ipv4Addr::new(10, 240, 0, 5)])?;
    let Err(error) = node.add("a") else {
        bail!("the plug-in says that XDP runs on a bridge");
    };
    let text = format!("{error:#}");
    ensure!(
        text.contains("XDP cannot be used on eth0: its driver runs no XDP programs")
            && text.contains("uplinkXdp"),
        "{text}"
    );
    let status = node.causeway_json("status")?;
    ensure!(
        status["xdp"].is_null() && status["pods"]["ready"] == 0,
        "{status}"
    );
    let leases = node.causeway_json("leases")?;
    ensure!(!leases.to_string().contains("10.240.0.5\""), "{leases}");
    Ok(())
}
