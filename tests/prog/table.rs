//! A full table and its limits.

use std::net::Ipv4Addr;

use causeway_common::{
    reason::Reason,
    tuple::{TCP, UDP},
};

use crate::{
    bench::{Bench, Entry, Hook, INTERNET, ROUTER_MAC, key},
    packets::{Ends, ack, syn, udp},
};

fn outwards(src: Ipv4Addr, src_port: u16) -> Ends {
    Ends {
        src,
        src_port,
        dst: INTERNET,
        dst_port: 443,
    }
}

#[test]
fn a_full_table_refuses_new_flows_and_carries_the_old_ones() {
    let mut bench = Bench::with_flow_entries(64);
    let (a, b, uplink) = (bench.a, bench.b, bench.uplink_ifindex);
    let old = outwards(a.addr, 40_000);
    bench.carry_translated(old, TCP, 40_000);
    for port in 1.. {
        let ends = Ends {
            src: b.addr,
            src_port: port,
            dst: INTERNET,
            dst_port: 1,
        };
        let entry = Entry::kernel(0, bench.now());
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

#[test]
fn an_expired_mapping_gives_its_port_to_the_next() {
    let mut bench = Bench::new();
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
    assert_ne!(crate::packets::seen(&ran.packet, None).ports.0, 40_000);

    let mut bench = Bench::new();
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
    assert_eq!(crate::packets::seen(&ran.packet, None).ports.0, 40_000);
    assert!(
        bench.flow(&forward).is_none(),
        "both halves of the old pair are gone"
    );
}
