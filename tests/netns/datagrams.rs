//! UDP of every size that fits a packet, and of sizes that do not.

use std::net::SocketAddrV4;

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
fn larger_ones_to_the_internet_are_translated_both_ways() -> Result<()> {
    let rig = Rig::causeway()?;
    let pod = rig.pod("a")?;
    let echo = Echo::start(&rig.fabric.internet, 7)?;
    let wire = Capture::start(&rig.fabric.router, "node")?;
    let socket = Udp::connect(&pod.ns, SocketAddrV4::new(INTERNET, 7))?;
    // A flow that begins with fragments; then, on another tuple, fragments in the middle of a carried flow.
    socket.ask(3000)?;
    let carried = Udp::connect(&pod.ns, SocketAddrV4::new(INTERNET, 7))?;
    carried.chat(3)?;
    // The last fragment has 1 byte of payload and up; the largest datagram there is.
    for len in (LARGEST + 1..LARGEST + 12).chain([2953, 2960, 2961, 9000, 60_000, 65_507]) {
        socket.ask(len)?;
        carried.ask(len)?;
    }
    carried.chat(3)?;
    ensure!(echo.seen().iter().all(|peer| *peer.ip() == NODE));
    let fragments = wire
        .stop()
        .iter()
        .filter(|frame| frame.ip.as_ref().is_some_and(|ip| ip.fragment))
        .count();
    ensure!(fragments > 100, "only {fragments} fragments crossed the wire");
    ensure!(rig.node.count("snat_fragment")? == 0);
    Ok(())
}

#[test]
fn larger_pings_to_the_internet_are_translated_both_ways() -> Result<()> {
    let rig = Rig::causeway()?;
    let pod = rig.pod("a")?;
    for size in ["1472", "1473", "4000", "65000"] {
        let report = pod.ns.output(
            "ping",
            &[
                "-c",
                "2",
                "-i",
                "0.2",
                "-W",
                "2",
                "-s",
                size,
                &INTERNET.to_string(),
            ],
        )?;
        ensure!(report.contains("2 received"), "{report}");
    }
    Ok(())
}
