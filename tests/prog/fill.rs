//! All ports towards one remote are used, then the next flow is refused; and what is freed is used again.

use std::{mem, ops::RangeInclusive, sync::Arc};

use causeway_common::{addr::Address as _, event::EventHook, maps::FLOW_ENTRIES, reason::Reason, tuple::UDP};

use crate::{
    bench::{Bench, Family, Hook, ROUTER_MAC, TC_ACT_SHOT, TC_ACT_UNSPEC, key, of_both_families},
    packets::{Ends, echo, ports, udp},
    stage::{Given, Stage},
};

of_both_families!(
    every_port_towards_one_remote_is_used_and_the_next_flow_is_refused_with_an_event,
    every_port_that_is_not_reserved_is_used,
    every_echo_identifier_towards_one_remote_is_used,
);

const PORT: u16 = 443;

fn ends<F: Family>(src: F, src_port: u16) -> Ends<F> {
    Ends {
        src,
        src_port,
        dst: F::INTERNET,
        dst_port: PORT,
    }
}

/// What came of a flow's first packet: the port it left with, or that it was dropped.
fn opens<F: Family>(stage: &mut Stage, uplink: u32, packet: &[u8], port_at: usize) -> Option<u16> {
    let (action, out) = stage.run(Hook::ToUplink, uplink, Given::default(), packet);
    assert!(
        action == TC_ACT_UNSPEC || action == TC_ACT_SHOT,
        "action {action}"
    );
    if action == TC_ACT_SHOT {
        return None;
    }
    assert_eq!(F::source(out), F::NODE, "source address");
    Some(u16::from_be_bytes([out[port_at], out[port_at + 1]]))
}

/// Opens flows of both pods, each from all of `own` ports, until `count` have a port. Returns which ports they have.
fn fill<F: Family>(bench: &Bench<F>, own: RangeInclusive<u16>, protocol: u8, count: usize) -> Vec<bool> {
    let (uplink, link) = (bench.uplink_ifindex, (bench.uplink_mac, ROUTER_MAC));
    let mut stage = Stage::new(bench);
    let pods = [bench.a.addr, bench.b.addr];
    let mut flows = pods
        .iter()
        .flat_map(|pod| own.clone().map(|port| (*pod, port)))
        .take(count);
    let ns = Arc::clone(&bench.ns);
    ns.run(move || {
        let mut taken = vec![false; 1 << 16];
        let mut had = 0;
        for (pod, port) in &mut flows {
            let (packet, at) = match protocol {
                UDP => (udp(link, ends(pod, port), 64, b"x"), F::L4),
                _ => (
                    echo(
                        link,
                        Ends {
                            dst_port: 0,
                            ..ends(pod, port)
                        },
                        true,
                    ),
                    F::L4 + 4,
                ),
            };
            let Some(port) = opens::<F>(&mut stage, uplink, &packet, at) else {
                panic!("flow {had} of {count} is refused: {pod} from port {port}");
            };
            assert!(
                !mem::replace(&mut taken[usize::from(port)], true),
                "port {port} twice"
            );
            had += 1;
        }
        assert_eq!(had, count);
        taken
    })
    .unwrap()
}

fn every_port_towards_one_remote_is_used_and_the_next_flow_is_refused_with_an_event<F: Family>() {
    let mut bench = Bench::<F>::of(FLOW_ENTRIES as u32);
    let (uplink, link) = (bench.uplink_ifindex, (bench.uplink_mac, ROUTER_MAC));
    // Both pods have the same 32,256 ports: half of the flows have to get another.
    let taken = fill(&bench, 33_280..=65_535, UDP, 64_512);
    assert!((1024..=65_535).all(|port| taken[port]), "a port was left out");
    assert!(!taken[..1024].contains(&true), "a privileged port was taken");

    bench.events();
    let next = udp(link, ends(bench.a.addr, 2000), 64, b"x");
    for _ in 0..3 {
        let ran = bench.run(Hook::ToUplink, uplink, &next);
        assert_eq!((ran.reason, &ran.packet), (Reason::SnatNoPort, &next));
    }
    let event = bench.events()[0];
    assert_eq!(event.reason, Reason::SnatNoPort as u8);
    assert_eq!((event.hook, event.ifindex), (EventHook::TO_UPLINK, uplink));
    assert_eq!(event.length as usize, next.len());
    assert_eq!(event.packet[..usize::from(event.captured)], next[14..]);

    // Another remote, another protocol and another class of ports are not concerned.
    for packet in [
        udp(
            link,
            Ends {
                dst_port: 444,
                ..ends(bench.a.addr, 2000)
            },
            64,
            b"x",
        ),
        crate::packets::syn(link, ends(bench.a.addr, 2000)),
        udp(link, ends(bench.a.addr, 700), 64, b"x"),
    ] {
        assert_eq!(
            bench.run(Hook::ToUplink, uplink, &packet).reason,
            Reason::SnatKernel
        );
    }

    // A port whose flow is over is had again, and by one flow.
    bench.age(&key(ends(bench.a.addr, 40_000), UDP));
    let mut had = None;
    for _ in 0..64_512 / 16 {
        let ran = bench.run(Hook::ToUplink, uplink, &next);
        if ran.reason == Reason::SnatKernel {
            had = Some(ports(&ran.packet).0);
            break;
        }
        assert!(
            [Reason::SnatNoPort, Reason::RoomMade].contains(&ran.reason),
            "{:?}",
            ran.reason
        );
    }
    assert_eq!(had, Some(40_000), "the only port that was given up");
    let other = udp(link, ends(bench.a.addr, 2001), 64, b"x");
    assert_eq!(
        bench.run(Hook::ToUplink, uplink, &other).reason,
        Reason::SnatNoPort
    );
}

fn every_port_that_is_not_reserved_is_used<F: Family>() {
    let mut bench = Bench::<F>::of(FLOW_ENTRIES as u32);
    let uplink = bench.uplink_ifindex;
    bench.reserve(|port| (30_000..=32_767).contains(&port) || port == 8081);
    let usable = 64_512 - 2768 - 1;
    let taken = fill(&bench, 33_280..=65_535, UDP, usable);
    let is_reserved = |port: usize| (30_000..=32_767).contains(&port) || port == 8081;
    assert!((1024..=65_535).all(|port| taken[port] != is_reserved(port)));
    let next = udp((bench.uplink_mac, ROUTER_MAC), ends(bench.b.addr, 2000), 64, b"x");
    assert_eq!(
        bench.run(Hook::ToUplink, uplink, &next).reason,
        Reason::SnatNoPort
    );
}

fn every_echo_identifier_towards_one_remote_is_used<F: Family>() {
    let mut bench = Bench::<F>::of(FLOW_ENTRIES as u32);
    let (uplink, link) = (bench.uplink_ifindex, (bench.uplink_mac, ROUTER_MAC));
    let taken = fill(&bench, 32_768..=65_535, F::Octets::ICMP, 65_536);
    assert!(!taken.contains(&false), "an identifier was left out");
    let next = echo(
        link,
        Ends {
            dst_port: 0,
            ..ends(bench.a.addr, 1)
        },
        true,
    );
    assert_eq!(
        bench.run(Hook::ToUplink, uplink, &next).reason,
        Reason::SnatNoPort
    );
}
