//! What one opener may have, and how room is made without a daemon.

use causeway_common::{
    flow::FlowEntry,
    reason::Reason,
    tuple::{TCP, UDP},
};

use crate::{
    bench::{Bench, Family, Hook, ROUTER_MAC, key, of_both_families},
    packets::{Ends, syn, udp},
};

of_both_families!(
    a_pod_at_its_quota_opens_no_flow_and_others_notice_nothing,
    a_pod_at_its_quota_has_room_again_when_a_flow_is_over,
    a_flow_is_counted_once_from_its_offer_to_its_end,
    what_a_pod_over_its_quota_sends_within_the_vnet_takes_the_stack,
    a_full_table_makes_room_by_what_is_over_and_by_nothing_else,
    a_carried_flow_whose_port_another_flow_has_is_stopped,
    the_half_of_the_answers_comes_back_with_the_flows_next_second,
    an_answer_whose_half_is_lost_finds_its_pod_by_the_port_that_was_kept,
);

/// Entries of a table that nobody fills.
const ROOM: u32 = 4096;

fn out<F: Family>(src: F, src_port: u16) -> Ends<F> {
    Ends {
        src,
        src_port,
        dst: F::INTERNET,
        dst_port: 53,
    }
}

/// The reason that the first packet of a pod's flow gets at the uplink.
fn opens<F: Family>(bench: &mut Bench<F>, ends: Ends<F>) -> Reason {
    let packet = udp((bench.uplink_mac, ROUTER_MAC), ends, 64, b"x");
    let uplink = bench.uplink_ifindex;
    bench.run(Hook::ToUplink, uplink, &packet).reason
}

fn a_pod_at_its_quota_opens_no_flow_and_others_notice_nothing<F: Family>() {
    let mut bench = Bench::<F>::of(ROOM);
    let (a, b) = (bench.a.addr, bench.b.addr);
    bench.configure_with(F::NODE, 5, 100);
    for port in 1..=5 {
        assert_eq!(opens(&mut bench, out(a, 40_000 + port)), Reason::SnatKernel);
    }
    assert_eq!(opens(&mut bench, out(a, 41_000)), Reason::SnatQuota);
    assert_eq!(bench.usage(a), 5);
    assert_eq!(
        opens(&mut bench, out(a, 40_001)),
        Reason::SnatKernel,
        "an old flow lives"
    );
    assert_eq!(
        opens(&mut bench, out(b, 41_000)),
        Reason::SnatKernel,
        "another pod"
    );
    assert_eq!((bench.usage(a), bench.usage(b)), (5, 1));
}

fn a_pod_at_its_quota_has_room_again_when_a_flow_is_over<F: Family>() {
    let mut bench = Bench::<F>::of(ROOM);
    let a = bench.a.addr;
    bench.configure_with(F::NODE, 2, 100);
    for port in [40_001, 40_002] {
        assert_eq!(opens(&mut bench, out(a, port)), Reason::SnatKernel);
    }
    assert_eq!(opens(&mut bench, out(a, 41_000)), Reason::SnatQuota);
    bench.age(&key(out(a, 40_001), UDP));
    assert_eq!(opens(&mut bench, out(a, 41_000)), Reason::RoomMade);
    assert_eq!(opens(&mut bench, out(a, 41_000)), Reason::SnatKernel);
    assert_eq!(bench.usage(a), 2);
    assert!(bench.flow(&key(out(a, 40_001), UDP)).is_none());
}

fn a_flow_is_counted_once_from_its_offer_to_its_end<F: Family>() {
    let mut bench = Bench::<F>::of(ROOM);
    let (a, uplink) = (bench.a, bench.uplink_ifindex);
    let flow = out(a.addr, 40_000);
    for _ in 0..3 {
        let packet = udp(a.sends(), flow, 64, b"x");
        bench.run(Hook::FromPod, a.ifindex, &packet);
        assert_eq!(bench.usage(a.addr), 1, "offered");
    }
    assert_eq!(opens(&mut bench, flow), Reason::SnatKernel);
    assert_eq!(
        (bench.usage(a.addr), bench.usage(F::UNSPECIFIED)),
        (1, 0),
        "translated"
    );
    bench.age(&key(flow, UDP));
    // Another flow wants the very port of the one that is over.
    let heir = udp(
        (bench.uplink_mac, ROUTER_MAC),
        Ends {
            src: bench.b.addr,
            ..flow
        },
        64,
        b"x",
    );
    assert_eq!(
        bench.run(Hook::ToUplink, uplink, &heir).reason,
        Reason::SnatKernel
    );
    assert_eq!((bench.usage(a.addr), bench.usage(bench.b.addr)), (0, 1));
}

fn what_a_pod_over_its_quota_sends_within_the_vnet_takes_the_stack<F: Family>() {
    let mut bench = Bench::<F>::of(ROOM);
    let (a, b) = (bench.a, bench.b);
    bench.configure_with(F::NODE, 1, 1);
    let to_b = |port| {
        syn(
            a.sends(),
            Ends {
                dst: b.addr,
                ..out(a.addr, port)
            },
        )
    };
    assert_eq!(
        bench.run(Hook::FromPod, a.ifindex, &to_b(1)).reason,
        Reason::Offered
    );
    let ran = bench.run(Hook::FromPod, a.ifindex, &to_b(2));
    assert_eq!((ran.reason, ran.packet), (Reason::OfferQuota, to_b(2)));

    // Hosts outside have one account, whoever they are.
    let uplink = bench.uplink_ifindex;
    let incoming = (ROUTER_MAC, bench.uplink_mac);
    let from = |src, bench: &Bench<F>| {
        syn(
            incoming,
            Ends {
                src,
                dst: bench.a.addr,
                ..out(a.addr, 9)
            },
        )
    };
    let first = from(F::NEIGHBOURS[0], &bench);
    assert_eq!(
        bench.run(Hook::FromUplink, uplink, &first).reason,
        Reason::Offered
    );
    let second = from(F::NEIGHBOURS[1], &bench);
    assert_eq!(
        bench.run(Hook::FromUplink, uplink, &second).reason,
        Reason::OfferQuota
    );
    assert_eq!((bench.usage(a.addr), bench.usage(F::UNSPECIFIED)), (1, 1));
}

fn a_full_table_makes_room_by_what_is_over_and_by_nothing_else<F: Family>() {
    let mut bench = Bench::<F>::of(128);
    let (a, b) = (bench.a.addr, bench.b.addr);
    let mut opened = Vec::new();
    for port in 40_000.. {
        if opens(&mut bench, out(a, port)) != Reason::SnatKernel {
            break;
        }
        opened.push(port);
    }
    assert!(opened.len() >= 60, "{} flows", opened.len());
    for _ in 0..50 {
        assert_eq!(opens(&mut bench, out(b, 50_000)), Reason::SnatTableFull);
    }
    for port in &opened {
        assert!(
            bench.flow(&key(out(a, *port), UDP)).is_some(),
            "{port} lives and is gone"
        );
    }
    let over = opened[opened.len() / 2];
    bench.age(&key(out(a, over), UDP));
    // Sixteen flows are looked at for each packet, so the one is found within a round.
    let mut reasons = Vec::new();
    for _ in 0..opened.len() / 16 + 3 {
        reasons.push(opens(&mut bench, out(b, 50_000)));
    }
    assert!(reasons.contains(&Reason::RoomMade), "{reasons:?}");
    assert_eq!(reasons.last(), Some(&Reason::SnatKernel), "{reasons:?}");
    for port in opened.iter().filter(|port| **port != over) {
        assert!(
            bench.flow(&key(out(a, *port), UDP)).is_some(),
            "{port} lives and is gone"
        );
    }
}

/// A port that its flow has lost to another may not be used for one more packet.
fn a_carried_flow_whose_port_another_flow_has_is_stopped<F: Family>() {
    let mut bench = Bench::<F>::of(ROOM);
    let a = bench.a;
    let flow = out(a.addr, 40_000);
    let (forward, answer) = bench.carry_translated(flow, UDP, 40_000);
    let stolen = FlowEntry {
        nat_addr: bench.b.addr.octets(),
        ..bench.flow(&answer).unwrap()
    };
    bench.insert(answer, stolen);
    bench.idle(&forward, 1);
    let packet = udp(a.sends(), flow, 64, b"x");
    assert_eq!(
        bench.run(Hook::FromPod, a.ifindex, &packet).reason,
        Reason::SnatNoMapping
    );
    assert!(bench.flow(&forward).is_none());
    assert_eq!(bench.flow(&answer), Some(stolen));
}

fn the_half_of_the_answers_comes_back_with_the_flows_next_second<F: Family>() {
    let mut bench = Bench::<F>::of(ROOM);
    let a = bench.a;
    let flow = out(a.addr, 40_000);
    let (forward, answer) = bench.carry_translated(flow, TCP, 40_007);
    let whole = bench.flow(&answer).unwrap();
    bench.remove(&answer);
    bench.idle(&forward, 1);
    let packet = crate::packets::ack(a.sends(), flow);
    let ran = bench.run(Hook::FromPod, a.ifindex, &packet);
    assert_eq!(
        (ran.reason, &ran.noted[..]),
        (Reason::CarriedToUplink, &[Reason::MappingRestored][..])
    );
    let back = bench.flow(&answer).unwrap();
    assert_eq!(
        (back.state, back.nat, back.nat_addr, back.nat_port),
        (whole.state, whole.nat, whole.nat_addr, whole.nat_port)
    );
    assert_eq!(
        (
            back.exit,
            back.out_ifindex,
            back.out_dst_mac,
            back.out_src_mac,
            back.in_ifindex
        ),
        (
            whole.exit,
            whole.out_ifindex,
            whole.out_dst_mac,
            whole.out_src_mac,
            whole.in_ifindex
        )
    );
}

fn an_answer_whose_half_is_lost_finds_its_pod_by_the_port_that_was_kept<F: Family>() {
    let mut bench = Bench::<F>::of(ROOM);
    let uplink = bench.uplink_ifindex;
    let flow = out(bench.b.addr, 40_000);
    let (_, answer) = bench.carry_translated(flow, UDP, 40_000);
    // Pod B's flow, as far as the address goes.
    let whole = bench.flow(&answer).unwrap();
    bench.remove(&answer);
    let packet = udp(
        (ROUTER_MAC, bench.uplink_mac),
        Ends {
            src: F::INTERNET,
            src_port: 53,
            dst: F::NODE,
            dst_port: 40_000,
        },
        64,
        b"x",
    );
    let ran = bench.run(Hook::FromUplink, uplink, &packet);
    assert_eq!(
        (ran.reason, &ran.packet),
        (Reason::FlowRestored, &packet),
        "it begins anew"
    );
    let back = bench.flow(&answer).unwrap();
    assert_eq!((back.nat_addr, back.nat_port), (whole.nat_addr, whole.nat_port));
    assert_eq!(
        bench.run(Hook::FromUplink, uplink, &packet).reason,
        Reason::CarriedToPod
    );

    let stranger = udp(
        (ROUTER_MAC, bench.uplink_mac),
        Ends {
            src: F::INTERNET,
            src_port: 53,
            dst: F::NODE,
            dst_port: 40_001,
        },
        64,
        b"x",
    );
    assert_eq!(
        bench.run(Hook::FromUplink, uplink, &stranger).reason,
        Reason::NotToPod
    );
}
