//! The same traffic through the kernel's own NAT and through Causeway, compared packet by packet, of IPv4 and of IPv6
//! ([`family`]).
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
mod family;
mod frames;
mod judge;
mod lane;
mod ledger;
mod lifetimes;
mod mappings;
mod packet;
mod ports;
mod report;
mod run;
mod script;
mod tap;
mod traffic;

use std::{
    env, thread,
    time::{Duration, Instant},
};

use causeway_tests::{node::Datapath, rng};

use crate::{differences::Difference, family::Family, report::Report, run::Extent, traffic::Traffic};

/// Seed of an ordinary run, so that it is the same traffic each time; a long run draws its own.
const ORDINARY_SEED: u64 = 20_261_122;

#[test]
fn causeway_does_what_the_kernels_nat_does() {
    does_the_same(Family::V4);
}

#[test]
fn causeway_does_what_the_kernels_nat_does_of_ipv6() {
    does_the_same(Family::V6);
}

fn does_the_same(family: Family) {
    let extent = Extent::asked_for();
    let seed = rng::seed(ORDINARY_SEED);
    println!("seed {seed}: CAUSEWAY_SEED={seed} repeats this run");
    let kinds = env::var("CAUSEWAY_PARITY_KINDS").unwrap_or_default();
    let report = run::run(family, seed, &kinds, extent).expect("pairs of lanes");
    assert!(report.found.is_empty(), "seed {seed}\n{}", report.findings());
    assert!(report.is_complete(), "a kind of flow was never seen whole");
    assert!(
        !extent.lacks(&report),
        "{} packets in {:?}, and {extent:?} was asked for",
        report.compared,
        extent.time
    );
}

/// Flows that rest for as long as they are remembered, and longer.
#[test]
fn what_nf_nat_forgets_causeway_forgets_and_what_it_remembers_lives_on() {
    let attachments = [(Datapath::Causeway, true), (Datapath::CausewayClsact, false)];
    thread::scope(|scope| {
        for (family, (datapath, swept)) in Family::BOTH
            .into_iter()
            .flat_map(|family| attachments.map(|way| (family, way)))
        {
            scope.spawn(move || {
                let begun = Instant::now();
                let report = rested(family, datapath, swept);
                println!("{family:?}: {}", report.summary(begun.elapsed()));
                assert!(report.found.is_empty(), "{}", report.findings());
                assert!(report.is_complete(), "a kind of flow was never seen whole");
            });
        }
    });
}

/// On a machine that is too busy the flows rest longer than they should: then all is done again.
fn rested(family: Family, datapath: Datapath, swept: bool) -> Report {
    let seed = rng::seed(ORDINARY_SEED);
    let tries = (0..5).find_map(|_| {
        let traffic = Traffic::resting(family, seed);
        traffic.rest(datapath, 480, swept).expect("a pair of lanes")
    });
    tries.expect("a machine that is not too busy to compare what expires in seconds")
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

/// Row 6.
#[test]
fn node_information_is_dropped_where_nf_nat_translates_it() {
    differs_of(Family::V6, "untranslated", &[Difference::Untranslated]);
}

/// Row 7.
#[test]
fn fragments_of_ipv6_stay_fragments_where_nf_nat_joins_them() {
    for kinds in ["whole packets", "fragments, the last of"] {
        differs_of(Family::V6, kinds, &[Difference::Rejoined]);
    }
}

/// The kinds of flows of either family that begin so: every packet that a row speaks of differs as the row says, and no
/// other does.
fn differs(kinds: &str, rows: &[Difference]) {
    for family in Family::BOTH {
        differs_of(family, kinds, rows);
    }
}

fn differs_of(family: Family, kinds: &str, rows: &[Difference]) {
    let seed = rng::seed(ORDINARY_SEED);
    let end = Instant::now() + Duration::from_mins(1);
    let report = Traffic::new(family, seed, kinds)
        .run(Datapath::Causeway, 3000, end)
        .expect("a pair of lanes");
    assert!(report.found.is_empty(), "seed {seed}\n{}", report.findings());
    for row in rows {
        let times = report.allowed.get(row).copied();
        assert!(times > Some(0), "{row:?} was never seen");
    }
}
