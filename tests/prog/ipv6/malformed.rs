//! Packets of IPv6 that nobody sane sends, while pods' IPv6 is masqueraded: as for IPv4
//! ([`crate::malformed`]), whatever is left to the kernel is left byte for byte, whatever is translated is translated whole, and
//! nothing that needs translation passes the uplink without.

mod mutation;
mod oracle;
mod scene;

use std::{iter, time::Instant};

use causeway_common::reason::Reason;
use causeway_tests::rng::{self, Rng};

use self::{
    mutation::{given, mutant},
    oracle::{judge, mend_checksum},
    scene::{Sample, Scene},
};
use crate::{
    bench::Hook,
    kernel_log::KernelLog,
    malformed::{hex, reconcile},
    stage::Given,
};

/// Packets broken at random in an ordinary run.
const ORDINARY: u64 = 1_000_000;
const ORDINARY_SEED: u64 = 20_261_123;
/// And in a long one.
const LONG: u64 = 50_000_000;
/// Packets that meet one table before it is made again.
const EPOCH: u64 = 1024;
const IP_END: usize = 54;

#[test]
fn every_header_cut_at_every_byte_with_and_without_the_length_saying_so() {
    exhaust(|sample| {
        let packet = &sample.packet;
        // The whole frame is passed and cut behind the door: the kernel runs no frame shorter than a header.
        let cuts = (14..packet.len()).map(|end| (packet.clone(), Some(end as u16)));
        let honest = (IP_END..packet.len()).map(|end| {
            let mut short = packet[..end].to_vec();
            short[18..20].copy_from_slice(&((end - IP_END) as u16).to_be_bytes());
            mend_checksum(&mut short);
            (short, None)
        });
        cuts.chain(honest)
            .chain(iter::once((packet.clone(), None)))
            .collect()
    });
}

/// The version, the length, the number of what follows, the first bytes of that.
#[test]
fn every_field_that_lies() {
    exhaust(|sample| {
        let mut lies = Vec::new();
        let mut lie = |at: usize, bytes: &[u8]| {
            let mut liar = sample.packet.clone();
            if let Some(place) = liar.get_mut(at..at + bytes.len()) {
                place.copy_from_slice(bytes);
                lies.push((liar.clone(), None));
                mend_checksum(&mut liar);
                lies.push((liar, None));
            }
        };
        for byte in 0..=0xff {
            lie(14, &[byte]);
            lie(20, &[byte]);
            // An extension header's next and length, a message's type and code.
            lie(IP_END, &[byte]);
            lie(IP_END + 1, &[byte]);
        }
        let whole = (sample.packet.len() - IP_END) as u16;
        for length in (0..=whole + 8).chain([0x1fff, 0x7fff, 0xfff0, 0xffff]) {
            lie(18, &length.to_be_bytes());
            lie(IP_END + 4, &length.to_be_bytes());
        }
        for hops in [0, 1, 2, 255] {
            lie(21, &[hops]);
        }
        // What an error quotes lies as well.
        for byte in (0..=0xff).step_by(3) {
            lie(IP_END + 8, &[byte]);
            lie(IP_END + 14, &[byte]);
        }
        lies
    });
}

#[test]
fn a_million_packets_broken_at_random() {
    storm(rng::seed(ORDINARY_SEED), ORDINARY);
}

#[test]
#[ignore = "takes a quarter of an hour, or more"]
fn long_fifty_million_packets_broken_at_random() {
    storm(rng::seed(ORDINARY_SEED), LONG);
}

/// Runs what `derive` makes of each sample at every hook.
fn exhaust(derive: impl Fn(&Sample) -> Vec<(Vec<u8>, Option<u16>)> + Sync) {
    let mut log = KernelLog::open().unwrap();
    let mut scene = Scene::new();
    let ns = scene.ns();
    let runs = ns
        .run(|| {
            let mut runs = 0;
            for at in 0..scene.samples.len() {
                for hook in Hook::ALL {
                    let derived = derive(&scene.samples[at]);
                    scene.restore();
                    for (mut packet, cut) in derived {
                        scene.address_frame(hook, &mut packet);
                        let given = Given {
                            cut,
                            ..Given::default()
                        };
                        try_one(&mut scene, hook, given, &packet, &"derived from a sample");
                        runs += 1;
                    }
                }
            }
            runs
        })
        .unwrap();
    reconcile(|hook| scene.counts(hook), runs + scene.set_up);
    println!("{} samples, {runs} packets", scene.samples.len());
    assert_eq!(log.complaints().unwrap(), Vec::<String>::new());
}

fn storm(seed: u64, target: u64) {
    println!("seed {seed}: CAUSEWAY_SEED={seed} repeats this run");
    let mut log = KernelLog::open().unwrap();
    let mut scene = Scene::new();
    let ns = scene.ns();
    let started = Instant::now();
    let runs = ns
        .run(|| {
            let mut rng = Rng::new(seed);
            let mut runs = 0;
            while runs < target {
                scene.restore();
                for _ in 0..EPOCH {
                    let mut packet = mutant(&mut rng, &scene.samples);
                    let hook = rng.pick(&Hook::ALL);
                    scene.address_frame(hook, &mut packet);
                    let given = given(&mut rng, hook, scene.interfaces(), packet.len());
                    let which = format_args!("seed {seed}, run {runs}").to_string();
                    try_one(&mut scene, hook, given, &packet, &which);
                    runs += 1;
                }
            }
            runs
        })
        .unwrap();
    reconcile(|hook| scene.counts(hook), runs + scene.set_up);
    for (hook, reason) in REACHED {
        let count = scene.counts(hook)[reason as usize];
        assert!(count * 20_000 > runs, "{hook:?} {reason:?}: {count} of {runs}");
    }
    println!("{runs} packets in {:.1} s", started.elapsed().as_secs_f64());
    assert_eq!(log.complaints().unwrap(), Vec::<String>::new());
}

fn try_one(scene: &mut Scene, hook: Hook, given: Given, packet: &[u8], which: &dyn std::fmt::Display) {
    // The kernel runs no frame without a whole header: what is shorter is cut behind the door.
    let mut padded = [0; IP_END];
    let (whole, given) = if packet.len() < padded.len() {
        padded[..packet.len()].copy_from_slice(packet);
        let cut = Some(given.cut.unwrap_or(packet.len() as u16));
        (&padded[..], Given { cut, ..given })
    } else {
        (packet, given)
    };
    let sent = &whole[..given.cut.map_or(whole.len(), usize::from)];
    let places = scene.places;
    let (action, got) = scene.run(hook, given, whole);
    if let Err(wrong) = judge(&places, hook, sent, action, &got) {
        panic!(
            "{wrong}\n{which}, {hook:?}, {given:?}, action {action}\nsent {}\ngot  {}",
            hex(sent),
            hex(&got)
        );
    }
}

/// A storm that never reaches these proves nothing about them.
const REACHED: [(Hook, Reason); 10] = [
    (Hook::FromPod, Reason::CarriedToUplink),
    (Hook::FromPod, Reason::Offered),
    (Hook::FromPod, Reason::SourceAddress),
    (Hook::FromPod, Reason::Malformed),
    (Hook::FromUplink, Reason::CarriedToPod),
    (Hook::FromUplink, Reason::Malformed),
    (Hook::ToUplink, Reason::SnatKernel),
    (Hook::ToUplink, Reason::SnatNoMapping),
    (Hook::ToUplink, Reason::SnatMalformed),
    (Hook::ToUplink, Reason::SnatIcmpError),
];
