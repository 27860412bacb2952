//! Blocks in turn: A B C, C B A, and so on, so that neighbouring blocks meet the same noise. A canary before each round
//! tells the rounds in which the machine was not ours.

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use serde::Serialize;

use crate::{
    cpu,
    facts::Fact,
    stats::{Estimate, median},
};

/// Something that can be measured again and again.
pub(crate) trait Lane {
    /// The name in tables and results, unique in its measure.
    fn label(&self) -> String;
    /// Brings the lane to the state in which it is measured, and finds out how much makes a block.
    fn warm_up(&mut self) -> Result<()>;
    /// What is to be said beside the figures, at the end.
    fn note(&self) -> Option<String> {
        None
    }
    /// What it counted over all blocks.
    fn facts(&self) -> Vec<Fact> {
        Vec::new()
    }
    /// One block: how much was done in a second, or what it cost; the measure's unit says which.
    fn block(&mut self) -> Result<f64>;
}

/// How long, and how often.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    /// Length of a block.
    pub(crate) block: Duration,
    /// Rounds, each with a block of every lane.
    pub(crate) rounds: usize,
    /// CPU of whatever is measured on one, by its number among those allowed.
    pub(crate) cpu: usize,
}

impl Plan {
    /// How many packets make a block at a rate.
    pub(crate) fn packets(&self, a_second: f64) -> u32 {
        let wanted = a_second * self.block.as_secs_f64();
        #[expect(clippy::cast_sign_loss, reason = "a positive number of packets")]
        let wanted = wanted.clamp(1e3, 1e7) as u32;
        wanted
    }
}

/// What the figures of a measure are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Unit {
    /// Packets a second.
    Packets,
    /// Flows opened a second.
    Flows,
    /// Requests, or connections with one request each, a second.
    Requests,
    /// Bits of payload a second.
    Bits,
    /// Nanoseconds: less is better.
    Nanoseconds,
    /// Milliseconds: less is better.
    Milliseconds,
}

/// What a measure found.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Outcome {
    /// Its name.
    pub(crate) name: &'static str,
    /// What was measured, in a sentence.
    pub(crate) title: &'static str,
    /// Of the samples.
    pub(crate) unit: Unit,
    /// One a lane.
    pub(crate) series: Vec<Series>,
    /// Rounds that were run.
    pub(crate) rounds: usize,
    /// Rounds that count: the canary was not slowed down.
    pub(crate) kept: usize,
    /// What the lanes say beside their figures.
    pub(crate) notes: Vec<String>,
    /// What the lanes counted, over all rounds.
    pub(crate) facts: Vec<Fact>,
}

/// The samples of a lane; those of one round have one index in all of a measure's series.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Series {
    /// The lane.
    pub(crate) label: String,
    /// By round.
    pub(crate) samples: Vec<f64>,
}

/// A round counts if its canary took at most this much longer than the fastest.
const TOLERANCE: f64 = 1.05;

/// Runs all lanes in turn.
pub(crate) fn run(
    (name, title, unit): (&'static str, &'static str, Unit),
    mut lanes: Vec<Box<dyn Lane + '_>>,
    plan: &Plan,
) -> Result<Outcome> {
    eprintln!("{name}: {} lanes, {} rounds", lanes.len(), plan.rounds);
    for lane in &mut lanes {
        let label = lane.label();
        lane.warm_up()
            .with_context(|| format!("{name}, {label}: warm-up"))?;
    }
    let mut samples = vec![Vec::new(); lanes.len()];
    let mut canaries = Vec::new();
    for round in 0..plan.rounds {
        let mut order: Vec<usize> = (0..lanes.len()).collect();
        if round % 2 == 1 {
            order.reverse();
        }
        canaries.push(canary(plan.cpu)?);
        for index in order {
            let label = lanes[index].label();
            let sample = lanes[index].block().with_context(|| format!("{name}, {label}"))?;
            samples[index].push(sample);
        }
    }
    let quiet = quiet_rounds(&canaries);
    let series = lanes.iter().zip(samples).map(|(lane, samples)| Series {
        label: lane.label(),
        samples: quiet.iter().map(|&round| samples[round]).collect(),
    });
    Ok(Outcome {
        name,
        title,
        unit,
        series: series.collect(),
        rounds: plan.rounds,
        kept: quiet.len(),
        notes: lanes.iter().filter_map(|lane| lane.note()).collect(),
        facts: lanes.iter().flat_map(|lane| lane.facts()).collect(),
    })
}

impl Outcome {
    /// A lane's samples.
    pub(crate) fn samples(&self, label: &str) -> Option<&[f64]> {
        let series = self.series.iter().find(|series| series.label == label)?;
        Some(&series.samples)
    }

    /// A lane's median with its interval.
    pub(crate) fn estimate(&self, label: &str) -> Option<Estimate> {
        Estimate::of(self.samples(label)?)
    }

    /// How many times as good one lane is as another, by neighbouring blocks.
    pub(crate) fn ratio(&self, label: &str, other: &str) -> Option<Estimate> {
        let (ours, theirs) = (self.samples(label)?, self.samples(other)?);
        if self.unit.less_is_better() {
            Estimate::of_ratios(theirs, ours)
        } else {
            Estimate::of_ratios(ours, theirs)
        }
    }

    /// The best of some lanes by its median.
    pub(crate) fn best<'a>(&self, labels: &[&'a str]) -> Option<&'a str> {
        let sign = if self.unit.less_is_better() { -1.0 } else { 1.0 };
        let with_median = labels
            .iter()
            .filter_map(|&label| Some((label, sign * median(self.samples(label)?)?)));
        let best = with_median.max_by(|(_, one), (_, other)| one.total_cmp(other));
        best.map(|(label, _)| label)
    }
}

impl Unit {
    /// Whether the smaller figure wins.
    pub(crate) fn less_is_better(self) -> bool {
        matches!(self, Self::Nanoseconds | Self::Milliseconds)
    }
}

/// The rounds in which the canary was not slowed down; at least the better half of them.
fn quiet_rounds(canaries: &[f64]) -> Vec<usize> {
    let fastest = canaries.iter().copied().fold(f64::INFINITY, f64::min);
    let limit = (fastest * TOLERANCE).max(median(canaries).unwrap_or(fastest));
    (0..canaries.len())
        .filter(|&round| canaries[round] <= limit)
        .collect()
}

/// Seconds that a fixed piece of work took on the CPU of the measurement.
fn canary(cpu: usize) -> Result<f64> {
    let spin = || {
        cpu::alone_on(cpu, || {
            let start = Instant::now();
            let mut x = 1u64;
            for i in 0..400_000u64 {
                x = black_box(x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(i));
            }
            Ok(start.elapsed().as_secs_f64())
        })
    };
    std::thread::scope(|scope| match scope.spawn(spin).join() {
        Ok(took) => took,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Counting<'a>(&'static str, &'a std::cell::RefCell<Vec<&'static str>>);

    impl Lane for Counting<'_> {
        fn label(&self) -> String {
            self.0.to_owned()
        }
        fn warm_up(&mut self) -> Result<()> {
            Ok(())
        }
        fn block(&mut self) -> Result<f64> {
            self.1.borrow_mut().push(self.0);
            Ok(1.0)
        }
    }

    #[test]
    fn rounds_that_the_canary_found_slow_do_not_count() {
        assert_eq!(quiet_rounds(&[1.0, 1.02, 3.0, 1.01, 2.0]), [0, 1, 3]);
        // A machine that is never quiet: the better half.
        assert_eq!(quiet_rounds(&[1.0, 2.0, 3.0, 4.0, 5.0]), [0, 1, 2]);
    }

    /// Needs root: the canary runs at a real-time priority.
    #[test]
    fn lanes_take_turns_there_and_back() {
        let order = std::cell::RefCell::new(Vec::new());
        let lanes: Vec<Box<dyn Lane + '_>> =
            vec![Box::new(Counting("a", &order)), Box::new(Counting("b", &order))];
        let plan = Plan {
            block: Duration::ZERO,
            rounds: 2,
            cpu: 0,
        };
        run(("test", "", Unit::Packets), lanes, &plan).unwrap();
        assert_eq!(*order.borrow(), ["a", "b", "b", "a"]);
    }

    #[test]
    fn the_best_lane_is_the_highest_rate_and_the_lowest_cost() {
        let series = |label: &str, value| Series {
            label: label.to_owned(),
            samples: vec![value; 3],
        };
        let mut outcome = Outcome {
            name: "",
            title: "",
            unit: Unit::Packets,
            series: vec![series("a", 1.0), series("b", 2.0)],
            rounds: 3,
            kept: 3,
            notes: Vec::new(),
            facts: Vec::new(),
        };
        assert_eq!(outcome.best(&["a", "b"]), Some("b"));
        assert_eq!(outcome.ratio("b", "a"), Estimate::of(&[2.0]));
        outcome.unit = Unit::Nanoseconds;
        assert_eq!(outcome.best(&["a", "b"]), Some("a"));
        assert_eq!(outcome.ratio("a", "b"), Estimate::of(&[2.0]));
    }
}
