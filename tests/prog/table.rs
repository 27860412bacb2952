//! A full table and its limits.

use causeway_common::{
    flow::FlowEntry,
    reason::Reason,
    tuple::{TCP, UDP},
};

use crate::{
    bench::{Bench, Family, Hook, ROUTER_MAC, key, of_both_families},
    packets::{Ends, ack, ports, syn, udp},
};

of_both_families!(
    a_full_table_refuses_new_flows_and_carries_the_old_ones,
    an_expired_mapping_gives_its_port_to_the_next,
);

fn outwards<F: Family>(src: F, src_port: u16) -> Ends<F> {
    Ends {
        src,
        src_port,
        dst: F::INTERNET,
        dst_port: 443,
    }
}

fn a_full_table_refuses_new_flows_and_carries_the_old_ones<F: Family>() {
    let mut bench = Bench::<F>::of(64);
    let (a, b, uplink) = (bench.a, bench.b, bench.uplink_ifindex);
    let old = outwards(a.addr, 40_000);
    bench.carry_translated(old, TCP, 40_000);
    for port in 1.. {
        let ends = Ends {
            src: b.addr,
            src_port: port,
            dst: F::INTERNET,
            dst_port: 1,
        };
        let entry = FlowEntry::kernel(0, bench.now());
        if !bench.try_insert(key(ends, UDP), entry) {
            break;
        }
    }
    let new = outwards(a.addr, 41_000);
    let packet = syn((bench.uplink_mac, ROUTER_MAC), new);
    let ran = bench.run(Hook::ToUplink, uplink, &packet);
    assert_eq!((ran.reason, ran.packet), (Reason::SnatTableFull, packet));
    assert!(bench.flow(&key(new, TCP)).is_none());

    let ran = bench.run(Hook::FromPod, a.ifindex, &ack(a.sends(), old));
    assert_eq!(ran.reason, Reason::CarriedToUplink);

    let ran = bench.run(
        Hook::FromPod,
        a.ifindex,
        &udp(a.sends(), Ends { dst: b.addr, ..new }, 64, b"x"),
    );
    assert_eq!(ran.reason, Reason::OfferRefused);
}

fn an_expired_mapping_gives_its_port_to_the_next<F: Family>() {
    let mut bench = Bench::<F>::of(4096);
    let (a, b, uplink) = (bench.a, bench.b, bench.uplink_ifindex);
    let old = outwards(a.addr, 40_000);
    let (forward, answer) = bench.carry_translated(old, UDP, 40_000);
    let next = udp(
        (bench.uplink_mac, ROUTER_MAC),
        Ends { src: b.addr, ..old },
        64,
        b"x",
    );

    // One half is still in use: the pair stays.
    bench.idle(&answer, 100_000);
    let ran = bench.run(Hook::ToUplink, uplink, &next);
    assert_ne!(ports(&ran.packet).0, 40_000);

    let mut bench = Bench::<F>::of(4096);
    bench.carry_translated(old, UDP, 40_000);
    bench.age(&forward);
    let uplink = bench.uplink_ifindex;
    let next = udp(
        (bench.uplink_mac, ROUTER_MAC),
        Ends { src: b.addr, ..old },
        64,
        b"x",
    );
    let ran = bench.run(Hook::ToUplink, uplink, &next);
    assert_eq!(ports(&ran.packet).0, 40_000);
    assert!(
        bench.flow(&forward).is_none(),
        "both halves of the old pair are gone"
    );
}
