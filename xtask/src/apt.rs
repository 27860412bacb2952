//! Debian's package manager: installs what is missing, removes nothing.

use std::{cell::Cell, path::Path, process::Command};

use anyhow::{Context as _, Result, bail};

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

    /// What the installation of a package would change.
    pub(crate) fn foresee(&self, package: &str, step: &Step) -> Result<Changes> {
        self.has(package, step)?;
        let output = Command::new("apt-get")
            .env("LC_ALL", "C")
            .args(["install", "--simulate", "--no-install-recommends", package])
            .output()
            .context("cannot start apt-get")?;
        Ok(Changes::read(&String::from_utf8_lossy(&output.stdout)))
    }

    /// Downloads packages into a directory; those of the system stay as they are.
    pub(crate) fn download(&self, packages: &[String], into: &Path, step: &Step) -> Result<()> {
        step.say(&format!("apt-get download ({} packages)", packages.len()));
        let download = || {
            let mut command = apt_get("download");
            command.args(["-o", "APT::Sandbox::User=root"]);
            step.run(command.args(packages).current_dir(into))
        };
        let first = download();
        if first.is_err() && self.refresh(step)? {
            return download();
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

/// What an installation changes, by the names of packages.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Changes {
    pub(crate) installed: Vec<String>,
    pub(crate) removed: Vec<String>,
}

impl Changes {
    /// Reads `apt-get install --simulate`.
    fn read(simulation: &str) -> Self {
        let mut changes = Self::default();
        for line in simulation.lines() {
            let mut words = line.split_whitespace();
            let list = match words.next() {
                Some("Inst") => &mut changes.installed,
                Some("Remv") => &mut changes.removed,
                _ => continue,
            };
            list.extend(words.next().map(ToOwned::to_owned));
        }
        changes
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
    fn a_simulation_names_what_comes_and_what_goes() {
        let simulation = "The following packages will be REMOVED:\n  qemu-utils\n\
            Remv qemu-utils [1:10.0.2+ds-2]\nInst seabios (1.16.2-1 Debian:12.15/oldstable [all])\n\
            Inst qemu-system-x86 (1:7.2+dfsg-7 Debian:12.15/oldstable [amd64])\nConf seabios (1.16.2-1)\n";
        let changes = Changes::read(simulation);
        assert_eq!(changes.installed, ["seabios", "qemu-system-x86"]);
        assert_eq!(changes.removed, ["qemu-utils"]);
        assert_eq!(Changes::read(""), Changes::default());
    }

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
