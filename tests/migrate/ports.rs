//! Ports that a new flow wants while they belong to flows that are just being handed over.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddrV4},
};

use anyhow::{Context, Result, ensure};
use causeway_tests::{
    echo::Echo,
    fabric::{INTERNET, NODE},
    netns::Netns,
    talk::{Tcp, Udp},
};

use crate::{
    gate::migrate_by_steps,
    incumbent::{PORT, SERVICE_OUTSIDE, Site},
    traffic::Traffic,
};

/// A connection and a datagram flow, both from the same port.
struct Pair(Tcp, Udp);

impl Pair {
    fn open(ns: &Netns, addr: Ipv4Addr, port: u16) -> Result<Self> {
        Self::open_to(
            ns,
            SocketAddrV4::new(addr, port),
            SocketAddrV4::new(INTERNET, PORT),
        )
    }

    fn open_to(ns: &Netns, from: SocketAddrV4, to: SocketAddrV4) -> Result<Self> {
        let mut pair = Self(Tcp::connect_from(ns, from, to)?, Udp::connect_from(ns, from, to)?);
        pair.chat().with_context(|| format!("just opened from {from}"))?;
        Ok(pair)
    }

    fn chat(&mut self) -> Result<()> {
        self.0.chat(3).context("TCP")?;
        self.1.chat(3).context("UDP")
    }
}

/// Both work, and the server takes them for two.
fn assert_apart(server: &Echo, pairs: &mut [(&str, &mut Pair)]) -> Result<()> {
    server.seen();
    for (name, pair) in pairs.iter_mut() {
        pair.chat().with_context(|| name.to_string())?;
    }
    let mut seen = server.seen();
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen.len(), pairs.len(), "{seen:?}");
    Ok(())
}

#[test]
fn what_begins_while_the_node_is_taken_over_gets_no_port_of_what_was_there() -> Result<()> {
    let site = Site::new(3)?;
    let server = Echo::start(&site.fabric.internet, PORT)?;
    let [first, second, _] = &site.pods[..] else {
        unreachable!()
    };
    let mut old = Pair::open(&second.ns, second.addr, 41_000)?;
    let mut of_service = Pair::open_to(
        &second.ns,
        SocketAddrV4::new(second.addr, 41_001),
        SERVICE_OUTSIDE,
    )?;
    let mut new = Vec::new();
    let applied = migrate_by_steps(
        &site,
        "--apply",
        || Ok(()),
        || {
            for port in [41_000, 41_001] {
                new.push(Pair::open(&first.ns, first.addr, port)?);
            }
            Ok(())
        },
    )?;
    let [new, newer] = &mut new[..] else {
        unreachable!()
    };
    let mut pairs = [
        ("old", &mut old),
        ("old, of a service", &mut of_service),
        ("new", new),
        ("newer", newer),
    ];
    assert_apart(&server, &mut pairs)?;
    assert_eq!(applied["lost"], 0, "{applied}");
    site.migrate("--rollback")?;
    assert_apart(&server, &mut pairs)?;
    site.assert_no_leak();
    Ok(())
}

#[test]
fn what_begins_while_the_node_is_given_back_keeps_its_port_from_then_on() -> Result<()> {
    let site = Site::new(3)?;
    let server = Echo::start(&site.fabric.internet, PORT)?;
    let [first, second, _] = &site.pods[..] else {
        unreachable!()
    };
    site.migrate("--apply")?;
    let of_service = |port| Pair::open_to(&second.ns, SocketAddrV4::new(second.addr, port), SERVICE_OUTSIDE);
    let (mut of_service, mut another_of_service) = (of_service(42_001)?, of_service(42_002)?);
    let (mut before, mut after) = (Vec::new(), Vec::new());
    let back = migrate_by_steps(
        &site,
        "--rollback",
        || {
            before.push(Pair::open(&first.ns, first.addr, 42_000)?);
            Ok(())
        },
        || {
            after.push(Pair::open(&second.ns, second.addr, 42_000)?);
            after.push(Pair::open(&first.ns, first.addr, 42_001)?);
            // One that is over soon, and whose port is wanted again.
            Pair::open(&first.ns, first.addr, 42_002).map(drop)?;
            Ok(())
        },
    )?;
    let ([before], [after, another]) = (&mut before[..], &mut after[..]) else {
        unreachable!()
    };
    assert_eq!(back["lost"], 0, "{back}");
    let mut all = [
        ("of a service", &mut of_service),
        ("another of a service", &mut another_of_service),
        ("opened before the rule was there", before),
        ("opened when it was", after),
        ("opened then, with the port of the service's", another),
    ];
    assert_apart(&server, &mut all)?;
    site.assert_no_leak();
    // Nothing is left that would not be taken over again.
    site.migrate("--apply")?;
    assert_apart(&server, &mut all)
}

/// What the rule gives a port that a pod has already is given another, of which conntrack knows nothing yet. So the rule gives
/// that one, too.
#[test]
fn what_begins_while_the_node_is_given_back_gets_no_port_that_another_was_just_given() -> Result<()> {
    const WANTED: u16 = 44_000;
    let site = Site::new(3)?;
    let server = Echo::start(&site.fabric.internet, PORT)?;
    let [first, second, _] = &site.pods[..] else {
        unreachable!()
    };
    site.migrate("--apply")?;
    let (mut before, mut after) = (Vec::new(), Vec::new());
    let back = migrate_by_steps(
        &site,
        "--rollback",
        || {
            before.push(Pair::open(&first.ns, first.addr, WANTED)?);
            Ok(())
        },
        || {
            server.seen();
            after.push(Pair::open(&second.ns, second.addr, WANTED)?);
            let given: BTreeSet<u16> = server.seen().iter().map(SocketAddrV4::port).collect();
            ensure!(!given.contains(&WANTED), "it was given no other port");
            for port in given {
                after.push(Pair::open(&first.ns, first.addr, port)?);
            }
            Ok(())
        },
    )?;
    assert_eq!(back["lost"], 0, "{back}");
    for pair in before.iter_mut().chain(&mut after) {
        pair.chat()?;
    }
    site.assert_no_leak();
    Ok(())
}

#[test]
fn a_connection_of_the_nodes_own_that_was_given_another_port_keeps_it() -> Result<()> {
    let site = Site::new(1)?;
    let server = Echo::start(&site.fabric.internet, PORT)?;
    site.migrate("--apply")?;
    let pod = &site.pods[0];
    let mut of_pod = Pair::open(&pod.ns, pod.addr, 43_000)?;
    let mut own = Pair::open(&site.node.ns, NODE, 43_000)?;
    let back = site.migrate("--rollback")?;
    assert_eq!(back["lost"], 0, "{back}");
    let mut both = [("the pod's", &mut of_pod), ("the node's own", &mut own)];
    assert_apart(&server, &mut both)?;
    site.migrate("--apply")?;
    assert_apart(&server, &mut both)?;
    site.assert_no_leak();
    Ok(())
}

/// The pods' ports are so few that every new connection has one that was had before, by its own pod or by another.
#[test]
fn flows_of_many_pods_on_few_ports_live_through_round_trips() -> Result<()> {
    const FEW: &str = "45000 45511";
    let site = Site::new(3)?;
    for pod in &site.pods {
        pod.ns.sysctl("net/ipv4/ip_local_port_range", FEW)?;
        pod.ns.sysctl("net/ipv4/tcp_tw_reuse", "1")?;
    }
    let mut traffic = Traffic::open(&site)?;
    let outside = SocketAddrV4::new(INTERNET, PORT);
    let mut idle = Vec::new();
    for _ in 0..100 {
        let mut pair = Pair(
            Tcp::connect(&site.pods[2].ns, outside)?,
            Udp::connect(&site.pods[2].ns, outside)?,
        );
        pair.chat()?;
        idle.push(pair);
    }
    for trip in 0..3 {
        for verb in ["--apply", "--rollback"] {
            let (done, _) = traffic
                .during(&site, || site.migrate(verb))
                .with_context(|| format!("{verb} {trip}"))?;
            assert_eq!(done["lost"], 0, "{done}");
            traffic.assert_works()?;
        }
        for (at, pair) in idle.iter_mut().enumerate() {
            pair.chat()
                .with_context(|| format!("idle flow {at} after trip {trip}"))?;
        }
    }
    site.assert_no_leak();
    Ok(())
}
