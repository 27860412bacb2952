//! What the kernel that runs the tests has, by its own word.

use std::fs;

use anyhow::{Context as _, Result};

/// Whether programs can be held by tcx links (Linux 6.6): the function is in every kernel with `CONFIG_NET_XGRESS` and in no
/// other.
pub fn has_tcx() -> Result<bool> {
    let symbols = fs::read_to_string("/proc/kallsyms").context("reading the kernel's symbols")?;
    Ok(symbols.lines().any(|line| line.ends_with(" tcx_prog_attach")))
}
