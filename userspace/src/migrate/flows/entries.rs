//! The entries of a flow, as the programs would have written them.

use causeway_common::{
    flow::{Exit, Flags, FlowEntry, Hop, Nat, Progress, State},
    maps::PodEntry,
    tuple::{FlowKey, ICMP, TCP},
};

use super::{
    super::conntrack::{Connection, End, Tuple, tcp},
    Entry, Flows, Key,
};
use crate::datapath::now;

/// A direction of a translated flow: its key, and the source that it leaves with.
#[derive(Clone, Copy)]
pub(super) struct Direction {
    /// As it stands before it is translated.
    pub(super) key: Key,
    /// As its answers stand before they are.
    pub(super) answer: Key,
    pub(super) pod: PodEntry,
    pub(super) port: u16,
}

impl Flows {
    /// The two directions of a flow of a pod that leaves the node with `source`.
    pub(super) fn direction(&self, inside: &Tuple, source: End) -> Option<Direction> {
        let pod = *self.pods.get(&inside.src.0)?;
        let outside = Tuple {
            src: source,
            ..*inside
        };
        Some(Direction {
            key: key(inside, true),
            answer: key(&outside.reversed(), false),
            pod,
            port: source.1,
        })
    }

    /// `CLOCK_MONOTONIC` seconds at which an entry was seen that has `left` seconds to live.
    pub(super) fn seen_with(&self, entry: &Entry, protocol: u8, left: u32) -> u32 {
        let lifetime = self.config.timeouts.of(entry, protocol);
        now().wrapping_sub(lifetime.saturating_sub(left))
    }

    /// Seconds that a flow has to live, one of whose entries this is. 0: it has expired.
    pub(super) fn left_of(&self, key: &Key, entry: &Entry) -> u32 {
        let left = |entry: &Entry| {
            let idle = now().saturating_sub(entry.last_seen);
            self.config.timeouts.of(entry, key.protocol).saturating_sub(idle)
        };
        let peer_key = entry.peer_key(key);
        let peer = self
            .get(&peer_key)
            .filter(|peer| peer.peer_key(&peer_key) == *key);
        left(entry).max(peer.as_ref().map_or(0, left))
    }

    /// The entry of the flow's own direction.
    pub(super) fn forward(&self, of: &Direction, state: u8, progress: Progress) -> Entry {
        let mut entry = FlowEntry::kernel(Flags::WENT_UP | Flags::COUNTED, now());
        entry.nat = Nat::SOURCE;
        entry.nat_addr = self.config.node_addr;
        entry.nat_port = of.port.to_be_bytes();
        entry.in_ifindex = of.pod.ifindex;
        entry.in_mac = of.pod.mac;
        entry.progress = progress.bits();
        entry.leave_by(&Hop {
            exit: Exit::UPLINK,
            flags: 0,
            mtu: self.config.uplink_mtu.min(u16::MAX.into()) as u16,
            ifindex: self.config.uplink_ifindex,
            dst_mac: self.next_hop.unwrap_or_default(),
            src_mac: self.uplink_mac,
        });
        entry.state = state;
        entry
    }

    /// The entry of its answers.
    pub(super) fn reverse(&self, of: &Direction, state: u8, progress: Progress) -> Entry {
        let mut entry = FlowEntry::kernel(Flags::WENT_UP, now());
        entry.nat = Nat::DESTINATION;
        entry.nat_addr = of.key.src;
        entry.nat_port = of.key.src_port;
        entry.in_ifindex = self.config.uplink_ifindex;
        entry.progress = progress.swapped().bits();
        entry.leave_by(&Hop {
            exit: Exit::POD,
            flags: 0,
            mtu: of.pod.mtu,
            ifindex: of.pod.ifindex,
            dst_mac: of.pod.mac,
            src_mac: of.pod.host_mac,
        });
        entry.state = state;
        entry
    }

    /// Both entries of a flow that conntrack knows, with the time that it has left.
    pub(super) fn halves(&self, of: &Direction, state: u8, connection: &Connection) -> [Entry; 2] {
        let progress = progress(connection);
        let halves = [
            self.forward(of, state, progress),
            self.reverse(of, state, progress),
        ];
        halves.map(|mut half| {
            half.last_seen = self.seen_with(&half, of.key.protocol, connection.timeout);
            half
        })
    }

    /// Whether a flow of this pod may be carried from here.
    pub(super) fn state_for(&self, pod: &PodEntry) -> u8 {
        if pod.may_be_carried() && self.next_hop.is_some() {
            State::CARRIED
        } else {
            State::KERNEL
        }
    }
}

/// The entry of the answers to a pod's flow for as long as they are the kernel's. It says whose they are, or the programs would
/// take the port, and with it the flow, for lost.
pub(super) fn answers_to_kernel(question: &Key) -> Entry {
    let mut entry = FlowEntry::kernel(Flags::HOST, now());
    (entry.nat_addr, entry.nat_port) = (question.src, question.src_port);
    entry
}

/// The key of a direction of a flow; of an ICMP query the question has the identifier as its source's port, the answer as
/// its destination's.
pub(super) fn key(tuple: &Tuple, asks: bool) -> Key {
    let (src_port, dst_port) = match (tuple.protocol, asks) {
        (ICMP, true) => (tuple.src.1, 0),
        (ICMP, false) => (0, tuple.dst.1),
        _ => (tuple.src.1, tuple.dst.1),
    };
    FlowKey {
        src: tuple.src.0.octets(),
        dst: tuple.dst.0.octets(),
        src_port: src_port.to_be_bytes(),
        dst_port: dst_port.to_be_bytes(),
        protocol: tuple.protocol,
        _pad: [0; 3],
    }
}

/// The tuple of a question's key.
pub(super) fn tuple(key: &Key) -> Tuple {
    let [src_port, dst_port] = [key.src_port, key.dst_port].map(u16::from_be_bytes);
    Tuple {
        protocol: key.protocol,
        src: (key.src.into(), src_port),
        dst: (
            key.dst.into(),
            if key.protocol == ICMP { src_port } else { dst_port },
        ),
    }
}

/// How far a connection of conntrack is, as the entry of its opener stores it.
pub(super) fn progress(connection: &Connection) -> Progress {
    let both = |bits: Progress| bits.and_peer(bits);
    if connection.original.protocol != TCP {
        return both(Progress::SPOKE);
    }
    let open = both(Progress::SPOKE)
        .with(Progress::PAST_SYN)
        .and_peer(Progress::PAST_SYN);
    match connection.state {
        0..tcp::SYN_RECV => Progress::SPOKE,
        tcp::SYN_RECV => both(Progress::SPOKE),
        tcp::ESTABLISHED => open,
        tcp::LAST_ACK | tcp::TIME_WAIT => open.with(Progress::FIN).and_peer(Progress::FIN),
        tcp::CLOSE => open.with(Progress::RST),
        _ if connection.opener_closed => open.with(Progress::FIN),
        _ => open.and_peer(Progress::FIN),
    }
}

#[cfg(test)]
mod tests {
    use causeway_common::tuple::UDP;

    use super::*;

    fn connection(protocol: u8, state: u8, opener_closed: bool) -> Connection {
        let original = Tuple {
            protocol,
            src: ([10, 240, 0, 5].into(), 7),
            dst: ([203, 0, 113, 10].into(), 9),
        };
        Connection {
            opener_closed,
            ..Connection::new(original, original.reversed(), 1, state)
        }
    }

    #[test]
    fn a_connection_goes_on_where_it_was() {
        let of = |state, opener_closed| progress(&connection(TCP, state, opener_closed));
        assert!(
            of(tcp::ESTABLISHED, false).both(Progress::PAST_SYN) && !of(tcp::ESTABLISHED, false).is_over()
        );
        assert!(!of(1, false).either(Progress::PAST_SYN));
        assert!(of(4, true).has(Progress::FIN) && !of(4, true).is_over());
        assert!(of(5, false).swapped().has(Progress::FIN));
        assert!(of(tcp::TIME_WAIT, true).is_over() && of(tcp::CLOSE, false).is_over());
        assert!(progress(&connection(UDP, 0, false)).both(Progress::SPOKE));
    }

    #[test]
    fn an_identifier_is_the_askers_port_in_both_directions() {
        let ping = connection(ICMP, 0, false).original;
        let ping = Tuple {
            dst: (ping.dst.0, 7),
            ..ping
        };
        let (question, answer) = (key(&ping, true), key(&ping.reversed(), false));
        assert_eq!(answer, question.reversed());
        assert_eq!((question.src_port, question.dst_port), ([0, 7], [0, 0]));
        assert_eq!(tuple(&question), ping);
    }
}
