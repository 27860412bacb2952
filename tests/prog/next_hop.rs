//! Where a carried flow leaves: as its first packet did, followed by route lookups unless those would not have found it.

use causeway_common::{
    flow::{Flags, State},
    reason::Reason,
    tuple::UDP,
};

use crate::{
    bench::{Bench, Entry, Hook, INTERNET, ROUTER_MAC, Ran, key},
    packets::{Ends, Mac, udp},
};

const ROUTER: &str = "10.240.0.1";
const OTHER_MAC: Mac = [0x12, 0, 0, 0, 0, 0x77];

fn outwards(bench: &Bench) -> Ends {
    Ends {
        src: bench.a.addr,
        src_port: 40_000,
        dst: INTERNET,
        dst_port: 443,
    }
}

/// The node has a default route by a router whose MAC is `mac`.
fn route(bench: &Bench, mac: Mac) {
    let mac: Vec<String> = mac.iter().map(|byte| format!("{byte:02x}")).collect();
    bench
        .ns
        .ip(&format!(
            "neigh replace {ROUTER} lladdr {} dev eth0 nud permanent\nroute replace default via {ROUTER} dev eth0",
            mac.join(":")
        ))
        .unwrap();
    for interface in ["all", "podA"] {
        bench
            .ns
            .sysctl(&format!("net/ipv4/conf/{interface}/forwarding"), "1")
            .unwrap();
    }
}

/// The first packet of the flow, as the stack has addressed it.
fn leaves(bench: &mut Bench, mac: Mac) -> Ran {
    let (uplink, a) = (bench.uplink_ifindex, bench.a.ifindex);
    let packet = udp((bench.uplink_mac, mac), outwards(bench), 63, b"x");
    bench.run_forwarded(Hook::ToUplink, uplink, a, &packet)
}

/// A packet of the flow, carried, in the first moment of another second. Its next hop's MAC.
fn carried_to(bench: &mut Bench) -> Mac {
    let (ends, a) = (outwards(bench), bench.a);
    let forward = key(ends, UDP);
    let entry = bench.flow(&forward).unwrap();
    for (key, entry) in [
        (forward, entry),
        (
            entry.peer_key(&forward),
            bench.flow(&entry.peer_key(&forward)).unwrap(),
        ),
    ] {
        let last_seen = bench.now() - 5;
        bench.insert(
            key,
            Entry {
                state: State::CARRIED,
                last_seen,
                ..entry
            },
        );
    }
    let ran = bench.run(Hook::FromPod, a.ifindex, &udp(a.sends(), ends, 64, b"x"));
    assert_eq!(ran.reason, Reason::CarriedToUplink);
    ran.packet[..6].try_into().unwrap()
}

#[test]
fn a_hop_that_a_lookup_finds_is_followed_when_it_moves() {
    let mut bench = Bench::new();
    route(&bench, ROUTER_MAC);
    leaves(&mut bench, ROUTER_MAC);
    let entry = bench.flow(&key(outwards(&bench), UDP)).unwrap();
    assert!(!entry.has(Flags::FIXED_HOP));
    assert_eq!(carried_to(&mut bench), ROUTER_MAC);
    route(&bench, OTHER_MAC);
    assert_eq!(carried_to(&mut bench), OTHER_MAC);
}

/// A rule by a mark, a policy routing table: the lookup knows nothing of them.
#[test]
fn a_hop_that_no_lookup_finds_is_kept() {
    let mut bench = Bench::new();
    route(&bench, ROUTER_MAC);
    leaves(&mut bench, OTHER_MAC);
    let entry = bench.flow(&key(outwards(&bench), UDP)).unwrap();
    assert!(entry.has(Flags::FIXED_HOP));
    assert_eq!(carried_to(&mut bench), OTHER_MAC);
}
