//! The node's own sockets and the pods share one address.

use std::{
    net::{TcpListener, UdpSocket},
    os::fd::AsFd as _,
};

use causeway_common::{
    flow::{Flags, Nat},
    reason::Reason,
    tuple::{ICMP, TCP},
};

use crate::{
    bench::{Bench, Hook, INTERNET, NODE, ROUTER_MAC, key},
    packets::{Ends, Link, ack, echo, seen, syn, udp},
};

fn wire(bench: &Bench) -> Link {
    (bench.uplink_mac, ROUTER_MAC)
}

#[test]
fn a_port_that_a_socket_holds_is_not_claimed() {
    let mut bench = Bench::new();
    let listener = bench
        .ns
        .run(|| TcpListener::bind((NODE, 40_001)))
        .unwrap()
        .unwrap();
    let bound = bench.ns.run(|| UdpSocket::bind((NODE, 40_002))).unwrap().unwrap();
    let uplink = bench.uplink_ifindex;
    let ends = |src_port| Ends {
        src: bench.a.addr,
        src_port,
        dst: INTERNET,
        dst_port: 443,
    };
    for packet in [
        syn(wire(&bench), ends(40_001)),
        udp(wire(&bench), ends(40_002), 64, b"x"),
    ] {
        let own = seen(&packet, None).ports.0;
        let ran = bench.run(Hook::ToUplink, uplink, &packet);
        assert_eq!(ran.reason, Reason::SnatKernel);
        assert_ne!(seen(&ran.packet, None).ports.0, own);
        assert!(ran.noted.contains(&Reason::PortRetried));
    }
    // The sockets must have been open all the while.
    assert!(listener.as_fd().try_clone_to_owned().is_ok() && bound.as_fd().try_clone_to_owned().is_ok());
}

#[test]
fn a_socket_that_connects_from_a_pods_port_gets_another_and_its_answer_finds_back() {
    let mut bench = Bench::new();
    let uplink = bench.uplink_ifindex;
    let pods = Ends {
        src: bench.a.addr,
        src_port: 40_000,
        dst: INTERNET,
        dst_port: 443,
    };
    let (forward, _) = bench.carry_translated(pods, TCP, 40_000);
    let nodes = Ends { src: NODE, ..pods };

    let ran = bench.run(Hook::ToUplink, uplink, &syn(wire(&bench), nodes));
    assert_eq!(ran.reason, Reason::HostFlowTranslated);
    let outside = seen(&ran.packet, None);
    assert_eq!(outside.src, NODE);
    assert_ne!(outside.ports.0, 40_000);
    assert!(bench.flow(&forward).is_some(), "the pod's flow lives");

    let answer = Ends {
        src: INTERNET,
        src_port: 443,
        dst: NODE,
        dst_port: outside.ports.0,
    };
    let ran = bench.run(
        Hook::FromUplink,
        uplink,
        &ack((ROUTER_MAC, bench.uplink_mac), answer),
    );
    assert_eq!(ran.reason, Reason::KernelFlowTranslated);
    assert_eq!(
        (seen(&ran.packet, None).dst, seen(&ran.packet, None).ports.1),
        (NODE, 40_000)
    );

    let ran = bench.run(Hook::ToUplink, uplink, &ack(wire(&bench), nodes));
    assert_eq!(
        (ran.reason, seen(&ran.packet, None).ports.0),
        (Reason::HostFlowTranslated, outside.ports.0)
    );
}

#[test]
fn an_echo_identifier_of_the_node_is_not_given_to_a_pod() {
    let mut bench = Bench::new();
    let uplink = bench.uplink_ifindex;
    let nodes = Ends {
        src: NODE,
        src_port: 77,
        dst: INTERNET,
        dst_port: 0,
    };
    let packet = echo(wire(&bench), nodes, true);
    let ran = bench.run(Hook::ToUplink, uplink, &packet);
    assert_eq!((ran.reason, &ran.packet), (Reason::NotFromPod, &packet));
    let reservation = bench.flow(&key(nodes.reversed(), ICMP)).unwrap();
    assert!(reservation.has(Flags::HOST) && reservation.nat == Nat::NONE);

    let ran = bench.run(
        Hook::ToUplink,
        uplink,
        &echo(
            wire(&bench),
            Ends {
                src: bench.a.addr,
                ..nodes
            },
            true,
        ),
    );
    assert_eq!(ran.reason, Reason::SnatKernel);
    assert_ne!(seen(&ran.packet, None).ports.0, 77);
}
