//! Protocols without ports, end to end between sockets: translated by address, one conversation a protocol and remote.

use std::{
    net::{IpAddr, Ipv6Addr},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use causeway_tests::{
    dual_stack, fabric,
    family::{Family, of_both_families},
    netns::Netns,
    node::Pod,
    raw_ip::RawIp,
    rig::Rig,
    talk::SILENCE,
};

/// SCTP, ESP, GRE, IP in IP, and one for experiments (RFC 3692).
const PROTOCOLS: [u8; 5] = [132, 50, 47, 4, 253];
/// What tunnels of a node are made of: GRE and ESP.
const TUNNELS: [u8; 2] = [47, 50];
/// The protocol's header is the sockets' business: these are none of a real one.
const QUESTION: &[u8] = b"\x01\x02\x03\x04 a question of any protocol";
const ANSWER: &[u8] = b"\x04\x03\x02\x01 and its answer";
/// Another address of the internet's host, of IPv6.
const ELSEWHERE: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x11);

of_both_families!(
    to_the_internet_with_the_nodes_address_and_to_the_vnet_with_their_own,
    between_pods_and_from_outside_to_a_pod,
    a_second_pod_towards_the_same_remote_expect_refused_by_name,
    nobody_is_answered_who_was_not_asked,
    a_tunnel_of_the_nodes_takes_the_protocol_from_a_pod,
    a_tunnel_of_the_nodes_keeps_the_protocol_from_a_pod,
);

/// A node that masquerades the family, and whom its pods talk to.
struct Scene {
    rig: Rig,
    family: Family,
}

/// A host: its namespace, and its address.
type Host<'a> = (&'a Netns, IpAddr);

impl Scene {
    fn new(family: Family) -> Result<Self> {
        let rig = match family {
            Family::V4 => Rig::causeway()?,
            Family::V6 => {
                let rig = Rig::masquerading_ipv6()?;
                let fabric = &rig.fabric;
                fabric
                    .internet
                    .ip(&format!("addr add {ELSEWHERE}/64 dev eth0 nodad noprefixroute"))?;
                fabric.router.ip(&format!("route add {ELSEWHERE} dev internet"))?;
                rig
            }
        };
        Ok(Self { rig, family })
    }

    fn addr(&self, pod: &Pod) -> Result<IpAddr> {
        match self.family {
            Family::V4 => Ok(pod.addr.into()),
            Family::V6 => pod.addr_v6().map(IpAddr::from),
        }
    }

    fn node(&self) -> Host<'_> {
        let addr = self.of_family(fabric::NODE.into(), dual_stack::NODE.into());
        (&self.rig.node.ns, addr)
    }

    fn vnet(&self) -> Host<'_> {
        let addr = self.of_family(fabric::VNET.into(), dual_stack::VNET.into());
        (&self.rig.fabric.vnet, addr)
    }

    fn internet(&self) -> Host<'_> {
        let addr = self.of_family(fabric::INTERNET.into(), dual_stack::INTERNET.into());
        (&self.rig.fabric.internet, addr)
    }

    /// Another remote towards which pods are translated.
    fn elsewhere(&self) -> Host<'_> {
        let fabric = &self.rig.fabric;
        match self.family {
            Family::V4 => (&fabric.partner, fabric::PARTNER.into()),
            Family::V6 => (&fabric.internet, ELSEWHERE.into()),
        }
    }

    /// The same, with a route to a pod.
    fn partner(&self, pod: &Pod) -> Result<Host<'_>> {
        if self.family == Family::V6 {
            let route = format!("route add {} via fe80::1 dev eth0", pod.addr_v6()?);
            self.rig.fabric.internet.ip(&route)?;
        }
        Ok(self.elsewhere())
    }

    fn of_family<T>(&self, of_ipv4: T, of_ipv6: T) -> T {
        match self.family {
            Family::V4 => of_ipv4,
            Family::V6 => of_ipv6,
        }
    }

    fn of_pod(&self, pod: &Pod, protocol: u8) -> Result<RawIp> {
        RawIp::on(&pod.ns, protocol, self.addr(pod)?)
    }

    /// Fails unless a pod's question stays on the node, for the reason that somebody else has the protocol.
    fn expect_refused(&self, client: &RawIp, (server, to): (&RawIp, IpAddr)) -> Result<()> {
        let before = self.rig.node.count("snat_protocol")?;
        client.send(to, QUESTION)?;
        let left = server.receive(Duration::from_millis(100))?;
        ensure!(left.is_none(), "an ambiguous packet left: {left:?}");
        let refused = self.rig.node.count("snat_protocol")? - before;
        ensure!(refused == 1, "snat_protocol counts {refused}");
        Ok(())
    }
}

fn talk(client: &RawIp, server: &RawIp, to: IpAddr, seen: IpAddr) -> Result<()> {
    for _ in 0..10 {
        client.send(to, QUESTION)?;
        let from = server.expect(QUESTION).context("the server")?;
        ensure!(from == seen, "the server saw {from}");
        server.send(from, ANSWER)?;
        let from = client.expect(ANSWER).context("the client")?;
        ensure!(from == to, "{from} answered for {to}");
    }
    Ok(())
}

/// Fails if anything comes.
fn expect_silence(socket: &RawIp) -> Result<()> {
    let heard = socket.receive(Duration::from_millis(20))?;
    ensure!(heard.is_none(), "{heard:?}");
    Ok(())
}

fn to_the_internet_with_the_nodes_address_and_to_the_vnet_with_their_own(family: Family) -> Result<()> {
    let scene = Scene::new(family)?;
    let pod = scene.rig.pod("a")?;
    for protocol in PROTOCOLS {
        let client = scene.of_pod(&pod, protocol)?;
        for ((ns, to), seen) in [
            (scene.internet(), scene.node().1),
            (scene.vnet(), scene.addr(&pod)?),
        ] {
            let server = RawIp::on(ns, protocol, to)?;
            talk(&client, &server, to, seen).with_context(|| format!("protocol {protocol} to {to}"))?;
        }
    }
    Ok(())
}

fn between_pods_and_from_outside_to_a_pod(family: Family) -> Result<()> {
    let scene = Scene::new(family)?;
    let (a, b) = (scene.rig.pod("a")?, scene.rig.pod("b")?);
    let (to, partner) = (scene.addr(&b)?, scene.partner(&b)?);
    for protocol in PROTOCOLS {
        let server = scene.of_pod(&b, protocol)?;
        for (ns, seen) in [(&a.ns, scene.addr(&a)?), scene.vnet(), partner] {
            let client = RawIp::on(ns, protocol, seen)?;
            talk(&client, &server, to, seen).with_context(|| format!("protocol {protocol} from {seen}"))?;
        }
    }
    Ok(())
}

/// There is nothing that could tell two such flows apart when the answers come.
fn a_second_pod_towards_the_same_remote_expect_refused_by_name(family: Family) -> Result<()> {
    let scene = Scene::new(family)?;
    let (a, b) = (scene.rig.pod("a")?, scene.rig.pod("b")?);
    let (internet, elsewhere) = (scene.internet(), scene.elsewhere());
    let node = scene.node().1;
    for protocol in PROTOCOLS {
        let (first, second) = (scene.of_pod(&a, protocol)?, scene.of_pod(&b, protocol)?);
        let server = RawIp::on(internet.0, protocol, internet.1)?;
        talk(&first, &server, internet.1, node)?;
        scene
            .expect_refused(&second, (&server, internet.1))
            .with_context(|| format!("protocol {protocol}"))?;
        // The first one goes on, nobody else hears of it, and towards another remote there is room.
        talk(&first, &server, internet.1, node)?;
        expect_silence(&second)?;
        let other = RawIp::on(elsewhere.0, protocol, elsewhere.1)?;
        talk(&second, &other, elsewhere.1, node)?;
    }
    Ok(())
}

/// What comes from outside to the node's address and is no answer stays the node's.
fn nobody_is_answered_who_was_not_asked(family: Family) -> Result<()> {
    let scene = Scene::new(family)?;
    let pod = scene.rig.pod("a")?;
    let (internet, elsewhere) = (scene.internet(), scene.elsewhere());
    let node = scene.node().1;
    for protocol in PROTOCOLS {
        let ears = scene.of_pod(&pod, protocol)?;
        let stranger = RawIp::on(elsewhere.0, protocol, elsewhere.1)?;
        let server = RawIp::on(internet.0, protocol, internet.1)?;
        talk(&ears, &server, internet.1, node)?;
        stranger.send(node, ANSWER)?;
    }
    let ears: Vec<RawIp> = PROTOCOLS
        .iter()
        .map(|&protocol| scene.of_pod(&pod, protocol))
        .collect::<Result<_>>()?;
    std::thread::sleep(SILENCE / 4);
    ears.iter().try_for_each(expect_silence)
}

/// The node has one address and the protocol no ports: what the node itself begins ends the pod's conversation.
fn a_tunnel_of_the_nodes_takes_the_protocol_from_a_pod(family: Family) -> Result<()> {
    let scene = Scene::new(family)?;
    let pod = scene.rig.pod("a")?;
    let ((node, seen), (internet, to)) = (scene.node(), scene.internet());
    for protocol in TUNNELS {
        let (client, server) = (scene.of_pod(&pod, protocol)?, RawIp::on(internet, protocol, to)?);
        let tunnel = RawIp::on(node, protocol, seen)?;
        talk(&client, &server, to, seen).context("the pod")?;
        expect_silence(&tunnel).context("the tunnel, before it begins")?;
        talk(&tunnel, &server, to, seen).context("the tunnel")?;
        scene.expect_refused(&client, (&server, to))?;
        talk(&tunnel, &server, to, seen).context("the tunnel, after the pod was refused")?;
        expect_silence(&client).context("the pod")?;
    }
    Ok(())
}

/// Where a tunnel of the node's is, no pod's conversation begins; elsewhere there is room.
fn a_tunnel_of_the_nodes_keeps_the_protocol_from_a_pod(family: Family) -> Result<()> {
    let scene = Scene::new(family)?;
    let pod = scene.rig.pod("a")?;
    let ((node, seen), (internet, to)) = (scene.node(), scene.internet());
    let elsewhere = scene.elsewhere();
    for protocol in TUNNELS {
        let (client, server) = (scene.of_pod(&pod, protocol)?, RawIp::on(internet, protocol, to)?);
        let tunnel = RawIp::on(node, protocol, seen)?;
        talk(&tunnel, &server, to, seen).context("the tunnel")?;
        scene.expect_refused(&client, (&server, to))?;
        let other = RawIp::on(elsewhere.0, protocol, elsewhere.1)?;
        talk(&client, &other, elsewhere.1, seen).context("the pod, elsewhere")?;
        talk(&tunnel, &server, to, seen).context("the tunnel, after the pod was refused")?;
        expect_silence(&client).context("the pod")?;
    }
    Ok(())
}
