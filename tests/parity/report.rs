//! What a run has shown: how much of every kind of flow was compared, and every difference.

use std::{collections::BTreeMap, fmt::Write as _, time::Duration};

use crate::{
    archetypes::{self, Archetype},
    differences::Difference,
};

/// Differences that are told of.
const SHOWN: usize = 25;

/// The figures of one pair of lanes, or of all of a run together.
#[derive(Debug)]
pub(crate) struct Report {
    /// By the kind's number.
    kinds: Vec<(Archetype, Tally)>,
    pub(crate) allowed: BTreeMap<Difference, u64>,
    pub(crate) found: BTreeMap<String, Found>,
    pub(crate) compared: u64,
    pub(crate) mappings: u64,
    /// Mappings with the pod's own port, left and right.
    pub(crate) kept_ports: [u64; 2],
    /// How often the lanes' tables were compared, and the mappings that were in them.
    pub(crate) tables: [u64; 2],
    pub(crate) lanes: u64,
    /// Pairs of lanes that ended because the machine lost a packet.
    pub(crate) spoilt: u64,
    /// What Causeway counted in the last lane that showed another difference.
    pub(crate) status: Option<String>,
}

/// What a kind of flow has shown.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) flows: u64,
    pub(crate) sent: u64,
    pub(crate) came_out: u64,
    pub(crate) abandoned: u64,
}

/// A difference that no row describes, with how often it was seen and the first example.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    times: u64,
    example: String,
}

impl Report {
    /// Of these kinds of flows nothing has been seen yet.
    pub(crate) fn new(kinds: impl IntoIterator<Item = Archetype>) -> Self {
        let kinds = kinds.into_iter().map(|kind| (kind, Tally::default()));
        Self {
            kinds: kinds.collect(),
            allowed: BTreeMap::new(),
            found: BTreeMap::new(),
            compared: 0,
            mappings: 0,
            kept_ports: [0; 2],
            tables: [0; 2],
            lanes: 0,
            spoilt: 0,
            status: None,
        }
    }

    pub(crate) fn tally(&mut self, kind: usize) -> &mut Tally {
        &mut self.kinds[kind].1
    }

    /// Adds a difference that no row describes.
    pub(crate) fn find(&mut self, title: String, example: impl FnOnce() -> String) {
        let found = self.found.entry(title);
        let found = found.or_insert_with(|| Found {
            times: 0,
            example: example(),
        });
        found.times += 1;
    }

    /// Differences so far that no row describes.
    pub(crate) fn times_found(&self) -> u64 {
        self.found.values().map(|found| found.times).sum()
    }

    /// Adds what another pair of lanes has shown of the same kinds.
    pub(crate) fn add(&mut self, other: Self) {
        for ((_, tally), (_, other)) in self.kinds.iter_mut().zip(other.kinds) {
            tally.flows += other.flows;
            tally.sent += other.sent;
            tally.came_out += other.came_out;
            tally.abandoned += other.abandoned;
        }
        for (row, times) in other.allowed {
            *self.allowed.entry(row).or_default() += times;
        }
        for (title, found) in other.found {
            let example = found.example;
            self.found
                .entry(title)
                .or_insert(Found { times: 0, example })
                .times += found.times;
        }
        self.compared += other.compared;
        self.mappings += other.mappings;
        for (mine, other) in [
            (&mut self.kept_ports, other.kept_ports),
            (&mut self.tables, other.tables),
        ] {
            *mine = [mine[0] + other[0], mine[1] + other[1]];
        }
        self.lanes += other.lanes;
        self.spoilt += other.spoilt;
        self.status = other.status.or(self.status.take());
    }

    /// What was compared in this time.
    pub(crate) fn summary(&self, took: Duration) -> String {
        let mut text = format!(
            "{:<48}{:>10}{:>11}{:>11}{:>10}\n",
            "kind of flow", "flows", "packets", "came out", "cut short"
        );
        for (name, tally) in &self.kinds {
            writeln!(
                text,
                "{name:<48}{:>10}{:>11}{:>11}{:>10}",
                tally.flows, tally.sent, tally.came_out, tally.abandoned
            )
            .ok();
        }
        for (row, times) in &self.allowed {
            writeln!(text, "wanted difference {row:?}: {times} packets").ok();
        }
        text += &self.totals(took);
        if self.spoilt > 0 {
            write!(
                text,
                "\n{} pairs of lanes ended early: this CPU's backlog was full",
                self.spoilt
            )
            .ok();
        }
        text
    }

    /// The figures of all kinds together.
    pub(crate) fn totals(&self, took: Duration) -> String {
        let rate = u128::from(self.compared) * 1000 / took.as_millis().max(1);
        let flows: u64 = self.kinds.iter().map(|(_, tally)| tally.flows).sum();
        format!(
            "{} packets of {flows} flows compared in {:.1} s ({rate} a second), {} kinds, {} pairs of lanes; \
             {} mappings, of which nf_nat kept the pod's port in {} and Causeway in {}; \
             tables compared {} times with {} mappings in all; {} differences that no row describes",
            self.compared,
            took.as_secs_f64(),
            self.kinds.len(),
            self.lanes,
            self.mappings,
            self.kept_ports[0],
            self.kept_ports[1],
            self.tables[0],
            self.tables[1],
            self.times_found(),
        )
    }

    /// Every difference that no row describes, the most frequent first.
    pub(crate) fn findings(&self) -> String {
        let mut found: Vec<_> = self.found.iter().collect();
        found.sort_by_key(|(_, found)| std::cmp::Reverse(found.times));
        let mut text = String::new();
        for (title, found) in found.into_iter().take(SHOWN) {
            writeln!(text, "{} times: {title}\n  {}", found.times, found.example).ok();
        }
        text.extend(self.status.as_deref());
        text
    }

    /// Whether every kind of flow was seen, and something came out of it.
    pub(crate) fn is_complete(&self) -> bool {
        self.kinds.iter().all(|(kind, tally)| {
            (tally.came_out > 0 || archetypes::is_silent(kind)) && tally.flows > 0 && tally.abandoned == 0
        })
    }
}
