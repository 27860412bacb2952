//! Protocols without ports, end to end between sockets: translated by address, one conversation a protocol and remote.

use std::{net::Ipv4Addr, time::Duration};

use anyhow::{Context, Result, ensure};
use causeway_tests::{
    fabric::{INTERNET, NODE, PARTNER, VNET},
    raw_ip::RawIp,
    rig::Rig,
    talk::SILENCE,
};

/// SCTP, ESP, GRE, IP in IP, and one for experiments (RFC 3692).
const PROTOCOLS: [u8; 5] = [132, 50, 47, 4, 253];
/// The protocol's header is the sockets' business: these are none of a real one.
const QUESTION: &[u8] = b"\x01\x02\x03\x04 a question of any protocol";
const ANSWER: &[u8] = b"\x04\x03\x02\x01 and its answer";

fn talk(client: &RawIp, server: &RawIp, to: Ipv4Addr, seen: Ipv4Addr) -> Result<()> {
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

#[test]
fn to_the_internet_with_the_nodes_address_and_to_the_vnet_with_their_own() -> Result<()> {
    let rig = Rig::causeway()?;
    let pod = rig.pod("a")?;
    for protocol in PROTOCOLS {
        let client = RawIp::open(&pod.ns, protocol)?;
        for (ns, to, seen) in [
            (&rig.fabric.internet, INTERNET, NODE),
            (&rig.fabric.vnet, VNET, pod.addr),
        ] {
            let server = RawIp::open(ns, protocol)?;
            talk(&client, &server, to, seen).with_context(|| format!("protocol {protocol} to {to}"))?;
        }
    }
    Ok(())
}

#[test]
fn between_pods_and_from_outside_to_a_pod() -> Result<()> {
    let rig = Rig::causeway()?;
    let (a, b) = (rig.pod("a")?, rig.pod("b")?);
    for protocol in PROTOCOLS {
        let server = RawIp::open(&b.ns, protocol)?;
        for (ns, seen) in [
            (&a.ns, a.addr),
            (&rig.fabric.vnet, VNET),
            (&rig.fabric.partner, PARTNER),
        ] {
            let client = RawIp::open(ns, protocol)?;
            talk(&client, &server, b.addr, seen)
                .with_context(|| format!("protocol {protocol} from {seen}"))?;
        }
    }
    Ok(())
}

/// There is nothing that could tell two such flows apart when the answers come.
#[test]
fn a_second_pod_towards_the_same_remote_is_refused_by_name() -> Result<()> {
    let rig = Rig::causeway()?;
    let (a, b) = (rig.pod("a")?, rig.pod("b")?);
    for (n, protocol) in (1..).zip(PROTOCOLS) {
        let (first, second) = (RawIp::open(&a.ns, protocol)?, RawIp::open(&b.ns, protocol)?);
        let server = RawIp::open(&rig.fabric.internet, protocol)?;
        talk(&first, &server, INTERNET, NODE)?;
        second.send(INTERNET, QUESTION)?;
        ensure!(
            server.receive(Duration::from_millis(100))?.is_none(),
            "protocol {protocol}: an ambiguous packet left"
        );
        let refused = rig.node.count("snat_protocol")?;
        ensure!(refused == n, "snat_protocol counts {refused}, not {n}");
        // The first one goes on, nobody else hears of it, and towards another remote there is room.
        talk(&first, &server, INTERNET, NODE)?;
        ensure!(second.receive(Duration::from_millis(20))?.is_none());
        let elsewhere = RawIp::open(&rig.fabric.partner, protocol)?;
        talk(&second, &elsewhere, PARTNER, NODE)?;
    }
    Ok(())
}

/// What comes from outside to the node's address and is no answer stays the node's.
#[test]
fn nobody_is_answered_who_was_not_asked() -> Result<()> {
    let rig = Rig::causeway()?;
    let pod = rig.pod("a")?;
    for protocol in PROTOCOLS {
        let ears = RawIp::open(&pod.ns, protocol)?;
        let stranger = RawIp::open(&rig.fabric.partner, protocol)?;
        let server = RawIp::open(&rig.fabric.internet, protocol)?;
        talk(&ears, &server, INTERNET, NODE)?;
        stranger.send(NODE, ANSWER)?;
    }
    let ears: Vec<RawIp> = PROTOCOLS
        .iter()
        .map(|&protocol| RawIp::open(&pod.ns, protocol))
        .collect::<Result<_>>()?;
    std::thread::sleep(SILENCE / 4);
    for socket in ears {
        ensure!(socket.receive(Duration::from_millis(10))?.is_none());
    }
    Ok(())
}
