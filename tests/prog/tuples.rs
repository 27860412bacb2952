//! Tuples that serve twice: what one flow leaves behind must not decide for the next.

use causeway_common::{
    flow::{Flags, Nat, Progress, State},
    reason::Reason,
    tuple::{TCP, UDP},
};

use crate::{
    bench::{Bench, Entry, Hook, INTERNET, NODE, ROUTER_MAC, key},
    packets::{Ends, ack, seen, syn, tcp, udp},
};

fn outwards(bench: &Bench, src_port: u16, dst_port: u16) -> Ends {
    Ends {
        src: bench.a.addr,
        src_port,
        dst: INTERNET,
        dst_port,
    }
}

/// Longer ago than any lifetime.
fn long_ago(bench: &Bench) -> u32 {
    bench.now().wrapping_sub(1_000_000)
}

/// A pod asks a Service by UDP; the kernel translates the answer back, so it comes out of the stack under a tuple that
/// was never offered. That makes it no flow of the Service's towards the pod: when the Service is gone and the pod's next
/// datagram leaves by the uplink, it is translated.
#[test]
fn the_answer_of_a_service_does_not_make_the_question_an_answer() {
    let mut bench = Bench::new();
    let (a, uplink) = (bench.a, bench.uplink_ifindex);
    let question = outwards(&bench, 5000, 53);
    let packet = udp(a.sends(), question, 64, b"q");
    assert_eq!(
        bench.run(Hook::FromPod, a.ifindex, &packet).reason,
        Reason::Offered
    );
    let answer = udp((a.host_mac, a.mac), question.reversed(), 64, b"a");
    let ran = bench.run_forwarded(Hook::ToPod, a.ifindex, uplink, &answer);
    assert_eq!(ran.reason, Reason::RecordedKernel);
    assert!(!bench.flow(&key(question, UDP)).unwrap().has(Flags::ANSWER));

    let packet = udp((bench.uplink_mac, ROUTER_MAC), question, 64, b"q");
    let ran = bench.run_forwarded(Hook::ToUplink, uplink, a.ifindex, &packet);
    assert_eq!(
        (ran.reason, seen(&ran.packet, None).src),
        (Reason::SnatKernel, NODE)
    );
}

/// A stranger's datagram through a hostPort marks the way back as an answer, for as long as the flow lives.
#[test]
fn an_answer_mark_does_not_outlive_its_flow() {
    for state in [State::OFFERED, State::CARRIED, State::KERNEL] {
        let mut bench = Bench::new();
        let (a, uplink) = (bench.a, bench.uplink_ifindex);
        let ends = outwards(&bench, 5060, 5060);
        let marked = Entry {
            state,
            in_ifindex: a.ifindex,
            in_mac: a.mac,
            last_seen: long_ago(&bench),
            ..Entry::kernel(Flags::ANSWER | Flags::CAME_OUT, 0)
        };
        bench.insert(key(ends, UDP), marked);
        let packet = udp(a.sends(), ends, 64, b"x");
        assert_eq!(
            bench.run(Hook::FromPod, a.ifindex, &packet).reason,
            Reason::Offered,
            "state {state}"
        );
        let packet = udp((bench.uplink_mac, ROUTER_MAC), ends, 64, b"x");
        let ran = bench.run(Hook::ToUplink, uplink, &packet);
        assert_eq!(
            (ran.reason, seen(&ran.packet, None).src),
            (Reason::SnatKernel, NODE)
        );
    }
}

#[test]
fn a_peer_from_outside_that_calls_again_on_the_same_tuple_gets_its_answer() {
    let mut bench = Bench::new();
    let (a, uplink) = (bench.a, bench.uplink_ifindex);
    let question = outwards(&bench, 80, 6000).reversed();
    let over = Progress::SPOKE
        .with(Progress::FIN)
        .and_peer(Progress::FIN)
        .and_peer(Progress::SPOKE);
    let now = bench.now();
    let finished = Entry {
        state: State::CARRIED,
        progress: over.bits(),
        ..Entry::offer(uplink, [0; 6], now)
    };
    bench.insert(key(question, TCP), finished);
    let answered = Entry {
        flags: Flags::ANSWER | Flags::WENT_UP | Flags::CAME_OUT,
        ..finished
    };
    bench.insert(key(question.reversed(), TCP), answered);

    let packet = syn((ROUTER_MAC, bench.uplink_mac), question);
    assert_eq!(
        bench.run(Hook::FromUplink, uplink, &packet).reason,
        Reason::Offered
    );
    // A run cannot carry the tag, so the stack seems to have changed the packet: the flow becomes the kernel's.
    let packet = syn((a.host_mac, a.mac), question);
    bench.run_forwarded(Hook::ToPod, a.ifindex, uplink, &packet);
    let answer = tcp(
        (bench.uplink_mac, ROUTER_MAC),
        question.reversed(),
        64,
        |header| (header.syn, header.ack) = (true, true),
        &[],
    );
    let ran = bench.run(Hook::ToUplink, uplink, &answer);
    assert_eq!((ran.reason, ran.packet), (Reason::KernelFlow, answer));
}

#[test]
fn a_new_connection_on_a_finished_translated_tuple_starts_its_life_again() {
    let mut bench = Bench::new();
    let uplink = bench.uplink_ifindex;
    let ends = outwards(&bench, 40_000, 443);
    let packet = syn((bench.uplink_mac, ROUTER_MAC), ends);
    bench.run(Hook::ToUplink, uplink, &packet);
    let forward = key(ends, TCP);
    let over = Progress::SPOKE.with(Progress::FIN).and_peer(Progress::FIN);
    let finished = Entry {
        progress: over.bits(),
        ..bench.flow(&forward).unwrap()
    };
    bench.insert(forward, finished);
    let ran = bench.run(Hook::ToUplink, uplink, &packet);
    assert_eq!(
        (ran.reason, seen(&ran.packet, None).ports.0),
        (Reason::SnatKernel, 40_000)
    );
    let again = bench.flow(&forward).unwrap();
    assert!(!again.progress().is_over());
    assert!(
        !bench
            .flow(&again.peer_key(&forward))
            .unwrap()
            .progress()
            .is_over()
    );
}

#[test]
fn a_reset_that_nobody_meant_does_not_end_a_connection_that_goes_on() {
    let mut bench = Bench::new();
    let ends = outwards(&bench, 40_000, 443);
    let (forward, answer) = bench.carry_translated(ends, TCP, 40_000);
    let a = bench.a;
    let spoke = Progress::SPOKE.and_peer(Progress::SPOKE);
    let earlier = bench.now() - 5;
    for (key, progress) in [
        (forward, spoke.and_peer(Progress::RST)),
        (answer, spoke.with(Progress::RST)),
    ] {
        let entry = Entry {
            progress: progress.bits(),
            last_seen: earlier,
            ..bench.flow(&key).unwrap()
        };
        bench.insert(key, entry);
    }
    assert_eq!(
        bench.run(Hook::FromPod, a.ifindex, &ack(a.sends(), ends)).reason,
        Reason::CarriedToUplink
    );
    for key in [forward, answer] {
        assert!(!bench.flow(&key).unwrap().progress().either(Progress::RST));
    }
}

#[test]
fn a_carried_flow_of_an_address_that_the_node_has_lost_is_forgotten_within_a_second() {
    let mut bench = Bench::new();
    let (a, ends) = (bench.a, outwards(&bench, 40_000, 443));
    let (forward, answer) = bench.carry_translated(ends, UDP, 40_000);
    bench.idle(&forward, 1);
    bench.configure("10.240.0.77".parse().unwrap());
    let packet = udp(a.sends(), ends, 64, b"x");
    let ran = bench.run(Hook::FromPod, a.ifindex, &packet);
    assert_eq!((ran.reason, ran.packet), (Reason::AddressChanged, packet));
    assert!(bench.flow(&forward).is_none() && bench.flow(&answer).is_none());
}

/// A hostPort has no socket: the connection that the kernel forwards with the node's address is noted, so that no pod
/// can take its answers by opening a flow from that port.
#[test]
fn a_pod_cannot_take_over_what_the_kernel_forwards_with_the_nodes_address() {
    let mut bench = Bench::new();
    let (a, b, uplink) = (bench.a, bench.b, bench.uplink_ifindex);
    let client = "198.51.100.7".parse().unwrap();
    let served = Ends {
        src: NODE,
        src_port: 8080,
        dst: client,
        dst_port: 7000,
    };
    let answer = tcp(
        (bench.uplink_mac, ROUTER_MAC),
        served,
        63,
        |header| (header.syn, header.ack) = (true, true),
        &[],
    );
    let ran = bench.run_forwarded(Hook::ToUplink, uplink, b.ifindex, &answer);
    assert_eq!((ran.reason, &ran.packet), (Reason::NotFromPod, &answer));

    let thief = Ends {
        src: a.addr,
        ..served
    };
    let packet = syn((bench.uplink_mac, ROUTER_MAC), thief);
    let ran = bench.run_forwarded(Hook::ToUplink, uplink, a.ifindex, &packet);
    assert_ne!(seen(&ran.packet, None).ports.0, 8080);

    let next = ack((ROUTER_MAC, bench.uplink_mac), served.reversed());
    let ran = bench.run(Hook::FromUplink, uplink, &next);
    assert_eq!((ran.reason, ran.packet), (Reason::NotToPod, next));
}

#[test]
fn both_halves_say_what_they_replace() {
    let mut bench = Bench::new();
    let ends = outwards(&bench, 40_000, 443);
    let (forward, answer) = bench.carry_translated(ends, TCP, 50_000);
    let (forward_entry, answer_entry) = (bench.flow(&forward).unwrap(), bench.flow(&answer).unwrap());
    assert_eq!(
        (forward_entry.nat, answer_entry.nat),
        (Nat::SOURCE, Nat::DESTINATION)
    );
    assert_eq!(forward_entry.peer_key(&forward), answer);
    assert_eq!(answer_entry.peer_key(&answer), forward);
}
