//! What needs no stopwatch: the sizes of what a node has installed, as the kernel tells them.

use anyhow::{Context, Result};
use aya::{maps::MapInfo, programs::SchedClassifier};
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

const PROGRAMS: [&str; 4] = ["cwy_from_pod", "cwy_to_pod", "cwy_from_uplink", "cwy_to_uplink"];

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
    let mut most = 0;
    for name in PROGRAMS {
        let program =
            SchedClassifier::from_pin(pins.join("progs").join(name)).with_context(|| name.to_owned())?;
        let info = program.info()?;
        let verified = info.verified_instruction_count().unwrap_or(0);
        most = most.max(verified);
        facts.push(Fact::new(name, verified, "instructions verified"));
        facts.push(Fact::new(name, info.size_jitted(), "bytes of machine code"));
    }
    facts.push(Fact::new(VERIFIED, most, "instructions verified"));
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
