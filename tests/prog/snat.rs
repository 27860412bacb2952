//! The uplink's egress: a pod's packet leaves translated or not at all.

use causeway_common::{
    flow::{Flags, Nat, State},
    reason::Reason,
    tuple::{ICMP, TCP, UDP},
};

use crate::{
    bench::{Bench, Entry, Hook, INTERNET, NODE, ROUTER_MAC, VNET_HOST, key},
    packets::{Ends, Link, ack, echo, seen, syn, udp},
};

fn wire(bench: &Bench) -> Link {
    (bench.uplink_mac, ROUTER_MAC)
}

fn leaves(bench: &mut Bench, packet: &[u8]) -> crate::bench::Ran {
    let uplink = bench.uplink_ifindex;
    bench.run(Hook::ToUplink, uplink, packet)
}

fn outwards(bench: &Bench, src_port: u16) -> Ends {
    Ends {
        src: bench.a.addr,
        src_port,
        dst: INTERNET,
        dst_port: 443,
    }
}

#[test]
fn a_first_packet_is_translated_keeps_its_port_and_writes_both_halves() {
    let mut bench = Bench::new();
    let ends = outwards(&bench, 40_000);
    let packet = syn(wire(&bench), ends);
    let ran = leaves(&mut bench, &packet);
    assert_eq!(ran.reason, Reason::SnatKernel);
    let result = seen(&ran.packet, None);
    assert_eq!((result.src, result.ports), (NODE, (40_000, 443)));
    assert_eq!(
        (result.link, result.ttl),
        (wire(&bench), 64),
        "the kernel has routed it already"
    );

    let forward = bench.flow(&key(ends, TCP)).unwrap();
    assert_eq!((forward.state, forward.nat), (State::KERNEL, Nat::SOURCE));
    let answer = bench.flow(&forward.peer_key(&key(ends, TCP))).unwrap();
    assert_eq!(
        (answer.nat, answer.nat_addr, answer.nat_port),
        (Nat::DESTINATION, ends.src.octets(), 40_000u16.to_be_bytes())
    );
}

#[test]
fn the_answer_of_a_kernel_flow_is_translated_and_given_to_the_stack() {
    let mut bench = Bench::new();
    let packet = udp(wire(&bench), outwards(&bench, 40_000), 64, b"q");
    leaves(&mut bench, &packet);
    let answer = Ends {
        src: INTERNET,
        src_port: 443,
        dst: NODE,
        dst_port: 40_000,
    };
    let uplink = bench.uplink_ifindex;
    let packet = udp((ROUTER_MAC, bench.uplink_mac), answer, 64, b"a");
    let ran = bench.run(Hook::FromUplink, uplink, &packet);
    assert_eq!(ran.reason, Reason::KernelFlowTranslated);
    assert_eq!(
        (seen(&ran.packet, None).dst, seen(&ran.packet, None).ttl),
        (bench.a.addr, 64)
    );
}

#[test]
fn two_pods_with_one_port_towards_one_remote_get_two() {
    let mut bench = Bench::new();
    for protocol in [TCP, UDP, ICMP] {
        let mut ports = Vec::new();
        for pod in [bench.a, bench.b] {
            let ends = Ends {
                src: pod.addr,
                src_port: 40_000,
                dst: INTERNET,
                dst_port: if protocol == ICMP { 0 } else { 443 },
            };
            let packet = match protocol {
                TCP => syn(wire(&bench), ends),
                UDP => udp(wire(&bench), ends, 64, b"x"),
                _ => echo(wire(&bench), ends, true),
            };
            let ran = leaves(&mut bench, &packet);
            assert_eq!(ran.reason, Reason::SnatKernel);
            assert_eq!(seen(&ran.packet, None).src, NODE);
            ports.push(seen(&ran.packet, None).ports.0);
        }
        assert_eq!(ports[0], 40_000, "kept");
        assert_ne!(ports[1], 40_000, "protocol {protocol}");
    }
}

#[test]
fn the_same_port_serves_two_remotes() {
    let mut bench = Bench::new();
    for (pod, last) in [(bench.a, 10), (bench.b, 11)] {
        let ends = Ends {
            src: pod.addr,
            src_port: 40_000,
            dst: [203, 0, 113, last].into(),
            dst_port: 443,
        };
        let packet = syn(wire(&bench), ends);
        let ran = leaves(&mut bench, &packet);
        assert_eq!(seen(&ran.packet, None).ports.0, 40_000);
    }
}

#[test]
fn a_retransmitted_first_packet_gets_the_same_mapping() {
    let mut bench = Bench::new();
    let packet = syn(wire(&bench), outwards(&bench, 40_000));
    let first = leaves(&mut bench, &packet).packet;
    let count = bench.flow_count();
    assert_eq!(leaves(&mut bench, &packet).packet, first);
    assert_eq!(bench.flow_count(), count);
}

#[test]
fn a_lost_half_comes_back_with_the_same_port() {
    let mut bench = Bench::new();
    let (a, ends) = (bench.a, outwards(&bench, 40_000));
    let (forward, _) = bench.carry_translated(ends, TCP, 40_000);
    bench.remove(&forward);
    let packet = ack(wire(&bench), Ends { src: a.addr, ..ends });
    let ran = leaves(&mut bench, &packet);
    assert_eq!(ran.reason, Reason::SnatKernel);
    assert_eq!(seen(&ran.packet, None).ports.0, 40_000);
    assert_eq!(
        bench.flow(&forward).unwrap().state,
        State::CARRIED,
        "like the half that was left"
    );
    let next = ack(a.sends(), ends);
    assert_eq!(
        bench.run(Hook::FromPod, a.ifindex, &next).reason,
        Reason::CarriedToUplink
    );
}

#[test]
fn reserved_ports_are_never_taken() {
    let mut bench = Bench::new();
    bench.reserve(|port| (30_000..=32_767).contains(&port));
    for src_port in [30_000, 31_234, 32_767] {
        let packet = syn(wire(&bench), outwards(&bench, src_port));
        let ran = leaves(&mut bench, &packet);
        let port = seen(&ran.packet, None).ports.0;
        assert!(!(30_000..=32_767).contains(&port), "{src_port} became {port}");
    }
}

#[test]
fn a_privileged_port_stays_privileged_when_it_must_change() {
    let mut bench = Bench::new();
    bench.reserve(|port| port == 123);
    let packet = udp(wire(&bench), outwards(&bench, 123), 64, b"ntp");
    let ran = leaves(&mut bench, &packet);
    assert!((1..512).contains(&seen(&ran.packet, None).ports.0));
}

#[test]
fn without_a_free_port_the_flow_is_refused_and_nothing_is_left_behind() {
    let mut bench = Bench::new();
    bench.reserve(|_| true);
    for packet in [
        syn(wire(&bench), outwards(&bench, 40_000)),
        udp(wire(&bench), outwards(&bench, 40_000), 64, b"x"),
    ] {
        let ran = leaves(&mut bench, &packet);
        assert_eq!((ran.reason, ran.packet), (Reason::SnatNoPort, packet));
    }
    assert_eq!(bench.flow_count(), 0);
}

#[test]
fn what_cannot_be_translated_is_dropped_by_name_and_passes_towards_excluded_ranges() {
    let mut bench = Bench::new();
    let fragment = |ends| {
        let mut packet = udp(wire(&bench), ends, 64, b"part");
        // Not the first: the offset is 8 bytes.
        packet[21] = 1;
        packet
    };
    let unreachable = |ends| {
        let mut packet = echo(wire(&bench), ends, true);
        packet[34] = 3;
        packet
    };
    let lying = |ends| {
        let mut packet = udp(wire(&bench), ends, 64, b"short");
        packet[38..40].copy_from_slice(&[0, 4]);
        packet
    };
    let (out, vnet) = (
        outwards(&bench, 9),
        Ends {
            dst: VNET_HOST,
            ..outwards(&bench, 9)
        },
    );
    let cases = [
        (
            fragment(out),
            Reason::SnatFragment,
            fragment(vnet),
            Reason::Fragment,
        ),
        (
            unreachable(out),
            Reason::SnatProtocol,
            unreachable(vnet),
            Reason::OtherProtocol,
        ),
        (lying(out), Reason::SnatMalformed, lying(vnet), Reason::Malformed),
        (
            ack(wire(&bench), out),
            Reason::SnatNoMapping,
            ack(wire(&bench), vnet),
            Reason::MidFlow,
        ),
    ];
    for (outside, dropped, inside, passed) in cases {
        let ran = leaves(&mut bench, &outside);
        assert_eq!((ran.reason, ran.packet), (dropped, outside));
        let ran = leaves(&mut bench, &inside);
        assert_eq!((ran.reason, ran.packet), (passed, inside));
    }
}

#[test]
fn an_answer_to_a_flow_from_outside_keeps_the_pods_address() {
    let mut bench = Bench::new();
    let question = Ends {
        src: INTERNET,
        src_port: 5000,
        dst: bench.a.addr,
        dst_port: 80,
    };
    let a = bench.a;
    // The stack delivers a SYN that no ingress hook of ours has seen: say, through another interface.
    let packet = syn((a.host_mac, a.mac), question);
    let elsewhere = bench.uplink_ifindex + 1000;
    assert_eq!(
        bench
            .run_forwarded(Hook::ToPod, a.ifindex, elsewhere, &packet)
            .reason,
        Reason::RecordedKernel
    );
    let answer = crate::packets::tcp(
        wire(&bench),
        question.reversed(),
        64,
        |h| (h.syn, h.ack) = (true, true),
        &[],
    );
    let ran = leaves(&mut bench, &answer);
    assert_eq!((ran.reason, &ran.packet), (Reason::KernelFlow, &answer));
}

/// A stranger's SYN, stray segments of old connections, whatever: none of them may switch translation off for a
/// connection that the pod opens.
#[test]
fn no_packet_from_outside_makes_a_pods_own_connection_leak() {
    let mut bench = Bench::new();
    let ends = outwards(&bench, 40_000);
    let (a, uplink) = (bench.a, bench.uplink_ifindex);
    let incoming = (ROUTER_MAC, bench.uplink_mac);
    bench.run(Hook::FromUplink, uplink, &syn(incoming, ends.reversed()));
    bench.run(Hook::ToPod, a.ifindex, &syn((a.host_mac, a.mac), ends.reversed()));
    for flags in [0x11u8, 0x04, 0x10] {
        let mut stray = ack((a.host_mac, a.mac), ends.reversed());
        stray[47] = flags;
        bench.run(Hook::ToPod, a.ifindex, &stray);
    }
    let packet = syn(wire(&bench), ends);
    let ran = leaves(&mut bench, &packet);
    assert_eq!(ran.reason, Reason::SnatKernel);
    assert_eq!(seen(&ran.packet, None).src, NODE);
}

/// A UDP flow to a ClusterIP whose service is gone leaves by the default route: it must be translated like any other.
#[test]
fn a_kernel_flow_without_translation_does_not_excuse_a_leak() {
    let mut bench = Bench::new();
    let ends = outwards(&bench, 40_000);
    let entry = Entry::kernel(0, bench.now());
    bench.insert(key(ends, UDP), entry);
    let packet = udp(wire(&bench), ends, 64, b"x");
    let ran = leaves(&mut bench, &packet);
    assert_eq!(ran.reason, Reason::SnatKernel);
    assert_eq!(seen(&ran.packet, None).src, NODE);
}

#[test]
fn a_kernel_flow_on_the_tuple_of_a_carried_one_is_refused() {
    let mut bench = Bench::new();
    let ends = outwards(&bench, 40_000);
    bench.carry_translated(ends, TCP, 40_000);
    let packet = syn(wire(&bench), ends);
    assert_eq!(leaves(&mut bench, &packet).reason, Reason::SnatCollision);
}

#[test]
fn a_changed_node_address_gives_a_new_flow_the_new_one_and_lets_no_old_one_pass() {
    let mut bench = Bench::new();
    let ends = outwards(&bench, 40_000);
    bench.carry_translated(ends, TCP, 40_000);
    let moved = "10.240.0.77".parse().unwrap();
    bench.configure(moved);
    let packet = ack(wire(&bench), ends);
    assert_eq!(leaves(&mut bench, &packet).reason, Reason::SnatNoMapping);
    let packet = syn(wire(&bench), ends);
    assert_eq!(seen(&leaves(&mut bench, &packet).packet, None).src, moved);
}

#[test]
fn the_nodes_own_packets_and_those_of_strangers_are_left_alone() {
    let mut bench = Bench::new();
    for src in [NODE, VNET_HOST] {
        let packet = syn(
            wire(&bench),
            Ends {
                src,
                src_port: 1234,
                dst: INTERNET,
                dst_port: 443,
            },
        );
        let ran = leaves(&mut bench, &packet);
        assert_eq!((ran.reason, ran.packet), (Reason::NotFromPod, packet));
    }
}

#[test]
fn flags_of_both_halves_say_whose_flow_it_is() {
    let mut bench = Bench::new();
    let ends = outwards(&bench, 40_000);
    let packet = syn(wire(&bench), ends);
    leaves(&mut bench, &packet);
    let forward = bench.flow(&key(ends, TCP)).unwrap();
    assert!(!forward.has(Flags::HOST) && !forward.has(Flags::ANSWER));
}
