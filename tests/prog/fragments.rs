//! Fragments of translated datagrams, at each hook, in and out of order.

use std::net::Ipv4Addr;

use causeway_common::{
    fragment::ROUNDS,
    reason::Reason,
    tuple::{ICMP, UDP},
};
use etherparse::{Ipv4Header, NetHeaders, PacketHeaders};

use crate::{
    bench::{Bench, Hook, INTERNET, NODE, ROUTER_MAC, VNET_HOST},
    packets::{Ends, Link, udp},
};

/// Cuts a datagram's frame into fragments of `size` payload bytes, a multiple of 8, with etherparse's checksums.
pub(crate) fn cut(frame: &[u8], size: usize, id: u16) -> Vec<Vec<u8>> {
    let (header, payload) = Ipv4Header::from_slice(&frame[14..]).unwrap();
    let pieces: Vec<&[u8]> = payload.chunks(size).collect();
    let last = pieces.len() - 1;
    let make = |(index, piece): (usize, &&[u8])| {
        let mut header = header.clone();
        header.identification = id;
        header.more_fragments = index != last;
        header.fragment_offset = ((index * size / 8) as u16).try_into().unwrap();
        header.set_payload_len(piece.len()).unwrap();
        header.header_checksum = header.calc_header_checksum();
        let mut fragment = frame[..14].to_vec();
        header.write_raw(&mut fragment).unwrap();
        fragment.extend_from_slice(piece);
        fragment
    };
    pieces.iter().enumerate().map(make).collect()
}

/// Puts fragments together again, and checks every header.
fn join(fragments: &[Vec<u8>]) -> Vec<u8> {
    let mut whole = fragments[0][..34].to_vec();
    for fragment in fragments {
        let headers = PacketHeaders::from_ethernet_slice(fragment).unwrap();
        let Some(NetHeaders::Ipv4(ip, _)) = headers.net else {
            panic!("not IPv4: {fragment:02x?}")
        };
        assert_eq!(ip.header_checksum, ip.calc_header_checksum());
        assert_eq!(
            (fragment[26..30].to_vec(), fragment[30..34].to_vec()),
            (whole[26..30].to_vec(), whole[30..34].to_vec())
        );
        whole.extend_from_slice(&fragment[34..]);
    }
    let (mut header, _) = Ipv4Header::from_slice(&whole[14..]).unwrap();
    header.more_fragments = false;
    header.set_payload_len(whole.len() - 34).unwrap();
    header.header_checksum = header.calc_header_checksum();
    let mut start = whole[..14].to_vec();
    header.write_raw(&mut start).unwrap();
    start.extend_from_slice(&whole[34..]);
    start
}

fn datagram(protocol: u8, link: Link, ends: Ends, length: usize) -> Vec<u8> {
    let payload: Vec<u8> = (0..length).map(|i| i as u8).collect();
    if protocol == UDP {
        return udp(link, ends, 64, &payload);
    }
    let mut frame = Vec::new();
    let builder =
        etherparse::PacketBuilder::ethernet2(link.0, link.1).ipv4(ends.src.octets(), ends.dst.octets(), 64);
    builder
        .icmpv4_echo_request(ends.src_port, 7)
        .write(&mut frame, &payload)
        .unwrap();
    frame
}

fn outwards(bench: &Bench, protocol: u8) -> Ends {
    Ends {
        src: bench.a.addr,
        src_port: 40_000,
        dst: INTERNET,
        dst_port: if protocol == ICMP { 0 } else { 443 },
    }
}

fn run_all(bench: &mut Bench, hook: Hook, ifindex: u32, fragments: &[Vec<u8>], reason: Reason) -> Vec<u8> {
    let out: Vec<Vec<u8>> = fragments
        .iter()
        .map(|fragment| {
            let ran = bench.run(hook, ifindex, fragment);
            assert_eq!(ran.reason, reason);
            ran.packet
        })
        .collect();
    join(&out)
}

#[test]
fn of_a_carried_flow_leave_with_the_nodes_address_whatever_the_last_one_holds() {
    for protocol in [UDP, ICMP] {
        for tail in 1..=9 {
            let mut bench = Bench::new();
            let (a, ends) = (bench.a, outwards(&bench, protocol));
            bench.carry_translated(ends, protocol, 50_000);
            let fragments = cut(&datagram(protocol, a.sends(), ends, 56 + tail), 32, 77);
            let whole = run_all(
                &mut bench,
                Hook::FromPod,
                a.ifindex,
                &fragments,
                Reason::CarriedToUplink,
            );
            let seen = crate::packets::seen(&whole, None);
            assert_eq!((seen.src, seen.ports.0, seen.ttl), (NODE, 50_000, 63));
        }
    }
}

#[test]
fn of_an_answer_reach_the_pod() {
    let mut bench = Bench::new();
    let ends = outwards(&bench, UDP);
    bench.carry_translated(ends, UDP, 50_000);
    let (a, uplink, link) = (bench.a, bench.uplink_ifindex, (ROUTER_MAC, bench.uplink_mac));
    let answer = Ends {
        dst: NODE,
        dst_port: 50_000,
        ..ends.reversed()
    };
    let fragments = cut(&datagram(UDP, link, answer, 100), 48, 9);
    let whole = run_all(
        &mut bench,
        Hook::FromUplink,
        uplink,
        &fragments,
        Reason::CarriedToPod,
    );
    let seen = crate::packets::seen(&whole, None);
    assert_eq!(
        (seen.dst, seen.ports.1, seen.link),
        (a.addr, 40_000, (a.host_mac, a.mac))
    );
}

#[test]
fn that_leave_through_the_stack_are_translated_by_the_first() {
    for protocol in [UDP, ICMP] {
        let mut bench = Bench::new();
        let uplink = bench.uplink_ifindex;
        let frame = datagram(
            protocol,
            (bench.uplink_mac, ROUTER_MAC),
            outwards(&bench, protocol),
            200,
        );
        let fragments = cut(&frame, 64, 1);
        let whole = run_all(&mut bench, Hook::ToUplink, uplink, &fragments, Reason::SnatKernel);
        assert_eq!(crate::packets::seen(&whole, None).src, NODE);
    }
}

#[test]
fn without_their_first_one_do_not_leave() {
    let mut bench = Bench::new();
    let uplink = bench.uplink_ifindex;
    let frame = datagram(UDP, (bench.uplink_mac, ROUTER_MAC), outwards(&bench, UDP), 200);
    let fragments = cut(&frame, 64, 1);
    for fragment in &fragments[1..] {
        let ran = bench.run(Hook::ToUplink, uplink, fragment);
        assert_eq!((ran.reason, &ran.packet), (Reason::SnatFragment, fragment));
    }
    // Another datagram's first one does not help.
    let other = cut(&frame, 64, 2);
    assert_eq!(
        bench.run(Hook::ToUplink, uplink, &other[0]).reason,
        Reason::SnatKernel
    );
    assert_eq!(
        bench.run(Hook::ToUplink, uplink, &fragments[1]).reason,
        Reason::SnatFragment
    );
}

#[test]
fn towards_excluded_ranges_pass_as_they_are_and_teach_nothing() {
    let mut bench = Bench::new();
    let uplink = bench.uplink_ifindex;
    let ends = Ends {
        dst: VNET_HOST,
        ..outwards(&bench, UDP)
    };
    let frame = datagram(UDP, (bench.uplink_mac, ROUTER_MAC), ends, 200);
    for fragment in cut(&frame, 64, 1) {
        let ran = bench.run(Hook::ToUplink, uplink, &fragment);
        assert_eq!((ran.reason, ran.packet), (Reason::Fragment, fragment));
    }
    assert_eq!(bench.flow_count(), 0);
}

#[test]
fn that_overtake_their_first_one_wait_behind_it_and_not_for_ever() {
    let mut bench = Bench::new();
    let ends = outwards(&bench, UDP);
    bench.carry_translated(ends, UDP, 50_000);
    let (uplink, link) = (bench.uplink_ifindex, (ROUTER_MAC, bench.uplink_mac));
    let answer = Ends {
        dst: NODE,
        dst_port: 50_000,
        ..ends.reversed()
    };
    let fragments = cut(&datagram(UDP, link, answer, 100), 48, 9);
    let ran = bench.run(Hook::FromUplink, uplink, &fragments[1]);
    assert_eq!((ran.reason, &ran.packet), (Reason::FragmentWaits, &fragments[1]));
    assert_eq!(
        bench.run(Hook::FromUplink, uplink, &fragments[0]).reason,
        Reason::CarriedToPod
    );
    assert_eq!(
        bench.run(Hook::FromUplink, uplink, &fragments[1]).reason,
        Reason::CarriedToPod
    );
    const { assert!(ROUNDS < 1000) };
}

#[test]
fn for_the_node_or_for_an_untranslated_pod_are_the_stacks() {
    let mut bench = Bench::new();
    let (a, uplink, link) = (bench.a, bench.uplink_ifindex, (ROUTER_MAC, bench.uplink_mac));
    let other: Ipv4Addr = VNET_HOST;
    for (dst, reason) in [(NODE, Reason::NotToPod), (a.addr, Reason::Fragment)] {
        let ends = Ends {
            src: other,
            src_port: 1,
            dst,
            dst_port: 53,
        };
        for fragment in cut(&datagram(UDP, link, ends, 100), 48, 9) {
            let ran = bench.run(Hook::FromUplink, uplink, &fragment);
            assert_eq!((ran.reason, ran.packet), (reason, fragment));
        }
    }
}
