//! A route traced from a pod: every hop answers for the packet that expired there, and the answer names the pod's own packet.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddrV4, UdpSocket},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use causeway_tests::{
    fabric::NODE,
    netns::Netns,
    node::Pod,
    ping::{Message, Pinger},
    rig::Rig,
    site::{INSIDE, OUTSIDE, Site},
    talk::SILENCE,
};
use etherparse::{
    IcmpEchoHeader, Icmpv4Type, Ipv4HeaderSlice,
    icmpv4::{DestUnreachableHeader, TimeExceededCode},
};
use rustix::{
    io::Errno,
    net::{
        AddressFamily, SocketFlags, SocketType, socket_with,
        sockopt::{set_ip_ttl, socket_error},
    },
};

/// Routers on the way: the node, the fabric, the site's gate.
const ROUTERS: u32 = 3;
/// A port that nobody listens on; traceroute's first.
const NOBODY: u16 = 33_434;
const FROM: u16 = 40_000;

struct Scene {
    rig: Rig,
    pod: Pod,
    site: Site,
    ears: Pinger,
}

impl Scene {
    fn new() -> Result<Self> {
        let rig = Rig::causeway()?;
        let (pod, site) = (rig.pod("a")?, Site::behind(&rig.fabric)?);
        // A host is told no more than once a second, by default, after the first six times.
        for ns in [&rig.node.ns, &rig.fabric.router, &site.gate, &site.server] {
            ns.sysctl("net/ipv4/icmp_ratelimit", "0")?;
        }
        let ears = Pinger::new(&pod.ns, 4242)?;
        Ok(Self { rig, pod, site, ears })
    }

    fn routers(&self) -> [&Netns; ROUTERS as usize] {
        [&self.rig.node.ns, &self.rig.fabric.router, &self.site.gate]
    }

    /// Waits for the router that many hops away to say that the packet has expired, and quote it as the pod sent it.
    fn expect_expired(&self, hops: u32, sent: &Quoted) -> Result<()> {
        let expired = Icmpv4Type::TimeExceeded(TimeExceededCode::TtlExceededInTransit);
        let heard = self.ears.hear(SILENCE, |message| message.icmp == expired)?;
        let heard = heard.with_context(|| format!("nobody said that {sent:?} expired"))?;
        ensure!(
            quoted(&heard).as_ref() == Some(sent),
            "{:?} expired, not {sent:?}",
            quoted(&heard)
        );
        let router = self.routers()[hops as usize - 1];
        ensure!(
            addresses(router)?.contains(&heard.from),
            "hop {hops} answers as {}",
            heard.from
        );
        ensure!(
            hops > 1 || heard.from == NODE,
            "the node answers as {}",
            heard.from
        );
        Ok(())
    }

    /// The server itself answers for `sent`.
    fn expect_arrived(&self, to: Ipv4Addr, sent: &Quoted) -> Result<()> {
        let unreachable = Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::Port);
        let heard = self.ears.hear(SILENCE, |message| message.icmp == unreachable)?;
        let heard = heard.with_context(|| format!("the server did not say that nobody takes {sent:?}"))?;
        ensure!(
            heard.from == to && quoted(&heard).as_ref() == Some(sent),
            "{heard:?}"
        );
        Ok(())
    }
}

/// What an error quotes: both ends and the protocol; for ICMP the identifier and the sequence number in place of ports.
#[derive(Debug, PartialEq, Eq)]
struct Quoted {
    protocol: u8,
    from: SocketAddrV4,
    to: SocketAddrV4,
}

fn quoted(message: &Message) -> Option<Quoted> {
    let ip = Ipv4HeaderSlice::from_slice(&message.payload).ok()?;
    let start = message.payload.get(ip.slice().len()..)?;
    let at = if ip.protocol().0 == 1 { 4 } else { 0 };
    let port = |at: usize| Some(u16::from_be_bytes([*start.get(at)?, *start.get(at + 1)?]));
    Some(Quoted {
        protocol: ip.protocol().0,
        from: SocketAddrV4::new(ip.source_addr(), port(at)?),
        to: SocketAddrV4::new(ip.destination_addr(), port(at + 2)?),
    })
}

fn addresses(ns: &Netns) -> Result<Vec<IpAddr>> {
    let interfaces = ns.json("ip", &["-j", "-4", "addr", "show"])?;
    let infos = interfaces
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|interface| interface["addr_info"].as_array());
    infos
        .flatten()
        .filter_map(|info| info["local"].as_str())
        .map(|text| Ok(text.parse()?))
        .collect()
}

/// As `traceroute` does, every probe a flow of its own; then as `tracepath` and `mtr` do, all in one flow, which is carried from
/// its first packet that gets beyond the node.
#[test]
fn with_udp() -> Result<()> {
    let scene = Scene::new()?;
    for to in [OUTSIDE, INSIDE] {
        let from = SocketAddrV4::new(scene.pod.addr, FROM);
        let socket = scene.pod.ns.bind(|| UdpSocket::bind(from))?;
        let probe = |hops: u32, port: u16| -> Result<Quoted> {
            let to = SocketAddrV4::new(to, port);
            socket.set_ttl(hops)?;
            socket.send_to(b"where are you?", to)?;
            Ok(Quoted {
                protocol: 17,
                from,
                to,
            })
        };
        for spread in [1, 1, 1, 0, 0, 0] {
            for (hops, port) in (1..=ROUTERS).zip((NOBODY..).step_by(spread.max(1))) {
                let port = if spread == 0 { NOBODY + 99 } else { port };
                scene
                    .expect_expired(hops, &probe(hops, port)?)
                    .with_context(|| format!("UDP to {to}"))?;
            }
            scene.expect_arrived(to, &probe(ROUTERS + 1, NOBODY + 9)?)?;
        }
    }
    Ok(())
}

#[test]
fn with_icmp() -> Result<()> {
    let scene = Scene::new()?;
    for to in [OUTSIDE, INSIDE] {
        let id = u16::from_be_bytes([0x77, to.octets()[0]]);
        let pinger = Pinger::new(&scene.pod.ns, id)?;
        for round in 0..3u16 {
            for hops in 1..=ROUTERS {
                let sequence = round << 8 | hops as u16;
                pinger.set_ttl(hops as u8)?;
                pinger.send(to, sequence, b"where are you?")?;
                let sent = Quoted {
                    protocol: 1,
                    from: SocketAddrV4::new(scene.pod.addr, id),
                    to: SocketAddrV4::new(to, sequence),
                };
                scene
                    .expect_expired(hops, &sent)
                    .with_context(|| format!("ICMP to {to}"))?;
            }
            pinger.set_ttl(ROUTERS as u8 + 1)?;
            pinger.send(to, 0xffff, b"there?")?;
            let here = Icmpv4Type::EchoReply(IcmpEchoHeader { id, seq: 0xffff });
            let heard = pinger.hear(SILENCE, |message| message.icmp == here)?;
            ensure!(heard.is_some_and(|heard| heard.from == to), "{to} did not answer");
        }
    }
    Ok(())
}

/// `traceroute -T`: a SYN a hop. The server refuses the last one, and the refusal gets back.
#[test]
fn with_tcp() -> Result<()> {
    let scene = Scene::new()?;
    for to in [OUTSIDE, INSIDE] {
        let to = SocketAddrV4::new(to, 81);
        for (hops, port) in (1..=ROUTERS + 1).zip(FROM..) {
            let from = SocketAddrV4::new(scene.pod.addr, port);
            let socket = scene.pod.ns.bind(|| {
                let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
                let socket = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
                set_ip_ttl(&socket, hops)?;
                rustix::net::bind(&socket, &from)?;
                Ok(socket)
            })?;
            let begun = rustix::net::connect(&socket, &to);
            ensure!(begun == Err(Errno::INPROGRESS), "{begun:?}");
            if hops <= ROUTERS {
                let sent = Quoted {
                    protocol: 6,
                    from,
                    to,
                };
                scene
                    .expect_expired(hops, &sent)
                    .with_context(|| format!("TCP to {to}"))?;
            } else {
                std::thread::sleep(Duration::from_millis(100));
                let refused = socket_error(&socket)?;
                ensure!(refused == Err(Errno::CONNREFUSED), "{to}: {refused:?}");
            }
        }
    }
    Ok(())
}
