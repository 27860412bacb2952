//! RFC 5508: errors from outside, and errors of pods.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use causeway_tests::{
    capture::Capture,
    craft,
    fabric::{INTERNET, NODE},
    frame::Packet,
    raw, rules,
    talk::PATIENCE,
};

use crate::{
    family::{Family, of_both_families},
    mapping::{Flow, UDP},
    peer::Peer,
    side::{Side, agree, both},
    udp_rfc4787::server,
    wire::{all_received, arrival, packet_of},
};

const ID: u16 = 0x1d;
const PORT: u16 = 42_000;

/// A UDP flow whose port is replaced, so that address and port differ inside and outside.
pub(crate) struct Talk {
    pub(crate) pod: Peer,
    pub(crate) server: Peer,
    pub(crate) mapped: SocketAddr,
}

impl Talk {
    pub(crate) fn new(side: &Side) -> Result<Self> {
        let server = server(side)?;
        side.peer(&side.rig.pod("holder")?, PORT)?.reach(&server)?;
        let pod = side.peer(&side.pod, PORT)?;
        let mapped = pod.reach(&server)?;
        ensure!(mapped.port() != PORT, "the port is not replaced");
        Ok(Self { pod, server, mapped })
    }

    /// What the pod has sent, as the pod knows it and as the outside does.
    pub(crate) fn question(&self, data: &[u8]) -> Result<[Vec<u8>; 2]> {
        let seen_from = |client: SocketAddr| craft::udp(client, self.server.addr, data);
        Ok([seen_from(self.pod.addr)?, seen_from(self.mapped)?])
    }
}

/// Sends an error from outside; what comes to the pod.
pub(crate) fn reported(side: &Side, error: Vec<u8>) -> Result<Option<Packet>> {
    let inside = Capture::start(&side.pod.ns, "eth0")?;
    raw::send_ip(side.internet(), &[error])?;
    Ok(arrival(&inside, |ip| side.is_error(ip)))
}

of_both_families!(
    req_3_a_wrong_checksum_stays_wrong,
    req_3b_quoted_options_are_stepped_over,
    req_3c_the_quoted_transport_checksum_is_not_judged,
    req_3d_icmp_extensions_come_through,
    req_4_an_error_about_nothing_known_comes_to_nobody,
    req_4a_the_quoted_packet_is_the_pods_own,
    req_4b_type_code_and_second_word_stay,
    req_4c_the_error_goes_to_the_pod,
    req_5_a_pods_error_about_nothing_known_does_not_leave,
    req_5a_the_outside_sees_its_own_packet_quoted,
    req_5b_type_and_code_of_a_pods_error_stay,
    req_5c_a_closed_socket_is_reported_with_the_nodes_address,
);

/// RFC 5508 REQ-3 | an error whose ICMP checksum is wrong is dropped | reaches the pod as wrong as it was, whose kernel drops it | dropped by the
/// node's kernel | by design not: RFC 1812 does not have a router judge it, the receiver does
fn req_3_a_wrong_checksum_stays_wrong(family: Family) -> Result<()> {
    let [causeway, nf_nat] = both(family, |side| {
        let talk = Talk::new(side)?;
        talk.pod.socket.connect(talk.server.addr)?;
        let good = craft::icmp(
            side.near(),
            side.node(),
            side.port_unreachable(),
            [0; 4],
            &talk.question(b"?")?[1],
        )?;
        let mut bad = good.clone();
        bad[side.header() + 2] ^= 0x55;
        let seen = reported(side, bad)?.map(|ip| ip.checksums_good);
        ensure!(talk.pod.socket.take_error()?.is_none(), "the pod believes it");
        ensure!(reported(side, good)?.is_some());
        ensure!(
            talk.pod.socket.take_error()?.is_some(),
            "the pod does not believe a right one"
        );
        Ok(seen)
    })?;
    ensure!(
        (causeway, nf_nat) == (Some(false), None),
        "{causeway:?}, {nf_nat:?}"
    );
    Ok(())
}

/// RFC 5508 REQ-3a | an error that quotes a header with a wrong checksum is dropped | translated; the quoted checksum stays as wrong as it was | the same | by
/// design not: the pod's kernel looks its socket up by what is quoted and does not use the sum either
#[test]
fn req_3a_a_wrong_quoted_header_stays_wrong() -> Result<()> {
    agree(Family::V4, |side| {
        let talk = Talk::new(side)?;
        let [inside, mut outside] = talk.question(b"?")?;
        outside[10] ^= 0x55;
        let error = craft::icmp(INTERNET, NODE, (3, 1), [0; 4], &outside)?;
        let seen = reported(side, error)?.context("the error does not come in")?;
        ensure!(
            seen.checksums_good && seen.quoted()[12..] == inside[12..],
            "{seen:?}"
        );
        ensure!(
            seen.quoted()[10..12] != inside[10..12],
            "the quoted sum was mended"
        );
        Ok(())
    })
}

/// RFC 5508 REQ-3b | options of the quoted header, of IPv6 extension headers behind it, are stepped over | they are, the ports behind them are translated | the same | met
fn req_3b_quoted_options_are_stepped_over(family: Family) -> Result<()> {
    agree(family, |side| {
        let talk = Talk::new(side)?;
        let [inside, outside] = talk.question(b"with options")?;
        let with_options = |packet: &[u8]| match family {
            Family::V4 => craft::with_options(packet, &[1, 1, 1, 0]),
            Family::V6 => craft::with_destination_options(packet),
        };
        let [inside, outside] = [with_options(&inside)?, with_options(&outside)?];
        for len in [outside.len(), side.of_family(24, 48) + 8] {
            let error = craft::icmp(side.near(), side.node(), side.expired(), [0; 4], &outside[..len])?;
            let seen = reported(side, error)?.context("the error does not come in")?;
            ensure!(seen.checksums_good && seen.quoted() == &inside[..len], "{seen:?}");
        }
        Ok(())
    })
}

/// RFC 5508 REQ-3c | the quoted transport checksum is not judged | it is not, only adjusted | the same | met
fn req_3c_the_quoted_transport_checksum_is_not_judged(family: Family) -> Result<()> {
    agree(family, |side| {
        let talk = Talk::new(side)?;
        let [inside, mut outside] = talk.question(b"?")?;
        let sum = side.header() + 6..side.header() + 8;
        let before = side.addrs_at()..sum.start;
        outside[side.header() + 7] ^= 0x0f;
        let error = craft::icmp(
            side.near(),
            side.node(),
            side.host_unreachable(),
            [0; 4],
            &outside,
        )?;
        let seen = reported(side, error)?.context("the error does not come in")?;
        ensure!(
            seen.checksums_good && seen.quoted()[before.clone()] == inside[before.clone()],
            "{seen:?}"
        );
        ensure!(
            seen.quoted()[sum.clone()] != inside[sum.clone()],
            "the quoted sum was mended"
        );
        Ok(())
    })
}

/// RFC 5508 REQ-3d | ICMP extensions (RFC 4884) behind the quoted packet are not part of it | they come through as they are, and the error's checksum
/// covers them | the same | met
fn req_3d_icmp_extensions_come_through(family: Family) -> Result<()> {
    agree(family, |side| {
        let talk = Talk::new(side)?;
        let [inside, outside] = talk.question(b"padded")?;
        // RFC 4884: the quoted packet padded to 128 bytes, its length in words; a header and an MPLS label (RFC 4950).
        let extension = [0x20, 0, 0x9f, 0x51, 0, 8, 1, 1, 0, 0x3e, 0x81, 0xff];
        // Of IPv6 in words of eight bytes, at the word's beginning.
        let length = side.of_family([0, 32, 0, 0], [16, 0, 0, 0]);
        let extended = |mut packet: Vec<u8>| {
            packet.resize(128, 0);
            [packet.as_slice(), &extension].concat()
        };
        let error = craft::icmp(
            side.near(),
            side.node(),
            side.expired(),
            length,
            &extended(outside),
        )?;
        let seen = reported(side, error)?.context("the error does not come in")?;
        ensure!(
            seen.checksums_good && seen.quoted() == extended(inside),
            "{seen:?}"
        );
        ensure!(seen.payload()[4..8] == length, "{seen:?}");
        Ok(())
    })
}

/// RFC 5508 REQ-4 | an error from outside about nothing known is dropped silently | it comes to no pod, and nobody answers it | the same | met
fn req_4_an_error_about_nothing_known_comes_to_nobody(family: Family) -> Result<()> {
    agree(family, |side| {
        let talk = Talk::new(side)?;
        let outside = Capture::start(side.internet(), "eth0")?;
        let unknown = side.node_at(talk.mapped.port() ^ 1);
        for about in [
            craft::udp(unknown, talk.server.addr, b"?")?,
            craft::udp(talk.mapped, side.near_at(1), b"?")?,
            craft::udp(talk.mapped, side.far_at(talk.server.addr.port()), b"?")?,
        ] {
            let error = craft::icmp(side.near(), side.node(), side.port_unreachable(), [0; 4], &about)?;
            ensure!(
                reported(side, error)?.is_none(),
                "an error about {about:?} came in"
            );
        }
        let answers = all_received(&outside, |ip| ip.src == side.node());
        ensure!(answers.is_empty(), "somebody answered: {answers:?}");
        Ok(())
    })
}

/// RFC 5508 REQ-4a | what an error from outside quotes is turned back into what the pod has sent | address, port or identifier, every checksum; of 8 bytes or
/// of all (576 and more), of UDP, TCP and echo | the same | met
fn req_4a_the_quoted_packet_is_the_pods_own(family: Family) -> Result<()> {
    agree(family, |side| {
        let talk = Talk::new(side)?;
        // Connections and pings that need no answer: a packet that opens makes a mapping.
        let remote = talk.server.addr;
        rules::ignore_syns(side.internet(), remote.port())?;
        let syn = craft::TcpFlags {
            syn: true,
            ..Default::default()
        };
        let outside = Capture::start(side.internet(), "eth0")?;
        let segment = |from: SocketAddr, data: &[u8]| {
            craft::tcp(
                from,
                remote,
                craft::TcpFlags {
                    ack: Some(7),
                    ..Default::default()
                },
                data,
            )
        };
        let tcp_from = side.at(&side.pod, PORT)?;
        raw::send_ip(&side.pod.ns, &[craft::tcp(tcp_from, remote, syn, &[])?])?;
        let opened = outside.wait(PATIENCE, |frame| {
            packet_of(frame).filter(|ip| ip.protocol == 6 && ip.src == side.node())
        });
        let tcp_mapped = side.node_at(opened.context("no SYN came out")?.src_port);
        for pod in [&side.rig.pod("c")?, &side.pod] {
            let ping = craft::echo(side.addr(pod)?, side.near(), ID, false, &[0; 8])?;
            raw::send_ip(&pod.ns, &[ping])?;
            arrival(&outside, |ip| ip.icmp == Some(side.echo())).context("no ping came out")?;
        }
        let mapped_id = outside.wait(PATIENCE, |frame| {
            let ip = packet_of(frame)?;
            (ip.icmp == Some(side.echo()) && ip.src_port != ID).then_some(ip.src_port)
        });
        let mapped_id = mapped_id.context("the identifier is not replaced")?;
        let echo = |from: IpAddr, id, data: &[u8]| craft::echo(from, side.near(), id, false, data);
        let own = side.addr(&side.pod)?;
        for data in [&[][..], b"abc", &[0xa5; 548], &[0x5a; 1300]] {
            let [inside, out] = talk.question(data)?;
            let pairs = [
                [inside, out],
                [segment(tcp_from, data)?, segment(tcp_mapped, data)?],
                [echo(own, ID, data)?, echo(side.node(), mapped_id, data)?],
            ];
            for [inside, out] in pairs {
                for len in [side.header() + 8, out.len()] {
                    let error =
                        craft::icmp(side.near(), side.node(), side.prohibited(), [0; 4], &out[..len])?;
                    let seen = reported(side, error)?;
                    let seen = seen.with_context(|| format!("no error about {len} bytes of {out:02x?}"))?;
                    ensure!(seen.checksums_good, "{seen:?}");
                    ensure!(
                        seen.quoted() == &inside[..len],
                        "{len} bytes of {inside:02x?}: {seen:?}"
                    );
                }
            }
        }
        Ok(())
    })
}

/// RFC 5508 REQ-4b | type and code stay | for unreachable, time exceeded and parameter problem, and so does the second word | the same | met
fn req_4b_type_code_and_second_word_stay(family: Family) -> Result<()> {
    agree(family, |side| {
        let talk = Talk::new(side)?;
        let unreachable = side.of_family((3, 0..=15), (1, 0..=6));
        let others = side.of_family(
            [(11, 0), (11, 1), (12, 0), (12, 1)],
            [(2, 0), (3, 0), (3, 1), (4, 1)],
        );
        let codes = unreachable.1.map(|code| (unreachable.0, code)).chain(others);
        for kind in codes {
            let is_too_big = kind == side.of_family((3, 4), (2, 0));
            let word = if is_too_big { [0, 0, 5, 120] } else { [0; 4] };
            let error = craft::icmp(side.near(), side.node(), kind, word, &talk.question(b"?")?[1])?;
            let seen = reported(side, error)?.with_context(|| format!("{kind:?} does not come in"))?;
            ensure!(
                seen.icmp == Some(kind) && seen.payload()[4..8] == word,
                "{seen:?}"
            );
        }
        Ok(())
    })
}

/// RFC 5508 REQ-4c | the error goes to the host that has sent the quoted packet | to the pod; its sender stays who it is | the same | met
fn req_4c_the_error_goes_to_the_pod(family: Family) -> Result<()> {
    let seen = agree(family, |side| {
        let talk = Talk::new(side)?;
        let router: IpAddr = side.of_family("192.0.2.9", "2001:db8:9::9").parse()?;
        let error = craft::icmp(
            router,
            side.node(),
            side.expired(),
            [0; 4],
            &talk.question(b"?")?[1],
        )?;
        let seen = reported(side, error)?.context("the error does not come in")?;
        Ok((seen.src == router, seen.dst == side.addr(&side.pod)?))
    })?;
    ensure!(seen == (true, true));
    Ok(())
}

/// RFC 5508 REQ-5 | an error of an inside host about nothing known is dropped | dropped: `snat_protocol` | leaves with the pod's own address: conntrack calls it
/// INVALID, which nf_nat does not translate | met
fn req_5_a_pods_error_about_nothing_known_does_not_leave(family: Family) -> Result<()> {
    let [causeway, nf_nat] = both(family, |side| {
        let outside = Capture::start(side.internet(), "eth0")?;
        let own = side.addr(&side.pod)?;
        let about = craft::udp(side.near_at(9), side.at(&side.pod, 9)?, b"?")?;
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
        Ok(arrival(&outside, |ip| ip.icmp == Some(side.port_unreachable())).map(|ip| ip.src == own))
    })?;
    ensure!(
        (causeway, nf_nat) == (None, Some(true)),
        "{causeway:?}, {nf_nat:?}"
    );
    Ok(())
}

/// RFC 5508 REQ-5a | what an error of an inside host quotes is turned into what the outside has sent | address, port, every checksum; of 8 bytes or of all | the same | met
fn req_5a_the_outside_sees_its_own_packet_quoted(family: Family) -> Result<()> {
    agree(family, |side| {
        let talk = Talk::new(side)?;
        for data in [&b"late"[..], &[3; 700]] {
            let answer = |to: SocketAddr| craft::udp(talk.server.addr, to, data);
            let [inside, expected] = [answer(talk.pod.addr)?, answer(talk.mapped)?];
            for len in [side.header() + 8, inside.len()] {
                let outside = Capture::start(side.internet(), "eth0")?;
                let error = craft::icmp(
                    side.addr(&side.pod)?,
                    side.near(),
                    side.port_unreachable(),
                    [0; 4],
                    &inside[..len],
                )?;
                raw::send_ip(&side.pod.ns, &[error])?;
                let seen =
                    arrival(&outside, |ip| side.is_error(ip)).context("the error does not come out")?;
                ensure!(
                    seen.checksums_good && seen.quoted() == &expected[..len],
                    "{seen:?}"
                );
            }
        }
        Ok(())
    })
}

/// RFC 5508 REQ-5b | type and code stay | they stay | the same | met
fn req_5b_type_and_code_of_a_pods_error_stay(family: Family) -> Result<()> {
    agree(family, |side| {
        let talk = Talk::new(side)?;
        let about = craft::udp(talk.server.addr, talk.pod.addr, b"late")?;
        let kinds = side.of_family(
            [(3, 0), (3, 2), (3, 3), (3, 10), (11, 1), (12, 0)],
            [(1, 0), (1, 1), (1, 4), (1, 5), (3, 1), (4, 1)],
        );
        for kind in kinds {
            let outside = Capture::start(side.internet(), "eth0")?;
            raw::send_ip(
                &side.pod.ns,
                &[craft::icmp(
                    side.addr(&side.pod)?,
                    side.near(),
                    kind,
                    [0; 4],
                    &about,
                )?],
            )?;
            let seen = arrival(&outside, |ip| side.is_error(ip)).context("the error does not come out")?;
            ensure!(seen.icmp == Some(kind), "{kind:?}: {seen:?}");
        }
        Ok(())
    })
}

/// RFC 5508 REQ-5c | the error leaves with the NAT's own address | with the node's, when a pod's socket has closed and an answer comes late | the same | met
fn req_5c_a_closed_socket_is_reported_with_the_nodes_address(family: Family) -> Result<()> {
    agree(family, |side| {
        let Talk { pod, server, mapped } = Talk::new(side)?;
        drop(pod);
        let outside = Capture::start(side.internet(), "eth0")?;
        server.socket.send_to(b"too late", mapped)?;
        let seen = arrival(&outside, |ip| ip.icmp == Some(side.port_unreachable()))
            .context("nobody said that the port is closed")?;
        let expected = craft::udp(server.addr, mapped, b"too late")?;
        ensure!(seen.src == side.node() && seen.checksums_good, "{seen:?}");
        ensure!(
            seen.quoted()[side.addrs_at()..] == expected[side.addrs_at()..],
            "{seen:?}"
        );
        ensure!(side.knows(Flow(UDP, side.at(&side.pod, PORT)?))?);
        Ok(())
    })
}
