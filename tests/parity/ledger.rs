//! Which mappings there must be, by the packets that have come out: each lane's own table must say the same.

use std::collections::HashMap;

use crate::mappings::{Inside, Mappings};

/// Lanes by number.
pub(crate) const NF_NAT: usize = 0;
pub(crate) const CAUSEWAY: usize = 1;

/// The mappings that packets have shown, with the node's ports.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    both: HashMap<Inside, [u16; 2]>,
    /// What only the lane of this number remembers.
    alone: HashMap<Inside, usize>,
}

impl Ledger {
    /// A packet came out of both lanes with this mapping.
    pub(crate) fn shown(&mut self, inside: Inside, ports: [u16; 2]) {
        self.alone.remove(&inside);
        self.both.insert(inside, ports);
    }

    /// From here on only one lane has it.
    pub(crate) fn only(&mut self, inside: Inside, lane: usize) {
        self.both.remove(&inside);
        self.alone.insert(inside, lane);
    }

    /// From here on neither has it.
    pub(crate) fn over(&mut self, inside: Inside) {
        self.both.remove(&inside);
        self.alone.remove(&inside);
    }

    /// What the lanes' tables say otherwise, each with what is said of its mapping.
    pub(crate) fn contradictions(&self, tables: [&Mappings; 2]) -> Vec<(&'static str, String)> {
        let mut found = Vec::new();
        for (inside, ports) in &self.both {
            for (lane, name) in NAMES.into_iter().enumerate() {
                let at = tables[lane].get(inside);
                if at != Some(&ports[lane]) {
                    let text =
                        format!("{name} has {at:?} in its table, and packets show {ports:?}: {inside:?}");
                    found.push((["nf_nat has lost it", "Causeway has lost it"][lane], text));
                }
            }
        }
        for (inside, &lane) in &self.alone {
            let there = tables.map(|table| table.contains_key(inside));
            if there != [lane == NF_NAT, lane == CAUSEWAY] {
                let text = format!(
                    "in the tables: {there:?}, but it should be {}'s: {inside:?}",
                    NAMES[lane]
                );
                found.push(("it should be one lane's alone", text));
            }
        }
        for (lane, name) in NAMES.into_iter().enumerate() {
            let unknown = tables[lane]
                .iter()
                .filter(|(inside, _)| !self.both.contains_key(inside) && !self.alone.contains_key(inside));
            for (inside, port) in unknown {
                let text = format!("{name} remembers port {port} for it, and no packet shows it: {inside:?}");
                found.push((
                    ["nf_nat remembers it alone", "Causeway remembers it alone"][lane],
                    text,
                ));
            }
        }
        found
    }

    pub(crate) fn len(&self) -> usize {
        self.both.len() + self.alone.len()
    }
}

const NAMES: [&str; 2] = ["nf_nat", "Causeway"];
