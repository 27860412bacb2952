//! The state machine as a story: what each hook makes of an entry, and what no sequence of packets may reach.

use proptest::prelude::*;

use super::*;
use crate::{
    decide::Role,
    reason::Reason,
    tuple::{ICMP, TCP, UDP},
};

type Entry = FlowEntry<[u8; 4]>;

const VETH: u32 = 7;

fn offered() -> Entry {
    Entry::offer(VETH, [2; 6], 100)
}

fn leaving(mut entry: Entry) -> Entry {
    entry.leave_by(&hop());
    entry
}

fn carried() -> Entry {
    Entry {
        state: State::CARRIED,
        ..leaving(offered())
    }
}

fn hop() -> Hop {
    Hop {
        exit: Exit::POD,
        flags: 0,
        mtu: 1500,
        ifindex: 9,
        dst_mac: [4; 6],
        src_mac: [6; 6],
    }
}

#[test]
fn a_first_packet_is_offered_and_anything_else_without_an_entry_is_left_alone() {
    assert_eq!(
        at_ingress::<[u8; 4]>(None, Role::Opens, TCP, VETH, false),
        AtIngress::Offer
    );
    for role in [Role::Answers, Role::Continues] {
        assert_eq!(
            at_ingress::<[u8; 4]>(None, role, TCP, VETH, false),
            AtIngress::Stack(Reason::MidFlow)
        );
    }
}

#[test]
fn a_udp_direction_is_promoted_by_itself_and_a_tcp_direction_awaits_the_answer() {
    assert_eq!(
        at_egress(Some(&offered()), Role::Opens, UDP, true),
        AtEgress::Promote
    );
    assert_eq!(
        at_egress(Some(&offered()), Role::Opens, ICMP, true),
        AtEgress::Promote
    );
    assert_eq!(
        at_egress(Some(&offered()), Role::Opens, TCP, true),
        AtEgress::AwaitAnswer
    );
    assert_eq!(
        at_egress(Some(&offered()), Role::Answers, TCP, true),
        AtEgress::AwaitAnswer
    );
}

#[test]
fn tcp_completes_only_when_the_other_direction_went_in_and_came_out_too() {
    let awaited = Entry::awaited(0, 100);
    assert!(!completes::<[u8; 4]>(None));
    assert!(!completes(Some(&awaited)));
    assert!(!completes(Some(&offered())), "went up, not seen to come out");
    assert!(completes(Some(&leaving(offered()))));
    assert!(!completes(Some(&Entry::kernel(0, 100))));
}

#[test]
fn an_awaited_answer_that_never_went_up_is_not_promoted_even_when_the_tag_fits() {
    let awaited = Entry::awaited(0, 100);
    assert_eq!(
        at_egress(Some(&awaited), Role::Answers, TCP, true),
        AtEgress::SettleQuestion
    );
    assert_eq!(
        at_egress(Some(&awaited), Role::Opens, UDP, true),
        AtEgress::Record
    );
}

#[test]
fn a_translated_packet_goes_to_the_kernel_and_its_answer_settles_the_question() {
    assert_eq!(
        at_egress(Some(&offered()), Role::Opens, TCP, false),
        AtEgress::Record
    );
    assert_eq!(
        at_egress::<[u8; 4]>(None, Role::Opens, TCP, false),
        AtEgress::Record
    );
    assert_eq!(
        at_egress::<[u8; 4]>(None, Role::Answers, TCP, false),
        AtEgress::SettleQuestion
    );
}

#[test]
fn a_stray_fin_rst_or_ack_creates_nothing_at_either_hook() {
    assert_eq!(
        at_egress::<[u8; 4]>(None, Role::Continues, TCP, false),
        AtEgress::Leave(Reason::MidFlow)
    );
    assert_eq!(
        at_ingress::<[u8; 4]>(None, Role::Continues, TCP, VETH, false),
        AtIngress::Stack(Reason::MidFlow)
    );
}

#[test]
fn the_stack_wins_a_tuple_that_it_emits_for_another_flow() {
    assert_eq!(
        at_egress(Some(&carried()), Role::Opens, TCP, false),
        AtEgress::Demote
    );
    assert_eq!(
        at_egress(Some(&carried()), Role::Opens, TCP, true),
        AtEgress::Leave(Reason::CarriedTakesStack)
    );
    // An RST that the node itself sends for the flow is not a new flow.
    assert_eq!(
        at_egress(Some(&carried()), Role::Continues, TCP, false),
        AtEgress::Leave(Reason::CarriedTakesStack)
    );
}

#[test]
fn a_syn_on_a_finished_connection_is_a_new_flow_and_on_a_live_one_is_carried() {
    let over = Progress::SPOKE.with(Progress::FIN).and_peer(Progress::FIN);
    let finished = Entry {
        progress: over.bits(),
        ..carried()
    };
    assert_eq!(
        at_ingress(Some(&finished), Role::Opens, TCP, VETH, false),
        AtIngress::Offer
    );
    assert_eq!(
        at_ingress(Some(&finished), Role::Continues, TCP, VETH, false),
        AtIngress::Carry,
        "the last ACK"
    );
    assert_eq!(
        at_ingress(Some(&carried()), Role::Opens, TCP, VETH, false),
        AtIngress::Carry
    );
}

#[test]
fn a_carried_entry_serves_only_the_interface_on_which_it_was_made() {
    assert_eq!(
        at_ingress(Some(&carried()), Role::Continues, TCP, VETH + 1, false),
        AtIngress::Stack(Reason::MidFlow)
    );
    assert_eq!(
        at_ingress(Some(&carried()), Role::Opens, TCP, VETH + 1, false),
        AtIngress::Offer
    );
}

/// An entry that outlived its flow must not decide for the next one on its tuple: it may be marked as an answer.
#[test]
fn an_idle_entry_of_any_state_asks_the_kernel_again_and_only_for_a_first_packet() {
    for entry in [offered(), carried(), Entry::kernel(Flags::ANSWER, 100)] {
        assert_eq!(
            at_ingress(Some(&entry), Role::Opens, UDP, VETH, true),
            AtIngress::Offer
        );
        assert_ne!(
            at_ingress(Some(&entry), Role::Continues, TCP, VETH, true),
            AtIngress::Offer
        );
    }
}

#[test]
fn progress_reads_the_same_from_both_sides() {
    let client = Progress::SPOKE.with(Progress::FIN).and_peer(Progress::SPOKE);
    let server = client.swapped();
    assert!(server.has(Progress::SPOKE) && !server.has(Progress::FIN));
    assert!(client.either(Progress::FIN) && server.either(Progress::FIN));
    assert!(client.both(Progress::SPOKE) && !client.both(Progress::FIN));
}

#[test]
fn each_half_of_a_translated_pair_names_the_other() {
    let key = FlowKey {
        src: [10, 240, 0, 5],
        dst: [203, 0, 113, 10],
        src_port: [0xc0, 1],
        dst_port: [1, 0xbb],
        protocol: TCP,
        _pad: [0; 3],
    };
    let forward = Entry {
        nat: Nat::SOURCE,
        nat_addr: [10, 240, 0, 4],
        nat_port: [0xd0, 2],
        ..carried()
    };
    let answer_key = forward.peer_key(&key);
    assert_eq!((answer_key.src, answer_key.src_port), (key.dst, key.dst_port));
    assert_eq!(
        (answer_key.dst, answer_key.dst_port),
        ([10, 240, 0, 4], [0xd0, 2])
    );
    let answer = Entry {
        nat: Nat::DESTINATION,
        nat_addr: key.src,
        nat_port: key.src_port,
        ..carried()
    };
    assert_eq!(answer.peer_key(&answer_key), key);
    assert_eq!(carried().peer_key(&key), key.reversed());
}

fn role() -> impl Strategy<Value = Role> {
    prop_oneof![Just(Role::Opens), Just(Role::Answers), Just(Role::Continues)]
}

/// One packet of a flow: who sends it, what it is, and whether the kernel changes its tuple.
fn step() -> impl Strategy<Value = (bool, Role, bool)> {
    (any::<bool>(), role(), any::<bool>())
}

/// Plays the hooks over a pair of entries as the programs do, for a flow without SNAT.
struct Pair {
    protocol: u8,
    question: Option<Entry>,
    answer: Option<Entry>,
}

impl Pair {
    /// A packet of one direction. Returns whether it was carried past the stack.
    fn pass(&mut self, forward: bool, role: Role, translated: bool) -> bool {
        let (own, peer) = if forward {
            (&mut self.question, &mut self.answer)
        } else {
            (&mut self.answer, &mut self.question)
        };
        match at_ingress(own.as_ref(), role, self.protocol, VETH, false) {
            AtIngress::Carry => return true,
            AtIngress::Offer => {
                if own.is_some() {
                    *peer = Some(Entry::awaited(0, 100));
                }
                *own = Some(offered());
            }
            AtIngress::Continue => {
                let entry = own.as_mut().unwrap();
                entry.flags |= Flags::WENT_UP;
                entry.in_ifindex = VETH;
            }
            AtIngress::Stack(_) | AtIngress::Reset => {}
        }
        if translated {
            // It comes out under another tuple: the hook there sees neither of these two entries.
            return false;
        }
        match at_egress(own.as_ref(), role, self.protocol, true) {
            AtEgress::Promote => {
                *own = Some(Entry {
                    state: State::CARRIED,
                    ..leaving(own.unwrap())
                });
            }
            AtEgress::AwaitAnswer => {
                let entry = leaving(own.unwrap());
                if completes(peer.as_ref()) {
                    *own = Some(Entry {
                        state: State::CARRIED,
                        ..entry
                    });
                    *peer = peer.map(|peer| Entry {
                        state: State::CARRIED,
                        ..peer
                    });
                } else {
                    *own = Some(entry);
                    peer.get_or_insert(Entry::awaited(0, 100));
                }
            }
            AtEgress::Record | AtEgress::Demote => {
                *own = Some(Entry::kernel(0, 100));
                *peer = Some(Entry::kernel(0, 100));
            }
            AtEgress::SettleQuestion | AtEgress::Leave(_) => {}
        }
        false
    }
}

proptest! {
    #[test]
    fn a_direction_that_is_always_translated_is_never_carried(
        protocol in prop_oneof![Just(TCP), Just(UDP)],
        steps in prop::collection::vec(step(), 1..64),
    ) {
        let mut pair = Pair { protocol, question: None, answer: None };
        for (forward, role, translated) in steps {
            let role = if protocol == UDP { Role::Opens } else { role };
            // The forward direction is translated each time, as behind a ClusterIP.
            let carried = pair.pass(forward, role, forward || translated);
            prop_assert!(!(carried && forward));
        }
        prop_assert!(pair.question.is_none_or(|entry| entry.state != State::CARRIED));
    }

    #[test]
    fn tcp_is_carried_both_ways_or_not_at_all(steps in prop::collection::vec(step(), 1..64)) {
        let mut pair = Pair { protocol: TCP, question: None, answer: None };
        for (forward, role, translated) in steps {
            pair.pass(forward, role, translated);
            let is_carried = |entry: Option<Entry>| entry.is_some_and(|entry| entry.state == State::CARRIED);
            prop_assert_eq!(is_carried(pair.question), is_carried(pair.answer));
        }
    }
}
