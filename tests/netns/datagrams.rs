//! UDP of every size that fits a packet, and of sizes that do not.

use std::{net::SocketAddrV4, time::Duration};

use anyhow::{Result, ensure};
use causeway_tests::{
    capture::Capture,
    echo::Echo,
    fabric::{INTERNET, NODE, VNET},
    rig::Rig,
    rules,
    talk::Udp,
};

/// The largest UDP payload of an unfragmented packet on Ethernet.
const LARGEST: usize = 1500 - 20 - 8;

#[test]
fn of_every_size_between_pods() -> Result<()> {
    let rig = Rig::causeway()?;
    let (a, b) = (rig.pod("a")?, rig.pod("b")?);
    let _echo = Echo::start(&b.ns, 7)?;
    let socket = Udp::connect(&a.ns, SocketAddrV4::new(b.addr, 7))?;
    (1..=LARGEST).try_for_each(|len| socket.ask(len))?;
    ensure!(rules::forwarded(&rig.node.ns)? < 50);
    Ok(())
}

#[test]
fn of_every_size_to_the_internet() -> Result<()> {
    let rig = Rig::causeway()?;
    let pod = rig.pod("a")?;
    let echo = Echo::start(&rig.fabric.internet, 7)?;
    let wire = Capture::start(&rig.fabric.router, "node")?;
    let socket = Udp::connect(&pod.ns, SocketAddrV4::new(INTERNET, 7))?;
    (1..=LARGEST).try_for_each(|len| socket.ask(len))?;
    ensure!(echo.seen().iter().all(|peer| *peer.ip() == NODE));
    ensure!(rules::forwarded(&rig.node.ns)? < 50);
    let frames = wire.stop();
    ensure!(
        frames.len() >= 2 * LARGEST,
        "the capture has only {} frames",
        frames.len()
    );
    let bad = frames
        .iter()
        .filter(|frame| frame.ip.as_ref().is_some_and(|ip| !ip.checksums_good))
        .count();
    ensure!(bad == 0, "{bad} packets with wrong checksums");
    Ok(())
}

#[test]
fn larger_ones_between_pods_and_to_the_vnet_take_the_stack() -> Result<()> {
    let rig = Rig::causeway()?;
    let (a, b) = (rig.pod("a")?, rig.pod("b")?);
    for (server, addr) in [(&b.ns, b.addr), (&rig.fabric.vnet, VNET)] {
        let _echo = Echo::start(server, 7)?;
        let socket = Udp::connect(&a.ns, SocketAddrV4::new(addr, 7))?;
        // Fragments from the first packet on, and in the middle of a carried flow.
        for len in [
            LARGEST + 1,
            3000,
            100,
            100,
            100,
            LARGEST + 1,
            1480,
            2953,
            9000,
            60_000,
            100,
        ] {
            socket.ask(len)?;
        }
    }
    Ok(())
}

#[test]
fn larger_ones_to_the_internet_are_dropped_by_name_and_never_leak() -> Result<()> {
    let rig = Rig::causeway()?;
    let pod = rig.pod("a")?;
    let echo = Echo::start(&rig.fabric.internet, 7)?;
    let wire = Capture::start(&rig.fabric.router, "node")?;
    let before = rig.node.count("snat_fragment")?;
    let socket = Udp::connect(&pod.ns, SocketAddrV4::new(INTERNET, 7))?;
    let brief = Duration::from_millis(150);
    ensure!(socket.is_unanswered(3000, brief)?, "3000 bytes were answered");
    socket.chat(3)?;
    for len in [LARGEST + 1, 9000] {
        ensure!(socket.is_unanswered(len, brief)?, "{len} bytes were answered");
    }
    socket.chat(3)?;
    let fragments = wire
        .stop()
        .iter()
        .filter(|frame| frame.ip.as_ref().is_some_and(|ip| ip.fragment))
        .count();
    ensure!(fragments == 0, "{fragments} fragments left the node");
    // 3000 bytes make three fragments, 1473 two, 9000 seven.
    let dropped = rig.node.count("snat_fragment")? - before;
    ensure!(dropped == 12, "snat_fragment counted {dropped} of 12");
    ensure!(echo.seen().len() == 6);
    Ok(())
}
