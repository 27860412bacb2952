//! What a run leaves behind: text for people, JSON for machines.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use serde::Serialize;

use crate::{facts::Fact, goals::Verdict, machine::Machine, plot, rounds::Outcome, table};

/// A whole run.
#[derive(Debug, Serialize)]
pub(crate) struct Results {
    /// Where and when.
    pub(crate) machine: Machine,
    /// In the order of the measures.
    pub(crate) outcomes: Vec<Outcome>,
    /// What is installed.
    pub(crate) facts: Vec<Fact>,
    /// What the outcomes say of the goals.
    pub(crate) goals: Vec<Verdict>,
}

impl Results {
    /// Nothing measured yet.
    pub(crate) fn new(machine: Machine) -> Self {
        Self {
            machine,
            outcomes: Vec::new(),
            facts: Vec::new(),
            goals: Vec::new(),
        }
    }

    /// Writes `bench.txt`, `bench.json` and a picture for each measure.
    pub(crate) fn save(&self, directory: &Path) -> Result<()> {
        fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
        let mut text = format!("{}\n\n", self.machine);
        for outcome in &self.outcomes {
            text += &table::outcome(outcome);
            text.push('\n');
        }
        text += &table::facts(&self.facts);
        text.push('\n');
        text += &table::goals(&self.goals);
        let json = serde_json::to_string_pretty(self)?;
        let mut files = vec![("bench.txt".to_owned(), text), ("bench.json".to_owned(), json)];
        for outcome in &self.outcomes {
            files.push((
                format!("{}.svg", outcome.name),
                plot::bars(outcome, &self.machine),
            ));
        }
        for (name, content) in files {
            let path = directory.join(name);
            fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }
}
