//! What Causeway is to reach, and whether it did in this run. I, the incumbent, is the better of the two bridges.

use serde::Serialize;

use crate::{
    facts::{self, Fact},
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

/// How many times as good one lane of a measure is as another.
struct Goal {
    text: &'static str,
    measure: &'static str,
    ours: &'static str,
    other: Other,
    threshold: f64,
    at_most: bool,
    /// A lane whose ratio to the other one is shown beside.
    bound: Option<&'static str>,
}

/// With what is compared.
#[derive(Clone, Copy)]
enum Other {
    Lane(&'static str),
    /// The better of the incumbents' lanes whose names end so.
    Incumbent(&'static str),
}

const fn at_least(
    text: &'static str,
    (measure, ours): (&'static str, &'static str),
    other: Other,
    threshold: f64,
    bound: Option<&'static str>,
) -> Goal {
    Goal {
        text,
        measure,
        ours,
        other,
        threshold,
        at_most: false,
        bound,
    }
}

const fn at_most(
    text: &'static str,
    (measure, ours): (&'static str, &'static str),
    other: &'static str,
    threshold: f64,
) -> Goal {
    Goal {
        text,
        measure,
        ours,
        other: Other::Lane(other),
        threshold,
        at_most: true,
        bound: None,
    }
}

const CAUSEWAY: &str = "causeway";
const OF_IPV6: &str = "causeway, IPv6";
const OF_IPV4: Other = Other::Lane("causeway, IPv4");
const I: Other = Other::Incumbent("");
const ROUTED: Other = Other::Lane("routed");
const BLIND: Other = Other::Lane("blind-tc");
const BESIDE: Option<&str> = Some("blind-tc");
const WIRE: Option<&str> = Some("direct-veth");

const GOALS: &[Goal] = &[
    at_least("SNAT egress ≥ 2.7 × I", ("snat", CAUSEWAY), I, 2.7, BESIDE),
    at_least(
        "SNAT egress ≥ 0.95 × blind tc redirect",
        ("snat", CAUSEWAY),
        BLIND,
        0.95,
        None,
    ),
    at_least(
        "SNAT egress ≥ 1.2 × routed veth without NAT",
        ("snat", CAUSEWAY),
        ROUTED,
        1.2,
        BESIDE,
    ),
    at_least("reverse SNAT ≥ 2.7 × I", ("reverse", CAUSEWAY), I, 2.7, BESIDE),
    at_least(
        "reverse SNAT ≥ 0.95 × blind redirect_peer",
        ("reverse", CAUSEWAY),
        BLIND,
        0.95,
        None,
    ),
    at_least(
        "reverse SNAT, XDP on the uplink ≥ 5 × I",
        ("reverse-xdp", "causeway-xdp"),
        I,
        5.0,
        Some("blind-xdp"),
    ),
    at_least(
        "pod to pod ≥ 2.6 × bridge",
        ("pod-to-pod", CAUSEWAY),
        Other::Lane("bridge"),
        2.6,
        BESIDE,
    ),
    at_least(
        "pod to pod ≥ 0.95 × blind redirect_peer",
        ("pod-to-pod", CAUSEWAY),
        BLIND,
        0.95,
        None,
    ),
    at_least(
        "kernel flows (ClusterIP) no slower than I",
        ("kernel-flows", CAUSEWAY),
        I,
        1.0,
        None,
    ),
    at_least(
        "new flows ≥ 1.3 × I",
        ("new-flows", CAUSEWAY),
        I,
        1.3,
        Some("routed"),
    ),
    at_most(
        "99 % of ports in use: ≤ 1.3 × the time of a new flow",
        ("ports", "causeway 0 %"),
        "causeway 99 %",
        1.3,
    ),
    at_most(
        "1k → 512k flows: ≤ 1.5 × the time of a packet",
        ("flows", "causeway 1k"),
        "causeway 512k",
        1.5,
    ),
    at_least(
        "16k flows ≥ 2.7 × I",
        ("flows", "causeway 16k"),
        Other::Incumbent(" 16k"),
        2.7,
        None,
    ),
    at_least(
        "128k flows ≥ 2.7 × I",
        ("flows", "causeway 128k"),
        Other::Incumbent(" 128k"),
        2.7,
        None,
    ),
    at_least(
        "512k flows ≥ 2.7 × I",
        ("flows", "causeway 512k"),
        Other::Incumbent(" 512k"),
        2.7,
        None,
    ),
    at_most(
        "10,000 excluded ranges: ≤ 1.03 × the time",
        ("ranges", "2 ranges"),
        "10,000 ranges",
        1.03,
    ),
    at_most("249 pods: ≤ 1.03 × the time", ("pods", "1 pod"), "249 pods", 1.03),
    at_least(
        "2 CPUs ≥ 1.9 × 1 CPU",
        ("cpus", "causeway, 2 CPUs"),
        Other::Lane("causeway, 1 CPU"),
        1.9,
        None,
    ),
    at_least(
        "TCP stream with GSO ≥ 0.98 × routed",
        ("stream", CAUSEWAY),
        ROUTED,
        0.98,
        WIRE,
    ),
    at_least(
        "TCP request and response ≥ 0.95 × routed",
        ("rr-tcp", CAUSEWAY),
        ROUTED,
        0.95,
        WIRE,
    ),
    at_least(
        "TCP connect, request, response ≥ 0.95 × routed",
        ("crr", CAUSEWAY),
        ROUTED,
        0.95,
        WIRE,
    ),
    at_least(
        "pod to pod of IPv6 ≥ 0.9 × of IPv4",
        ("ipv6-pod-to-pod", OF_IPV6),
        OF_IPV4,
        0.9,
        None,
    ),
    at_least(
        "pod to VNet of IPv6 ≥ 0.9 × of IPv4",
        ("ipv6-pod-to-vnet", OF_IPV6),
        OF_IPV4,
        0.9,
        None,
    ),
    at_least(
        "VNet to pod of IPv6 ≥ 0.9 × of IPv4",
        ("ipv6-vnet-to-pod", OF_IPV6),
        OF_IPV4,
        0.9,
        None,
    ),
    at_least(
        "TCP request and response of IPv6 ≥ 0.9 × of IPv4",
        ("ipv6-rr-tcp", OF_IPV6),
        OF_IPV4,
        0.9,
        None,
    ),
    at_least(
        "TCP stream with GSO of IPv6 ≥ 0.9 × of IPv4",
        ("ipv6-stream", OF_IPV6),
        OF_IPV4,
        0.9,
        None,
    ),
];

/// The goals that the outcomes and facts say something about.
pub(crate) fn judge(outcomes: &[Outcome], facts: &[Fact]) -> Vec<Verdict> {
    let counted = outcomes.iter().flat_map(|outcome| &outcome.facts);
    let facts: Vec<&Fact> = facts.iter().chain(counted).collect();
    let fact = |text, name, threshold| {
        let fact = facts.iter().find(|fact| fact.name == name)?;
        Some(Verdict::at_most(
            text,
            Estimate::exactly(fact.value.into()),
            threshold,
        ))
    };
    let load = outcomes.iter().find(|outcome| outcome.name == "load");
    let load = load.and_then(|outcome| outcome.estimate(CAUSEWAY));
    let others = [
        fact("a flow ≤ 160 bytes, both directions", facts::FLOW, 160.0),
        fact(
            "programs ≤ 20,000 verified instructions each",
            facts::VERIFIED,
            20_000.0,
        ),
        fact(
            "programs of IPv6 ≤ 20,000 verified instructions each",
            facts::VERIFIED_V6,
            20_000.0,
        ),
        fact(
            "packets lost by an exchange of the programs: 0",
            "IPv4, programs exchanged, lost",
            0.0,
        ),
        fact(
            "packets of IPv6 lost by an exchange of the programs: 0",
            "IPv6, programs exchanged, lost",
            0.0,
        ),
        fact(
            "packets lost by a reload of the ranges: 0",
            "IPv4, ranges reloaded, lost",
            0.0,
        ),
        fact(
            "packets lost by a sweep that forgets nothing: 0",
            "swept, nothing is over, lost",
            0.0,
        ),
        fact(
            "packets lost by a sweep that forgets all other flows: 0",
            "swept, all but the measured flows are over, lost",
            0.0,
        ),
        load.map(|load| Verdict::at_most("load, verify and attach ≤ 100 ms", load, 100.0)),
    ];
    let ratios = GOALS.iter().filter_map(|goal| goal.judge(outcomes));
    ratios.chain(others.into_iter().flatten()).collect()
}

impl Verdict {
    fn at_most(text: &'static str, figure: Estimate, threshold: f64) -> Self {
        Self {
            text,
            figure,
            threshold,
            at_most: true,
            bound: String::new(),
        }
    }
}

impl Goal {
    fn judge(&self, outcomes: &[Outcome]) -> Option<Verdict> {
        let outcome = outcomes.iter().find(|outcome| outcome.name == self.measure)?;
        let other = match self.other {
            Other::Lane(lane) => lane.to_owned(),
            Other::Incumbent(suffix) => incumbent(outcome, suffix)?,
        };
        let bound = self.bound.and_then(|bound| {
            let ratio = outcome.ratio(bound, &other)?;
            Some(format!("{bound} {:.2} ×", ratio.median))
        });
        Some(Verdict {
            text: self.text,
            figure: outcome.ratio(self.ours, &other)?,
            threshold: self.threshold,
            at_most: self.at_most,
            bound: bound.unwrap_or_default(),
        })
    }
}

/// The better of the incumbents.
fn incumbent(outcome: &Outcome, suffix: &str) -> Option<String> {
    let incumbents = Peer::ALL
        .into_iter()
        .filter(|peer| peer.kind() == Kind::Incumbent);
    let names: Vec<String> = incumbents
        .map(|peer| format!("{}{suffix}", peer.name()))
        .collect();
    let labels: Vec<&str> = names.iter().map(String::as_str).collect();
    outcome.best(&labels).map(str::to_owned)
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
            notes: Vec::new(),
            facts: Vec::new(),
        }
    }

    #[test]
    fn the_incumbent_is_the_better_of_the_two() {
        let figures = [
            ("causeway", 2.7),
            ("bridge-nft", 1.0),
            ("bridge-legacy", 0.9),
            ("blind-tc", 2.8),
        ];
        let verdicts = judge(&[outcome(&figures)], &[]);
        let first = &verdicts[0];
        assert!((first.figure.median - 2.7).abs() < 1e-9);
        assert_eq!((first.word(), first.bound.as_str()), ("yes", "blind-tc 2.80 ×"));
    }

    #[test]
    fn a_goal_that_the_interval_does_not_clear_is_just_met() {
        let verdict = |median, low, high, at_most| {
            Verdict {
                at_most,
                ..Verdict::at_most("", Estimate { median, low, high }, 2.7)
            }
            .word()
        };
        assert_eq!(verdict(2.8, 2.75, 9.0, false), "yes");
        assert_eq!(verdict(2.8, 2.6, 9.0, false), "just");
        assert_eq!(verdict(2.6, 2.5, 9.0, false), "no");
        assert_eq!(verdict(2.6, 2.5, 2.65, true), "yes");
        assert_eq!(verdict(2.6, 2.5, 9.0, true), "just");
    }

    #[test]
    fn goals_without_a_figure_are_left_out() {
        assert!(judge(&[], &[]).is_empty());
        assert!(judge(&[outcome(&[("causeway", 1.0)])], &[]).is_empty());
    }

    #[test]
    fn every_goal_names_a_measure_that_the_short_form_takes() {
        for goal in GOALS {
            let measure = crate::measure::ALL
                .iter()
                .find(|measure| measure.name == goal.measure);
            assert!(measure.is_some_and(|measure| measure.quick), "{}", goal.text);
        }
    }
}
