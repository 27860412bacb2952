//! Pods that come and go.

use anyhow::Result;

use super::{Hall, Measure};
use crate::{
    lanes::{
        floor::FloorLane,
        full::{FullLane, Question},
        plugins::{Call, LoadLane, PluginLane, Plugins},
    },
    peer::{Kind, Peer},
    rounds::{Lane, Outcome, Plan, Unit, run},
};

pub(super) fn add(measure: &Measure, hall: &Hall) -> Result<Outcome> {
    calls(measure, hall, Call::Add)
}

pub(super) fn del(measure: &Measure, hall: &Hall) -> Result<Outcome> {
    calls(measure, hall, Call::Del)
}

pub(super) fn storm(measure: &Measure, hall: &Hall) -> Result<Outcome> {
    calls(measure, hall, Call::Storm(32))
}

pub(super) fn load(measure: &Measure, hall: &Hall) -> Result<Outcome> {
    let lanes = hall
        .stands(|peer| peer.kind() == Kind::Ours)
        .map(|stand| Box::new(LoadLane::new(stand, &hall.build)) as Box<dyn Lane>);
    run(
        (measure.name, measure.title, Unit::Milliseconds),
        lanes.collect(),
        &hall.plan,
    )
}

pub(super) fn full(measure: &Measure, hall: &Hall) -> Result<Outcome> {
    /// A round is five hundred calls.
    const ROUNDS: usize = 5;
    let mut lanes: Vec<Box<dyn Lane>> = Vec::new();
    // STATUS is asked of what is installed.
    for stand in hall.stands(|peer| peer == Peer::Causeway) {
        for question in [Question::Adds, Question::Dels, Question::Status] {
            lanes.push(Box::new(FullLane::new(stand, &hall.build, question)?));
        }
    }
    let plan = Plan {
        rounds: hall.plan.rounds.min(ROUNDS),
        ..hall.plan
    };
    run((measure.name, measure.title, Unit::Milliseconds), lanes, &plan)
}

fn calls(measure: &Measure, hall: &Hall, call: Call) -> Result<Outcome> {
    let stands = hall.fresh(1, |peer| peer.kind() == Kind::Ours)?;
    let plugins = stands.iter().map(Plugins::Causeway).chain(Plugins::reference()?);
    let lanes = plugins.map(|plugins| Box::new(PluginLane::new(plugins, call)) as Box<dyn Lane>);
    let mut lanes: Vec<_> = lanes.collect();
    if matches!(call, Call::Add | Call::Del) {
        lanes.push(Box::new(FloorLane::new(call)?));
        for stand in stands.iter().filter(|stand| stand.peer == Peer::Causeway) {
            lanes.push(Box::new(FloorLane::with_hooks(call, stand)?));
            lanes.push(Box::new(FloorLane::with_hooks(call, stand)?.expedited()));
        }
    }
    run(
        (measure.name, measure.title, Unit::Milliseconds),
        lanes,
        &hall.plan,
    )
}
