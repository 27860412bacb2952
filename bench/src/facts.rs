//! What needs no stopwatch: the sizes of what a node has installed, as the kernel tells them.

use anyhow::{Context, Result};
use aya::{maps::MapInfo, programs::SchedClassifier};
use causeway_common::maps::{PROGRAM_NAMES, V6_PROGRAM_NAMES};
use serde::Serialize;

use crate::stand::Stand;

/// A figure that is the same in every run of a build.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Fact {
    /// Of what.
    pub(crate) name: String,
    /// The figure.
    pub(crate) value: u32,
    /// Its unit.
    pub(crate) unit: &'static str,
}

/// Bytes of key and value, both directions of a flow.
pub(crate) const FLOW: &str = "memory of a flow, both directions";
/// The program that took the verifier longest.
pub(crate) const VERIFIED: &str = "verifier, largest program";
/// The same of those for IPv6.
pub(crate) const VERIFIED_V6: &str = "verifier, largest program of IPv6";

/// Asks the kernel about the programs and the table of a Causeway node.
pub(crate) fn of(stand: &Stand) -> Result<Vec<Fact>> {
    let pins = stand.pins()?;
    let flows = MapInfo::from_pin(pins.join("maps/cwy_flows")).context("the flow table")?;
    let mut facts = vec![
        Fact::new(
            FLOW,
            2 * (flows.key_size() + flows.value_size()),
            "bytes of key and value",
        ),
        Fact::new("flow table", flows.max_entries(), "entries, two a flow"),
    ];
    facts.extend(of_programs(stand, &PROGRAM_NAMES, VERIFIED)?);
    Ok(facts)
}

/// The same about the programs for IPv6, where a pod has it.
pub(crate) fn of_ipv6(stand: &Stand) -> Result<Vec<Fact>> {
    of_programs(stand, &V6_PROGRAM_NAMES, VERIFIED_V6)
}

fn of_programs(stand: &Stand, names: &[&str], largest: &str) -> Result<Vec<Fact>> {
    let pins = stand.pins()?;
    let (mut facts, mut most) = (Vec::new(), 0);
    for name in names {
        let program =
            SchedClassifier::from_pin(pins.join("progs").join(name)).with_context(|| (*name).to_owned())?;
        let info = program.info()?;
        let verified = info.verified_instruction_count().unwrap_or(0);
        most = most.max(verified);
        facts.push(Fact::new(name, verified, "instructions verified"));
        facts.push(Fact::new(name, info.size_jitted(), "bytes of machine code"));
    }
    facts.push(Fact::new(largest, most, "instructions verified"));
    Ok(facts)
}

impl Fact {
    /// A figure.
    pub(crate) fn new(name: &str, value: u32, unit: &'static str) -> Self {
        Self {
            name: name.to_owned(),
            value,
            unit,
        }
    }
}
