//! The pinned datapath: programs, maps and where they are attached.
//!
//! Nothing of it belongs to a process. The first CNI ADD loads, pins and attaches ([`Datapath::ensure`]); whoever
//! comes later adopts the pins, after comparing them with what this build expects. Changes that must not meet
//! (loading, unloading, following a changed uplink) take the lock `<root>/run/causeway/datapath.lock`.

mod addresses;
mod apply;
mod attach;
mod balance;
mod bpf;
#[cfg(feature = "cli")]
mod drain;
mod error;
mod events;
mod expedite;
mod family;
mod hold;
mod inspect;
mod ipv6;
mod layout;
mod load;
mod mend;
mod pins;
mod pods;
mod ports;
mod ranges;
mod sweep;
mod tables;
mod unload;
mod upgrade;
mod xdp;

use std::{
    net::{IpAddr, Ipv4Addr},
    path::Path,
    sync::OnceLock,
    time::Duration,
};

pub use addresses::PodAddresses;
pub use attach::{AttachFailure, AttachMode, Direction, Mechanism};
use causeway_common::{
    flow::FlowEntry,
    maps::{Config, Count, MAP_NAMES, PodEntry, Usage, V6_MAP_NAMES},
    reason::Reason,
    tuple::FlowKey,
};
#[cfg(feature = "cli")]
pub use drain::{End, Ending};
pub use error::{DatapathError, PinFailure};
pub use events::Events;
pub use expedite::Expedited;
pub use hold::Hold;
pub use inspect::{HookState, mechanisms};
pub use layout::Layout;
pub use load::{OBJECT, OBJECT_V6};
pub use mend::PodMaps;
pub use pods::{Pod, Removed, now};
pub use ports::HostPort;
pub use ranges::{Range, RangeV6};
pub use sweep::{Occasion, Swept, is_sweep_due};
#[cfg(feature = "cli")]
pub(crate) use tables::for_each;
pub use unload::Unloaded;
pub use upgrade::Upgraded;
pub use xdp::XdpRefusal;

use self::{attach::Hook, family::Family, pins::PinTree, tables::Tables};
use crate::{durable::Lock, links::Netlink, node::Uplink, restore::Restore, root::Root};

/// One direction of a flow.
pub type Flow = (FlowKey<[u8; 4]>, FlowEntry<[u8; 4]>);

/// The pinned datapath of one node.
#[derive(Clone, Debug)]
pub struct Datapath {
    root: Root,
    pins: PinTree,
    tables: Tables,
    /// Set once the programs for IPv6 are known to be loaded; they are not unloaded before those for IPv4.
    ipv6: OnceLock<()>,
}

/// How long to wait for whoever is loading. Loading takes well below a second.
const LOCK_TIMEOUT: Duration = Duration::from_secs(30);

impl Datapath {
    /// Adopts the pinned datapath; or loads it, pins it and attaches it to the uplink. Follows an uplink whose index,
    /// address or MTU has changed. `expedite`: grace periods may be made short for it ([`Expedited`]).
    pub fn ensure(root: &Root, uplink: &Uplink, expedite: bool) -> Result<Self, DatapathError> {
        if let Some(datapath) = Self::at_hand(root)?
            && datapath.serves(uplink)?
        {
            return Ok(datapath);
        }
        let _lock = lock(root)?;
        let mode = AttachMode::from_env()?;
        let _expedited = Expedited::begin(expedite);
        match Self::open(root)? {
            Some(datapath) => datapath.follow(uplink, mode)?,
            None => load::load(root, uplink, mode)?,
        }
        Self::open(root)?.ok_or_else(|| DatapathError::Vanished(PinTree::live(root).directory().to_owned()))
    }

    /// The pinned datapath with all its maps as they should be, `None` when there is none.
    pub fn open(root: &Root) -> Result<Option<Self>, DatapathError> {
        let Some(datapath) = Self::at_hand(root)? else {
            return Ok(None);
        };
        if datapath.has_ipv6() {
            layout::check(&datapath.pins, &V6_MAP_NAMES)?;
        }
        layout::check(&datapath.pins, &MAP_NAMES)?;
        Ok(Some(datapath))
    }

    /// As [`Self::open`] for one CNI call, which pays for each map that is looked at: a map is compared when it is opened.
    pub fn at_hand(root: &Root) -> Result<Option<Self>, DatapathError> {
        let pins = PinTree::live(root);
        if !pins.exists()? {
            return Ok(None);
        }
        let ipv6 = OnceLock::new();
        if ipv6::is_loaded(&pins) {
            ipv6.get_or_init(|| ());
        }
        Ok(Some(Self {
            root: root.clone(),
            tables: Tables::new(pins.clone()),
            pins,
            ipv6,
        }))
    }

    /// The directory of the pins.
    pub fn directory(&self) -> &Path {
        self.pins.directory()
    }

    /// The addresses of pods, of both families, departed ones included, in no order.
    pub fn addresses(&self) -> Result<Vec<(IpAddr, PodEntry)>, DatapathError> {
        let mut all = self.addresses_of::<[u8; 4]>()?;
        if self.has_ipv6() {
            all.extend(self.addresses_of::<[u8; 16]>()?);
        }
        Ok(all)
    }

    fn addresses_of<A: Family>(&self) -> Result<Vec<(IpAddr, PodEntry)>, DatapathError> {
        let pods = self.tables.of::<A>().pods()?.all()?;
        Ok(pods.into_iter().map(|(addr, entry)| (addr.ip(), entry)).collect())
    }

    /// The pods, each by its address of IPv4, or by that of IPv6 if it has no other; departed ones included, in no order.
    pub fn pods(&self) -> Result<Vec<(IpAddr, PodEntry)>, DatapathError> {
        let mut pods = self.addresses()?;
        pods.retain(|(addr, entry)| addr.is_ipv4() || entry.flags & PodEntry::WITHOUT_IPV4 != 0);
        Ok(pods)
    }

    /// What the programs know of one pod by its address of IPv4.
    pub fn pod(&self, addr: Ipv4Addr) -> Result<Option<PodEntry>, DatapathError> {
        self.tables.pods()?.get(&addr.octets())
    }

    /// Every direction of every flow, in no order, while packets go on flowing.
    pub fn flows(&self) -> Result<Vec<Flow>, DatapathError> {
        self.tables.flows()?.all()
    }

    /// Calls `each` for every direction of every flow, without holding them all.
    pub fn for_each_flow(
        &self,
        each: impl FnMut(FlowKey<[u8; 4]>, FlowEntry<[u8; 4]>),
    ) -> Result<(), DatapathError> {
        self.tables.flows()?.for_each(each)
    }

    /// As [`Self::for_each_flow`], of IPv6.
    pub fn for_each_flow_v6(
        &self,
        each: impl FnMut(FlowKey<[u8; 16]>, FlowEntry<[u8; 16]>),
    ) -> Result<(), DatapathError> {
        if self.has_ipv6() {
            self.tables.of::<[u8; 16]>().flows()?.for_each(each)?;
        }
        Ok(())
    }

    /// Directions of flows that the table has room for: two a flow.
    pub fn flow_entries(&self) -> Result<usize, DatapathError> {
        self.tables.flows()?.capacity()
    }

    /// As [`Self::flow_entries`], of IPv6; `None` until a pod has an address of that family.
    pub fn flow_entries_v6(&self) -> Result<Option<usize>, DatapathError> {
        if self.has_ipv6() {
            self.tables.of::<[u8; 16]>().flows()?.capacity().map(Some)
        } else {
            Ok(None)
        }
    }

    /// How often each reason was given, over all CPUs.
    pub fn counts(&self) -> Result<Vec<(Reason, Count)>, DatapathError> {
        self.tables.counts()
    }

    /// How many flows the pods have opened, and how many all hosts outside have towards pods.
    pub fn flow_counts(&self) -> Result<(i64, i64), DatapathError> {
        let (mut pods, mut outside) = (0, 0);
        for (account, usage) in self.usage()? {
            let flows = i64::from(usage.flows.max(0));
            if account.is_unspecified() {
                outside += flows;
            } else {
                pods += flows;
            }
        }
        Ok((pods, outside))
    }

    /// The accounts of openers, by their addresses; hosts outside have the unspecified one of their family.
    pub fn usage(&self) -> Result<Vec<(IpAddr, Usage)>, DatapathError> {
        let mut all = self.usage_of::<[u8; 4]>()?;
        if self.has_ipv6() {
            all.extend(self.usage_of::<[u8; 16]>()?);
        }
        Ok(all)
    }

    fn usage_of<A: Family>(&self) -> Result<Vec<(IpAddr, Usage)>, DatapathError> {
        let usage = self.tables.of::<A>().usage()?.all()?;
        Ok(usage
            .into_iter()
            .map(|(addr, usage)| (addr.ip(), usage))
            .collect())
    }

    /// What the programs know of the node.
    pub fn config(&self) -> Result<Config<[u8; 4]>, DatapathError> {
        self.tables.config()
    }

    /// Whether the programs know the uplink as it is, and are attached to it.
    pub(crate) fn serves(&self, uplink: &Uplink) -> Result<bool, DatapathError> {
        if !describes(&self.config()?, uplink) {
            return Ok(false);
        }
        for hook in Hook::uplink(&uplink.name, uplink.ifindex) {
            if attach::attached(&self.pins, &hook)?.is_none() {
                return Ok(false);
            }
        }
        self.xdp_serves(uplink)
    }

    /// Tells the programs about the uplink and attaches them to it. The seed stays: live flows depend on it.
    fn follow(&self, uplink: &Uplink, mode: AttachMode) -> Result<(), DatapathError> {
        let before = self.config()?;
        if !describes(&before, uplink) {
            tracing::warn!(
                interface = uplink.name,
                ifindex = uplink.ifindex,
                addr = %uplink.addr,
                mtu = uplink.mtu,
                old_ifindex = before.uplink_ifindex,
                old_addr = %Ipv4Addr::from(before.node_addr),
                old_mtu = before.uplink_mtu,
                "the uplink has changed"
            );
            self.tables.set_config(&Config {
                node_addr: uplink.addr.octets(),
                uplink_ifindex: uplink.ifindex,
                uplink_mtu: uplink.mtu,
                ..before
            })?;
        }
        let (mut netlink, restore) = (Netlink::new()?, Restore::new(&self.root));
        for hook in Hook::uplink(&uplink.name, uplink.ifindex) {
            attach::attach(&mut netlink, &self.pins, &restore, &hook, mode)?;
        }
        self.follow_xdp(uplink)
    }
}

fn describes(config: &Config<[u8; 4]>, uplink: &Uplink) -> bool {
    config.node_addr == uplink.addr.octets()
        && config.uplink_ifindex == uplink.ifindex
        && config.uplink_mtu == uplink.mtu
}

fn lock(root: &Root) -> Result<Lock, DatapathError> {
    Ok(Lock::acquire(
        &root.path("/run/causeway/datapath.lock"),
        LOCK_TIMEOUT,
    )?)
}
