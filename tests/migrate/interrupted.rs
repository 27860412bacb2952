//! Killed at any moment, a migration goes on, or back.

use std::{process::Stdio, thread, time::Duration};

use anyhow::{Context, Result};
use causeway_tests::rng::Rng;

use crate::{incumbent::Site, snapshot::Snapshot, traffic::Traffic};

/// Starts `causeway migrate` and kills it after this time.
fn killed(site: &Site, verb: &str, after: Duration) -> Result<()> {
    let mut command = site.command(&["migrate", verb])?;
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn()?;
    thread::sleep(after);
    child.kill()?;
    child.wait()?;
    Ok(())
}

/// Kills `--apply`, and goes back.
fn go_back(times: u32, seed: u64) -> Result<()> {
    let site = Site::new(3)?;
    let mut traffic = Traffic::open(&site)?;
    let before = Snapshot::of(&site)?;
    let mut rng = Rng::new(seed);
    for _ in 0..times {
        let after = Duration::from_millis(rng.next() % 400);
        let attempt = || {
            killed(&site, "--apply", after)?;
            roll_back_if_begun(&site)
        };
        let done = traffic
            .during(&site, attempt)
            .and_then(|_| traffic.assert_works());
        done.with_context(|| format!("killed after {after:?}"))?;
        Snapshot::of(&site)?.assert_is(&before);
    }
    site.assert_no_leak();
    Ok(())
}

/// Kills `--apply` and goes on, kills `--rollback` and goes on or turns round.
fn go_on(times: u32, seed: u64) -> Result<()> {
    let site = Site::new(3)?;
    let mut traffic = Traffic::open(&site)?;
    let before = Snapshot::of(&site)?;
    let mut rng = Rng::new(seed);
    for _ in 0..times {
        let mut after = || Duration::from_millis(rng.next() % 400);
        let ([first, second], turns_round) = ([after(), after()], rng.one_in(2));
        let there = || {
            killed(&site, "--apply", first)?;
            site.migrate("--apply")
        };
        let done = traffic.during(&site, there).and_then(|_| traffic.assert_works());
        done.with_context(|| format!("killed after {first:?}"))?;
        let back = || {
            killed(&site, "--rollback", second)?;
            if turns_round {
                site.migrate("--apply")?;
            }
            roll_back_if_begun(&site)
        };
        let done = traffic.during(&site, back).and_then(|_| traffic.assert_works());
        done.with_context(|| format!("killed after {first:?} and {second:?}, turned round: {turns_round}"))?;
        Snapshot::of(&site)?.assert_is(&before);
    }
    site.assert_no_leak();
    Ok(())
}

/// A call that was killed early has begun nothing, and one that was killed late has ended.
fn roll_back_if_begun(site: &Site) -> Result<()> {
    if site.node.root.join("/var/lib/causeway/migration.json").exists() {
        site.migrate("--rollback")?;
    }
    Ok(())
}

#[test]
fn a_migration_that_was_killed_goes_back_without_a_trace() -> Result<()> {
    go_back(6, causeway_tests::rng::seed(6))
}

#[test]
fn a_migration_that_was_killed_goes_on_in_either_direction() -> Result<()> {
    go_on(4, causeway_tests::rng::seed(7))
}

#[test]
#[ignore = "some minutes"]
fn long_a_migration_that_is_killed_again_and_again_loses_nothing() -> Result<()> {
    let seed = causeway_tests::rng::seed(8);
    println!("seed {seed}");
    go_back(60, seed)?;
    go_on(40, seed)
}
