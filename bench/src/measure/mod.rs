//! The measures, by name.

mod paths;
mod programs;
mod scale;

use anyhow::Result;

use crate::{
    peer::Peer,
    rounds::{Outcome, Plan},
    stand::Stand,
};

/// What a measure works with.
#[derive(Debug)]
pub(crate) struct Hall {
    /// The peers, built side by side, with four pods each.
    pub(crate) stands: Vec<Stand>,
    /// How long and how often.
    pub(crate) plan: Plan,
}

/// A measure.
#[derive(Clone, Copy)]
pub(crate) struct Measure {
    /// Its name on the command line; also the name of its outcome.
    pub(crate) name: &'static str,
    /// What is measured, in a sentence.
    pub(crate) title: &'static str,
    /// Whether `--quick` runs it.
    pub(crate) quick: bool,
    run: fn(&Self, &Hall) -> Result<Outcome>,
}

/// All of them, in the order in which they run.
pub(crate) const ALL: &[Measure] = &[
    Measure {
        name: "snat",
        title: "SNAT egress: 60-byte UDP frames, 1024 flows, pod to internet, one CPU",
        quick: true,
        run: paths::snat,
    },
    Measure {
        name: "reverse",
        title: "answers to translated flows: 60-byte UDP frames, 1024 flows, internet to pod, one CPU",
        quick: true,
        run: paths::reverse,
    },
    Measure {
        name: "pod-to-pod",
        title: "pod to pod on one node: 60-byte UDP frames, 1024 flows, one CPU",
        quick: true,
        run: paths::pod_to_pod,
    },
    Measure {
        name: "pod-to-vnet",
        title: "pod to an excluded range: 60-byte UDP frames, 1024 flows, one CPU",
        quick: false,
        run: paths::pod_to_vnet,
    },
    Measure {
        name: "snat-imix",
        title: "SNAT egress: the simple Internet mix of frame lengths, 1024 flows, one CPU",
        quick: false,
        run: paths::snat_imix,
    },
    Measure {
        name: "flows",
        title: "SNAT egress with more and more flows: 60-byte UDP frames at random among them, one CPU",
        quick: true,
        run: scale::flows,
    },
    Measure {
        name: "programs",
        title: "the installed programs alone, in BPF, 60-byte UDP frames; 32k translated flows in the table",
        quick: true,
        run: programs::nanoseconds,
    },
];

impl Measure {
    /// Measures.
    pub(crate) fn run(&self, hall: &Hall) -> Result<Outcome> {
        (self.run)(self, hall)
    }
}

impl Hall {
    /// The peers that a measure is about.
    pub(crate) fn stands(&self, wanted: impl Fn(Peer) -> bool) -> impl Iterator<Item = &Stand> {
        self.stands.iter().filter(move |stand| wanted(stand.peer))
    }
}
