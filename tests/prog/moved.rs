//! A flow that has another port than its own, and loses its forward half: it comes back with that port, whatever has become
//! free meanwhile.

use std::net::Ipv4Addr;

use causeway_common::{
    reason::Reason,
    tuple::{ICMP, TCP, UDP},
};

use crate::{
    bench::{Bench, Hook, INTERNET, Key, ROUTER_MAC, key},
    packets::{Ends, ack, echo, seen, syn, udp},
};

const OWN: u16 = 600;

/// A flow's tuple, and its first packet.
struct Flow {
    key: Key,
    packet: Vec<u8>,
}

impl Flow {
    fn of(bench: &Bench, protocol: u8, src: Ipv4Addr, src_port: u16) -> Self {
        let ends = Ends {
            src,
            src_port,
            dst: INTERNET,
            dst_port: if protocol == ICMP { 0 } else { 443 },
        };
        let link = (bench.uplink_mac, ROUTER_MAC);
        Self {
            key: key(ends, protocol),
            packet: match protocol {
                TCP => syn(link, ends),
                UDP => udp(link, ends, 64, b"x"),
                _ => echo(link, ends, true),
            },
        }
    }

    /// The port that its packet leaves with, after room was made for it if need be.
    fn sends(&self, bench: &mut Bench) -> Option<u16> {
        loop {
            let uplink = bench.uplink_ifindex;
            let ran = bench.run(Hook::ToUplink, uplink, &self.packet);
            match ran.reason {
                Reason::SnatKernel => return Some(seen(&ran.packet, None).ports.0),
                Reason::SnatNoPort => return None,
                other => assert_eq!(other, Reason::RoomMade),
            }
        }
    }

    /// The key of its answers.
    fn answer(&self, bench: &mut Bench) -> Key {
        bench.flow(&self.key).unwrap().peer_key(&self.key)
    }

    /// Both halves are deleted from outside.
    fn ends(&self, bench: &mut Bench) {
        let answer = self.answer(bench);
        bench.remove(&self.key);
        bench.remove(&answer);
    }
}

/// Two pods with one port: the flow of the first, and that of the second, which got `port`.
fn moved(bench: &mut Bench, protocol: u8) -> (Flow, Flow, u16) {
    let [first, second] = [bench.a, bench.b].map(|pod| Flow::of(bench, protocol, pod.addr, OWN));
    assert_eq!(first.sends(bench), Some(OWN));
    let port = second.sends(bench).unwrap();
    assert_ne!(port, OWN, "protocol {protocol}");
    (first, second, port)
}

#[test]
fn a_lost_forward_half_comes_back_with_its_port_when_its_own_is_free_again() {
    for protocol in [UDP, ICMP, TCP] {
        let mut bench = Bench::new();
        let (first, second, port) = moved(&mut bench, protocol);
        first.ends(&mut bench);
        for round in 0..3 {
            bench.remove(&second.key);
            assert_eq!(
                second.sends(&mut bench),
                Some(port),
                "protocol {protocol}, round {round}"
            );
        }
        assert_eq!(bench.flow_count(), 2, "no half is left behind");
        assert_eq!(first.sends(&mut bench), Some(OWN), "what is new keeps its own");
    }
}

#[test]
fn a_lost_forward_half_comes_back_with_its_port_towards_a_crowded_remote() {
    for protocol in [UDP, TCP] {
        let mut bench = Bench::new();
        bench.reserve(|port| !(OWN..=602).contains(&port));
        let (a, b) = (bench.a.addr, bench.b.addr);
        let others = [OWN, 601, 602].map(|port| Flow::of(&bench, protocol, a, port));
        for other in &others {
            assert!(other.sends(&mut bench).is_some());
        }
        let flow = Flow::of(&bench, protocol, b, OWN);
        assert_eq!(flow.sends(&mut bench), None, "every port is taken");
        bench.age(&others[1].key);
        let port = flow.sends(&mut bench).unwrap();
        assert!(port == 601 && bench.is_crowded(&flow.key));

        for other in [&others[2], &others[0]] {
            // The map of ports has another one to give, and then the flow's own is free.
            let answer = other.answer(&mut bench);
            other.ends(&mut bench);
            bench.free_in_crowd(&answer);
            bench.remove(&flow.key);
            assert_eq!(flow.sends(&mut bench), Some(port), "protocol {protocol}");
        }
    }
}

/// The map of the ports has given it one that lies too far away to be searched for by a packet that opens nothing.
#[test]
fn a_segment_in_mid_flow_finds_a_port_that_no_search_would() {
    const WANTED: u16 = 40_000;
    // One of them may lie near.
    for far in [10_000, 25_000, 55_000] {
        let mut bench = Bench::new();
        let (b, uplink) = (bench.b, bench.uplink_ifindex);
        bench.reserve(|port| port != WANTED && port != far);
        let [first, second] = [bench.a, b].map(|pod| Flow::of(&bench, TCP, pod.addr, WANTED));
        assert_eq!(
            (first.sends(&mut bench), second.sends(&mut bench)),
            (Some(WANTED), Some(far))
        );
        bench.remove(&second.key);
        let ends = Ends {
            src: b.addr,
            src_port: WANTED,
            dst: INTERNET,
            dst_port: 443,
        };
        let ran = bench.run(Hook::ToUplink, uplink, &ack((bench.uplink_mac, ROUTER_MAC), ends));
        assert_eq!(
            (ran.reason, seen(&ran.packet, None).ports.0),
            (Reason::SnatKernel, far)
        );
    }
}

/// A hint is worth nothing without the entry that it leads to.
#[test]
fn a_port_that_somebody_else_has_meanwhile_is_not_taken_from_him() {
    let mut bench = Bench::new();
    let (first, second, port) = moved(&mut bench, UDP);
    second.ends(&mut bench);
    let heir = Flow::of(&bench, UDP, first.key.src.into(), port);
    assert_eq!(heir.sends(&mut bench), Some(port));
    let again = second.sends(&mut bench).unwrap();
    assert!(again != port && again != OWN, "{again}");
    assert_eq!(heir.sends(&mut bench), Some(port));
}

/// The tuple is that of an earlier flow, and nothing else is.
#[test]
fn a_flow_that_begins_after_its_like_was_forgotten_has_its_own_port() {
    let mut bench = Bench::new();
    let (first, second, _) = moved(&mut bench, UDP);
    first.ends(&mut bench);
    second.ends(&mut bench);
    assert_eq!(second.sends(&mut bench), Some(OWN));
}
