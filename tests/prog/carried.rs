//! Established flows: one lookup, rewritten, redirected.

use causeway_common::{
    flow::{Progress, State},
    reason::Reason,
    tuple::{ICMP, TCP, UDP},
};

use crate::{
    bench::{Bench, Entry, Hook, INTERNET, MTU, NODE, ROUTER_MAC, key},
    packets::{self, Ends, Seen, ack, echo, seen, tcp, udp},
};

fn to_internet(bench: &Bench, src_port: u16) -> Ends {
    Ends {
        src: bench.a.addr,
        src_port,
        dst: INTERNET,
        dst_port: 443,
    }
}

fn between_pods(bench: &Bench) -> Ends {
    Ends {
        src: bench.a.addr,
        src_port: 40_000,
        dst: bench.b.addr,
        dst_port: 80,
    }
}

#[test]
fn a_translated_flow_leaves_with_the_nodes_address_and_the_routers_mac() {
    for port in [40_000, 50_000] {
        let mut bench = Bench::new();
        let ends = to_internet(&bench, 40_000);
        bench.carry_translated(ends, TCP, port);
        let (a, uplink_mac) = (bench.a, bench.uplink_mac);
        let ran = bench.run(Hook::FromPod, a.ifindex, &ack(a.sends(), ends));
        assert_eq!(ran.reason, Reason::CarriedToUplink);
        let expected = Seen {
            link: (uplink_mac, ROUTER_MAC),
            src: NODE,
            dst: INTERNET,
            ttl: 63,
            ports: (port, 443),
            payload: b"data".to_vec(),
        };
        assert_eq!(seen(&ran.packet, None), expected);
    }
}

#[test]
fn the_answer_gets_the_pods_address_back_and_goes_into_the_pod() {
    let mut bench = Bench::new();
    let ends = to_internet(&bench, 40_000);
    bench.carry_translated(ends, UDP, 50_000);
    let answer = Ends {
        src: INTERNET,
        src_port: 443,
        dst: NODE,
        dst_port: 50_000,
    };
    let (a, uplink) = (bench.a, bench.uplink_ifindex);
    let packet = udp((ROUTER_MAC, bench.uplink_mac), answer, 60, b"answer");
    let ran = bench.run(Hook::FromUplink, uplink, &packet);
    assert_eq!(ran.reason, Reason::CarriedToPod);
    let result = seen(&ran.packet, None);
    assert_eq!(
        (result.dst, result.ports, result.ttl),
        (a.addr, (443, 40_000), 59)
    );
    assert_eq!(result.link, (a.host_mac, a.mac));
}

#[test]
fn echo_identifiers_are_translated_like_ports() {
    let mut bench = Bench::new();
    let ends = Ends {
        src: bench.a.addr,
        src_port: 17,
        dst: INTERNET,
        dst_port: 0,
    };
    bench.carry_translated(ends, ICMP, 4711);
    let a = bench.a;
    let ran = bench.run(Hook::FromPod, a.ifindex, &echo(a.sends(), ends, true));
    assert_eq!(ran.reason, Reason::CarriedToUplink);
    assert_eq!(seen(&ran.packet, None).ports, (4711, 4711));

    let answer = Ends {
        src: INTERNET,
        src_port: 0,
        dst: NODE,
        dst_port: 4711,
    };
    let uplink = bench.uplink_ifindex;
    let packet = echo((ROUTER_MAC, bench.uplink_mac), answer, false);
    let ran = bench.run(Hook::FromUplink, uplink, &packet);
    assert_eq!(ran.reason, Reason::CarriedToPod);
    assert_eq!(
        (seen(&ran.packet, None).ports, seen(&ran.packet, None).dst),
        ((17, 17), a.addr)
    );
}

/// A key has an answer's code where it has a question's identifier. Which of the two a packet is, it says itself.
#[test]
fn a_ping_of_the_other_direction_is_not_taken_for_the_flows() {
    let mut bench = Bench::new();
    let ends = Ends {
        src: bench.a.addr,
        src_port: 80,
        dst: INTERNET,
        dst_port: 0,
    };
    bench.carry_translated(ends, ICMP, 81);
    let (a, uplink) = (bench.a, bench.uplink_ifindex);
    let with_code = |mut ping: Vec<u8>, code| {
        ping[35] = code;
        ping
    };

    let reply = with_code(echo(a.sends(), ends, false), 80);
    let ran = bench.run(Hook::FromPod, a.ifindex, &reply);
    assert_eq!((ran.reason, &ran.packet), (Reason::MidFlow, &reply));
    let emitted = with_code(echo((bench.uplink_mac, ROUTER_MAC), ends, false), 80);
    let ran = bench.run_forwarded(Hook::ToUplink, uplink, a.ifindex, &emitted);
    assert_eq!((ran.reason, &ran.packet), (Reason::SnatNoMapping, &emitted));

    let question = Ends {
        src: INTERNET,
        src_port: 0,
        dst: NODE,
        dst_port: 0,
    };
    let ping = with_code(echo((ROUTER_MAC, bench.uplink_mac), question, true), 81);
    let ran = bench.run(Hook::FromUplink, uplink, &ping);
    assert_eq!((ran.reason, &ran.packet), (Reason::NotToPod, &ping));
}

#[test]
fn pods_talk_with_their_own_addresses() {
    let mut bench = Bench::new();
    let (ends, a, b) = (between_pods(&bench), bench.a, bench.b);
    bench.carry_between_pods(key(ends, TCP));
    let ran = bench.run(Hook::FromPod, a.ifindex, &ack(a.sends(), ends));
    assert_eq!(ran.reason, Reason::CarriedToPod);
    let result = seen(&ran.packet, None);
    assert_eq!((result.src, result.dst, result.ttl), (a.addr, b.addr, 63));
    assert_eq!(result.link, (b.host_mac, b.mac));
}

#[test]
fn a_udp_checksum_that_was_left_out_stays_out() {
    let mut bench = Bench::new();
    let ends = to_internet(&bench, 40_000);
    bench.carry_translated(ends, UDP, 50_000);
    let a = bench.a;
    let mut packet = udp(a.sends(), ends, 64, b"no checksum");
    packet[40..42].fill(0);
    let ran = bench.run(Hook::FromPod, a.ifindex, &packet);
    assert_eq!(seen(&ran.packet, Some(0)).src, NODE);
}

/// RFC 768: a computed zero is transmitted as all ones. The payload is chosen so that the new sum is zero.
#[test]
fn a_udp_checksum_that_comes_out_as_zero_is_sent_as_ones() {
    let mut bench = Bench::new();
    let ends = to_internet(&bench, 40_000);
    bench.carry_translated(ends, UDP, 50_000);
    let a = bench.a;
    let outside = Ends {
        src: NODE,
        src_port: 50_000,
        ..ends
    };
    let probe = udp(a.sends(), outside, 64, &[0, 0]);
    // One's complement: what the checksum is with a payload of zeros is the payload that makes it zero.
    let payload = [probe[40], probe[41]];
    let ran = bench.run(Hook::FromPod, a.ifindex, &udp(a.sends(), ends, 64, &payload));
    assert_eq!(ran.reason, Reason::CarriedToUplink);
    assert_eq!(seen(&ran.packet, Some(0xffff)).payload, payload);
}

#[test]
fn ip_options_do_not_disturb_a_carried_flow() {
    let mut bench = Bench::new();
    let ends = to_internet(&bench, 40_000);
    bench.carry_translated(ends, TCP, 50_000);
    let a = bench.a;
    let mut header = etherparse::TcpHeader::new(ends.src_port, ends.dst_port, 1, 100);
    header.ack = true;
    let mut ip = etherparse::Ipv4Header::new(
        0,
        64,
        etherparse::IpNumber::TCP,
        ends.src.octets(),
        ends.dst.octets(),
    )
    .unwrap();
    ip.options = [1, 1, 1, 1, 1, 1, 1, 0][..].try_into().unwrap();
    let mut packet = Vec::new();
    etherparse::PacketBuilder::ethernet2(a.mac, a.host_mac)
        .ip(etherparse::IpHeaders::Ipv4(
            ip,
            etherparse::Ipv4Extensions::default(),
        ))
        .tcp_header(header)
        .write(&mut packet, b"options")
        .unwrap();
    let ran = bench.run(Hook::FromPod, a.ifindex, &packet);
    assert_eq!(ran.reason, Reason::CarriedToUplink);
    assert_eq!(
        (seen(&ran.packet, None).src, seen(&ran.packet, None).ports),
        (NODE, (50_000, 443))
    );
}

#[test]
fn an_expiring_ttl_goes_to_the_kernel_unchanged_and_an_answer_with_it_translated() {
    let mut bench = Bench::new();
    let ends = to_internet(&bench, 40_000);
    bench.carry_translated(ends, UDP, 50_000);
    let (a, uplink) = (bench.a, bench.uplink_ifindex);
    for ttl in [0, 1] {
        let packet = udp(a.sends(), ends, ttl, b"trace");
        let ran = bench.run(Hook::FromPod, a.ifindex, &packet);
        assert_eq!((ran.reason, &ran.packet), (Reason::TtlExpiring, &packet));
    }
    let answer = Ends {
        src: INTERNET,
        src_port: 443,
        dst: NODE,
        dst_port: 50_000,
    };
    let ran = bench.run(
        Hook::FromUplink,
        uplink,
        &udp((ROUTER_MAC, bench.uplink_mac), answer, 1, b"late"),
    );
    assert_eq!(ran.reason, Reason::TtlExpiring);
    let result = seen(&ran.packet, None);
    assert_eq!((result.dst, result.ports.1, result.ttl), (a.addr, 40_000, 1));
}

#[test]
fn a_packet_larger_than_the_next_mtu_goes_to_the_kernel() {
    let mut bench = Bench::new();
    let (ends, a) = (between_pods(&bench), bench.a);
    bench.carry_between_pods(key(ends, UDP));
    let fits = udp(a.sends(), ends, 64, &vec![1; usize::from(MTU) - 28]);
    assert_eq!(
        bench.run(Hook::FromPod, a.ifindex, &fits).reason,
        Reason::CarriedToPod
    );
    let over = udp(a.sends(), ends, 64, &vec![1; usize::from(MTU) - 27]);
    let ran = bench.run(Hook::FromPod, a.ifindex, &over);
    assert_eq!((ran.reason, &ran.packet), (Reason::TooBig, &over));
}

#[test]
fn a_quiet_udp_flow_without_snat_shows_itself_to_conntrack() {
    let mut bench = Bench::new();
    let (ends, a) = (between_pods(&bench), bench.a);
    let key = key(ends, UDP);
    bench.carry_between_pods(key);
    let packet = udp(a.sends(), ends, 64, b"x");
    let earlier = bench.now().wrapping_sub(60);
    let entry = Entry {
        last_seen: earlier,
        last_up: earlier,
        ..bench.flow(&key).unwrap()
    };
    bench.insert(key, entry);
    assert_eq!(
        bench.run(Hook::FromPod, a.ifindex, &packet).reason,
        Reason::StackKeepalive
    );
    assert_eq!(
        bench.run(Hook::FromPod, a.ifindex, &packet).reason,
        Reason::CarriedToPod
    );
}

#[test]
fn fins_and_resets_are_noted_on_both_halves() {
    let mut bench = Bench::new();
    let ends = to_internet(&bench, 40_000);
    let (forward, answer) = bench.carry_translated(ends, TCP, 40_000);
    let (a, uplink) = (bench.a, bench.uplink_ifindex);
    let fin = tcp(
        a.sends(),
        ends,
        64,
        |header| (header.fin, header.ack) = (true, true),
        &[],
    );
    assert_eq!(
        bench.run(Hook::FromPod, a.ifindex, &fin).reason,
        Reason::CarriedToUplink
    );
    let reset = tcp(
        (ROUTER_MAC, bench.uplink_mac),
        Ends {
            src: INTERNET,
            src_port: 443,
            dst: NODE,
            dst_port: 40_000,
        },
        64,
        |header| header.rst = true,
        &[],
    );
    assert_eq!(
        bench.run(Hook::FromUplink, uplink, &reset).reason,
        Reason::CarriedToPod
    );
    let (forward, answer) = (
        bench.flow(&forward).unwrap().progress(),
        bench.flow(&answer).unwrap().progress(),
    );
    assert!(forward.has(Progress::SPOKE.with(Progress::FIN)) && !forward.has(Progress::RST));
    assert!(answer.has(Progress::RST) && forward.either(Progress::RST));
    assert_eq!(forward, answer.swapped());
}

#[test]
fn a_syn_after_the_end_asks_the_kernel_again() {
    let mut bench = Bench::new();
    let (ends, a) = (between_pods(&bench), bench.a);
    let key = key(ends, TCP);
    bench.carry_between_pods(key);
    let over = Progress::SPOKE.with(Progress::FIN).and_peer(Progress::FIN);
    let entry = Entry {
        progress: over.bits(),
        ..bench.flow(&key).unwrap()
    };
    bench.insert(key, entry);
    bench.insert(key.reversed(), entry);
    let ran = bench.run(Hook::FromPod, a.ifindex, &packets::syn(a.sends(), ends));
    assert_eq!(ran.reason, Reason::Offered);
    assert_eq!(bench.flow(&key).unwrap().state, State::OFFERED);
    assert_eq!(
        bench.flow(&key.reversed()).unwrap().state,
        State::OFFERED,
        "both directions start again"
    );
}

#[test]
fn another_pod_cannot_use_a_flow() {
    let mut bench = Bench::new();
    let ends = to_internet(&bench, 40_000);
    bench.carry_translated(ends, TCP, 40_000);
    let (a, b) = (bench.a, bench.b);
    let ran = bench.run(Hook::FromPod, b.ifindex, &ack(b.sends(), ends));
    assert_eq!(ran.reason, Reason::SourceAddress);
    let ran = bench.run(Hook::FromPod, a.ifindex, &ack((b.mac, a.host_mac), ends));
    assert_eq!(ran.reason, Reason::SourceMac);
    let uplink = bench.uplink_ifindex;
    let packet = ack((ROUTER_MAC, bench.uplink_mac), ends);
    assert_eq!(
        bench.run(Hook::FromUplink, uplink, &packet).reason,
        Reason::SpoofedFromWire
    );
}
