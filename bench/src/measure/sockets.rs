//! What applications see.

use anyhow::Result;
use causeway_tests::offload;

use super::{Hall, Measure};
use crate::{
    lanes::sockets::{Job, SocketLane},
    peer::{Kind, Peer},
    rounds::{Lane, Outcome, Unit, run},
};

pub(super) fn udp_requests(measure: &Measure, hall: &Hall) -> Result<Outcome> {
    sockets(measure, hall, Job::UdpRequests, Unit::Requests)
}

pub(super) fn tcp_requests(measure: &Measure, hall: &Hall) -> Result<Outcome> {
    sockets(measure, hall, Job::TcpRequests, Unit::Requests)
}

pub(super) fn connections(measure: &Measure, hall: &Hall) -> Result<Outcome> {
    sockets(measure, hall, Job::Connections, Unit::Requests)
}

pub(super) fn stream(measure: &Measure, hall: &Hall) -> Result<Outcome> {
    sockets(measure, hall, Job::Stream, Unit::Bits)
}

pub(super) fn stream_without_gso(measure: &Measure, hall: &Hall) -> Result<Outcome> {
    segment(hall, false)?;
    let outcome = sockets(measure, hall, Job::Stream, Unit::Bits);
    segment(hall, true)?;
    outcome
}

/// Every peer on which any conversation is possible: what does not look does not translate back, and the model serves the
/// generator's packets alone.
fn sockets(measure: &Measure, hall: &Hall, job: Job, unit: Unit) -> Result<Outcome> {
    let wanted = |peer: Peer| peer == Peer::DirectVeth || peer.kind() != Kind::Bound && peer != Peer::Model;
    let lanes = hall
        .stands(wanted)
        .map(|stand| Box::new(SocketLane::new(stand, job, &hall.plan)) as Box<dyn Lane>);
    run((measure.name, measure.title, unit), lanes.collect(), &hall.plan)
}

/// Switches large segments on or off, from the first pod to the far end.
fn segment(hall: &Hall, large: bool) -> Result<()> {
    for stand in &hall.stands {
        let pod = &stand.pods[0];
        for feature in [offload::TCP_SEGMENTATION, offload::SEGMENTATION] {
            offload::set(&pod.ns, "eth0", feature, large)?;
        }
        if let Ok(node) = stand.node() {
            offload::set(&node.ns, &node.host_interface(pod)?, offload::GRO, large)?;
            offload::set(&node.ns, "eth0", offload::GRO, large)?;
        }
    }
    Ok(())
}
