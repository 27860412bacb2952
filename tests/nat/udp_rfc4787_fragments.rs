//! RFC 4787: datagrams in fragments, and their checksums.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use causeway_tests::{
    capture::Capture,
    craft,
    dam::Dam,
    fabric::{INTERNET, NODE},
    frame::Packet,
    raw,
    talk::PATIENCE,
};

use crate::{
    family::{Family, of_both_families},
    mapping::{ICMP, UDP},
    side::{A_WHILE, agree, both},
    udp_rfc4787::server,
    wire::{all_received, arrival, packet_of, received},
};

const PORT: u16 = 40_000;

of_both_families!(
    req_13a_a_datagram_that_may_be_fragmented_leaves_in_order,
    req_14_fragments_in_order_pass_both_ways,
    req_14_fragments_from_outside_pass_in_any_order,
    req_14_fragments_of_a_pod_pass_in_any_order,
    req_14a_a_flood_of_fragments_keeps_nobody_out,
    section_4_2_a_computed_zero_is_sent_as_ones,
);

/// RFC 4787 REQ-13a | a packet that may be fragmented is, and the fragments leave in order | by the node's kernel; of IPv6, where no router does that
/// (RFC 8200 section 4.5), by the pod that has been told; all of them with the node's address, the first one first | the same | met
fn req_13a_a_datagram_that_may_be_fragmented_leaves_in_order(family: Family) -> Result<()> {
    agree(family, |side| {
        side.rig.node.set_pod_mtu(&side.pod, 9000)?;
        let server = server(side)?;
        let outside = Capture::start(side.internet(), "eth0")?;
        let pod = side.peer(&side.pod, PORT)?;
        side.let_be_fragmented(&pod, true)?;
        if family == Family::V6 {
            let ears = side.pinger(&side.pod.ns, 1)?;
            pod.socket.send_to(&[0; 5000], server.addr)?;
            let told = ears.hear(PATIENCE, |message| message.icmp.mtu() == Some(1500))?;
            told.context("nobody told the pod to fragment it")?;
            side.settle()?;
        }
        for len in [5000, 100, 100, 8000] {
            let message: Vec<u8> = (0..len).map(|at: usize| at as u8).collect();
            pod.socket.send_to(&message, server.addr)?;
            let from = server
                .hear(&message, PATIENCE)?
                .with_context(|| format!("{len} bytes"))?;
            ensure!(from == side.node_at(PORT), "{len} bytes from {from}");
        }
        let offsets: Vec<usize> = outside
            .stop()
            .into_iter()
            .filter(|frame| !frame.outgoing)
            .filter_map(|frame| packet_of(&frame).filter(|ip| ip.fragment))
            .map(|ip| offset(&ip))
            .collect();
        let size = side.of_family(1480, 1448);
        let whole: Vec<usize> = (0..4).chain(0..6).map(|n| n * size).collect();
        ensure!(offsets == whole, "{offsets:?}");
        Ok(())
    })
}

/// RFC 4787 REQ-14 | fragments are received in order | both ways, UDP and echo, the last one of a byte too | the same: the kernel
/// reassembles first | met
fn req_14_fragments_in_order_pass_both_ways(family: Family) -> Result<()> {
    agree(family, |side| {
        let (pod, server) = (side.peer(&side.pod, PORT)?, server(side)?);
        let mapped = pod.reach(&server)?;
        let lens = side.of_family([1473, 1474, 3000, 8000, 60_000], [1453, 2889, 3000, 8000, 60_000]);
        for (number, len) in lens.into_iter().enumerate() {
            let message: Vec<u8> = (0..len).map(|at: usize| (at + number) as u8).collect();
            pod.socket.send_to(&message, server.addr)?;
            ensure!(
                server.hear(&message, PATIENCE)? == Some(mapped),
                "{len} bytes out"
            );
            server.socket.send_to(&message, mapped)?;
            ensure!(
                pod.hear(&message, PATIENCE)? == Some(server.addr),
                "{len} bytes in"
            );
            side.pinger(&side.pod.ns, number as u16)?
                .ping(side.near(), 1, len)?;
        }
        Ok(())
    })
}

/// RFC 4787 REQ-14 (out of order, from outside) | fragments are received out of order | one that
/// overtakes its first one waits behind what has arrived meanwhile, 64 times at most: reordering on a link
/// passes, seconds do not | waits for 30 s | met
fn req_14_fragments_from_outside_pass_in_any_order(family: Family) -> Result<()> {
    agree(family, |side| {
        let (pod, server) = (side.peer(&side.pod, PORT)?, server(side)?);
        let mapped = pod.reach(&server)?;
        let router = &side.rig.fabric.router;
        let dam = Dam::new(router, "node")?;
        for (id, (len, turn)) in [(1473, 1), (2953, 1), (8000, 1), (8000, 5), (30_000, 13)]
            .iter()
            .enumerate()
        {
            dam.hold()?;
            server
                .socket
                .send_to(side.of_family(&[0; 1472], &[0; 1452]), mapped)?;
            let message: Vec<u8> = (0..*len).map(|at: usize| (at ^ id) as u8).collect();
            let whole = craft::udp(server.addr, mapped, &message)?;
            let mut pieces = craft::fragments(&whole, 1500, id as u16 + 1)?;
            pieces.reverse();
            pieces.rotate_left(turn - 1);
            raw::send_ip(router, &pieces)?;
            dam.let_go()?;
            server.socket.send_to(b"let go", mapped)?;
            let from = pod.hear(&message, PATIENCE)?;
            ensure!(from == Some(server.addr), "{len} bytes, rotated by {turn}");
        }
        Ok(())
    })
}

/// RFC 4787 REQ-14 (out of order, from inside) | the same for what a pod sends | the kernel, where conntrack holds them for 30 s, puts them together; also those of a
/// carried flow once one has overtaken its first | waits for 30 s | met
fn req_14_fragments_of_a_pod_pass_in_any_order(family: Family) -> Result<()> {
    let [causeway, nf_nat] = both(family, |side| {
        let server = server(side)?;
        let mut arrived = Vec::new();
        for (port, carried) in [(PORT, false), (PORT + 1, true)] {
            let pod = side.peer(&side.pod, port)?;
            if carried {
                pod.reach(&server)?;
                pod.reach(&server)?;
            }
            let message = format!("{port} ").repeat(300).into_bytes();
            let mut pieces = craft::fragments(&craft::udp(pod.addr, server.addr, &message)?, 820, port)?;
            pieces.reverse();
            raw::send_ip(&side.pod.ns, &pieces)?;
            arrived.push(server.hear(&message, 2 * A_WHILE)?.is_some());
        }
        Ok(arrived)
    })?;
    ensure!(nf_nat == [true, true], "nf_nat: {nf_nat:?}");
    ensure!(causeway == [true, true], "Causeway: {causeway:?}");
    Ok(())
}

/// RFC 4787 REQ-14a | a flood of fragments does not keep others out | nothing is held for them: whole packets and fragments in order pass
/// | whole packets pass; fragments do not, once the kernel's 4 MiB for reassembly are full | met
fn req_14a_a_flood_of_fragments_keeps_nobody_out(family: Family) -> Result<()> {
    let [causeway, nf_nat] = both(family, |side| {
        let (pod, server) = (side.peer(&side.pod, PORT)?, server(side)?);
        let mapped = pod.reach(&server)?;
        let datagram = craft::udp(server.addr, mapped, &[0; 1400])?;
        let mtu = side.of_family(724, 752);
        let tails: Vec<Vec<u8>> = (1..=8000u16)
            .map(|id| Ok(craft::fragments(&datagram, mtu, id)?.swap_remove(1)))
            .collect::<Result<_>>()?;
        raw::send_ip(&side.rig.fabric.router, &tails)?;
        server.reach_by(mapped, &pod).context("a whole datagram")?;
        ensure!(pod.reach(&server)? == mapped);
        let message = vec![9; 3000];
        server.socket.send_to(&message, mapped)?;
        Ok(pod.hear(&message, A_WHILE)?.is_some())
    })?;
    ensure!(causeway, "fragments in order do not come in");
    ensure!(!nf_nat, "nf_nat's reassembly is not full");
    Ok(())
}

/// RFC 3022 section 4.2 | a UDP checksum of zero, "none computed", stays zero | both ways, also in what an ICMP error quotes | the
/// same | met
#[test]
fn section_4_2_a_checksum_of_zero_stays_zero() -> Result<()> {
    agree(Family::V4, |side| {
        let server = server(side)?;
        let neighbour = side.rig.pod("b")?;
        // The neighbour holds the port, so that address and port are replaced.
        side.peer(&neighbour, PORT)?.reach(&server)?;
        let pod = side.peer(&side.pod, PORT)?;
        let (inside, outside) = (
            Capture::start(&side.pod.ns, "eth0")?,
            Capture::start(side.internet(), "eth0")?,
        );
        for round in 0..2 {
            let question = craft::without_udp_checksum(craft::udp(pod.addr, server.addr, b"no sum")?);
            raw::send_ip(&side.pod.ns, &[question])?;
            let mapped = server.hear(b"no sum", PATIENCE)?.context("the question")?;
            let answer = craft::without_udp_checksum(craft::udp(server.addr, mapped, b"none either")?);
            raw::send_ip(side.internet(), std::slice::from_ref(&answer))?;
            ensure!(
                pod.hear(b"none either", PATIENCE)?.is_some(),
                "the answer, round {round}"
            );
            let about = craft::without_udp_checksum(craft::udp(mapped, server.addr, b"no sum")?);
            raw::send_ip(
                side.internet(),
                &[craft::icmp(INTERNET, NODE, (3, 9), [0; 4], &about)?],
            )?;
        }
        side.settle()?;
        let zero = |ip: &Packet| ip.protocol == UDP && ip.payload()[6..8] == [0, 0];
        let sums = [(&outside, NODE), (&inside, INTERNET)].map(|(wire, from)| {
            let packets = all_received(wire, |ip| ip.src == from && ip.protocol == UDP);
            (packets.len(), packets.iter().filter(|ip| zero(ip)).count())
        });
        ensure!(sums == [(2, 2), (2, 2)], "{sums:?}");
        let error = received(&inside, |ip| ip.protocol == ICMP && ip.icmp == Some((3, 9)));
        let error = error.context("no error came in")?;
        ensure!(
            error.checksums_good && error.quoted()[26..28] == [0, 0],
            "{error:?}"
        );
        Ok(())
    })
}

/// RFC 3022 section 4.2 (IPv6) | of IPv6 every datagram has a checksum; one without is dropped by who gets it (RFC 8200 section 8.1) | translated both ways without one:
/// none is made up, and who gets it drops it | the same | met
#[test]
fn section_4_2_a_missing_checksum_of_ipv6_is_not_made_up() -> Result<()> {
    agree(Family::V6, |side| {
        let (inside, outside) = (
            Capture::start(&side.pod.ns, "eth0")?,
            Capture::start(side.internet(), "eth0")?,
        );
        let (pod, server) = (side.peer(&side.pod, PORT)?, server(side)?);
        let mapped = side.node_at(PORT);
        let is_bare = |from: SocketAddr, ip: &Packet| {
            (ip.src, ip.src_port) == (from.ip(), from.port()) && ip.payload()[6..8] == [0, 0]
        };
        for _ in 0..2 {
            let question = craft::without_udp_checksum(craft::udp(pod.addr, server.addr, b"no sum")?);
            raw::send_ip(&side.pod.ns, &[question])?;
            arrival(&outside, |ip| is_bare(mapped, ip)).context("the question does not come out")?;
            ensure!(server.hear(b"no sum", A_WHILE)?.is_none(), "the server takes it");
            let answer = craft::without_udp_checksum(craft::udp(server.addr, mapped, b"none either")?);
            raw::send_ip(side.internet(), &[answer])?;
            arrival(&inside, |ip| is_bare(server.addr, ip)).context("the answer does not come in")?;
            ensure!(pod.hear(b"none either", A_WHILE)?.is_none(), "the pod takes it");
        }
        Ok(())
    })
}

/// RFC 3022 section 4.2 (computed) | a checksum is adjusted by what was replaced; one that comes out as zero is sent as 0xffff (RFC 768) | for every
/// value of the checksum that 600 datagrams meet | the same | met
fn section_4_2_a_computed_zero_is_sent_as_ones(family: Family) -> Result<()> {
    agree(family, |side| {
        let server = server(side)?;
        let pod = side.peer(&side.pod, PORT)?;
        let mapped = pod.reach(&server)?;
        // The word that makes the translated datagram's checksum zero before RFC 768 turns it round.
        let base = craft::udp(mapped, server.addr, &[0; 2])?;
        let sum = side.header() + 6;
        let word = u16::from_be_bytes([base[sum], base[sum + 1]]);
        let outside = Capture::start(side.internet(), "eth0")?;
        for offset in 0..300u16 {
            for word in [word.wrapping_add(offset), word.wrapping_sub(offset)] {
                raw::send_ip(
                    &side.pod.ns,
                    &[craft::udp(pod.addr, server.addr, &word.to_be_bytes())?],
                )?;
            }
        }
        side.settle()?;
        let packets = all_received(&outside, |ip| ip.src == side.node() && ip.protocol == UDP);
        ensure!(packets.len() == 600, "{} datagrams", packets.len());
        let bad = packets
            .iter()
            .find(|ip| !ip.checksums_good || ip.payload()[6..8] == [0, 0]);
        ensure!(bad.is_none(), "{bad:?}");
        let turned = packets
            .iter()
            .filter(|ip| ip.payload()[6..8] == [0xff, 0xff])
            .count();
        ensure!(turned > 0, "no datagram had a checksum of zero");
        Ok(())
    })
}

/// Where a fragment's payload stands in the datagram, bytes.
fn offset(ip: &Packet) -> usize {
    let word = |at: usize| usize::from(u16::from_be_bytes([ip.bytes.0[at], ip.bytes.0[at + 1]]));
    match ip.src {
        IpAddr::V4(_) => (word(6) & 0x1fff) * 8,
        // In bytes, in the header behind the first one.
        IpAddr::V6(_) => word(42) & 0xfff8,
    }
}
