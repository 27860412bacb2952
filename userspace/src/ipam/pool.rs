//! Which address is given to whom: pools and leases, as they stand in the incumbent's state file.
//!
//! Pure: time comes in as a number and nothing is read or written. An address has at most one holder, and a holder
//! has at most one address in a pool.

mod format;
mod subnet;

use std::net::IpAddr;

use ipnet::IpNet;

pub use self::format::{Address, Pool, Space};
use super::source::SourcePool;
use crate::endpoints::Key;

/// Why a request is refused. The texts are the incumbent's: scripts and support documents quote them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PoolError {
    /// Every address of the pool has a holder, or is not to be given yet.
    #[error("No available addresses")]
    NoAvailableAddresses,
    /// No pool suits the request.
    #[error("no available address pools")]
    NoAvailablePools,
    /// The requested subnet is no pool.
    #[error("Pool id {0} not found :Invalid address pool")]
    InvalidPool(String),
    /// The requested address is not in the pool.
    #[error("Address not found: {0}")]
    AddressNotFound(IpAddr),
    /// The requested address is another's.
    #[error("Address already in use: {0}")]
    AddressInUse(IpAddr),
    /// The holder has another address than the one that it requests.
    #[error("Address already exists: {0} is held by the container")]
    HolderHasAnother(IpAddr),
}

/// Who holds an address: one interface of one container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holder {
    /// The whole container id.
    pub container: String,
    /// The interface's name in the container.
    pub interface: String,
}

/// What a holder asks for, and on which terms.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// The addresses, if they must be these: of a family at most one.
    pub addresses: Vec<IpAddr>,
    /// How long a released address is not given to anybody. Milliseconds.
    pub quarantine: u64,
    /// The network that the lease is for.
    pub network: String,
    /// The host's end of the link that the address is for; empty where it is somebody else's.
    pub host_if: String,
    /// Milliseconds since 1970.
    pub now: u64,
}

impl Request {
    /// The address that is asked for in the family of a subnet.
    fn wanted(&self, subnet: &IpNet) -> Option<IpAddr> {
        let mut addresses = self.addresses.iter().copied();
        addresses.find(|address| address.is_ipv4() == subnet.addr().is_ipv4())
    }
}

/// An address that somebody holds, with all that is known of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// The address with the subnet's mask.
    pub address: IpNet,
    /// Its holder.
    pub holder: Holder,
    /// The network it is for; empty when the incumbent wrote the lease.
    pub network: String,
    /// The host's end of the link that it is for; empty where that is not known.
    pub host_if: String,
    /// When it was given, in milliseconds since 1970; 0 where that is not known.
    pub since: u64,
}

impl Held {
    /// The attachment that the address is for, by the lease alone.
    pub fn key(&self) -> Key {
        Key {
            network: self.network.clone(),
            container: self.holder.container.clone(),
            interface: self.holder.interface.clone(),
        }
    }
}

/// How many addresses a pool has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// All of them.
    pub total: usize,
    /// Held by somebody.
    pub used: usize,
    /// Released so short a time ago that nobody gets them yet.
    pub quarantined: usize,
}

/// An address given to somebody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The address.
    pub address: IpAddr,
    /// Its subnet.
    pub subnet: IpNet,
    /// The subnet's gateway.
    pub gateway: IpAddr,
    /// The node's interface that carries the subnet.
    pub uplink: String,
    /// That interface has the address itself, until it is taken off for the holder.
    pub on_interface: bool,
}

impl Lease {
    /// The address with its subnet's mask.
    pub fn net(&self) -> IpNet {
        IpNet::new(self.address, self.subnet.prefix_len()).unwrap_or(self.subnet)
    }
}

impl Space {
    /// Brings the pools up to date: what the source has is there, what it has no more goes once nobody holds it.
    pub fn merge(&mut self, source: &[SourcePool]) {
        for new in source {
            self.pools
                .entry(new.subnet.to_string())
                .or_insert_with(|| Pool::new(new.subnet))
                .update(new);
        }
        for pool in self.pools.values_mut() {
            let listed = source.iter().find(|new| new.subnet == pool.subnet);
            let on_interface = pool.on_interface;
            pool.addresses.retain(|_, address| {
                let listed = listed.is_some_and(|new| new.addresses.contains(&address.addr));
                // Taken off the interface for its holder, and put back when it is released.
                address.vanished = !(listed || on_interface && address.in_use);
                address.in_use || !address.vanished
            });
        }
        self.pools.retain(|_, pool| {
            !pool.addresses.is_empty() || source.iter().any(|new| new.subnet == pool.subnet)
        });
    }

    /// The subnet to take an address of IPv4 from when none is prescribed. First where the holder has one already, then
    /// by free addresses, the node's interface `uplink` if given, priority and size.
    pub fn choose(&self, holder: &Holder, uplink: Option<&str>) -> Result<IpNet, PoolError> {
        let of_ipv4 = self.pools.values().filter(|pool| !pool.is_ipv6());
        Self::best(of_ipv4, holder, uplink)
    }

    /// As [`Self::choose`], of IPv6: for the address beside that of IPv4, or for a pod's only one.
    pub fn choose_v6(&self, holder: &Holder, uplink: Option<&str>) -> Option<IpNet> {
        Self::best(self.filled_v6(), holder, uplink).ok()
    }

    /// Whether the holder gets an address of IPv6 alone: there are such, and of IPv4 the source has no subnet any more, nor the
    /// holder an address. A subnet of IPv4 without an address counts: one may be on its way, and a pod that did not wait for it
    /// would never get it.
    pub fn is_ipv6_alone(&self, holder: &Holder) -> bool {
        let mut of_ipv4 = self.pools.values().filter(|pool| !pool.is_ipv6());
        let serves = |pool: &Pool| pool.is_listed() || pool.is_held_by(holder);
        self.filled_v6().next().is_some() && !of_ipv4.any(serves)
    }

    /// The pools of IPv6 that have an address. In the others the node's own may be all that there is.
    fn filled_v6(&self) -> impl Iterator<Item = &Pool> {
        let of_ipv6 = self.pools.values().filter(|pool| pool.is_ipv6());
        of_ipv6.filter(|pool| !pool.addresses.is_empty())
    }

    fn best<'a>(
        pools: impl Iterator<Item = &'a Pool>,
        holder: &Holder,
        uplink: Option<&str>,
    ) -> Result<IpNet, PoolError> {
        pools
            .filter(|pool| uplink.is_none_or(|name| pool.if_name == name))
            .max_by_key(|pool| {
                (
                    pool.is_held_by(holder),
                    pool.has_free(),
                    pool.priority,
                    pool.addresses.len(),
                )
            })
            .map(|pool| pool.subnet)
            .ok_or(PoolError::NoAvailablePools)
    }

    /// Gives the holder an address of `subnet`: the one it has already, else the requested one, else the free one
    /// whose release is longest ago. One that `is_busy` is given to nobody, whatever the leases say.
    pub fn allocate(
        &mut self,
        subnet: &str,
        holder: &Holder,
        request: &Request,
        is_busy: &dyn Fn(IpAddr) -> bool,
    ) -> Result<Lease, PoolError> {
        let key = subnet
            .parse::<IpNet>()
            .map_or(subnet.to_owned(), |net| net.trunc().to_string());
        let pool = self
            .pools
            .get_mut(&key)
            .ok_or_else(|| PoolError::InvalidPool(subnet.to_owned()))?;
        let address = pool.allocate(holder, request, is_busy)?;
        pool.ref_count = pool.ref_count.max(1);
        Ok(pool.lease(address))
    }

    /// Frees what the holder has, in all pools: the address under its name, and `also` if the container holds it.
    /// Returns what was freed.
    pub fn release(&mut self, holder: &Holder, also: &[IpAddr], now: u64) -> Vec<IpAddr> {
        let mut freed = Vec::new();
        for pool in self.pools.values_mut() {
            let last = pool
                .addresses
                .values()
                .map(|address| address.released_at)
                .max()
                .unwrap_or(0);
            let held = pool.addresses.values_mut().filter(|address| {
                let named = also.contains(&address.addr) && address.id == holder.container;
                address.in_use && (named || address.is_held_by(holder))
            });
            // Increasing even where the clock stands still or goes back: the order is what counts.
            for (address, stamp) in held.zip(now.max(last + 1)..) {
                address.free(stamp);
                freed.push(address.addr);
            }
            pool.addresses
                .retain(|_, address| address.in_use || !address.vanished);
        }
        freed
    }

    /// What the holder has.
    pub fn leases(&self, holder: &Holder) -> Vec<Lease> {
        self.pools
            .values()
            .filter_map(|pool| Some(pool.lease(pool.held_by(holder)?)))
            .collect()
    }

    /// Notes a lease that is known from elsewhere, unless the address has a holder. Used when the state was lost.
    pub fn adopt(&mut self, holder: &Holder, address: IpNet, request: &Request) {
        let pool = self
            .pools
            .entry(address.trunc().to_string())
            .or_insert_with(|| Pool::new(address.trunc()));
        let record = pool.record(address.addr());
        if !record.in_use {
            record.take(holder, request);
        }
    }

    /// Every address that somebody holds.
    pub fn held(&self) -> impl Iterator<Item = Held> {
        self.pools.values().flat_map(|pool| {
            let held = pool.addresses.values().filter(|address| address.in_use);
            held.map(|address| Held {
                address: IpNet::new(address.addr, pool.subnet.prefix_len()).unwrap_or(pool.subnet),
                holder: Holder {
                    container: address.id.clone(),
                    interface: address.interface().to_owned(),
                },
                network: address.holder_network.clone(),
                host_if: address.host_if_name.clone(),
                since: address.leased_at,
            })
        })
    }

    /// Frees everything: no holder outlives a boot. Returns how many addresses that were.
    pub fn release_all(&mut self) -> usize {
        let mut freed = 0;
        for pool in self.pools.values_mut() {
            for address in pool.addresses.values_mut().filter(|address| address.in_use) {
                let released = address.released_at;
                address.free(released);
                freed += 1;
            }
            pool.addresses.retain(|_, address| !address.vanished);
        }
        freed
    }

    /// How many addresses the pool of `subnet` has at the time `now`, with this quarantine; both in milliseconds.
    pub fn usage(&self, subnet: &str, now: u64, quarantine: u64) -> Usage {
        self.pools.get(subnet).map_or(Usage::default(), |pool| Usage {
            total: pool.addresses.len(),
            used: pool.addresses.values().filter(|address| address.in_use).count(),
            quarantined: pool
                .free()
                .filter(|free| free.is_quarantined(now, quarantine))
                .count(),
        })
    }
}

#[cfg(test)]
mod tests;
