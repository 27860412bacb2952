//! Path MTU discovery (RFC 1191) through a hop that takes less, for flows that the node's kernel does not see: the error
//! reaches whoever sent too much, and says what that one understands.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddrV4},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use causeway_tests::{
    capture::{Capture, Instruction},
    echo::Echo,
    fabric::{GATEWAY, INTERNET, NODE},
    frame::Frame,
    netns::Netns,
    node::Pod,
    raw,
    rig::Rig,
    rules,
    site::{INSIDE, NARROW, NEAR_END, OUTSIDE, Site},
    stream,
    talk::{Tcp, Udp},
};
use etherparse::{Icmpv4Type, icmpv4::DestUnreachableHeader};
use rustix::net::sockopt::{Ipv4PathMtuDiscovery, set_ip_mtu_discover};

const PORT: u16 = 7;
/// Enough for a stream to stall in if nobody tells its sender.
const STREAM: u64 = 8 << 20;

struct Scene {
    rig: Rig,
    pod: Pod,
    site: Site,
}

impl Scene {
    fn new() -> Result<Self> {
        let rig = Rig::causeway()?;
        let (pod, site) = (rig.pod("a")?, Site::behind(&rig.fabric)?);
        Ok(Self { rig, pod, site })
    }

    /// Nobody in the pod, at the server or on the node has met a wrong checksum.
    fn expect_sound(&self) -> Result<()> {
        for ns in [&self.pod.ns, &self.site.server, &self.rig.node.ns] {
            for group in ["Icmp", "Tcp", "Udp"] {
                let errors = ns.snmp(group, "InCsumErrors")?;
                ensure!(errors == 0, "{errors} wrong {group} checksums");
            }
        }
        Ok(())
    }
}

/// The MTU that a namespace has learnt towards an address.
fn learnt(ns: &Netns, to: Ipv4Addr) -> Result<Option<u64>> {
    let route = ns.json("ip", &["-j", "route", "get", &to.to_string()])?;
    Ok(route[0]["metrics"][0]["mtu"].as_u64())
}

fn expect_learnt(ns: &Netns, to: Ipv4Addr) -> Result<()> {
    let mtu = learnt(ns, to)?;
    ensure!(mtu == Some(NARROW.into()), "the MTU towards {to} is {mtu:?}");
    Ok(())
}

/// Both directions at once: each side sends more than the narrow link takes.
#[test]
fn tcp_that_a_pod_opens() -> Result<()> {
    for (to, seen) in [(OUTSIDE, None), (INSIDE, Some(()))] {
        let scene = Scene::new()?;
        let (_, client) = stream::exchange(
            &scene.pod.ns,
            &scene.site.server,
            SocketAddrV4::new(to, PORT),
            STREAM,
        )
        .with_context(|| format!("stream to {to}"))?;
        let as_seen = if seen.is_some() { scene.pod.addr } else { NODE };
        ensure!(client.ip() == as_seen, "{to} saw {client}");
        expect_learnt(&scene.pod.ns, to)?;
        expect_learnt(&scene.site.server, as_seen)?;
        let forwarded = rules::forwarded(&scene.rig.node.ns)?;
        ensure!(forwarded < 50, "{forwarded} packets took the stack");
        scene.expect_sound()?;
    }
    Ok(())
}

#[test]
fn tcp_to_a_pod() -> Result<()> {
    let scene = Scene::new()?;
    let server = SocketAddrV4::new(scene.pod.addr, PORT);
    stream::exchange(&scene.site.server, &scene.pod.ns, server, STREAM)?;
    expect_learnt(&scene.pod.ns, INSIDE)?;
    expect_learnt(&scene.site.server, scene.pod.addr)?;
    let forwarded = rules::forwarded(&scene.rig.node.ns)?;
    ensure!(forwarded < 50, "{forwarded} packets took the stack");
    scene.expect_sound()
}

/// The kernel translates: a Service outside, and a hostPort of the pod.
#[test]
fn tcp_that_stays_with_the_kernel() -> Result<()> {
    let scene = Scene::new()?;
    let (node, pod, server) = (&scene.rig.node.ns, &scene.pod, &scene.site.server);
    let vip = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 50), 80);
    let endpoint = SocketAddrV4::new(OUTSIDE, PORT);
    rules::cluster_ip(node, vip, endpoint)?;
    let behind_host_port = SocketAddrV4::new(pod.addr, 8080);
    rules::host_port(node, 8081, behind_host_port)?;
    for (from, to, dial, listen) in [
        (&pod.ns, server, vip, endpoint),
        (server, &pod.ns, SocketAddrV4::new(NODE, 8081), behind_host_port),
    ] {
        stream::exchange_through(from, to, dial, listen, STREAM)
            .with_context(|| format!("stream to {dial}"))?;
        scene.expect_sound()?;
    }
    expect_learnt(&pod.ns, vip.ip().to_owned()).context("towards the Service")
}

/// A datagram that may not be cut is refused once, and by the pod itself from then on.
#[test]
fn udp_learns_from_the_first_datagram_that_is_too_long() -> Result<()> {
    let scene = Scene::new()?;
    for to in [OUTSIDE, INSIDE] {
        let server = SocketAddrV4::new(to, PORT);
        let _echo = Echo::on(&scene.site.server, server)?;
        let socket = Udp::connect(&scene.pod.ns, server)?;
        set_ip_mtu_discover(&socket.0, Ipv4PathMtuDiscovery::DO)?;
        socket.chat(5)?;
        refused_in_the_end(&socket, 1400).with_context(|| format!("to {to}"))?;
        expect_learnt(&scene.pod.ns, to)?;
        socket.ask(usize::from(NARROW) - 28)?;
        ensure!(
            socket.0.send(&[0; NARROW as usize - 27]).is_err(),
            "one byte more was sent"
        );
        socket.0.take_error()?;
        socket.chat(5)?;
    }
    scene.expect_sound()
}

/// Sends until the socket refuses: the error arrives in its own time.
fn refused_in_the_end(socket: &Udp, len: usize) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(2);
    let message = vec![7; len];
    loop {
        match socket.0.send(&message) {
            Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE) => break,
            _ => ensure!(Instant::now() < end, "{len} bytes are still accepted"),
        }
        thread::sleep(Duration::from_millis(20));
    }
    // What else was said of the datagrams so far.
    thread::sleep(Duration::from_millis(20));
    socket.0.take_error()?;
    Ok(())
}

/// The node's route has the MTU, not a link of it: the node itself has to tell the pod. It is locked: the MTU of a route that is
/// not, `bpf_fib_lookup` does not tell (Linux 6.18).
#[test]
fn the_nodes_own_route_that_takes_less() -> Result<()> {
    let rig = Rig::causeway()?;
    let pod = rig.pod("a")?;
    rig.node
        .ns
        .ip(&format!("route add {INTERNET} via {GATEWAY} mtu lock {NARROW}"))?;
    let wire = Capture::filtered(&rig.fabric.router, "node", &longer_than(NARROW))?;
    stream::exchange(
        &pod.ns,
        &rig.fabric.internet,
        SocketAddrV4::new(INTERNET, PORT),
        STREAM,
    )?;
    expect_learnt(&pod.ns, INTERNET)?;
    let long: Vec<_> = wire.stop().into_iter().filter(|frame| !frame.outgoing).collect();
    ensure!(
        long.is_empty(),
        "{} packets are longer than the route takes",
        long.len()
    );
    ensure!(pod.ns.snmp("Icmp", "InCsumErrors")? == 0);
    Ok(())
}

/// RFC 792 asks a router for eight bytes of what it could not forward, and no more: not the whole TCP header, and nowhere
/// near its checksum.
#[test]
fn eight_quoted_bytes_are_enough() -> Result<()> {
    let scene = Scene::new()?;
    let router = &scene.rig.fabric.router;
    router.output(
        "iptables",
        &[
            "-A",
            "OUTPUT",
            "-p",
            "icmp",
            "--icmp-type",
            "fragmentation-needed",
            "-j",
            "DROP",
        ],
    )?;
    let terse = Terse::start(&scene.rig)?;
    terse.answer_while(|| {
        for to in [OUTSIDE, INSIDE] {
            let server = SocketAddrV4::new(to, PORT);
            let echo = Echo::on(&scene.site.server, server)?;
            let socket = Udp::connect(&scene.pod.ns, server)?;
            set_ip_mtu_discover(&socket.0, Ipv4PathMtuDiscovery::DO)?;
            socket.chat(5)?;
            refused_in_the_end(&socket, 1400).with_context(|| format!("UDP to {to}"))?;
            expect_learnt(&scene.pod.ns, to)?;
            scene.pod.ns.ip("route flush cache")?;
            ensure!(learnt(&scene.pod.ns, to)?.is_none(), "the MTU is not forgotten");

            let mut tcp = Tcp::connect(&scene.pod.ns, server)?;
            tcp.chat(5)?;
            let long = vec![1; 50_000];
            std::io::Write::write_all(&mut tcp.0, &long)?;
            let mut back = vec![0; long.len()];
            std::io::Read::read_exact(&mut tcp.0, &mut back).with_context(|| format!("TCP to {to}"))?;
            ensure!(back == long);
            expect_learnt(&scene.pod.ns, to)?;
            drop(echo);
        }
        Ok(())
    })?;
    scene.expect_sound()
}

/// A router of few words, in place of the kernel's.
struct Terse {
    long: Capture,
    sender: raw::Sender,
    macs: [[u8; 6]; 2],
}

impl Terse {
    fn start(rig: &Rig) -> Result<Self> {
        let router = &rig.fabric.router;
        Ok(Self {
            long: Capture::filtered(router, "node", &longer_than(NARROW))?,
            sender: raw::Sender::new(router, "node")?,
            macs: [router.mac("node")?, rig.node.mac()?],
        })
    }

    fn answer_while(&self, traffic: impl FnOnce() -> Result<()>) -> Result<()> {
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            let answering = scope.spawn(|| -> Result<usize> {
                let mut answered = 0;
                while !over.load(Ordering::Relaxed) {
                    let frames = self.long.so_far();
                    frames[answered..]
                        .iter()
                        .try_for_each(|frame| self.answer(frame))?;
                    answered = frames.len();
                    thread::sleep(Duration::from_millis(5));
                }
                Ok(answered)
            });
            let done = traffic();
            over.store(true, Ordering::Relaxed);
            let answered = answering.join().expect("no panic")?;
            done?;
            ensure!(answered > 0, "nothing was too long");
            Ok(())
        })
    }

    fn answer(&self, frame: &Frame) -> Result<()> {
        let Some(ip) = frame.ip.as_ref().filter(|_| !frame.outgoing) else {
            return Ok(());
        };
        let IpAddr::V4(sender) = ip.src else {
            return Ok(());
        };
        let needed = DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: NARROW };
        let message = raw::icmp(
            self.macs,
            [NEAR_END.octets(), sender.octets()],
            Icmpv4Type::DestinationUnreachable(needed),
            ip.quotable(),
        )?;
        self.sender.send(&message)
    }
}

/// Lets IPv4 packets through that are longer than `mtu` bytes.
fn longer_than(mtu: u16) -> [Instruction; 6] {
    const LOAD_HALF: u16 = (libc::BPF_LD | libc::BPF_H | libc::BPF_ABS) as u16;
    const EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const GREATER: u16 = (libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    [
        (LOAD_HALF, 0, 0, 12),
        (EQUAL, 0, 3, 0x0800),
        (LOAD_HALF, 0, 0, 16),
        (GREATER, 0, 1, mtu.into()),
        (RETURN, 0, 0, u32::MAX),
        (RETURN, 0, 0, 0),
    ]
}
