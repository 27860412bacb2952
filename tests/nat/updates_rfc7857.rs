//! RFC 7857, updates to the requirements of the other three.

use std::{io::Read, net::Shutdown, time::Duration};

use anyhow::{Context, Result, ensure};
use causeway_tests::{
    capture::Capture,
    craft,
    echo::Echo,
    raw, rules,
    talk::{PATIENCE, Tcp},
};
use rustix::net::sockopt::set_socket_linger;

use crate::{
    family::{Family, of_both_families},
    mapping::{Flow, TCP, UDP, expect_seconds, sysctl},
    peer::Peer,
    side::{Side, agree, both, both_with},
    udp_rfc4787::{replacements, server},
    udp_rfc4787_timers::Idle,
    wire::{all_received, packet_of},
};

const PORT: u16 = 43_000;
const SERVER: u16 = 7100;

of_both_families!(
    section_2_2_a_reset_session_is_remembered_for_four_minutes,
    section_6_a_mapping_of_udp_lets_no_tcp_in,
    section_7_1_a_pods_icmp_error_renews_nothing,
    section_2_a_session_is_closing_when_both_have_closed,
    section_2_1_opening_and_closing_have_timers_of_their_own,
    section_2_2_a_forged_reset_costs_nothing,
    section_3_connections_to_two_remotes_share_a_port,
    section_5_udp_and_tcp_have_mappings_of_their_own,
    section_7_what_is_kept_out_renews_nothing,
    section_7_1_a_pods_reset_gives_no_session_more_time,
    section_9_replaced_ports_cannot_be_guessed,
    section_11_a_query_mapping_is_its_session,
    section_12_a_ping_to_the_external_address_is_the_nodes,
);

/// RFC 7857 section 2 | a TCP session is established when both have sent a SYN, and closing when both have sent a FIN | lifetimes established, after one
/// FIN, after both: 5 days, 5 days, 240 s | 5 days, 60 s, 120 s | met
fn section_2_a_session_is_closing_when_both_have_closed(family: Family) -> Result<()> {
    let lifetimes = both(family, |side| {
        rules::send_no_resets(side.internet())?;
        let listener = side
            .internet()
            .bind(|| std::net::TcpListener::bind(side.near_at(SERVER)))?;
        let inside = connect(side)?;
        let (mut outside, _) = listener.accept()?;
        let flow = Flow(TCP, inside.0.local_addr()?);
        let established = side.lifetime(flow)?;
        inside.0.shutdown(Shutdown::Write)?;
        ensure!(outside.read(&mut [0])? == 0);
        let half_closed = side.lifetime(flow)?;
        drop((outside, inside));
        side.settle()?;
        Ok([established, half_closed, side.lifetime(flow)?])
    })?;
    let expected = [432_000, 432_000, 240, 432_000, 60, 120];
    for (seconds, expected) in lifetimes.into_iter().flatten().zip(expected) {
        expect_seconds(seconds, expected)?;
    }
    Ok(())
}

/// RFC 7857 section 2.1 | the timers of opening and of closing are configurable apart from each other | by `nf_conntrack_tcp_timeout_syn_sent` and `…_time_wait`, not below 240 s | by the
/// same | met
fn section_2_1_opening_and_closing_have_timers_of_their_own(family: Family) -> Result<()> {
    let [opening, closing] = [sysctl("tcp_timeout_syn_sent"), sysctl("tcp_timeout_time_wait")];
    let lifetimes = both_with(family, &[(&opening, "290"), (&closing, "280")], |side| {
        let _echo = Echo::on(side.internet(), side.near_at(SERVER))?;
        rules::ignore_syns(side.internet(), SERVER + 1)?;
        rules::send_no_resets(side.internet())?;
        let from = side.at(&side.pod, PORT + 1)?;
        let silent = side.near_at(SERVER + 1);
        let syn = craft::TcpFlags {
            syn: true,
            ..Default::default()
        };
        raw::send_ip(&side.pod.ns, &[craft::tcp(from, silent, syn, &[])?])?;
        let mut connection = connect(side)?;
        connection.0.shutdown(Shutdown::Write)?;
        ensure!(connection.0.read(&mut [0])? == 0);
        side.settle()?;
        Ok([
            side.lifetime(Flow(TCP, from))?,
            side.lifetime(Flow(TCP, connection.0.local_addr()?))?,
        ])
    })?;
    for [opening, closing] in lifetimes {
        expect_seconds(opening, 290)?;
        expect_seconds(closing, 280)?;
    }
    Ok(())
}

/// RFC 7857 section 2.2 | a RST is translated, and the session is remembered for another 4 min | 240 s | 10 s (`nf_conntrack_tcp_timeout_close`) | met
fn section_2_2_a_reset_session_is_remembered_for_four_minutes(family: Family) -> Result<()> {
    let lifetimes = both(family, |side| {
        let _echo = Echo::on(side.internet(), side.near_at(SERVER))?;
        let outside = Capture::start(side.internet(), "eth0")?;
        let mut connection = connect(side)?;
        connection.chat(2)?;
        let flow = Flow(TCP, connection.0.local_addr()?);
        set_socket_linger(&connection.0, Some(Duration::ZERO))?;
        drop(connection);
        let reset = outside.wait(PATIENCE, |frame| {
            packet_of(frame).filter(|ip| ip.protocol == TCP && ip.payload()[13] & 4 != 0)
        });
        let reset = reset.context("no RST came out")?;
        ensure!(
            (reset.src, reset.src_port, reset.checksums_good) == (side.node(), PORT, true),
            "{reset:?}"
        );
        side.lifetime(flow)
    })?;
    expect_seconds(lifetimes[0], 240)?;
    expect_seconds(lifetimes[1], 10)
}

/// RFC 7857 section 2.2 (forged) | a RST that the ends do not believe costs the session nothing | when data follow it the session is an established one again | conntrack
/// checks the sequence number: INVALID | met
fn section_2_2_a_forged_reset_costs_nothing(family: Family) -> Result<()> {
    let lifetimes = both(family, |side| {
        let _echo = Echo::on(side.internet(), side.near_at(SERVER))?;
        let mut connection = connect(side)?;
        connection.chat(2)?;
        let flow = Flow(TCP, connection.0.local_addr()?);
        let forged = craft::TcpFlags {
            seq: 0x0bad_5e9a,
            rst: true,
            ..Default::default()
        };
        raw::send_ip(
            side.internet(),
            &[craft::tcp(side.near_at(SERVER), side.node_at(PORT), forged, &[])?],
        )?;
        side.settle()?;
        side.age(flow)?;
        connection.chat(3)?;
        let lifetime = if side.is_causeway() {
            side.lifetime(flow)?
        } else {
            u32::from(side.is_renewed(flow)?)
        };
        connection.chat(3)?;
        Ok(lifetime)
    })?;
    expect_seconds(lifetimes[0], 432_000)?;
    ensure!(lifetimes[1] == 1, "nf_nat gave the session up");
    Ok(())
}

/// RFC 7857 section 3 | connections to different remotes may share an external port, told apart by all five fields | they do | the same | met
fn section_3_connections_to_two_remotes_share_a_port(family: Family) -> Result<()> {
    agree(family, |side| {
        let (near, far) = (
            Echo::on(side.internet(), side.near_at(SERVER))?,
            Echo::on(side.internet(), side.far_at(SERVER))?,
        );
        let neighbour = side.rig.pod("b")?;
        let mut one = connect(side)?;
        let mut other = Tcp::connect_from(&neighbour.ns, side.at(&neighbour, PORT)?, side.far_at(SERVER))?;
        for _ in 0..5 {
            one.chat(1)?;
            other.chat(1)?;
        }
        let shared = side.node_at(PORT);
        ensure!(near.peers() == [shared] && far.peers() == [shared]);
        Ok(())
    })
}

/// RFC 7857 section 5 | mappings of UDP and of TCP are independent of each other | they are: a port that TCP holds is free for UDP | the same | met
fn section_5_udp_and_tcp_have_mappings_of_their_own(family: Family) -> Result<()> {
    agree(family, |side| {
        let echo = Echo::on(side.internet(), side.near_at(SERVER))?;
        let neighbour = side.rig.pod("b")?;
        let mut tcp = Tcp::connect_from(&neighbour.ns, side.at(&neighbour, PORT)?, side.near_at(SERVER))?;
        let udp = causeway_tests::talk::Udp::connect_from(
            &side.pod.ns,
            side.at(&side.pod, PORT)?,
            side.near_at(SERVER),
        )?;
        udp.chat(3)?;
        tcp.chat(3)?;
        let seen = echo.peers();
        ensure!(seen.iter().all(|peer| *peer == side.node_at(PORT)), "{seen:?}");
        Ok(())
    })
}

/// RFC 7857 section 6 | filters of UDP and of TCP are independent of each other | a mapping lets its own protocol in | the same | met
fn section_6_a_mapping_of_udp_lets_no_tcp_in(family: Family) -> Result<()> {
    agree(family, |side| {
        let (pod, server) = (side.peer(&side.pod, PORT)?, server(side)?);
        pod.reach(&server)?;
        let _listener = Echo::on(&side.pod.ns, side.at(&side.pod, PORT + 1)?)?;
        let inside = Capture::start(&side.pod.ns, "eth0")?;
        let caller = Tcp::connect_from(side.internet(), server.addr, side.node_at(PORT));
        ensure!(caller.is_err(), "TCP came in");
        ensure!(
            !inside
                .stop()
                .iter()
                .any(|frame| packet_of(frame).is_some_and(|ip| ip.protocol == TCP))
        );
        Ok(())
    })
}

/// RFC 7857 section 7 | a packet that the filter keeps out renews no mapping | it renews none | the same | met
fn section_7_what_is_kept_out_renews_nothing(family: Family) -> Result<()> {
    agree(family, |side| {
        let idle = Idle::new(side)?;
        let stranger = Peer::on(side.internet(), side.far_at(7000))?;
        ensure!(!stranger.does_reach(idle.mapped, &idle.pod)?);
        ensure!(!side.is_renewed(idle.flow)?, "renewed by a stranger");
        Ok(())
    })
}

/// RFC 7857 section 7.1 (ICMP) | an ICMP error that a host sends about an incoming packet renews no mapping | it renews none | the same | met
fn section_7_1_a_pods_icmp_error_renews_nothing(family: Family) -> Result<()> {
    agree(family, |side| {
        let idle = Idle::new(side)?;
        let outside = Capture::start(side.internet(), "eth0")?;
        let about = craft::udp(idle.server.addr, idle.pod.addr, b"unwanted")?;
        raw::send_ip(
            &side.pod.ns,
            &[craft::icmp(
                side.addr(&side.pod)?,
                side.near(),
                side.port_unreachable(),
                [0; 4],
                &about,
            )?],
        )?;
        let error = outside.wait(PATIENCE, |frame| {
            packet_of(frame).filter(|ip| ip.icmp == Some(side.port_unreachable()))
        });
        ensure!(error.context("the error does not come out")?.src == side.node());
        ensure!(!side.is_renewed(idle.flow)?, "renewed by an error");
        Ok(())
    })
}

/// RFC 7857 section 7.1 (RST) | nor does a RST that a host sends so | it leaves the session the 240 s of section 2.2, never more | 10 s | met
fn section_7_1_a_pods_reset_gives_no_session_more_time(family: Family) -> Result<()> {
    let lifetimes = both(family, |side| {
        let _echo = Echo::on(side.internet(), side.near_at(SERVER))?;
        let mut connection = connect(side)?;
        connection.chat(2)?;
        let flow = Flow(TCP, connection.0.local_addr()?);
        let before = side.lifetime(flow)?;
        set_socket_linger(&connection.0, Some(Duration::ZERO))?;
        drop(connection);
        side.settle()?;
        let once = side.lifetime(flow)?;
        // The remote does not know yet, and is told again.
        let late = craft::TcpFlags {
            seq: 1,
            ack: Some(1),
            ..Default::default()
        };
        raw::send_ip(
            side.internet(),
            &[craft::tcp(
                side.near_at(SERVER),
                side.node_at(PORT),
                late,
                b"late",
            )?],
        )?;
        side.settle()?;
        Ok([before, once, side.lifetime(flow)?])
    })?;
    for (seconds, expected) in lifetimes
        .into_iter()
        .flatten()
        .zip([432_000, 240, 240, 432_000, 10, 10])
    {
        expect_seconds(seconds, expected)?;
    }
    Ok(())
}

/// RFC 7857 section 9 | a port that has to be replaced is replaced by one that cannot be guessed (RFC 6056) | by a hash with the node's secret seed: two nodes choose differently | at random | met
fn section_9_replaced_ports_cannot_be_guessed(family: Family) -> Result<()> {
    let [one, other] = [
        both(family, |side| replacements(side, 8))?,
        both(family, |side| replacements(side, 8))?,
    ];
    for (one, other) in one.into_iter().zip(other) {
        let same = one.iter().zip(&other).filter(|(one, other)| one == other).count();
        ensure!(same < 4, "{one:?} and {other:?}");
    }
    Ok(())
}

/// RFC 7857 section 10 | the identification of translated packets stays unique for their new source (RFC 6864 section 5.3.1) | it is the pod's own: two pods may use one
/// value towards one remote at a time | the same | by design not: the kernel's NAT leaves it; today's stacks send packets that may
/// not be fragmented, of which it means nothing (RFC 6864 section 4.1)
#[test]
fn section_10_the_identification_is_the_pods() -> Result<()> {
    agree(Family::V4, |side| {
        let server = server(side)?;
        let neighbour = side.rig.pod("b")?;
        let outside = Capture::start(side.internet(), "eth0")?;
        for _ in 0..3 {
            for pod in [&side.pod, &neighbour] {
                let packet = craft::udp(side.at(pod, PORT)?, server.addr, b"whose?")?;
                raw::send_ip(&pod.ns, &[packet])?;
            }
        }
        side.settle()?;
        let ids = outside
            .stop()
            .into_iter()
            .filter_map(|frame| frame.ip.filter(|ip| ip.protocol == UDP));
        let ids: Vec<u16> = ids.map(|ip| ip.id).collect();
        ensure!(ids == [craft::ID; 6], "{ids:?}");
        Ok(())
    })
}

/// RFC 7857 section 10 (IPv6) | the same of IPv6, where only fragments have an identification | of a carried flow it is the pod's own, first packets are the
/// kernel's business | the node's: it puts fragments together and parts them again under another | by design not: a packet program
/// holds no packets; Linux draws 32 bits at random, so that two pods hardly meet in one value
#[test]
fn section_10_the_identification_of_fragments_is_the_pods() -> Result<()> {
    const ID: u16 = 7857;
    let [causeway, nf_nat] = both(Family::V6, |side| {
        let (server, neighbour) = (server(side)?, side.rig.pod("b")?);
        let outside = Capture::start(side.internet(), "eth0")?;
        let message = [0x5a; 3000];
        for (pod, port) in [(&side.pod, PORT), (&neighbour, PORT + 1)] {
            let socket = side.peer(pod, port)?;
            let mapped = socket.reach(&server)?;
            server.reach_by(mapped, &socket)?;
            socket.reach(&server)?;
            let whole = craft::udp(socket.addr, server.addr, &message)?;
            raw::send_ip(&pod.ns, &craft::fragments(&whole, 1500, ID)?)?;
            let from = server.hear(&message, PATIENCE)?;
            ensure!(from == Some(mapped), "{from:?}");
        }
        side.settle()?;
        let fragments = all_received(&outside, |ip| ip.fragment);
        // RFC 8200 section 4.5: the last four bytes of the header behind the first one.
        let ids = fragments.iter().map(|ip| ip.bytes.0[44..48].try_into());
        Ok(ids.collect::<Result<Vec<[u8; 4]>, _>>()?)
    })?;
    let own = u32::from(ID).to_be_bytes();
    ensure!(causeway == [own; 6], "Causeway: {causeway:?}");
    ensure!(
        nf_nat.len() == 6 && !nf_nat.contains(&own) && nf_nat[0] != nf_nat[3],
        "nf_nat: {nf_nat:?}"
    );
    Ok(())
}

/// RFC 7857 section 11 | a query mapping may go with its last session | it is the session: requests and replies keep it, then it goes | the same | met
fn section_11_a_query_mapping_is_its_session(family: Family) -> Result<()> {
    agree(family, |side| {
        let flow = Flow(side.icmp(), side.at(&side.pod, 0x1e)?);
        let pinger = side.pinger(&side.pod.ns, 0x1e)?;
        pinger.ping(side.near(), 1, 8)?;
        side.age(flow)?;
        ensure!(!side.is_renewed(flow)?);
        raw::send_ip(
            side.internet(),
            &[craft::echo(side.near(), side.node(), 0x1e, true, &[0; 8])?],
        )?;
        side.settle()?;
        ensure!(side.is_renewed(flow)?, "not renewed by a reply");
        if side.is_causeway() {
            side.age_beyond(flow, 60)?;
            ensure!(!side.knows(flow)?, "still known");
        }
        pinger.ping(side.near(), 2, 8).map(drop)
    })
}

/// RFC 7857 section 12 | hairpinned queries pass where hairpinning does | a ping to the external address is the node's to answer, whoever has the identifier | the same | by design not: see RFC 4787 REQ-9
fn section_12_a_ping_to_the_external_address_is_the_nodes(family: Family) -> Result<()> {
    agree(family, |side| {
        let neighbour = side.rig.pod("b")?;
        side.pinger(&neighbour.ns, 0x1f)?.ping(side.near(), 1, 8)?;
        let inside = Capture::start(&neighbour.ns, "eth0")?;
        let answer = side.pinger(&side.pod.ns, 0x1f)?.ping(side.node(), 2, 8)?;
        ensure!(answer.from == side.node());
        let came = inside.stop().into_iter().find_map(|frame| {
            let ip = packet_of(&frame)?;
            // What else is of ICMPv6 is neighbours' talk.
            let is_echo = matches!(ip.icmp, Some((128 | 129, _)));
            (side.is_error(&ip) || is_echo).then_some(ip)
        });
        ensure!(came.is_none(), "{came:?}");
        Ok(())
    })
}

fn connect(side: &Side) -> Result<Tcp> {
    Tcp::connect_from(&side.pod.ns, side.at(&side.pod, PORT)?, side.near_at(SERVER))
}
