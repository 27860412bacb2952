//! Addresses for pods: from the fabric's list, given under a lock, never twice.
//!
//! - [`source`]: which addresses there are;
//! - [`pool`]: who gets which (pure);
//! - [`store`]: the leases on disk.
//!
//! The list is read before the lock is taken, and a saved lease is on disk before it is returned.

pub mod pool;
pub mod source;
pub mod store;

use std::{
    collections::BTreeSet,
    net::IpAddr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use ipnet::IpNet;

use self::{
    pool::{Holder, Lease, PoolError},
    source::{LocalNic, SourceError, SourceList},
    store::{Store, StoreError},
};
use crate::root::Root;

/// The name server of every Azure network.
pub const NAMESERVER: &str = "168.63.129.16";

/// Why there is no address.
#[derive(Debug, thiserror::Error)]
pub enum IpamError {
    /// The request cannot be served.
    #[error("{source}")]
    Pool {
        /// Why.
        source: PoolError,
        /// The numbers behind it.
        details: String,
    },
    /// The list cannot be used, and no earlier one is known.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The leases cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// `ipam.environment` is none that is known.
    #[error(
        "Invalid configuration: ipam.environment {0:?} is not supported; use \"mas\", which reads the addresses from {list}",
        list = source::INTERFACES
    )]
    Environment(String),
}

/// The addresses of a node.
#[derive(Debug)]
pub struct Ipam<'a> {
    root: &'a Root,
    timeout: Duration,
    list: Option<SourceList>,
    list_error: Option<SourceError>,
}

impl<'a> Ipam<'a> {
    /// For releasing: the list is not needed.
    pub fn without_source(root: &'a Root, timeout: Duration) -> Self {
        Self {
            root,
            timeout,
            list: None,
            list_error: None,
        }
    }

    /// Reads the list of `environment` for a node with the interfaces `local`. Where that fails, the addresses known
    /// from earlier are used. `timeout` is how long to wait for the lock.
    pub fn new(
        root: &'a Root,
        timeout: Duration,
        environment: &str,
        local: &[LocalNic],
    ) -> Result<Self, IpamError> {
        if !matches!(environment, "mas" | "fileIpam") {
            return Err(IpamError::Environment(environment.to_owned()));
        }
        let mut ipam = Self::without_source(root, timeout);
        match source::read(&root.path(source::INTERFACES), local) {
            Ok(list) => {
                for skipped in &list.skipped {
                    tracing::warn!(entry = skipped, "an entry of the address list is left out");
                }
                ipam.list = Some(list);
            }
            Err(error) => {
                tracing::warn!(%error, "the address list is not read: addresses known from earlier are used");
                ipam.list_error = Some(error);
            }
        }
        Ok(ipam)
    }

    /// The subnet to take the holder's address from: `preferred` if it is a pool, else the best on the interface
    /// `uplink`, or on any. With it, the name of the interface that carries it.
    pub fn choose(
        &mut self,
        holder: &Holder,
        preferred: Option<IpNet>,
        uplink: Option<&str>,
    ) -> Result<(IpNet, String), IpamError> {
        let mut store = self.open()?;
        let space = store.space();
        let carrier = |subnet: &IpNet| {
            space
                .pools
                .get(&subnet.to_string())
                .map(|pool| (pool.subnet, pool.if_name.clone()))
        };
        if let Some(found) = preferred.as_ref().and_then(carrier) {
            return Ok(found);
        }
        let chosen = space.choose(holder, uplink);
        match chosen.map(|subnet| carrier(&subnet)) {
            Ok(Some(found)) => Ok(found),
            Ok(None) => Err(self.refuse(PoolError::NoAvailablePools, "")),
            Err(error) => {
                let known: Vec<String> = space
                    .pools
                    .values()
                    .map(|pool| format!("{} on {}", pool.id, pool.if_name))
                    .collect();
                Err(self.refuse(error, &format!("pools known: [{}]", known.join(", "))))
            }
        }
    }

    /// Gives the holder an address of `subnet` that is not `busy`, or the one that it has already. It is on disk when
    /// this returns.
    pub fn allocate(
        &mut self,
        subnet: &str,
        holder: &Holder,
        requested: Option<IpAddr>,
        busy: &BTreeSet<IpAddr>,
    ) -> Result<Lease, IpamError> {
        let mut store = self.open()?;
        let space = store.space();
        match space.allocate(subnet, holder, requested, busy) {
            Ok(lease) => {
                store.save()?;
                Ok(lease)
            }
            Err(error) => {
                let (total, used) = space.usage(subnet);
                Err(self.refuse(
                    error,
                    &format!("{used} of {total} addresses of pool {subnet} are in use"),
                ))
            }
        }
    }

    /// Frees what the holder has, and `also` where its container has it. Returns what was freed; nothing to free is
    /// no error.
    pub fn release(&self, holder: &Holder, also: &[IpAddr]) -> Result<Vec<IpAddr>, StoreError> {
        let mut store = Store::open(self.root, self.timeout)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let freed = store
            .space()
            .release(holder, also, u64::try_from(now.as_millis()).unwrap_or(u64::MAX));
        store.save()?;
        Ok(freed)
    }

    /// What the holder has.
    pub fn leases(&self, holder: &Holder) -> Result<Vec<Lease>, StoreError> {
        Ok(Store::open(self.root, self.timeout)?.space().leases(holder))
    }

    fn open(&self) -> Result<Store, IpamError> {
        let mut store = Store::open(self.root, self.timeout)?;
        if let Some(list) = &self.list {
            store.space().merge(&list.pools);
        }
        Ok(store)
    }

    /// With no list and nothing known from earlier, the list is what is to be mended.
    fn refuse(&mut self, error: PoolError, numbers: &str) -> IpamError {
        let without_pools = matches!(error, PoolError::NoAvailablePools | PoolError::InvalidPool(_));
        match self.list_error.take() {
            Some(cause) if without_pools => IpamError::Source(cause),
            Some(cause) => IpamError::Pool {
                source: error,
                details: format!("{numbers}; {cause}"),
            },
            None => {
                let list = self.root.path(source::INTERFACES);
                IpamError::Pool {
                    source: error,
                    details: format!("{numbers}; list: {}", list.display()),
                }
            }
        }
    }
}
