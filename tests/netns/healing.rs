//! What is lost comes back: a half of a translated flow that disappears under its traffic, and the uplink's address.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use causeway_common::tuple::{TCP, UDP};
use causeway_tests::{
    capture::Capture,
    echo::Echo,
    fabric::{GATEWAY, INTERNET, NODE, PARTNER, SUBNET_BITS},
    leak::LeakWatch,
    node::Pod,
    rig::Rig,
    rules,
    talk::{SILENCE, Tcp, Udp},
};

use crate::table::{Pair, Table};

const SERVER: SocketAddrV4 = SocketAddrV4::new(INTERNET, 7);
const VIP: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 50), 80);

/// The flow has both halves again, under the port that it had.
fn is_whole(table: &Table, pod: &Pod, before: &Pair) -> Result<()> {
    let port = u16::from_be_bytes(before.forward.src_port);
    let after = table.pair(pod, before.forward.protocol, port)?;
    ensure!(
        after.outside() == before.outside(),
        "{} became {}",
        before.outside(),
        after.outside()
    );
    Ok(())
}

/// TCP and UDP to `dial`, which is the internet's server, directly or through a Service.
fn a_lost_forward_half_comes_back(dial: SocketAddrV4) -> Result<()> {
    let rig = Rig::causeway()?;
    let pod = rig.pod("a")?;
    rules::cluster_ip(&rig.node.ns, VIP, SERVER)?;
    let echo = Echo::start(&rig.fabric.internet, SERVER.port())?;
    let mut table = Table::of(&rig)?;
    let (mut tcp, udp) = (Tcp::connect(&pod.ns, dial)?, Udp::connect(&pod.ns, dial)?);
    tcp.chat(5)?;
    udp.chat(5)?;
    let pairs = [
        table.pair(&pod, TCP, tcp.local()?.port())?,
        table.pair(&pod, UDP, udp.local()?.port())?,
    ];
    for round in 0..5 {
        for pair in &pairs {
            table.remove(&pair.forward)?;
        }
        tcp.chat(3).with_context(|| format!("TCP, round {round}"))?;
        udp.chat(3).with_context(|| format!("UDP, round {round}"))?;
        for pair in &pairs {
            is_whole(&table, &pod, pair)?;
        }
    }
    let mut seen = echo.seen();
    seen.sort_unstable();
    seen.dedup();
    let mut expected = pairs.map(|pair| pair.outside());
    expected.sort_unstable();
    ensure!(seen == expected, "the server saw {seen:?}, not {expected:?}");
    Ok(())
}

#[test]
fn a_lost_forward_half_of_a_carried_flow_comes_back_with_its_port() -> Result<()> {
    a_lost_forward_half_comes_back(SERVER)
}

#[test]
fn a_lost_forward_half_of_a_flow_of_the_kernel_comes_back_with_its_port() -> Result<()> {
    a_lost_forward_half_comes_back(VIP)
}

/// Not between two questions, but whenever it happens: in the middle of a stream.
#[test]
fn forward_halves_are_lost_while_the_traffic_goes_on() -> Result<()> {
    let rig = Rig::causeway()?;
    let pod = rig.pod("a")?;
    let echo = Echo::start(&rig.fabric.internet, SERVER.port())?;
    let mut table = Table::of(&rig)?;
    let mut tcp = Tcp::connect(&pod.ns, SERVER)?;
    tcp.chat(5)?;
    let pair = table.pair(&pod, TCP, tcp.local()?.port())?;
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let talk = scope.spawn(|| -> Result<u32> {
            let mut turns = 0;
            while !over.load(Ordering::Relaxed) {
                tcp.chat(10)?;
                turns += 10;
            }
            Ok(turns)
        });
        let mut losses = 0;
        for _ in 0..100 {
            // It may be away already: lost, and not asked for since.
            losses += u32::from(table.remove(&pair.forward).is_ok());
            thread::sleep(Duration::from_millis(3));
        }
        over.store(true, Ordering::Relaxed);
        let turns = talk.join().expect("no panic")?;
        ensure!(
            losses > 50 && turns > 200,
            "{losses} losses in {turns} turns show nothing"
        );
        Ok(())
    })?;
    ensure!(echo.seen() == [pair.outside()]);
    is_whole(&table, &pod, &pair)
}

/// The uplink is given another address. Without a daemon the next ADD notices: flows of the old address end, and the rest
/// goes on with the new one.
#[test]
fn another_address_of_the_uplink_is_followed() -> Result<()> {
    const NEW: Ipv4Addr = Ipv4Addr::new(10, 240, 200, 4);
    let mut rig = Rig::causeway()?;
    let pod = rig.pod("a")?;
    let echo = Echo::start(&rig.fabric.internet, SERVER.port())?;
    let (mut tcp, udp) = (Tcp::connect(&pod.ns, SERVER)?, Udp::connect(&pod.ns, SERVER)?);
    tcp.chat(5)?;
    udp.chat(5)?;
    ensure!(echo.seen().iter().all(|peer| *peer.ip() == NODE));

    ensure!(rig.end_watch().is_empty(), "leaked before the change");
    rig.fabric
        .internet
        .ip(&format!("route add {NEW} via 203.0.113.1"))?;
    rig.node.ns.ip(&format!(
        "addr add {NEW}/{SUBNET_BITS} dev eth0\naddr del {NODE}/{SUBNET_BITS} dev eth0\n\
         addr replace {NEW}/{SUBNET_BITS} dev eth0\nroute replace default via {GATEWAY}"
    ))?;
    let other = rig.pod("b")?;
    Tcp::connect(&other.ns, SERVER)?.chat(5)?;
    // A flow is looked at once a second.
    thread::sleep(Duration::from_millis(1100));
    echo.seen();
    let mut turns = 0;
    while udp.is_unanswered(32, Duration::from_millis(100))? {
        turns += 1;
        ensure!(turns < 10, "the datagrams of an older socket find no way");
    }
    ensure!(
        tcp.chat(1).is_err(),
        "a connection of an address that is gone was answered"
    );
    let router = &rig.fabric.router;
    let watch = LeakWatch::start(router, "node", NEW, rig.node.mac()?, PARTNER)?;
    let wire = Capture::start(router, "node")?;
    echo.seen();
    udp.chat(20)?;
    Tcp::connect(&pod.ns, SERVER)?.chat(5)?;
    tcp.chat(1).ok();
    thread::sleep(SILENCE);
    let mut late = wire.stop();
    late.retain(|frame| !frame.outgoing && frame.ip.as_ref().is_some_and(|ip| ip.src == NODE));
    ensure!(late.is_empty(), "sent with the old address: {late:#?}");
    ensure!(echo.seen().iter().all(|peer| *peer.ip() == NEW));
    let leaks = watch.leaks();
    ensure!(leaks.is_empty(), "leaked: {leaks:#?}");
    Ok(())
}
