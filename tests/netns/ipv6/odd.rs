//! Packets that need more than a rewrite: hop limits, sizes, parts, extension headers.

use std::{net::UdpSocket, time::Duration};

use anyhow::{Context, Result, ensure};
use causeway_tests::{
    dual_stack::{Connection, Datagrams, VNET},
    raw,
    rig::Rig,
};
use etherparse::{Ipv6Header, UdpHeader};

const PORT: u16 = 7000;

/// The kernel answers for the node when a packet has made its last hop, in a flow that is carried as in any other.
#[test]
fn the_last_hop_is_answered_by_the_kernel() -> Result<()> {
    let rig = Rig::dual_stack()?;
    let (a, b) = (rig.pod("a")?, rig.pod("b")?);
    let to = b.addr_v6()?.to_string();
    let before = rig.node.count("ttl_expiring")?;
    let said =
        a.ns.command("ping")
            .args(["-6", "-c3", "-i0.1", "-w3", "-t1", &to])
            .output()?;
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    ensure!(said.contains("Time exceeded"), "{said}");
    a.ns.output("ping", &["-6", "-c3", "-i0.1", "-w3", "-t2", &to])?;
    // Once the flow of this identifier is carried, its last hop is still the kernel's.
    let id = ["-e", "4242"];
    a.ns.output(
        "ping",
        &[&["-6", "-c3", "-i0.1", "-w3"], &id[..], &[&to]].concat(),
    )?;
    let last = [&["-6", "-c3", "-i0.1", "-w3", "-t1"], &id[..], &[&to]].concat();
    let said = a.ns.command("ping").args(last).output()?;
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    ensure!(said.contains("Time exceeded"), "{said}");
    ensure!(
        rig.node.count("ttl_expiring")? > before,
        "no packet of a carried flow made its last hop"
    );
    Ok(())
}

/// A stream whose way becomes narrower goes on: the kernel says so, and the sender listens (RFC 8201).
#[test]
fn a_way_that_becomes_narrower_does_not_break_a_stream() -> Result<()> {
    let rig = Rig::dual_stack()?;
    let (a, b) = (rig.pod("a")?, rig.pod("b")?);
    let mut inside = Connection::open(&a.ns, &b.ns, b.addr_v6()?, PORT)?;
    let mut outside = Connection::open(&a.ns, &rig.fabric.vnet, VNET, PORT)?;
    inside.stream(1 << 20)?;
    outside.stream(1 << 20)?;
    rig.node.set_pod_mtu(&b, 1300)?;
    rig.fabric.router.ip("link set vnet mtu 1300")?;
    rig.fabric.vnet.ip("link set eth0 mtu 1300")?;
    // The entries know the MTU of the first packet; a route is looked up once a second.
    std::thread::sleep(Duration::from_millis(1200));
    inside.stream(1 << 20)?;
    outside.stream(1 << 20)
}

#[test]
fn datagrams_in_parts_arrive_whole() -> Result<()> {
    let rig = Rig::dual_stack()?;
    let (a, b) = (rig.pod("a")?, rig.pod("b")?);
    for (from, to, address) in [
        (&a.ns, &b.ns, b.addr_v6()?),
        (&a.ns, &rig.fabric.vnet, VNET),
        (&rig.fabric.vnet, &a.ns, a.addr_v6()?),
    ] {
        let datagrams = Datagrams::between(from, to, address, PORT)?;
        datagrams.chat(100, 5)?;
        datagrams.chat(9000, 5)?;
        datagrams.chat(100, 5)?;
    }
    Ok(())
}

/// Options for the destination concern nobody on the way; those for routers are looked at by the kernel (RFC 8200 section 4).
#[test]
fn extension_headers_reach_whom_they_are_for() -> Result<()> {
    let rig = Rig::dual_stack()?;
    let (a, b) = (rig.pod("a")?, rig.pod("b")?);
    let (from, to) = (a.addr_v6()?, b.addr_v6()?);
    let [mac, gateway] = a.macs()?;
    let server = b.ns.bind(|| UdpSocket::bind((to, PORT)))?;
    server.set_read_timeout(Some(Duration::from_secs(3)))?;
    let flow = Datagrams::between(&a.ns, &b.ns, to, PORT + 1)?;
    flow.chat(64, 5)?;
    let udp = |said: &[u8]| {
        let header = UdpHeader::with_ipv6_checksum(
            4000,
            PORT,
            &Ipv6Header {
                source: from.octets(),
                destination: to.octets(),
                ..Default::default()
            },
            said,
        )?;
        anyhow::Ok([&header.to_bytes()[..], said].concat())
    };
    let options = |next: u8| [next, 0, 1, 4, 0, 0, 0, 0];
    let atomic = |next: u8| [next, 0, 0, 0, 0, 0, 0, 7];
    let mut heard = [0; 64];
    for round in 0..3 {
        for (first, headers) in [
            (17, Vec::new()),
            (60, options(17).to_vec()),
            (0, options(17).to_vec()),
            (44, atomic(17).to_vec()),
            (60, [options(44), atomic(17)].concat()),
        ] {
            let said = format!("{round} behind {first}");
            let payload = [&headers[..], &udp(said.as_bytes())?].concat();
            let frame = raw::ipv6([mac, gateway], [from.octets(), to.octets()], 64, first, &payload)?;
            raw::send(&a.ns, "eth0", &frame)?;
            let (got, _) = server
                .recv_from(&mut heard)
                .with_context(|| format!("{said} is lost"))?;
            ensure!(&heard[..got] == said.as_bytes());
        }
    }
    flow.chat(64, 5)
}

/// An error about a packet of a carried flow reaches its sender: nobody listens on the port.
#[test]
fn errors_about_carried_flows_arrive() -> Result<()> {
    let rig = Rig::dual_stack()?;
    let (a, b) = (rig.pod("a")?, rig.pod("b")?);
    let vnet = &rig.fabric.vnet;
    for (ns, address) in [(&b.ns, b.addr_v6()?), (vnet, VNET)] {
        let server = ns.bind(|| UdpSocket::bind((address, PORT)))?;
        let client = a.ns.bind(|| UdpSocket::bind((a.addr_v6().unwrap_or(VNET), 0)))?;
        client.connect((address, PORT))?;
        client.set_read_timeout(Some(Duration::from_secs(3)))?;
        server.set_read_timeout(Some(Duration::from_secs(3)))?;
        let mut heard = [0; 16];
        for _ in 0..5 {
            client.send(b"question")?;
            let (_, from) = server.recv_from(&mut heard)?;
            server.send_to(b"answer", from)?;
            client.recv(&mut heard)?;
        }
        drop(server);
        client.send(b"question")?;
        let refused = client.recv(&mut heard).map_err(|error| error.kind());
        ensure!(
            refused == Err(std::io::ErrorKind::ConnectionRefused),
            "the sender heard {refused:?}"
        );
    }
    Ok(())
}
