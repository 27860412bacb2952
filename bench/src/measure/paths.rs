//! Established flows on every way through a node.

use std::net::SocketAddrV4;

use anyhow::Result;
use causeway_tests::{fabric::INTERNET, rules};

use super::{Hall, Measure};
use crate::{
    generator::Frames,
    lanes::{
        frames::FrameLane,
        way::{DISCARD, Load, VIP, Way},
    },
    peer::{Kind, Peer},
    rounds::{Lane, Outcome, Unit, run},
    stand::Stand,
};

pub(super) fn snat(measure: &Measure, hall: &Hall) -> Result<Outcome> {
    way(measure, hall, Way::Out, Load::PLAIN, |_| true)
}

pub(super) fn reverse(measure: &Measure, hall: &Hall) -> Result<Outcome> {
    way(measure, hall, Way::Back, Load::PLAIN, |_| true)
}

/// What XDP redirects is counted as the pod's driver hands it over. First comes what is compared.
pub(super) fn reverse_xdp(measure: &Measure, hall: &Hall) -> Result<Outcome> {
    let xdp = hall.with_xdp(|peer| peer == Peer::CausewayXdp);
    let others = hall.stands(|peer| peer.kind() != Kind::Neighbour);
    lanes(measure, hall, xdp.chain(others), Way::Back, Load::PLAIN)
}

pub(super) fn pod_to_pod(measure: &Measure, hall: &Hall) -> Result<Outcome> {
    way(measure, hall, Way::Across, Load::PLAIN, |peer| {
        !matches!(peer, Peer::Model | Peer::DirectVeth)
    })
}

pub(super) fn pod_to_vnet(measure: &Measure, hall: &Hall) -> Result<Outcome> {
    way(measure, hall, Way::ToVnet, Load::PLAIN, |peer| {
        peer != Peer::Model
    })
}

pub(super) fn snat_imix(measure: &Measure, hall: &Hall) -> Result<Outcome> {
    let load = Load {
        frames: Frames::Mix,
        ..Load::PLAIN
    };
    way(measure, hall, Way::Out, load, |_| true)
}

/// Peers of their own, with the rules of a ClusterIP: what netfilter does to one flow it would do to all.
pub(super) fn kernel_flows(measure: &Measure, hall: &Hall) -> Result<Outcome> {
    let stands = hall.fresh(1, |peer| peer.translates() && peer != Peer::Model)?;
    for stand in &stands {
        rules::cluster_ip(&stand.node()?.ns, VIP, SocketAddrV4::new(INTERNET, DISCARD))?;
    }
    lanes(measure, hall, stands.iter(), Way::Service, Load::PLAIN)
}

pub(super) fn two_cpus(measure: &Measure, hall: &Hall) -> Result<Outcome> {
    let wanted = |peer: Peer| matches!(peer.kind(), Kind::Ours | Kind::Incumbent);
    let way = Way::Out;
    let both = Load {
        pods: 2,
        together: true,
        flows: 2 * Load::PLAIN.flows,
        ..Load::PLAIN
    };
    let mut lanes: Vec<Box<dyn Lane + '_>> = Vec::new();
    for stand in hall.stands(wanted) {
        let name = stand.peer.name();
        let one = FrameLane::new(stand, way, Load::PLAIN, &hall.plan)?.named(format!("{name}, 1 CPU"));
        let two = one.beside(stand, way, both, format!("{name}, 2 CPUs"))?;
        lanes.push(Box::new(one));
        lanes.push(Box::new(two));
    }
    run((measure.name, measure.title, Unit::Packets), lanes, &hall.plan)
}

fn way(
    measure: &Measure,
    hall: &Hall,
    way: Way,
    load: Load,
    wanted: impl Fn(Peer) -> bool,
) -> Result<Outcome> {
    lanes(measure, hall, hall.stands(wanted), way, load)
}

fn lanes<'a>(
    measure: &Measure,
    hall: &Hall,
    stands: impl Iterator<Item = &'a Stand>,
    way: Way,
    load: Load,
) -> Result<Outcome> {
    let lanes: Vec<Box<dyn Lane + 'a>> = stands
        .map(|stand| Ok(Box::new(FrameLane::new(stand, way, load, &hall.plan)?) as Box<dyn Lane>))
        .collect::<Result<_>>()?;
    run((measure.name, measure.title, Unit::Packets), lanes, &hall.plan)
}
