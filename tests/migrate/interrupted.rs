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

/// Whether a migration has begun and not ended.
fn is_under_way(site: &Site) -> bool {
    site.node.root.join("/var/lib/causeway/migration.json").exists()
}

/// Kills `--apply`, and goes back.
fn go_back(times: u32, seed: u64) -> Result<()> {
    let site = Site::new(3)?;
    let mut traffic = Traffic::open(&site)?;
    let before = Snapshot::of(&site)?;
    let mut rng = Rng::new(seed);
    for _ in 0..times {
        let after = Duration::from_millis(rng.next() % 400);
        traffic.during(|| killed(&site, "--apply", after))?;
        if is_under_way(&site) {
            traffic.during(|| site.migrate("--rollback"))?;
        }
        Snapshot::of(&site)?.assert_is(&before);
        traffic
            .assert_works()
            .with_context(|| format!("killed after {after:?}"))?;
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
        let [first, second] = [after(), after()];
        traffic.during(|| killed(&site, "--apply", first))?;
        traffic.during(|| site.migrate("--apply"))?;
        traffic
            .assert_works()
            .with_context(|| format!("killed after {first:?}"))?;
        traffic.during(|| killed(&site, "--rollback", second))?;
        if rng.one_in(2) {
            traffic.during(|| site.migrate("--apply"))?;
            traffic
                .assert_works()
                .with_context(|| format!("turned round after {second:?}"))?;
        }
        if is_under_way(&site) {
            traffic.during(|| site.migrate("--rollback"))?;
        }
        Snapshot::of(&site)?.assert_is(&before);
        traffic
            .assert_works()
            .with_context(|| format!("killed after {first:?} and {second:?}"))?;
    }
    site.assert_no_leak();
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
