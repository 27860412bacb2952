//! The node's own connections and the pods' share one address: they never share a port towards one remote.

use std::{
    net::{SocketAddrV4, UdpSocket},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use causeway_tests::{
    echo::Echo,
    fabric::{INTERNET, NODE},
    node::Pod,
    rig::Rig,
    rules,
    talk::{PATIENCE, Tcp, Udp},
};
use rustix::net::sockopt::set_socket_linger;

const WANTED: u16 = 45_000;
const SERVER: SocketAddrV4 = SocketAddrV4::new(INTERNET, 8080);

struct Scene {
    rig: Rig,
    pod: Pod,
    echo: Echo,
}

impl Scene {
    fn new() -> Result<Self> {
        let rig = Rig::causeway()?;
        let (pod, echo) = (rig.pod("a")?, Echo::start(&rig.fabric.internet, SERVER.port())?);
        Ok(Self { rig, pod, echo })
    }

    fn host_tcp(&self) -> Result<Tcp> {
        Tcp::connect_from(&self.rig.node.ns, SocketAddrV4::new(NODE, WANTED), SERVER)
    }

    /// The port with which the server sees the second of two, of which the first has kept its own.
    fn given_port(&self) -> Result<u16> {
        let seen = self.echo.seen();
        let given = seen.iter().map(SocketAddrV4::port).find(|port| *port != WANTED);
        given.with_context(|| format!("the server saw {seen:?}"))
    }

    fn pod_tcp(&self) -> Result<Tcp> {
        Tcp::connect_from(&self.pod.ns, SocketAddrV4::new(self.pod.addr, WANTED), SERVER)
    }

    fn host_udp(&self) -> Result<Udp> {
        Udp::connect_from(&self.rig.node.ns, SocketAddrV4::new(NODE, WANTED), SERVER)
    }

    fn pod_udp(&self) -> Result<Udp> {
        Udp::connect_from(&self.pod.ns, SocketAddrV4::new(self.pod.addr, WANTED), SERVER)
    }

    /// Both were seen with the node's address and each with a port of its own.
    fn expect_two(&self) -> Result<()> {
        self.expect(2)
    }

    fn expect(&self, peers: usize) -> Result<()> {
        let mut seen = self.echo.seen();
        seen.sort_unstable();
        seen.dedup();
        ensure!(
            seen.len() == peers && seen.iter().all(|peer| *peer.ip() == NODE),
            "the server saw {seen:?}"
        );
        Ok(())
    }
}

#[test]
fn tcp_the_host_first() -> Result<()> {
    let scene = Scene::new()?;
    let (mut host, mut pod) = (scene.host_tcp()?, scene.pod_tcp()?);
    for _ in 0..10 {
        host.chat(2)?;
        pod.chat(2)?;
    }
    scene.expect_two()
}

#[test]
fn tcp_the_pod_first() -> Result<()> {
    let scene = Scene::new()?;
    let (mut pod, mut host) = (scene.pod_tcp()?, scene.host_tcp()?);
    for _ in 0..10 {
        pod.chat(2)?;
        host.chat(2)?;
    }
    scene.expect_two()
}

#[test]
fn udp_the_host_first() -> Result<()> {
    let scene = Scene::new()?;
    let host = scene.host_udp()?;
    host.chat(2)?;
    let pod = scene.pod_udp()?;
    for _ in 0..10 {
        pod.chat(2)?;
        host.chat(2)?;
    }
    scene.expect_two()
}

#[test]
fn udp_the_pod_first() -> Result<()> {
    let scene = Scene::new()?;
    let pod = scene.pod_udp()?;
    pod.chat(2)?;
    let host = scene.host_udp()?;
    for _ in 0..10 {
        host.chat(2)?;
        pod.chat(2)?;
    }
    scene.expect_two()
}

/// Nobody's socket shows that the port is taken: it stands in the table of flows alone.
#[test]
fn tcp_from_the_port_that_another_socket_of_the_node_was_given() -> Result<()> {
    let scene = Scene::new()?;
    let (mut pod, mut host) = (scene.pod_tcp()?, scene.host_tcp()?);
    pod.chat(2)?;
    host.chat(2)?;
    let given = scene.given_port()?;
    let mut third = Tcp::connect_from(&scene.rig.node.ns, SocketAddrV4::new(NODE, given), SERVER)?;
    for _ in 0..10 {
        third.chat(2)?;
        host.chat(2)?;
        pod.chat(2)?;
    }
    let third_port = scene.echo.seen();
    ensure!(
        third_port.len() == 1 && ![WANTED, given].contains(&third_port[0].port()),
        "the server saw {third_port:?}"
    );
    Ok(())
}

#[test]
fn udp_from_the_port_that_another_socket_of_the_node_was_given() -> Result<()> {
    let scene = Scene::new()?;
    let pod = scene.pod_udp()?;
    pod.chat(2)?;
    let host = scene.host_udp()?;
    host.chat(2)?;
    let given = scene.given_port()?;
    let third = Udp::connect_from(&scene.rig.node.ns, SocketAddrV4::new(NODE, given), SERVER)?;
    for _ in 0..10 {
        third.chat(2)?;
        host.chat(2)?;
        pod.chat(2)?;
    }
    scene.expect(3)
}

/// A host socket that was there before the datapath: nobody saw its first packet.
#[test]
fn a_host_connection_older_than_the_datapath() -> Result<()> {
    let rig = Rig::causeway()?;
    let echo = Echo::start(&rig.fabric.internet, SERVER.port())?;
    let mut host = Tcp::connect_from(&rig.node.ns, SocketAddrV4::new(NODE, WANTED), SERVER)?;
    host.chat(2)?;
    let pod = rig.pod("a")?;
    let scene = Scene { rig, pod, echo };
    let mut pod = scene.pod_tcp()?;
    for _ in 0..10 {
        pod.chat(2)?;
        host.chat(2)?;
    }
    scene.expect_two()
}

#[test]
fn two_pods_want_the_same_port() -> Result<()> {
    let scene = Scene::new()?;
    let other = scene.rig.pod("b")?;
    let mut one = scene.pod_tcp()?;
    let mut two = Tcp::connect_from(&other.ns, SocketAddrV4::new(other.addr, WANTED), SERVER)?;
    for _ in 0..10 {
        one.chat(2)?;
        two.chat(2)?;
    }
    scene.expect_two()
}

/// A server of the node listens on the port: answers to the pod's flow must not reach it, nor its clients the pod.
#[test]
fn a_listener_of_the_node_keeps_its_port() -> Result<()> {
    let scene = Scene::new()?;
    let listener = Echo::start(&scene.rig.node.ns, WANTED)?;
    let mut pod = scene.pod_tcp()?;
    pod.chat(5)?;
    // The same tuple in the other direction: the internet's host calls from the port that it serves.
    let caller = Udp::connect(&scene.rig.fabric.internet, SocketAddrV4::new(NODE, WANTED))?;
    caller.chat(3)?;
    pod.chat(5)?;
    ensure!(listener.seen().iter().all(|peer| *peer.ip() == INTERNET));
    Ok(())
}

/// A client that closes with RST and calls again from the same port at once: the same tuple, another connection.
#[test]
fn the_same_tuple_again_and_again() -> Result<()> {
    let scene = Scene::new()?;
    let neighbour = scene.rig.pod("b")?;
    let _echo = Echo::start(&neighbour.ns, 7)?;
    for server in [SERVER, SocketAddrV4::new(neighbour.addr, 7)] {
        for round in 0..20 {
            let from = SocketAddrV4::new(scene.pod.addr, WANTED);
            let mut connection = Tcp::connect_from(&scene.pod.ns, from, server)
                .with_context(|| format!("connection {round} to {server}"))?;
            connection
                .chat(3)
                .with_context(|| format!("connection {round} to {server}"))?;
            set_socket_linger(&connection.0, Some(Duration::ZERO))?;
        }
    }
    ensure!(scene.echo.seen().iter().all(|peer| *peer.ip() == NODE));
    Ok(())
}

/// NodePorts, and what the node's administrator has reserved: a pod that comes from such a port leaves from another.
#[test]
fn reserved_ports_are_nobodys() -> Result<()> {
    const RESERVED: [u16; 5] = [30_000, 31_234, 32_767, 45_000, 45_010];
    let rig = Rig::causeway()?;
    rig.node
        .ns
        .sysctl("net/ipv4/ip_local_reserved_ports", "45000-45010")?;
    let (pod, echo) = (rig.pod("a")?, Echo::start(&rig.fabric.internet, SERVER.port())?);
    for port in RESERVED {
        let from = SocketAddrV4::new(pod.addr, port);
        Tcp::connect_from(&pod.ns, from, SERVER)?.chat(3)?;
        Udp::connect_from(&pod.ns, from, SERVER)?.chat(3)?;
    }
    let seen = echo.seen();
    ensure!(
        seen.iter().all(|peer| *peer.ip() == NODE
            && !(30_000..=32_767).contains(&peer.port())
            && !(45_000..=45_010).contains(&peer.port())),
        "the server saw {seen:?}"
    );
    Ok(())
}

/// One pod publishes a port of the node, another one comes from a port of that number.
#[test]
fn a_pods_port_that_is_a_host_port_elsewhere() -> Result<()> {
    const PUBLISHED: u16 = 60_000;
    let scene = Scene::new()?;
    let (rig, node) = (&scene.rig, SocketAddrV4::new(NODE, PUBLISHED));
    let published = rig.pod("published")?;
    let listen = SocketAddrV4::new(published.addr, 8080);
    rules::host_port(&rig.node.ns, PUBLISHED, listen)?;
    let behind = Echo::on(&published.ns, listen)?;
    let internet = &rig.fabric.internet;
    let client = || -> Result<(Tcp, Udp)> {
        let from = SocketAddrV4::new(scene.pod.addr, PUBLISHED);
        Ok((
            Tcp::connect_from(&scene.pod.ns, from, SERVER)?,
            Udp::connect_from(&scene.pod.ns, from, SERVER)?,
        ))
    };
    let caller =
        || -> Result<(Tcp, Udp)> { Ok((Tcp::connect(internet, node)?, Udp::connect(internet, node)?)) };
    for pod_first in [true, false] {
        let (mut pod, mut outside) = if pod_first {
            let pod = client()?;
            pod.1.chat(1)?;
            (pod, caller()?)
        } else {
            let outside = caller()?;
            outside.1.chat(1)?;
            (client()?, outside)
        };
        for _ in 0..5 {
            for (tcp, udp) in [&mut pod, &mut outside] {
                tcp.chat(2).with_context(|| format!("pod first: {pod_first}"))?;
                udp.chat(2).with_context(|| format!("pod first: {pod_first}"))?;
            }
        }
        set_socket_linger(&pod.0.0, Some(Duration::ZERO))?;
    }
    ensure!(behind.seen().iter().all(|peer| *peer.ip() == INTERNET));
    ensure!(scene.echo.seen().iter().all(|peer| *peer.ip() == NODE));
    Ok(())
}

/// The caller calls from the very port that the pod talks to: the tuple is taken, and the pod gets another.
#[test]
fn a_host_port_in_use_by_a_server_of_the_pod() -> Result<()> {
    const PUBLISHED: u16 = 60_000;
    let rig = Rig::causeway()?;
    let (pod, published) = (rig.pod("a")?, rig.pod("published")?);
    let listen = SocketAddrV4::new(published.addr, 8080);
    rules::host_port(&rig.node.ns, PUBLISHED, listen)?;
    let _behind = Echo::on(&published.ns, listen)?;
    let server = rig.fabric.internet.bind(|| UdpSocket::bind(SERVER))?;
    server.set_read_timeout(Some(PATIENCE))?;
    let node = SocketAddrV4::new(NODE, PUBLISHED);
    let called = || -> Result<()> {
        server.send_to(b"published?", node)?;
        let mut answer = [0; 64];
        let (len, from) = server.recv_from(&mut answer)?;
        ensure!(
            answer[..len] == *b"published?" && from == node.into(),
            "{from} answered"
        );
        Ok(())
    };
    called()?;
    let client = Udp::connect_from(&pod.ns, SocketAddrV4::new(pod.addr, PUBLISHED), SERVER)?;
    for _ in 0..5 {
        client.0.send(b"question")?;
        let (_, from) = server.recv_from(&mut [0; 64])?;
        ensure!(
            from.ip() == NODE && from.port() != PUBLISHED,
            "the pod came from {from}"
        );
        server.send_to(b"answer", from)?;
        client.0.recv(&mut [0; 64]).context("no answer")?;
        called()?;
    }
    Ok(())
}
