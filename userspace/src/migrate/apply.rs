//! The way there.

use std::{collections::BTreeSet, net::Ipv4Addr};

use causeway_common::maps::RangeClass;
use serde::Serialize;

use super::{
    Agentless, Alone, MigrateError, Urgent,
    conntrack::Conntrack,
    flows::{Flows, Imported, let_packets_pass},
    journal::{JOURNAL, Journal, Phase, Pod},
    kernel::Kernel,
    pods::Wire,
    rollback, rules, survey,
    survey::Survey,
    uplink::{self, Pair},
};
use crate::{
    datapath::{self, Datapath, Expedited},
    node::{self, Uplink},
    root::Root,
};

/// What was taken over.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Applied {
    /// Pods that are served by Causeway.
    pub pods: usize,
    /// Flows that are carried.
    pub carried: usize,
    /// Flows of services, which stay with the kernel but for the translation of their source.
    pub kernel: usize,
    /// Flows from outside whose answers keep the pods' addresses.
    pub answers: usize,
    /// Flows that could not be taken over.
    pub lost: usize,
    /// Them, as their openers send them.
    pub lost_flows: Vec<String>,
}

/// Takes the node over, or goes on where that was interrupted. A node that has been taken over already is looked at again:
/// pods that the incumbent has added meanwhile are taken over, too.
///
/// # Errors
///
/// What was done has been undone, unless the error says otherwise. A node that had been taken over before stays Causeway's.
pub fn apply(root: &Root) -> Result<Applied, MigrateError> {
    let _alone = Alone::wait(root)?;
    let before = Journal::load(root)?;
    let survey = survey::look(root, before.as_ref())?;
    if !survey.obstacles.is_empty() {
        return Err(MigrateError::Refused(survey.obstacles));
    }
    let _agentless = Agentless::wait(root)?;
    if before
        .as_ref()
        .is_some_and(|journal| journal.phase == Phase::Unloading)
    {
        Datapath::unload(root)?;
    }
    let was_applied = before
        .as_ref()
        .is_some_and(|journal| journal.phase == Phase::Applied);
    let Some(mut journal) = noted(before, survey) else {
        return Err(MigrateError::Refused(vec!["it has no bridge".to_owned()]));
    };
    journal.save(root)?;
    let _expedited = Expedited::begin(true);
    let _urgent = Urgent::begin();
    let failed = match carry_out(root, &journal) {
        Ok(applied) => {
            journal.phase = Phase::Applied;
            journal.save(root)?;
            return Ok(applied);
        }
        Err(error) => error,
    };
    let stuck = |errors| MigrateError::Stuck {
        errors,
        journal: root.path(JOURNAL),
    };
    if was_applied {
        return Err(stuck(vec![failed.to_string()]));
    }
    match rollback::carry_out(root, &mut journal) {
        Ok(_) => Err(MigrateError::Undone {
            error: Box::new(failed),
        }),
        Err(second) => Err(stuck(vec![failed.to_string(), second.to_string()])),
    }
}

/// The journal of what is about to be changed. What an earlier one says of the same thing is older, and right.
fn noted(before: Option<Journal>, survey: Survey) -> Option<Journal> {
    let (bridge, uplink) = survey.network?;
    let excluded = survey.translations.excluded.into_iter().collect();
    let rules = survey.translations.rules;
    let Some(mut journal) = before else {
        return Some(Journal::new(bridge, uplink, (rules, excluded), survey.pods));
    };
    journal.phase = Phase::Applying;
    let known = |pods: &[Pod], pod: &Pod| {
        pods.iter()
            .any(|other| other.host_if == pod.host_if && other.netns == pod.netns)
    };
    let came: Vec<Pod> = survey
        .pods
        .into_iter()
        .filter(|pod| !known(&journal.pods, pod))
        .collect();
    journal
        .pods
        .retain(|pod| came.iter().all(|other| other.host_if != pod.host_if));
    journal.pods.extend(came);
    for rule in rules {
        if !journal
            .rules
            .iter()
            .any(|known| (known.backend, &known.text) == (rule.backend, &rule.text))
        {
            journal.rules.push(rule);
        }
    }
    if journal.excluded.is_empty() {
        journal.excluded = excluded;
    }
    Some(journal)
}

fn carry_out(root: &Root, journal: &Journal) -> Result<Applied, MigrateError> {
    let mut kernel = Kernel::new()?;
    let pair = Pair::find(journal, &mut kernel)?;
    let mut wires = Vec::new();
    for pod in &journal.pods {
        wires.extend(Wire::open(pod, &mut kernel)?);
    }
    // First the programs, which change nothing for pods that they do not know.
    let datapath = load(root, journal, &pair)?;
    let next_hop = uplink::next_hop(journal, &mut kernel, carrier(&pair))?;
    let open = || Flows::open(&datapath, pair.uplink.mac, next_hop);
    let mut conntrack = Conntrack::open()?;
    // What others have opened before the programs know the pods: they would take the answers for the pods' own.
    let addresses: BTreeSet<Ipv4Addr> = wires.iter().map(Wire::addr).collect();
    let mut answers = open()?.note_answers(&addresses, &mut conntrack)?;
    for wire in &wires {
        datapath.add_pod(&wire.as_pod())?;
    }
    answers += open()?.note_answers(&addresses, &mut conntrack)?;
    let node = journal.uplink.address.addr();
    for wire in &mut wires {
        wire.address_node(node)?;
    }
    let mut imported = Imported {
        lost: open()?.keep_masqueraded(&mut conntrack)?,
        ..Imported::default()
    };
    for wire in &mut wires {
        wire.route(&mut kernel, node)?;
    }
    let mut flows = open()?;
    flows.reserve(&mut conntrack)?;
    // From here on new flows are translated by Causeway.
    rules::remove(&journal.rules)?;
    // Every packet that a rule has still translated is in conntrack.
    let_packets_pass();
    flows.take_over(&mut imported, &mut conntrack)?;
    // And from here on all of them. With the bridge's address what it masqueraded ends.
    pair.share(journal, &mut kernel)?;
    flows.take_over(&mut imported, &mut conntrack)?;
    pair.leave_bridge(journal, &mut kernel)?;
    for wire in &wires {
        wire.set_bridge(&mut kernel, 0)?;
    }
    // Counts the flows of each pod.
    datapath.sweep(datapath::now())?;
    Ok(Applied {
        pods: wires.len(),
        carried: imported.carried,
        kernel: imported.kernel,
        answers,
        lost: imported.lost.len(),
        lost_flows: imported.lost.iter().map(ToString::to_string).collect(),
    })
}

/// The interface that has the node's addresses.
fn carrier(pair: &Pair) -> &super::kernel::Device {
    match pair.uplink.master {
        Some(_) => &pair.bridge,
        None => &pair.uplink,
    }
}

fn load(root: &Root, journal: &Journal, pair: &Pair) -> Result<Datapath, MigrateError> {
    node::enable_forwarding(root)?;
    let uplink = Uplink {
        name: pair.uplink.name.clone(),
        ifindex: pair.uplink.index,
        mac: pair.uplink.mac,
        mtu: pair.uplink.mtu,
        addr: journal.uplink.address.addr(),
        prefix_len: journal.uplink.address.prefix_len(),
    };
    let datapath = Datapath::ensure(root, &uplink, true)?;
    if !journal.rules.is_empty() {
        let ranges: Vec<_> = journal
            .excluded
            .iter()
            .map(|net| (*net, RangeClass::EXCLUDED))
            .collect();
        datapath.set_ranges(&ranges)?;
    }
    Ok(datapath)
}
