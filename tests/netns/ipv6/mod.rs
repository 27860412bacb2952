//! Pods with IPv6: carried as those of IPv4 are, with their own addresses everywhere.

mod link;
mod odd;
mod sweep;
mod walks;

use anyhow::{Context, Result};
use causeway_tests::rig::Rig;

use crate::table::pin;

/// How many entries `cwy_flows6` has, by bpftool.
fn entries(rig: &Rig) -> Result<usize> {
    let flows = pin(rig, "cwy_flows6").display().to_string();
    let dump = rig
        .node
        .ns
        .json("bpftool", &["-j", "map", "dump", "pinned", &flows])?;
    Ok(dump.as_array().context("no dump")?.len())
}
