//! How many addresses a cluster needs, before there is one: from the cluster definition of acs-engine and aks-engine
//! (API model `vlabs`).
//!
//! - [`json`]: the text, with the place of every value, and with the remarks that the published example has;
//! - [`definition`]: what of it is about addresses, by the engine's own rules;
//! - [`reckon`]: what fits where, what overlaps, how far it can grow;
//! - [`interfaces`]: who has which address, as the list that a node's address plug-in reads.
//!
//! Everything that is wrong is said at once ([`Fault`]), each with its line. Pure but for [`interfaces::write`].

pub mod definition;
pub mod interfaces;
pub mod json;
pub mod reckon;

use std::fmt;

use ipnet::Ipv4Net;
use serde::Serialize;

use self::{definition::Definition, json::Place, reckon::Plan};

/// Something that is wrong with a definition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Fault {
    /// Whether the cluster cannot be, or has a weakness.
    pub severity: Severity,
    /// From 1.
    pub line: u32,
    /// In characters, from 1.
    pub column: u32,
    /// As `properties.agentPoolProfiles[0].count`; empty for the whole document.
    pub field: String,
    /// What is wrong, and what belongs there.
    pub message: String,
}

/// How bad a fault is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Severity {
    /// The cluster cannot be.
    Error,
    /// The cluster can be, with a weakness.
    Warning,
}

impl Fault {
    /// One at a place.
    pub fn new(severity: Severity, at: &Place, message: impl Into<String>) -> Self {
        Self {
            severity,
            line: at.line,
            column: at.column,
            field: at.field.clone(),
            message: message.into(),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {}: ", self.line, self.column)?;
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.message)
    }
}

/// A definition, reckoned.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Everything that is wrong, in the order of the lines.
    pub faults: Vec<Fault>,
    /// The numbers, where the definition is clear enough for them.
    pub plan: Option<Plan>,
}

/// A subnet's prefix, which a definition names only by its ID.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prefix {
    /// The last part of the ID; empty for the only one.
    pub subnet: String,
    /// Its addresses.
    pub prefix: Ipv4Net,
}

/// Reads a definition and reckons.
///
/// # Errors
///
/// The text is no JSON: then nothing more can be said.
pub fn plan(text: &[u8], prefixes: &[Prefix]) -> Result<Outcome, Fault> {
    let json::Parsed { root, duplicates } = json::parse(text)?;
    let mut faults: Vec<Fault> = duplicates
        .iter()
        .map(|at| Fault::new(Severity::Error, at, "is there twice: which one is meant?"))
        .collect();
    let definition = Definition::read(&root, &mut faults);
    let plan = definition.and_then(|definition| {
        let plan = reckon::reckon(&definition, prefixes, &mut faults);
        (definition.is_whole && duplicates.is_empty()).then_some(plan)
    });
    faults.sort_by_key(|fault| (fault.line, fault.column, fault.severity));
    faults.dedup();
    Ok(Outcome { faults, plan })
}

#[cfg(test)]
mod tests;
