//! The same traffic through the kernel's own NAT and through Causeway, compared packet by packet.
//!
//! Two nodes alike ([`lane`]), one with the rule that Causeway replaces, one with Causeway. One writer feeds both ([`traffic`])
//! with what a seeded generator draws ([`archetypes`]); what comes out at the far side of the uplink and in the pods must be the
//! same bytes ([`judge`]), but for the ports of the node, which must pair one to one, and but for the few differences that
//! are wanted ([`differences`], `docs/parity.md`).
//!
//! `CAUSEWAY_SEED` repeats a run, `CAUSEWAY_PARITY_SECONDS` says for how long, and `CAUSEWAY_PARITY_KINDS` leaves only the kinds of flow
//! whose names begin so.
#![expect(
    clippy::expect_used,
    reason = "the bench is set-up of tests: what fails there fails the test"
)]

mod archetypes;
mod canonical;
mod differences;
mod judge;
mod lane;
mod ledger;
mod lifetimes;
mod mappings;
mod packet;
mod script;
mod tap;
mod traffic;

use std::{
    env,
    time::{Duration, Instant},
};

use causeway_tests::{node::Datapath, rng};

use crate::{differences::Difference, traffic::Traffic};

/// How long packets are compared in an ordinary run.
const ORDINARY: Duration = Duration::from_secs(40);
/// Seed of an ordinary run, so that it is the same traffic each time; a long run draws its own.
const ORDINARY_SEED: u64 = 20_261_122;
/// Packets of a long run, and the most time it takes.
const LONG: (u64, Duration) = (100_000_000, Duration::from_mins(15));
/// Packets through one pair of lanes before the next: less than what fills a table.
const SHARD: u64 = 400_000;

#[test]
fn causeway_does_what_the_kernels_nat_does() {
    let (target, time) = match (env::var_os("CAUSEWAY_LONG"), env::var("CAUSEWAY_PARITY_SECONDS")) {
        (Some(_), _) => LONG,
        (None, Ok(seconds)) => (
            u64::MAX,
            Duration::from_secs(seconds.parse().expect("a number of seconds")),
        ),
        (None, Err(_)) => (u64::MAX, ORDINARY),
    };
    let seed = rng::seed(ORDINARY_SEED);
    println!("seed {seed}: CAUSEWAY_SEED={seed} repeats this run");
    let kinds = env::var("CAUSEWAY_PARITY_KINDS").unwrap_or_default();
    let mut traffic = Traffic::new(seed, &[kinds.as_str()]);
    let end = Instant::now() + time;
    let variants = [Datapath::Causeway, Datapath::CausewayClsact];
    for shard in 0.. {
        let left = target.saturating_sub(traffic.judge.compared).min(SHARD);
        traffic
            .shard(variants[shard % variants.len()], left, end)
            .expect("a pair of lanes");
        if Instant::now() >= end || traffic.judge.compared >= target {
            break;
        }
    }
    println!("{}", traffic.summary());
    assert!(
        traffic.judge.found.is_empty(),
        "seed {seed}\n{}",
        traffic.findings()
    );
    assert!(traffic.is_complete(), "a kind of flow was never seen whole");
}

/// Flows that rest for as long as they are remembered, and longer.
#[test]
fn what_nf_nat_forgets_causeway_forgets_and_what_it_remembers_lives_on() {
    for (datapath, swept) in [(Datapath::Causeway, true), (Datapath::CausewayClsact, false)] {
        let traffic = rested(datapath, swept);
        println!("{}", traffic.summary());
        assert!(traffic.judge.found.is_empty(), "{}", traffic.findings());
        assert!(traffic.is_complete(), "a kind of flow was never seen whole");
    }
}

/// On a machine that is too busy the flows rest longer than they should: then all is done again.
fn rested(datapath: Datapath, swept: bool) -> Traffic {
    let seed = seed();
    for _ in 0..5 {
        let mut traffic = Traffic::resting(seed);
        if traffic.rested(datapath, 480, swept).expect("a pair of lanes") {
            return traffic;
        }
    }
    panic!("this machine is too busy to compare what expires in seconds")
}

/// Row 1 of `docs/parity.md`.
#[test]
fn an_ack_without_a_flow_is_dropped_where_conntrack_picks_the_connection_up() {
    differs("stray ACK of a pod", Difference::MidFlow);
}

/// Row 2.
#[test]
fn what_conntrack_calls_invalid_is_dropped_where_nf_nat_leaks_the_pods_address() {
    differs("stray RST of a pod", Difference::InvalidLeaks);
    differs("stray FIN of a pod", Difference::InvalidLeaks);
}

/// Row 3.
#[test]
fn a_wrong_transport_checksum_is_translated_where_nf_nat_leaks_or_loses_it() {
    differs("wrong checksum of a pod", Difference::ChecksumFromPod);
    differs("wrong checksum of a remote", Difference::ChecksumFromOutside);
}

/// Row 4.
#[test]
fn a_source_that_is_not_the_pods_is_dropped_where_nf_nat_translates_it() {
    differs("a source that is not the pod's", Difference::Spoofed);
}

/// One kind of flow alone: every packet that a row speaks of differs as the row says.
fn differs(kind: &str, row: Difference) {
    let seed = rng::seed(ORDINARY_SEED);
    let mut traffic = Traffic::new(seed, &[kind]);
    let end = Instant::now() + Duration::from_mins(1);
    traffic
        .shard(Datapath::Causeway, 1000, end)
        .expect("a pair of lanes");
    assert!(
        traffic.judge.found.is_empty(),
        "seed {seed}\n{}",
        traffic.findings()
    );
    let times = traffic.judge.allowed.get(&row).copied();
    assert!(times > Some(0), "{row:?} was never seen");
}
