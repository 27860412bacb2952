//! The programs for IPv6: headers behind headers, against etherparse; what is carried, and what is not.

mod malformed;

use std::net::Ipv6Addr;

use causeway_common::{
    extension::{Chain, Step},
    flow::{Exit, Flags, FlowEntry, Hop, Progress, State},
    reason::Reason,
    tuple::{FlowKey, TCP, UDP},
};
use causeway_tests::raw;
use etherparse::{NetSlice, SlicedPacket, TcpHeader, TransportSlice, UdpHeader};
use proptest::prelude::*;

use crate::bench::Hook;

const NODE: [u8; 16] = at(4);
const A: [u8; 16] = at(5);
const B: [u8; 16] = at(6);
const VNET: [u8; 16] = at(0x10);
const IP_END: usize = 14 + 40;
const MTU: u16 = 1500;

const fn at(host: u8) -> [u8; 16] {
    Ipv6Addr::new(0xfd00, 0x10, 0, 0, 0, 0, 0, host as u16).octets()
}

type Bench = crate::bench::Bench<Ipv6Addr>;

/// A node that masquerades no IPv6.
fn bench() -> Bench {
    let mut bench = Bench::of(4096);
    bench.configure(Ipv6Addr::UNSPECIFIED);
    bench
}

impl Bench {
    /// Runs a frame of pod A's through the program on its interface. Returns the reason that was counted, and the frame.
    fn run_from_pod(&mut self, frame: &[u8]) -> (Reason, Vec<u8>) {
        let ran = self.run(Hook::FromPod, self.a.ifindex, frame);
        (ran.reason, ran.packet)
    }

    /// A frame from pod A.
    fn frame(&self, dst: [u8; 16], hop_limit: u8, next: u8, payload: &[u8]) -> Vec<u8> {
        let (mac, host_mac) = self.a.sends();
        raw::ipv6([mac, host_mac], [A, dst], hop_limit, next, payload).unwrap()
    }
}

fn udp(data: &[u8]) -> Vec<u8> {
    let header = etherparse::Ipv6Header {
        source: A,
        destination: B,
        ..Default::default()
    };
    let header = UdpHeader::with_ipv6_checksum(4000, 53, &header, data).unwrap();
    [&header.to_bytes()[..], data].concat()
}

fn key(dst: [u8; 16], protocol: u8) -> FlowKey<[u8; 16]> {
    FlowKey {
        src: A,
        dst,
        src_port: 4000u16.to_be_bytes(),
        dst_port: 53u16.to_be_bytes(),
        protocol,
        _pad: [0; 3],
    }
}

/// Options of one kind (RFC 8200 section 4.2: a PadN fills each header).
fn header(kind: u8, next: u8, units: u8) -> Vec<u8> {
    match kind {
        // Of a whole packet that calls itself a fragment.
        44 => vec![next, 0, 0, 0, 0, 0, 0, 9],
        // Nobody left to visit.
        43 => [
            &[next, units, 4, 0, 0, 0, 0, 0][..],
            &vec![0; usize::from(units) * 8],
        ]
        .concat(),
        // In words, less two.
        51 => [&[next, 4][..], &[0; 22]].concat(),
        _ => [
            &[next, units, 1, 4 + units * 8, 0, 0, 0, 0][..],
            &vec![0; usize::from(units) * 8],
        ]
        .concat(),
    }
}

/// A chain of headers before a UDP datagram: the number of the first, and all bytes.
fn chain(kinds: &[(u8, u8)]) -> (u8, Vec<u8>) {
    let mut payload = udp(b"behind");
    let mut next = UDP;
    for (kind, units) in kinds.iter().rev() {
        payload = [header(*kind, next, *units), payload].concat();
        next = *kind;
    }
    (next, payload)
}

fn kinds() -> impl Strategy<Value = Vec<(u8, u8)>> {
    // In an order that every parser takes: routers' options first (RFC 8200 section 4.1), each once but destination options.
    let some = |kind: u8| prop_oneof![Just(None), (0u8..3).prop_map(move |units| Some((kind, units)))];
    (some(0), some(60), some(43), some(44), some(51), some(60))
        .prop_map(|(a, b, c, d, e, f)| [a, b, c, d, e, f].into_iter().flatten().collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn etherparse_finds_the_same_transport_header(kinds in kinds()) {
        let (first, payload) = chain(&kinds);
        let frame = raw::ipv6([[2; 6]; 2], [A, B], 64, first, &payload).unwrap();
        let sliced = SlicedPacket::from_ethernet(&frame).unwrap();
        let Some(NetSlice::Ipv6(ip)) = &sliced.net else { panic!("no IPv6 header") };
        prop_assert!(matches!(sliced.transport, Some(TransportSlice::Udp(_))));
        let theirs = frame.len() - ip.payload().payload.len();

        let mut chain = Chain::begin(first, IP_END as u8);
        let mut headers = 0;
        while chain.step() == Step::Read {
            let at = usize::from(chain.l4());
            chain.follow(frame[at..at + 8].try_into().unwrap());
            headers += 1;
        }
        prop_assert!(headers <= Chain::MOST);
        prop_assert_eq!((chain.protocol(), usize::from(chain.l4())), (UDP, theirs));
        prop_assert!(chain.end().is_plain());
        prop_assert!(chain.is_first() && !chain.is_fragment());
    }
}

/// The program finds what the walk finds: the flow's offer has the ports behind all headers.
#[test]
fn a_datagram_is_known_behind_its_headers() {
    let mut bench = bench();
    for kinds in [
        &[][..],
        &[(60, 0)],
        &[(43, 2), (60, 1)],
        &[(44, 0)],
        &[(60, 2), (44, 0), (51, 0)],
        &[(0, 0)],
        &[(0, 1), (60, 0)],
    ] {
        let (first, payload) = chain(kinds);
        let (reason, _) = {
            let frame = bench.frame(B, 64, first, &payload);
            bench.run_from_pod(&frame)
        };
        // With anything between, the kernel keeps the flow, as of IPv4 with options.
        let expected = if kinds.is_empty() {
            Reason::Offered
        } else {
            Reason::NeverOffered
        };
        assert_eq!(reason, expected, "{kinds:?}");
        let entry = bench.flow(&key(B, UDP)).expect("no entry");
        assert_eq!(entry.in_ifindex, bench.a.ifindex);
        bench.remove(&key(B, UDP));
    }
    for kinds in [&[(60, 0), (0, 0)][..], &[(60, 2); 7]] {
        let (first, payload) = chain(kinds);
        let (reason, _) = {
            let frame = bench.frame(B, 64, first, &payload);
            bench.run_from_pod(&frame)
        };
        assert_eq!(
            (reason, bench.flow(&key(B, UDP))),
            (Reason::OtherProtocol, None),
            "{kinds:?}"
        );
    }
}

/// A carried packet differs from what the pod sent in its MACs and its hop limit, and in nothing else.
#[test]
fn a_carried_packet_is_addressed_to_the_next_hop() {
    let mut bench = bench();
    let (mac, host_mac) = bench.b.sends();
    let now = causeway::datapath::now();
    let ends = [
        (B, Exit::POD, bench.b.ifindex),
        (VNET, Exit::UPLINK, bench.uplink_ifindex),
    ];
    for (dst, exit, ifindex) in ends {
        for protocol in [UDP, TCP] {
            let mut entry = FlowEntry::<[u8; 16]>::offer(bench.a.ifindex, bench.a.mac, now);
            entry.leave_by(&Hop {
                exit,
                flags: Flags::FIXED_HOP,
                mtu: MTU,
                ifindex,
                dst_mac: mac,
                src_mac: host_mac,
            });
            entry.state = State::CARRIED;
            entry.progress = Progress::of_packet(protocol, 0x10).bits();
            bench.insert(key(dst, protocol), entry);
            let payload = if protocol == UDP {
                udp(b"carried")
            } else {
                let mut tcp = TcpHeader::new(4000, 53, 1, 1000);
                tcp.ack = true;
                [&tcp.to_bytes()[..], b"carried"].concat()
            };
            for headers in [&[][..], &header(60, protocol, 1)] {
                let first = if headers.is_empty() { protocol } else { 60 };
                let frame = bench.frame(dst, 64, first, &[headers, &payload].concat());
                let (reason, out) = bench.run_from_pod(&frame);
                let carried = if exit == Exit::POD {
                    Reason::CarriedToPod
                } else {
                    Reason::CarriedToUplink
                };
                assert_eq!(reason, carried);
                let mut expected = frame.clone();
                expected[..6].copy_from_slice(&mac);
                expected[6..12].copy_from_slice(&host_mac);
                expected[21] = 63;
                assert_eq!(out, expected);
            }
            let last = bench.frame(dst, 1, protocol, &payload);
            assert_eq!(bench.run_from_pod(&last), (Reason::TtlExpiring, last));
            let large = bench.frame(dst, 64, protocol, &[&payload[..], &vec![0; 1500]].concat());
            // The datagram's own length says less than the packet's: that is the kernel's to judge in either case.
            assert_eq!(bench.run_from_pod(&large), (Reason::TooBig, large));
        }
    }
}

#[test]
fn the_sender_is_checked() {
    let mut bench = bench();
    let (mac, host_mac) = bench.a.sends();
    let payload = udp(b"whose");
    let mut send = |src_mac, src| {
        let frame = raw::ipv6([src_mac, host_mac], [src, VNET], 64, UDP, &payload).unwrap();
        bench.run_from_pod(&frame).0
    };
    assert_eq!(send(mac, A), Reason::Offered);
    for src in [B, NODE, at(99), [0; 16], Ipv6Addr::LOCALHOST.octets()] {
        assert_eq!(send(mac, src), Reason::SourceAddress, "{:?}", Ipv6Addr::from(src));
    }
    assert_eq!(send([2, 9, 9, 9, 9, 9], A), Reason::SourceMac);
}

/// Cut at every byte, and with every length that the header can claim: the kernel judges it, and no entry is made.
#[test]
fn what_contradicts_itself_is_the_kernels() {
    let mut bench = bench();
    let whole = bench.frame(B, 64, UDP, &udp(b"whole"));
    // The kernel runs no program on less than a header (`bpf_prog_test_run_skb`, Linux 6.18).
    for length in IP_END..whole.len() {
        let (reason, out) = bench.run_from_pod(&whole[..length]);
        assert_eq!(
            (reason, out),
            (Reason::Malformed, whole[..length].to_vec()),
            "{length} bytes"
        );
    }
    for claimed in (0..8).chain([whole.len() as u16 - IP_END as u16 + 1, u16::MAX]) {
        let mut frame = whole.clone();
        frame[18..20].copy_from_slice(&claimed.to_be_bytes());
        assert_eq!(
            bench.run_from_pod(&frame).0,
            Reason::Malformed,
            "{claimed} claimed"
        );
    }
    let mut frame = whole.clone();
    frame[14] = 0x45;
    assert_eq!(bench.run_from_pod(&frame).0, Reason::Malformed);
    assert_eq!(bench.flow(&key(B, UDP)), None);
    assert_eq!(bench.run_from_pod(&whole).0, Reason::Offered);
}
