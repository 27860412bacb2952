//! In front of the stack, where a frame is no packet yet: which frames of a carried flow XDP may redirect by itself.

use super::{AtIngress, Exit, FlowEntry, Progress, at_ingress};
use crate::{addr::Address, decide::Role};

/// A frame from the wire whose flow is known.
#[derive(Clone, Copy, Debug)]
pub struct Frame {
    /// What it is to its flow.
    pub role: Role,
    /// IP protocol.
    pub protocol: u8,
    /// Interface of arrival.
    pub ifindex: u32,
    /// Destination MAC.
    pub dst_mac: [u8; 6],
    /// Time to live.
    pub ttl: u8,
    /// Length of the IP packet, bytes.
    pub len: u16,
    /// What it says of the connection's life.
    pub seen: Progress,
    /// The flow has had a packet in this second.
    pub is_fresh: bool,
}

/// Whether XDP redirects the frame. It does nothing but rewrite: what needs more than that goes on to the tc hook, which
/// looks at each flow once a second, notes a connection's beginning and end, and gives the kernel what the kernel has to
/// answer.
#[inline(always)]
pub fn at_driver<A: Address>(entry: &FlowEntry<A>, frame: &Frame) -> bool {
    entry.in_mac == frame.dst_mac
        && entry.exit == Exit::POD
        && frame.is_fresh
        && frame.ttl > 1
        && frame.len <= entry.mtu
        && entry.progress().has(frame.seen)
        && at_ingress(Some(entry), frame.role, frame.protocol, frame.ifindex, false) == AtIngress::Carry
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        decide::tcp_flags,
        flow::{Hop, Nat, State},
        tuple::{ICMP, TCP, UDP},
    };

    const UPLINK: u32 = 2;
    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 4];

    fn carried(protocol: u8) -> FlowEntry<[u8; 4]> {
        let mut entry = FlowEntry {
            state: State::CARRIED,
            nat: Nat::DESTINATION,
            ..FlowEntry::offer(UPLINK, MAC, 0)
        };
        entry.progress = Progress::of_packet(protocol, tcp_flags::ACK).bits();
        entry.leave_by(&Hop {
            exit: Exit::POD,
            mtu: 1500,
            ..Hop::UNKNOWN
        });
        entry
    }

    fn answer(protocol: u8) -> Frame {
        Frame {
            role: if protocol == TCP {
                Role::Continues
            } else {
                Role::Opens
            },
            protocol,
            ifindex: UPLINK,
            dst_mac: MAC,
            ttl: 64,
            len: 1500,
            seen: Progress::of_packet(protocol, tcp_flags::ACK),
            is_fresh: true,
        }
    }

    #[test]
    fn an_ordinary_answer_is_redirected() {
        assert!(at_driver(&carried(UDP), &answer(UDP)));
        assert!(at_driver(&carried(TCP), &answer(TCP)));
        let reply = Frame {
            role: Role::Answers,
            ..answer(ICMP)
        };
        assert!(at_driver(&carried(ICMP), &reply));
    }

    #[test]
    fn what_needs_more_than_a_rewrite_goes_on_to_tc() {
        let ends = Progress::of_packet(TCP, tcp_flags::FIN | tcp_flags::ACK);
        let frame = answer(TCP);
        let others = [
            (
                "first of its second",
                Frame {
                    is_fresh: false,
                    ..frame
                },
            ),
            ("expiring", Frame { ttl: 1, ..frame }),
            ("too large", Frame { len: 1501, ..frame }),
            ("ends the connection", Frame { seen: ends, ..frame }),
            (
                "for another station",
                Frame {
                    dst_mac: [2, 0, 0, 0, 0, 5],
                    ..frame
                },
            ),
            ("from another interface", Frame { ifindex: 3, ..frame }),
            (
                "opens a connection",
                Frame {
                    role: Role::Opens,
                    ..frame
                },
            ),
        ];
        let closed = FlowEntry {
            progress: carried(TCP).progress().with(Progress::RST).bits(),
            ..carried(TCP)
        };
        for (what, other) in others {
            let entry = if what.starts_with("opens") {
                closed
            } else {
                carried(TCP)
            };
            assert!(!at_driver(&entry, &other), "{what}");
        }
    }

    #[test]
    fn a_flow_that_tc_has_not_shown_or_the_kernel_keeps_is_not_touched() {
        let frame = answer(UDP);
        let entry = carried(UDP);
        let others = [
            FlowEntry {
                in_mac: [0; 6],
                ..entry
            },
            FlowEntry {
                state: State::KERNEL,
                ..entry
            },
            FlowEntry {
                state: State::OFFERED,
                ..entry
            },
            FlowEntry {
                exit: Exit::UPLINK,
                ..entry
            },
            FlowEntry {
                exit: Exit::STACK,
                ..entry
            },
        ];
        assert!(others.iter().all(|other| !at_driver(other, &frame)));
    }
}
