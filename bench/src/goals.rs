//! What Causeway is to reach, and whether it did in this run. I, the incumbent, is the better of the two bridges.

use serde::Serialize;

use crate::{
    peer::{Kind, Peer},
    rounds::Outcome,
    stats::Estimate,
};

/// A goal with the figure of this run.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Verdict {
    /// The goal.
    pub(crate) text: &'static str,
    /// What was measured.
    pub(crate) figure: Estimate,
    /// The goal's threshold.
    threshold: f64,
    at_most: bool,
    /// What the machine allows, measured in the same rounds.
    pub(crate) bound: String,
}

impl Verdict {
    /// Whether the median meets the goal, and whether the interval leaves no doubt.
    pub(crate) fn word(&self) -> &'static str {
        let Estimate { median, low, high } = self.figure;
        let (reached, surely) = if self.at_most {
            (median <= self.threshold, high <= self.threshold)
        } else {
            (median >= self.threshold, low >= self.threshold)
        };
        match (reached, surely) {
            (_, true) => "yes",
            (true, false) => "just",
            (false, _) => "no",
        }
    }
}

struct Goal {
    text: &'static str,
    measure: &'static str,
    /// Whom Causeway is compared with; `None` for the best incumbent.
    against: Option<Peer>,
    at_least: f64,
    bound: Option<Peer>,
}

const RATIOS: &[Goal] = &[
    Goal {
        text: "SNAT egress ≥ 2.7 × I",
        measure: "snat",
        against: None,
        at_least: 2.7,
        bound: Some(Peer::BlindTc),
    },
    Goal {
        text: "SNAT egress ≥ 0.95 × blind tc redirect",
        measure: "snat",
        against: Some(Peer::BlindTc),
        at_least: 0.95,
        bound: None,
    },
    Goal {
        text: "SNAT egress ≥ 1.2 × routed veth without NAT",
        measure: "snat",
        against: Some(Peer::Routed),
        at_least: 1.2,
        bound: Some(Peer::BlindTc),
    },
    Goal {
        text: "reverse SNAT ≥ 2.7 × I",
        measure: "reverse",
        against: None,
        at_least: 2.7,
        bound: Some(Peer::BlindTc),
    },
    Goal {
        text: "reverse SNAT ≥ 0.95 × blind redirect_peer",
        measure: "reverse",
        against: Some(Peer::BlindTc),
        at_least: 0.95,
        bound: None,
    },
    Goal {
        text: "pod to pod ≥ 2.6 × bridge",
        measure: "pod-to-pod",
        against: Some(Peer::Bridge),
        at_least: 2.6,
        bound: Some(Peer::BlindTc),
    },
    Goal {
        text: "pod to pod ≥ 0.95 × blind redirect_peer",
        measure: "pod-to-pod",
        against: Some(Peer::BlindTc),
        at_least: 0.95,
        bound: None,
    },
];

/// The goals that the outcomes say something about.
pub(crate) fn judge(outcomes: &[Outcome]) -> Vec<Verdict> {
    RATIOS.iter().filter_map(|goal| goal.judge(outcomes)).collect()
}

impl Goal {
    fn judge(&self, outcomes: &[Outcome]) -> Option<Verdict> {
        let outcome = outcomes.iter().find(|outcome| outcome.name == self.measure)?;
        let ours = Peer::Causeway.name();
        let other = match self.against {
            Some(peer) => peer.name(),
            None => incumbent(outcome)?,
        };
        let bound = self.bound.and_then(|bound| {
            let ratio = outcome.ratio(bound.name(), other)?;
            Some(format!("{} {:.2} ×", bound.name(), ratio.median))
        });
        Some(Verdict {
            text: self.text,
            figure: outcome.ratio(ours, other)?,
            threshold: self.at_least,
            at_most: false,
            bound: bound.unwrap_or_default(),
        })
    }
}

/// The better of the incumbents.
fn incumbent(outcome: &Outcome) -> Option<&'static str> {
    let incumbents = Peer::ALL
        .into_iter()
        .filter(|peer| peer.kind() == Kind::Incumbent);
    let names: Vec<&'static str> = incumbents.map(Peer::name).collect();
    outcome.best(&names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rounds::{Series, Unit};

    fn outcome(figures: &[(&str, f64)]) -> Outcome {
        let series = figures.iter().map(|(label, value)| Series {
            label: (*label).to_owned(),
            samples: vec![*value; 5],
        });
        Outcome {
            name: "snat",
            title: "",
            unit: Unit::Packets,
            series: series.collect(),
            rounds: 5,
            kept: 5,
        }
    }

    #[test]
    fn the_incumbent_is_the_better_of_the_two() {
        let outcome = outcome(&[
            ("causeway", 2.7),
            ("bridge-nft", 1.0),
            ("bridge-legacy", 0.9),
            ("blind-tc", 2.8),
        ]);
        let verdicts = judge(&[outcome]);
        let first = &verdicts[0];
        assert!((first.figure.median - 2.7).abs() < 1e-9);
        assert_eq!((first.word(), first.bound.as_str()), ("yes", "blind-tc 2.80 ×"));
    }

    #[test]
    fn a_goal_that_the_interval_does_not_clear_is_just_met() {
        let verdict = |median, low| Verdict {
            text: "",
            figure: Estimate {
                median,
                low,
                high: 9.0,
            },
            threshold: 2.7,
            at_most: false,
            bound: String::new(),
        };
        assert_eq!(verdict(2.8, 2.75).word(), "yes");
        assert_eq!(verdict(2.8, 2.6).word(), "just");
        assert_eq!(verdict(2.6, 2.5).word(), "no");
    }

    #[test]
    fn goals_without_a_figure_are_left_out() {
        assert!(judge(&[]).is_empty());
        assert!(judge(&[outcome(&[("causeway", 1.0)])]).is_empty());
    }

    #[test]
    fn every_goal_names_a_measure() {
        for goal in RATIOS {
            assert!(
                crate::measure::ALL
                    .iter()
                    .any(|measure| measure.name == goal.measure),
                "{}",
                goal.text
            );
        }
    }
}
