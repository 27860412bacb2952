//! The same traffic through the kernel's own NAT and through Causeway, compared packet by packet.
//!
//! Two nodes alike ([`lane`]), one with the rule that Causeway replaces, one with Causeway. One writer feeds both ([`traffic`])
//! with what a seeded generator draws ([`archetypes`]); what comes out at the far side of the uplink and in the pods must be the
//! same bytes ([`judge`]), but for the ports of the node, which must pair one to one, and but for the few differences that
//! are wanted ([`differences`], `docs/parity.md`).
//!
//! `CAUSEWAY_SEED` repeats a run.
#![expect(
    clippy::expect_used,
    reason = "the bench is set-up of tests: what fails there fails the test"
)]

mod archetypes;
mod differences;
mod judge;
mod lane;
mod packet;
mod rng;
mod script;
mod tap;
mod traffic;

use std::{
    env,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use causeway_tests::node::Datapath;

use crate::traffic::Traffic;

/// How long packets are compared in an ordinary run.
const ORDINARY: Duration = Duration::from_secs(70);
/// Packets of a long run, and the most time it takes.
const LONG: (u64, Duration) = (100_000_000, Duration::from_secs(15 * 60));
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
    let seed = seed();
    println!("seed {seed}: CAUSEWAY_SEED={seed} repeats this run");
    let mut traffic = Traffic::new(seed);
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

fn seed() -> u64 {
    match env::var("CAUSEWAY_SEED") {
        Ok(seed) => seed.parse().expect("CAUSEWAY_SEED is a number"),
        Err(_) => SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(1, |since| since.as_nanos() as u64),
    }
}
