//! Packets that nobody sane sends: whatever is left to the kernel is left byte for byte, and nothing that needs
//! translation passes the uplink untranslated.

use causeway_common::{
    reason::{Reason, Verdict},
    tuple::{ICMP, TCP, UDP},
};

use crate::{
    bench::{Bench, Hook, INTERNET, NODE, ROUTER_MAC, VNET_HOST},
    packets::{Ends, Link, echo, tcp, udp},
};

/// Reasons with which a packet is translated and then given to the stack.
const TRANSLATED: [Reason; 7] = [
    Reason::SnatIcmpError,
    Reason::KernelFlowTranslated,
    Reason::SnatKernel,
    Reason::SnatPromoted,
    Reason::HostFlowTranslated,
    Reason::CarriedTakesStack,
    Reason::TtlExpiring,
];

/// Packets of each protocol for each hook, of flows that are carried and of flows that are not.
fn originals(bench: &mut Bench) -> Vec<(Hook, u32, Vec<u8>)> {
    let (a, b) = (bench.a, bench.b);
    let out = Ends {
        src: a.addr,
        src_port: 40_000,
        dst: INTERNET,
        dst_port: 443,
    };
    let answer = Ends {
        src: INTERNET,
        src_port: 443,
        dst: NODE,
        dst_port: 40_000,
    };
    for protocol in [TCP, UDP, ICMP] {
        let ends = if protocol == ICMP {
            Ends { dst_port: 0, ..out }
        } else {
            out
        };
        bench.carry_translated(ends, protocol, 40_000);
    }
    let local = Ends { dst: b.addr, ..out };
    let vnet = Ends {
        dst: VNET_HOST,
        ..out
    };
    let fresh = Ends {
        src_port: 41_111,
        ..out
    };
    let mut packets = Vec::new();
    let mut add = |hook, ifindex, link: Link, ends: Ends| {
        let data = |header: &mut etherparse::TcpHeader| header.ack = true;
        packets.push((
            hook,
            ifindex,
            tcp(link, ends, 64, data, b"payload of some length"),
        ));
        packets.push((
            hook,
            ifindex,
            tcp(link, ends, 64, |header| header.syn = true, &[]),
        ));
        packets.push((hook, ifindex, udp(link, ends, 64, b"payload of some length")));
        packets.push((hook, ifindex, echo(link, ends, true)));
        packets.push((hook, ifindex, echo(link, ends, false)));
    };
    for ends in [out, local, vnet, fresh] {
        add(Hook::FromPod, a.ifindex, a.sends(), ends);
        add(
            Hook::ToUplink,
            bench.uplink_ifindex,
            (bench.uplink_mac, ROUTER_MAC),
            ends,
        );
    }
    add(
        Hook::FromUplink,
        bench.uplink_ifindex,
        (ROUTER_MAC, bench.uplink_mac),
        answer,
    );
    add(
        Hook::FromUplink,
        bench.uplink_ifindex,
        (ROUTER_MAC, bench.uplink_mac),
        vnet.reversed(),
    );
    add(Hook::ToPod, a.ifindex, (a.host_mac, a.mac), local.reversed());
    packets
}

/// Runs one and checks what must hold for any packet at all.
fn check(bench: &mut Bench, hook: Hook, ifindex: u32, packet: &[u8]) {
    let ran = bench.run(hook, ifindex, packet);
    assert_eq!(
        ran.packet.len(),
        packet.len(),
        "{hook:?} {:?} changed the length of {packet:02x?}",
        ran.reason
    );
    match ran.reason.verdict() {
        Verdict::Stack if !TRANSLATED.contains(&ran.reason) => {
            assert_eq!(
                ran.packet, packet,
                "{hook:?} {:?} changed a packet that it left to the kernel",
                ran.reason
            );
        }
        Verdict::Carried | Verdict::Stack => {}
        Verdict::Dropped => assert!(ran.reason != Reason::RewriteFailed, "{packet:02x?}"),
        Verdict::Noted => unreachable!("a noted reason has no verdict"),
    }
    // The leak rule, judged on the result alone: a pod's address towards a public destination.
    let passes = ran.reason.verdict() != Verdict::Dropped;
    if hook == Hook::ToUplink && passes && ran.packet.len() >= 34 && ran.packet[12..14] == [8, 0] {
        let is_pod =
            ran.packet[26..30] == bench.a.addr.octets() || ran.packet[26..30] == bench.b.addr.octets();
        let is_public = ran.packet[30] != 10 && ran.packet[30..34] != [168, 63, 129, 16];
        let is_whole = ran.reason != Reason::Malformed;
        assert!(
            !(is_pod && is_public && is_whole),
            "leak by {:?}: {:02x?}",
            ran.reason,
            ran.packet
        );
    }
}

#[test]
fn every_packet_cut_short_at_every_byte() {
    let mut bench = Bench::new();
    for (hook, ifindex, packet) in originals(&mut bench) {
        // The kernel runs no IPv4 packet with less than its header (`bpf_prog_test_run_skb`, Linux 6.18).
        for length in 34..=packet.len() {
            check(&mut bench, hook, ifindex, &packet[..length]);
        }
    }
}

#[test]
fn every_header_byte_with_every_interesting_value() {
    let mut bench = Bench::new();
    for (hook, ifindex, packet) in originals(&mut bench) {
        for offset in 12..packet.len().min(54) {
            for value in [0x00, 0x01, 0x04, 0x0f, 0x3f, 0x44, 0x46, 0x4f, 0x7f, 0x80, 0xff] {
                let mut mutant = packet.clone();
                mutant[offset] = value;
                check(&mut bench, hook, ifindex, &mutant);
            }
        }
    }
}
