//! What a packet costs when there is more of something.

use std::fs;

use anyhow::{Context as _, Result};

use super::{Hall, Measure};
use crate::{
    lanes::{
        frames::FrameLane,
        opening::OpeningLane,
        way::{Load, Way},
    },
    peer::Peer,
    ranges,
    rounds::{Lane, Outcome, Unit, run},
    stand::Stand,
};

/// Numbers of flows, and how many pods share them: a pod is allowed no more than 65,536.
const FLOWS: [(u32, usize, &str); 4] = [
    (1 << 10, 1, "1k"),
    (1 << 14, 1, "16k"),
    (1 << 17, 4, "128k"),
    (1 << 19, 16, "512k"),
];
/// Flows that the tables are made for then: room for what has not expired of one step and for the next.
const MAX_FLOWS: u32 = 1 << 20;
/// As many pods as AKS allows on a node, less one.
const PODS: u8 = 249;

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
    let _many = ManyConnections::allow(MAX_FLOWS)?;
    let pods = FLOWS.iter().map(|(_, pods, _)| *pods as u8).max();
    let stands = hall.fresh_for(MAX_FLOWS, pods.unwrap_or(1), wanted)?;
    let mut lanes: Vec<Box<dyn Lane + '_>> = Vec::new();
    for stand in &stands {
        let way = Way::Out;
        let load = |(flows, pods, _): &(u32, usize, &str)| Load {
            pods: *pods,
            flows: *flows,
            ..Load::PLAIN
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

/// The kernel's limit of connections, which holds for every namespace: raised as long as this lives.
struct ManyConnections {
    before: Option<String>,
}

impl ManyConnections {
    const PATH: &str = "/proc/sys/net/netfilter/nf_conntrack_max";

    fn allow(connections: u32) -> Result<Self> {
        let text = fs::read_to_string(Self::PATH).with_context(|| format!("cannot read {}", Self::PATH))?;
        let most: u32 = text
            .trim()
            .parse()
            .with_context(|| format!("{}: {text}", Self::PATH))?;
        if most == 0 || most >= connections {
            return Ok(Self { before: None });
        }
        fs::write(Self::PATH, connections.to_string())
            .with_context(|| format!("cannot change {}", Self::PATH))?;
        Ok(Self { before: Some(text) })
    }
}

impl Drop for ManyConnections {
    fn drop(&mut self) {
        if let Some(before) = &self.before
            && let Err(error) = fs::write(Self::PATH, before)
        {
            eprintln!("{} stays raised: {error}", Self::PATH);
        }
    }
}

pub(super) fn ranges(measure: &Measure, hall: &Hall) -> Result<Outcome> {
    let [few, many] = few_and_many_ranges(hall)?;
    established(measure, hall, [(&few, "2 ranges"), (&many, "10,000 ranges")])
}

pub(super) fn first_packets_and_ranges(measure: &Measure, hall: &Hall) -> Result<Outcome> {
    let [few, many] = few_and_many_ranges(hall)?;
    let lanes: Vec<Box<dyn Lane + '_>> = [(&few, "2 ranges"), (&many, "10,000 ranges")]
        .into_iter()
        .map(|(stand, label)| {
            let lane = OpeningLane::new(stand, &hall.plan)?.named(label.to_owned());
            Ok(Box::new(lane) as Box<dyn Lane>)
        })
        .collect::<Result<_>>()?;
    run((measure.name, measure.title, Unit::Flows), lanes, &hall.plan)
}

pub(super) fn pods(measure: &Measure, hall: &Hall) -> Result<Outcome> {
    let one = Stand::build(Peer::Causeway, 1, &hall.build)?;
    let many = Stand::build(Peer::Causeway, PODS, &hall.build)?;
    established(measure, hall, [(&one, "1 pod"), (&many, "249 pods")])
}

/// Established flows of two Causeway nodes.
fn established(measure: &Measure, hall: &Hall, stands: [(&Stand, &str); 2]) -> Result<Outcome> {
    let lanes: Vec<Box<dyn Lane + '_>> = stands
        .into_iter()
        .map(|(stand, label)| {
            let lane = FrameLane::new(stand, Way::Out, Load::PLAIN, &hall.plan)?;
            Ok(Box::new(lane.named(label.to_owned())) as Box<dyn Lane>)
        })
        .collect::<Result<_>>()?;
    run((measure.name, measure.title, Unit::Packets), lanes, &hall.plan)
}

fn few_and_many_ranges(hall: &Hall) -> Result<[Stand; 2]> {
    let [few, many] = [
        Stand::build(Peer::Causeway, 1, &hall.build)?,
        Stand::build(Peer::Causeway, 1, &hall.build)?,
    ];
    ranges::exclude(&many, ranges::MANY)?;
    Ok([few, many])
}
