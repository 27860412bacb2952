//! The way back.

use std::{fs, io, net::Ipv4Addr};

use serde::Serialize;

use super::{
    Agentless, Alone, MigrateError, Urgent,
    conntrack::Conntrack,
    flows::{Exported, Flows},
    journal::{JOURNAL, Journal, Phase, Pod},
    kernel::{Kernel, Object, station},
    pods::{self, Wire},
    rules::{self, Station},
    survey,
    uplink::{self, Pair},
};
use crate::{
    datapath::{Datapath, Expedited},
    root::Root,
};

/// What was given back.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RolledBack {
    /// Pods that are on the bridge.
    pub pods: usize,
    /// Flows that conntrack has taken over.
    pub flows: usize,
    /// Flows for which it has no room.
    pub lost: usize,
    /// Them, as their openers send them.
    pub lost_flows: Vec<String>,
}

/// Gives the node back as it was found, or goes on where that was interrupted.
pub fn rollback(root: &Root) -> Result<RolledBack, MigrateError> {
    let _alone = Alone::wait(root)?;
    let Some(mut journal) = Journal::load(root)? else {
        return Err(MigrateError::NotMigrated(root.path(JOURNAL)));
    };
    let _agentless = Agentless::wait(root)?;
    let _expedited = Expedited::begin(true);
    let _urgent = Urgent::begin();
    carry_out(root, &mut journal).map_err(|error| MigrateError::Stuck {
        errors: vec![error.to_string()],
        journal: root.path(JOURNAL),
    })
}

/// The steps of the way there, the other way round.
pub(super) fn carry_out(root: &Root, journal: &mut Journal) -> Result<RolledBack, MigrateError> {
    let pods = pods_of(root, journal)?;
    let has_programs = journal.phase != Phase::Unloading;
    if has_programs {
        journal.phase = Phase::RollingBack;
        journal.save(root)?;
    }
    let mut kernel = Kernel::new()?;
    let pair = Pair::find(journal, &mut kernel)?;
    let mut wires = Vec::new();
    for pod in &pods {
        wires.extend(Wire::open(pod, &mut kernel)?);
    }
    // Its ports are to take part at once.
    kernel.set_forward_delay(pair.bridge.index, 0)?;
    for wire in &wires {
        wire.set_bridge(&mut kernel, pair.bridge.index)?;
    }
    pair.join_bridge(journal, &mut kernel)?;
    kernel.set_forward_delay(pair.bridge.index, journal.bridge.forward_delay)?;
    let datapath = if has_programs { Datapath::open(root)? } else { None };
    let exported = match &datapath {
        Some(datapath) => hand_back(journal, &pair, datapath, &mut kernel)?,
        None => Exported::default(),
    };
    rules::put_back(&journal.rules)?;
    for wire in &mut wires {
        wire.unroute(&mut kernel, journal.uplink.address.addr())?;
    }
    restore_neighbours(journal, &pods, &pair, &mut kernel)?;
    // What a kill would leave of the programs from here on could not be opened any more.
    journal.phase = Phase::Unloading;
    journal.save(root)?;
    Datapath::unload(root)?;
    forget_run(root)?;
    Journal::remove(root)?;
    Ok(RolledBack {
        pods: wires.len(),
        flows: exported.flows,
        lost: exported.lost.len(),
        lost_flows: exported.lost.iter().map(ToString::to_string).collect(),
    })
}

/// Removes what `unload` leaves for an agent that runs: none does, its lock is ours.
fn forget_run(root: &Root) -> Result<(), MigrateError> {
    let path = root.path("/run/causeway");
    match fs::remove_dir_all(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(MigrateError::Journal {
            path,
            what: error.to_string(),
        }),
        _ => Ok(()),
    }
}

/// First the kernel knows the ports that are taken, then its rule translates new flows, then it gets the old ones.
fn hand_back(
    journal: &Journal,
    pair: &Pair,
    datapath: &Datapath,
    kernel: &mut Kernel,
) -> Result<Exported, MigrateError> {
    let next_hop = uplink::next_hop(journal, kernel, &pair.bridge)?;
    let mut flows = Flows::open(datapath, pair.uplink.mac, next_hop)?;
    let mut conntrack = Conntrack::open()?;
    flows.announce(&mut conntrack)?;
    rules::put_back(&journal.rules)?;
    flows.hand_back(&mut conntrack)
}

/// The pods that are to be on the bridge: those that were, and those that came since. Pods that are gone are not.
fn pods_of(root: &Root, journal: &Journal) -> Result<Vec<Pod>, MigrateError> {
    let (there, unreadable) = survey::pods(root)?;
    if !unreadable.is_empty() {
        return Err(MigrateError::Refused(unreadable));
    }
    let before = |pod: &Pod| {
        journal
            .pods
            .iter()
            .find(|known| known.host_if == pod.host_if && known.netns == pod.netns)
    };
    Ok(there
        .into_iter()
        .map(|pod| match before(&pod) {
            Some(known) => known.clone(),
            None => pods::adopted(pod, journal),
        })
        .collect())
}

/// The bridge's permanent neighbours and the rules of ebtables are those of the pods that are there.
fn restore_neighbours(
    journal: &Journal,
    pods: &[Pod],
    pair: &Pair,
    kernel: &mut Kernel,
) -> Result<(), MigrateError> {
    let was_pod = |address: Ipv4Addr| journal.pods.iter().any(|pod| pod.addr() == address);
    let is_pod = |address: Ipv4Addr| pods.iter().any(|pod| pod.addr() == address);
    let mut had_pods = false;
    for neighbour in &journal.bridge.neighbours {
        let Some((address, mac)) = station(neighbour) else {
            continue;
        };
        had_pods |= was_pod(address);
        let replaced = pods.iter().any(|pod| pod.addr() == address && pod.mac != mac);
        if was_pod(address) && (!is_pod(address) || replaced) {
            kernel.remove(&Object::neighbour(neighbour, pair.bridge.index))?;
        } else {
            kernel.replace(&Object::neighbour(neighbour, pair.bridge.index))?;
        }
    }
    let came = |pod: &&Pod| {
        !journal
            .pods
            .iter()
            .any(|known| known.addr() == pod.addr() && known.mac == pod.mac)
    };
    for pod in pods.iter().filter(came).filter(|_| had_pods) {
        kernel.replace(&Object::permanent(pod.addr(), pod.mac, pair.bridge.index))?;
    }
    let stays = |pod: &&Pod| {
        pods.iter()
            .any(|other| other.addr() == pod.addr() && other.mac == pod.mac)
    };
    let gone: Vec<Ipv4Addr> = journal
        .pods
        .iter()
        .filter(|pod| !stays(pod))
        .map(Pod::addr)
        .collect();
    let stations: Vec<Station> = pods
        .iter()
        .filter(came)
        .map(|pod| Station {
            address: pod.addr(),
            mac: pod.mac,
        })
        .collect();
    if gone.is_empty() && stations.is_empty() {
        return Ok(());
    }
    rules::set_stations(
        &journal.uplink.name,
        journal.uplink.address.addr(),
        &stations,
        &gone,
    )
}
