//! What a router meets and no honest client sends: options, tags, packets at the end of their life, and addresses that nobody can
//! have. The stack decides or a reason is counted; nobody else's pod and no wire sees anything of it.

use std::{
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
    thread::sleep,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use causeway_tests::{
    capture::Capture,
    fabric::{INTERNET, NODE, VNET},
    node::Pod,
    ping::{Message, Pinger},
    raw::{self, Sender},
    rig::Rig,
    talk::{PATIENCE, SILENCE, Udp},
};
use etherparse::{Icmpv4Type, icmpv4::TimeExceededCode};

/// Of what must be seen by nobody.
const PORT: u16 = 4444;
const TIMES: u64 = 5;

struct Scene {
    rig: Rig,
    pod: Pod,
    neighbour: Pod,
}

impl Scene {
    fn new() -> Result<Self> {
        let rig = Rig::causeway()?;
        rig.node.ns.sysctl("net/ipv4/icmp_ratelimit", "0")?;
        let (pod, neighbour) = (rig.pod("a")?, rig.pod("b")?);
        Ok(Self { rig, pod, neighbour })
    }

    /// A datagram as the pod's, to [`PORT`].
    fn of_pod(&self, dst: Ipv4Addr, ttl: u8) -> Result<Vec<u8>> {
        let addrs = [self.pod.addr.octets(), dst.octets()];
        raw::datagram(self.pod.macs()?, addrs, [5, PORT], ttl, b"odd")
    }

    fn wire_macs(&self) -> Result<[[u8; 6]; 2]> {
        Ok([self.rig.fabric.router.mac("node")?, self.rig.node.mac()?])
    }

    /// A datagram as it arrives at the node from the wire, to [`PORT`].
    fn of_wire(&self, src: Ipv4Addr, dst: Ipv4Addr) -> Result<Vec<u8>> {
        let addrs = [src.octets(), dst.octets()];
        raw::datagram(self.wire_macs()?, addrs, [5, PORT], 64, b"odd")
    }

    /// Nobody receives anything for [`PORT`] of what `send` sends.
    fn nobody_sees(&self, send: impl FnOnce() -> Result<()>) -> Result<()> {
        let wires = [
            Capture::start(&self.pod.ns, "eth0")?,
            Capture::start(&self.neighbour.ns, "eth0")?,
            Capture::start(&self.rig.fabric.router, "node")?,
        ];
        send()?;
        sleep(Duration::from_millis(50));
        for wire in wires {
            let mut seen = wire.stop();
            seen.retain(|frame| !frame.outgoing && frame.ip.as_ref().is_some_and(|ip| ip.dst_port == PORT));
            ensure!(seen.is_empty(), "somebody saw {seen:#?}");
        }
        self.nothing_is_carried()
    }

    fn nothing_is_carried(&self) -> Result<()> {
        let flows: serde_json::Value =
            serde_json::from_str(&self.rig.node.causeway(&["flows", "--json", "--proto", "udp"])?)?;
        let flows = flows["flows"].as_array().context("no list of flows")?;
        let odd = flows
            .iter()
            .find(|flow| flow["destinationPort"] == PORT && flow["state"] == "carried");
        ensure!(odd.is_none(), "carried: {odd:#?}");
        Ok(())
    }

    fn counts(&self, reason: &str, times: u64, send: impl FnOnce() -> Result<()>) -> Result<()> {
        let before = self.rig.node.count(reason)?;
        send()?;
        let counted = self.rig.node.count(reason)? - before;
        ensure!(counted == times, "{reason} counts {counted}, not {times}");
        Ok(())
    }
}

fn repeatedly(sender: &Sender, frame: &[u8]) -> Result<()> {
    (0..TIMES).try_for_each(|_| sender.send(frame))
}

/// Options take the stack both ways, and are translated there: they are as long on arrival as when they were sent.
#[test]
fn options_of_a_pod_and_of_its_server() -> Result<()> {
    const NO_OPERATION: [u8; 4] = [1, 1, 1, 0];
    let scene = Scene::new()?;
    let (pod, fabric) = (&scene.pod, &scene.rig.fabric);
    let sender = Sender::new(&pod.ns, "eth0")?;
    for (ns, to, seen) in [
        (&fabric.internet, INTERNET, NODE),
        (&fabric.vnet, VNET, pod.addr),
        (&scene.neighbour.ns, scene.neighbour.addr, pod.addr),
    ] {
        let server = ns.bind(|| UdpSocket::bind(SocketAddrV4::new(to, PORT)))?;
        server.set_read_timeout(Some(PATIENCE))?;
        let client = Udp::connect_from(
            &pod.ns,
            SocketAddrV4::new(pod.addr, 4000),
            SocketAddrV4::new(to, PORT),
        )?;
        let wire = Capture::start(ns, "eth0")?;
        let addrs = [pod.addr.octets(), to.octets()];
        let plain = raw::datagram(pod.macs()?, addrs, [4000, PORT], 64, b"with options")?;
        let question = raw::with_options(&plain, &NO_OPERATION)?;
        for _ in 0..TIMES {
            sender.send(&question)?;
            let mut data = [0; 64];
            let (len, from) = server.recv_from(&mut data).with_context(|| format!("{to}"))?;
            ensure!(
                data[..len] == *b"with options" && from.ip() == seen,
                "from {from}"
            );
            server.send_to(b"without", from)?;
            client.0.recv(&mut data).context("no answer")?;
        }
        let frames = wire.stop();
        let lengths: Vec<u16> = frames
            .iter()
            .filter(|frame| !frame.outgoing)
            .filter_map(|frame| Some(frame.ip.as_ref()?.len))
            .filter(|&len| len > 40)
            .collect();
        ensure!(lengths == vec![24 + 8 + 12; TIMES as usize], "{lengths:?}");
        scene.nothing_is_carried()?;
    }
    Ok(())
}

/// The answers of a carried flow, with options: they are its answers all the same.
#[test]
fn options_in_the_answers_of_a_carried_flow() -> Result<()> {
    let scene = Scene::new()?;
    let server = SocketAddrV4::new(INTERNET, 7);
    let _echo = causeway_tests::echo::Echo::on(&scene.rig.fabric.internet, server)?;
    let client = Udp::connect(&scene.pod.ns, server)?;
    client.chat(5)?;
    let port = client.local()?.port();
    let addrs = [INTERNET.octets(), NODE.octets()];
    let plain = raw::datagram(scene.wire_macs()?, addrs, [7, port], 64, b"with options")?;
    let answer = raw::with_options(&plain, &[1, 1, 1, 0])?;
    let sender = Sender::new(&scene.rig.fabric.router, "node")?;
    for _ in 0..TIMES {
        sender.send(&answer)?;
        let mut data = [0; 64];
        let len = client.0.recv(&mut data).context("the answer did not come")?;
        ensure!(data[..len] == *b"with options");
    }
    client.chat(5)
}

/// No VLAN is set up, so no tagged frame is for anybody; least of all one that looks like a flow's.
#[test]
fn tags() -> Result<()> {
    let scene = Scene::new()?;
    let sender = Sender::new(&scene.pod.ns, "eth0")?;
    for to in [INTERNET, VNET, scene.neighbour.addr, NODE] {
        let tagged = raw::tagged(&scene.of_pod(to, 64)?, 7);
        scene.counts("vlan", TIMES, || {
            scene.nobody_sees(|| repeatedly(&sender, &tagged))
        })?;
    }
    let echo = causeway_tests::echo::Echo::start(&scene.rig.fabric.internet, 7)?;
    let client = Udp::connect(&scene.pod.ns, SocketAddrV4::new(INTERNET, 7))?;
    client.chat(5)?;
    let port = client.local()?.port();
    let addrs = [scene.pod.addr.octets(), INTERNET.octets()];
    let question = raw::datagram(scene.pod.macs()?, addrs, [port, 7], 64, b"tagged")?;
    let answer = raw::datagram(
        scene.wire_macs()?,
        [INTERNET.octets(), NODE.octets()],
        [7, port],
        64,
        b"tagged",
    )?;
    echo.seen();
    repeatedly(&sender, &raw::tagged(&question, 7))?;
    repeatedly(
        &Sender::new(&scene.rig.fabric.router, "node")?,
        &raw::tagged(&answer, 7),
    )?;
    client.0.set_read_timeout(Some(Duration::from_millis(100)))?;
    ensure!(client.0.recv(&mut [0; 64]).is_err(), "a tagged answer arrived");
    ensure!(echo.seen().is_empty(), "a tagged question arrived");
    client.0.set_read_timeout(Some(PATIENCE))?;
    client.chat(5)
}

fn is_expired(message: &Message) -> bool {
    message.icmp == Icmpv4Type::TimeExceeded(TimeExceededCode::TtlExceededInTransit)
}

#[test]
fn nothing_left_to_live_from_a_pod() -> Result<()> {
    let scene = Scene::new()?;
    let (sender, ears) = (
        Sender::new(&scene.pod.ns, "eth0")?,
        Pinger::new(&scene.pod.ns, 1)?,
    );
    for to in [INTERNET, VNET, scene.neighbour.addr] {
        for ttl in [0, 1] {
            let frame = scene.of_pod(to, ttl)?;
            scene.nobody_sees(|| repeatedly(&sender, &frame))?;
            let heard = ears.hear(SILENCE, is_expired)?;
            ensure!(heard.is_some_and(|heard| heard.from == NODE), "TTL {ttl} to {to}");
        }
    }
    Ok(())
}

/// The node says so with its own address, about the packet as it was sent: not a word of the pod.
#[test]
fn nothing_left_to_live_from_the_wire() -> Result<()> {
    let scene = Scene::new()?;
    let fabric = &scene.rig.fabric;
    let _echo = causeway_tests::echo::Echo::start(&fabric.internet, 7)?;
    let client = Udp::connect(&scene.pod.ns, SocketAddrV4::new(INTERNET, 7))?;
    client.chat(5)?;
    let port = client.local()?.port();
    let (sender, ears) = (
        Sender::new(&fabric.router, "node")?,
        Pinger::new(&fabric.internet, 1)?,
    );
    for ttl in [0, 1] {
        let addrs = [INTERNET.octets(), NODE.octets()];
        sender.send(&raw::datagram(
            scene.wire_macs()?,
            addrs,
            [7, port],
            ttl,
            b"dying",
        )?)?;
        let heard = ears.hear(SILENCE, is_expired)?.context("nobody said so")?;
        ensure!(
            heard.from == NODE && heard.payload[16..20] == NODE.octets(),
            "{heard:?}"
        );
        ensure!(heard.payload[22..24] == port.to_be_bytes(), "{heard:?}");
    }
    client.chat(5)
}

#[test]
fn destinations_that_are_nobody_from_a_pod() -> Result<()> {
    let scene = Scene::new()?;
    let sender = Sender::new(&scene.pod.ns, "eth0")?;
    for to in [
        [127, 0, 0, 1],
        [0, 0, 0, 0],
        [255, 255, 255, 255],
        [224, 0, 0, 5],
        [239, 1, 2, 3],
        [10, 240, 255, 255],
    ] {
        let frame = scene.of_pod(to.into(), 64)?;
        scene
            .nobody_sees(|| repeatedly(&sender, &frame))
            .with_context(|| format!("{to:?}"))?;
    }
    // Right addresses in a frame for everybody, and in one for another station.
    for mac in [[0xff; 6], [2, 0, 0, 0, 0, 9]] {
        let mut frame = scene.of_pod(INTERNET, 64)?;
        frame[..6].copy_from_slice(&mac);
        scene
            .nobody_sees(|| repeatedly(&sender, &frame))
            .with_context(|| format!("to {mac:?}"))?;
    }
    Ok(())
}

/// To itself, from itself, with one port at both ends: the packet comes back or is lost, and no flow of it is carried.
#[test]
fn a_land_packet_of_a_pod() -> Result<()> {
    let scene = Scene::new()?;
    let addr = scene.pod.addr.octets();
    let land = raw::datagram(scene.pod.macs()?, [addr, addr], [PORT, PORT], 64, b"land")?;
    let wires = [
        Capture::start(&scene.neighbour.ns, "eth0")?,
        Capture::start(&scene.rig.fabric.router, "node")?,
    ];
    repeatedly(&Sender::new(&scene.pod.ns, "eth0")?, &land)?;
    sleep(Duration::from_millis(50));
    for wire in wires {
        let mut seen = wire.stop();
        seen.retain(|frame| frame.ip.as_ref().is_some_and(|ip| ip.dst_port == PORT));
        ensure!(seen.is_empty(), "somebody saw {seen:#?}");
    }
    scene.nothing_is_carried()
}

#[test]
fn senders_that_are_nobody_from_the_wire() -> Result<()> {
    let scene = Scene::new()?;
    let sender = Sender::new(&scene.rig.fabric.router, "node")?;
    let pod = scene.pod.addr;
    for from in [[127, 0, 0, 1], [0, 0, 0, 0], [255, 255, 255, 255], [224, 0, 0, 5]] {
        for to in [pod, NODE] {
            let frame = scene.of_wire(from.into(), to)?;
            scene
                .nobody_sees(|| repeatedly(&sender, &frame))
                .with_context(|| format!("{from:?} to {to}"))?;
        }
    }
    for (from, to) in [(pod, pod), (scene.neighbour.addr, pod), (NODE, pod), (pod, NODE)] {
        let frame = scene.of_wire(from, to)?;
        scene
            .counts("spoofed_from_wire", TIMES, || {
                scene.nobody_sees(|| repeatedly(&sender, &frame))
            })
            .with_context(|| format!("{from} to {to}"))?;
    }
    let land = scene.of_wire(NODE, NODE)?;
    scene.nobody_sees(|| repeatedly(&sender, &land))?;
    let mut elsewhere = scene.of_wire(VNET, pod)?;
    elsewhere[..6].copy_from_slice(&[2, 0, 0, 0, 0, 9]);
    scene.counts("not_for_us", TIMES, || {
        scene.nobody_sees(|| repeatedly(&sender, &elsewhere))
    })
}
