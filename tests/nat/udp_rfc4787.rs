//! RFC 4787, NAT behavioral requirements for unicast UDP: mappings and their ports.

use std::{collections::BTreeSet, net::SocketAddr};

use anyhow::{Context, Result, ensure};
use causeway_tests::{
    capture::Capture,
    craft,
    echo::Echo,
    raw,
    talk::{PATIENCE, Tcp, Udp},
};

use crate::{
    family::{Family, of_both_families},
    mapping::{Flow, UDP},
    peer::Peer,
    side::{A_WHILE, Side, agree, both},
    wire::packet_of,
};

pub(crate) const PORT: u16 = 40_000;
pub(crate) const SERVER: u16 = 7000;

of_both_families!(
    req_1_each_remote_has_a_mapping_of_its_own,
    req_3_two_pods_with_one_port_get_two_towards_one_remote,
    req_3_two_pods_share_a_port_towards_two_remotes,
    section_4_2_1_a_free_port_is_kept,
    req_3a_a_replaced_port_stays_in_its_range,
    req_4_a_replaced_port_has_any_parity,
    section_4_2_3_replaced_ports_are_no_neighbours,
    req_11_conflicts_change_no_mapping,
    req_2_all_mappings_of_a_pod_have_one_address,
    req_2_every_protocol_has_the_same_address,
    req_3a_source_port_0_is_replaced_and_answered,
);

/// RFC 4787 REQ-1 | one mapping of an internal address and port serves every remote | a mapping for each remote address and
/// port; the port is kept for each of them where it can be | the same | by design not: a drop-in for MASQUERADE; it is what lets the pods
/// of a node share 64,512 ports towards each remote and not in all
fn req_1_each_remote_has_a_mapping_of_its_own(family: Family) -> Result<()> {
    let seen = agree(family, |side| {
        let (near, far) = (server(side)?, far_server(side)?);
        let neighbour = side.rig.pod("b")?;
        let (a, b) = (side.peer(&side.pod, PORT)?, side.peer(&neighbour, PORT)?);
        b.reach(&far)?;
        let (to_near, to_far) = (a.reach(&near)?, a.reach(&far)?);
        Ok((to_near == side.node_at(PORT), to_far.port() == PORT))
    })?;
    ensure!(
        seen == (true, false),
        "(kept towards the one, kept towards the other): {seen:?}"
    );
    Ok(())
}

/// RFC 4787 REQ-2 | all of a host's mappings have the same external address ("paired" pooling) | the uplink's primary address, always | the
/// same; of IPv6 the address that the kernel selects (RFC 6724), of two alike the one that was added last: new mappings differ from old ones | met
fn req_2_all_mappings_of_a_pod_have_one_address(family: Family) -> Result<()> {
    let [causeway, nf_nat] = both(family, |side| {
        let servers = [server(side)?, far_server(side)?];
        let seen_from = |port| {
            let pod = side.peer(&side.pod, port)?;
            servers
                .iter()
                .map(|server| Ok(pod.reach(server)?.ip() == side.node()))
                .collect::<Result<Vec<_>>>()
        };
        let before = seen_from(PORT)?;
        let other = side.of_family("10.240.0.99/16 dev eth0", "fd00:10::63/64 dev eth0 nodad");
        side.rig.node.ns.ip(&format!("addr add {other}"))?;
        Ok([before, seen_from(PORT + 1)?, seen_from(99)?])
    })?;
    let all = |is_first: [bool; 3]| is_first.map(|is_first| vec![is_first; 2]);
    ensure!(causeway == all([true; 3]), "Causeway: {causeway:?}");
    let of_nf_nat = all([true, family == Family::V4, family == Family::V4]);
    ensure!(nf_nat == of_nf_nat, "nf_nat: {nf_nat:?}");
    Ok(())
}

/// RFC 4787 REQ-3 | two internal endpoints never share an external port ("port overloading"): towards one remote | the second one gets
/// another port, answers go to their own | the same | met
fn req_3_two_pods_with_one_port_get_two_towards_one_remote(family: Family) -> Result<()> {
    let distinct = agree(family, |side| {
        let server = server(side)?;
        let neighbour = side.rig.pod("b")?;
        let (a, b) = (side.peer(&side.pod, PORT)?, side.peer(&neighbour, PORT)?);
        let (of_a, of_b) = (a.reach(&server)?, b.reach(&server)?);
        server.reach_by(of_a, &a)?;
        server.reach_by(of_b, &b)?;
        Ok(of_a != of_b)
    })?;
    ensure!(distinct);
    Ok(())
}

/// RFC 4787 REQ-3 (several remotes) | the same, towards different remotes | both keep the port: the remote tells them apart | the same | by
/// design not: follows from a mapping for each remote, see REQ-1; RFC 7857 section 3 allows it for TCP
fn req_3_two_pods_share_a_port_towards_two_remotes(family: Family) -> Result<()> {
    let ports = agree(family, |side| {
        let (near, far) = (server(side)?, far_server(side)?);
        let neighbour = side.rig.pod("b")?;
        let (a, b) = (side.peer(&side.pod, PORT)?, side.peer(&neighbour, PORT)?);
        let (of_a, of_b) = (a.reach(&near)?, b.reach(&far)?);
        near.reach_by(of_a, &a)?;
        far.reach_by(of_b, &b)?;
        Ok([of_a.port(), of_b.port()])
    })?;
    ensure!(ports == [PORT; 2], "{ports:?}");
    Ok(())
}

/// RFC 4787 section 4.2.1 | a port is kept where it is free ("port preservation"), and a lack of ports is no reason to reuse one | kept for first packets of
/// every protocol, whatever other pods do towards other remotes | the same | met
fn section_4_2_1_a_free_port_is_kept(family: Family) -> Result<()> {
    agree(family, |side| {
        let server = server(side)?;
        for port in [1, 53, 511, 600, 1023, 1024, 9999, 33_000, 50_001, 65_535] {
            let socket = Udp::connect_from(&side.pod.ns, side.at(&side.pod, port)?, server.addr)?;
            socket.0.send(b"mine")?;
            let mut buffer = [0; 16];
            server.socket.set_read_timeout(Some(PATIENCE))?;
            let (_, from) = server.socket.recv_from(&mut buffer)?;
            ensure!(from == side.node_at(port), "{port} became {from}");
        }
        Ok(())
    })
}

/// RFC 4787 REQ-3a | a port below 1024 is replaced by one below 1024, others by one from 1024 on | kept where it is free, otherwise drawn
/// from 1–511, 600–1023 or 1024–65535 | the same classes | met
fn req_3a_a_replaced_port_stays_in_its_range(family: Family) -> Result<()> {
    agree(family, |side| {
        let server = server(side)?;
        let neighbour = side.rig.pod("b")?;
        let classes = [
            (1, 1..=511),
            (123, 1..=511),
            (511, 1..=511),
            (512, 600..=1023),
            (1023, 600..=1023),
            (1024, 1024..=u16::MAX),
            (PORT, 1024..=u16::MAX),
            (u16::MAX, 1024..=u16::MAX),
        ];
        // All are taken before one is replaced: a replacement is drawn from the whole class and may hit one of these.
        for (port, _) in &classes {
            let kept = side.peer(&neighbour, *port)?.reach(&server)?.port();
            ensure!(kept == *port, "{port} is free and became {kept}");
        }
        for (port, class) in classes {
            let replaced = side.peer(&side.pod, port)?.reach(&server)?.port();
            ensure!(
                replaced != port && class.contains(&replaced),
                "{port} became {replaced}"
            );
        }
        Ok(())
    })
}

/// RFC 4787 REQ-3a (port 0) | a source port of 0, which means "none" (RFC 768) | becomes a port from 1 to 511, so that an answer comes back | kept:
/// 0 | met
fn req_3a_source_port_0_is_replaced_and_answered(family: Family) -> Result<()> {
    let [causeway, nf_nat] = both(family, |side| {
        let server = server(side)?;
        let (inside, outside) = (
            Capture::start(&side.pod.ns, "eth0")?,
            Capture::start(side.internet(), "eth0")?,
        );
        let from = side.at(&side.pod, 0)?;
        raw::send_ip(
            &side.pod.ns,
            &[craft::udp(from, server.addr, b"no port of mine")?],
        )?;
        let seen = outside.wait(PATIENCE, |frame| {
            packet_of(frame).filter(|ip| ip.src == side.node() && ip.dst_port == SERVER)
        });
        let port = seen.context("nothing came out")?.src_port;
        let back = craft::udp(server.addr, side.node_at(port), b"to nobody's port")?;
        raw::send_ip(side.internet(), &[back])?;
        let answer = inside.wait(A_WHILE, |frame| {
            packet_of(frame).filter(|ip| ip.src == side.near() && ip.protocol == UDP)
        });
        Ok((port, answer.map(|ip| ip.dst_port)))
    })?;
    ensure!(
        (1..=511).contains(&causeway.0) && causeway.1 == Some(0),
        "{causeway:?}"
    );
    ensure!(nf_nat.0 == 0, "nf_nat: {nf_nat:?}");
    Ok(())
}

/// RFC 4787 REQ-4 | an even port becomes an even one, an odd port an odd one | a port that is kept keeps its parity, a replacement is drawn
/// from the whole class | the same | by design not: half of the class would be lost; RFC 7857 section 8 no longer asks for it
fn req_4_a_replaced_port_has_any_parity(family: Family) -> Result<()> {
    agree(family, |side| {
        let replaced = replacements(side, 24)?;
        let kept_parity = replaced
            .iter()
            .filter(|(wanted, got)| wanted % 2 == got % 2)
            .count();
        ensure!((1..24).contains(&kept_parity), "{replaced:?}");
        Ok(())
    })
}

/// RFC 4787 section 4.2.3 | neighbouring ports of a host need not be mapped to neighbours ("port contiguity") | kept where they are free, scattered
/// otherwise | the same | met
fn section_4_2_3_replaced_ports_are_no_neighbours(family: Family) -> Result<()> {
    agree(family, |side| {
        let replaced = replacements(side, 24)?;
        let runs = replaced
            .windows(2)
            .all(|pair| pair[0].1.wrapping_add(1) == pair[1].1);
        ensure!(!runs, "{replaced:?}");
        Ok(())
    })
}

/// What becomes of `count` ports in a row that another pod holds: the port and its replacement.
pub(crate) fn replacements(side: &Side, count: u16) -> Result<Vec<(u16, u16)>> {
    let server = server(side)?;
    let neighbour = side.rig.pod("b")?;
    (PORT..PORT + count)
        .map(|port| {
            side.peer(&neighbour, port)?.reach(&server)?;
            Ok((port, side.peer(&side.pod, port)?.reach(&server)?.port()))
        })
        .collect()
}

/// RFC 4787 REQ-11 | translation and filtering never change their ways, not under a conflict of ports either | a mapping stays what it is while others
/// come and go; even its lost half comes back with the same port | a mapping stays what it is | met
fn req_11_conflicts_change_no_mapping(family: Family) -> Result<()> {
    agree(family, |side| {
        let (server, neighbour) = (server(side)?, side.rig.pod("b")?);
        let stranger = Peer::on(side.internet(), side.far_at(SERVER))?;
        let holder = side.peer(&neighbour, PORT)?;
        let held = holder.reach(&server)?;
        let pod = side.peer(&side.pod, PORT)?;
        let mapped = pod.reach(&server)?;
        for port in PORT + 1..PORT + 40 {
            side.peer(&neighbour, port)?.reach(&server)?;
            side.peer(&side.pod, port)?.reach(&server)?;
            ensure!(pod.reach(&server)? == mapped && holder.reach(&server)? == held);
        }
        if side.is_causeway() {
            side.lose_forward_half(Flow(UDP, pod.addr))?;
            ensure!(pod.reach(&server)? == mapped, "the port changed with the entry");
        }
        server.reach_by(mapped, &pod)?;
        ensure!(!stranger.does_reach(mapped, &pod)?, "the filter has changed");
        Ok(())
    })
}

/// RFC 4787 REQ-2 (TCP and ICMP) | paired pooling over all protocols of a host (RFC 7857 section 4) | one address for UDP, TCP and ping | the
/// same | met
fn req_2_every_protocol_has_the_same_address(family: Family) -> Result<()> {
    agree(family, |side| {
        let echo = Echo::on(side.internet(), side.near_at(7))?;
        let server = server(side)?;
        let wire = Capture::start(side.internet(), "eth0")?;
        let udp = side.peer(&side.pod, PORT)?.reach(&server)?;
        Tcp::connect(&side.pod.ns, side.near_at(7))?.chat(1)?;
        side.pinger(&side.pod.ns, 5)?.ping(side.near(), 1, 8)?;
        let pings: BTreeSet<_> = wire
            .stop()
            .into_iter()
            .filter_map(|frame| packet_of(&frame).filter(|ip| ip.icmp == Some(side.echo())))
            .map(|ip| ip.src)
            .collect();
        let tcp: BTreeSet<_> = echo.peers().iter().map(SocketAddr::ip).collect();
        let own = BTreeSet::from([side.node()]);
        ensure!(udp.ip() == side.node() && tcp == own && pings == own);
        Ok(())
    })
}

pub(crate) fn server(side: &Side) -> Result<Peer> {
    Peer::on(side.internet(), side.near_at(SERVER))
}

/// At the second address of the same host.
fn far_server(side: &Side) -> Result<Peer> {
    Peer::on(side.internet(), side.far_at(SERVER))
}
