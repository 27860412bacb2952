//! The emulator that boots other kernels: the system's, or one of our own in the cache. Debian's packages of it cannot be
//! installed beside some that are newer than the release, such as the backports' `qemu-utils`, and nothing of the user's is
//! removed for them.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::{
    apt::Apt,
    progress::Step,
    workspace::{Workspace, find_program},
};

pub(crate) const PROGRAM: &str = "qemu-system-x86_64";
pub(crate) const PACKAGE: &str = "qemu-system-x86";

/// Where a package of Debian's has its libraries.
const LIBRARIES: [&str; 2] = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"];
const MODULES: &str = "usr/lib/x86_64-linux-gnu/qemu";
const FIRMWARE: [&str; 2] = ["usr/share/qemu", "usr/share/seabios"];

/// An emulator that can be started.
#[derive(Debug)]
pub(crate) enum Emulator {
    Installed(PathBuf),
    /// The tree that its packages, and those they need, are unpacked in.
    Unpacked(PathBuf),
}

impl Emulator {
    pub(crate) fn find(workspace: &Workspace) -> Option<Self> {
        if let Some(program) = find_program(PROGRAM) {
            return Some(Self::Installed(program));
        }
        let tree = tree(workspace);
        tree.exists().then_some(Self::Unpacked(tree))
    }

    pub(crate) fn program(&self) -> PathBuf {
        match self {
            Self::Installed(program) => program.clone(),
            Self::Unpacked(tree) => tree.join("usr/bin").join(PROGRAM),
        }
    }

    /// The command without arguments of what is to be emulated.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(self.program());
        if let Self::Unpacked(tree) = self {
            let libraries = LIBRARIES.map(|place| tree.join(place).display().to_string());
            command.env("LD_LIBRARY_PATH", libraries.join(":"));
            command.env("QEMU_MODULE_DIR", tree.join(MODULES));
            for place in FIRMWARE {
                command.arg("-L").arg(tree.join(place));
            }
        }
        command
    }

    /// Fetches `packages`, all that the emulator needs and the system lacks, and unpacks them into the cache.
    pub(crate) fn unpack(workspace: &Workspace, apt: &Apt, packages: &[String], step: &Step) -> Result<Self> {
        let tree = tree(workspace);
        let fresh = tree.with_extension("new");
        remove(&fresh)?;
        let archives = fresh.with_extension("debs");
        remove(&archives)?;
        fs::create_dir_all(&archives).with_context(|| format!("cannot make {}", archives.display()))?;
        apt.download(packages, &archives, step)?;
        for archive in
            fs::read_dir(&archives).with_context(|| format!("cannot read {}", archives.display()))?
        {
            step.run(
                Command::new("dpkg-deb")
                    .arg("-x")
                    .arg(archive?.path())
                    .arg(&fresh),
            )?;
        }
        remove(&archives)?;
        // Complete or not there.
        fs::rename(&fresh, &tree).with_context(|| format!("cannot make {}", tree.display()))?;
        Ok(Self::Unpacked(tree))
    }
}

fn tree(workspace: &Workspace) -> PathBuf {
    workspace.root.join("target/cache/emulator")
}

fn remove(directory: &Path) -> Result<()> {
    if !directory.exists() {
        return Ok(());
    }
    fs::remove_dir_all(directory).with_context(|| format!("cannot remove {}", directory.display()))
}
