//! RFC 5382, NAT behavioral requirements for TCP: connections, whom they let in, and ICMP about them.

use std::{
    io::{ErrorKind, Read, Write},
    net::{IpAddr, Shutdown, SocketAddr, TcpListener},
    thread,
};

use anyhow::{Context, Result, ensure};
use causeway_tests::{
    capture::Capture,
    craft,
    echo::Echo,
    frame::Packet,
    netns::Netns,
    raw, rules, stream,
    talk::{PATIENCE, Tcp},
};

use crate::{
    family::{Family, of_both_families},
    mapping::{Flow, TCP, expect_seconds},
    side::{Side, agree, both},
    udp_rfc4787_paths::{EVERY_ERROR, EVERY_ERROR_OF_IPV6},
    wire::packet_of,
};

pub(crate) const PORT: u16 = 41_000;
pub(crate) const SERVER: u16 = 7100;

of_both_families!(
    req_2a_a_simultaneous_open_makes_one_connection,
    req_3_only_the_remote_of_a_mapping_comes_in,
    req_4_an_unsolicited_syn_is_refused_by_the_node,
    req_10_no_icmp_message_ends_a_connection,
    req_1_each_remote_has_a_mapping_of_its_own,
    req_2_a_connection_from_inside_opens_talks_and_closes,
    req_2_a_half_closed_connection_goes_on,
    req_4a_a_rule_of_the_node_silences_it,
    req_6_payloads_are_nobodys_business,
    req_7_two_pods_with_one_port_get_two,
    req_8_the_external_address_leads_to_the_node_itself,
    req_2_a_permitted_connection_from_outside_works,
    req_9_a_pod_is_told_that_a_host_is_unreachable,
    req_9_a_pod_learns_the_paths_mtu,
);

/// RFC 5382 REQ-1 | one mapping of an internal address and port serves every remote | a mapping for each remote address and port | the same | by design not: see RFC 4787 REQ-1
fn req_1_each_remote_has_a_mapping_of_its_own(family: Family) -> Result<()> {
    let seen = agree(family, |side| {
        let servers = [
            Echo::on(side.internet(), side.near_at(SERVER))?,
            Echo::on(side.internet(), side.far_at(SERVER))?,
        ];
        let neighbour = side.rig.pod("b")?;
        let held = side.at(&neighbour, PORT)?;
        let mut holder = Tcp::connect_from(&neighbour.ns, held, side.far_at(SERVER))?;
        holder.chat(1)?;
        for server in [side.near_at(SERVER), side.far_at(SERVER)] {
            Tcp::connect_from(&side.pod.ns, side.at(&side.pod, PORT)?, server)?.chat(1)?;
        }
        let [near, far] = servers.map(|server| server.peers());
        Ok((near[0].port() == PORT, far[1].port() == PORT))
    })?;
    ensure!(
        seen == (true, false),
        "(kept towards the one, kept towards the other): {seen:?}"
    );
    Ok(())
}

/// RFC 5382 REQ-2 | every valid sequence of segments passes, connections opened inside | handshake, data both ways, close by either side | the same | met
fn req_2_a_connection_from_inside_opens_talks_and_closes(family: Family) -> Result<()> {
    agree(family, |side| {
        let _echo = Echo::on(side.internet(), side.near_at(SERVER))?;
        for _ in 0..3 {
            let mut connection = connect(side)?;
            connection.chat(5)?;
            connection.0.shutdown(Shutdown::Write)?;
            ensure!(connection.0.read(&mut [0])? == 0, "no end of the stream");
        }
        Ok(())
    })
}

/// RFC 5382 REQ-2 (half-closed) | a connection that one side has closed goes on in the other direction | goes on, and keeps the lifetime of an established
/// one | goes on, for 60 s idle (CLOSE_WAIT) | met
fn req_2_a_half_closed_connection_goes_on(family: Family) -> Result<()> {
    let lifetimes = both(family, |side| {
        let listener = side.internet().bind(|| TcpListener::bind(side.near_at(SERVER)))?;
        let mut inside = connect(side)?.0;
        let (mut outside, _) = listener.accept()?;
        inside.write_all(b"that is all")?;
        inside.shutdown(Shutdown::Write)?;
        let mut all = Vec::new();
        outside.read_to_end(&mut all)?;
        ensure!(all == b"that is all");
        let lifetime = side.lifetime(Flow(TCP, side.at(&side.pod, PORT)?))?;
        for _ in 0..50 {
            outside.write_all(&[5; 1000])?;
        }
        drop(outside);
        let mut answer = Vec::new();
        inside.read_to_end(&mut answer)?;
        ensure!(answer.len() == 50_000, "{} bytes", answer.len());
        Ok(lifetime)
    })?;
    expect_seconds(lifetimes[0], 432_000)?;
    expect_seconds(lifetimes[1], 60)
}

/// RFC 5382 REQ-2 (from outside) | every valid sequence passes, connections opened outside where they are permitted | to the pod's own address, by hosts that
/// have a route to it; answers keep the pod's address | the same | met
fn req_2_a_permitted_connection_from_outside_works(family: Family) -> Result<()> {
    agree(family, |side| {
        let address = side.at(&side.pod, 80)?;
        let echo = Echo::on(&side.pod.ns, address)?;
        let partner = side.partner(address.ip())?;
        let mut connection = Tcp::connect(partner, address)?;
        connection.chat(10)?;
        ensure!(echo.peers() == [connection.0.local_addr()?]);
        Ok(())
    })
}

/// RFC 5382 REQ-2a | two ends that open at the same time get one connection ("simultaneous open") | a SYN from the remote of a mapping comes in,
/// the connection opens | the same | met
fn req_2a_a_simultaneous_open_makes_one_connection(family: Family) -> Result<()> {
    agree(family, |side| {
        // The pod's first SYN gets as far as the remote's door: it has made a mapping, and no answer.
        rules::ignore_syns(side.internet(), SERVER)?;
        let outside = Capture::start(side.internet(), "eth0")?;
        let (mut inner, mut outer) = thread::scope(|scope| {
            let inner = scope.spawn(|| connect(side));
            let syn = outside.wait(PATIENCE, |frame| packet_of(frame).filter(|ip| ip.protocol == TCP));
            let mapped = syn.map(|ip| SocketAddr::new(ip.src, ip.src_port));
            let outer = mapped
                .context("no SYN came out")
                .and_then(|mapped| Tcp::connect_from(side.internet(), side.near_at(SERVER), mapped));
            let inner = inner
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            anyhow::Ok((inner?, outer?))
        })?;
        let syns = outside.stop().into_iter().filter(|frame| {
            let is_syn = |ip: &Packet| ip.protocol == TCP && ip.payload()[13] & 0x12 == 2;
            frame.outgoing && packet_of(frame).as_ref().is_some_and(is_syn)
        });
        ensure!(syns.count() > 0, "the remote has sent no SYN of its own");
        let mut message = [0; 5];
        for _ in 0..20 {
            inner.0.write_all(b"there")?;
            outer.0.read_exact(&mut message)?;
            outer.0.write_all(b"again")?;
            inner.0.read_exact(&mut message)?;
        }
        Ok(())
    })
}

/// RFC 5382 REQ-3 | whom a mapping lets in: everybody, or every port of a known address | the very address and port of its connection; others meet
/// the node itself, which refuses | the same | by design not: see RFC 4787 REQ-8
fn req_3_only_the_remote_of_a_mapping_comes_in(family: Family) -> Result<()> {
    agree(family, |side| {
        let _echo = Echo::on(side.internet(), side.near_at(SERVER))?;
        let mut connection = connect(side)?;
        let inside = Capture::start(&side.pod.ns, "eth0")?;
        let mapped = side.node_at(PORT);
        for from in [side.far_at(SERVER), side.near_at(7101)] {
            ensure!(
                is_refused(side.internet(), from, mapped),
                "{from} was not refused"
            );
        }
        connection.chat(3)?;
        let strangers = inside.stop().into_iter().filter_map(|frame| packet_of(&frame));
        let strangers =
            strangers.filter(|ip| ip.protocol == TCP && ![ip.src_port, ip.dst_port].contains(&SERVER));
        ensure!(strangers.count() == 0, "a stranger's SYN came to the pod");
        Ok(())
    })
}

/// RFC 5382 REQ-4 | an unsolicited SYN from outside is not answered for 6 s, in case the inside opens at the same time | the node's own stack refuses
/// it at once: the address is the node's | the same | by design not: a SYN to the node is the node's; a connection refused late would break its
/// own clients
fn req_4_an_unsolicited_syn_is_refused_by_the_node(family: Family) -> Result<()> {
    let refused = agree(family, |side| {
        let wire = Capture::start(&side.pod.ns, "eth0")?;
        let refused = is_refused(side.internet(), side.near_at(0), side.node_at(PORT));
        ensure!(
            !wire
                .stop()
                .iter()
                .any(|frame| packet_of(frame).is_some_and(|ip| ip.protocol == TCP))
        );
        Ok(refused)
    })?;
    ensure!(refused);
    Ok(())
}

/// RFC 5382 REQ-4a | where an answer would tell too much, an unsolicited SYN is dropped silently | by a rule of the node's INPUT chain, which sees it as it
/// came | the same | met
fn req_4a_a_rule_of_the_node_silences_it(family: Family) -> Result<()> {
    agree(family, |side| {
        rules::ignore_syns(&side.rig.node.ns, PORT)?;
        let outcome = Tcp::connect_within(side.internet(), side.node_at(PORT), crate::side::A_WHILE);
        let kind = outcome.err().map(|error| error.kind());
        ensure!(kind == Some(ErrorKind::TimedOut), "{kind:?}");
        Ok(())
    })
}

/// RFC 5382 REQ-6 | application gateways for TCP, but for FTP, are off | there is none: FTP's PORT and EPRT commands pass as they are | off, unless a rule assigns a
/// helper | met
fn req_6_payloads_are_nobodys_business(family: Family) -> Result<()> {
    agree(family, |side| {
        for port in [21, 5060, 1720] {
            let server = side.near_at(port);
            let listener = side.internet().bind(|| TcpListener::bind(server))?;
            let mut inside = Tcp::connect(&side.pod.ns, server)?.0;
            let (mut outside, _) = listener.accept()?;
            outside.set_read_timeout(Some(PATIENCE))?;
            let own = side.at(&side.pod, PORT)?.ip();
            let command = match own {
                IpAddr::V4(own) => {
                    let [a, b, c, d] = own.octets();
                    format!("PORT {a},{b},{c},{d},156,64\r\nContact: <sip:a@{own}>\r\n")
                }
                IpAddr::V6(own) => format!("EPRT |2|{own}|40000|\r\nContact: <sip:a@[{own}]>\r\n"),
            };
            inside.write_all(command.as_bytes())?;
            let mut arrived = vec![0; command.len()];
            outside.read_exact(&mut arrived)?;
            ensure!(
                arrived == command.as_bytes(),
                "port {port}: {}",
                String::from_utf8_lossy(&arrived)
            );
        }
        Ok(())
    })
}

/// RFC 5382 REQ-7 | two internal endpoints never share an external port ("port overloading") | never towards one remote: the second one gets another port
/// | the same | met
fn req_7_two_pods_with_one_port_get_two(family: Family) -> Result<()> {
    let ports = agree(family, |side| {
        let echo = Echo::on(side.internet(), side.near_at(SERVER))?;
        let neighbour = side.rig.pod("b")?;
        let mut first = connect(side)?;
        let mut second = Tcp::connect_from(&neighbour.ns, side.at(&neighbour, PORT)?, side.near_at(SERVER))?;
        for _ in 0..5 {
            first.chat(1)?;
            second.chat(1)?;
        }
        let seen = echo.peers();
        Ok((seen.len(), seen[0].port() == PORT, seen[1].port() == PORT))
    })?;
    ensure!(ports == (2, true, false), "{ports:?}");
    Ok(())
}

/// RFC 5382 REQ-8 | an inside host reaches another one by that one's external address ("hairpinning") | the packet is for the node, which refuses | the
/// same | by design not: see RFC 4787 REQ-9
fn req_8_the_external_address_leads_to_the_node_itself(family: Family) -> Result<()> {
    agree(family, |side| {
        let _echo = Echo::on(side.internet(), side.near_at(SERVER))?;
        let neighbour = side.rig.pod("b")?;
        let mut connection = connect(side)?;
        let _server = Echo::on(&side.pod.ns, side.at(&side.pod, 80)?)?;
        let from = side.at(&neighbour, PORT)?;
        ensure!(is_refused(&neighbour.ns, from, side.node_at(PORT)));
        connection.chat(3)
    })
}

/// RFC 5382 REQ-9 | destination unreachable is translated for TCP | a SYN towards nowhere fails at once, with the router's reason | the same | met
fn req_9_a_pod_is_told_that_a_host_is_unreachable(family: Family) -> Result<()> {
    agree(family, |side| {
        let nowhere: IpAddr = side.of_family("192.0.2.1", "2001:db8:9::1").parse()?;
        let route = format!("route add unreachable {nowhere}");
        side.rig.fabric.router.ip(&route)?;
        let outcome = Tcp::connect_within(&side.pod.ns, SocketAddr::new(nowhere, 80), PATIENCE);
        let kind = outcome.err().map(|error| error.kind());
        // Such a route of IPv6 is one too few.
        let expected = side.of_family(ErrorKind::HostUnreachable, ErrorKind::NetworkUnreachable);
        ensure!(kind == Some(expected), "{kind:?}");
        Ok(())
    })
}

/// RFC 5382 REQ-9 (path MTU) | "fragmentation needed" is one of them (RFC 1191), and so is "packet too big" (RFC 8201) | a pod learns the MTU of a narrow hop in the middle of a
/// connection, and the stream goes on | the same | met
fn req_9_a_pod_learns_the_paths_mtu(family: Family) -> Result<()> {
    agree(family, |side| {
        let _echo = Echo::on(side.internet(), side.near_at(SERVER))?;
        let mut connection = connect(side)?;
        connection.chat(3)?;
        side.rig.fabric.router.ip(&format!(
            "route replace {} dev internet mtu lock 1300",
            side.near()
        ))?;
        stream::exchange(&side.pod.ns, side.internet(), side.near_at(SERVER + 2), 1 << 20)?;
        let to = side.near().to_string();
        let route = side.pod.ns.output("ip", &["route", "get", &to])?;
        ensure!(route.contains("mtu 1300"), "{route}");
        connection.chat(3)
    })
}

/// RFC 5382 REQ-10 | no ICMP message ends a mapping or its connection | none does, whatever its type and code | none does | met
fn req_10_no_icmp_message_ends_a_connection(family: Family) -> Result<()> {
    agree(family, |side| {
        let _echo = Echo::on(side.internet(), side.near_at(SERVER))?;
        let outside = Capture::start(side.internet(), "eth0")?;
        let mut connection = connect(side)?;
        connection.chat(3)?;
        for (kind, word) in side.of_family(EVERY_ERROR, EVERY_ERROR_OF_IPV6) {
            // The latest segment: one that the pod's TCP believes it has sent.
            let is_sent = |ip: &Packet| ip.src == side.node() && ip.protocol == TCP;
            let first = outside.wait(PATIENCE, |frame| packet_of(frame).filter(is_sent));
            let mut sent = outside.so_far().into_iter().filter_map(|frame| packet_of(&frame));
            let latest = sent.rfind(is_sent).or(first);
            let quoted = &latest.context("the server saw no segment")?.bytes.0[..side.header() + 8];
            raw::send_ip(
                side.internet(),
                &[craft::icmp(side.near(), side.node(), kind, word, quoted)?],
            )?;
            connection
                .chat(2)
                .with_context(|| format!("after an ICMP message {kind:?}"))?;
        }
        Ok(())
    })
}

pub(crate) fn connect(side: &Side) -> Result<Tcp> {
    Tcp::connect_from(&side.pod.ns, side.at(&side.pod, PORT)?, side.near_at(SERVER))
}

/// Whether a connection is answered with a RST.
fn is_refused(ns: &Netns, from: SocketAddr, to: SocketAddr) -> bool {
    let outcome = Tcp::connect_from(ns, from, to);
    let error = outcome.err().and_then(|error| {
        error
            .root_cause()
            .downcast_ref::<std::io::Error>()
            .map(std::io::Error::kind)
    });
    error == Some(ErrorKind::ConnectionRefused)
}
