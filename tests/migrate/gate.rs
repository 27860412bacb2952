//! A migration that stops before and after its rule is changed, for as long as somebody does something.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Child, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tempfile::TempDir;

use crate::incumbent::Site;

/// The program that changes rules, and the moments at which the one in its place waits.
const PROGRAM: &str = "iptables-nft-restore";
const MOMENTS: [&str; 2] = ["before", "after"];
/// How long the migration has to get to a moment.
const PATIENCE: Duration = Duration::from_secs(20);

/// Runs `causeway migrate` with a verb; does `before` when it is about to change the rule, and `after` when the rule is
/// changed and nothing else. Returns what it printed.
pub(crate) fn migrate_by_steps(
    site: &Site,
    verb: &str,
    before: impl FnOnce() -> Result<()>,
    after: impl FnOnce() -> Result<()>,
) -> Result<Value> {
    let gate = Gate::new()?;
    let path = format!("{}:{}", gate.0.path().display(), std::env::var("PATH")?);
    let mut child = site
        .command(&["migrate", verb, "--json"])?
        .env("PATH", path)
        .stdout(Stdio::piped())
        .spawn()?;
    let done = gate
        .wait(&mut child, MOMENTS[0], before)
        .and_then(|()| gate.wait(&mut child, MOMENTS[1], after));
    // Without its directory nothing waits any more.
    drop(gate);
    let output = child.wait_with_output()?;
    done?;
    ensure!(output.status.success(), "migrate {verb} failed");
    serde_json::from_slice(&output.stdout).with_context(|| format!("migrate {verb} printed no JSON"))
}

struct Gate(TempDir);

impl Gate {
    fn new() -> Result<Self> {
        let gate = Self(tempfile::tempdir()?);
        let real = std::env::var("PATH")?
            .split(':')
            .map(|directory| Path::new(directory).join(PROGRAM))
            .find(|program| program.exists())
            .with_context(|| format!("there is no {PROGRAM}"))?;
        let directory = gate.0.path().display();
        let wait = |moment: &str| {
            format!("touch {directory}/{moment}\nwhile [ -e {directory}/{moment} ]; do sleep 0.01; done\n")
        };
        let [before, after] = MOMENTS.map(wait);
        let program = gate.0.path().join(PROGRAM);
        fs::write(
            &program,
            format!(
                "#!/bin/sh\nrules=$(cat)\n{before}printf '%s\\n' \"$rules\" | {} \"$@\"\ncode=$?\n{after}exit $code\n",
                real.display()
            ),
        )?;
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
        Ok(gate)
    }

    /// Waits until the migration has come to the moment, does `what`, and lets it go on.
    fn wait(&self, child: &mut Child, moment: &str, what: impl FnOnce() -> Result<()>) -> Result<()> {
        let (file, since) = (self.0.path().join(moment), Instant::now());
        while !file.exists() {
            ensure!(
                since.elapsed() < PATIENCE && child.try_wait()?.is_none(),
                "it does not get to the moment {moment} the rule is changed"
            );
            thread::sleep(Duration::from_millis(5));
        }
        let done = what();
        fs::remove_file(file)?;
        done
    }
}
