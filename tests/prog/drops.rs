//! Who may send what: the guard of the pod's interface and of the uplink.

use causeway_common::{maps::PodEntry, reason::Reason, tuple::TCP};

use crate::{
    bench::{Bench, Hook, INTERNET, NODE, ROUTER_MAC, VNET_HOST, key},
    packets::{Ends, ack, echo, syn, udp},
};

fn ends(bench: &Bench, dst: std::net::Ipv4Addr, dst_port: u16) -> Ends {
    Ends {
        src: bench.a.addr,
        src_port: 40_000,
        dst,
        dst_port,
    }
}

#[test]
fn foreign_sources_are_dropped_and_leave_no_state() {
    let mut bench = Bench::new();
    let a = bench.a;
    let spoofed = Ends {
        src: "10.240.0.99".parse().unwrap(),
        ..ends(&bench, VNET_HOST, 80)
    };
    let ran = bench.run(Hook::FromPod, a.ifindex, &syn(a.sends(), spoofed));
    assert_eq!(ran.reason, Reason::SourceAddress);
    let own = ends(&bench, VNET_HOST, 80);
    let ran = bench.run(Hook::FromPod, a.ifindex, &syn(([2; 6], a.host_mac), own));
    assert_eq!(ran.reason, Reason::SourceMac);
    bench.unregister_iface(&a);
    let ran = bench.run(Hook::FromPod, a.ifindex, &syn(a.sends(), own));
    assert_eq!(ran.reason, Reason::UnknownInterface);
    assert_eq!(bench.flow_count(), 0);
}

fn arp(src_mac: [u8; 6], sender_mac: [u8; 6], sender: [u8; 4]) -> Vec<u8> {
    let mut frame = [
        &[0xff; 6][..],
        &src_mac,
        &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1],
        &sender_mac,
        &sender,
    ]
    .concat();
    frame.extend([0; 6]);
    frame.extend([169, 254, 1, 1]);
    frame
}

#[test]
fn arp_speaks_for_the_pod_alone() {
    let mut bench = Bench::new();
    let a = bench.a;
    let own = a.addr.octets();
    for (frame, reason) in [
        (arp(a.mac, a.mac, own), Reason::Arp),
        (arp(a.mac, a.mac, [0; 4]), Reason::Arp),
        (arp(a.mac, a.mac, [10, 240, 0, 6]), Reason::ArpSpoofed),
        (arp(a.mac, [2; 6], own), Reason::ArpSpoofed),
        (arp([2; 6], a.mac, own), Reason::SourceMac),
        (arp(a.mac, a.mac, own)[..20].to_vec(), Reason::ArpSpoofed),
    ] {
        assert_eq!(bench.run(Hook::FromPod, a.ifindex, &frame).reason, reason);
    }
}

#[test]
fn the_wireserver_gives_its_credentials_to_no_pod() {
    let mut bench = Bench::new();
    let (a, uplink) = (bench.a, bench.uplink_ifindex);
    let wireserver = "168.63.129.16".parse().unwrap();
    for port in [80, 32_526] {
        let packet = syn(a.sends(), ends(&bench, wireserver, port));
        assert_eq!(
            bench.run(Hook::FromPod, a.ifindex, &packet).reason,
            Reason::Wireserver
        );
        let packet = syn((bench.uplink_mac, ROUTER_MAC), ends(&bench, wireserver, port));
        assert_eq!(
            bench.run(Hook::ToUplink, uplink, &packet).reason,
            Reason::Wireserver
        );
        let mut fragment = ack(a.sends(), ends(&bench, wireserver, port));
        fragment[20] = 0x20;
        assert_eq!(
            bench.run(Hook::FromPod, a.ifindex, &fragment).reason,
            Reason::Wireserver
        );
    }
    let dns = udp(a.sends(), ends(&bench, wireserver, 53), 64, b"query");
    assert_eq!(
        bench.run(Hook::FromPod, a.ifindex, &dns).reason,
        Reason::NeverOffered
    );
    let dns = udp(
        (bench.uplink_mac, ROUTER_MAC),
        ends(&bench, wireserver, 53),
        64,
        b"query",
    );
    assert_eq!(
        bench.run(Hook::ToUplink, uplink, &dns).reason,
        Reason::RecordedKernel
    );
}

#[test]
fn nobody_outside_speaks_for_this_node() {
    let mut bench = Bench::new();
    let (a, b, uplink, link) = (
        bench.a,
        bench.b,
        bench.uplink_ifindex,
        (ROUTER_MAC, bench.uplink_mac),
    );
    let for_others = (ROUTER_MAC, [2; 6]);
    for (src, link, reason) in [
        (NODE, link, Reason::SpoofedFromWire),
        (b.addr, link, Reason::SpoofedFromWire),
        (VNET_HOST, link, Reason::Offered),
        (VNET_HOST, for_others, Reason::NotForUs),
    ] {
        let ends = Ends {
            src,
            src_port: 1,
            dst: a.addr,
            dst_port: 80,
        };
        let ran = bench.run(Hook::FromUplink, uplink, &syn(link, ends));
        assert_eq!(ran.reason, reason, "from {src}");
    }
}

#[test]
fn what_a_departed_pod_left_under_way_does_not_leave() {
    let mut bench = Bench::new();
    let (a, uplink) = (bench.a, bench.uplink_ifindex);
    bench.register(&a, PodEntry::DEPARTED);
    for dst in [INTERNET, VNET_HOST] {
        let packet = syn((bench.uplink_mac, ROUTER_MAC), ends(&bench, dst, 80));
        assert_eq!(
            bench.run(Hook::ToUplink, uplink, &packet).reason,
            Reason::PodDeparted
        );
    }
    bench.register(&a, 0);
    let packet = syn((bench.uplink_mac, ROUTER_MAC), ends(&bench, INTERNET, 80));
    assert_eq!(
        bench.run(Hook::ToUplink, uplink, &packet).reason,
        Reason::SnatNotReady
    );
}

#[test]
fn only_what_may_open_a_flow_is_offered() {
    let mut bench = Bench::new();
    let a = bench.a;
    let to_b = ends(&bench, bench.b.addr, 80);
    assert_eq!(
        bench.run(Hook::FromPod, a.ifindex, &ack(a.sends(), to_b)).reason,
        Reason::MidFlow
    );
    let reply = Ends {
        src: a.addr,
        src_port: 0,
        dst: INTERNET,
        dst_port: 9,
    };
    assert_eq!(
        bench
            .run(Hook::FromPod, a.ifindex, &echo(a.sends(), reply, false))
            .reason,
        Reason::MidFlow
    );
    for dst in [
        "169.254.169.254",
        "224.0.0.251",
        "255.255.255.255",
        "127.0.0.1",
        "10.240.0.5",
    ] {
        let packet = udp(a.sends(), ends(&bench, dst.parse().unwrap(), 53), 64, b"x");
        assert_eq!(
            bench.run(Hook::FromPod, a.ifindex, &packet).reason,
            Reason::NeverOffered,
            "{dst}"
        );
    }
    assert_eq!(bench.flow_count(), 0);
    assert_eq!(
        bench.run(Hook::FromPod, a.ifindex, &syn(a.sends(), to_b)).reason,
        Reason::Offered
    );
    assert!(bench.flow(&key(to_b, TCP)).is_some());
}
