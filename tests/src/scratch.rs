//! A node's own root directory: every path a program of ours uses moves below it (`CAUSEWAY_ROOT`).

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use rustix::{
    fs::{StatVfsMountFlags, statvfs},
    mount::{UnmountFlags, unmount},
};
use tempfile::TempDir;

const PREFIX: &str = "causeway-node-";

/// Where the roots are: in memory, as the `/run` of a node is, of which most of a root consists. Programs are put there, too.
fn place() -> PathBuf {
    const MEMORY: &str = "/dev/shm";
    let runs_programs = |flags: StatVfsMountFlags| !flags.contains(StatVfsMountFlags::NOEXEC);
    match statvfs(MEMORY) {
        Ok(memory) if runs_programs(memory.f_flag) => MEMORY.into(),
        _ => tempfile::env::temp_dir(),
    }
}

/// A temporary root. Dropped, its bpffs is unmounted, which takes the pins and with them the programs, and the directory is
/// removed. What a killed process left is removed by the next one that makes a root.
#[derive(Debug)]
pub struct Scratch(TempDir);

impl Scratch {
    /// Makes an empty root.
    pub fn new() -> Result<Self> {
        sweep();
        let prefix = format!("{PREFIX}{}-", std::process::id());
        let made = tempfile::Builder::new().prefix(&prefix).tempdir_in(place());
        Ok(Self(made.context("cannot make a directory for a node")?))
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Where a program of ours finds `absolute`.
    pub fn join(&self, absolute: &str) -> PathBuf {
        self.path().join(absolute.trim_start_matches('/'))
    }

    /// Writes a file, and the directories on the way to it.
    pub fn write(&self, absolute: &str, text: &str) -> Result<()> {
        let path = self.join(absolute);
        let written = path
            .parent()
            .map_or(Ok(()), fs::create_dir_all)
            .and_then(|()| fs::write(&path, text));
        written.with_context(|| format!("cannot write {}", path.display()))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // EINVAL: nothing was mounted there.
        unmount(self.join("/sys/fs/bpf"), UnmountFlags::DETACH).ok();
    }
}

fn sweep() {
    let Ok(entries) = fs::read_dir(place()) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let owner = name
            .to_str()
            .and_then(|name| name.strip_prefix(PREFIX)?.split('-').next());
        let gone = owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists());
        if gone {
            unmount(entry.path().join("sys/fs/bpf"), UnmountFlags::DETACH).ok();
            // Another process may sweep the same directory at the same time.
            fs::remove_dir_all(entry.path()).ok();
        }
    }
}
