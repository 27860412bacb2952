//! Excluded ranges of a node that is measured.

use std::net::Ipv4Addr;

use anyhow::{Context, Result};
use causeway::{datapath::Datapath, root::Root};
use causeway_common::{decide::WIRESERVER, maps::RangeClass};
use ipnet::Ipv4Net;

use crate::stand::Stand;

/// Many of them.
pub(crate) const MANY: u32 = 10_000;

/// Has a node exclude the stock ranges and so many others, as the agent does when its configuration changes.
pub(crate) fn exclude(stand: &Stand, others: u32) -> Result<()> {
    let stock = [
        Ipv4Net::new(Ipv4Addr::new(10, 0, 0, 0), 8)?,
        Ipv4Net::new(WIRESERVER.into(), 32)?,
    ];
    // Below everything that is sent to.
    let others = (0..others).map(|n| Ipv4Net::new_assert(Ipv4Addr::from_bits(0x4000_0000 + (n << 8)), 24));
    let ranges: Vec<(Ipv4Net, u8)> = stock
        .into_iter()
        .chain(others)
        .map(|net| (net, RangeClass::EXCLUDED))
        .collect();
    let root = Root::new(stand.node()?.root.path());
    let datapath = Datapath::open(&root)?.context("the node has no datapath")?;
    datapath.set_ranges(&ranges)?;
    Ok(())
}
