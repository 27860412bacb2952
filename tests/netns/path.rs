//! What a router owes to a packet: its time to live, the next link's MTU, and the line between pod address and node address.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    thread::sleep,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use causeway_tests::{
    capture::Capture,
    echo::Echo,
    fabric::{INTERNET, NODE, VNET},
    netns::Netns,
    node::Pod,
    ping::{Icmp, Pinger},
    rig::Rig,
    talk::{SILENCE, Udp},
    walk::Walk,
};
use etherparse::{
    Icmpv4Type,
    icmpv4::{DestUnreachableHeader, TimeExceededCode},
};
use rustix::net::sockopt::{Ipv4PathMtuDiscovery, set_ip_mtu_discover};

const TIME_EXCEEDED: Icmpv4Type = Icmpv4Type::TimeExceeded(TimeExceededCode::TtlExceededInTransit);

#[test]
fn the_first_packet_and_every_carried_one_lose_one_hop() -> Result<()> {
    let rig = Rig::causeway()?;
    let (a, b) = (rig.pod("a")?, rig.pod("b")?);
    let wires = [(&b.ns, "eth0"), (&rig.fabric.router, "node"), (&a.ns, "eth0")];
    for (server, addr, [there, back], ttl_back) in [
        (&b.ns, b.addr, [wires[0], wires[2]], 63),
        (&rig.fabric.vnet, VNET, [wires[1], wires[2]], 62),
        (&rig.fabric.internet, INTERNET, [wires[1], wires[2]], 62),
    ] {
        let [there, back] = [Capture::start(there.0, there.1)?, Capture::start(back.0, back.1)?];
        let walk = Walk::direct(&a.ns, server, SocketAddrV4::new(addr, 7));
        walk.tcp(&rig)?;
        walk.udp(&rig)?;
        walk.ping(&rig)?;
        let arrived = |wire: Capture, peer: Ipv4Addr, to: bool| -> Vec<u8> {
            let frames = wire.stop();
            let packets = frames
                .iter()
                .filter(|frame| !frame.outgoing)
                .filter_map(|frame| frame.ip.as_ref());
            packets
                .filter(|ip| if to { ip.dst == peer } else { ip.src == peer })
                .map(|ip| ip.ttl)
                .collect()
        };
        let (there, back) = (arrived(there, addr, true), arrived(back, addr, false));
        ensure!(
            there.len() > 100 && there.iter().all(|&ttl| ttl == 63),
            "towards {addr}: {there:?}"
        );
        ensure!(
            back.len() > 100 && back.iter().all(|&ttl| ttl == ttl_back),
            "from {addr}: {back:?}"
        );
    }
    Ok(())
}

/// Sends one datagram that has one hop left; the node must say so.
fn expires_at_the_node(client: &Netns, socket: &Udp, hops: u32) -> Result<()> {
    let ears = Pinger::new(client, 1)?;
    socket.0.set_ttl(hops)?;
    socket.0.send(b"one hop left")?;
    let heard = ears.hear(SILENCE, |message| message.icmp == TIME_EXCEEDED)?;
    let from = heard.context("nobody said that the packet expired")?.from;
    ensure!(from == NODE, "{from} said that the packet expired");
    socket.0.set_ttl(64)?;
    // The message is an error of the socket too; the next call would return it.
    socket.0.take_error()?;
    Ok(())
}

#[test]
fn the_node_answers_for_a_packet_that_expires_there() -> Result<()> {
    let rig = Rig::causeway()?;
    let (a, b) = (rig.pod("a")?, rig.pod("b")?);
    for (server, addr) in [
        (&b.ns, b.addr),
        (&rig.fabric.vnet, VNET),
        (&rig.fabric.internet, INTERNET),
    ] {
        let _echo = Echo::start(server, 7)?;
        let socket = Udp::connect(&a.ns, SocketAddrV4::new(addr, 7))?;
        expires_at_the_node(&a.ns, &socket, 1).with_context(|| format!("first packet to {addr}"))?;
        socket.chat(5)?;
        expires_at_the_node(&a.ns, &socket, 1).with_context(|| format!("in a carried flow to {addr}"))?;
        socket.chat(5)?;
    }
    let _echo = Echo::start(&a.ns, 7)?;
    let socket = Udp::connect(&rig.fabric.partner, SocketAddrV4::new(a.addr, 7))?;
    expires_at_the_node(&rig.fabric.partner, &socket, 2).context("first packet from outside")?;
    socket.chat(5)?;
    expires_at_the_node(&rig.fabric.partner, &socket, 2).context("carried flow from outside")?;
    socket.chat(5)
}

fn is_told_to_fragment(rig: &Rig, pod: &Pod, socket: &Udp) -> Result<()> {
    // The pod's link takes more than the next one does.
    rig.node.set_pod_mtu(pod, 2000)?;
    let ears = Pinger::new(&pod.ns, 1)?;
    set_ip_mtu_discover(&socket.0, Ipv4PathMtuDiscovery::DO)?;
    socket.0.send(&[7; 1800])?;
    let needed = |icmp: &Icmp| match icmp {
        Icmp::V4(Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::FragmentationNeeded {
            next_hop_mtu,
        })) => Some(*next_hop_mtu),
        _ => None,
    };
    let heard = ears.hear(SILENCE, |message| needed(&message.icmp).is_some())?;
    let heard = heard.context("nobody said that the packet is too big")?;
    ensure!(
        heard.from == NODE && needed(&heard.icmp) == Some(1500),
        "{heard:?}"
    );
    socket.0.take_error()?;
    ensure!(socket.0.send(&[7; 1800]).is_err(), "the pod did not learn");
    socket.chat(5)
}

#[test]
fn the_node_answers_for_a_packet_that_the_next_link_cannot_take() -> Result<()> {
    let rig = Rig::causeway()?;
    for (server, addr) in [(&rig.fabric.vnet, VNET), (&rig.fabric.internet, INTERNET)] {
        let _echo = Echo::start(server, 7)?;
        let (a, b) = (rig.pod(&format!("a-{addr}"))?, rig.pod(&format!("b-{addr}"))?);
        let wire = Capture::start(&rig.fabric.router, "node")?;
        let first = Udp::connect(&a.ns, SocketAddrV4::new(addr, 7))?;
        is_told_to_fragment(&rig, &a, &first).with_context(|| format!("first packet to {addr}"))?;
        let carried = Udp::connect(&b.ns, SocketAddrV4::new(addr, 7))?;
        carried.chat(5)?;
        is_told_to_fragment(&rig, &b, &carried).with_context(|| format!("in a carried flow to {addr}"))?;
        let longest = wire
            .stop()
            .iter()
            .filter_map(|frame| frame.ip.as_ref())
            .map(|ip| ip.len)
            .max();
        ensure!(
            longest.is_some_and(|len| len <= 1500),
            "{longest:?} bytes on the wire"
        );
    }
    Ok(())
}

/// The last addresses inside the excluded ranges and the first outside.
#[test]
fn the_excluded_ranges_end_where_they_should() -> Result<()> {
    let rig = Rig::causeway()?;
    let pod = rig.pod("a")?;
    let fabric = &rig.fabric;
    for (addr, host, via, kept) in [
        ([9, 255, 255, 254], &fabric.internet, INTERNET, false),
        ([10, 0, 0, 1], &fabric.vnet, VNET, true),
        ([10, 255, 255, 254], &fabric.vnet, VNET, true),
        ([11, 0, 0, 1], &fabric.internet, INTERNET, false),
        ([168, 63, 129, 15], &fabric.internet, INTERNET, false),
        ([168, 63, 129, 17], &fabric.internet, INTERNET, false),
    ] {
        let addr = Ipv4Addr::from(addr);
        host.ip(&format!("addr add {addr}/32 dev lo"))?;
        fabric.router.ip(&format!(
            "route add {addr} via {via}{}",
            if kept { " dev vnet onlink" } else { "" }
        ))?;
        let walk = Walk::direct(&pod.ns, host, SocketAddrV4::new(addr, 7));
        let seen = if kept { pod.addr } else { NODE };
        walk.udp(&rig)?.expect_carried(seen)?;
        walk.tcp(&rig)?.expect_carried(seen)?;
    }
    let echo = Echo::start(&fabric.router, 53)?;
    let resolver = Udp::connect(&pod.ns, SocketAddrV4::new(causeway_tests::fabric::WIRESERVER, 53))?;
    resolver.chat(5)?;
    ensure!(
        echo.seen().iter().all(|peer| *peer.ip() == pod.addr),
        "the wireserver must see the pod's address"
    );
    sleep(Duration::from_millis(10));
    Ok(())
}
