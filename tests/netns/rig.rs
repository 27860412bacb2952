//! The rig itself, on the kernel's own datapaths: its servers, captures and oracle must see what is there, or no other test
//! here means anything.

use std::{net::SocketAddrV4, time::Duration};

use anyhow::{Result, ensure};
use causeway_tests::{
    capture::Capture,
    echo::Echo,
    fabric::{INTERNET, NODE, PARTNER, PEERED, VNET},
    node::Datapath,
    rate::{self, Lane},
    raw,
    rig::Rig,
    stream,
    talk::{SILENCE, Tcp, Udp},
    walk::Walk,
};

#[test]
fn without_translation_nothing_is_answered_and_the_oracle_sees_the_leak() -> Result<()> {
    let mut rig = Rig::with(Datapath::Routed, 2)?;
    let pod = rig.pod("a")?;
    let echo = Echo::start(&rig.fabric.internet, 7)?;
    let socket = Udp::connect(&pod.ns, SocketAddrV4::new(INTERNET, 7))?;
    assert!(socket.is_unanswered(10, SILENCE)?);
    assert_eq!(*echo.seen()[0].ip(), pod.addr);
    let leaks = rig.end_watch();
    ensure!(
        leaks.iter().any(|leak| leak
            .ip
            .as_ref()
            .is_some_and(|ip| ip.src == pod.addr && ip.dst == INTERNET)),
        "{leaks:?}"
    );
    Ok(())
}

fn conversations_work(datapath: Datapath) -> Result<()> {
    let rig = Rig::with(datapath, 2)?;
    let (a, b) = (rig.pod("a")?, rig.pod("b")?);
    for (server, ns, expected) in [
        (b.addr, &b.ns, a.addr),
        (VNET, &rig.fabric.vnet, a.addr),
        (PEERED, &rig.fabric.vnet, a.addr),
        (INTERNET, &rig.fabric.internet, NODE),
    ] {
        let walk = Walk::direct(&a.ns, ns, SocketAddrV4::new(server, 7));
        let wire = Capture::start(ns, "eth0")?;
        for talk in [walk.tcp(&rig)?, walk.udp(&rig)?, walk.ping(&rig)?] {
            talk.expect_kernel(expected)?;
        }
        if server == INTERNET {
            let frames = wire.stop();
            let arrived = frames
                .iter()
                .filter(|frame| !frame.outgoing)
                .filter_map(|frame| frame.ip.as_ref());
            let bad: Vec<_> = arrived.filter(|ip| !ip.checksums_good).collect();
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

#[test]
fn the_generator_sends_and_the_two_stock_datapaths_differ_as_the_reference_says() -> Result<()> {
    let (routed, bridged) = (
        Rig::unwatched(Datapath::RoutedMasquerade, 1)?,
        Rig::unwatched(Datapath::BridgeMasquerade, 1)?,
    );
    let (a, b) = (routed.pod("a")?, bridged.pod("b")?);
    let result = rate::compare(
        &Lane::new(&routed, &a)?,
        &Lane::new(&bridged, &b)?,
        Duration::from_secs(1),
    )?;
    println!(
        "routed {:.0} bridged {:.0} ratio {:.2} {:?}",
        result.first,
        result.second,
        result.ratio(),
        result.ratios
    );
    assert!(result.second > 50_000.0);
    Ok(())
}

/// Where nobody checks, a lie arrives: the receivers of `spoof.rs` would see one.
#[test]
fn where_nobody_checks_a_lie_arrives() -> Result<()> {
    let rig = Rig::with(Datapath::RoutedMasquerade, 2)?;
    let (liar, neighbour) = (rig.pod("liar")?, rig.pod("neighbour")?);
    let wire = Capture::start(&rig.fabric.vnet, "eth0")?;
    let macs = [
        liar.ns.mac("eth0")?,
        rig.node.ns.mac(&rig.node.host_interface(&liar)?)?,
    ];
    let lie = raw::datagram(
        macs,
        [neighbour.addr.octets(), VNET.octets()],
        [5, 4444],
        64,
        b"I am my neighbour",
    )?;
    raw::send(&liar.ns, "eth0", &lie)?;
    std::thread::sleep(Duration::from_millis(50));
    let seen = wire.stop();
    ensure!(seen.iter().any(|f| {
        f.ip.as_ref()
            .is_some_and(|ip| ip.src == neighbour.addr && ip.dst_port == 4444)
    }));
    Ok(())
}
