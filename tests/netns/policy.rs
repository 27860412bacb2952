//! What the kernel refuses stays refused, and a rule against INVALID packets finds none.

use std::net::SocketAddrV4;

use anyhow::{Result, ensure};
use causeway_tests::{
    echo::Echo,
    fabric::{INTERNET, NODE, VNET, WIRESERVER},
    netns::Netns,
    ping::Pinger,
    rig::Rig,
    rules, stream,
    talk::{SILENCE, Tcp, Udp},
    walk::Walk,
};
use std::time::Duration;

#[test]
fn a_forward_drop_is_honoured_however_often_one_tries() -> Result<()> {
    let rig = Rig::causeway()?;
    let pod = rig.pod("a")?;
    rules::forbid(&rig.node.ns, pod.addr, INTERNET)?;
    let echo = Echo::start(&rig.fabric.internet, 7)?;
    let to = SocketAddrV4::new(INTERNET, 7);
    let (socket, pinger) = (Udp::connect(&pod.ns, to)?, Pinger::new(&pod.ns, 9)?);
    let brief = Duration::from_millis(10);
    for sequence in 0..50 {
        ensure!(
            Tcp::connect_within(&pod.ns, to, brief).is_err(),
            "attempt {sequence}: TCP connected"
        );
        ensure!(
            socket.is_unanswered(32, brief)?,
            "attempt {sequence}: UDP was answered"
        );
        pinger.send(INTERNET, sequence, b"?")?;
    }
    ensure!(
        pinger
            .hear(SILENCE, |message| message.from == INTERNET)?
            .is_none(),
        "ping was answered"
    );
    ensure!(echo.seen().is_empty(), "the server saw somebody");
    // The others are not held up by it.
    Walk::direct(&pod.ns, &rig.fabric.vnet, SocketAddrV4::new(VNET, 7))
        .tcp(&rig)?
        .expect_carried(pod.addr)
}

/// Only one direction is forbidden: the answer cannot come, so nothing is carried.
#[test]
fn a_forward_drop_of_the_answers_is_honoured() -> Result<()> {
    let rig = Rig::causeway()?;
    let (a, b) = (rig.pod("a")?, rig.pod("b")?);
    rules::forbid(&rig.node.ns, b.addr, a.addr)?;
    let echo = Echo::start(&b.ns, 7)?;
    let to = SocketAddrV4::new(b.addr, 7);
    ensure!(Tcp::connect_within(&a.ns, to, SILENCE).is_err(), "TCP connected");
    let socket = Udp::connect(&a.ns, to)?;
    for _ in 0..20 {
        ensure!(
            socket.is_unanswered(32, Duration::from_millis(10))?,
            "UDP was answered"
        );
    }
    ensure!(echo.seen().iter().all(|peer| *peer.ip() == a.addr));
    Ok(())
}

#[test]
fn beside_a_rule_against_invalid_packets_every_walk_is_carried() -> Result<()> {
    let rig = Rig::causeway()?;
    let (a, b) = (rig.pod("a")?, rig.pod("b")?);
    rules::forbid_invalid(&rig.node.ns)?;
    for (server, addr, seen) in [
        (&b.ns, b.addr, a.addr),
        (&rig.fabric.vnet, VNET, a.addr),
        (&rig.fabric.internet, INTERNET, NODE),
    ] {
        let walk = Walk::direct(&a.ns, server, SocketAddrV4::new(addr, 7));
        walk.tcp(&rig)?.expect_carried(seen)?;
        walk.udp(&rig)?.expect_carried(seen)?;
        stream::exchange(&a.ns, server, SocketAddrV4::new(addr, 8), 32 << 20)?;
    }
    let endpoint = SocketAddrV4::new(b.addr, 8080);
    let vip = SocketAddrV4::new([10, 0, 0, 50].into(), 80);
    rules::cluster_ip(&rig.node.ns, vip, endpoint)?;
    Walk {
        client: &a.ns,
        dial: vip,
        server: &b.ns,
        listen: endpoint,
    }
    .tcp(&rig)?
    .expect_kernel(a.addr)?;
    let dropped = rules::dropped(&rig.node.ns, "filter", "FORWARD")?;
    ensure!(dropped == 0, "conntrack called {dropped} packets INVALID");
    Ok(())
}

fn wireserver_is_guarded(rig: &Rig, pod: &Netns) -> Result<()> {
    let servers: Vec<Echo> = [80, 32_526, 53]
        .into_iter()
        .map(|port| Echo::start(&rig.fabric.router, port))
        .collect::<Result<_>>()?;
    let reach = |ns: &Netns, port| Tcp::connect_within(ns, SocketAddrV4::new(WIRESERVER, port), SILENCE);
    ensure!(
        reach(pod, 80).is_err() && reach(pod, 32_526).is_err(),
        "a pod reached the wireserver's credentials"
    );
    ensure!(servers[0].seen().is_empty() && servers[1].seen().is_empty());
    reach(pod, 53)?.chat(5)?;
    Udp::connect(pod, SocketAddrV4::new(WIRESERVER, 53))?.chat(5)?;
    // The node's own agents must reach it.
    reach(&rig.node.ns, 80)?.chat(5)?;
    reach(&rig.node.ns, 32_526)?.chat(5)
}

#[test]
fn the_wireservers_credentials_are_out_of_reach_without_any_rule() -> Result<()> {
    let rig = Rig::causeway()?;
    let pod = rig.pod("a")?;
    wireserver_is_guarded(&rig, &pod.ns)?;
    ensure!(rig.node.count("wireserver")? >= 2);
    Ok(())
}

#[test]
fn the_wireservers_credentials_are_out_of_reach_beside_the_usual_rules() -> Result<()> {
    let rig = Rig::causeway()?;
    let pod = rig.pod("a")?;
    rules::forbid_wireserver(&rig.node.ns)?;
    wireserver_is_guarded(&rig, &pod.ns)
}
