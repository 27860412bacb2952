//! Frames that XDP redirects on the uplink, and those that it leaves to tc.

use causeway_common::{
    decide::tcp_flags,
    flow::{Exit, Progress, State},
    maps::PodEntry,
    reason::Reason,
    tuple::{ICMP, TCP, UDP},
};
use etherparse::PacketHeaders;

use crate::{
    bench::{Bench, Entry, Hook, INTERNET, Key, MTU, NODE, ROUTER_MAC},
    packets::{Ends, Link, Seen, ack, echo, seen, tcp, udp},
};

/// The pod's port, or its ping's identifier.
const OWN: u16 = 40_000;
/// What the flow has been translated to.
const PORT: u16 = 50_000;
const PROTOCOLS: [u8; 3] = [TCP, UDP, ICMP];

/// A carried flow whose answers tc has shown to XDP in this second.
struct Flow {
    bench: Bench,
    key: Key,
    protocol: u8,
}

impl Flow {
    fn of(protocol: u8) -> Self {
        let mut bench = Bench::new();
        let ends = Ends {
            src: bench.a.addr,
            src_port: OWN,
            dst: INTERNET,
            dst_port: if protocol == ICMP { 0 } else { 443 },
        };
        let (_, key) = bench.carry_translated(ends, protocol, PORT);
        let mut flow = Self { bench, key, protocol };
        flow.change(|_| {});
        flow
    }

    /// Writes the entry as it must be for XDP, but for a change.
    fn change(&mut self, change: impl FnOnce(&mut Entry)) {
        let mut entry = self.bench.flow(&self.key).unwrap();
        entry.in_mac = self.bench.uplink_mac;
        entry.last_seen = self.bench.now();
        entry.progress = Progress::of_packet(self.protocol, tcp_flags::ACK).bits();
        change(&mut entry);
        self.bench.insert(self.key, entry);
    }

    fn link(&self) -> Link {
        (ROUTER_MAC, self.bench.uplink_mac)
    }

    fn answer(&self) -> Vec<u8> {
        answer(self.protocol, self.link())
    }

    /// Runs a frame in a second in which the flow has had a packet.
    fn run(&mut self, frame: &[u8]) -> Option<Vec<u8>> {
        let mut entry = self.bench.flow(&self.key).unwrap();
        entry.last_seen = self.bench.now();
        self.bench.insert(self.key, entry);
        self.bench.run_xdp(frame)
    }
}

const ANSWER: Ends = Ends {
    src: INTERNET,
    src_port: 443,
    dst: NODE,
    dst_port: PORT,
};

fn answer(protocol: u8, link: Link) -> Vec<u8> {
    match protocol {
        TCP => ack(link, ANSWER),
        UDP => udp(link, ANSWER, 64, b"answer"),
        _ => echo(link, ANSWER, false),
    }
}

#[test]
fn an_answer_gets_the_pods_address_back_and_goes_into_the_pod() {
    for protocol in PROTOCOLS {
        let mut flow = Flow::of(protocol);
        let frame = flow.answer();
        let out = flow.run(&frame).expect("redirected");
        let (ports, payload) = match protocol {
            TCP => ((443, OWN), b"data".to_vec()),
            UDP => ((443, OWN), b"answer".to_vec()),
            _ => ((OWN, OWN), b"ping".to_vec()),
        };
        let expected = Seen {
            link: (flow.bench.a.host_mac, flow.bench.a.mac),
            src: INTERNET,
            dst: flow.bench.a.addr,
            ttl: 63,
            ports,
            payload,
        };
        assert_eq!(seen(&out, None), expected);
    }
}

#[test]
fn a_flow_without_translation_only_changes_hands() {
    let mut flow = Flow::of(UDP);
    let ends = Ends {
        dst: flow.bench.a.addr,
        dst_port: 53,
        ..ANSWER
    };
    let entry = Entry {
        nat: 0,
        ..flow.bench.flow(&flow.key).unwrap()
    };
    flow.key = crate::bench::key(ends, UDP);
    flow.bench.insert(flow.key, entry);
    let frame = udp(flow.link(), ends, 64, b"question");
    let out = seen(&flow.run(&frame).expect("redirected"), None);
    assert_eq!((out.dst, out.ports, out.ttl), (flow.bench.a.addr, (443, 53), 63));
}

/// RFC 768: zero means "none"; a sum that is zero is sent as ones.
#[test]
fn a_udp_checksum_of_zero_stays_and_none_becomes_zero() {
    let mut flow = Flow::of(UDP);
    let mut frame = flow.answer();
    frame[40..42].fill(0);
    let out = flow.run(&frame).expect("redirected");
    assert_eq!(seen(&out, Some(0)).ports, (443, OWN));

    // Of 65,536 payloads one has the sum that the translation makes zero.
    let link = flow.link();
    let mut ones = 0;
    for number in 0..=u16::MAX {
        let frame = udp(link, ANSWER, 64, &number.to_be_bytes());
        // One that is left to tc may have been the first of its second.
        let out = flow.bench.run_xdp(&frame).or_else(|| flow.run(&frame));
        if let Some(out) = out
            && out[40..42] == [0xff, 0xff]
        {
            assert_eq!(seen(&out, None).payload, number.to_be_bytes());
            ones += 1;
        }
    }
    assert_eq!(ones, 1);
}

#[test]
fn what_needs_more_than_a_rewrite_goes_on_as_it_came() {
    for protocol in PROTOCOLS {
        let mut flow = Flow::of(protocol);
        let frame = flow.answer();
        let with = |change: fn(&mut Vec<u8>)| {
            let mut frame = frame.clone();
            change(&mut frame);
            right_header(&mut frame);
            frame
        };
        let others = [
            ("last hop", with(|frame| frame[22] = 1)),
            ("fragment", with(|frame| frame[20] = 0x20)),
            ("last fragment", with(|frame| frame[21] = 1)),
            (
                "VLAN tag",
                with(|frame| frame.splice(12..12, [0x81, 0, 0, 7]).for_each(drop)),
            ),
            ("for another station", with(|frame| frame[5] ^= 1)),
            ("another remote", with(|frame| frame[29] ^= 1)),
            ("broken header checksum", {
                let mut frame = frame.clone();
                frame[24] ^= 1;
                frame
            }),
        ];
        assert!(flow.run(&frame).is_some(), "the frame itself is redirected");
        for (what, other) in others {
            assert!(flow.run(&other).is_none(), "{what}, protocol {protocol}");
        }
    }
}

/// A sender on the same machine leaves the checksum to its device, and a frame that is redirected has none.
#[test]
fn a_checksum_of_the_pseudo_header_alone_is_left_to_the_packet() {
    for (protocol, at) in [(TCP, 50), (UDP, 40)] {
        let mut flow = Flow::of(protocol);
        let mut frame = flow.answer();
        let len = u16::try_from(frame.len() - 34).unwrap();
        let sum = etherparse::checksum::Sum16BitWords::new()
            .add_4bytes(INTERNET.octets())
            .add_4bytes(NODE.octets())
            .add_2bytes([0, protocol])
            .add_2bytes(len.to_be_bytes());
        frame[at..at + 2].copy_from_slice(&(!sum.ones_complement()).to_ne_bytes());
        assert!(flow.run(&frame).is_none(), "protocol {protocol}");
    }
}

#[test]
fn beginning_and_end_of_a_connection_are_tcs_to_note() {
    let mut flow = Flow::of(TCP);
    let link = flow.link();
    let fin = tcp(
        link,
        ANSWER,
        64,
        |header| (header.ack, header.fin) = (true, true),
        &[],
    );
    let rst = tcp(link, ANSWER, 64, |header| header.rst = true, &[]);
    let syn = tcp(link, ANSWER, 64, |header| header.syn = true, &[]);
    assert!(flow.run(&fin).is_none() && flow.run(&rst).is_none());
    flow.change(|entry| entry.progress = Progress::from_bits(entry.progress).with(Progress::RST).bits());
    assert!(flow.run(&syn).is_none(), "a connection on an old tuple");
    flow.change(|entry| entry.progress = Progress::from_bits(entry.progress).with(Progress::FIN).bits());
    assert!(flow.run(&fin).is_some(), "it has been noted");
}

/// What is changed, and how.
type Change = (&'static str, fn(&mut Entry));

#[test]
fn flows_that_are_not_carried_to_a_pod_are_not_touched() {
    let mut flow = Flow::of(UDP);
    let frame = flow.answer();
    let changes: [Change; 6] = [
        ("the kernel's", |entry| entry.state = State::KERNEL),
        ("offered", |entry| entry.state = State::OFFERED),
        ("out again", |entry| entry.exit = Exit::UPLINK),
        ("not shown", |entry| entry.in_mac = [0; 6]),
        ("larger than the pod's MTU", |entry| entry.mtu = 30),
        ("another interface", |entry| entry.in_ifindex += 1),
    ];
    for (what, change) in changes {
        flow.change(change);
        assert!(flow.run(&frame).is_none(), "{what}");
        flow.change(|entry| (entry.state, entry.exit, entry.mtu) = (State::CARRIED, Exit::POD, MTU));
        let uplink = flow.bench.uplink_ifindex;
        flow.change(|entry| entry.in_ifindex = uplink);
    }
    assert!(flow.run(&frame).is_some());
    flow.change(|entry| entry.last_seen -= 2);
    assert!(flow.bench.run_xdp(&frame).is_none(), "first of its second");
}

#[test]
fn tc_shows_a_flow_once_a_second_if_its_pod_takes_frames() {
    let ready = PodEntry::READY;
    for (flags, takes) in [
        (ready, false),
        (ready | PodEntry::TAKES_FRAMES, true),
        (ready | PodEntry::TAKES_FRAMES | PodEntry::STACK_ONLY, false),
    ] {
        let mut flow = Flow::of(UDP);
        let (frame, pod) = (flow.answer(), flow.bench.a);
        flow.bench.register(&pod, flags);
        flow.change(|entry| {
            entry.in_mac = [0; 6];
            entry.last_seen -= 2;
        });
        assert!(flow.bench.run_xdp(&frame).is_none());
        let uplink = flow.bench.uplink_ifindex;
        let ran = flow.bench.run(Hook::FromUplink, uplink, &frame);
        assert_eq!(ran.reason, Reason::CarriedToPod);
        assert_eq!(flow.run(&frame).is_some(), takes, "flags {flags}");
        if takes {
            // From the pod that has been told otherwise, it is taken back as it was given.
            flow.bench.register(&pod, ready);
            flow.change(|entry| entry.last_seen -= 2);
            flow.bench.run(Hook::FromUplink, uplink, &frame);
            assert!(flow.run(&frame).is_none(), "shown no more");
        }
    }
}

/// Every byte of the headers with every value, and every length: what is redirected is a sound packet for the pod, right or
/// wrong as its sender has summed it up.
#[test]
fn no_frame_is_redirected_that_tc_would_not_carry_as_it_is() {
    for (protocol, headers) in [(TCP, 54), (UDP, 42), (ICMP, 42)] {
        let mut flow = Flow::of(protocol);
        let frame = flow.answer();
        let mut redirected = 0;
        for at in 0..headers {
            for value in 0..=u8::MAX {
                // Within a second of its last packet: a slow machine gets through few in that time.
                if value % 16 == 0 {
                    flow.change(|_| {});
                }
                let mut other = frame.clone();
                other[at] = value;
                right_header(&mut other);
                redirected += check(&mut flow, &other);
            }
        }
        for length in 14..frame.len() {
            assert!(
                flow.run(&frame[..length]).is_none(),
                "{length} bytes of {protocol}"
            );
        }
        // A few fields may have any value: the time to live, the type of service, the sequence numbers.
        assert!(redirected > 1000, "{redirected} of protocol {protocol}");
    }
}

/// Whether the frame was redirected, as a number.
fn check(flow: &mut Flow, frame: &[u8]) -> u32 {
    let Some(out) = flow.bench.run_xdp(frame) else {
        return 0;
    };
    let uplink = flow.bench.uplink_ifindex;
    let by_tc = flow.bench.run(Hook::FromUplink, uplink, frame);
    assert_eq!(by_tc.reason, Reason::CarriedToPod, "{frame:02x?}");
    assert_eq!(is_right(&out), is_right(frame), "{frame:02x?} became {out:02x?}");
    assert_eq!(out, by_tc.packet, "{frame:02x?}");
    1
}

/// Whether the transport checksum is the one that etherparse computes.
fn is_right(frame: &[u8]) -> bool {
    let headers = PacketHeaders::from_ethernet_slice(frame).unwrap();
    let Some(etherparse::NetHeaders::Ipv4(ip, _)) = headers.net else {
        return false;
    };
    match headers.transport {
        Some(etherparse::TransportHeader::Tcp(tcp)) => {
            tcp.checksum == tcp.calc_checksum_ipv4(&ip, headers.payload.slice()).unwrap()
        }
        Some(etherparse::TransportHeader::Udp(udp)) => {
            udp.checksum == udp.calc_checksum_ipv4(&ip, headers.payload.slice()).unwrap()
        }
        Some(etherparse::TransportHeader::Icmpv4(icmp)) => {
            icmp.checksum == icmp.icmp_type.calc_checksum(headers.payload.slice())
        }
        _ => false,
    }
}

/// Gives the IPv4 header the checksum that it must have after a change.
fn right_header(frame: &mut [u8]) {
    if frame[12..14] != [8, 0] {
        return;
    }
    frame[24..26].fill(0);
    let sum = etherparse::checksum::Sum16BitWords::new().add_slice(&frame[14..34]);
    frame[24..26].copy_from_slice(&sum.ones_complement().to_ne_bytes());
}
