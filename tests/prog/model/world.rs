//! The node under test: the real programs, and between ingress and egress a stack that routes, translates or stops.

use std::net::Ipv4Addr;

use causeway_common::{flow::State, tuple};

use super::{
    operation::{Client, Protocol, Says, Server, Stack, Tuple, USABLE},
    reference::{Came, Stage as FlowStage, Went},
};
use crate::{
    bench::{
        Bench, Entry, Hook, INTERNET, Key, NODE, Pod, ROUTER_MAC, TC_ACT_REDIRECT, TC_ACT_SHOT, VNET_HOST,
        key,
    },
    packets::{Ends, Link, echo, tcp, udp},
    stage::{Given, Stage},
};

/// Address of a service, which the stack translates.
const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 50);
const OTHER_SERVER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 11);
const SERVER_PORT: u16 = 443;
/// Longer than any lifetime, seconds.
const AGES: u32 = 1_000_000;

pub(crate) struct World {
    pub(crate) bench: Bench,
    stage: Stage,
    /// Flows that were over have been forgotten for a packet since somebody looked.
    pub(crate) made_room: bool,
}

/// How often a packet may begin anew.
const ROUNDS: u32 = 100;

impl World {
    pub(crate) fn new() -> Self {
        let mut bench = Bench::new();
        bench.reserve(|port| !USABLE.contains(&port));
        // Flows are removed from outside between cases, where nobody counts them.
        bench.configure_with(NODE, u32::MAX, u32::MAX);
        Self {
            stage: Stage::new(&bench),
            bench,
            made_room: false,
        }
    }

    /// A client sends to its server. The stack's part is `stack`'s.
    pub(crate) fn send(&mut self, tuple: Tuple, says: Says, stack: Stack) -> Went {
        let ends = self.ends(tuple);
        let (uplink, wire) = (self.bench.uplink_ifindex, (self.bench.uplink_mac, ROUTER_MAC));
        let Some(pod) = self.pod(tuple.client) else {
            let emitted = packet(tuple.protocol, wire, ends, says, true);
            return self.leave(uplink, Given::default(), tuple.protocol, &emitted);
        };
        let dialled = match stack {
            Stack::Translates => Ends {
                dst: SERVICE,
                dst_port: 80,
                ..ends
            },
            Stack::Routes | Stack::Stops => ends,
        };
        let sent = packet(tuple.protocol, pod.sends(), dialled, says, true);
        let (action, got) = self
            .stage
            .run(Hook::FromPod, pod.ifindex, Given::default(), &sent);
        match action {
            TC_ACT_SHOT => return Went::Refused,
            TC_ACT_REDIRECT => return departed(action, got, tuple.protocol, true),
            _ => assert_eq!(got, sent, "given to the stack changed"),
        }
        if stack == Stack::Stops {
            return Went::Stopped;
        }
        let given = Given {
            tag: self.stage.tag,
            from: pod.ifindex,
            ..Given::default()
        };
        let emitted = packet(tuple.protocol, wire, ends, says, true);
        self.leave(uplink, given, tuple.protocol, &emitted)
    }

    /// What the stack emits passes the uplink's egress; once more if flows that are over have made room for it.
    fn leave(&mut self, uplink: u32, given: Given, protocol: Protocol, emitted: &[u8]) -> Went {
        for _ in 0..ROUNDS {
            let (action, got) = self.stage.run(Hook::ToUplink, uplink, given, emitted);
            if action != TC_ACT_REDIRECT || got != emitted {
                return departed(action, got, protocol, false);
            }
            self.made_room = true;
        }
        panic!("it begins anew for ever")
    }

    /// A server sends to a port of the node. What the stack delivers comes from the service's address if `by_service`.
    pub(crate) fn answer(
        &mut self,
        protocol: Protocol,
        server: Server,
        port: u16,
        says: Says,
        by_service: bool,
    ) -> Came {
        let ends = Ends {
            src: address(server),
            src_port: server_port(protocol),
            dst: NODE,
            dst_port: port,
        };
        let sent = packet(protocol, (ROUTER_MAC, self.bench.uplink_mac), ends, says, false);
        let uplink = self.bench.uplink_ifindex;
        let (action, got) = self.stage.run(Hook::FromUplink, uplink, Given::default(), &sent);
        assert_ne!(action, TC_ACT_SHOT, "an answer was dropped");
        if got == sent {
            return Came::Node;
        }
        let (dst, port) = (
            Ipv4Addr::new(got[30], got[31], got[32], got[33]),
            client_port(got, protocol, false),
        );
        let client = self.client_at(dst);
        if action == TC_ACT_REDIRECT {
            return Came::Client {
                client,
                port,
                carried: true,
            };
        }
        if let Some(pod) = self.pod(client) {
            let source = if by_service {
                (SERVICE, 80)
            } else {
                (ends.src, ends.src_port)
            };
            let inside = Ends {
                src: source.0,
                src_port: source.1,
                dst,
                dst_port: port,
            };
            self.deliver(pod, protocol, inside, says, false);
        }
        Came::Client {
            client,
            port,
            carried: false,
        }
    }

    /// A server sends to the pod itself. Whether it was let through.
    pub(crate) fn call(&mut self, pod: Pod, tuple: Tuple, says: Says) -> bool {
        let ends = match tuple.protocol {
            // A request of the server's has its own identifier, which the answer's key has in the pod's port.
            Protocol::Icmp => Ends {
                src_port: tuple.port,
                dst_port: 0,
                ..self.ends(tuple).reversed()
            },
            _ => self.ends(tuple).reversed(),
        };
        let sent = packet(
            tuple.protocol,
            (ROUTER_MAC, self.bench.uplink_mac),
            ends,
            says,
            true,
        );
        let uplink = self.bench.uplink_ifindex;
        let (action, got) = self.stage.run(Hook::FromUplink, uplink, Given::default(), &sent);
        match action {
            TC_ACT_SHOT => false,
            TC_ACT_REDIRECT => {
                assert_eq!(got[26..34], sent[26..34], "a call was translated");
                true
            }
            _ => {
                assert_eq!(got, sent, "given to the stack changed");
                self.deliver(pod, tuple.protocol, ends, says, true)
            }
        }
    }

    /// The stack delivers to a pod what came by the uplink.
    fn deliver(&mut self, pod: Pod, protocol: Protocol, ends: Ends, says: Says, asks: bool) -> bool {
        let given = Given {
            tag: self.stage.tag,
            from: self.bench.uplink_ifindex,
            ..Given::default()
        };
        let emitted = packet(protocol, (pod.host_mac, pod.mac), ends, says, asks);
        let (action, got) = self.stage.run(Hook::ToPod, pod.ifindex, given, &emitted);
        assert_eq!(got, emitted, "delivered changed");
        action != TC_ACT_SHOT
    }

    pub(crate) fn is_crowded(&mut self, tuple: Tuple) -> bool {
        let key = self.key(tuple);
        self.bench.is_crowded(&key)
    }

    pub(crate) fn lose(&mut self, tuple: Tuple) {
        let key = self.key(tuple);
        if self.bench.flow(&key).is_some() {
            self.bench.remove(&key);
        }
    }

    /// Makes halves look idle for ages.
    pub(crate) fn age(&mut self, tuple: Tuple, forward: bool, reverse: bool, port: Option<u16>) {
        let long_ago = self.bench.now().wrapping_sub(AGES);
        let key = self.key(tuple);
        let answer = Key {
            dst: NODE.octets(),
            dst_port: port.unwrap_or(tuple.port).to_be_bytes(),
            ..key.reversed()
        };
        for (key, is_meant) in [(key, forward), (answer, reverse && port.is_some())] {
            if is_meant && let Some(entry) = self.bench.flow(&key) {
                self.bench.insert(
                    key,
                    Entry {
                        last_seen: long_ago,
                        ..entry
                    },
                );
            }
        }
    }

    /// Forgets what mentions an address, as DEL does.
    pub(crate) fn forget(&mut self, addr: Ipv4Addr) {
        let addr = addr.octets();
        for (key, entry) in self.bench.all_flows() {
            if key.src == addr || key.dst == addr || entry.nat_addr == addr {
                self.bench.remove(&key);
            }
        }
    }

    /// The state of the tuple's forward half and the port that it is translated to.
    pub(crate) fn state(&mut self, tuple: Tuple) -> (FlowStage, Option<u16>) {
        let Some(entry) = self.bench.flow(&self.key(tuple)) else {
            return (FlowStage::Absent, None);
        };
        let stage = match entry.state {
            State::OFFERED => FlowStage::Offered,
            State::CARRIED => FlowStage::Carried,
            _ => FlowStage::Kernel,
        };
        let port = (entry.nat_addr == NODE.octets()).then(|| u16::from_be_bytes(entry.nat_port));
        (stage, port)
    }

    pub(crate) fn pod(&self, client: Client) -> Option<Pod> {
        match client {
            Client::PodA => Some(self.bench.a),
            Client::PodB => Some(self.bench.b),
            Client::Node => None,
        }
    }

    fn client_at(&self, addr: Ipv4Addr) -> Client {
        match addr {
            addr if addr == self.bench.a.addr => Client::PodA,
            addr if addr == self.bench.b.addr => Client::PodB,
            NODE => Client::Node,
            _ => panic!("an answer for {addr}"),
        }
    }

    fn ends(&self, tuple: Tuple) -> Ends {
        Ends {
            src: self.pod(tuple.client).map_or(NODE, |pod| pod.addr),
            src_port: tuple.port,
            dst: address(tuple.server),
            dst_port: server_port(tuple.protocol),
        }
    }

    fn key(&self, tuple: Tuple) -> Key {
        let protocol = match tuple.protocol {
            Protocol::Tcp => tuple::TCP,
            Protocol::Udp => tuple::UDP,
            Protocol::Icmp => tuple::ICMP,
        };
        key(self.ends(tuple), protocol)
    }
}

/// `asks`: an echo request, not a reply; and a first TCP packet without the acknowledgment.
fn packet(protocol: Protocol, link: Link, ends: Ends, says: Says, asks: bool) -> Vec<u8> {
    match protocol {
        Protocol::Udp => udp(link, ends, 63, b"x"),
        Protocol::Icmp => echo(link, ends, asks),
        Protocol::Tcp => tcp(
            link,
            ends,
            63,
            |header| match says {
                Says::Open => (header.syn, header.ack) = (true, !asks),
                Says::Continue => header.ack = true,
                Says::Fin => (header.fin, header.ack) = (true, true),
                Says::Reset => header.rst = true,
            },
            b"x",
        ),
    }
}

fn departed(action: i32, got: &[u8], protocol: Protocol, carried: bool) -> Went {
    if action == TC_ACT_SHOT {
        return Went::Refused;
    }
    let src = Ipv4Addr::new(got[26], got[27], got[28], got[29]);
    let port = client_port(got, protocol, true);
    if src == NODE {
        Went::AsNode { port, carried }
    } else {
        Went::AsItself { port }
    }
}

/// The client's port, or the identifier. There are no IP options.
fn client_port(frame: &[u8], protocol: Protocol, is_source: bool) -> u16 {
    let at = match protocol {
        Protocol::Icmp => 38,
        _ if is_source => 34,
        _ => 36,
    };
    u16::from_be_bytes([frame[at], frame[at + 1]])
}

fn address(server: Server) -> Ipv4Addr {
    match server {
        Server::One => INTERNET,
        Server::Two => OTHER_SERVER,
        Server::Vnet => VNET_HOST,
    }
}

fn server_port(protocol: Protocol) -> u16 {
    if protocol == Protocol::Icmp {
        0
    } else {
        SERVER_PORT
    }
}
