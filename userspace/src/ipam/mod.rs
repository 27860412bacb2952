//! Addresses for pods: from a list, given under a lock, never twice.
//!
//! - [`source`]: which addresses there are;
//! - [`pool`]: who gets which (pure);
//! - [`store`]: the leases on disk.
//!
//! The source is asked before the lock is taken, and a saved lease is on disk before it is returned.

pub mod pool;
pub mod source;
pub mod store;

use std::{
    cell::RefCell,
    net::IpAddr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use ipnet::IpNet;

use self::{
    pool::{Holder, Lease, Pool, PoolError, Request, Space},
    source::{Answer, LocalNic, Settings, SourceError},
    store::{Reading, Store, StoreError},
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
    /// There is no list of any use, and no earlier one is known.
    #[error("{source}: {cause}")]
    NoList {
        /// The incumbent's words.
        source: PoolError,
        /// Why there is no list.
        cause: String,
    },
    /// The configuration names no source that can be asked.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The leases cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The addresses of a node.
#[derive(Debug)]
pub struct Ipam<'a> {
    root: &'a Root,
    timeout: Duration,
    answer: Answer,
    /// The leases when they were chosen from, with what the source lists.
    read: RefCell<Option<Reading>>,
}

impl<'a> Ipam<'a> {
    /// Asks the source of the settings for a node with the interfaces `local`. Where that fails, the addresses known
    /// from earlier are used. `timeout` is how long to wait for the lock.
    pub fn new(
        root: &'a Root,
        timeout: Duration,
        settings: &Settings,
        local: &[LocalNic],
    ) -> Result<Self, IpamError> {
        let answer = source::ask(root, settings, local);
        match answer.error {
            Some(error @ (SourceError::Environment(_) | SourceError::Settings(_))) => {
                return Err(error.into());
            }
            Some(ref error) => {
                tracing::warn!(%error, "the address list is not read: addresses known from earlier are used");
            }
            None => {}
        }
        for skipped in answer.list.iter().flat_map(|list| &list.skipped) {
            tracing::warn!(entry = skipped, "an entry of the address list is left out");
        }
        Ok(Self {
            root,
            timeout,
            answer,
            read: RefCell::default(),
        })
    }

    /// Whether the list names an interface that is none of those it was compared with.
    pub fn misses_an_interface(&self) -> bool {
        let foreign = matches!(self.answer.error, Some(SourceError::ForeignMachine { .. }));
        foreign
            || self
                .answer
                .list
                .as_ref()
                .is_some_and(|list| list.misses_an_interface)
    }

    /// The subnets to take the holder's addresses from, on the interface `uplink` or on any: of IPv4 the preferred one if
    /// it is a pool, and not used up where it is known from others only, else the best; of IPv6 the same, on the interface
    /// that carries the first, if there is one. Where all addresses are of IPv6 ([`Space::is_ipv6_alone`]), one subnet of it.
    pub fn choose(
        &self,
        holder: &Holder,
        preference: Preference<'_>,
        uplink: Option<&str>,
    ) -> Result<Choice, IpamError> {
        let mut read = self.read.borrow_mut();
        let space = &*read.insert(self.look()?).space();
        let mut known = [false, true].map(|is_ipv6| preference.among(space, is_ipv6));
        if let Preference::First(_) = preference {
            known[0] = known[0].filter(|pool| pool.is_held_by(holder) || pool.has_free());
        }
        let (first, second) = match (preference, known) {
            (Preference::Only(_), [Some(first), second] | [second @ None, Some(first)]) => (first, second),
            (Preference::First(_), [Some(first), second]) => {
                (first, of_ipv6(space, first.carrier(), second, holder))
            }
            (_, [None, known]) if space.is_ipv6_alone(holder) => {
                let only = of_ipv6(space, uplink, known, holder);
                (only.ok_or_else(|| self.none_available(space))?, None)
            }
            (_, [None, second]) => {
                let first = self.best(space, holder, uplink)?;
                (first, of_ipv6(space, first.carrier(), second, holder))
            }
        };
        let pools = std::iter::once(first).chain(second);
        Ok(Choice {
            subnets: pools.map(|pool| pool.subnet).collect(),
            carrier: first.if_name.clone(),
        })
    }

    fn best<'s>(
        &self,
        space: &'s Space,
        holder: &Holder,
        uplink: Option<&str>,
    ) -> Result<&'s Pool, IpamError> {
        match space.choose(holder, uplink) {
            Ok(subnet) => {
                let pool = space.pools.get(&subnet.to_string());
                pool.ok_or_else(|| self.refuse(PoolError::NoAvailablePools, ""))
            }
            Err(_) => Err(self.none_available(space)),
        }
    }

    fn none_available(&self, space: &Space) -> IpamError {
        let pools = space.pools.values();
        let known: Vec<String> = pools
            .map(|pool| format!("{} on {}", pool.id, pool.if_name))
            .collect();
        self.refuse(
            PoolError::NoAvailablePools,
            &format!("pools known: [{}]", known.join(", ")),
        )
    }

    /// Gives the holder an address of each of `subnets` that is not busy, or the one that it has there already. They are on
    /// disk when this returns; where one of them cannot be had, none is taken. The request's time is set here.
    pub fn allocate(
        &self,
        subnets: &[IpNet],
        holder: &Holder,
        request: &Request,
        is_busy: &dyn Fn(IpAddr) -> bool,
    ) -> Result<Vec<Lease>, IpamError> {
        let mut store = Store::open_as(self.root, self.timeout, self.read.take())?;
        self.bring_up_to_date(store.space());
        let request = Request {
            now: milliseconds(),
            ..request.clone()
        };
        let mut leases = Vec::new();
        for subnet in subnets {
            let subnet = subnet.to_string();
            match store.space().allocate(&subnet, holder, &request, is_busy) {
                Ok(lease) => leases.push(lease),
                // What was taken until here is not saved.
                Err(error) => return Err(self.refuse(error, &numbers(store.space(), &subnet, &request))),
            }
        }
        let mut asked = request.addresses.iter();
        if let Some(other) = asked.find(|asked| !leases.iter().any(|lease| lease.address == **asked)) {
            let listed = format!("pools to take from: {}", join(subnets));
            return Err(self.refuse(PoolError::AddressNotFound(*other), &listed));
        }
        match store.save() {
            Ok(()) => Ok(leases),
            Err(error) => {
                // It may have been written all the same, and only not been made to last.
                store.space().release(holder, &[], request.now);
                store.save().ok();
                Err(error.into())
            }
        }
    }

    /// The leases as they are at this moment, with what the source lists.
    fn look(&self) -> Result<Reading, StoreError> {
        let mut reading = match Reading::of(self.root) {
            // Put aside and rebuilt under the lock.
            Err(StoreError::Corrupt { .. }) => Store::open(self.root, self.timeout)?.into_reading(),
            read => read?,
        };
        self.bring_up_to_date(reading.space());
        Ok(reading)
    }

    fn bring_up_to_date(&self, space: &mut Space) {
        if let Some(list) = &self.answer.list {
            space.merge(&list.pools);
        }
    }

    /// With no list and nothing known from earlier, the list is what is to be mended: its error stands in the message.
    fn refuse(&self, error: PoolError, numbers: &str) -> IpamError {
        let without_pools = matches!(error, PoolError::NoAvailablePools | PoolError::InvalidPool(_));
        match &self.answer.error {
            Some(cause) if without_pools && self.answer.list.is_none() => IpamError::NoList {
                source: error,
                cause: cause.to_string(),
            },
            Some(cause) => IpamError::Pool {
                source: error,
                details: format!("{numbers}; list: {}; {cause}", self.answer.origin),
            },
            None => IpamError::Pool {
                source: error,
                details: format!("{numbers}; list: {}", self.answer.origin),
            },
        }
    }
}

/// Subnets that go before others.
#[derive(Clone, Copy, Debug)]
pub enum Preference<'a> {
    /// Prescribed: of a family that is not among them there is no second address.
    Only(&'a [IpNet]),
    /// Known from others of the network.
    First(&'a [IpNet]),
}

impl Preference<'_> {
    fn among<'s>(&self, space: &'s Space, is_ipv6: bool) -> Option<&'s Pool> {
        let (Self::Only(subnets) | Self::First(subnets)) = self;
        let mut of_family = subnets.iter().filter(|subnet| subnet.addr().is_ipv6() == is_ipv6);
        of_family.find_map(|subnet| space.pools.get(&subnet.to_string()))
    }
}

/// Where to take addresses from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// One of IPv4, then perhaps one of IPv6; or one of IPv6 alone.
    pub subnets: Vec<IpNet>,
    /// The interface that carries them; empty where that is not known.
    pub carrier: String,
}

/// The pool of IPv6 on the interface `carrier`, where that is known: the holder's own, else `known` if something is left
/// there, else the best.
fn of_ipv6<'s>(
    space: &'s Space,
    carrier: Option<&str>,
    known: Option<&'s Pool>,
    holder: &Holder,
) -> Option<&'s Pool> {
    let best = space.choose_v6(holder, carrier);
    let best = best.and_then(|subnet| space.pools.get(&subnet.to_string()))?;
    let suits = |pool: &&Pool| carrier.is_none_or(|name| pool.if_name == name) && pool.has_free();
    if best.is_held_by(holder) {
        return Some(best);
    }
    known.filter(suits).or(Some(best))
}

/// How much of a pool is in use.
fn numbers(space: &Space, subnet: &str, request: &Request) -> String {
    let usage = space.usage(subnet, request.now, request.quarantine);
    let quarantined = match usage.quarantined {
        0 => String::new(),
        n => format!(", {n} more in quarantine"),
    };
    let numbers = format!(
        "{} of {} addresses of pool {subnet} are in use{quarantined}",
        usage.used, usage.total
    );
    match space.choose_v6(&Holder::default(), None) {
        Some(of_ipv6) if usage.total == 0 && !of_ipv6.to_string().eq(subnet) => {
            format!("{numbers}; for pods with IPv6 alone say \"subnet\": \"{of_ipv6}\" in \"ipam\"")
        }
        _ => numbers,
    }
}

/// The subnets as one text.
pub fn join(subnets: &[IpNet]) -> String {
    let texts: Vec<String> = subnets.iter().map(IpNet::to_string).collect();
    texts.join(",")
}

/// Frees what the holder has, and `also` where its container has it. Returns what was freed; nothing to free is no
/// error.
pub fn release(
    root: &Root,
    timeout: Duration,
    holder: &Holder,
    also: &[IpAddr],
) -> Result<Vec<IpAddr>, StoreError> {
    release_as(root, timeout, holder, also, None)
}

/// As [`release`], of the leases as they were `read` before if nobody has changed them since.
pub fn release_as(
    root: &Root,
    timeout: Duration,
    holder: &Holder,
    also: &[IpAddr],
    read: Option<Reading>,
) -> Result<Vec<IpAddr>, StoreError> {
    let mut store = Store::open_as(root, timeout, read)?;
    let freed = store.space().release(holder, also, milliseconds());
    store.save()?;
    Ok(freed)
}

/// What the holder has at this moment.
pub fn leases(root: &Root, holder: &Holder) -> Result<Vec<Lease>, StoreError> {
    Ok(store::snapshot(root)?.leases(holder))
}

/// Since 1970.
fn milliseconds() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}
