//! A bench whose table holds an entry of every kind, so that a packet that is nearly right meets real state.

use std::net::Ipv4Addr;

use causeway_common::{
    flow::{Exit, Flags, Nat, Progress, State},
    tuple::{ICMP, TCP, UDP},
};

use crate::{
    bench::{Bench, Entry, Hook, INTERNET, Key, MTU, NODE, ROUTER_MAC, VNET_HOST, key},
    packets::Ends,
    stage::{Given, Stage},
};

/// Addresses and MACs that a verdict is judged by.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Places {
    pub(crate) pods: [Ipv4Addr; 2],
    pub(crate) node: Ipv4Addr,
    /// Destination and source MAC of every frame that may be redirected.
    pub(crate) links: [[[u8; 6]; 2]; 3],
}

pub(crate) struct Scene {
    pub(crate) bench: Bench,
    pub(crate) places: Places,
    stage: Stage,
    entries: Vec<(Key, Entry)>,
}

/// Ends that have entries, or have none on purpose.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flow {
    /// As the pod, or the node's own socket, sends.
    pub(crate) ends: Ends,
    /// Port of the node's under which the remote knows it, where it is translated.
    pub(crate) port: Option<u16>,
}

/// A stranger who opens flows towards pod A.
pub(crate) const CLIENT: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 77);

impl Scene {
    pub(crate) fn new() -> Self {
        let mut bench = Bench::with_flow_entries(16_384);
        fill(&mut bench);
        let (a, b) = (bench.a, bench.b);
        Self {
            places: Places {
                pods: [a.addr, b.addr],
                node: NODE,
                links: [
                    [a.mac, a.host_mac],
                    [b.mac, b.host_mac],
                    [ROUTER_MAC, bench.uplink_mac],
                ],
            },
            stage: Stage::new(&bench),
            entries: bench.all_flows(),
            bench,
        }
    }

    /// The table as it was at first, every flow used within the last seconds.
    pub(crate) fn restore(&mut self) {
        self.bench.clear_flows();
        let now = self.bench.now();
        for (age, (key, entry)) in (0..).zip(&self.entries) {
            let seen = now - age % 3;
            self.bench.insert(
                *key,
                Entry {
                    last_seen: seen,
                    last_up: seen,
                    ..*entry
                },
            );
        }
    }

    /// Gives a packet that the stack emits the MACs that the kernel gives it: the next hop is learnt from them.
    pub(crate) fn address_frame(&self, hook: Hook, ifindex: u32, packet: &mut [u8]) {
        let [to, from] = match hook {
            Hook::FromPod | Hook::FromUplink => return,
            Hook::ToPod if ifindex == self.bench.a.ifindex => self.places.links[0],
            Hook::ToPod => self.places.links[1],
            Hook::ToUplink => self.places.links[2],
        };
        packet[..6].copy_from_slice(&to);
        packet[6..12].copy_from_slice(&from);
    }

    /// Runs one packet; on a thread inside the bench's namespace.
    pub(crate) fn run(&mut self, hook: Hook, ifindex: u32, given: Given, packet: &[u8]) -> (i32, &[u8]) {
        self.stage.run(hook, ifindex, given, packet)
    }

    pub(crate) fn flows(&self) -> [Flow; 10] {
        flows(&self.bench)
    }
}

fn flows(bench: &Bench) -> [Flow; 10] {
    let out = |src_port, port| Flow {
        ends: Ends {
            src: bench.a.addr,
            src_port,
            dst: INTERNET,
            dst_port: 443,
        },
        port,
    };
    let plain = |src: Ipv4Addr, src_port, dst, dst_port| Flow {
        ends: Ends {
            src,
            src_port,
            dst,
            dst_port,
        },
        port: None,
    };
    let a = bench.a.addr;
    [
        // Carried, with the pod's port and with another.
        out(40_000, Some(40_000)),
        out(40_001, Some(50_001)),
        // The kernel's, translated here.
        out(40_002, Some(50_002)),
        // Of the node's own socket, moved away from a pod's port.
        Flow {
            ends: Ends {
                src: NODE,
                ..out(40_000, None).ends
            },
            port: Some(50_003),
        },
        // Without an entry.
        out(41_111, Some(41_111)),
        // Carried with their own addresses.
        plain(a, 40_000, bench.b.addr, 80),
        plain(a, 40_000, VNET_HOST, 80),
        // Offered, and the kernel's without translation.
        plain(a, 42_000, bench.b.addr, 80),
        plain(a, 43_000, VNET_HOST, 80),
        // The answer to a stranger.
        plain(a, 80, CLIENT, 5000),
    ]
}

fn fill(bench: &mut Bench) {
    let [
        kept,
        moved,
        kernels,
        hosts,
        _,
        local,
        vnet,
        offered,
        plain,
        answer,
    ] = flows(bench);
    let (a, b, uplink, uplink_mac) = (bench.a, bench.b, bench.uplink_ifindex, bench.uplink_mac);
    let to_pod_a = carried(Exit::POD, a.ifindex, a.mac, a.host_mac);
    let to_pod_b = carried(Exit::POD, b.ifindex, b.mac, b.host_mac);
    let to_wire = carried(Exit::UPLINK, uplink, ROUTER_MAC, uplink_mac);
    let by = |entry: Entry, in_ifindex, in_mac| Entry {
        in_ifindex,
        in_mac,
        ..entry
    };
    for protocol in [TCP, UDP, ICMP] {
        let ends = |flow: Flow| Ends {
            dst_port: if protocol == ICMP { 0 } else { flow.ends.dst_port },
            ..flow.ends
        };
        for flow in [kept, moved, kernels, hosts] {
            let port = flow.port.unwrap();
            let (forward, reverse) = bench.carry_translated(ends(flow), protocol, port);
            let flags = match flow.ends.src {
                NODE => Flags::HOST,
                _ if port == 50_002 => Flags::WENT_UP,
                _ => continue,
            };
            for key in [forward, reverse] {
                let entry = bench.flow(&key).unwrap();
                let state = State::KERNEL;
                bench.insert(
                    key,
                    Entry {
                        state,
                        flags,
                        ..entry
                    },
                );
            }
        }
        let mut put = |flow: Flow, there: Entry, back: Entry| {
            bench.insert(key(ends(flow), protocol), there);
            bench.insert(key(ends(flow).reversed(), protocol), back);
        };
        put(
            local,
            by(to_pod_b, a.ifindex, a.mac),
            by(to_pod_a, b.ifindex, b.mac),
        );
        put(vnet, by(to_wire, a.ifindex, a.mac), by(to_pod_a, uplink, [0; 6]));
        put(offered, Entry::offer(a.ifindex, a.mac, 0), Entry::awaited(0, 0));
        put(plain, Entry::kernel(Flags::CAME_OUT, 0), Entry::kernel(0, 0));
        put(
            answer,
            Entry {
                flags: Flags::ANSWER | Flags::CAME_OUT,
                ..by(to_wire, a.ifindex, a.mac)
            },
            by(to_pod_a, uplink, [0; 6]),
        );
    }
    // GRE by address alone.
    let gre = Ends {
        src_port: 0,
        dst_port: 0,
        ..kept.ends
    };
    let (forward, reverse) = bench.carry_translated(gre, 47, 0);
    for key in [forward, reverse] {
        let entry = bench.flow(&key).unwrap();
        let state = State::KERNEL;
        bench.insert(key, Entry { state, ..entry });
    }
}

fn carried(exit: u8, out_ifindex: u32, out_dst_mac: [u8; 6], out_src_mac: [u8; 6]) -> Entry {
    Entry {
        state: State::CARRIED,
        nat: Nat::NONE,
        exit,
        flags: Flags::WENT_UP | Flags::CAME_OUT,
        mtu: MTU,
        progress: Progress::SPOKE.and_peer(Progress::SPOKE).bits(),
        out_ifindex,
        out_dst_mac,
        out_src_mac,
        ..Entry::offer(0, [0; 6], 0)
    }
}
