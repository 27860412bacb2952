//! First packets.

use anyhow::Result;

use super::{Hall, Measure};
use crate::{
    lanes::opening::OpeningLane,
    peer::{Kind, Peer},
    rounds::{Lane, Outcome, Unit, run},
};

pub(super) fn new_flows(measure: &Measure, hall: &Hall) -> Result<Outcome> {
    let wanted = |peer: Peer| peer.kind() != Kind::Bound && peer != Peer::Model;
    let stands = hall.fresh(1, wanted)?;
    let lanes: Vec<Box<dyn Lane + '_>> = stands
        .iter()
        .map(|stand| Ok(Box::new(OpeningLane::new(stand, &hall.plan)?) as Box<dyn Lane>))
        .collect::<Result<_>>()?;
    run((measure.name, measure.title, Unit::Flows), lanes, &hall.plan)
}

/// Ports in use, per cent.
const CROWDS: [u32; 3] = [0, 90, 99];

pub(super) fn ports(measure: &Measure, hall: &Hall) -> Result<Outcome> {
    let wanted = |peer: Peer| peer.kind() == Kind::Ours || peer == Peer::BridgeLegacy;
    let stands = hall.fresh(CROWDS.len() as u8, wanted)?;
    let mut lanes: Vec<Box<dyn Lane + '_>> = Vec::new();
    for stand in &stands {
        let empty = OpeningLane::new(stand, &hall.plan)?;
        for (percent, number) in CROWDS.into_iter().zip(0..) {
            lanes.push(Box::new(empty.crowded(percent, number)?));
        }
    }
    run((measure.name, measure.title, Unit::Flows), lanes, &hall.plan)
}
