//! What a run leaves behind: text for people, JSON for machines.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use serde::Serialize;

use crate::{goals::Verdict, machine::Machine, rounds::Outcome, table};

/// A whole run.
#[derive(Debug, Serialize)]
pub(crate) struct Results {
    /// Where and when.
    pub(crate) machine: Machine,
    /// In the order of the measures.
    pub(crate) outcomes: Vec<Outcome>,
    /// What the outcomes say of the goals.
    pub(crate) goals: Vec<Verdict>,
}

impl Results {
    /// Nothing measured yet.
    pub(crate) fn new(machine: Machine) -> Self {
        Self {
            machine,
            outcomes: Vec::new(),
            goals: Vec::new(),
        }
    }

    /// Writes `bench.txt` and `bench.json`.
    pub(crate) fn save(&self, directory: &Path) -> Result<()> {
        fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
        let mut text = format!("{}\n\n", self.machine);
        for outcome in &self.outcomes {
            text += &table::outcome(outcome);
            text.push('\n');
        }
        text += &table::goals(&self.goals);
        let json = serde_json::to_string_pretty(self)?;
        for (name, content) in [("bench.txt", text), ("bench.json", json)] {
            let path = directory.join(name);
            fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }
}
