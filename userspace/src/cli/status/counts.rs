//! What `causeway status` counts: pods and flows by state, flows by who opened them.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use causeway::datapath::{Datapath, DatapathError};
use causeway_common::{
    flow::State,
    maps::{Config, POD_ENTRIES, PodEntry},
};
use serde::Serialize;

#[derive(Serialize)]
pub(super) struct PodCount {
    pub(super) ready: usize,
    pub(super) attaching: usize,
    pub(super) departed: usize,
    pub(super) capacity: usize,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct FlowCount {
    pub(super) offered: usize,
    pub(super) carried: usize,
    pub(super) kernel: usize,
    pub(crate) entries: usize,
    pub(crate) capacity: usize,
    pub(super) fill_ratio: f64,
}

/// Flows by who opened them.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Usages {
    pub(super) pod_quota: u32,
    pub(super) wire_quota: u32,
    /// Of hosts outside.
    pub(super) wire: i32,
    pub(super) pods: BTreeMap<IpAddr, i32>,
}

pub(super) fn usages(datapath: &Datapath, config: &Config<[u8; 4]>) -> Result<Usages, DatapathError> {
    let usage = datapath.usage()?.into_iter();
    let mut pods: BTreeMap<IpAddr, i32> = usage.map(|(addr, usage)| (addr, usage.flows)).collect();
    let mut outside = |addr: IpAddr| pods.remove(&addr).unwrap_or(0);
    let wire = outside(Ipv4Addr::UNSPECIFIED.into()) + outside(Ipv6Addr::UNSPECIFIED.into());
    Ok(Usages {
        pod_quota: config.pod_quota,
        wire_quota: config.wire_quota,
        wire,
        pods,
    })
}

pub(super) fn count_pods(pods: &[(IpAddr, PodEntry)]) -> PodCount {
    let count = |is: fn(&PodEntry) -> bool| pods.iter().filter(|(_, entry)| is(entry)).count();
    let departed = count(|entry| entry.flags & PodEntry::DEPARTED != 0);
    let ready = count(PodEntry::is_ready);
    PodCount {
        ready,
        departed,
        attaching: pods.len() - ready - departed,
        capacity: POD_ENTRIES,
    }
}

pub(crate) fn count_flows(datapath: &Datapath) -> Result<FlowCount, DatapathError> {
    let mut count = FlowCount::none_of(datapath.flow_entries()?);
    datapath.for_each_flow(|_, entry| count.add(entry.state))?;
    Ok(count.filled())
}

/// Those of IPv6, which have a table of their own; `None` until a pod has an address of that family.
pub(super) fn count_flows_v6(datapath: &Datapath) -> Result<Option<FlowCount>, DatapathError> {
    let Some(capacity) = datapath.flow_entries_v6()? else {
        return Ok(None);
    };
    let mut count = FlowCount::none_of(capacity);
    datapath.for_each_flow_v6(|_, entry| count.add(entry.state))?;
    Ok(Some(count.filled()))
}

impl FlowCount {
    fn none_of(capacity: usize) -> Self {
        Self {
            offered: 0,
            carried: 0,
            kernel: 0,
            entries: 0,
            capacity,
            fill_ratio: 0.0,
        }
    }

    fn add(&mut self, state: u8) {
        self.entries += 1;
        match state {
            State::OFFERED => self.offered += 1,
            State::CARRIED => self.carried += 1,
            _ => self.kernel += 1,
        }
    }

    fn filled(mut self) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "both are far below 2^52")]
        let ratio = self.entries as f64 / self.capacity as f64;
        self.fill_ratio = ratio;
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_are_counted_by_state() {
        let pod = |flags| {
            let entry = PodEntry {
                ifindex: 3,
                mac: [2; 6],
                host_mac: [2; 6],
                mtu: 1500,
                flags,
                changed: 0,
            };
            (IpAddr::V4(Ipv4Addr::LOCALHOST), entry)
        };
        let count = count_pods(&[
            pod(0),
            pod(PodEntry::READY),
            pod(PodEntry::READY),
            pod(PodEntry::DEPARTED),
        ]);
        assert_eq!((count.attaching, count.ready, count.departed), (1, 2, 1));
    }
}
