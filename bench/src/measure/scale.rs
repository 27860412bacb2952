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
const FLOWS: [(u32, usize, &str); 5] = [
    (1 << 10, 1, "1k"),
    (1 << 14, 1, "16k"),
    (1 << 17, 4, "128k"),
    (1 << 19, 16, "512k"),
    (1 << 20, 32, "1M"),
];
/// Flows that the tables are made for then: room for what has not expired of one step and for the next.
const MAX_FLOWS: u32 = 1 << 21;
/// The kernel's limit of connections; 0 for none.
const MOST_CONNECTIONS: &str = "/proc/sys/net/netfilter/nf_conntrack_max";
/// How many neighbours are kept whatever becomes of them, and as many as AKS's nodes keep.
const NEIGHBOURS_KEPT: &str = "/proc/sys/net/ipv4/neigh/default/gc_thresh1";
const NEIGHBOURS: u32 = 4096;
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
    let _connections = Raised::to(MAX_FLOWS, MOST_CONNECTIONS)?;
    // With more neighbours than this those that are not heard of for a minute are forgotten, and the model is the one that
    // does not ask for them.
    let _neighbours = Raised::to(NEIGHBOURS, NEIGHBOURS_KEPT)?;
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

/// A limit of the kernel's that holds for every namespace: raised as long as this lives.
struct Raised {
    path: &'static str,
    before: Option<String>,
}

impl Raised {
    /// To `value`, unless it is as high already.
    fn to(value: u32, path: &'static str) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
        let limit: u32 = text.trim().parse().with_context(|| format!("{path}: {text}"))?;
        let is_enough = limit >= value || limit == 0 && path == MOST_CONNECTIONS;
        if !is_enough {
            fs::write(path, value.to_string()).with_context(|| format!("cannot change {path}"))?;
        }
        let before = (!is_enough).then_some(text);
        Ok(Self { path, before })
    }
}

impl Drop for Raised {
    fn drop(&mut self) {
        if let Some(before) = &self.before
            && let Err(error) = fs::write(self.path, before)
        {
            eprintln!("{} stays raised: {error}", self.path);
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
