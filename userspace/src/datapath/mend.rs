//! What the programs should know of a pod, put right without a moment in which the pod is not served.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use causeway_common::maps::{IfaceEntry, PodEntry, Usage};

use super::{
    Datapath, DatapathError, Pod,
    attach::{self, AttachMode, Hook},
    now,
    pods::Sharing,
};
use crate::{links::Netlink, restore::Restore};

/// What the programs know of all pods, at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodMaps {
    pods: BTreeMap<Ipv4Addr, PodEntry>,
    ifaces: BTreeMap<u32, IfaceEntry<[u8; 4]>>,
    accounts: BTreeSet<Ipv4Addr>,
}

impl PodMaps {
    /// The entries of pods that have not departed.
    pub fn pods(&self) -> impl Iterator<Item = (Ipv4Addr, PodEntry)> {
        let entries = self.pods.iter().map(|(addr, entry)| (*addr, *entry));
        entries.filter(|(_, entry)| entry.flags & PodEntry::DEPARTED == 0)
    }

    /// The entry of one of them.
    pub fn pod(&self, addr: Ipv4Addr) -> Option<PodEntry> {
        let entry = self.pods.get(&addr).copied();
        entry.filter(|entry| entry.flags & PodEntry::DEPARTED == 0)
    }

    /// Whether the programs know the pod as it is.
    pub fn know(&self, pod: &Pod) -> bool {
        let is_pods = |known: PodEntry| {
            let wanted = pod.entry();
            known
                == PodEntry {
                    changed: known.changed,
                    ..wanted
                }
        };
        self.pod(pod.addr).is_some_and(is_pods)
            && self.ifaces.get(&pod.ifindex) == Some(&pod.iface())
            && self.accounts.contains(&pod.addr)
    }
}

impl Datapath {
    /// Reads what the programs know of all pods.
    pub fn pod_maps(&self) -> Result<PodMaps, DatapathError> {
        Ok(PodMaps {
            pods: self.pods()?.into_iter().collect(),
            ifaces: self.tables.ifaces()?.all()?.into_iter().collect(),
            accounts: self
                .tables
                .usage()?
                .all()?
                .into_iter()
                .map(|(addr, _)| addr.into())
                .collect(),
        })
    }

    /// Puts right what [`Self::inspect_pod`] finds wrong with a pod that is there. Returns the names of the items.
    pub fn mend_pod(&self, pod: &Pod) -> Result<Vec<String>, DatapathError> {
        let _changing = self.lock_pods(Sharing::WithOthers)?;
        let mut mended = Vec::new();
        let key = pod.addr.octets();
        let mut usage = self.tables.usage()?;
        if usage.get(&key)?.is_none() {
            usage.insert(key, Usage::default())?;
            mended.push(format!("entry {} of cwy_usage was missing", pod.addr));
        }
        let iface = pod.iface();
        let mut ifaces = self.tables.ifaces()?;
        if ifaces.get(&pod.ifindex)? != Some(iface) {
            ifaces.insert(pod.ifindex, iface)?;
            mended.push(format!("entry {} of cwy_ifaces was missing", pod.ifindex));
        }
        let mode = AttachMode::from_env()?;
        let (mut netlink, restore) = (Netlink::new()?, Restore::new(&self.root));
        for hook in Hook::pod(&pod.host_if, pod.ifindex) {
            if attach::attached(&self.pins, &hook)?.is_none() {
                attach::attach(&mut netlink, &self.pins, &restore, &hook, mode)?;
                mended.push(format!("{} was not attached to {hook}", hook.program()));
            }
        }
        let mut pods = self.tables.pods()?;
        let before = pods.get(&key)?;
        let entry = PodEntry {
            changed: before.map_or_else(now, |before| before.changed),
            ..pod.entry()
        };
        if before != Some(entry) {
            pods.insert(
                key,
                PodEntry {
                    changed: now(),
                    ..entry
                },
            )?;
            mended.push(format!("entry {} of cwy_pods was missing", pod.addr));
        }
        Ok(mended)
    }
}

impl Pod {
    /// Its entry once it is served.
    pub(super) fn entry(&self) -> PodEntry {
        let mut flags = PodEntry::READY;
        if self.stack_only {
            flags |= PodEntry::STACK_ONLY;
        }
        if self.takes_frames {
            flags |= PodEntry::TAKES_FRAMES;
        }
        PodEntry {
            ifindex: self.ifindex,
            mac: self.mac,
            host_mac: self.host_mac,
            mtu: self.mtu,
            flags,
            changed: now(),
        }
    }

    /// Who may send on its interface.
    pub(super) fn iface(&self) -> IfaceEntry<[u8; 4]> {
        IfaceEntry {
            addr: self.addr.octets(),
            mac: self.mac,
            _pad: [0; 2],
        }
    }
}
