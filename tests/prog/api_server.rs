//! Segments to the API server's addresses: which of them are answered with a reset, by what reset, and which reach a backend.

use std::net::Ipv4Addr;

use causeway_common::{
    flow::{Exit, Nat, State},
    maps::RangeClass,
    reason::Reason,
    tuple::TCP,
};
use etherparse::{NetHeaders, PacketHeaders, TcpHeader, TransportHeader};

use crate::{
    bench::{Bench, Entry, Hook, ROUTER_MAC, key},
    icmp_errors::{assert_quotes, error, original},
    packets::{Ends, ack, seen, syn, tcp},
};

const VIP: Ipv4Addr = Ipv4Addr::new(10, 226, 0, 4);
const BACKEND: Ipv4Addr = Ipv4Addr::new(10, 226, 0, 5);

fn ends(bench: &Bench, src_port: u16, dst_port: u16) -> Ends {
    Ends {
        src: bench.a.addr,
        src_port,
        dst: VIP,
        dst_port,
    }
}

fn bench(class: u8) -> Bench {
    let mut bench = Bench::new();
    bench.classify([10, 226, 0, 0], 28, RangeClass::API_SERVER);
    bench.classify(VIP.octets(), 32, class);
    bench
}

/// The TCP header of a reset, whose checksums etherparse finds right, and which goes the other way.
fn reset_of(sent: &[u8], answer: &[u8]) -> TcpHeader {
    let (there, back) = (seen(sent, None), seen(answer, None));
    assert_eq!((back.src, back.dst), (there.dst, there.src));
    assert_eq!(back.ports, (there.ports.1, there.ports.0));
    assert_eq!(back.link, (there.link.1, there.link.0));
    assert_eq!((back.ttl, back.payload), (64, Vec::new()));
    let headers = PacketHeaders::from_ethernet_slice(answer).unwrap();
    let Some(NetHeaders::Ipv4(ip, _)) = headers.net else {
        panic!("not IPv4")
    };
    assert!(ip.dont_fragment && !ip.more_fragments);
    assert_eq!(
        usize::from(ip.total_len) + 14,
        answer.len(),
        "nothing is left behind the header"
    );
    match headers.transport {
        Some(TransportHeader::Tcp(header)) => header,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_syn_to_an_address_that_was_given_up_is_answered_as_the_rfc_says() {
    for class in [RangeClass::RETIRED, RangeClass::CLOSED] {
        let mut bench = bench(class);
        let (link, uplink) = ((bench.uplink_mac, ROUTER_MAC), bench.uplink_ifindex);
        for (port, payload) in [(40_000, &b""[..]), (40_001, b"data in a SYN")] {
            let sent = tcp(
                link,
                ends(&bench, port, 443),
                64,
                |header| header.syn = true,
                payload,
            );
            let ran = bench.run(Hook::ToUplink, uplink, &sent);
            assert_eq!(ran.reason, Reason::RetiredAddress);
            let reset = reset_of(&sent, &ran.packet);
            assert!(reset.rst && reset.ack && !reset.syn);
            // RFC 9293 section 3.10.7.1: SEG.SEQ + SEG.LEN, in which a SYN counts.
            let next = 1000 + 1 + payload.len() as u32;
            assert_eq!((reset.sequence_number, reset.acknowledgment_number), (0, next));
        }
        // Who is connected goes on, and so does what is not TCP's business.
        let sent = ack(link, ends(&bench, 40_002, 443));
        assert_ne!(
            bench.run(Hook::ToUplink, uplink, &sent).reason.verdict().name(),
            "refused"
        );
    }
}

#[test]
fn a_connection_that_is_to_end_is_reset_at_its_next_segment() {
    let mut bench = bench(RangeClass::API_SERVER);
    let a = bench.a;
    let ends = ends(&bench, 40_000, 443);
    let entry = Entry {
        state: State::RESET,
        ..Entry::offer(a.ifindex, a.mac, bench.now())
    };
    bench.insert(key(ends, TCP), entry);
    let uplink = bench.uplink_ifindex;
    for (hook, ifindex, link) in [
        (Hook::FromPod, a.ifindex, a.sends()),
        (Hook::ToUplink, uplink, (bench.uplink_mac, ROUTER_MAC)),
    ] {
        let sent = tcp(
            link,
            ends,
            64,
            |header| (header.ack, header.acknowledgment_number) = (true, 77_777),
            b"data",
        );
        let ran = bench.run(hook, ifindex, &sent);
        assert_eq!(ran.reason, Reason::Drained);
        let reset = reset_of(&sent, &ran.packet);
        assert!(reset.rst && !reset.ack);
        assert_eq!(reset.sequence_number, 77_777);
        // A reset is not answered, and a new connection is a new one.
        let sent = tcp(link, ends, 64, |header| header.rst = true, b"");
        assert_ne!(bench.run(hook, ifindex, &sent).reason, Reason::Drained);
    }
    let ran = bench.run(Hook::FromPod, a.ifindex, &syn(a.sends(), ends));
    assert_eq!(ran.reason, Reason::Offered);
}

#[test]
fn a_connection_reaches_its_backend_and_the_answer_has_the_virtual_address() {
    let mut bench = bench(RangeClass::BALANCED);
    bench.balance(&[BACKEND.octets()], &[443, 4443]);
    let (a, uplink) = (bench.a, bench.uplink_ifindex);
    let (out, back) = ((bench.uplink_mac, ROUTER_MAC), (ROUTER_MAC, bench.uplink_mac));
    let ends = ends(&bench, 40_000, 443);
    let ran = bench.run(Hook::ToUplink, uplink, &syn(out, ends));
    assert_eq!(ran.reason, Reason::Balanced);
    let there = seen(&ran.packet, None);
    assert_eq!(
        (there.src, there.dst, there.ports),
        (a.addr, BACKEND, (40_000, 443))
    );
    let forward = bench.flow(&key(ends, TCP)).unwrap();
    assert_eq!(
        (forward.nat, forward.nat_addr),
        (Nat::TO_BACKEND, BACKEND.octets())
    );
    let answer = Ends {
        src: BACKEND,
        src_port: 443,
        dst: a.addr,
        dst_port: 40_000,
    };
    let sent = tcp(
        back,
        answer,
        64,
        |header| (header.syn, header.ack) = (true, true),
        b"",
    );
    let ran = bench.run(Hook::FromUplink, uplink, &sent);
    assert_eq!(ran.reason, Reason::Balanced);
    let here = seen(&ran.packet, None);
    assert_eq!((here.src, here.dst, here.ports), (VIP, a.addr, (443, 40_000)));
    // The SYN again meets its backend again, whoever stands in the slots by now.
    bench.balance(&[[10, 226, 0, 6]], &[443, 4443]);
    let ran = bench.run(Hook::ToUplink, uplink, &syn(out, ends));
    assert_eq!(seen(&ran.packet, None).dst, BACKEND);
}

/// A flow with a backend, carried or not, and its ends as the client knows them and as the wire does.
fn balanced(is_carried: bool) -> (Bench, Ends, Ends) {
    let mut bench = bench(RangeClass::BALANCED);
    bench.balance(&[BACKEND.octets()], &[443]);
    let (a, uplink) = (bench.a, bench.uplink_ifindex);
    let inside = ends(&bench, 40_000, 443);
    let outside = Ends {
        dst: BACKEND,
        ..inside
    };
    let sent = syn((bench.uplink_mac, ROUTER_MAC), inside);
    assert_eq!(bench.run(Hook::ToUplink, uplink, &sent).reason, Reason::Balanced);
    if is_carried {
        let (forward, answer) = (key(inside, TCP), key(outside.reversed(), TCP));
        let entry = Entry {
            state: State::CARRIED,
            in_ifindex: a.ifindex,
            in_mac: a.mac,
            exit: Exit::UPLINK,
            out_ifindex: uplink,
            ..bench.flow(&forward).unwrap()
        };
        bench.insert(forward, entry);
        let entry = Entry {
            state: State::CARRIED,
            in_ifindex: uplink,
            exit: Exit::POD,
            out_ifindex: a.ifindex,
            ..bench.flow(&answer).unwrap()
        };
        bench.insert(answer, entry);
    }
    (bench, inside, outside)
}

/// A router's, which has its own address, and the backend's, which has the virtual one from then on.
#[test]
fn an_error_about_a_packet_to_a_backend_is_about_the_virtual_address() {
    let router = Ipv4Addr::new(10, 240, 0, 1);
    for (is_carried, (from, seen_from)) in [false, true]
        .into_iter()
        .flat_map(|carried| [(carried, (router, router)), (carried, (BACKEND, VIP))])
    {
        let (mut bench, inside, outside) = balanced(is_carried);
        let uplink = bench.uplink_ifindex;
        let link = (ROUTER_MAC, bench.uplink_mac);
        let sent = error(link, from, inside.src, (3, 4), &original(TCP, outside));
        let ran = bench.run(Hook::FromUplink, uplink, &sent);
        let expected = if is_carried {
            Reason::CarriedToPod
        } else {
            Reason::Balanced
        };
        assert_eq!(ran.reason, expected);
        assert_quotes(&ran.packet, seen_from, inside.src, &original(TCP, inside));
    }
}

#[test]
fn an_error_about_an_answer_of_a_backend_reaches_the_backend() {
    for is_carried in [false, true] {
        let (mut bench, inside, outside) = balanced(is_carried);
        let (a, uplink) = (bench.a, bench.uplink_ifindex);
        let (hook, ifindex, link, expected) = if is_carried {
            (Hook::FromPod, a.ifindex, a.sends(), Reason::CarriedToUplink)
        } else {
            let link = (bench.uplink_mac, ROUTER_MAC);
            (Hook::ToUplink, uplink, link, Reason::Balanced)
        };
        let sent = error(link, a.addr, VIP, (3, 3), &original(TCP, inside.reversed()));
        let ran = bench.run(hook, ifindex, &sent);
        assert_eq!(ran.reason, expected);
        assert_quotes(&ran.packet, a.addr, BACKEND, &original(TCP, outside.reversed()));
    }
}

#[test]
fn what_no_backend_can_have_is_refused_by_name() {
    let mut bench = bench(RangeClass::BALANCED);
    bench.balance(&[], &[443]);
    let (out, uplink) = ((bench.uplink_mac, ROUTER_MAC), bench.uplink_ifindex);
    let to = |bench: &Bench, port| ends(bench, 40_000, port);
    let sent = syn(out, to(&bench, 443));
    let ran = bench.run(Hook::ToUplink, uplink, &sent);
    assert_eq!(ran.reason, Reason::NoBackend);
    assert!(reset_of(&sent, &ran.packet).rst);
    let sent = ack(out, to(&bench, 443));
    assert_eq!(
        bench.run(Hook::ToUplink, uplink, &sent).reason,
        Reason::NotBalanced
    );
    // Another port is nobody's to balance.
    let sent = syn(out, to(&bench, 80));
    assert_eq!(
        bench.run(Hook::ToUplink, uplink, &sent).reason,
        Reason::RecordedKernel
    );
    // A pod's own connection to the only backend, from the same port.
    bench.balance(&[BACKEND.octets()], &[443]);
    let direct = Ends {
        dst: BACKEND,
        ..to(&bench, 443)
    };
    let mut answer = Entry::kernel(0, bench.now());
    answer.progress = 0;
    bench.insert(key(direct.reversed(), TCP), answer);
    let sent = syn(out, to(&bench, 443));
    assert_eq!(
        bench.run(Hook::ToUplink, uplink, &sent).reason,
        Reason::BalanceRefused
    );
}
