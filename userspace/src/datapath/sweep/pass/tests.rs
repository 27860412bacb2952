//! On maps of their own. Need CAP_BPF, as the whole test run does.

use std::{collections::BTreeSet, time::Duration};

use causeway_common::{
    flow::{Flags, Progress},
    tuple::{ICMP, TCP, UDP},
};
use proptest::prelude::*;
use rustix::time::{ClockId, clock_gettime};

use super::*;

const NODE: [u8; 4] = [10, 240, 0, 4];
const NOW: u32 = 1_000_000;
/// UDP that both sides have spoken on is over by then, and TCP that is open is not.
const LONG_AGO: u32 = NOW - 1_000;
const T: Timeouts = Timeouts::DEFAULT;

fn key(n: u32, protocol: u8) -> Key {
    let [host, port] = [n >> 16, n & 0xffff].map(|half| (half as u16).to_be_bytes());
    Key {
        src: [10, 241, host[0], host[1]],
        dst: [203, 0, 113, 9],
        src_port: port,
        dst_port: [0, 53],
        protocol,
        _pad: [0; 3],
    }
}

fn entry(state: u8, last_seen: u32) -> Entry {
    Entry {
        state,
        progress: Progress::SPOKE.and_peer(Progress::SPOKE).bits(),
        ..Entry::offer(3, [2; 6], last_seen)
    }
}

/// Both halves of translated flow `n`: forward, reverse.
fn pair(n: u32, protocol: u8, seen: [u32; 2]) -> [(Key, Entry); 2] {
    let key = key(n, protocol);
    let forward = Entry {
        nat: Nat::SOURCE,
        nat_addr: [NODE[0], NODE[1], key.src[2], key.src[3]],
        nat_port: key.src_port,
        ..entry(State::CARRIED, seen[0])
    };
    let reverse = Entry {
        nat: Nat::DESTINATION,
        nat_addr: key.src,
        nat_port: key.src_port,
        ..entry(State::CARRIED, seen[1])
    };
    [(key, forward), (forward.peer_key(&key), reverse)]
}

fn table(entries: impl IntoIterator<Item = (Key, Entry)>) -> Flows {
    let mut flows = Flows::scratch(4096);
    for (key, entry) in entries {
        flows.insert(key, entry).unwrap();
    }
    flows
}

fn seen_now(flows: &mut Flows, key: Key) {
    let entry = flows.get(&key).unwrap().unwrap();
    let fresh = Entry {
        last_seen: NOW,
        ..entry
    };
    flows.insert(key, fresh).unwrap();
}

#[test]
fn idle_pairs_go_and_a_pair_with_one_busy_half_stays() {
    let mut flows = table(
        [
            pair(1, UDP, [LONG_AGO, LONG_AGO]),
            pair(2, UDP, [LONG_AGO, NOW]),
            pair(3, UDP, [NOW, LONG_AGO]),
            pair(4, UDP, [NOW, NOW]),
            pair(5, TCP, [LONG_AGO, LONG_AGO]),
        ]
        .into_iter()
        .flatten(),
    );
    let swept = sweep(&mut flows, &T, NOW).unwrap();
    let expected = Swept {
        scanned: 10,
        deleted: 2,
        pairs_kept_by_peer: 2,
        revived: 0,
    };
    assert_eq!(swept, expected);
    assert!(flows.get(&key(1, UDP)).unwrap().is_none());
    assert!(
        flows.get(&key(5, TCP)).unwrap().is_some(),
        "idle, but within its time"
    );
    assert_eq!(
        sweep(&mut flows, &T, NOW - LONG_AGO).unwrap().deleted,
        0,
        "a clock behind"
    );
}

#[test]
fn a_packet_after_the_reading_keeps_both_halves() {
    for half in [0, 1] {
        let halves = pair(1, UDP, [LONG_AGO, LONG_AGO]);
        let mut flows = table(halves.into_iter().chain(pair(2, UDP, [LONG_AGO, LONG_AGO])));
        let scan = Scan::read(&flows, &T, NOW).unwrap();
        seen_now(&mut flows, halves[half].0);
        let swept = scan.settle(&mut flows, &T, NOW).unwrap();
        assert_eq!((swept.deleted, swept.revived), (2, 1), "half {half}");
        assert!(halves.iter().all(|(key, _)| flows.get(key).unwrap().is_some()));
    }
}

#[test]
fn a_half_that_comes_after_the_reading_keeps_the_other() {
    let [forward, reverse] = pair(1, UDP, [LONG_AGO, NOW]);
    let mut flows = table([forward]);
    let scan = Scan::read(&flows, &T, NOW).unwrap();
    flows.insert(reverse.0, reverse.1).unwrap();
    let swept = scan.settle(&mut flows, &T, NOW).unwrap();
    assert_eq!((swept.deleted, swept.revived), (0, 1));
}

#[test]
fn what_somebody_else_deletes_meanwhile_is_no_error() {
    let halves = pair(1, UDP, [LONG_AGO, LONG_AGO]);
    for gone in [&halves[..1], &halves[1..], &halves[..]] {
        let mut flows = table(halves);
        let scan = Scan::read(&flows, &T, NOW).unwrap();
        for (key, _) in gone {
            flows.remove(key).unwrap();
        }
        let swept = scan.settle(&mut flows, &T, NOW).unwrap();
        assert_eq!(swept.revived, 0);
        let left = flows.all().unwrap().len();
        assert_eq!(swept.deleted + left, 2 - gone.len());
    }
}

#[test]
fn the_half_that_holds_the_port_goes_first() {
    let [(forward, one), (reverse, other)] = pair(1, UDP, [LONG_AGO, LONG_AGO]);
    let flows = table([(forward, one), (reverse, other)]);
    for first in [forward, reverse] {
        let mut over = Vec::new();
        assert!(decide(&flows, &first, &T, NOW, &mut over).unwrap());
        assert_eq!(over, [reverse, forward]);
    }
}

#[test]
fn an_expired_offer_goes_and_takes_nothing_with_it_that_lives() {
    let question = (key(1, ICMP), entry(State::CARRIED, NOW));
    let awaited = (
        question.0.reversed(),
        Entry {
            last_seen: LONG_AGO,
            ..Entry::awaited(Flags::ANSWER, LONG_AGO)
        },
    );
    let mut flows = table([question, awaited]);
    assert_eq!(sweep(&mut flows, &T, NOW).unwrap().deleted, 1);
    assert!(flows.get(&question.0).unwrap().is_some());
    // And what has expired beside an offer needs no second sweep.
    let idle = (question.0, entry(State::CARRIED, LONG_AGO));
    let mut flows = table([idle, awaited]);
    assert_eq!(sweep(&mut flows, &T, NOW).unwrap().deleted, 2);
}

/// One to three entries of a flow, in any state and with any history.
fn any_flow() -> impl Strategy<Value = Vec<(Key, Entry)>> {
    let protocol = prop_oneof![Just(TCP), Just(UDP), Just(ICMP)];
    let seen = || prop_oneof![Just(0u32), NOW - 500..NOW + 5, NOW - 500_000..NOW];
    let history = || (1..=3u8, 0..=0x77u8, seen());
    (
        0..400u32,
        protocol,
        any::<bool>(),
        history(),
        history(),
        1..4usize,
    )
        .prop_map(|(n, protocol, translated, one, other, which)| {
            let mut halves = pair(n, protocol, [one.2, other.2]);
            for ((_, entry), (state, progress, _)) in halves.iter_mut().zip([one, other]) {
                if !translated {
                    entry.nat = Nat::NONE;
                }
                // An offer has no translation.
                entry.state = if translated {
                    state.max(State::CARRIED)
                } else {
                    state
                };
                entry.progress = progress;
            }
            if !translated {
                halves[1].0 = halves[0].0.reversed();
            }
            let chosen = halves.into_iter().enumerate();
            chosen
                .filter(|(at, _)| which & (at + 1) != 0)
                .map(|(_, half)| half)
                .collect()
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// What is left is what the rule keeps, entry by entry, and no half of a pair goes without the other.
    #[test]
    fn a_sweep_forgets_what_the_rule_says_and_nothing_else(
        written in proptest::collection::vec(any_flow(), 0..200),
    ) {
        let mut flows = table(written.into_iter().flatten());
        let before = flows.all().unwrap();
        let find = |key: Key| before.iter().find(|(other, _)| *other == key).map(|(_, entry)| entry);
        let fate = |(key, entry): &(Key, Entry)| {
            T.forgets(key.protocol, entry, find(entry.peer_key(key)), NOW)
        };
        // The peer, if it names this entry as its own peer.
        let mutual = |(key, entry): &(Key, Entry)| {
            let peer_key = entry.peer_key(key);
            (find(peer_key)?.peer_key(&peer_key) == *key).then_some(peer_key)
        };
        let swept = sweep(&mut flows, &T, NOW).unwrap();
        let left: BTreeSet<_> = flows.all().unwrap().iter().map(|(key, _)| format!("{key:?}")).collect();
        let is_left = |key: &Key| left.contains(&format!("{key:?}"));
        prop_assert_eq!(swept.scanned, before.len());
        prop_assert_eq!(swept.deleted, before.len() - left.len());
        for element in &before {
            if is_left(&element.0) {
                // An entry whose peer is half of another flow may have to wait for another sweep.
                let has_other = find(element.1.peer_key(&element.0)).is_some() && mutual(element).is_none();
                prop_assert!(!fate(element) || has_other, "{element:?} stays");
            } else {
                prop_assert!(fate(element), "{element:?} goes before its time");
            }
            if element.1.nat != Nat::NONE
                && let Some(peer) = mutual(element)
            {
                prop_assert_eq!(is_left(&element.0), is_left(&peer), "{:?} parted", element);
            }
        }
    }
}

/// `cargo test --release -p causeway --lib -- --ignored --nocapture long_sweep_of_a_million`. Bare reading is what no
/// sweep in userspace can do without: a sweep that finds little costs not much more.
#[test]
#[ignore = "a million entries: memory and seconds"]
fn long_sweep_of_a_million() {
    const FLOWS: u32 = 500_000;
    let mut flows = Flows::scratch(2 * FLOWS);
    for idle_of_100 in [0, 1, 10, 50, 100] {
        let is_idle = |n: u32| n.wrapping_mul(2_654_435_761) % 100 < idle_of_100;
        let mut idle = 0;
        for n in 0..FLOWS {
            let seen = if is_idle(n) { LONG_AGO } else { NOW };
            idle += 2 * usize::from(is_idle(n));
            for (key, entry) in pair(n, UDP, [seen; 2]) {
                flows.insert(key, entry).unwrap();
            }
        }
        let mut read = 0;
        let reading = cpu_time_of(|| flows.for_each(|_, _| read += 1).unwrap());
        let mut swept = Swept::default();
        let sweeping = cpu_time_of(|| swept = sweep(&mut flows, &T, NOW).unwrap());
        println!("{idle_of_100:3} of 100 idle: {sweeping:?} of CPU, bare reading {reading:?}; {swept:?}");
        assert_eq!(
            (read, swept.scanned, swept.deleted),
            (swept.scanned, 2 * FLOWS as usize, idle)
        );
        if idle_of_100 == 0 && !cfg!(debug_assertions) {
            assert!(
                sweeping < 2 * reading,
                "{sweeping:?} for what takes {reading:?} to read"
            );
        }
    }
}

/// CPU time of this thread, in which the kernel's part of its system calls is included.
fn cpu_time_of(work: impl FnOnce()) -> Duration {
    let now = || Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap();
    let start = now();
    work();
    now().checked_sub(start).unwrap()
}
