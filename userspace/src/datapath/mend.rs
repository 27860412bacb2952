//! What the programs should know of a pod, put right without a moment in which the pod is not served.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use causeway_common::{
    addr::Address,
    maps::{IPV6_MAP, IfaceEntry, PodEntry, Usage},
};

use super::{
    Datapath, DatapathError, Pod,
    attach::{self, AttachMode, Hook},
    family::Family,
    now,
    pods::Sharing,
    tables::FamilyTables,
};
use crate::{links::Netlink, restore::Restore};

/// What the programs know of all pods, at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodMaps {
    of_v4: FamilyMaps<[u8; 4]>,
    /// Empty until the programs for IPv6 are loaded.
    of_v6: FamilyMaps<[u8; 16]>,
    /// The programs for IPv4 hand over what is of IPv6.
    takes_v6: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct FamilyMaps<A> {
    pods: BTreeMap<A, PodEntry>,
    ifaces: BTreeMap<u32, IfaceEntry<A>>,
    accounts: BTreeSet<A>,
}

impl<A: Family> FamilyMaps<A> {
    fn read(tables: &FamilyTables<'_, A>) -> Result<Self, DatapathError> {
        Ok(Self {
            pods: tables.pods()?.all()?.into_iter().collect(),
            ifaces: tables.ifaces()?.all()?.into_iter().collect(),
            accounts: tables.usage()?.all()?.into_iter().map(|(addr, _)| addr).collect(),
        })
    }

    fn pod(&self, addr: A) -> Option<PodEntry> {
        let entry = self.pods.get(&addr).copied();
        entry.filter(|entry| entry.flags & PodEntry::DEPARTED == 0)
    }

    fn pods(&self) -> impl Iterator<Item = (A, PodEntry)> {
        let entries = self.pods.iter().map(|(addr, entry)| (*addr, *entry));
        entries.filter(|(_, entry)| entry.flags & PodEntry::DEPARTED == 0)
    }

    fn know(&self, pod: &Pod, addr: A) -> bool {
        let is_pods = |known: PodEntry| {
            let wanted = pod.entry();
            known
                == PodEntry {
                    changed: known.changed,
                    ..wanted
                }
        };
        self.pod(addr).is_some_and(is_pods)
            && self.ifaces.get(&pod.ifindex) == Some(&pod.iface(addr))
            && self.accounts.contains(&addr)
    }
}

impl PodMaps {
    /// The entries of pods that have not departed, by their addresses of both families.
    pub fn pods(&self) -> impl Iterator<Item = (IpAddr, PodEntry)> {
        let of_v4 = self.of_v4.pods().map(|(addr, entry)| (addr.ip(), entry));
        of_v4.chain(self.of_v6.pods().map(|(addr, entry)| (addr.ip(), entry)))
    }

    /// The entry of one of them.
    pub fn pod(&self, addr: IpAddr) -> Option<PodEntry> {
        match addr {
            IpAddr::V4(addr) => self.of_v4.pod(addr.octets()),
            IpAddr::V6(addr) => self.of_v6.pod(addr.octets()),
        }
    }

    /// Whether the programs know the pod as it is.
    pub fn know(&self, pod: &Pod) -> bool {
        let (of_v4, of_v6) = (pod.addresses.v4(), pod.addresses.v6());
        let of_v6 = of_v6.filter(|_| self.takes_v6 || of_v4.is_none());
        of_v4.is_none_or(|addr| self.of_v4.know(pod, addr.octets()))
            && of_v6.is_none_or(|addr| self.of_v6.know(pod, addr.octets()))
    }
}

impl Datapath {
    /// Reads what the programs know of all pods.
    pub fn pod_maps(&self) -> Result<PodMaps, DatapathError> {
        Ok(PodMaps {
            of_v4: FamilyMaps::read(&self.tables.of())?,
            of_v6: if self.has_ipv6() {
                FamilyMaps::read(&self.tables.of())?
            } else {
                FamilyMaps::default()
            },
            takes_v6: self.pins.map(IPV6_MAP).exists(),
        })
    }

    /// Puts right what [`Self::inspect_pod`] finds wrong with a pod that is there. Returns the names of the items.
    pub fn mend_pod(&self, pod: &Pod) -> Result<Vec<String>, DatapathError> {
        let (of_v4, of_v6) = self.served(pod)?;
        let _changing = self.lock_pods(Sharing::WithOthers)?;
        let mut mended = Vec::new();
        of_v4.map_or(Ok(()), |addr| self.mend_sender(addr, pod, &mut mended))?;
        of_v6.map_or(Ok(()), |addr| self.mend_sender(addr, pod, &mut mended))?;
        let mode = AttachMode::from_env()?;
        let (mut netlink, restore) = (Netlink::new()?, Restore::new(&self.root));
        for hook in Hook::pod(&pod.host_if, pod.ifindex) {
            if attach::attached(&self.pins, &hook)?.is_none() {
                attach::attach(&mut netlink, &self.pins, &restore, &hook, mode)?;
                mended.push(format!("{} was not attached to {hook}", hook.program()));
            }
        }
        of_v4.map_or(Ok(()), |addr| self.mend_entry(addr, pod, &mut mended))?;
        of_v6.map_or(Ok(()), |addr| self.mend_entry(addr, pod, &mut mended))?;
        Ok(mended)
    }

    /// Its account, and who may send on its interface.
    fn mend_sender<A: Family>(
        &self,
        addr: A,
        pod: &Pod,
        mended: &mut Vec<String>,
    ) -> Result<(), DatapathError> {
        let tables = self.tables.of::<A>();
        let mut usage = tables.usage()?;
        if usage.get(&addr)?.is_none() {
            usage.insert(addr, Usage::default())?;
            mended.push(format!("entry {} of {} was missing", addr.ip(), A::MAPS.usage));
        }
        let iface = pod.iface(addr);
        let mut ifaces = tables.ifaces()?;
        if ifaces.get(&pod.ifindex)? != Some(iface) {
            ifaces.insert(pod.ifindex, iface)?;
            mended.push(format!("entry {} of {} was missing", pod.ifindex, A::MAPS.ifaces));
        }
        Ok(())
    }

    fn mend_entry<A: Family>(
        &self,
        addr: A,
        pod: &Pod,
        mended: &mut Vec<String>,
    ) -> Result<(), DatapathError> {
        let mut pods = self.tables.of::<A>().pods()?;
        let before = pods.get(&addr)?;
        let entry = PodEntry {
            changed: before.map_or_else(now, |before| before.changed),
            ..pod.entry()
        };
        if before == Some(entry) {
            return Ok(());
        }
        let entry = PodEntry {
            changed: now(),
            ..entry
        };
        pods.insert(addr, entry)?;
        mended.push(format!("entry {} of {} was missing", addr.ip(), A::MAPS.pods));
        Ok(())
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
        if self.addresses.v4().is_none() {
            flags |= PodEntry::WITHOUT_IPV4;
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
    pub(super) fn iface<A: Address>(&self, addr: A) -> IfaceEntry<A> {
        IfaceEntry {
            addr,
            mac: self.mac,
            _pad: [0; 2],
        }
    }
}
