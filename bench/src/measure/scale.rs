//! What a packet costs when there is more of something.

use anyhow::Result;

use super::{Hall, Measure};
use crate::{
    generator::{Frames, SMALLEST},
    lanes::frames::{FrameLane, Load, OUTSIDE, Way},
    peer::Peer,
    rounds::{Lane, Outcome, Unit, run},
};

/// Numbers of flows, and how many pods share them: a pod may be allowed no more than 65,536.
const FLOWS: [(u32, usize, &str); 3] = [(1 << 10, 1, "1k"), (1 << 14, 1, "16k"), (1 << 17, 4, "128k")];

pub(super) fn flows(measure: &Measure, hall: &Hall) -> Result<Outcome> {
    let wanted = |peer| {
        matches!(
            peer,
            Peer::Causeway
                | Peer::OtherBuild
                | Peer::BridgeNft
                | Peer::BridgeLegacy
                | Peer::Model
                | Peer::BlindTc
        )
    };
    let mut lanes: Vec<Box<dyn Lane + '_>> = Vec::new();
    for stand in hall.stands(wanted) {
        let way = Way::Out(OUTSIDE);
        let load = |(flows, pods, _): &(u32, usize, &str)| Load {
            pods: *pods,
            flows: *flows,
            frames: Frames::Of(SMALLEST),
        };
        let label = |(_, _, name): &(u32, usize, &str)| format!("{} {name}", stand.peer.name());
        let first = FrameLane::new(stand, way, load(&FLOWS[0]), &hall.plan)?.named(label(&FLOWS[0]));
        // One flow or a million are the same to what does not look.
        let others = if stand.peer == Peer::BlindTc {
            &[]
        } else {
            &FLOWS[1..]
        };
        let others = others
            .iter()
            .map(|one| first.beside(stand, way, load(one), label(one)));
        let others = others.collect::<Result<Vec<_>>>()?;
        lanes.push(Box::new(first));
        for other in others {
            lanes.push(Box::new(other));
        }
    }
    run((measure.name, measure.title, Unit::Packets), lanes, &hall.plan)
}
