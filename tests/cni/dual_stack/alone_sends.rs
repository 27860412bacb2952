//! What pods without an address of IPv4 send: carried as others', looked at as others', and of IPv4 nothing.

use std::{net::Ipv6Addr, thread::sleep, time::Duration};

use anyhow::{Context as _, Result, ensure};
use causeway_tests::{
    capture::Capture,
    dual_stack::{Connection, Datagrams, INTERNET, enable_internet, leaked, masquerade},
    fabric,
    netns::Netns,
    raw,
};
use serde_json::json;

use super::{
    NODE, VNET,
    alone::{alone, nothing_at_all_is_left},
    at, of_ipv6,
};
use crate::{
    call::World,
    pods::{add, del},
};

const PORT: u16 = 7000;
/// `IPPROTO_UDP`.
const UDP: u8 = 17;

/// How many packets each of these counters got by what is done.
fn counted<const N: usize>(
    world: &World,
    reasons: [&str; N],
    done: impl FnOnce() -> Result<()>,
) -> Result<[u64; N]> {
    let mut counts = [0; N];
    for (value, reason) in counts.iter_mut().zip(reasons) {
        *value = world.node.count(reason)?;
    }
    done()?;
    for (value, reason) in counts.iter_mut().zip(reasons) {
        *value = world.node.count(reason)? - *value;
    }
    Ok(counts)
}

fn pod(world: &World, n: u32) -> Result<(Netns, Ipv6Addr)> {
    let ns = Netns::new()?;
    let address = of_ipv6(&add(world, n, &ns)?.ok()?)?;
    Ok((ns, address))
}

fn ping(from: &Netns, to: Ipv6Addr) -> Result<()> {
    from.output("ping", &["-6", "-c20", "-i0.05", "-w10", &to.to_string()])
        .map(drop)
}

#[test]
fn packets_are_carried_between_pods_and_to_the_vnet() -> Result<()> {
    let world = alone(&[at(5), at(6)])?;
    let ((a, own), (b, other)) = (pod(&world, 1)?, pod(&world, 2)?);
    let vnet = &world.fabric.vnet;
    let [carried, strangers] = counted(&world, ["carried_to_pod", "unknown_interface"], || {
        Connection::open(&a, &b, other, PORT)?.chat(50)?;
        Datagrams::between(&a, &b, other, PORT)?.chat(100, 50)?;
        ping(&a, other)
    })?;
    ensure!(
        carried >= 231 && strangers == 0,
        "{carried} packets were carried, {strangers} dropped"
    );
    for (from, to, address) in [(&a, vnet, VNET), (vnet, &a, own)] {
        let reasons = ["carried_to_pod", "carried_to_uplink"];
        let [inbound, outbound] = counted(&world, reasons, || {
            let mut connection = Connection::open(from, to, address, PORT)?;
            ensure!(connection.server.peer_addr()? == connection.client.local_addr()?);
            connection.chat(50)?;
            Datagrams::between(from, to, address, PORT)?.chat(100, 50)?;
            ping(from, address)
        })?;
        ensure!(
            inbound >= 110 && outbound >= 110,
            "to {address}: {inbound} packets were carried to the pod, {outbound} to the uplink"
        );
    }
    Connection::open(&a, &b, other, PORT)?.stream(8 << 20)?;
    Connection::open(&a, &world.node.ns, NODE, PORT)?.chat(5)?;
    Connection::open(&world.node.ns, &a, own, PORT)?.chat(5)
}

#[test]
fn a_pod_talks_to_the_internet_with_the_nodes_address() -> Result<()> {
    let world = alone(&[at(5)])?;
    enable_internet(&world.fabric)?;
    masquerade(&world.node)?;
    let (ns, _) = pod(&world, 1)?;
    let internet = &world.fabric.internet;
    let reasons = ["carried_to_pod", "carried_to_uplink"];
    let [inbound, outbound] = counted(&world, reasons, || {
        let mut connection = Connection::open(&ns, internet, INTERNET, PORT)?;
        let seen = connection.server.peer_addr()?;
        ensure!(seen.ip() == NODE, "the server sees {seen}");
        connection.chat(50)?;
        Datagrams::between(&ns, internet, INTERNET, PORT)?.chat(100, 50)?;
        ping(&ns, INTERNET)
    })?;
    ensure!(
        inbound >= 115 && outbound >= 110,
        "{inbound} packets were carried to the pod, {outbound} to the uplink"
    );
    ensure!(leaked(&world.fabric)? == 0, "the pod's address has left");
    del(&world, 1)?.ok()?;
    let flows = world.node.causeway_json("flows")?;
    ensure!(
        !flows.to_string().contains("fd00:10::5"),
        "flows of the pod are left: {flows}"
    );
    nothing_at_all_is_left(&world)
}

fn mac_of(text: &str) -> Option<[u8; 6]> {
    let bytes = text.split(':').map(|byte| u8::from_str_radix(byte, 16).ok());
    bytes.collect::<Option<Vec<u8>>>()?.try_into().ok()
}

/// Where the programs are filters: they are, and they go.
#[test]
fn on_a_kernel_without_tcx() -> Result<()> {
    let world = alone(&[at(5), at(6)])?;
    let pods = [Netns::new()?, Netns::new()?];
    for (n, ns) in (0..).zip(&pods) {
        add(&world, n, ns)?.env("CAUSEWAY_ATTACH", "clsact").ok()?;
    }
    let status = world.node.causeway_json("status")?;
    ensure!(status["attached"] == "clsact", "{status}");
    let [carried] = counted(&world, ["carried_to_pod"], || {
        Connection::open(&pods[0], &pods[1], at(6), PORT)?.chat(50)
    })?;
    ensure!(carried >= 100, "{carried} packets were carried");
    let frame = raw::datagram(
        macs(&pods[0])?,
        [[10, 240, 0, 5], fabric::VNET.octets()],
        [5, PORT],
        64,
        b"of IPv4",
    )?;
    let [dropped] = counted(&world, ["unknown_interface"], || {
        raw::send(&pods[0], "eth0", &frame)?;
        sleep(Duration::from_millis(100));
        Ok(())
    })?;
    ensure!(dropped == 1, "{dropped}");
    for n in [0, 1] {
        del(&world, n)?.env("CAUSEWAY_ATTACH", "clsact").ok()?;
    }
    nothing_at_all_is_left(&world)
}

/// The pod's MAC, and its gateway's.
fn macs(ns: &Netns) -> Result<[[u8; 6]; 2]> {
    let neighbours = ns.json("ip", &["-j", "-6", "neigh", "show", "dev", "eth0"])?;
    let gateway = neighbours[0]["lladdr"].as_str().and_then(mac_of);
    Ok([ns.mac("eth0")?, gateway.context("the pod knows no gateway")?])
}

/// Whatever address of IPv4 it says it has: its own it has none.
#[test]
fn nothing_of_ipv4_leaves_a_pod() -> Result<()> {
    const TIMES: u64 = 5;
    let world = alone(&[at(5), at(6)])?;
    let ((liar, _), (neighbour, _)) = (pod(&world, 1)?, pod(&world, 2)?);
    // One with an address of each family, beside them.
    let victim = Netns::new()?;
    let ipam = json!({ "type": "azure-vnet-ipam", "environment": "static", "subnet": "10.240.0.0/16,fd00:10::/64",
        "addresses": ["10.240.0.9", "fd00:10::9"] });
    add(&world, 3, &victim)?.with("ipam", ipam).ok()?;
    victim.output("ping", &["-c1", "-i0.2", "-w5", "10.240.1.10"])?;
    let wires = [
        (&world.fabric.router, "node"),
        (&world.node.ns, "eth0"),
        (&victim, "eth0"),
        (&neighbour, "eth0"),
    ];
    let wires = wires.map(|(ns, interface)| Capture::start(ns, interface));
    let macs = macs(&liar)?;
    let (mac, everybody) = (macs[0], [macs[0], [0xff; 6]]);
    let sources = [
        [10, 240, 0, 9],
        [10, 240, 0, 4],
        [10, 240, 0, 5],
        [192, 0, 2, 1],
        [169, 254, 1, 7],
        [0, 0, 0, 0],
    ];
    let targets = [
        fabric::VNET,
        fabric::INTERNET,
        fabric::NODE,
        "10.240.0.9".parse()?,
    ];
    let mut frames = Vec::new();
    for source in sources {
        for target in targets {
            frames.push(raw::datagram(
                macs,
                [source, target.octets()],
                [5, PORT],
                64,
                b"of IPv4",
            )?);
        }
        frames.push(raw::datagram(
            everybody,
            [source, [255; 4]],
            [68, 67],
            64,
            b"of IPv4",
        )?);
        frames.push(raw::arp_claim(mac, mac, source, [10, 240, 0, 4])?);
    }
    frames.push(raw::packet(
        macs,
        [sources[3], targets[0].octets()],
        132,
        &[0; 12],
    )?);
    let whole = raw::datagram(macs, [sources[3], targets[0].octets()], [5, PORT], 64, &[0; 2000])?;
    frames.extend(raw::fragments(&whole, 1500, 77)?);
    frames.push(raw::with_options(&frames[0], &[1; 4])?);
    let forwarded = world.node.ns.snmp("Ip", "ForwDatagrams")?;
    let received = world.node.ns.snmp("Ip", "InReceives")?;
    let [dropped] = counted(&world, ["unknown_interface"], || {
        for frame in &frames {
            for _ in 0..TIMES {
                raw::send(&liar, "eth0", frame)?;
            }
        }
        sleep(Duration::from_millis(200));
        Ok(())
    })?;
    let sent = frames.len() as u64 * TIMES;
    ensure!(
        dropped == sent,
        "{dropped} of {sent} frames were dropped as a stranger's"
    );
    ensure!(
        world.node.ns.snmp("Ip", "ForwDatagrams")? == forwarded
            && world.node.ns.snmp("Ip", "InReceives")? == received,
        "the node's stack has seen some"
    );
    for wire in wires {
        let seen = wire?.stop();
        let lies: Vec<_> = seen
            .iter()
            .filter(|frame| {
                frame.src_mac == mac
                    || frame
                        .ip
                        .as_ref()
                        .is_some_and(|ip| [PORT, 67].contains(&ip.dst_port))
            })
            .filter(|frame| frame.ipv6.is_none())
            .collect();
        ensure!(lies.is_empty(), "a frame of IPv4 has left: {lies:#?}");
    }
    // What has an address of IPv4 is heard as before.
    victim
        .output("ping", &["-c1", "-i0.2", "-w5", "10.240.1.10"])
        .map(drop)
}

#[test]
fn another_address_of_ipv6_is_dropped() -> Result<()> {
    const TIMES: u64 = 5;
    let world = alone(&[at(5), at(6)])?;
    let ((liar, own), (neighbour, other)) = (pod(&world, 1)?, pod(&world, 2)?);
    let wires = [(&world.fabric.router, "node"), (&neighbour, "eth0")];
    let wires = wires.map(|(ns, interface)| Capture::start(ns, interface));
    let macs = macs(&liar)?;
    // From port 5 to port 7000, eight bytes long, with a checksum that nobody looks at.
    let datagram = [[0, 5].as_slice(), &PORT.to_be_bytes(), &[0, 8], &[1, 1]].concat();
    let frame = |macs, source: Ipv6Addr, target: Ipv6Addr| {
        raw::ipv6(macs, [source.octets(), target.octets()], 64, UDP, &datagram)
    };
    let send = |frames: &[Vec<u8>]| {
        for frame in frames {
            for _ in 0..TIMES {
                raw::send(&liar, "eth0", frame)?;
            }
        }
        sleep(Duration::from_millis(200));
        Ok(())
    };
    let sources = [other, at(0x999), NODE, INTERNET];
    let lies: Vec<Vec<u8>> = sources
        .iter()
        .flat_map(|source| [frame(macs, *source, VNET), frame(macs, *source, other)])
        .collect::<Result<_>>()?;
    let of_mac = [frame([[2, 0, 0, 0, 0, 99], macs[1]], own, VNET)?];
    let [address] = counted(&world, ["source_address"], || send(&lies))?;
    let [mac] = counted(&world, ["source_mac"], || send(&of_mac))?;
    ensure!(
        (address, mac) == (lies.len() as u64 * TIMES, TIMES),
        "{address} were dropped for their address, {mac} for their MAC"
    );
    for wire in wires {
        let seen = wire?.stop();
        let arrived = seen.iter().filter_map(|frame| frame.ipv6.as_ref());
        let arrived: Vec<_> = arrived.filter(|packet| packet.dst_port == PORT).collect();
        ensure!(arrived.is_empty(), "a lie arrived: {arrived:#?}");
    }
    Ok(())
}
