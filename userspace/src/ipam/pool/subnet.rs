//! One pool: its records, and which of them a holder gets.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use serde_json::Map;

use super::{
    Holder, Lease, PoolError, Request,
    format::{Address, Pool},
};
use crate::ipam::source::{SourcePool, gateway};

impl Pool {
    pub(super) fn new(subnet: IpNet) -> Self {
        Self {
            id: subnet.to_string(),
            if_name: String::new(),
            subnet,
            gateway: gateway(&subnet).to_string(),
            addresses: BTreeMap::new(),
            is_ipv6: subnet.addr().is_ipv6(),
            priority: 0,
            ref_count: 0,
            on_interface: false,
            extra: Map::new(),
        }
    }

    /// The family, whatever the file says of it.
    pub fn is_ipv6(&self) -> bool {
        matches!(self.subnet, IpNet::V6(_))
    }

    /// The node's interface that carries it, where that is known.
    pub fn carrier(&self) -> Option<&str> {
        (!self.if_name.is_empty()).then_some(self.if_name.as_str())
    }

    /// Whether the source has the subnet, and not only some holder an address that the source has no more.
    pub fn is_listed(&self) -> bool {
        self.addresses.is_empty() || self.addresses.values().any(|address| !address.vanished)
    }

    /// Whether an address has no holder.
    pub fn has_free(&self) -> bool {
        self.free().next().is_some()
    }

    /// Whether the holder has an address.
    pub fn is_held_by(&self, holder: &Holder) -> bool {
        self.held_by(holder).is_some()
    }

    pub(super) fn update(&mut self, new: &SourcePool) {
        self.if_name.clone_from(&new.interface);
        self.on_interface = new.on_interface;
        self.priority = new.priority;
        let known: BTreeSet<IpAddr> = self.addresses.values().map(|address| address.addr).collect();
        for address in new.addresses.difference(&known) {
            self.record(*address);
        }
    }

    pub(super) fn record(&mut self, addr: IpAddr) -> &mut Address {
        self.addresses.entry(addr.to_string()).or_insert_with(|| Address {
            id: String::new(),
            addr,
            in_use: false,
            holder_if_name: String::new(),
            holder_network: String::new(),
            host_if_name: String::new(),
            leased_at: 0,
            released_at: 0,
            vanished: false,
            extra: Map::new(),
        })
    }

    pub(super) fn allocate(
        &mut self,
        holder: &Holder,
        request: &Request,
        is_busy: &dyn Fn(IpAddr) -> bool,
    ) -> Result<IpAddr, PoolError> {
        if let Some(held) = self.held_by(holder) {
            return match request.wanted(&self.subnet) {
                Some(requested) if requested != held => Err(PoolError::HolderHasAnother(held)),
                _ => {
                    self.record(held).take(holder, request);
                    Ok(held)
                }
            };
        }
        let address = match request.wanted(&self.subnet) {
            Some(wanted) if self.free().any(|free| free.addr == wanted) && !is_busy(wanted) => wanted,
            Some(wanted) if self.addresses.contains_key(&wanted.to_string()) => {
                return Err(PoolError::AddressInUse(wanted));
            }
            Some(wanted) => return Err(PoolError::AddressNotFound(wanted)),
            None => {
                let ready = self
                    .free()
                    .filter(|free| !free.is_quarantined(request.now, request.quarantine));
                let mut ready: Vec<_> = ready.map(|free| (free.released_at, free.addr)).collect();
                ready.sort_unstable();
                let mut longest_ago_first = ready.into_iter().map(|(_, address)| address);
                longest_ago_first
                    .find(|address| !is_busy(*address))
                    .ok_or(PoolError::NoAvailableAddresses)?
            }
        };
        self.record(address).take(holder, request);
        Ok(address)
    }

    pub(super) fn free(&self) -> impl Iterator<Item = &Address> {
        self.addresses
            .values()
            .filter(|address| !address.in_use && !address.vanished)
    }

    pub(super) fn held_by(&self, holder: &Holder) -> Option<IpAddr> {
        self.addresses
            .values()
            .find(|address| address.is_held_by(holder))
            .map(|address| address.addr)
    }

    pub(super) fn lease(&self, address: IpAddr) -> Lease {
        Lease {
            address,
            subnet: self.subnet,
            gateway: gateway(&self.subnet),
            uplink: self.if_name.clone(),
            on_interface: self.on_interface,
        }
    }
}

/// The interface that a lease of the incumbent is for: it keeps one address a container.
const INCUMBENT_INTERFACE: &str = "eth0";

impl Address {
    pub(super) fn interface(&self) -> &str {
        match self.holder_if_name.as_str() {
            "" => INCUMBENT_INTERFACE,
            name => name,
        }
    }

    pub(super) fn is_held_by(&self, holder: &Holder) -> bool {
        self.in_use && self.id == holder.container && self.interface() == holder.interface
    }

    /// A release in the future was noted by a clock that was wrong: it counts as over.
    pub(super) fn is_quarantined(&self, now: u64, quarantine: u64) -> bool {
        self.released_at != 0
            && now
                .checked_sub(self.released_at)
                .is_some_and(|since| since < quarantine)
    }

    pub(super) fn take(&mut self, holder: &Holder, request: &Request) {
        if !self.is_held_by(holder) {
            self.leased_at = request.now;
        }
        self.id.clone_from(&holder.container);
        self.holder_if_name.clone_from(&holder.interface);
        self.holder_network.clone_from(&request.network);
        self.host_if_name.clone_from(&request.host_if);
        self.in_use = true;
    }

    pub(super) fn free(&mut self, now: u64) {
        self.id.clear();
        self.holder_if_name.clear();
        self.holder_network.clear();
        self.host_if_name.clear();
        self.in_use = false;
        self.leased_at = 0;
        self.released_at = now;
    }
}
