//! Pods that come and go.

use anyhow::Result;

use super::{Hall, Measure};
use crate::{
    lanes::plugins::{Call, LoadLane, PluginLane, Plugins},
    peer::Kind,
    rounds::{Lane, Outcome, Unit, run},
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

fn calls(measure: &Measure, hall: &Hall, call: Call) -> Result<Outcome> {
    let ours = hall.stands(|peer| peer.kind() == Kind::Ours);
    let plugins = ours.map(Plugins::Causeway).chain(Plugins::reference()?);
    let lanes = plugins.map(|plugins| Box::new(PluginLane::new(plugins, call)) as Box<dyn Lane>);
    run(
        (measure.name, measure.title, Unit::Milliseconds),
        lanes.collect(),
        &hall.plan,
    )
}
