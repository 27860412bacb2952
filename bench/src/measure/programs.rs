//! The installed programs alone: nanoseconds a packet, without the kernel's path around them.

use std::net::Ipv4Addr;

use anyhow::{Context, Result};

use super::{Hall, Measure};
use crate::{
    generator::Stream,
    lanes::{
        frames::FrameLane,
        program::{ProgramLane, Says, any_of},
        way::{DISCARD, FIRST_PORT, Load, Way, stream},
    },
    peer::{Kind, Peer},
    rounds::{Lane, Outcome, Plan, Unit, run},
    stand::Stand,
};

/// Flows that the tables hold while a program is measured.
const FLOWS: u32 = 1 << 15;

pub(super) fn nanoseconds(measure: &Measure, hall: &Hall) -> Result<Outcome> {
    let mut by_build = Vec::new();
    for stand in hall.stands(|peer| peer.kind() == Kind::Ours) {
        open_flows(stand, &hall.plan)?;
        by_build.push(lanes_of(stand, &hall.plan)?.into_iter());
    }
    // Two builds' lanes of one kind are neighbours.
    let mut lanes = Vec::new();
    loop {
        let row: Vec<_> = by_build.iter_mut().filter_map(Iterator::next).collect();
        if row.is_empty() {
            break;
        }
        lanes.extend(row);
    }
    run(
        (measure.name, measure.title, Unit::Nanoseconds),
        lanes,
        &hall.plan,
    )
}

/// Fills the tables as a pod's traffic does.
fn open_flows(stand: &Stand, plan: &Plan) -> Result<()> {
    let load = Load {
        flows: FLOWS,
        ..Load::PLAIN
    };
    FrameLane::new(stand, Way::Out, load, plan)?.warm_up()?;
    FrameLane::new(stand, Way::Across, Load::PLAIN, plan)?.warm_up()
}

fn lanes_of<'a>(stand: &'a Stand, plan: &Plan) -> Result<Vec<Box<dyn Lane + 'a>>> {
    let pod = &stand.pods[0];
    let load = Load::PLAIN;
    let with = |flows: u32, stream: Stream| Stream {
        flows: any_of(flows),
        ..stream
    };
    let out = stream(stand, pod, Way::Out, load)?;
    let back = stream(stand, pod, Way::Back, load)?;
    let across = stream(stand, pod, Way::Across, load)?;
    // Of hosts that have nothing to do with the node.
    let stray = Stream {
        src: Ipv4Addr::new(198, 51, 100, 7).into(),
        dst: Ipv4Addr::new(198, 51, 100, 8).into(),
        ports: (FIRST_PORT, DISCARD),
        ..back
    };
    let host = stand
        .node()?
        .host_interface(pod)
        .context("the pod's host interface")?;
    let (from_pod, from_uplink, to_uplink) = (
        ("cwy_from_pod", host.as_str()),
        ("cwy_from_uplink", "eth0"),
        ("cwy_to_uplink", "eth0"),
    );
    let rows = [
        ("from pod, SNAT, 1 flow", from_pod, with(1, out), Says::Redirect),
        (
            "from pod, SNAT, 1k flows",
            from_pod,
            with(1 << 10, out),
            Says::Redirect,
        ),
        (
            "from pod, SNAT, 32k flows",
            from_pod,
            with(FLOWS, out),
            Says::Redirect,
        ),
        (
            "from pod, to pod, 1k flows",
            from_pod,
            with(1 << 10, across),
            Says::Redirect,
        ),
        (
            "from uplink, answers, 1 flow",
            from_uplink,
            with(1, back),
            Says::Redirect,
        ),
        (
            "from uplink, answers, 1k flows",
            from_uplink,
            with(1 << 10, back),
            Says::Redirect,
        ),
        (
            "from uplink, answers, 32k flows",
            from_uplink,
            with(FLOWS, back),
            Says::Redirect,
        ),
        (
            "from uplink, not for a pod",
            from_uplink,
            with(1, stray),
            Says::Stack,
        ),
        (
            "to uplink, not from a pod",
            to_uplink,
            with(1, stray),
            Says::Stack,
        ),
    ];
    let prefix = if stand.peer == Peer::Causeway {
        String::new()
    } else {
        format!("{}: ", stand.peer.name())
    };
    rows.into_iter()
        .map(|(name, at, stream, says)| {
            let lane = ProgramLane::new(format!("{prefix}{name}"), stand, at, stream, says, plan)?;
            Ok(Box::new(lane) as Box<dyn Lane>)
        })
        .collect()
}
