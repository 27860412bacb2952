//! Killed at any moment, a migration goes on, or back.

use std::{thread, time::Duration};

use anyhow::Result;
use causeway_tests::{dist::Dist, rng::Rng};

use crate::{incumbent::Site, snapshot::Snapshot, traffic::Traffic};

/// Starts `causeway migrate` and kills it after this time.
fn killed(site: &Site, verb: &str, after: Duration) -> Result<()> {
    let mut command = site.node.ns.command(Dist::from_env()?.cli());
    command
        .args(["migrate", verb])
        .env("CAUSEWAY_ROOT", site.node.root.path())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null());
    let mut child = command.spawn()?;
    thread::sleep(after);
    child.kill()?;
    child.wait()?;
    Ok(())
}

#[test]
fn a_migration_that_was_killed_goes_back_without_a_trace() -> Result<()> {
    let site = Site::new(3)?;
    let mut traffic = Traffic::open(&site)?;
    let before = Snapshot::of(&site)?;
    let mut rng = Rng::new(causeway_tests::rng::seed(6));
    for _ in 0..6 {
        let after = Duration::from_millis(rng.next() % 400);
        traffic.during(|| killed(&site, "--apply", after))?;
        if site.node.root.join("/var/lib/causeway/migration.json").exists() {
            traffic.during(|| site.migrate("--rollback"))?;
        }
        Snapshot::of(&site)?.assert_is(&before);
        traffic.assert_works()?;
    }
    site.assert_no_leak();
    Ok(())
}

#[test]
fn a_migration_that_was_killed_goes_on_in_either_direction() -> Result<()> {
    let site = Site::new(3)?;
    let mut traffic = Traffic::open(&site)?;
    let before = Snapshot::of(&site)?;
    let mut rng = Rng::new(causeway_tests::rng::seed(7));
    for _ in 0..4 {
        let mut after = || Duration::from_millis(rng.next() % 400);
        let [first, second] = [after(), after()];
        traffic.during(|| killed(&site, "--apply", first))?;
        traffic.during(|| site.migrate("--apply"))?;
        traffic.assert_works()?;
        traffic.during(|| killed(&site, "--rollback", second))?;
        if site.node.root.join("/var/lib/causeway/migration.json").exists() {
            traffic.during(|| site.migrate("--rollback"))?;
        }
        Snapshot::of(&site)?.assert_is(&before);
        traffic.assert_works()?;
    }
    site.assert_no_leak();
    Ok(())
}
