//! The rig itself, on the kernel's own datapaths: its servers, captures and oracle must see what is there, or no other test
//! here means anything.

use std::net::SocketAddrV4;

use anyhow::{Result, ensure};
use causeway_tests::{
    capture::Capture,
    echo::Echo,
    fabric::{INTERNET, NODE, PARTNER, VNET},
    node::Datapath,
    ping::Pinger,
    rig::Rig,
    stream,
    talk::{SILENCE, Tcp, Udp},
};

#[test]
fn without_translation_nothing_is_answered_and_the_oracle_sees_the_leak() -> Result<()> {
    let mut rig = Rig::with(Datapath::Routed, 2)?;
    let pod = rig.pod("a")?;
    let echo = Echo::start(&rig.fabric.internet, 7)?;
    let socket = Udp::connect(&pod.ns, SocketAddrV4::new(INTERNET, 7))?;
    assert!(socket.is_unanswered(10, SILENCE)?);
    assert_eq!(*echo.seen()[0].ip(), pod.addr);
    rig.expect_leaks()
}

fn conversations_work(datapath: Datapath) -> Result<()> {
    let rig = Rig::with(datapath, 2)?;
    let (a, b) = (rig.pod("a")?, rig.pod("b")?);
    for (server, ns, expected) in [
        (SocketAddrV4::new(b.addr, 7), &b.ns, a.addr),
        (SocketAddrV4::new(VNET, 7), &rig.fabric.vnet, a.addr),
        (SocketAddrV4::new(INTERNET, 7), &rig.fabric.internet, NODE),
    ] {
        let echo = Echo::start(ns, 7)?;
        let wire = Capture::start(ns, "eth0")?;
        Tcp::connect(&a.ns, server)?.chat(5)?;
        Udp::connect(&a.ns, server)?.chat(5)?;
        Pinger::new(&a.ns, 77)?.chat(*server.ip(), 3)?;
        let seen = echo.seen();
        ensure!(
            seen.len() == 6 && seen.iter().all(|peer| *peer.ip() == expected),
            "{server} saw {seen:?}"
        );
        let frames = wire.stop();
        let requests: Vec<_> = frames
            .iter()
            .filter_map(|f| f.ip.as_ref())
            .filter(|ip| ip.icmp == Some((8, 0)))
            .collect();
        ensure!(
            requests.len() == 3 && requests.iter().all(|ip| ip.src == expected),
            "{requests:?}"
        );
        if *server.ip() == INTERNET {
            let bad: Vec<_> = frames
                .iter()
                .filter(|f| !f.outgoing && f.ip.as_ref().is_some_and(|ip| !ip.checksums_good))
                .collect();
            ensure!(bad.is_empty(), "{bad:?}");
        }
    }
    let echo = Echo::start(&a.ns, 8)?;
    Tcp::connect(&rig.fabric.partner, SocketAddrV4::new(a.addr, 8))?.chat(5)?;
    assert_eq!(*echo.seen()[0].ip(), PARTNER);
    let (took, _) = stream::exchange(
        &a.ns,
        &rig.fabric.internet,
        SocketAddrV4::new(INTERNET, 99),
        64 << 20,
    )?;
    println!("{datapath:?}: 64 MiB both ways in {took:?}");
    Ok(())
}

#[test]
fn routing_with_masquerade_serves_every_walk() -> Result<()> {
    conversations_work(Datapath::RoutedMasquerade)
}

#[test]
fn the_bridge_twin_serves_every_walk() -> Result<()> {
    conversations_work(Datapath::BridgeMasquerade)
}
