//! Tables for people.

use comfy_table::{CellAlignment, Table, presets::NOTHING};

use crate::{
    facts::Fact,
    goals::Verdict,
    rounds::{Outcome, Unit},
    stats::Estimate,
};

/// The table of a measure: every lane, and how many times as good the first one is.
pub(crate) fn outcome(outcome: &Outcome) -> String {
    let mut table = plain();
    let first = outcome.series.first().map_or("", |series| series.label.as_str());
    let cost = outcome.unit.cost();
    table.set_header([
        "",
        outcome.unit.name(),
        cost,
        &format!("{first} against it"),
        "95 %",
    ]);
    for series in &outcome.series {
        let Some(estimate) = outcome.estimate(&series.label) else {
            continue;
        };
        let ratio = outcome.ratio(first, &series.label);
        let against = if series.label == first { None } else { ratio };
        table.add_row([
            series.label.clone(),
            figure(outcome.unit, estimate.median),
            if cost.is_empty() {
                String::new()
            } else {
                format!("{:.0}", 1e9 / estimate.median)
            },
            against.map_or(String::new(), |ratio| format!("{:.2} ×", ratio.median)),
            against.map_or(String::new(), |ratio| interval(&ratio)),
        ]);
    }
    right(&mut table, 1);
    let Outcome {
        name,
        title,
        rounds,
        kept,
        notes,
        ..
    } = outcome;
    let mut text = format!("{name}: {title}\n{table}\n");
    text.extend(notes.iter().map(|note| format!("({note})\n")));
    text + &format!("({kept} of {rounds} rounds were quiet)\n")
}

/// The facts.
pub(crate) fn facts(facts: &[Fact]) -> String {
    let mut table = plain();
    for fact in facts {
        table.add_row([fact.name.clone(), fact.value.to_string(), fact.unit.to_owned()]);
    }
    format!("installed\n{table}\n")
}

/// The goals, each with its figure.
pub(crate) fn goals(verdicts: &[Verdict]) -> String {
    let mut table = plain();
    table.set_header(["goal", "figure", "95 %", "met", "bound beside it"]);
    for verdict in verdicts {
        table.add_row([
            verdict.text.to_owned(),
            format!("{:.2}", verdict.figure.median),
            interval(&verdict.figure),
            verdict.word().to_owned(),
            verdict.bound.clone(),
        ]);
    }
    right(&mut table, 1);
    format!("goals\n{table}\n")
}

/// A figure in the unit's own scale.
pub(crate) fn figure(unit: Unit, value: f64) -> String {
    match unit {
        Unit::Packets => format!("{:.3}", value / 1e6),
        Unit::Bits => format!("{:.2}", value / 1e9),
        Unit::Flows | Unit::Requests => format!("{:.1}", value / 1e3),
        Unit::Nanoseconds => format!("{value:.1}"),
        Unit::Milliseconds => format!("{value:.2}"),
    }
}

impl Unit {
    /// What a figure turned upside down is in nanoseconds; empty where it says nothing.
    fn cost(self) -> &'static str {
        match self {
            Self::Packets => "ns a packet",
            Self::Flows => "ns a flow",
            Self::Requests => "ns a request",
            Self::Bits | Self::Nanoseconds | Self::Milliseconds => "",
        }
    }
}

fn interval(estimate: &Estimate) -> String {
    format!("{:.2} … {:.2}", estimate.low, estimate.high)
}

fn plain() -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING);
    table
}

fn right(table: &mut Table, from: usize) {
    for column in table.column_iter_mut().skip(from) {
        column.set_cell_alignment(CellAlignment::Right);
    }
}
