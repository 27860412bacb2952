//! RFC 5508, continued: what an error does to a session, hairpinning, and the messages of the node itself.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use anyhow::{Context, Result, ensure};
use causeway_tests::{
    capture::Capture,
    craft,
    fabric::{INTERNET, NODE},
    ping::Message,
    raw, rules,
    talk::PATIENCE,
};

use crate::{
    family::{Family, of_both_families},
    icmp_rfc5508_errors::{Talk, reported},
    mapping::{Flow, UDP},
    side::{A_WHILE, Side, agree, both},
    udp_rfc4787::server,
    wire::arrival,
};

const ID: u16 = 0x1d;
const PORT: u16 = 42_000;

of_both_families!(
    req_6_an_error_neither_renews_nor_ends_a_query_session,
    req_10a_the_node_says_that_it_has_no_way,
    req_10a_the_node_answers_pings,
    req_10a_traceroute_from_a_pod_names_every_hop,
    req_7_the_node_answers_for_its_own_address,
    req_8_a_flow_without_a_port_is_dropped_silently,
    req_9_a_rule_of_the_node_silences_its_messages,
    req_10a_the_node_says_that_it_has_no_way_any_more,
    req_10a_the_node_says_that_a_packet_has_expired,
    req_10b_a_redirect_comes_to_no_pod,
    req_11_other_messages_do_not_leave,
);

/// RFC 5508 REQ-6 | an error about a query neither renews nor ends its session | it does neither | the same | met
fn req_6_an_error_neither_renews_nor_ends_a_query_session(family: Family) -> Result<()> {
    agree(family, |side| {
        let pinger = side.pinger(&side.pod.ns, ID)?;
        pinger.ping(side.near(), 1, 8)?;
        let flow = Flow(side.icmp(), side.at(&side.pod, ID)?);
        side.age(flow)?;
        let about = craft::echo(side.node(), side.near(), ID, false, &[0; 8])?;
        for kind in [side.host_unreachable(), side.expired(), side.parameter_problem()] {
            let seen = reported(side, craft::icmp(side.near(), side.node(), kind, [0; 4], &about)?)?;
            ensure!(seen.is_some(), "{kind:?} does not come in");
            ensure!(side.knows(flow)? && !side.is_renewed(flow)?, "{kind:?}");
        }
        pinger.ping(side.near(), 2, 8)?;
        ensure!(side.is_renewed(flow)?, "a ping does not renew it");
        Ok(())
    })
}

/// RFC 5508 REQ-7 | hairpinned errors pass | no packet is hairpinned (RFC 4787 REQ-9), so no error about one is; what the node says of a packet to its own address comes to the pod | the same | by design
/// not: see RFC 4787 REQ-9
fn req_7_the_node_answers_for_its_own_address(family: Family) -> Result<()> {
    agree(family, |side| {
        let talk = Talk::new(side)?;
        let neighbour = side.rig.pod("c")?;
        let inside = Capture::start(&neighbour.ns, "eth0")?;
        let asker = side.peer(&neighbour, 999)?;
        asker.socket.send_to(b"round the corner", talk.mapped)?;
        let seen = arrival(&inside, |ip| ip.icmp == Some(side.port_unreachable()));
        let seen = seen.context("the node said nothing")?;
        let expected = craft::udp(asker.addr, talk.mapped, b"round the corner")?;
        ensure!(
            seen.src == side.node() && side.is_quoted(seen.quoted(), &expected),
            "{seen:?}"
        );
        Ok(())
    })
}

/// RFC 5508 REQ-8 | a flow for which there is no room is refused with ICMP "administratively prohibited" | dropped and counted (`snat_no_port`), nobody is
/// told | dropped, nobody is told | by design not: a drop-in is silent where the rule was; the counter tells the operator
fn req_8_a_flow_without_a_port_is_dropped_silently(family: Family) -> Result<()> {
    let seen = agree(family, |side| {
        let (server, neighbour) = (server(side)?, side.rig.pod("b")?);
        // Every port of the class of 700: 600 to 1023.
        let from = |pod, port| craft::udp(side.at(pod, port)?, server.addr, b"taken");
        let all: Vec<Vec<u8>> = (600..=1023)
            .map(|port| from(&neighbour, port))
            .collect::<Result<_>>()?;
        raw::send_ip(&neighbour.ns, &all)?;
        side.settle()?;
        let (inside, outside) = (
            Capture::start(&side.pod.ns, "eth0")?,
            Capture::start(side.internet(), "eth0")?,
        );
        raw::send_ip(&side.pod.ns, &[from(&side.pod, 700)?])?;
        let left = arrival(&outside, |ip| ip.protocol == UDP).is_some();
        let told = arrival(&inside, |ip| side.is_error(ip)).is_some();
        if side.is_causeway() {
            ensure!(side.rig.node.count("snat_no_port")? == 1);
        }
        Ok((left, told))
    })?;
    ensure!(seen == (false, false), "(left, told): {seen:?}");
    Ok(())
}

/// RFC 5508 REQ-9 | a policy may forbid messages of the NAT | rules of the node's OUTPUT chain do | the same | met
fn req_9_a_rule_of_the_node_silences_its_messages(family: Family) -> Result<()> {
    agree(family, |side| {
        rules::keep_quiet(&side.rig.node.ns, side.node(), "time-exceeded")?;
        let (pod, server) = (side.peer(&side.pod, PORT)?, server(side)?);
        let ears = side.pinger(&side.pod.ns, 1)?;
        side.set_hops(&pod, 1)?;
        pod.socket.send_to(b"one hop", server.addr)?;
        let told = ears.hear(A_WHILE, |message| message.icmp.kind() == side.expired())?;
        ensure!(told.is_none(), "{told:?}");
        Ok(())
    })
}

/// RFC 5508 REQ-10a (destination unreachable) | the NAT says when it has no way to a destination (RFC 1812 section 4.3.3.1) | the node's kernel does, for first
/// packets | the same | met
fn req_10a_the_node_says_that_it_has_no_way(family: Family) -> Result<()> {
    agree(family, |side| {
        let nowhere: IpAddr = side.of_family("192.0.2.1", "2001:db8:9::1").parse()?;
        side.rig.node.ns.ip(&format!("route add unreachable {nowhere}"))?;
        let pod = side.peer(&side.pod, PORT)?;
        let ears = side.pinger(&side.pod.ns, 1)?;
        pod.socket.send_to(b"whither?", SocketAddr::new(nowhere, 9))?;
        let told = ears.hear(PATIENCE, |message| message.icmp.kind() == side.no_route())?;
        ensure!(told.context("nobody said so")?.from == side.node());
        Ok(())
    })
}

/// RFC 5508 REQ-10a (destination unreachable, carried) | the NAT says when it has no way any more | within a
/// second a carried flow's packets go to the kernel, which says so; when the way is back the flow is carried
/// again | at once | met
fn req_10a_the_node_says_that_it_has_no_way_any_more(family: Family) -> Result<()> {
    agree(family, |side| {
        let (pod, server) = (side.peer(&side.pod, PORT)?, server(side)?);
        let flow = Flow(UDP, pod.addr);
        let mapped = pod.reach(&server)?;
        server.reach_by(mapped, &pod)?;
        pod.reach(&server)?;
        let way = format!("unreachable {}", side.near());
        side.rig.node.ns.ip(&format!("route add {way}"))?;
        side.age(flow)?;
        for _ in 0..3 {
            let ears = side.pinger(&side.pod.ns, 1)?;
            ensure!(!pod.does_reach(server.addr, &server)?, "it went the old way");
            let told = ears.hear(PATIENCE, |message| message.icmp.kind() == side.no_route())?;
            ensure!(told.context("nobody said so")?.from == side.node());
        }
        side.rig.node.ns.ip(&format!("route del {way}"))?;
        side.age(flow)?;
        ensure!(pod.reach(&server)? == mapped, "the port changed meanwhile");
        server.reach_by(mapped, &pod).map(drop)
    })
}

/// RFC 5508 REQ-10a (time exceeded) | the NAT says when a packet's time to live ends there (RFC 1812 section 4.3.3.4) | the node's kernel does, for first packets and carried
/// flows, from inside; and it quotes what the pod has sent | the same | met
fn req_10a_the_node_says_that_a_packet_has_expired(family: Family) -> Result<()> {
    agree(family, |side| {
        let (pod, server) = (side.peer(&side.pod, PORT)?, server(side)?);
        let expires = |message: &[u8]| -> Result<Message> {
            let ears = side.pinger(&side.pod.ns, 1)?;
            side.set_hops(&pod, 1)?;
            pod.socket.send_to(message, server.addr)?;
            side.set_hops(&pod, 64)?;
            let told = ears.hear(PATIENCE, |message| message.icmp.kind() == side.expired())?;
            told.context("nobody said that it has expired")
        };
        for message in [&b"the first"[..], b"the third"] {
            let told = expires(message)?;
            let sent = craft::udp(pod.addr, server.addr, message)?;
            ensure!(
                told.from == side.node() && side.is_quoted(&told.payload, &sent),
                "{told:?}"
            );
            let mapped = pod.reach(&server)?;
            server.reach_by(mapped, &pod)?;
        }
        Ok(())
    })
}

/// RFC 5508 REQ-10a (echo) | the NAT answers pings to its own address | the node does, also to a pod and while a pod pings with the same identifier | the same | met
fn req_10a_the_node_answers_pings(family: Family) -> Result<()> {
    agree(family, |side| {
        let pod = side.pinger(&side.pod.ns, ID)?;
        pod.ping(side.near(), 1, 8)?;
        let outside = side.pinger(side.internet(), ID)?;
        ensure!(outside.ping(side.node(), 1, 8)?.from == side.node());
        ensure!(pod.ping(side.node(), 2, 8)?.from == side.node());
        ensure!(side.pinger(&side.rig.node.ns, ID)?.ping(side.near(), 3, 8)?.from == side.near());
        pod.ping(side.near(), 4, 8).map(drop)
    })
}

/// RFC 5508 REQ-10a (traceroute) | both together show a path | traceroute from a pod names the node, the routers and the host | the same | met
fn req_10a_traceroute_from_a_pod_names_every_hop(family: Family) -> Result<()> {
    let hops = agree(family, |side| {
        let mut hops = Vec::new();
        let ears = side.pinger(&side.pod.ns, 1)?;
        for ttl in 1..=3u16 {
            let pod = side.peer(&side.pod, PORT + ttl)?;
            side.set_hops(&pod, ttl as u8)?;
            pod.socket.send_to(&[0; 32], side.near_at(33_434 + ttl))?;
            let told = ears.hear(PATIENCE, |message| {
                [side.expired(), side.port_unreachable()].contains(&message.icmp.kind())
            })?;
            hops.push(told.with_context(|| format!("hop {ttl} says nothing"))?.from);
        }
        ensure!(hops[0] == side.node() && hops[2] == side.near(), "{hops:?}");
        Ok(hops)
    })?;
    let distinct: BTreeSet<_> = hops.iter().collect();
    ensure!(distinct.len() == 3, "{hops:?}");
    Ok(())
}

/// RFC 5508 REQ-10b | redirects, parameter problems and others may be supported | a parameter problem is translated, a redirect is not: it is for the first hop | the same | met
fn req_10b_a_redirect_comes_to_no_pod(family: Family) -> Result<()> {
    let seen = agree(family, |side| {
        let talk = Talk::new(side)?;
        let about = &talk.question(b"?")?[1];
        let comes_in = |kind, word, about: &[u8]| {
            let inside = Capture::start(&side.pod.ns, "eth0")?;
            let message = craft::icmp(side.near(), side.node(), kind, word, about)?;
            raw::send_ip(side.internet(), &[message])?;
            anyhow::Ok(arrival(&inside, |ip| ip.icmp == Some(kind)).is_some())
        };
        // Of IPv6 it names two addresses before what it is about (RFC 4861 section 4.5).
        let hops = side.of_family(vec![], [side.near(), side.near()].map(octets).concat());
        let way = side.of_family([203, 0, 113, 1], [0; 4]);
        Ok((
            comes_in(
                side.of_family((5, 1), (137, 0)),
                way,
                &[&hops, &about[..]].concat(),
            )?,
            comes_in(side.parameter_problem(), [0; 4], about)?,
        ))
    })?;
    ensure!(seen == (false, true), "(redirect, problem): {seen:?}");
    Ok(())
}

/// RFC 5508 REQ-10c | source quench and information requests should not be supported | a source quench (RFC 6633 has buried it) and an information request are translated, and ignored by who gets them |
/// the same | by design not: an error is an error, whatever its type
#[test]
fn req_10c_a_source_quench_is_an_error_like_any_other() -> Result<()> {
    let [causeway, nf_nat] = both(Family::V4, |side| {
        let talk = Talk::new(side)?;
        let quench = craft::icmp(INTERNET, NODE, (4, 0), [0; 4], &talk.question(b"?")?[1])?;
        let quenched = reported(side, quench)?.is_some();
        Ok((quenched, source_outside(side, (15, 0))?))
    })?;
    ensure!(causeway == (true, Some(true)), "Causeway: {causeway:?}");
    ensure!(nf_nat == causeway, "nf_nat: {nf_nat:?}");
    Ok(())
}

/// RFC 5508 REQ-11 | messages that are neither query nor error may be dropped | dropped: `snat_protocol` | leave with the pod's own address | met
fn req_11_other_messages_do_not_leave(family: Family) -> Result<()> {
    let [causeway, nf_nat] = both(family, |side| {
        side.of_family(
            [(9, 0), (10, 0), (40, 0), (253, 0)],
            [(133, 0), (134, 0), (100, 0), (200, 0)],
        )
        .into_iter()
        .map(|kind| source_outside(side, kind))
        .collect::<Result<Vec<_>>>()
    })?;
    ensure!(causeway == [None; 4], "Causeway: {causeway:?}");
    ensure!(nf_nat == [Some(false); 4], "nf_nat: {nf_nat:?}");
    Ok(())
}

/// Whether a pod's ICMP message comes out with the node's address; `None` when it does not come out.
fn source_outside(side: &Side, kind: (u8, u8)) -> Result<Option<bool>> {
    let outside = Capture::start(side.internet(), "eth0")?;
    let message = craft::icmp(side.addr(&side.pod)?, side.near(), kind, [0, 7, 0, 1], &[0; 12])?;
    raw::send_ip(&side.pod.ns, &[message])?;
    // Neighbours and routers of IPv6 speak ICMP, too.
    let senders = [side.addr(&side.pod)?, side.node()];
    let seen = arrival(&outside, |ip| ip.icmp == Some(kind) && senders.contains(&ip.src));
    Ok(seen.map(|ip| ip.src == side.node()))
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}
