//! The sweep program on maps of its own. Need CAP_BPF, as the whole test run does.

use std::{
    collections::BTreeMap,
    os::fd::AsFd as _,
    time::{Duration, Instant},
};

use aya::{
    Btf, Ebpf, EbpfLoader,
    maps::{Array, HashMap, IterableMap as _, MapData},
    programs::Iter,
};
use causeway_common::{
    flow::{Flags, FlowEntry, Nat, Progress, State},
    lifetime::Timeouts,
    maps::{Config, SWEEP_PROGRAM},
    tuple::{FlowKey, ICMP, TCP, UDP},
};
use proptest::prelude::*;

use super::{super::bpf::iterate, *};
use crate::datapath::load::OBJECT;

type Key = FlowKey<[u8; 4]>;
type Entry = FlowEntry<[u8; 4]>;

const NODE: [u8; 4] = [10, 240, 0, 4];
const POD: [u8; 4] = [10, 241, 0, 0];
const NOW: u32 = 1_000_000;
/// UDP that both sides have spoken on is over by then, and TCP that is open is not.
const LONG_AGO: u32 = NOW - 1_000;
const T: Timeouts = Timeouts::DEFAULT;

fn key(n: u32, protocol: u8) -> Key {
    let [host, port] = [n >> 16, n & 0xffff].map(|half| (half as u16).to_be_bytes());
    Key {
        src: [POD[0], POD[1], host[0], host[1]],
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
        flags: 0,
        progress: Progress::SPOKE
            .and_peer(Progress::SPOKE)
            .with(Progress::PAST_SYN)
            .bits(),
        ..Entry::offer(3, [2; 6], last_seen)
    }
}

/// Both halves of translated flow `n`: forward, reverse.
fn pair(n: u32, protocol: u8, seen: [u32; 2]) -> [(Key, Entry); 2] {
    let key = key(n, protocol);
    let forward = Entry {
        flags: Flags::COUNTED,
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

/// The object's maps with the sweep program, pinned nowhere.
struct Node(Ebpf);

impl Node {
    fn new(capacity: u32) -> Self {
        let mut object = EbpfLoader::new()
            .btf(None)
            .map_max_entries("cwy_flows", capacity)
            .load(OBJECT)
            .expect("CAP_BPF is needed: run as root");
        let btf = Btf::from_sys_fs().unwrap();
        let program: &mut Iter = object.program_mut(SWEEP_PROGRAM).unwrap().try_into().unwrap();
        program.load("bpf_map_elem", &btf).unwrap();
        let mut node = Self(object);
        let config = Config {
            node_addr: NODE,
            uplink_ifindex: 1,
            uplink_mtu: 1500,
            seed: 7,
            pod_quota: u32::MAX,
            wire_quota: u32::MAX,
            range_list: 0,
            timeouts: T,
        };
        let map = node.0.map_mut("cwy_cfg").unwrap();
        Array::try_from(map).unwrap().set(0, config, 0).unwrap();
        node
    }

    fn with(capacity: u32, entries: impl IntoIterator<Item = (Key, Entry)>) -> Self {
        let mut node = Self::new(capacity);
        for (key, entry) in entries {
            node.flows().insert(key, entry, 0).unwrap();
        }
        node
    }

    fn flows(&mut self) -> HashMap<&mut MapData, Key, Entry> {
        HashMap::try_from(self.0.map_mut("cwy_flows").unwrap()).unwrap()
    }

    fn all(&mut self) -> BTreeMap<Vec<u8>, (Key, Entry)> {
        let all = self.flows().iter().map(Result::unwrap).collect::<Vec<_>>();
        all.into_iter()
            .map(|(key, entry)| (name(&key), (key, entry)))
            .collect()
    }

    fn sweep(&mut self) -> SweepJob {
        let job = SweepJob {
            now: NOW,
            ..SweepJob::default()
        };
        let map = self.0.map_mut("cwy_sweep_job").unwrap();
        Array::<_, SweepJob>::try_from(map)
            .unwrap()
            .set(0, job, 0)
            .unwrap();
        let program: &Iter = self.0.program(SWEEP_PROGRAM).unwrap().try_into().unwrap();
        let flows = HashMap::<_, Key, Entry>::try_from(self.0.map("cwy_flows").unwrap()).unwrap();
        iterate::over_map(program.fd().unwrap().as_fd(), flows.map().fd().as_fd()).unwrap();
        let map = self.0.map("cwy_sweep_job").unwrap();
        Array::<_, SweepJob>::try_from(map).unwrap().get(&0, 0).unwrap()
    }

    fn usage(&mut self) -> HashMap<&mut MapData, [u8; 4], Usage> {
        HashMap::try_from(self.0.map_mut("cwy_usage").unwrap()).unwrap()
    }
}

fn name(key: &Key) -> Vec<u8> {
    format!("{key:?}").into_bytes()
}

#[test]
fn idle_pairs_go_and_a_pair_with_one_busy_half_stays() {
    let flows = [
        pair(1, UDP, [LONG_AGO; 2]),
        pair(2, UDP, [NOW, LONG_AGO]),
        pair(3, UDP, [LONG_AGO, NOW]),
        pair(4, TCP, [LONG_AGO; 2]),
    ];
    let mut node = Node::with(64, flows.into_iter().flatten());
    let job = node.sweep();
    assert_eq!((job.scanned, job.deleted, job.kept_by_peer), (8, 2, 2));
    let left = node.all();
    for (n, [(forward, _), (reverse, _)]) in (1..).zip(flows) {
        let stays = n != 1;
        assert_eq!(left.contains_key(&name(&forward)), stays, "forward half of {n}");
        assert_eq!(left.contains_key(&name(&reverse)), stays, "reverse half of {n}");
    }
}

#[test]
fn an_expired_offer_goes_and_takes_nothing_with_it_that_lives() {
    let question = (key(1, UDP), entry(State::OFFERED, NOW - 100));
    let answer = (question.0.reversed(), entry(State::CARRIED, NOW - 5));
    let mut node = Node::with(64, [question, answer]);
    assert_eq!(node.sweep().deleted, 1);
    assert_eq!(node.all().keys().collect::<Vec<_>>(), [&name(&answer.0)]);
}

/// A flow that was reopened with another port leaves its old half behind, which may not take the new one with it.
#[test]
fn a_half_that_was_left_behind_goes_alone() {
    let [(forward_key, forward), (_, reverse)] = pair(1, UDP, [NOW, LONG_AGO]);
    let moved = Entry {
        nat_port: [99, 99],
        ..forward
    };
    let left_behind = forward.peer_key(&forward_key);
    let mut node = Node::with(
        64,
        [
            (forward_key, moved),
            (
                moved.peer_key(&forward_key),
                Entry {
                    last_seen: NOW,
                    ..reverse
                },
            ),
            (left_behind, reverse),
        ],
    );
    assert_eq!(node.sweep().deleted, 1);
    let left = node.all();
    assert!(!left.contains_key(&name(&left_behind)) && left.len() == 2);
}

/// What a pass leaves over is counted like what lives, and goes with the next one.
#[test]
fn a_pass_forgets_no_more_than_it_may() {
    const OVER: u32 = SWEEP_MOST / 2 + 1000;
    let dead = (0..OVER).flat_map(|n| pair(n, UDP, [LONG_AGO; 2]));
    let mut node = Node::with(1 << 19, dead.chain(pair(OVER, UDP, [NOW; 2])));
    let pod = key(0, UDP).src;
    node.usage().insert(pod, Usage::default(), 0).unwrap();
    let first = node.sweep();
    assert!(
        (SWEEP_MOST..=SWEEP_MOST + 1).contains(&first.deleted),
        "{first:?}"
    );
    assert_eq!(first.scanned, 2 * OVER + 2);
    let counted = |(key, entry): &&(Key, Entry)| key.src == pod && entry.has(Flags::COUNTED);
    let kept = node.all().values().filter(counted).count();
    let swept = node.usage().get(&pod, 0).unwrap().swept;
    assert_eq!(usize::try_from(swept), Ok(kept));
    let left = node.all().len();
    assert_eq!(left, (first.scanned - first.deleted) as usize);
    let second = node.sweep();
    assert_eq!(
        (second.scanned as usize, second.deleted as usize),
        (left, left - 2)
    );
    assert_eq!(first.deleted + second.deleted, 2 * OVER);
    assert_eq!(node.all().len(), 2);
}

#[test]
fn passes_are_one_sweep_to_whoever_asked_for_it() {
    let most = SWEEP_MOST as usize;
    let pass = |scanned, deleted| Swept {
        scanned,
        deleted,
        pairs_kept_by_peer: 0,
    };
    let passes = [pass(most + 10, most), pass(10, 4)];
    assert_eq!(passes.map(|pass| pass.found().is_cut), [true, false]);
    let first = passes[0].and_before(0);
    assert_eq!(passes[1].and_before(first.deleted), pass(most + 10, most + 4));
}

#[test]
fn flows_are_counted_anew_for_whoever_opened_them() {
    let flows = [
        pair(1, UDP, [NOW; 2]),
        pair(2, UDP, [NOW; 2]),
        pair(1 << 16, UDP, [NOW; 2]),
        pair(2 << 16, UDP, [LONG_AGO; 2]),
    ];
    let mut node = Node::with(64, flows.into_iter().flatten());
    let accounts = [[0; 4], POD, [POD[0], POD[1], 0, 1], [POD[0], POD[1], 0, 2]];
    for account in accounts {
        node.usage()
            .insert(account, Usage { flows: 1, swept: 0 }, 0)
            .unwrap();
    }
    node.sweep();
    let counted = accounts.map(|account| {
        let usage = node.usage().get(&account, 0).unwrap();
        (usage.flows, usage.swept)
    });
    assert_eq!(
        counted,
        [(1, 0), (1, 2), (1, 1), (0, 0)],
        "one flow was forgotten"
    );
}

/// One or two entries of a flow, in any state and with any history.
fn any_flow() -> impl Strategy<Value = Vec<(Key, Entry)>> {
    let protocol = prop_oneof![Just(TCP), Just(UDP), Just(ICMP)];
    let seen = || prop_oneof![Just(0u32), NOW - 500..NOW + 5, NOW - 500_000..NOW];
    let history = || (1..=3u8, 0..=0xffu8, seen());
    let flow = (
        0..400u32,
        protocol,
        any::<bool>(),
        history(),
        history(),
        1..4usize,
    );
    flow.prop_map(|(n, protocol, translated, one, other, which)| {
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
        let mut node = Node::with(4096, written.into_iter().flatten());
        let before = node.all();
        let job = node.sweep();
        let left = node.all();
        prop_assert_eq!(job.scanned as usize, before.len());
        prop_assert_eq!(job.deleted as usize, before.len() - left.len());
        for (at, (key, entry)) in &before {
            let peer_key = entry.peer_key(key);
            let peer = before
                .get(&name(&peer_key))
                .map(|(_, peer)| peer)
                .filter(|peer| peer.peer_key(&peer_key) == *key);
            let goes = T.forgets(key.protocol, entry, peer, NOW);
            prop_assert_eq!(!left.contains_key(at), goes, "{:?} {:?}, peer {:?}", key, entry, peer);
        }
    }
}

/// `cargo test --release -p causeway --lib -- --ignored --nocapture long_sweep_of_a_million`
#[test]
#[ignore = "a million entries: memory and seconds"]
fn long_sweep_of_a_million() {
    const FLOWS: u32 = 500_000;
    for idle_of_100 in [0, 1, 10, 50, 100] {
        let is_idle = |n: u32| n.wrapping_mul(2_654_435_761) % 100 < idle_of_100;
        let mut node = Node::new(2 * FLOWS);
        let mut idle = 0;
        for n in 0..FLOWS {
            let seen = if is_idle(n) { LONG_AGO } else { NOW };
            idle += 2 * u32::from(is_idle(n));
            for (key, entry) in pair(n, UDP, [seen; 2]) {
                node.flows().insert(key, entry, 0).unwrap();
            }
        }
        let (mut left, mut deleted) = (2 * FLOWS, 0);
        for pass in 1.. {
            let (start, cpu) = (Instant::now(), cpu_time());
            let job = node.sweep();
            let (cpu, elapsed) = (cpu_time().checked_sub(cpu).unwrap(), start.elapsed());
            println!("{idle_of_100:3} of 100 idle, pass {pass}: {cpu:?} of CPU in {elapsed:?}; {job:?}");
            assert_eq!(job.scanned, left);
            left -= job.deleted;
            deleted += job.deleted;
            if job.deleted < SWEEP_MOST {
                break;
            }
        }
        assert_eq!(deleted, idle);
    }
}

/// CPU time of this thread, in which the kernel's part of its system calls is included.
fn cpu_time() -> Duration {
    Duration::try_from(rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime)).unwrap()
}
