//! SCTP, GRE, ESP, IPIP and whatever else has no ports that we know: by address alone.

use std::net::Ipv4Addr;

use causeway_common::reason::Reason;
use etherparse::{IpNumber, Ipv4Header};

use crate::{
    bench::{Bench, Hook, INTERNET, NODE, ROUTER_MAC, VNET_HOST},
    packets::Link,
};

const PROTOCOLS: [u8; 5] = [132, 47, 50, 4, 253];

pub(crate) fn packet(
    link: Link,
    protocol: u8,
    src: Ipv4Addr,
    dst: Ipv4Addr,
    fragment_offset: u16,
) -> Vec<u8> {
    let payload = b"what is in it is nobody's business";
    let mut header = Ipv4Header::new(
        payload.len() as u16,
        64,
        IpNumber(protocol),
        src.octets(),
        dst.octets(),
    )
    .unwrap();
    header.fragment_offset = fragment_offset.try_into().unwrap();
    header.header_checksum = header.calc_header_checksum();
    let mut frame = [&link.1[..], &link.0[..], &[8, 0]].concat();
    header.write_raw(&mut frame).unwrap();
    frame.extend_from_slice(payload);
    frame
}

/// Addresses by etherparse, after its checksum is found right, and everything behind the header unchanged.
fn addresses(frame: &[u8], sent: &[u8]) -> (Ipv4Addr, Ipv4Addr) {
    let (header, payload) = Ipv4Header::from_slice(&frame[14..]).unwrap();
    assert_eq!(header.header_checksum, header.calc_header_checksum());
    assert_eq!(payload, &sent[34..]);
    (header.source.into(), header.destination.into())
}

fn wire(bench: &Bench) -> Link {
    (bench.uplink_mac, ROUTER_MAC)
}

#[test]
fn leave_with_the_nodes_address_and_come_back_to_the_pod() {
    for protocol in PROTOCOLS {
        let mut bench = Bench::new();
        let (a, uplink) = (bench.a, bench.uplink_ifindex);
        // Every fragment is alike: there are no ports to miss.
        for offset in [0, 8] {
            let out = packet(wire(&bench), protocol, a.addr, INTERNET, offset);
            let ran = bench.run(Hook::ToUplink, uplink, &out);
            assert_eq!(
                ran.reason,
                Reason::SnatKernel,
                "protocol {protocol}, offset {offset}"
            );
            assert_eq!(addresses(&ran.packet, &out), (NODE, INTERNET));

            let back = packet((ROUTER_MAC, bench.uplink_mac), protocol, INTERNET, NODE, offset);
            let ran = bench.run(Hook::FromUplink, uplink, &back);
            assert_eq!(ran.reason, Reason::KernelFlowTranslated);
            assert_eq!(addresses(&ran.packet, &back), (INTERNET, a.addr));
        }
    }
}

#[test]
fn of_a_second_pod_towards_the_same_remote_are_refused() {
    let mut bench = Bench::new();
    let (a, b, uplink) = (bench.a, bench.b, bench.uplink_ifindex);
    let first = packet(wire(&bench), 47, a.addr, INTERNET, 0);
    assert_eq!(
        bench.run(Hook::ToUplink, uplink, &first).reason,
        Reason::SnatKernel
    );
    let second = packet(wire(&bench), 47, b.addr, INTERNET, 0);
    let ran = bench.run(Hook::ToUplink, uplink, &second);
    assert_eq!((ran.reason, ran.packet), (Reason::SnatProtocol, second));
    // Another remote, and another protocol, are free.
    for (protocol, dst) in [(47, Ipv4Addr::new(203, 0, 113, 11)), (50, INTERNET)] {
        let other = packet(wire(&bench), protocol, b.addr, dst, 0);
        assert_eq!(
            bench.run(Hook::ToUplink, uplink, &other).reason,
            Reason::SnatKernel
        );
    }
}

#[test]
fn of_the_node_itself_come_first() {
    let mut bench = Bench::new();
    let (a, uplink) = (bench.a, bench.uplink_ifindex);
    let pods = packet(wire(&bench), 50, a.addr, INTERNET, 0);
    assert_eq!(
        bench.run(Hook::ToUplink, uplink, &pods).reason,
        Reason::SnatKernel
    );
    let nodes = packet(wire(&bench), 50, NODE, INTERNET, 0);
    let ran = bench.run(Hook::ToUplink, uplink, &nodes);
    assert_eq!((ran.reason, ran.packet), (Reason::NotFromPod, nodes));
    let answer = packet((ROUTER_MAC, bench.uplink_mac), 50, INTERNET, NODE, 0);
    let ran = bench.run(Hook::FromUplink, uplink, &answer);
    assert_eq!((ran.reason, ran.packet), (Reason::NotToPod, answer));
    assert_eq!(
        bench.run(Hook::ToUplink, uplink, &pods).reason,
        Reason::SnatProtocol
    );
}

#[test]
fn towards_excluded_ranges_and_as_answers_keep_the_pods_address() {
    let mut bench = Bench::new();
    let (a, uplink) = (bench.a, bench.uplink_ifindex);
    let vnet = packet(wire(&bench), 4, a.addr, VNET_HOST, 0);
    let ran = bench.run(Hook::ToUplink, uplink, &vnet);
    assert_eq!((ran.reason, ran.packet), (Reason::RecordedKernel, vnet));

    let question = packet((a.host_mac, a.mac), 132, INTERNET, a.addr, 0);
    let ran = bench.run_forwarded(Hook::ToPod, a.ifindex, uplink, &question);
    assert_eq!((ran.reason, ran.packet), (Reason::RecordedKernel, question));
    let answer = packet(wire(&bench), 132, a.addr, INTERNET, 0);
    let ran = bench.run(Hook::ToUplink, uplink, &answer);
    assert_eq!((ran.reason, ran.packet), (Reason::KernelFlow, answer));
}
