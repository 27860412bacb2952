//! A node that masquerades IPv6, with flows of every kind, which the programs have opened themselves.

use std::sync::Arc;

use causeway_common::{
    reason::{Reason, Verdict},
    tuple::{TCP, UDP},
};
use causeway_tests::{netns::Netns, raw};
use etherparse::{Icmpv6Type, icmpv6};

use super::{
    super::{A, B, Bench, VNET, udp},
    IP_END,
    oracle::mend_checksum,
};
use crate::{
    bench::{Hook, TC_ACT_REDIRECT, TC_ACT_UNSPEC},
    packets::Mac,
    stage::{Given, Stage},
};

const ICMPV6: u8 = 58;
/// Flows that a pod may have, and all hosts outside together.
const QUOTA: u32 = 1000;
/// The node's global address, and a host outside every excluded range.
pub(super) const PUBLIC: [u8; 16] = global(4);
pub(super) const OUTSIDE: [u8; 16] = global(100);
const ROUTER: Mac = [0x12, 0x34, 0x56, 0x78, 0x9a, 0xbc];

const fn global(host: u8) -> [u8; 16] {
    std::net::Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 1, host as u16).octets()
}

/// What the oracle knows.
#[derive(Clone, Copy)]
pub(super) struct Places {
    pub(super) node: [u8; 16],
    /// Address and MAC of each pod.
    pub(super) pods: [([u8; 16], Mac); 2],
}

impl Places {
    pub(super) fn is_pod(&self, addr: &[u8]) -> bool {
        self.pods.iter().any(|(pod, _)| pod == addr)
    }

    /// All but `fc00::/7`.
    #[expect(clippy::unused_self, reason = "reads like the node's list")]
    pub(super) fn is_masqueraded(&self, addr: &[u8]) -> bool {
        addr[0] & 0xfe != 0xfc
    }
}

/// A packet as it comes to a hook.
pub(super) struct Sample {
    pub(super) packet: Vec<u8>,
}

pub(super) struct Scene {
    bench: Bench,
    stage: Stage,
    pub(super) places: Places,
    pub(super) samples: Vec<Sample>,
    /// Packets that have made the flows.
    pub(super) set_up: u64,
}

impl Scene {
    pub(super) fn new() -> Self {
        let mut bench = Bench::of(4096);
        bench.configure_with(PUBLIC.into(), QUOTA, QUOTA);
        let stage = Stage::new(&bench);
        let places = Places {
            node: PUBLIC,
            pods: [(A, bench.a.mac), (B, bench.b.mac)],
        };
        let mut scene = Self {
            bench,
            stage,
            places,
            samples: Vec::new(),
            set_up: 0,
        };
        let ns = scene.ns();
        ns.run(|| {
            scene.restore();
            scene.samples = scene.collect();
        })
        .unwrap();
        scene
    }

    pub(super) fn ns(&self) -> Arc<Netns> {
        Arc::clone(&self.bench.ns)
    }

    /// Of the pods and of the uplink.
    pub(super) fn interfaces(&self) -> [u32; 3] {
        [
            self.bench.a.ifindex,
            self.bench.b.ifindex,
            self.bench.uplink_ifindex,
        ]
    }

    /// How often a hook has given each reason, in the order of [`Reason::ALL`].
    pub(super) fn counts(&self, hook: Hook) -> Vec<u64> {
        self.bench.counts(hook)
    }

    pub(super) fn run(&mut self, hook: Hook, given: Given, packet: &[u8]) -> (i32, Vec<u8>) {
        let (action, got) = self.stage.run(hook, self.at_home(hook), given, packet);
        (action, got.to_vec())
    }

    /// The interface whose hook it is.
    fn at_home(&self, hook: Hook) -> u32 {
        match hook {
            Hook::FromPod | Hook::ToPod => self.bench.a.ifindex,
            Hook::FromUplink | Hook::ToUplink => self.bench.uplink_ifindex,
        }
    }

    /// What a stranger outside opens to a pod would be answered with the pod's address, and rightly: at hooks towards pods
    /// nothing comes from where pods are masqueraded to, but to the node.
    pub(super) fn address_frame(&self, hook: Hook, packet: &mut [u8]) {
        let Some(ends) = packet.get_mut(22..IP_END) else {
            return;
        };
        let is_towards_pod = matches!(hook, Hook::FromUplink | Hook::ToPod);
        let (src, dst) = ends.split_at_mut(16);
        if is_towards_pod && self.places.is_pod(dst) && self.places.is_masqueraded(src) {
            src.copy_from_slice(&VNET);
        }
    }

    /// Makes the table what it was in the beginning.
    pub(super) fn restore(&mut self) {
        self.bench.clear_flows();
        self.bench.configure_with(PUBLIC.into(), QUOTA, QUOTA);
        let before = self.verdicts();
        for packet in self.opening() {
            self.open(&packet);
        }
        self.set_up += self.verdicts() - before;
    }

    fn verdicts(&self) -> u64 {
        let of_hook = |hook| {
            let counts = Reason::ALL.iter().zip(self.counts(hook));
            counts
                .filter(|(reason, _)| reason.verdict() != Verdict::Noted)
                .map(|(_, count)| count)
                .sum::<u64>()
        };
        Hook::ALL.into_iter().map(of_hook).sum()
    }

    fn of_pod(&self, dst: [u8; 16], next: u8, payload: &[u8]) -> Vec<u8> {
        let mut packet = self.bench.frame(dst, 64, next, payload);
        mend_checksum(&mut packet);
        packet
    }

    fn of_wire(&self, ends: [[u8; 16]; 2], next: u8, payload: &[u8]) -> Vec<u8> {
        let uplink_mac = self.bench.uplink_mac;
        let mut packet = raw::ipv6([ROUTER, uplink_mac], ends, 64, next, payload).unwrap();
        mend_checksum(&mut packet);
        packet
    }

    /// First packets of pod A's flows.
    fn opening(&self) -> [Vec<u8>; 4] {
        [
            self.of_pod(OUTSIDE, UDP, &udp(b"question")),
            self.of_pod(OUTSIDE, TCP, &tcp(false)),
            self.of_pod(OUTSIDE, ICMPV6, &message(echo(true), b"echo")),
            self.of_pod(VNET, UDP, &udp(b"question")),
        ]
    }

    /// Takes a first packet through the pod's hook, the stack and the uplink's. Returns it as it leaves.
    fn open(&mut self, packet: &[u8]) -> Vec<u8> {
        let (action, _) = self.run(Hook::FromPod, Given::default(), packet);
        assert_eq!(action, TC_ACT_UNSPEC, "not offered");
        let given = Given {
            tag: self.stage.tag,
            from: self.bench.a.ifindex,
            ..Given::default()
        };
        let (action, left) = self.run(Hook::ToUplink, given, &self.routed(packet));
        assert_eq!(action, TC_ACT_UNSPEC, "not let out");
        let is_outside = packet[38..IP_END] == OUTSIDE;
        assert_eq!(
            left[22..38],
            if is_outside { PUBLIC } else { A },
            "not translated"
        );
        left
    }

    /// As the stack sends it on.
    fn routed(&self, packet: &[u8]) -> Vec<u8> {
        let mut packet = packet.to_vec();
        packet[..6].copy_from_slice(&ROUTER);
        packet[6..12].copy_from_slice(&self.bench.uplink_mac);
        packet[21] -= 1;
        packet
    }

    /// A packet of every kind, in both directions; those that should be carried are.
    fn collect(&mut self) -> Vec<Sample> {
        let mut packets = Vec::new();
        let verdicts = self.verdicts();
        let opening = self.opening();
        // The first one of each was let out while the table was made: the port is its own.
        let translated = |payload: &[u8], next| self.of_wire([PUBLIC, OUTSIDE], next, payload);
        let quotable = [
            translated(&udp(b"question"), UDP),
            translated(&tcp(false), TCP),
            translated(&message(echo(true), b"echo"), ICMPV6),
        ];
        let swapped = |mut payload: Vec<u8>| {
            let (src, dst) = payload.split_at_mut(2);
            src.swap_with_slice(&mut dst[..2]);
            payload
        };
        let answers = [
            self.of_wire([OUTSIDE, PUBLIC], UDP, &swapped(udp(b"answer"))),
            self.of_wire([OUTSIDE, PUBLIC], TCP, &swapped(tcp(true))),
            self.of_wire([OUTSIDE, PUBLIC], ICMPV6, &message(echo(false), b"echo")),
            self.of_wire([VNET, A], UDP, &swapped(udp(b"answer"))),
        ];
        for (answer, expected) in
            answers
                .iter()
                .zip([TC_ACT_REDIRECT, TC_ACT_REDIRECT, TC_ACT_REDIRECT, TC_ACT_UNSPEC])
        {
            // The stack judges the first answer to a pod's own address, too.
            let (action, _) = self.run(Hook::FromUplink, Given::default(), answer);
            assert_eq!(action, expected, "an answer");
        }
        for question in opening[..3].iter().filter(|packet| packet[20] != TCP) {
            let (action, _) = self.run(Hook::FromPod, Given::default(), question);
            assert_eq!(action, TC_ACT_REDIRECT, "a question is not carried");
        }
        for quoted in &quotable {
            for error in errors() {
                packets.push(self.of_wire([OUTSIDE, PUBLIC], ICMPV6, &message(error, &quoted[14..])));
            }
        }
        for answer in &answers {
            let mut quoted = answer[14..].to_vec();
            quoted[24..40].copy_from_slice(&A);
            for error in errors() {
                let packet = self.of_pod(OUTSIDE, ICMPV6, &message(error, &quoted));
                packets.push(self.routed(&packet));
                packets.push(packet);
            }
        }
        for (next, flags) in [(UDP, 1u8), (UDP, 8), (UDP, 9), (ICMPV6, 1)] {
            let fragment = [&[next, 0, 0, flags, 0, 0, 0, 7][..], &udp(b"a part of more")].concat();
            packets.push(self.of_pod(OUTSIDE, 44, &fragment));
            packets.push(self.of_wire([OUTSIDE, PUBLIC], 44, &fragment));
        }
        for kind in [0u8, 60, 43, 51] {
            let headers = [&[UDP, 0, 1, 4, 0, 0, 0, 0][..], &udp(b"behind a header")].concat();
            packets.push(self.of_pod(OUTSIDE, kind, &headers));
        }
        // Neighbour and router discovery, listener reports (RFC 4861, RFC 3810): a pod's for itself, and for others.
        for kind in [133u8, 134, 135, 136, 143] {
            let discovery = [&[kind, 0, 0, 0, 0, 0, 0, 0][..], &B].concat();
            packets.push(self.of_pod(B, ICMPV6, &discovery));
        }
        packets.push(self.of_pod(B, UDP, &udp(b"to the other pod")));
        packets.push(self.of_pod(OUTSIDE, 132, b"an association's beginning"));
        packets.push(self.of_wire([PUBLIC, OUTSIDE], UDP, &udp(b"the node's own")));
        packets.extend(opening.iter().map(|packet| self.routed(packet)));
        packets.extend(opening);
        packets.extend(answers);
        self.set_up += self.verdicts() - verdicts;
        packets.into_iter().map(|packet| Sample { packet }).collect()
    }
}

fn tcp(is_answer: bool) -> Vec<u8> {
    let mut header = etherparse::TcpHeader::new(4000, 53, 1, 1000);
    header.syn = true;
    header.ack = is_answer;
    header.to_bytes().to_vec()
}

fn echo(is_request: bool) -> Icmpv6Type {
    let header = etherparse::IcmpEchoHeader { id: 4000, seq: 1 };
    if is_request {
        Icmpv6Type::EchoRequest(header)
    } else {
        Icmpv6Type::EchoReply(header)
    }
}

/// One of every type (RFC 4443 section 3).
fn errors() -> [Icmpv6Type; 4] {
    [
        Icmpv6Type::DestinationUnreachable(icmpv6::DestUnreachableCode::Port),
        Icmpv6Type::PacketTooBig { mtu: 1280 },
        Icmpv6Type::TimeExceeded(icmpv6::TimeExceededCode::HopLimitExceeded),
        Icmpv6Type::ParameterProblem(icmpv6::ParameterProblemHeader {
            code: icmpv6::ParameterProblemCode::UnrecognizedNextHeader,
            pointer: 6,
        }),
    ]
}

/// Its checksum is made when the ends are known.
fn message(kind: Icmpv6Type, data: &[u8]) -> Vec<u8> {
    let header = etherparse::Icmpv6Header {
        icmp_type: kind,
        checksum: 0,
    };
    [&header.to_bytes()[..], data].concat()
}
