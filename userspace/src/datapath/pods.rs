//! Pods come and go: what the programs must know of them, in an order that leaves no packet unchecked.

use std::{
    fs::{File, TryLockError},
    net::IpAddr,
};

use causeway_common::{
    addr::Address,
    flow::FlowEntry,
    maps::{PodEntry, Usage},
    tuple::FlowKey,
};

use super::{
    Datapath, DatapathError, PodAddresses,
    attach::{self, AttachMode, Hook},
    family::Family,
    tables,
};
use crate::{durable, links::Netlink, restore::Restore};

/// A pod whose link is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Its addresses.
    pub addresses: PodAddresses,
    /// Index of the host's end of its link.
    pub ifindex: u32,
    /// Name of the host's end.
    pub host_if: String,
    /// MAC of its interface.
    pub mac: [u8; 6],
    /// MAC of the host's end.
    pub host_mac: [u8; 6],
    /// MTU of its interface in bytes.
    pub mtu: u16,
    /// None of its flows is to be carried: every packet takes the stack.
    pub stack_only: bool,
    /// Its interface takes frames that XDP redirects ([`PodEntry::TAKES_FRAMES`]).
    pub takes_frames: bool,
}

/// What the removal of a pod found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Removed {
    /// How many flow entries it had; each flow has one for each direction.
    pub flows: usize,
    /// Whether it was there, not departed already.
    pub was_known: bool,
}

/// A pod's address of each family, if the programs are to know it.
type Served = (Option<[u8; 4]>, Option<[u8; 16]>);

/// How long a departed pod is remembered, in seconds: what is still under way from it is dropped by name, instead of
/// leaving as the packet of a stranger.
const DEPARTED_FOR: u32 = 300;

impl Datapath {
    /// Tells the programs about a pod and puts them on the host's end of its link. From then on the pod is served.
    /// Idempotent. On an error the pod is removed again.
    pub fn add_pod(&self, pod: &Pod) -> Result<(), DatapathError> {
        let mode = AttachMode::from_env()?;
        self.forget_departed(DEPARTED_FOR)?;
        let mut added = self.admit(pod, mode);
        if matches!(added, Err(DatapathError::TooManyPods)) {
            self.forget_departed(0)?;
            added = self.admit(pod, mode);
        }
        if added.is_err() {
            for addr in pod.addresses.iter() {
                if let Err(error) = self.remove_pod(addr) {
                    tracing::warn!(pod = %addr, %error, "cannot remove a pod that failed to be added");
                }
            }
        }
        added
    }

    fn admit(&self, pod: &Pod, mode: AttachMode) -> Result<(), DatapathError> {
        let (of_v4, of_v6) = self.served(pod)?;
        let _changing = self.lock_pods(Sharing::WithOthers)?;
        let v4_is_new = of_v4.map_or(Ok(true), |addr| self.announce(addr, pod))?;
        let v6_is_new = of_v6.map_or(Ok(true), |addr| self.announce(addr, pod))?;
        let attach = if v4_is_new && v6_is_new {
            attach::attach_first
        } else {
            attach::attach
        };
        let (mut netlink, restore) = (Netlink::new()?, Restore::new(&self.root));
        for hook in Hook::pod(&pod.host_if, pod.ifindex) {
            attach(&mut netlink, &self.pins, &restore, &hook, mode)?;
        }
        let entry = pod.entry();
        of_v4.map_or(Ok(()), |addr| self.tables.pods()?.insert(addr, entry))?;
        of_v6.map_or(Ok(()), |addr| self.tables.of().pods()?.insert(addr, entry))
    }

    /// The addresses of a pod, of each family, that there are programs for.
    ///
    /// # Errors
    ///
    /// [`DatapathError::NoIpv6`] if it has one of IPv6 alone and there are none: nobody would look at what it sends.
    pub(super) fn served(&self, pod: &Pod) -> Result<Served, DatapathError> {
        let of_v4 = pod.addresses.v4().map(|addr| addr.octets());
        let of_v6 = match pod.addresses.v6() {
            Some(addr) if self.ensure_ipv6()? => Some(addr.octets()),
            Some(_) if of_v4.is_none() => return Err(DatapathError::NoIpv6),
            _ => None,
        };
        Ok((of_v4, of_v6))
    }

    /// Tells the programs about an address of a pod that they do not serve yet. Returns whether it is new on this interface.
    fn announce<A: Family>(&self, addr: A, pod: &Pod) -> Result<bool, DatapathError> {
        let tables = self.tables.of::<A>();
        let (mut pods, mut ifaces) = (tables.pods()?, tables.ifaces()?);
        let before = pods.get(&addr)?;
        let is_new = before.is_none_or(|before| before.ifindex != pod.ifindex);
        if let Some(before) = before
            && is_new
        {
            if before.flags & PodEntry::DEPARTED == 0 {
                // Its last owner was not deleted cleanly.
                ifaces.remove(&before.ifindex)?;
                attach::remove_defunct(&self.pins)?;
            }
            // Packets of the last owner may have arrived late.
            self.purge(addr)?;
            tables.usage()?.remove(&addr)?;
        }
        let mut usage = tables.usage()?;
        if usage.get(&addr)?.is_none() {
            usage.insert(addr, Usage::default()).map_err(too_many)?;
        }
        ifaces.insert(pod.ifindex, pod.iface(addr)).map_err(too_many)?;
        let mut entry = pod.entry();
        entry.flags &= PodEntry::WITHOUT_IPV4;
        pods.insert(addr, entry).map_err(too_many)?;
        Ok(is_new)
    }

    /// Makes the programs forget an address of a pod. In this order, each step whatever became of those before: nothing more
    /// enters from its interface; what is under way from it is dropped; its flows end; with the address of IPv4, or the
    /// only one of IPv6, the programs leave its interface. Idempotent.
    ///
    /// When this returns without an error, no entry of the address is left, and it may be given to another pod.
    pub fn remove_pod(&self, addr: impl Into<IpAddr>) -> Result<Removed, DatapathError> {
        match addr.into() {
            IpAddr::V4(addr) => self.remove(addr.octets(), |before| self.leave_interface(before)),
            IpAddr::V6(addr) if self.has_ipv6() => self.remove(addr.octets(), |before| match before {
                Some(entry) if entry.flags & PodEntry::WITHOUT_IPV4 == 0 => Ok(()),
                before => self.leave_interface(before),
            }),
            IpAddr::V6(_) => Ok(Removed {
                flows: 0,
                was_known: false,
            }),
        }
    }

    fn remove<A: Family>(
        &self,
        addr: A,
        leave: impl FnOnce(Option<PodEntry>) -> Result<(), DatapathError>,
    ) -> Result<Removed, DatapathError> {
        let tables = self.tables.of::<A>();
        let mut errors = Vec::new();
        let mut note = |result: Result<(), DatapathError>| errors.extend(result.err());
        let before = tables.pods().and_then(|pods| pods.get(&addr));
        let (before, unreadable) = match before {
            Ok(before) => (before.filter(|entry| entry.flags & PodEntry::DEPARTED == 0), None),
            Err(error) => (None, Some(error)),
        };
        note(unreadable.map_or(Ok(()), Err));
        if let Some(entry) = before {
            let removed = tables
                .ifaces()
                .and_then(|mut ifaces| ifaces.remove(&entry.ifindex));
            note(removed.map(drop));
            note(self.mark_departed(addr, entry.flags & PodEntry::WITHOUT_IPV4));
        }
        let purged = self.purge(addr);
        let flows = *purged.as_ref().unwrap_or(&0);
        note(purged.map(drop));
        let removed = tables.usage().and_then(|mut usage| usage.remove(&addr));
        note(removed.map(drop));
        note(leave(before));
        DatapathError::collect(|| format!("the removal of pod {}", addr.ip()), errors)?;
        Ok(Removed {
            flows,
            was_known: before.is_some(),
        })
    }

    /// `kept` are the flags that it goes on to have.
    fn mark_departed<A: Family>(&self, addr: A, kept: u16) -> Result<(), DatapathError> {
        let _changing = self.lock_pods(Sharing::WithOthers)?;
        let departed = PodEntry {
            ifindex: 0,
            mac: [0; 6],
            host_mac: [0; 6],
            mtu: 0,
            flags: PodEntry::DEPARTED | kept,
            changed: now(),
        };
        self.tables.of().pods()?.insert(addr, departed)
    }

    /// Deletes every flow entry that has the address in it: as source, as destination, or as what a translation
    /// restores. Both halves of a translated flow do. Returns how many they were.
    fn purge<A: Family>(&self, addr: A) -> Result<usize, DatapathError> {
        let mut flows = self.tables.of::<A>().flows()?;
        let mut of_pod = Vec::new();
        flows.for_each(|key, entry| of_pod.extend(mentions(&key, &entry, addr).then_some(key)))?;
        let mut purged = 0;
        for key in of_pod {
            purged += usize::from(flows.remove(&key)?);
        }
        if purged > 0 {
            self.tables.forget_crowds()?;
        }
        Ok(purged)
    }

    /// Takes the programs off the interface. Pins of interfaces that are gone are removed as well: their name is not
    /// known any more.
    fn leave_interface(&self, pod: Option<PodEntry>) -> Result<(), DatapathError> {
        let mut netlink = Netlink::new()?;
        let link = match pod {
            Some(pod) => netlink.link_by_index(pod.ifindex)?,
            None => None,
        };
        let Some(link) = link else {
            return attach::remove_defunct(&self.pins);
        };
        for hook in Hook::pod(&link.name, link.index) {
            attach::release(&mut netlink, &self.pins, &hook)?;
        }
        Ok(Restore::new(&self.root).forget_clsact(&link.name)?)
    }

    /// Forgets pods that departed more than `seconds` ago, unless somebody is adding or removing one just now.
    fn forget_departed(&self, seconds: u32) -> Result<(), DatapathError> {
        self.forget_departed_of::<[u8; 4]>(seconds)?;
        if self.has_ipv6() {
            self.forget_departed_of::<[u8; 16]>(seconds)?;
        }
        Ok(())
    }

    fn forget_departed_of<A: Family>(&self, seconds: u32) -> Result<(), DatapathError> {
        let mut pods = self.tables.of::<A>().pods()?;
        let now = now();
        let is_old = |entry: &PodEntry| {
            entry.flags & PodEntry::DEPARTED != 0 && now.wrapping_sub(entry.changed) > seconds
        };
        if !pods.all()?.iter().any(|(_, entry)| is_old(entry)) {
            return Ok(());
        }
        let Some(_alone) = self.lock_pods(Sharing::Alone)? else {
            return Ok(());
        };
        for (addr, _) in pods.all()?.into_iter().filter(|(_, entry)| is_old(entry)) {
            pods.remove(&addr)?;
        }
        Ok(())
    }

    /// Pods may be added and removed side by side, each writes its own entries; but not while departed ones are
    /// being forgotten, or an address given anew could be forgotten too. `None` if [`Sharing::Alone`] is not to be
    /// had at once.
    pub(super) fn lock_pods(&self, sharing: Sharing) -> Result<Option<File>, DatapathError> {
        let path = self.root.path("/run/causeway/pods.lock");
        let failed = |source| DatapathError::file(&path, source);
        let file = durable::open(&path, File::options().create(true).append(true)).map_err(failed)?;
        match sharing {
            Sharing::WithOthers => file.lock_shared().map_err(failed)?,
            Sharing::Alone => match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(error)) => return Err(failed(error)),
            },
        }
        Ok(Some(file))
    }
}

fn too_many(error: DatapathError) -> DatapathError {
    if tables::is_full(&error) {
        DatapathError::TooManyPods
    } else {
        error
    }
}

#[derive(Clone, Copy)]
pub(super) enum Sharing {
    WithOthers,
    Alone,
}

fn mentions<A: Address>(key: &FlowKey<A>, entry: &FlowEntry<A>, addr: A) -> bool {
    key.src == addr || key.dst == addr || entry.nat_addr == addr
}

/// Seconds of `CLOCK_MONOTONIC`, the clock of all times in the maps.
pub fn now() -> u32 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    time.tv_sec.cast_unsigned() as u32
}

#[cfg(test)]
mod tests {
    use causeway_common::{
        flow::{Nat, State},
        tuple::TCP,
    };

    use super::*;
    use crate::datapath::tables::{Entry, Key};

    const POD: [u8; 4] = [10, 240, 0, 9];
    const NODE: [u8; 4] = [10, 240, 0, 4];
    const REMOTE: [u8; 4] = [203, 0, 113, 9];

    fn key(src: [u8; 4], dst: [u8; 4]) -> Key {
        Key {
            src,
            dst,
            src_port: [0, 1],
            dst_port: [0, 2],
            protocol: TCP,
            _pad: [0; 3],
        }
    }

    #[test]
    fn both_halves_of_a_translated_flow_mention_the_pod() {
        let forward = Entry {
            state: State::CARRIED,
            nat: Nat::SOURCE,
            nat_addr: NODE,
            ..Entry::offer(3, [2; 6], 1)
        };
        let reverse = Entry {
            nat: Nat::DESTINATION,
            nat_addr: POD,
            ..forward
        };
        assert!(mentions(&key(POD, REMOTE), &forward, POD));
        assert!(mentions(&key(REMOTE, NODE), &reverse, POD));
    }

    #[test]
    fn flows_of_others_do_not_mention_the_pod() {
        let plain = Entry::offer(3, [2; 6], 1);
        assert!(mentions(&key(REMOTE, POD), &plain, POD));
        assert!(!mentions(&key(REMOTE, NODE), &plain, POD));
        assert!(!mentions(&key([10, 240, 0, 10], REMOTE), &plain, POD));
    }
}
