//! What the programs should know of a pod, put right without a moment in which the pod is not served.

use causeway_common::maps::{IfaceEntry, PodEntry, Usage};

use super::{
    Datapath, DatapathError, Pod,
    attach::{self, AttachMode, Hook},
    now,
    pods::Sharing,
};
use crate::{links::Netlink, restore::Restore};

impl Datapath {
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
        let iface = IfaceEntry {
            addr: key,
            mac: pod.mac,
            _pad: [0; 2],
        };
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
}
