//! IPv6 beside IPv4: the same packets on the same node, with the same counter at their end.

use anyhow::Result;

use super::{Hall, Measure};
use crate::{
    facts,
    family::Family,
    generator::{Frames, SMALLEST_OF_BOTH, Stream},
    lanes::{
        frames::FrameLane,
        program::{ProgramLane, Says, any_of},
        sockets::{Job, SocketLane},
        way::{DISCARD, FIRST_PORT, Load, Way, stream},
    },
    peer::Peer,
    rounds::{Lane, Outcome, Unit, run},
    stand::Stand,
};

/// Who has both families: what is measured, what the kernel does, and what does not look at a packet.
const PEERS: [Peer; 3] = [Peer::Causeway, Peer::Routed, Peer::BlindTc];
/// What is measured comes first; of one peer they are neighbours.
const FAMILIES: [Family; 2] = [Family::V6, Family::V4];
/// One sends, one receives.
const PODS: u8 = 2;

pub(super) fn pod_to_pod(measure: &Measure, hall: &Hall) -> Result<Outcome> {
    frames(measure, hall, Way::Across)
}

pub(super) fn pod_to_vnet(measure: &Measure, hall: &Hall) -> Result<Outcome> {
    frames(measure, hall, Way::ToVnet)
}

pub(super) fn vnet_to_pod(measure: &Measure, hall: &Hall) -> Result<Outcome> {
    frames(measure, hall, Way::FromVnet)
}

pub(super) fn tcp_requests(measure: &Measure, hall: &Hall) -> Result<Outcome> {
    sockets(measure, hall, Job::TcpRequests, Unit::Requests)
}

pub(super) fn tcp_stream(measure: &Measure, hall: &Hall) -> Result<Outcome> {
    sockets(measure, hall, Job::Stream, Unit::Bits)
}

pub(super) fn programs(measure: &Measure, hall: &Hall) -> Result<Outcome> {
    let stand = Stand::dual_stack(Peer::Causeway, PODS)?;
    let node = stand.node()?;
    let host = node.host_interface(&stand.pods[0])?;
    let (from_pod, from_uplink) = (("cwy_from_pod", host.as_str()), ("cwy_from_uplink", "eth0"));
    let to_uplink = ("cwy_to_uplink", "eth0");
    let rows = [
        ("from pod, to pod", from_pod, Way::Across, Says::Redirect),
        ("from pod, to VNet", from_pod, Way::ToVnet, Says::Redirect),
        ("from uplink, to pod", from_uplink, Way::FromVnet, Says::Redirect),
        ("to uplink, not from a pod", to_uplink, Way::FromVnet, Says::Stack),
    ];
    let mut lanes: Vec<Box<dyn Lane + '_>> = Vec::new();
    for (name, hook, way, says) in rows {
        for family in FAMILIES {
            let load = load(family);
            let plain = Stream {
                flows: any_of(load.flows),
                ..stream(&stand, &stand.pods[0], way, load)?
            };
            let stream = match says {
                Says::Redirect => {
                    FrameLane::new(&stand, way, load, &hall.plan)?.warm_up()?;
                    plain
                }
                // Between hosts that have nothing to do with the node.
                Says::Stack => Stream {
                    dst: family.far(),
                    ports: (FIRST_PORT, DISCARD),
                    ..plain
                },
            };
            let label = label(name, family);
            lanes.push(Box::new(ProgramLane::new(
                label, &stand, hook, stream, says, &hall.plan,
            )?));
        }
    }
    let mut outcome = run(
        (measure.name, measure.title, Unit::Nanoseconds),
        lanes,
        &hall.plan,
    )?;
    outcome.facts.extend(facts::of_ipv6(&stand)?);
    Ok(with_ratios(outcome, rows.iter().map(|row| row.0)))
}

/// Frames of one length in both families: what varies is what the headers leave for a payload.
fn load(family: Family) -> Load {
    Load {
        family,
        frames: Frames::Of(SMALLEST_OF_BOTH),
        ..Load::PLAIN
    }
}

fn frames(measure: &Measure, hall: &Hall, way: Way) -> Result<Outcome> {
    let stands = dual_stack(hall, &PEERS)?;
    let mut lanes: Vec<Box<dyn Lane + '_>> = Vec::new();
    for stand in &stands {
        let [first, second] = FAMILIES;
        let one = FrameLane::new(stand, way, load(first), &hall.plan)?.named(label(stand.peer.name(), first));
        let other = one.beside(stand, way, load(second), label(stand.peer.name(), second))?;
        lanes.push(Box::new(one));
        lanes.push(Box::new(other));
    }
    let outcome = run((measure.name, measure.title, Unit::Packets), lanes, &hall.plan)?;
    Ok(with_ratios(outcome, stands.iter().map(|stand| stand.peer.name())))
}

/// What does not look has no conversations: nobody rewrites MACs for it.
fn sockets(measure: &Measure, hall: &Hall, job: Job, unit: Unit) -> Result<Outcome> {
    let stands = dual_stack(hall, &[Peer::Causeway, Peer::Routed])?;
    let mut lanes: Vec<Box<dyn Lane + '_>> = Vec::new();
    for stand in &stands {
        for family in FAMILIES {
            let label = label(stand.peer.name(), family);
            lanes.push(Box::new(SocketLane::of_family(
                label, stand, job, family, &hall.plan,
            )?));
        }
    }
    let outcome = run((measure.name, measure.title, unit), lanes, &hall.plan)?;
    Ok(with_ratios(outcome, stands.iter().map(|stand| stand.peer.name())))
}

/// Those of the peers that are wanted in this run.
fn dual_stack(hall: &Hall, peers: &[Peer]) -> Result<Vec<Stand>> {
    let wanted = hall.stands(|peer| peers.contains(&peer));
    wanted.map(|stand| Stand::dual_stack(stand.peer, PODS)).collect()
}

fn label(of: &str, family: Family) -> String {
    format!("{of}, {}", family.name())
}

/// Says of each peer, or program, how many times as good its IPv6 is as its own IPv4.
fn with_ratios<'a>(mut outcome: Outcome, of: impl Iterator<Item = &'a str>) -> Outcome {
    for name in of {
        let [of_ipv6, of_ipv4] = FAMILIES.map(|family| label(name, family));
        if let Some(ratio) = outcome.ratio(&of_ipv6, &of_ipv4) {
            outcome.notes.push(format!(
                "{name}: IPv6 {:.3} × IPv4, {:.3} … {:.3}",
                ratio.median, ratio.low, ratio.high
            ));
        }
    }
    outcome
}
