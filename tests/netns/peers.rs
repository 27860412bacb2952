//! The node itself and the pods of another node, as peers of a pod.

use std::net::SocketAddrV4;

use anyhow::{Context, Result, ensure};
use causeway_tests::{
    capture::Capture,
    echo::Echo,
    fabric::{INTERNET, NODE, PARTNER, SECOND_NODE},
    leak::LeakWatch,
    netns::Netns,
    node::{Datapath, Node, Pod},
    ping::Pinger,
    rig::Rig,
    rules,
    talk::{SILENCE, Tcp, Udp},
    walk::Walk,
};

/// A rig and a second node of the same fabric, watched as well.
struct TwoNodes {
    rig: Rig,
    second: Node,
    watch: LeakWatch,
}

impl TwoNodes {
    fn new() -> Result<Self> {
        let rig = Rig::causeway()?;
        let second = Node::second(&rig.fabric, Datapath::Causeway, 4)?;
        rules::count_forwarded(&second.ns)?;
        let router = &rig.fabric.router;
        let watch = LeakWatch::start(router, "second", SECOND_NODE, second.mac()?, PARTNER)?;
        Ok(Self { rig, second, watch })
    }

    /// To be called at the end: the rig looks after the first node itself.
    fn leaked_nothing(&self) -> Result<()> {
        let leaks = self.watch.leaks();
        ensure!(leaks.is_empty(), "leaked by the second node: {leaks:#?}");
        Ok(())
    }
}

/// Talks over TCP, UDP and ICMP; the server must have seen `seen`.
fn talk(client: &Netns, server: &Netns, to: SocketAddrV4, seen: std::net::Ipv4Addr) -> Result<()> {
    let echo = Echo::on(server, to)?;
    Tcp::connect(client, to)?.chat(20)?;
    Udp::connect(client, to)?.chat(20)?;
    Pinger::new(client, 99)?.chat(*to.ip(), 5)?;
    let peers = echo.seen();
    ensure!(
        peers.len() > 20 && peers.iter().all(|peer| *peer.ip() == seen),
        "{to} saw {peers:?}"
    );
    Ok(())
}

#[test]
fn the_node_and_its_pods_talk_without_translation_and_nothing_of_it_is_carried() -> Result<()> {
    let rig = Rig::causeway()?;
    let pod = rig.pod("a")?;
    talk(&pod.ns, &rig.node.ns, SocketAddrV4::new(NODE, 7), pod.addr).context("pod to node")?;
    talk(&rig.node.ns, &pod.ns, SocketAddrV4::new(pod.addr, 7), NODE).context("node to pod")?;
    let flows: serde_json::Value = serde_json::from_str(&rig.node.causeway(&["flows", "--json"])?)?;
    let flows = flows["flows"].as_array().context("no list of flows")?;
    ensure!(
        flows.iter().all(|flow| flow["state"] != "carried"),
        "carried: {flows:#?}"
    );
    Ok(())
}

#[test]
fn pods_of_two_nodes_are_carried_at_both_with_their_own_addresses() -> Result<()> {
    let nodes = TwoNodes::new()?;
    let (a, b) = (nodes.rig.pod("a")?, nodes.second.add("b")?);
    for (client, server) in [(&a, &b), (&b, &a)] {
        let before = rules::forwarded(&nodes.second.ns)?;
        let walk = Walk::direct(&client.ns, &server.ns, SocketAddrV4::new(server.addr, 7));
        walk.tcp(&nodes.rig)?.expect_carried(client.addr)?;
        walk.udp(&nodes.rig)?.expect_carried(client.addr)?;
        walk.ping(&nodes.rig)?.expect_carried(client.addr)?;
        let forwarded = rules::forwarded(&nodes.second.ns)? - before;
        ensure!(
            (1..40).contains(&forwarded),
            "{forwarded} packets took the second node's stack"
        );
    }
    nodes.leaked_nothing()
}

#[test]
fn a_pod_calls_a_host_port_of_another_node() -> Result<()> {
    let nodes = TwoNodes::new()?;
    let (a, b) = (nodes.rig.pod("a")?, nodes.second.add("b")?);
    let listen = SocketAddrV4::new(b.addr, 8080);
    rules::host_port(&nodes.second.ns, 8081, listen)?;
    let echo = Echo::on(&b.ns, listen)?;
    let dial = SocketAddrV4::new(SECOND_NODE, 8081);
    Tcp::connect(&a.ns, dial)?.chat(20)?;
    Udp::connect(&a.ns, dial)?.chat(20)?;
    // Its own node calls as well, and the pod itself.
    Tcp::connect(&nodes.second.ns, dial)?.chat(5)?;
    Tcp::connect(&b.ns, dial)?.chat(5)?;
    let seen = echo.seen();
    ensure!(
        seen[..21].iter().all(|peer| *peer.ip() == a.addr),
        "the pod saw {seen:?}"
    );
    nodes.leaked_nothing()
}

/// The address and port that a remote sees a pod with are for that remote alone: to everybody else they are the node's.
#[test]
fn a_translated_address_leads_nobody_else_to_the_pod() -> Result<()> {
    let nodes = TwoNodes::new()?;
    let (stranger, pod) = (nodes.rig.pod("stranger")?, nodes.second.add("pod")?);
    let echo = Echo::start(&nodes.rig.fabric.internet, 7)?;
    let server = SocketAddrV4::new(INTERNET, 7);
    let (mut tcp, udp) = (Tcp::connect(&pod.ns, server)?, Udp::connect(&pod.ns, server)?);
    tcp.chat(3)?;
    udp.chat(3)?;
    let seen = echo.seen();
    let (tcp_port, udp_port) = (seen[0].port(), seen[seen.len() - 1].port());
    let wire = Capture::start(&pod.ns, "eth0")?;
    for ns in [
        &stranger.ns,
        &nodes.rig.fabric.vnet,
        &nodes.rig.fabric.internet,
        &nodes.second.ns,
    ] {
        let tcp_there = SocketAddrV4::new(SECOND_NODE, tcp_port);
        let refused = Tcp::connect_within(ns, tcp_there, SILENCE).map(drop);
        ensure!(
            refused
                .as_ref()
                .is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused),
            "{refused:?}"
        );
        Udp::connect(ns, SocketAddrV4::new(SECOND_NODE, udp_port))?
            .0
            .send(b"anybody there?")?;
    }
    tcp.chat(3)?;
    udp.chat(3)?;
    let strange: Vec<_> = wire
        .stop()
        .into_iter()
        .filter(|frame| !frame.outgoing)
        .filter(|frame| {
            frame
                .ip
                .as_ref()
                .is_some_and(|ip| (ip.src, ip.src_port) != (INTERNET.into(), 7))
        })
        .collect();
    ensure!(strange.is_empty(), "{strange:#?}");
    nodes.leaked_nothing()
}

/// One server, one port of each client: what tells them apart is the node's address.
#[test]
fn pods_of_two_nodes_use_one_port_towards_one_server() -> Result<()> {
    const FROM: u16 = 45_000;
    let nodes = TwoNodes::new()?;
    let (a, b) = (nodes.rig.pod("a")?, nodes.second.add("b")?);
    let echo = Echo::start(&nodes.rig.fabric.internet, 7)?;
    let server = SocketAddrV4::new(INTERNET, 7);
    let connect = |pod: &Pod| Tcp::connect_from(&pod.ns, SocketAddrV4::new(pod.addr, FROM), server);
    let (mut one, mut other) = (connect(&a)?, connect(&b)?);
    for _ in 0..5 {
        one.chat(2)?;
        other.chat(2)?;
    }
    let expected = [NODE, SECOND_NODE].map(|node| SocketAddrV4::new(node, FROM));
    ensure!(echo.seen() == expected);
    nodes.leaked_nothing()
}
