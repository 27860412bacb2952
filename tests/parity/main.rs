//! The same traffic through the kernel's own NAT and through Causeway, compared packet by packet.
//!
//! Two nodes alike ([`lane`]), one with the rule that Causeway replaces, one with Causeway. One writer feeds both ([`traffic`])
//! with what a seeded generator draws ([`archetypes`]); what comes out at the far side of the uplink and in the pods must be the
//! same bytes ([`judge`]), but for the ports of the node, which must pair one to one, and but for the few differences that
//! are wanted ([`differences`], `docs/parity.md`).
//!
//! What the lanes remember is compared too: conntrack's table with Causeway's ([`mappings`], [`ledger`]), also after everything
//! has rested for as long as it is remembered ([`lifetimes`]).
//!
//! `CAUSEWAY_SEED` repeats a run, `CAUSEWAY_PARITY_SECONDS` ends it early, and `CAUSEWAY_PARITY_KINDS` leaves only the kinds of flow
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
    env, thread,
    time::{Duration, Instant},
};

use causeway_tests::{node::Datapath, rng};

use crate::{differences::Difference, traffic::Traffic};

/// Seed of an ordinary run, so that it is the same traffic each time; a long run draws its own.
const ORDINARY_SEED: u64 = 20_261_122;
/// Packets of a run, and the time that it must not take: an idle machine with two cores needs a tenth of it.
const ORDINARY: Extent = Extent {
    packets: 1_000_000,
    time: Duration::from_mins(5),
};
const LONG: Extent = Extent {
    packets: 100_000_000,
    time: Duration::from_hours(3),
};
/// Packets through one pair of lanes before the next: less than what fills a table.
const SHARD: u64 = 250_000;

/// How far a run goes.
struct Extent {
    packets: u64,
    time: Duration,
}

/// `CAUSEWAY_PARITY_SECONDS` ends a run early, whatever is missing then.
fn extent() -> Extent {
    let extent = match env::var_os("CAUSEWAY_LONG") {
        Some(_) => LONG,
        None => ORDINARY,
    };
    match env::var("CAUSEWAY_PARITY_SECONDS") {
        Ok(seconds) => Extent {
            packets: u64::MAX,
            time: Duration::from_secs(seconds.parse().expect("a number of seconds")),
        },
        Err(_) => extent,
    }
}

#[test]
fn causeway_does_what_the_kernels_nat_does() {
    let Extent { packets, time } = extent();
    let seed = rng::seed(ORDINARY_SEED);
    println!("seed {seed}: CAUSEWAY_SEED={seed} repeats this run");
    let kinds = env::var("CAUSEWAY_PARITY_KINDS").unwrap_or_default();
    let mut traffic = Traffic::new(seed, &[kinds.as_str()]);
    let end = Instant::now() + time;
    let variants = [Datapath::Causeway, Datapath::CausewayClsact];
    for shard in 0.. {
        let left = packets.saturating_sub(traffic.judge.compared).min(SHARD);
        traffic
            .shard(variants[shard % variants.len()], left, end)
            .expect("a pair of lanes");
        if shard % 40 == 39 {
            println!("{}", traffic.totals());
        }
        if Instant::now() >= end || traffic.judge.compared >= packets {
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
    assert!(
        traffic.judge.compared >= packets || packets == u64::MAX,
        "{packets} packets were to be compared, and it was {} when {time:?} were over",
        traffic.judge.compared
    );
}

/// Flows that rest for as long as they are remembered, and longer.
#[test]
fn what_nf_nat_forgets_causeway_forgets_and_what_it_remembers_lives_on() {
    thread::scope(|scope| {
        for (datapath, swept) in [(Datapath::Causeway, true), (Datapath::CausewayClsact, false)] {
            scope.spawn(move || {
                let traffic = rested(datapath, swept);
                println!("{}", traffic.summary());
                assert!(traffic.judge.found.is_empty(), "{}", traffic.findings());
                assert!(traffic.is_complete(), "a kind of flow was never seen whole");
            });
        }
    });
}

/// On a machine that is too busy the flows rest longer than they should: then all is done again.
fn rested(datapath: Datapath, swept: bool) -> Traffic {
    let seed = rng::seed(ORDINARY_SEED);
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
fn what_belongs_to_no_flow_is_dropped_where_nf_nat_picks_it_up_or_leaks_the_pods_address() {
    differs("stray", &[Difference::MidFlow, Difference::InvalidLeaks]);
}

/// Row 2.
#[test]
fn what_conntrack_calls_invalid_is_translated_where_nf_nat_leaks_or_loses_it() {
    let rows = [Difference::InvalidFromPod, Difference::InvalidFromOutside];
    differs("wrong checksum of a", &rows);
    differs("tcp, out of a", &rows);
}

/// Row 3.
#[test]
fn a_source_that_is_not_the_senders_is_dropped_where_nf_nat_translates_it() {
    differs(
        "a source that is",
        &[Difference::Spoofed, Difference::SpoofedFromOutside],
    );
}

/// Row 5.
#[test]
fn fragments_long_before_their_first_one_are_lost_where_nf_nat_holds_them() {
    differs("fragments, the first comes last", &[Difference::LateHead]);
}

/// Row 5.
#[test]
fn a_second_pods_association_is_refused_where_nf_nat_translates_its_port() {
    differs("sctp", &[Difference::SecondAssociation]);
}

/// The kinds of flows that begin so: every packet that a row speaks of differs as the row says, and no other does.
fn differs(kinds: &str, rows: &[Difference]) {
    let seed = rng::seed(ORDINARY_SEED);
    let mut traffic = Traffic::new(seed, &[kinds]);
    let end = Instant::now() + Duration::from_mins(1);
    traffic
        .shard(Datapath::Causeway, 3000, end)
        .expect("a pair of lanes");
    assert!(
        traffic.judge.found.is_empty(),
        "seed {seed}\n{}",
        traffic.findings()
    );
    for row in rows {
        let times = traffic.judge.allowed.get(row).copied();
        assert!(times > Some(0), "{row:?} was never seen");
    }
}
