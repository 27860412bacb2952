//! ICMP errors about translated and carried flows: outside and inside, both ways, whatever is quoted.

use std::net::Ipv4Addr;

use causeway_common::{
    reason::Reason,
    tuple::{ICMP, TCP, UDP},
};
use etherparse::{Icmpv4Type, Ipv4Header, NetHeaders, PacketBuilder, PacketHeaders};

use crate::{
    bench::{Bench, Hook, INTERNET, NODE, ROUTER_MAC, VNET_HOST, key},
    packets::{Ends, Link, echo, tcp, udp},
};

/// A router between the node and the internet.
const HOP: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
/// Destination unreachable, time exceeded, parameter problem.
const KINDS: [(u8, u8); 6] = [(3, 0), (3, 1), (3, 3), (3, 4), (11, 0), (12, 0)];

/// A bench with a carried flow of pod A, and the flow's ends as the pod knows them and as the outside does.
fn carried(protocol: u8) -> (Bench, Ends, Ends) {
    let mut bench = Bench::new();
    let inside = Ends {
        src: bench.a.addr,
        src_port: 40_000,
        dst: INTERNET,
        dst_port: if protocol == ICMP { 0 } else { 443 },
    };
    bench.carry_translated(inside, protocol, 50_000);
    let outside = Ends {
        src: NODE,
        src_port: 50_000,
        ..inside
    };
    (bench, inside, outside)
}

/// The flow's packet as the quoting host has seen it, from the IPv4 header on.
pub(crate) fn original(protocol: u8, ends: Ends) -> Vec<u8> {
    let link = ([2; 6], [2; 6]);
    match protocol {
        ICMP => echo(link, ends, ends.dst_port == 0)[14..].to_vec(),
        _ => original_with(protocol, ends, b"some quoted payload"),
    }
}

fn original_with(protocol: u8, ends: Ends, payload: &[u8]) -> Vec<u8> {
    let link = ([2; 6], [2; 6]);
    let frame = match protocol {
        TCP => tcp(link, ends, 7, |header| header.ack = true, payload),
        UDP => udp(link, ends, 7, payload),
        _ => {
            let mut frame = Vec::new();
            PacketBuilder::ethernet2(link.0, link.1)
                .ipv4(ends.src.octets(), ends.dst.octets(), 7)
                .icmpv4_echo_request(ends.src_port, 7)
                .write(&mut frame, payload)
                .unwrap();
            frame
        }
    };
    frame[14..].to_vec()
}

pub(crate) fn error(
    link: Link,
    src: Ipv4Addr,
    dst: Ipv4Addr,
    (kind, code): (u8, u8),
    quoted: &[u8],
) -> Vec<u8> {
    let mut frame = Vec::new();
    let icmp_type = Icmpv4Type::Unknown {
        type_u8: kind,
        code_u8: code,
        bytes5to8: [0, 0, 5, 20],
    };
    PacketBuilder::ethernet2(link.0, link.1)
        .ipv4(src.octets(), dst.octets(), 60)
        .icmpv4(icmp_type)
        .write(&mut frame, quoted)
        .unwrap();
    frame
}

/// Asserts both outer checksums with etherparse, and that the quoted packet is `expected` byte for byte: that one is
/// made anew with the addresses it should have, so its checksums are etherparse's too.
pub(crate) fn assert_quotes(frame: &[u8], src: Ipv4Addr, dst: Ipv4Addr, expected: &[u8]) {
    let headers = PacketHeaders::from_ethernet_slice(frame).unwrap();
    let Some(NetHeaders::Ipv4(ip, _)) = headers.net else {
        panic!("not IPv4: {frame:02x?}")
    };
    assert_eq!(
        ip.header_checksum,
        ip.calc_header_checksum(),
        "outer IPv4 checksum"
    );
    assert_eq!(
        (Ipv4Addr::from(ip.source), Ipv4Addr::from(ip.destination)),
        (src, dst)
    );
    // Over a whole message the sum is zero (RFC 1071). etherparse's typed headers leave out what is unused in a type, so
    // its sum is taken over the bytes.
    let sum = etherparse::checksum::Sum16BitWords::new()
        .add_slice(&frame[34..])
        .ones_complement();
    assert_eq!(sum, 0, "ICMP checksum");
    let payload = &frame[42..];
    assert_eq!(payload, expected);
    let (quoted, _) = Ipv4Header::from_slice(payload).unwrap();
    assert_eq!(
        quoted.header_checksum,
        quoted.calc_header_checksum(),
        "quoted IPv4 checksum"
    );
}

/// How much of the original may be quoted: the least (RFC 792), odd lengths, a whole TCP header, everything.
fn cuts(whole: usize) -> Vec<usize> {
    [28, 29, 37, 38, 39, 40, 41]
        .into_iter()
        .filter(|&cut| cut < whole)
        .chain([whole])
        .collect()
}

/// The quoted transport checksum follows the addresses only where nf_nat's does: TCP needs its whole header.
fn expected_quote(protocol: u8, now: Ends, before: &[u8], cut: usize) -> Vec<u8> {
    let mut expected = original(protocol, now)[..cut].to_vec();
    keep_half_a_checksum(protocol, &mut expected, before);
    expected
}

fn keep_half_a_checksum(protocol: u8, expected: &mut [u8], before: &[u8]) {
    let end = expected.len().min(38);
    if protocol == TCP && expected.len() < 40 && end > 36 {
        expected[36..end].copy_from_slice(&before[36..end]);
    }
}

#[test]
fn from_outside_about_a_translated_packet_reaches_the_pod_as_about_its_own() {
    for protocol in [TCP, UDP, ICMP] {
        let (mut bench, inside, outside) = carried(protocol);
        let (a, uplink, link) = (bench.a, bench.uplink_ifindex, (ROUTER_MAC, bench.uplink_mac));
        let whole = original(protocol, outside);
        for kind in KINDS {
            for cut in cuts(whole.len()) {
                let packet = error(link, HOP, NODE, kind, &whole[..cut]);
                let ran = bench.run(Hook::FromUplink, uplink, &packet);
                assert_eq!(
                    ran.reason,
                    Reason::CarriedToPod,
                    "protocol {protocol}, {kind:?}, {cut} bytes"
                );
                assert_quotes(
                    &ran.packet,
                    HOP,
                    a.addr,
                    &expected_quote(protocol, inside, &whole, cut),
                );
                assert_eq!(
                    (&ran.packet[..6], &ran.packet[6..12]),
                    (&a.mac[..], &a.host_mac[..])
                );
            }
        }
    }
}

#[test]
fn from_a_pod_about_an_answer_leaves_as_from_the_node() {
    for protocol in [TCP, UDP] {
        let (mut bench, inside, outside) = carried(protocol);
        let answer = original(protocol, inside.reversed());
        let (a, uplink) = (bench.a, bench.uplink_ifindex);
        for cut in cuts(answer.len()) {
            let expected = expected_quote(protocol, outside.reversed(), &answer, cut);
            let packet = error(a.sends(), a.addr, INTERNET, (3, 3), &answer[..cut]);
            let ran = bench.run(Hook::FromPod, a.ifindex, &packet);
            assert_eq!(ran.reason, Reason::CarriedToUplink, "{cut} bytes");
            assert_quotes(&ran.packet, NODE, INTERNET, &expected);

            // The same error, had it taken the stack.
            let packet = error(
                (bench.uplink_mac, ROUTER_MAC),
                a.addr,
                INTERNET,
                (3, 3),
                &answer[..cut],
            );
            let ran = bench.run(Hook::ToUplink, uplink, &packet);
            assert_eq!(ran.reason, Reason::SnatIcmpError);
            assert_quotes(&ran.packet, NODE, INTERNET, &expected);
        }
    }
}

/// RFC 1812 section 4.3.2.3: an error may quote as much as makes it 576 bytes long.
#[test]
fn every_length_that_may_be_quoted_has_right_checksums_both_ways() {
    const LONGEST: usize = 576 - 28;
    let payload: Vec<u8> = (0..LONGEST).map(|at| (at * 7) as u8).collect();
    for protocol in [TCP, UDP, ICMP] {
        let (mut bench, inside, outside) = carried(protocol);
        let quotes = |ends| original_with(protocol, ends, &payload);
        let (a, uplink) = (bench.a, bench.uplink_ifindex);
        for cut in 28..=LONGEST {
            let mut expected = quotes(inside)[..cut].to_vec();
            keep_half_a_checksum(protocol, &mut expected, &quotes(outside));
            let link = (ROUTER_MAC, bench.uplink_mac);
            let packet = error(link, HOP, NODE, (3, 4), &quotes(outside)[..cut]);
            let ran = bench.run(Hook::FromUplink, uplink, &packet);
            assert_eq!(
                ran.reason,
                Reason::CarriedToPod,
                "protocol {protocol}, {cut} bytes"
            );
            assert_quotes(&ran.packet, HOP, a.addr, &expected);
            if protocol == ICMP {
                continue;
            }
            let mut expected = quotes(outside.reversed())[..cut].to_vec();
            keep_half_a_checksum(protocol, &mut expected, &quotes(inside.reversed()));
            let packet = error(
                a.sends(),
                a.addr,
                INTERNET,
                (3, 3),
                &quotes(inside.reversed())[..cut],
            );
            let ran = bench.run(Hook::FromPod, a.ifindex, &packet);
            assert_eq!(
                ran.reason,
                Reason::CarriedToUplink,
                "protocol {protocol}, {cut} bytes"
            );
            assert_quotes(&ran.packet, NODE, INTERNET, &expected);
        }
    }
}

/// The node answers for a packet that it would have forwarded to a pod: it quotes the pod's address, which nobody
/// outside knows.
#[test]
fn from_the_node_about_a_packet_for_a_pod_does_not_show_the_pods_address() {
    let (mut bench, inside, outside) = carried(UDP);
    let answer = original(UDP, inside.reversed());
    let uplink = bench.uplink_ifindex;
    let packet = error(
        (bench.uplink_mac, ROUTER_MAC),
        NODE,
        INTERNET,
        (11, 0),
        &answer[..28],
    );
    let ran = bench.run(Hook::ToUplink, uplink, &packet);
    assert_eq!(ran.reason, Reason::SnatIcmpError);
    assert_quotes(
        &ran.packet,
        NODE,
        INTERNET,
        &original(UDP, outside.reversed())[..28],
    );
}

#[test]
fn about_a_carried_flow_without_translation_is_carried_too() {
    let mut bench = Bench::new();
    let ends = Ends {
        src: bench.a.addr,
        src_port: 40_000,
        dst: bench.b.addr,
        dst_port: 80,
    };
    bench.carry_between_pods(key(ends.reversed(), UDP).reversed());
    let a = bench.a;
    // Pod A complains about a packet of B; A's own direction is the one that is carried.
    let packet = error(
        a.sends(),
        a.addr,
        bench.b.addr,
        (3, 3),
        &original(UDP, ends.reversed()),
    );
    let ran = bench.run(Hook::FromPod, a.ifindex, &packet);
    assert_eq!(ran.reason, Reason::CarriedToPod);
    assert_quotes(&ran.packet, a.addr, bench.b.addr, &original(UDP, ends.reversed()));
}

#[test]
fn about_nothing_we_know_leaves_no_translated_trace_and_no_pods_address() {
    let mut bench = Bench::new();
    let (a, uplink) = (bench.a, bench.uplink_ifindex);
    let unknown = Ends {
        src: INTERNET,
        src_port: 1,
        dst: a.addr,
        dst_port: 2,
    };
    let wire = (bench.uplink_mac, ROUTER_MAC);
    for (dst, reason) in [
        (INTERNET, Reason::SnatProtocol),
        (VNET_HOST, Reason::OtherProtocol),
    ] {
        let packet = error(wire, a.addr, dst, (3, 3), &original(UDP, unknown));
        let ran = bench.run(Hook::ToUplink, uplink, &packet);
        assert_eq!((ran.reason, ran.packet), (reason, packet));
    }
    let incoming = (ROUTER_MAC, bench.uplink_mac);
    let packet = error(
        incoming,
        HOP,
        NODE,
        (3, 3),
        &original(UDP, Ends { src: NODE, ..unknown }),
    );
    let ran = bench.run(Hook::FromUplink, uplink, &packet);
    assert_eq!((ran.reason, ran.packet), (Reason::NotToPod, packet));
}

/// A host that is not the flow's own may not speak to the pod through it: the error must be for the quoted sender.
#[test]
fn for_another_host_than_it_quotes_is_not_delivered() {
    let (mut bench, _, outside) = carried(UDP);
    let (b, uplink, link) = (bench.b, bench.uplink_ifindex, (ROUTER_MAC, bench.uplink_mac));
    let packet = error(link, HOP, b.addr, (3, 3), &original(UDP, outside));
    let ran = bench.run(Hook::FromUplink, uplink, &packet);
    assert_eq!((ran.reason, ran.packet), (Reason::OtherProtocol, packet));
}

#[test]
fn cut_short_of_eight_quoted_bytes_is_left_alone() {
    let (mut bench, _, outside) = carried(UDP);
    let whole = original(UDP, outside);
    let (uplink, link) = (bench.uplink_ifindex, (ROUTER_MAC, bench.uplink_mac));
    for cut in 0..28 {
        let packet = error(link, HOP, NODE, (3, 4), &whole[..cut]);
        let ran = bench.run(Hook::FromUplink, uplink, &packet);
        assert_eq!(
            (ran.reason, ran.packet),
            (Reason::NotToPod, packet),
            "{cut} bytes"
        );
    }
}
