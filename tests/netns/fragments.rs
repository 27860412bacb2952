//! Fragments as a router may deliver them: of every awkward size, in any order, in flows that are carried and in flows of the kernel. Each is cut here
//! and sent as a frame, so that no stack puts them in order first; what arrives is put together by the receiver's.

use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};

use anyhow::{Context, Result, ensure};
use causeway_tests::{
    capture::Capture,
    dam::Dam,
    fabric::{INTERNET, NODE, VNET},
    netns::Netns,
    node::Pod,
    ping::Pinger,
    raw::{self, Sender},
    rig::Rig,
    rules,
    talk::PATIENCE,
};
use etherparse::{IcmpEchoHeader, Icmpv4Type};

const MTU: usize = 1500;
const PORT: u16 = 9;
const FROM: u16 = 40_000;
const VIP: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 50), 80);

/// A last fragment of 1 to 8 bytes, two, three, and as many as there can be.
const SIZES: [usize; 12] = [
    1473, 1474, 1475, 1476, 1477, 1478, 1479, 1480, 2000, 2953, 4000, 65_507,
];

fn message(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 7 + at / 251 + len) as u8).collect()
}

#[derive(Clone, Copy, Debug)]
enum Order {
    AsCut,
    Backwards,
    LastFirst,
    FirstLast,
}

impl Order {
    const ALL: [Self; 4] = [Self::AsCut, Self::Backwards, Self::LastFirst, Self::FirstLast];

    fn apply(self, fragments: &mut [Vec<u8>]) {
        match self {
            Self::AsCut => {}
            Self::Backwards => fragments.reverse(),
            Self::LastFirst => fragments.rotate_right(1),
            Self::FirstLast => fragments.rotate_left(1),
        }
    }
}

/// A pod that talks to a server, and what is needed to send in the place of either.
struct Scene<'a> {
    pod: &'a Pod,
    dial: SocketAddrV4,
    pod_sender: Sender,
    server_sender: Sender,
    pod_macs: [[u8; 6]; 2],
    server_macs: [[u8; 6]; 2],
    at_pod: UdpSocket,
    at_server: UdpSocket,
    /// The pod as the server sees it.
    seen: SocketAddrV4,
    /// The server's own address.
    listen: SocketAddrV4,
}

impl<'a> Scene<'a> {
    fn new(pod: &'a Pod, server: &Netns, dial: SocketAddrV4, listen: SocketAddrV4) -> Result<Self> {
        let at_server = server.bind(|| UdpSocket::bind(listen))?;
        let at_pod = pod.ns.bind(|| {
            let socket = UdpSocket::bind(SocketAddrV4::new(pod.addr, FROM))?;
            socket.connect(dial)?;
            Ok(socket)
        })?;
        at_server.set_read_timeout(Some(PATIENCE))?;
        at_pod.set_read_timeout(Some(PATIENCE))?;
        let wire = Capture::start(server, "eth0")?;
        let mut seen = None;
        for _ in 0..3 {
            at_pod.send(b"hello")?;
            let (_, from) = at_server.recv_from(&mut [0; 64])?;
            at_server.send_to(b"hello", from)?;
            at_pod.recv(&mut [0; 64])?;
            seen = Some(from);
        }
        let frames = wire.stop();
        let answer = frames.iter().find(|frame| frame.outgoing && frame.ip.is_some());
        let answer = answer.context("the server sent nothing")?;
        let Some(std::net::SocketAddr::V4(seen)) = seen else {
            anyhow::bail!("the server saw nobody");
        };
        Ok(Self {
            pod,
            dial,
            pod_sender: Sender::new(&pod.ns, "eth0")?,
            server_sender: Sender::new(server, "eth0")?,
            pod_macs: pod.macs()?,
            server_macs: [answer.src_mac, answer.dst_mac],
            at_pod,
            at_server,
            seen,
            listen,
        })
    }

    fn to_server(&self, data: &[u8]) -> Result<Vec<u8>> {
        let addrs = [self.pod.addr.octets(), self.dial.ip().octets()];
        raw::datagram(self.pod_macs, addrs, [FROM, self.dial.port()], 64, data)
    }

    fn to_pod(&self, data: &[u8]) -> Result<Vec<u8>> {
        let addrs = [self.listen.ip().octets(), self.seen.ip().octets()];
        raw::datagram(
            self.server_macs,
            addrs,
            [self.listen.port(), self.seen.port()],
            64,
            data,
        )
    }
}

fn send(sender: &Sender, frame: &[u8], order: Order, identification: u16) -> Result<()> {
    let mut fragments = raw::fragments(frame, MTU, identification)?;
    order.apply(&mut fragments);
    fragments.iter().try_for_each(|fragment| sender.send(fragment))
}

fn expect(socket: &UdpSocket, data: &[u8]) -> Result<()> {
    let mut buffer = vec![0; 1 << 16];
    let len = socket.recv(&mut buffer).context("it did not arrive")?;
    ensure!(buffer[..len] == *data, "{len} bytes arrived, changed");
    Ok(())
}

fn both_ways(scene: &Scene<'_>, sizes: &[usize], orders: &[Order]) -> Result<()> {
    let mut identification = 1000;
    for &len in sizes {
        for &order in orders {
            let data = message(len);
            identification += 1;
            send(&scene.pod_sender, &scene.to_server(&data)?, order, identification)?;
            expect(&scene.at_server, &data)
                .with_context(|| format!("{len} bytes {order:?} from the pod to {}", scene.dial))?;
            send(&scene.server_sender, &scene.to_pod(&data)?, order, identification)?;
            expect(&scene.at_pod, &data)
                .with_context(|| format!("{len} bytes {order:?} from {} to the pod", scene.listen))?;
        }
    }
    Ok(())
}

fn at(address: Ipv4Addr) -> SocketAddrV4 {
    SocketAddrV4::new(address, PORT)
}

#[test]
fn in_order_to_the_internet() -> Result<()> {
    let rig = Rig::causeway()?;
    let pod = rig.pod("a")?;
    let scene = Scene::new(&pod, &rig.fabric.internet, at(INTERNET), at(INTERNET))?;
    ensure!(*scene.seen.ip() == NODE);
    both_ways(&scene, &SIZES, &[Order::AsCut])
}

/// The last link before the node delivers them at once, in any order.
#[test]
fn in_any_order_to_a_pod() -> Result<()> {
    let rig = Rig::causeway()?;
    let pod = rig.pod("a")?;
    let scene = Scene::new(&pod, &rig.fabric.internet, at(INTERNET), at(INTERNET))?;
    let dam = Dam::new(&rig.fabric.router, "node")?;
    let mut identification = 0;
    for len in SIZES {
        for order in Order::ALL {
            identification += 1;
            let data = message(len);
            dam.hold()?;
            let mut expected = vec![message(1472), b"let go".to_vec(), data];
            scene.server_sender.send(&scene.to_pod(&expected[0])?)?;
            send(
                &scene.server_sender,
                &scene.to_pod(&expected[2])?,
                order,
                identification,
            )?;
            dam.let_go()?;
            scene.server_sender.send(&scene.to_pod(&expected[1])?)?;
            // What has to wait is overtaken.
            while !expected.is_empty() {
                let mut buffer = vec![0; 1 << 16];
                let arrived = scene.at_pod.recv(&mut buffer).with_context(|| {
                    format!(
                        "{len} bytes {order:?}: {} datagrams did not arrive",
                        expected.len()
                    )
                })?;
                let before = expected.len();
                expected.retain(|data| buffer[..arrived] != **data);
                ensure!(
                    expected.len() + 1 == before,
                    "{len} bytes {order:?}: {arrived} bytes arrived, changed"
                );
            }
        }
    }
    ensure!(rig.node.count("fragment_waits")? > 100);
    Ok(())
}

/// A pod's own stack sends in order. Whatever sends otherwise may lose the datagram: what counts is that no part of it
/// leaves with the pod's address (the rig watches), and that the flow goes on.
fn out_of_order_from_a_pod(beside: impl Fn(&Rig) -> Result<()>) -> Result<()> {
    let rig = Rig::causeway()?;
    let pod = rig.pod("a")?;
    beside(&rig)?;
    let scene = Scene::new(&pod, &rig.fabric.internet, at(INTERNET), at(INTERNET))?;
    let wire = Capture::start(&rig.fabric.router, "node")?;
    let mut identification = 0;
    for len in SIZES {
        for order in &Order::ALL[1..] {
            identification += 1;
            send(
                &scene.pod_sender,
                &scene.to_server(&message(len))?,
                *order,
                identification,
            )?;
        }
    }
    scene.at_pod.send(b"and on it goes")?;
    let mut buffer = vec![0; 1 << 16];
    loop {
        let len = scene.at_server.recv(&mut buffer).context("the flow has ended")?;
        if buffer[..len] == *b"and on it goes" {
            break;
        }
        ensure!(buffer[..len] == message(len), "{len} bytes arrived, changed");
    }
    let sent = wire.stop();
    let mut sources = sent
        .iter()
        .filter(|frame| !frame.outgoing)
        .filter_map(|frame| frame.ip.as_ref().map(|ip| ip.src));
    ensure!(
        sources.all(|source| source == NODE),
        "a fragment left untranslated"
    );
    Ok(())
}

#[test]
fn out_of_order_from_a_pod_leak_nothing() -> Result<()> {
    out_of_order_from_a_pod(|_| Ok(()))
}

#[test]
fn out_of_order_from_a_pod_beside_conntrack_leak_nothing() -> Result<()> {
    out_of_order_from_a_pod(|rig| rules::forbid_invalid(&rig.node.ns))
}

#[test]
fn in_any_order_to_the_vnet() -> Result<()> {
    let rig = Rig::causeway()?;
    let pod = rig.pod("a")?;
    let scene = Scene::new(&pod, &rig.fabric.vnet, at(VNET), at(VNET))?;
    both_ways(&scene, &SIZES, &Order::ALL)
}

#[test]
fn in_order_through_a_service_to_the_internet() -> Result<()> {
    let rig = Rig::causeway()?;
    let pod = rig.pod("a")?;
    rules::cluster_ip(&rig.node.ns, VIP, at(INTERNET))?;
    let scene = Scene::new(&pod, &rig.fabric.internet, VIP, at(INTERNET))?;
    both_ways(&scene, &SIZES, &[Order::AsCut])
}

/// The answers come from the server's kernel, cut as well.
#[test]
fn echo_requests_in_order() -> Result<()> {
    let rig = Rig::causeway()?;
    let pod = rig.pod("a")?;
    let pinger = Pinger::new(&pod.ns, 4711)?;
    pinger.chat(INTERNET, 3)?;
    let sender = Sender::new(&pod.ns, "eth0")?;
    for (sequence, len) in (1u16..).zip(SIZES) {
        let echo = IcmpEchoHeader {
            id: 4711,
            seq: sequence,
        };
        let data = message(len);
        let addrs = [pod.addr.octets(), INTERNET.octets()];
        let request = raw::icmp(pod.macs()?, addrs, Icmpv4Type::EchoRequest(echo), &data)?;
        send(&sender, &request, Order::AsCut, sequence)?;
        let heard = pinger.hear(PATIENCE, |message| message.icmp == Icmpv4Type::EchoReply(echo))?;
        let heard = heard.with_context(|| format!("no answer to {len} bytes"))?;
        ensure!(heard.payload == data, "{len} bytes came back changed");
    }
    Ok(())
}

/// The answers come from elsewhere, and the last link before the node delivers their pieces in any order.
#[test]
fn echo_answers_in_any_order() -> Result<()> {
    const ID: u16 = 4711;
    let rig = Rig::causeway()?;
    let pod = rig.pod("a")?;
    let scene = Scene::new(&pod, &rig.fabric.internet, at(INTERNET), at(INTERNET))?;
    rules::keep_quiet(&rig.fabric.internet, INTERNET, "echo-reply")?;
    let dam = Dam::new(&rig.fabric.router, "node")?;
    let pinger = Pinger::new(&pod.ns, ID)?;
    let mut sequence = 0;
    for len in SIZES {
        for order in Order::ALL {
            sequence += 1;
            pinger.send(INTERNET, sequence, b"anybody there?")?;
            let echo = IcmpEchoHeader {
                id: ID,
                seq: sequence,
            };
            let data = message(len);
            let addrs = [INTERNET.octets(), NODE.octets()];
            let answer = raw::icmp(scene.server_macs, addrs, Icmpv4Type::EchoReply(echo), &data)?;
            dam.hold()?;
            scene.server_sender.send(&scene.to_pod(&message(1472))?)?;
            send(&scene.server_sender, &answer, order, sequence)?;
            dam.let_go()?;
            scene.server_sender.send(&scene.to_pod(b"let go")?)?;
            let heard = pinger.hear(PATIENCE, |message| message.icmp == Icmpv4Type::EchoReply(echo))?;
            let heard = heard.with_context(|| format!("{len} bytes {order:?} did not arrive"))?;
            ensure!(heard.payload == data, "{len} bytes {order:?} arrived, changed");
        }
    }
    Ok(())
}
