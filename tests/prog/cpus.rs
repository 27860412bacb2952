//! Two CPUs with the first packet of one flow at the same moment: one mapping.

use std::{
    hint,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering::SeqCst},
    },
    thread,
};

use causeway_common::{flow::Nat, reason::Reason, tuple::UDP};
use causeway_tests::netns::Netns;
use rustix::thread::{CpuSet, sched_setaffinity};

use crate::{
    bench::{Bench, Hook, INTERNET, NODE, ROUTER_MAC, TC_ACT_UNSPEC, key},
    packets::{Ends, udp},
    stage::{Given, Stage},
};

const ROUNDS: u32 = 100_000;

/// In every other round another pod holds the port, so that both CPUs walk the candidates.
#[test]
fn the_first_packet_of_a_flow_on_two_cpus_at_once_gets_one_mapping() {
    let mut bench = Bench::new();
    // The flows are removed from outside, where nobody counts them.
    bench.configure_with(NODE, u32::MAX, u32::MAX);
    let (uplink, link) = (bench.uplink_ifindex, (bench.uplink_mac, ROUTER_MAC));
    let ends = |src, src_port| Ends {
        src,
        src_port,
        dst: INTERNET,
        dst_port: 53,
    };
    let held = udp(link, ends(bench.b.addr, 40_001), 64, b"x");
    assert_eq!(
        bench.run(Hook::ToUplink, uplink, &held).reason,
        Reason::SnatKernel
    );
    let base = bench.flow_count();
    let flows = [ends(bench.a.addr, 40_000), ends(bench.a.addr, 40_001)];
    let packets = flows.map(|ends| udp(link, ends, 64, b"x"));

    let meeting = Meeting::default();
    let (mut here, mut there) = (Stage::new(&bench), Stage::new(&bench));
    let ns = Arc::clone(&bench.ns);
    thread::scope(|scope| {
        let other = scope.spawn(|| {
            on_cpu(&ns, 1, || {
                let _leaving = Leaving(&meeting);
                for round in 1..=ROUNDS {
                    meeting.wait(&meeting.called, round);
                    let port = first_packet(&mut there, uplink, &packets[round as usize % 2]);
                    meeting.port.store(port.into(), SeqCst);
                    meeting.done.store(round, SeqCst);
                }
            });
        });
        on_cpu(&ns, 0, || {
            let _leaving = Leaving(&meeting);
            for round in 1..=ROUNDS {
                let (ends, packet) = (flows[round as usize % 2], &packets[round as usize % 2]);
                meeting.called.store(round, SeqCst);
                // The call takes a moment to be heard: at times the one that calls is first, at times the other.
                (0..round % 256).for_each(|_| hint::spin_loop());
                let port = first_packet(&mut here, uplink, packet);
                meeting.wait(&meeting.done, round);
                assert_eq!(meeting.port.load(SeqCst), u32::from(port), "round {round}");
                assert_eq!(
                    port == ends.src_port,
                    round % 2 == 0,
                    "round {round}: port {port}"
                );

                let forward_key = key(ends, UDP);
                let forward = bench.flow(&forward_key).expect("the forward half");
                assert_eq!(
                    (forward.nat, forward.nat_port),
                    (Nat::SOURCE, port.to_be_bytes()),
                    "round {round}"
                );
                let answer_key = forward.peer_key(&forward_key);
                let answer = bench.flow(&answer_key).expect("the answer's half");
                assert_eq!(answer.peer_key(&answer_key), forward_key, "round {round}");
                bench.remove(&forward_key);
                bench.remove(&answer_key);
                if round % 1000 == 0 {
                    assert_eq!(bench.flow_count(), base, "round {round}: a claim is left behind");
                }
            }
        });
        other.join().unwrap();
    });
    let translated = bench.counts(Hook::ToUplink)[Reason::SnatKernel as usize];
    assert_eq!(translated, u64::from(2 * ROUNDS) + 1);
}

/// Where two threads meet.
#[derive(Default)]
struct Meeting {
    /// The round that has begun.
    called: AtomicU32,
    /// The round that the other thread has done, and the port it saw.
    done: AtomicU32,
    port: AtomicU32,
    is_over: AtomicBool,
}

/// One that leaves, by whatever way, is not waited for.
struct Leaving<'a>(&'a Meeting);

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        self.0.is_over.store(true, SeqCst);
    }
}

impl Meeting {
    fn wait(&self, counter: &AtomicU32, round: u32) {
        for turn in 1u32.. {
            if counter.load(SeqCst) >= round {
                return;
            }
            assert!(
                !self.is_over.load(SeqCst),
                "the other CPU has given up in round {round}"
            );
            // On a machine with one CPU, or a busy one, the other thread has to get its turn.
            if turn % 1024 == 0 {
                thread::yield_now();
            }
            hint::spin_loop();
        }
    }
}

/// Port with which the packet leaves.
fn first_packet(stage: &mut Stage, uplink: u32, packet: &[u8]) -> u16 {
    let (action, sent) = stage.run(Hook::ToUplink, uplink, Given::default(), packet);
    assert_eq!(action, TC_ACT_UNSPEC);
    u16::from_be_bytes([sent[34], sent[35]])
}

fn on_cpu(ns: &Netns, cpu: usize, f: impl FnOnce() + Send) {
    ns.run(|| {
        let mut cpus = CpuSet::new();
        cpus.set(cpu % thread::available_parallelism().unwrap());
        sched_setaffinity(None, &cpus).unwrap();
        f();
    })
    .unwrap();
}
