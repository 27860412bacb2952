//! RFC 4787: ICMP about datagrams, and those that are too big for a link.

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use causeway_tests::{capture::Capture, craft, raw, talk::PATIENCE};

use crate::{
    family::{Family, of_both_families},
    side::agree,
    udp_rfc4787::server,
    wire::{packet_of, received},
};

const PORT: u16 = 40_000;

/// Type, code and second word of every ICMP message that could be about a datagram.
pub(crate) const EVERY_ERROR: [((u8, u8), [u8; 4]); 12] = [
    ((3, 0), [0; 4]),
    ((3, 1), [0; 4]),
    ((3, 2), [0; 4]),
    ((3, 3), [0; 4]),
    ((3, 4), [0, 0, 5, 0]),
    ((3, 9), [0; 4]),
    ((3, 13), [0; 4]),
    ((4, 0), [0; 4]),
    ((5, 1), [203, 0, 113, 1]),
    ((11, 0), [0; 4]),
    ((11, 1), [0; 4]),
    ((12, 0), [20, 0, 0, 0]),
];

of_both_families!(
    req_12_no_icmp_message_ends_a_mapping,
    req_12a_any_router_may_report_about_a_datagram,
    req_12b_a_pod_is_told_that_a_port_is_closed,
    req_13_a_datagram_that_is_too_big_is_reported_to_the_pod,
);

/// The same of ICMPv6.
pub(crate) const EVERY_ERROR_OF_IPV6: [((u8, u8), [u8; 4]); 12] = [
    ((1, 0), [0; 4]),
    ((1, 1), [0; 4]),
    ((1, 2), [0; 4]),
    ((1, 3), [0; 4]),
    ((1, 4), [0; 4]),
    ((1, 5), [0; 4]),
    ((1, 6), [0; 4]),
    ((2, 0), [0, 0, 5, 0]),
    ((3, 0), [0; 4]),
    ((3, 1), [0; 4]),
    ((4, 0), [0, 0, 0, 40]),
    ((4, 1), [0, 0, 0, 6]),
];

/// RFC 4787 REQ-12 | no ICMP message ends a mapping | none does, whatever its type and code: datagrams pass both ways on the same
/// port | none does | met
fn req_12_no_icmp_message_ends_a_mapping(family: Family) -> Result<()> {
    agree(family, |side| {
        let (pod, server) = (side.peer(&side.pod, PORT)?, server(side)?);
        let mapped = pod.reach(&server)?;
        let about = craft::udp(mapped, server.addr, b"this very flow")?;
        for (kind, word) in side.of_family(EVERY_ERROR, EVERY_ERROR_OF_IPV6) {
            let error = craft::icmp(side.near(), side.node(), kind, word, &about[..side.header() + 8])?;
            raw::send_ip(side.internet(), &[error])?;
            server
                .reach_by(mapped, &pod)
                .with_context(|| format!("after an ICMP message {kind:?}"))?;
            ensure!(pod.reach(&server)? == mapped, "another port after {kind:?}");
        }
        Ok(())
    })
}

/// RFC 4787 REQ-12a | ICMP messages are not filtered by their source address | a router on the way may be anybody: what counts is the packet that
/// is quoted | the same | met
fn req_12a_any_router_may_report_about_a_datagram(family: Family) -> Result<()> {
    let seen = agree(family, |side| {
        let (pod, server) = (side.peer(&side.pod, PORT)?, server(side)?);
        let about = craft::udp(pod.reach(&server)?, server.addr, b"whoever you are")?;
        let others = side.of_family(
            ["10.240.0.1", "192.0.2.77", "100.64.0.1"],
            ["fd00:10::1", "2001:db8:9::77", "fd00:64::1"],
        );
        let mut routers = vec![side.near()];
        for other in others {
            routers.push(other.parse()?);
        }
        let inside = Capture::start(&side.pod.ns, "eth0")?;
        for router in &routers {
            let error = craft::icmp(
                *router,
                side.node(),
                side.expired(),
                [0; 4],
                &about[..side.header() + 8],
            )?;
            raw::send_ip(&side.rig.fabric.router, &[error])?;
        }
        side.settle()?;
        let heard = |router: &IpAddr| {
            received(&inside, |ip| ip.src == *router && ip.icmp == Some(side.expired())).is_some()
        };
        Ok(routers.iter().all(heard))
    })?;
    ensure!(seen);
    Ok(())
}

/// RFC 4787 REQ-12b | destination unreachable is supported | comes to the pod, and quotes the packet as the pod has sent it | the same | met
fn req_12b_a_pod_is_told_that_a_port_is_closed(family: Family) -> Result<()> {
    agree(family, |side| {
        let closed = side.near_at(7999);
        let pod = side.peer(&side.pod, PORT)?;
        for round in 0..3 {
            let inside = Capture::start(&side.pod.ns, "eth0")?;
            pod.socket.send_to(b"is anybody there?", closed)?;
            let error = inside.wait(PATIENCE, |frame| {
                packet_of(frame).filter(|ip| ip.icmp == Some(side.port_unreachable()) && !frame.outgoing)
            });
            let error = error.with_context(|| format!("nobody told about datagram {round}"))?;
            let expected = craft::udp(pod.addr, closed, b"is anybody there?")?;
            ensure!(
                error.checksums_good && error.dst == side.addr(&side.pod)?,
                "{error:?}"
            );
            ensure!(
                error.quoted()[side.addrs_at()..] == expected[side.addrs_at()..],
                "{error:?}"
            );
        }
        Ok(())
    })
}

/// RFC 4787 REQ-13 | a packet that may not be fragmented and is too big is answered with "fragmentation needed", of IPv6 "packet too big" | by the node's kernel,
/// for first packets and carried flows; it quotes what the pod has sent, and the pod keeps to the MTU | by the kernel | met
fn req_13_a_datagram_that_is_too_big_is_reported_to_the_pod(family: Family) -> Result<()> {
    agree(family, |side| {
        let server = server(side)?;
        for (name, carried) in [("first", false), ("carried", true)] {
            let pod = side.rig.pod(name)?;
            side.rig.node.set_pod_mtu(&pod, 2000)?;
            let peer = side.peer(&pod, PORT)?;
            if carried {
                peer.reach(&server)?;
                peer.reach(&server)?;
            }
            side.let_be_fragmented(&peer, false)?;
            let ears = side.pinger(&pod.ns, 1)?;
            peer.socket.send_to(&[7; 1800], server.addr)?;
            let told = ears.hear(PATIENCE, |message| message.icmp.mtu().is_some())?;
            let told = told.with_context(|| format!("{name}: nobody said that it is too big"))?;
            let sent = craft::udp(peer.addr, server.addr, &[7; 1800])?;
            let is_about = (told.from, told.icmp.mtu(), side.is_quoted(&told.payload, &sent));
            ensure!(is_about == (side.node(), Some(1500), true), "{name}: {told:?}");
            side.settle()?;
            let again = peer.socket.send_to(&[7; 1800], server.addr);
            let refused = again.err().and_then(|error| error.raw_os_error());
            ensure!(
                refused == Some(libc::EMSGSIZE),
                "{name}: the pod has not learnt it"
            );
        }
        Ok(())
    })
}
