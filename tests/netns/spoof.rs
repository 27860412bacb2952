//! A pod that lies about who it is gets nowhere, and the lie is counted.

use std::{net::Ipv4Addr, thread::sleep, time::Duration};

use anyhow::{Result, ensure};
use causeway_tests::{
    capture::Capture,
    fabric::{INTERNET, VNET},
    node::Pod,
    raw,
    rig::Rig,
};

const PORT: u16 = 4444;
const TIMES: u64 = 10;

/// Sends the frame made by `lie` towards each kind of receiver; none may see it, and `reason` must count each.
fn is_dropped(reason: &str, lie: impl Fn(&Pod, &Pod, Ipv4Addr) -> Result<Vec<u8>>) -> Result<()> {
    let rig = Rig::causeway()?;
    let (liar, neighbour) = (rig.pod("liar")?, rig.pod("neighbour")?);
    let ends = [
        (&neighbour.ns, "eth0", neighbour.addr),
        (&rig.fabric.vnet, "eth0", VNET),
        (&rig.fabric.internet, "eth0", INTERNET),
    ];
    let wires = ends.map(|(ns, interface, _)| Capture::start(ns, interface));
    let wire = Capture::start(&rig.fabric.router, "node")?;
    let before = rig.node.count(reason)?;
    for (_, _, to) in ends {
        let frame = lie(&liar, &neighbour, to)?;
        for _ in 0..TIMES {
            raw::send(&liar.ns, "eth0", &frame)?;
        }
    }
    sleep(Duration::from_millis(100));
    for seen in wires
        .into_iter()
        .map(|wire| wire.map(Capture::stop))
        .chain([Ok(wire.stop())])
    {
        let seen = seen?;
        let lies: Vec<_> = seen
            .iter()
            .filter(|f| f.ip.as_ref().is_some_and(|ip| ip.dst_port == PORT))
            .collect();
        ensure!(lies.is_empty(), "a lie arrived: {lies:#?}");
    }
    let counted = rig.node.count(reason)? - before;
    ensure!(
        counted == 3 * TIMES,
        "{reason} counted {counted} of {}",
        3 * TIMES
    );
    Ok(())
}

#[test]
fn the_neighbours_address() -> Result<()> {
    is_dropped("source_address", |liar, neighbour, to| {
        raw::datagram(
            liar.macs()?,
            [neighbour.addr.octets(), to.octets()],
            [5, PORT],
            64,
            b"I am my neighbour",
        )
    })
}

#[test]
fn an_address_of_nobody() -> Result<()> {
    is_dropped("source_address", |liar, _, to| {
        raw::datagram(
            liar.macs()?,
            [[192, 0, 2, 1], to.octets()],
            [5, PORT],
            64,
            b"I am nobody",
        )
    })
}

#[test]
fn the_nodes_address() -> Result<()> {
    is_dropped("source_address", |liar, _, to| {
        raw::datagram(
            liar.macs()?,
            [[10, 240, 0, 4], to.octets()],
            [5, PORT],
            64,
            b"I am the node",
        )
    })
}

#[test]
fn another_mac() -> Result<()> {
    is_dropped("source_mac", |liar, _, to| {
        let [_, gateway] = liar.macs()?;
        let mac = [2, 0, 0, 0, 0, 9];
        raw::datagram(
            [mac, gateway],
            [liar.addr.octets(), to.octets()],
            [5, PORT],
            64,
            b"from another card",
        )
    })
}

/// The neighbour's address at the liar's MAC: believed by the node, it would divert the neighbour's packets.
#[test]
fn an_arp_claim_on_the_neighbours_address() -> Result<()> {
    let rig = Rig::causeway()?;
    let (liar, neighbour) = (rig.pod("liar")?, rig.pod("neighbour")?);
    let before = rig.node.count("arp_spoofed")?;
    let neighbours = || rig.node.ns.output("ip", &["neigh", "show"]);
    let known = neighbours()?;
    let mac = liar.ns.mac("eth0")?;
    let claim = raw::arp_claim(mac, mac, neighbour.addr.octets(), [10, 240, 0, 4])?;
    for _ in 0..TIMES {
        raw::send(&liar.ns, "eth0", &claim)?;
    }
    // And the own address at another MAC.
    let claim = raw::arp_claim(mac, [2, 0, 0, 0, 0, 9], liar.addr.octets(), [10, 240, 0, 4])?;
    for _ in 0..TIMES {
        raw::send(&liar.ns, "eth0", &claim)?;
    }
    sleep(Duration::from_millis(50));
    ensure!(
        rig.node.count("arp_spoofed")? - before == 2 * TIMES,
        "not every claim was counted"
    );
    ensure!(
        neighbours()? == known,
        "the node believed a claim: {}",
        neighbours()?
    );
    Ok(())
}
