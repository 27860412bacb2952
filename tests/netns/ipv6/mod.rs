//! Pods with IPv6: carried as those of IPv4 are, with their own addresses everywhere.

mod link;
mod odd;
mod snat;
mod sweep;
mod walks;

use std::net::Ipv6Addr;

use anyhow::{Context, Result};
use causeway_tests::{netns::Netns, rig::Rig};

use crate::table::pin;

/// How many packets each of these counters got by what is done.
fn counted<const N: usize>(
    rig: &Rig,
    reasons: [&str; N],
    done: impl FnOnce() -> Result<()>,
) -> Result<[u64; N]> {
    let count = |reason: &str| rig.node.count(reason);
    let mut before = [0; N];
    for (value, reason) in before.iter_mut().zip(reasons) {
        *value = count(reason)?;
    }
    done()?;
    let mut counted = [0; N];
    for ((value, before), reason) in counted.iter_mut().zip(before).zip(reasons) {
        *value = count(reason)? - before;
    }
    Ok(counted)
}

fn ping(from: &Netns, to: Ipv6Addr, times: u32) -> Result<()> {
    let times = times.to_string();
    from.output("ping", &["-6", "-c", &times, "-i0.05", "-w10", &to.to_string()])
        .map(drop)
}

/// How many entries `cwy_flows6` has, by bpftool.
fn entries(rig: &Rig) -> Result<usize> {
    let flows = pin(rig, "cwy_flows6").display().to_string();
    let dump = rig
        .node
        .ns
        .json("bpftool", &["-j", "map", "dump", "pinned", &flows])?;
    Ok(dump.as_array().context("no dump")?.len())
}
