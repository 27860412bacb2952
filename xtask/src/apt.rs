//! Debian's package manager: installs what is missing, removes nothing.

use std::{cell::Cell, process::Command};

use anyhow::{Result, bail};

use crate::{
    progress::Step,
    workspace::{find_program, require_root},
};

/// apt of this machine.
pub(crate) struct Apt {
    /// Whether the lists have been fetched in this run.
    refreshed: Cell<bool>,
}

impl Apt {
    /// `None` on a system without apt.
    pub(crate) fn find() -> Option<Self> {
        find_program("apt-get").map(|_| Self {
            refreshed: Cell::new(false),
        })
    }

    /// Whether a package can be installed; fetches the lists when they do not have it.
    pub(crate) fn has(&self, package: &str, step: &Step) -> Result<bool> {
        Ok(candidate(package).is_some() || (self.refresh(step)? && candidate(package).is_some()))
    }

    /// Installs packages. `why` is said when that needs root.
    pub(crate) fn install(&self, packages: &[&str], why: &str, step: &Step) -> Result<()> {
        require_root(format!("apt-get install {} ({why})", packages.join(" ")))?;
        for package in packages {
            if !self.has(package, step)? {
                bail!("apt does not know {package} ({why}): its sources lack the part of Debian that has it");
            }
        }
        step.say(&format!("apt-get install {}", packages.join(" ")));
        let first = step.run(apt_get("install").args(packages));
        // Lists that are too old name files that are gone.
        if first.is_err() && self.refresh(step)? {
            return step.run(apt_get("install").args(packages));
        }
        first
    }

    /// Fetches the lists once a run; `false` when that has been done, or cannot be.
    pub(crate) fn refresh(&self, step: &Step) -> Result<bool> {
        if self.refreshed.replace(true) {
            return Ok(false);
        }
        require_root("apt-get update")?;
        step.say("apt-get update");
        step.run(&mut apt_get("update"))?;
        Ok(true)
    }
}

fn apt_get(verb: &str) -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive").args([
        "-q",
        "-y",
        "-o",
        "DPkg::Lock::Timeout=120",
        verb,
    ]);
    if verb == "install" {
        // A package that conflicts with one of the user's is the user's to decide on.
        command.args(["--no-install-recommends", "--no-remove"]);
    }
    command
}

fn candidate(package: &str) -> Option<String> {
    let output = Command::new("apt-cache")
        .env("LC_ALL", "C")
        .args(["policy", package])
        .output()
        .ok()?;
    read_candidate(&String::from_utf8_lossy(&output.stdout))
}

/// Reads `apt-cache policy PACKAGE`.
fn read_candidate(policy: &str) -> Option<String> {
    let version = policy
        .lines()
        .find_map(|line| line.trim().strip_prefix("Candidate:"))?
        .trim();
    (version != "(none)").then(|| version.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn candidate_is_read_from_the_policy() {
        let known =
            "rustc-web:\n  Installed: (none)\n  Candidate: 1.96.0+dfsg1-1~deb12u2\n  Version table:\n";
        assert_eq!(read_candidate(known).as_deref(), Some("1.96.0+dfsg1-1~deb12u2"));
        assert_eq!(
            read_candidate("llvm-99:\n  Installed: (none)\n  Candidate: (none)\n"),
            None
        );
        assert_eq!(read_candidate(""), None);
    }
}
