//! Established flows on every way through a node.

use anyhow::Result;

use super::{Hall, Measure};
use crate::{
    generator::Frames,
    lanes::frames::{FrameLane, Load, OUTSIDE, VNET, Way},
    peer::Peer,
    rounds::{Lane, Outcome, Unit, run},
};

pub(super) fn snat(measure: &Measure, hall: &Hall) -> Result<Outcome> {
    way(measure, hall, Way::Out(OUTSIDE), Load::PLAIN, |_| true)
}

pub(super) fn reverse(measure: &Measure, hall: &Hall) -> Result<Outcome> {
    way(measure, hall, Way::Back, Load::PLAIN, |_| true)
}

pub(super) fn pod_to_pod(measure: &Measure, hall: &Hall) -> Result<Outcome> {
    way(measure, hall, Way::Across, Load::PLAIN, |peer| {
        !matches!(peer, Peer::Model | Peer::DirectVeth)
    })
}

pub(super) fn pod_to_vnet(measure: &Measure, hall: &Hall) -> Result<Outcome> {
    way(measure, hall, Way::Out(VNET), Load::PLAIN, |peer| {
        peer != Peer::Model
    })
}

pub(super) fn snat_imix(measure: &Measure, hall: &Hall) -> Result<Outcome> {
    let load = Load {
        frames: Frames::Mix,
        ..Load::PLAIN
    };
    way(measure, hall, Way::Out(OUTSIDE), load, |_| true)
}

fn way(
    measure: &Measure,
    hall: &Hall,
    way: Way,
    load: Load,
    wanted: impl Fn(Peer) -> bool,
) -> Result<Outcome> {
    let lanes: Vec<Box<dyn Lane + '_>> = hall
        .stands(wanted)
        .map(|stand| Ok(Box::new(FrameLane::new(stand, way, load, &hall.plan)?) as Box<dyn Lane>))
        .collect::<Result<_>>()?;
    run((measure.name, measure.title, Unit::Packets), lanes, &hall.plan)
}
