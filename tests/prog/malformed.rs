//! Packets that nobody sane sends: whatever is left to the kernel is left byte for byte, whatever is translated is translated
//! whole, and nothing that needs translation passes the uplink without.
//!
//! Every header cut at every byte, every length that lies, and packets broken at random ([`mutation`]), against a table
//! that holds an entry of every kind ([`scene`]). What must hold is judged from the bytes alone ([`oracle`]), and the kernel
//! must not complain. `CAUSEWAY_SEED` repeats a run.

mod corpus;
pub(crate) mod mutation;
mod oracle;
mod scene;

use std::{iter, sync::Arc, thread, time::Instant};

use causeway_common::reason::{Reason, Verdict};
use causeway_tests::rng::{self, Rng};

use self::{
    corpus::{Sample, as_protocol, samples, with_options},
    mutation::{given, mend_checksum, mutant},
    oracle::judge,
    scene::Scene,
};
use crate::{bench::Hook, kernel_log::KernelLog, stage::Given};

/// Packets broken at random in an ordinary run.
const ORDINARY: u64 = 2_000_000;
const ORDINARY_SEED: u64 = 20_261_122;
/// And in a long one.
const LONG: u64 = 100_000_000;
/// Packets that meet one table before it is made again.
const EPOCH: u64 = 2048;

#[test]
fn every_header_cut_at_every_byte_with_and_without_the_length_saying_so() {
    exhaust(true, |sample| {
        let packet = &sample.packet;
        // The whole frame is passed and cut behind the door: the kernel runs no IPv4 frame shorter than its header.
        let cuts = (14..packet.len()).map(|end| (packet.clone(), Some(end as u16)));
        let honest = (34..packet.len()).map(|end| (with_length(&packet[..end], (end - 14) as u16), None));
        cuts.chain(honest)
            .chain(iter::once((packet.clone(), None)))
            .collect()
    });
}

#[test]
fn every_length_that_lies() {
    exhaust(false, |sample| {
        let packet = &sample.packet;
        let l4 = 14 + usize::from(packet[14] & 0x0f) * 4;
        let mut lies = Vec::new();
        let mut lie = |at: usize, bytes: &[u8]| {
            if at + bytes.len() <= packet.len() {
                let mut liar = packet.clone();
                liar[at..at + bytes.len()].copy_from_slice(bytes);
                lies.push((liar.clone(), None));
                mend_checksum(&mut liar);
                lies.push((liar, None));
            }
        };
        let lengths = (0..=packet.len() as u16 + 8).chain([0x1fff, 0x7fff, 0xfff0, 0xffff]);
        for byte in 0..=0xffu8 {
            lie(14, &[byte]);
        }
        for length in lengths.clone() {
            lie(16, &length.to_be_bytes());
        }
        for offset in (0..16).chain([0x1ff0, 0x1ffd, 0x1ffe, 0x1fff]) {
            for flags in [0u16, 0x2000, 0x4000, 0x8000, 0xe000] {
                lie(20, &(flags | offset).to_be_bytes());
            }
        }
        match packet[23] {
            17 => lengths.for_each(|length| lie(l4 + 4, &length.to_be_bytes())),
            6 => (0..=0xff)
                .step_by(8)
                .for_each(|offset: u8| lie(l4 + 12, &[offset])),
            1 => {
                for kind in 0..=0xff {
                    lie(l4, &[kind]);
                }
                // What an error quotes lies as well.
                for byte in (0..=0x4f).chain([0x54, 0x65, 0xf5]) {
                    lie(l4 + 8, &[byte]);
                }
                for fragment in [0x2000u16, 1, 0x1fff] {
                    lie(l4 + 14, &fragment.to_be_bytes());
                }
            }
            _ => {}
        }
        lies
    });
}

/// All that an IPv4 header can say of what follows it: every protocol, every length of options.
#[test]
fn every_protocol_and_every_length_of_options() {
    exhaust(true, |sample| {
        if sample.packet.len() < 34 || sample.packet[12..15] != [8, 0, 0x45] {
            return Vec::new();
        }
        let protocols = (0..=0xff).map(|protocol| as_protocol(&sample.packet, protocol));
        let options = (0..=10).flat_map(|words| {
            [0u8, 1, 7, 0xff].map(|option| with_options(&sample.packet, &vec![option; 4 * words]))
        });
        protocols.chain(options).map(|packet| (packet, None)).collect()
    });
}

#[test]
fn two_million_packets_broken_at_random() {
    storm(rng::seed(ORDINARY_SEED), ORDINARY);
}

#[test]
#[ignore = "takes half an hour, or more"]
fn long_a_hundred_million_packets_broken_at_random() {
    let shards = thread::available_parallelism().unwrap().get() as u64;
    let seed = rng::seed(ORDINARY_SEED);
    thread::scope(|scope| {
        for shard in 0..shards {
            scope.spawn(move || storm(seed.wrapping_add(shard << 48), LONG / shards));
        }
    });
}

/// Runs what `derive` makes of each sample at its own hook, or at all of them.
fn exhaust(everywhere: bool, derive: impl Fn(&Sample) -> Vec<(Vec<u8>, Option<u16>)> + Sync) {
    let mut log = KernelLog::open().unwrap();
    let mut scene = Scene::new();
    let samples = samples(&scene);
    let ns = Arc::clone(&scene.bench.ns);
    let runs = ns
        .run(|| {
            let mut runs = 0;
            for sample in &samples {
                let derived = derive(sample);
                for hook in Hook::ALL
                    .into_iter()
                    .filter(|hook| everywhere || *hook == sample.hook)
                {
                    let ifindex = if hook == sample.hook {
                        sample.ifindex
                    } else {
                        at_home(&scene, hook)
                    };
                    scene.restore();
                    for (packet, cut) in &derived {
                        let given = Given {
                            cut: *cut,
                            ..Given::default()
                        };
                        try_one(&mut scene, hook, ifindex, given, packet, &"derived from a sample");
                        runs += 1;
                    }
                }
            }
            runs
        })
        .unwrap();
    reconcile(|hook| scene.bench.counts(hook), runs);
    println!("{} samples, {runs} packets", samples.len());
    assert_eq!(log.complaints().unwrap(), Vec::<String>::new());
}

/// Runs `target` mutants.
fn storm(seed: u64, target: u64) {
    println!("seed {seed}: CAUSEWAY_SEED={seed} repeats this run");
    let mut log = KernelLog::open().unwrap();
    let mut scene = Scene::new();
    let samples = samples(&scene);
    let ns = Arc::clone(&scene.bench.ns);
    let started = Instant::now();
    let interfaces = [
        scene.bench.a.ifindex,
        scene.bench.b.ifindex,
        scene.bench.uplink_ifindex,
    ];
    let runs = ns
        .run(|| {
            let mut rng = Rng::new(seed);
            let mut runs = 0;
            while runs < target {
                scene.restore();
                for _ in 0..EPOCH {
                    let mut packet = mutant(&mut rng, &samples);
                    let hook = rng.pick(&Hook::ALL);
                    let ifindex = match hook {
                        Hook::FromPod | Hook::ToPod if rng.one_in(8) => scene.bench.b.ifindex,
                        _ => at_home(&scene, hook),
                    };
                    scene.address_frame(hook, ifindex, &mut packet);
                    let given = given(&mut rng, hook, interfaces, &packet);
                    try_one(
                        &mut scene,
                        hook,
                        ifindex,
                        given,
                        &packet,
                        &format_args!("seed {seed}, run {runs}"),
                    );
                    runs += 1;
                }
            }
            runs
        })
        .unwrap();
    reconcile(|hook| scene.bench.counts(hook), runs);
    for (hook, reason) in REACHED {
        let count = scene.bench.counts(hook)[reason as usize];
        assert!(count * 20_000 > runs, "{hook:?} {reason:?}: {count} of {runs}");
    }
    println!("{runs} packets in {:.1} s", started.elapsed().as_secs_f64());
    assert_eq!(log.complaints().unwrap(), Vec::<String>::new());
}

/// The interface whose hook it is.
fn at_home(scene: &Scene, hook: Hook) -> u32 {
    match hook {
        Hook::FromPod | Hook::ToPod => scene.bench.a.ifindex,
        Hook::FromUplink | Hook::ToUplink => scene.bench.uplink_ifindex,
    }
}

fn try_one(
    scene: &mut Scene,
    hook: Hook,
    ifindex: u32,
    given: Given,
    packet: &[u8],
    which: &dyn std::fmt::Display,
) {
    // The kernel runs no IPv4 or IPv6 frame without a whole header: what is shorter is cut behind the door.
    let mut padded = [0; 54];
    let (whole, given) = if packet.len() < padded.len() {
        padded[..packet.len()].copy_from_slice(packet);
        (
            &padded[..],
            Given {
                cut: Some(given.cut.unwrap_or(packet.len() as u16)),
                ..given
            },
        )
    } else {
        (packet, given)
    };
    let places = scene.places;
    let (action, got) = scene.run(hook, ifindex, given, whole);
    let sent = &whole[..given.cut.map_or(whole.len(), usize::from)];
    if let Err(wrong) = judge(&places, hook, sent, action, got) {
        panic!(
            "{wrong}\n{which}, {hook:?} of interface {ifindex}, {given:?}, action {action}\nsent {}\ngot  {}",
            hex(sent),
            hex(got)
        );
    }
}

/// A storm that never reaches these proves nothing about them.
const REACHED: [(Hook, Reason); 14] = [
    (Hook::FromPod, Reason::CarriedToPod),
    (Hook::FromPod, Reason::CarriedToUplink),
    (Hook::FromPod, Reason::TtlExpiring),
    (Hook::FromPod, Reason::Vlan),
    (Hook::FromUplink, Reason::CarriedToPod),
    (Hook::FromUplink, Reason::KernelFlowTranslated),
    (Hook::FromUplink, Reason::FragmentWaits),
    (Hook::FromUplink, Reason::Malformed),
    (Hook::ToPod, Reason::RecordedKernel),
    (Hook::ToUplink, Reason::SnatKernel),
    (Hook::ToUplink, Reason::SnatIcmpError),
    (Hook::ToUplink, Reason::HostFlowTranslated),
    (Hook::ToUplink, Reason::SnatFragment),
    (Hook::ToUplink, Reason::SnatMalformed),
];

/// Every packet is counted once under a reason with a verdict, and no helper has refused a rewrite.
pub(crate) fn reconcile(counts: impl Fn(Hook) -> Vec<u64>, runs: u64) {
    let mut counted = 0;
    for hook in Hook::ALL {
        for (reason, count) in Reason::ALL.iter().zip(counts(hook)) {
            if reason.verdict() != Verdict::Noted {
                counted += count;
            }
            assert!(
                *reason != Reason::RewriteFailed || count == 0,
                "{hook:?}: {count} half rewritten"
            );
        }
    }
    assert_eq!(counted, runs);
}

fn with_length(frame: &[u8], length: u16) -> Vec<u8> {
    let mut packet = frame.to_vec();
    packet[16..18].copy_from_slice(&length.to_be_bytes());
    mend_checksum(&mut packet);
    packet
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}
