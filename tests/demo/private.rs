//! A corner of the machine that vanishes with this process, however it ends: an interrupt, a panic, `kill -9`.
//!
//! Namespaces are descriptors of this process. Files and the bpffs live in a mount namespace of its own, on a tmpfs that no
//! other process sees.

use std::path::Path;

use anyhow::{Context, Result};
use rustix::{
    mount::{MountFlags, MountPropagationFlags, mount, mount_change},
    thread::{UnshareFlags, unshare_unsafe},
};

/// A directory that every Linux has and that a demo has no other use for.
const CORNER: &str = "/mnt";

/// Moves the process there. Call it while there is one thread.
pub(crate) fn retreat() -> Result<()> {
    // SAFETY: one thread, and no descriptor table is unshared.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }
        .context("cannot make a mount namespace: the demo needs root, run `sudo cargo xtask demo`")?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .context("cannot make mounts private")?;
    mount(
        "tmpfs",
        CORNER,
        "tmpfs",
        MountFlags::NOSUID | MountFlags::NODEV,
        Some(c"mode=0755"),
    )
    .with_context(|| format!("cannot mount a tmpfs on {CORNER}"))?;
    tempfile::env::override_temp_dir(Path::new(CORNER)).ok();
    Ok(())
}
