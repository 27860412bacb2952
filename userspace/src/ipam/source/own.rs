//! Sources that need no list of the fabric: what the interfaces carry, and what the configuration names.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;

use super::{LocalNic, Settings, SourceError, SourceList, SourcePool, is_reserved};
use crate::ipam::join;

/// The secondary addresses of the interface `master`, or of all.
pub(super) fn nic(local: &[LocalNic], master: Option<&str>) -> SourceList {
    let (mut pools, mut skipped) = (BTreeMap::new(), Vec::new());
    for nic in local
        .iter()
        .filter(|nic| master.is_none_or(|name| nic.name == name))
    {
        for address in &nic.secondary {
            let subnet = address.trunc();
            let pool = pools.entry(subnet).or_insert_with(|| SourcePool {
                subnet,
                interface: nic.name.clone(),
                priority: 0,
                addresses: BTreeSet::new(),
                on_interface: true,
            });
            if pool.interface == nic.name {
                pool.addresses.insert(address.addr());
            } else {
                skipped.push(format!("{address} on {}: Address pool already exists", nic.name));
            }
        }
    }
    SourceList {
        pools: pools.into_values().collect(),
        skipped,
        misses_an_interface: false,
    }
}

/// The addresses that the configuration names: `10.240.0.5`, `10.240.0.5-10.240.0.20`.
pub(super) fn fixed(settings: &Settings, local: &[LocalNic]) -> Result<SourceList, SourceError> {
    let wrong = |problem: String| SourceError::Settings(problem);
    if settings.subnets.is_empty() {
        let msg = "ipam.environment \"static\" needs ipam.subnet, such as 10.240.0.0/16";
        return Err(wrong(msg.to_owned()));
    }
    let own: BTreeSet<IpAddr> = local
        .iter()
        .flat_map(|nic| nic.addresses.iter().copied())
        .collect();
    let mut addresses: BTreeMap<IpNet, BTreeSet<IpAddr>> = BTreeMap::new();
    let mut skipped = Vec::new();
    for text in &settings.addresses {
        let range = range(text).ok_or_else(|| {
            wrong(format!(
                "ipam.addresses: {text:?} is neither an address nor a range of at most {LARGEST_RANGE} such as \
                 10.240.0.5-10.240.0.20"
            ))
        })?;
        for address in range {
            let Some(subnet) = settings.subnets.iter().find(|subnet| subnet.contains(&address)) else {
                return Err(wrong(format!(
                    "ipam.addresses: {address} is outside ipam.subnet {}",
                    join(&settings.subnets)
                )));
            };
            if own.contains(&address) || is_reserved(subnet, address) {
                skipped.push(format!("{address} in {subnet}: is the node's own or reserved"));
            } else {
                addresses.entry(*subnet).or_default().insert(address);
            }
        }
    }
    if settings
        .subnets
        .iter()
        .any(|subnet| !addresses.contains_key(subnet))
    {
        return Err(wrong(
            "ipam.environment \"static\" needs a list of addresses in ipam.addresses".to_owned(),
        ));
    }
    let pools = addresses.into_iter().map(|(subnet, addresses)| SourcePool {
        subnet,
        interface: settings.master.clone().unwrap_or_else(|| carrier(&subnet, local)),
        priority: 0,
        addresses,
        on_interface: false,
    });
    Ok(SourceList {
        pools: pools.collect(),
        skipped,
        misses_an_interface: false,
    })
}

/// The interface that has an address of the subnet; empty if none has.
fn carrier(subnet: &IpNet, local: &[LocalNic]) -> String {
    let carrier = local
        .iter()
        .find(|nic| nic.addresses.iter().any(|address| subnet.contains(address)));
    carrier.map(|nic| nic.name.clone()).unwrap_or_default()
}

/// The incumbent's pool of environment `null`.
pub(super) fn nothing() -> SourceList {
    let pool = SourcePool {
        subnet: IpNet::V4(ipnet::Ipv4Net::default()),
        interface: String::new(),
        priority: 0,
        addresses: BTreeSet::new(),
        on_interface: false,
    };
    SourceList {
        pools: vec![pool],
        skipped: Vec::new(),
        misses_an_interface: false,
    }
}

/// More addresses than this an interface on Azure cannot have.
const LARGEST_RANGE: u128 = 65_536;

fn range(text: &str) -> Option<Vec<IpAddr>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (
        first.trim().parse::<IpAddr>().ok()?,
        last.trim().parse::<IpAddr>().ok()?,
    );
    let (from, to) = (bits(first), bits(last));
    if first.is_ipv4() != last.is_ipv4() || from > to || to - from >= LARGEST_RANGE {
        return None;
    }
    Some((from..=to).map(|bits| of_bits(bits, first.is_ipv4())).collect())
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_bits().into(),
        IpAddr::V6(address) => address.to_bits(),
    }
}

fn of_bits(bits: u128, is_ipv4: bool) -> IpAddr {
    if is_ipv4 {
        Ipv4Addr::from_bits(bits as u32).into()
    } else {
        Ipv6Addr::from_bits(bits).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nic_with(name: &str, own: &str, secondary: &[&str]) -> LocalNic {
        LocalNic {
            name: name.to_owned(),
            mac: [2; 6],
            addresses: vec![own.parse().unwrap()],
            secondary: secondary.iter().map(|address| address.parse().unwrap()).collect(),
        }
    }

    fn settings(subnet: &str, addresses: &[&str]) -> Settings {
        Settings {
            addresses: addresses.iter().map(|text| (*text).to_owned()).collect(),
            subnets: subnet.parse().into_iter().collect(),
            ..Settings::new("static")
        }
    }

    #[test]
    fn secondary_addresses_make_a_pool_for_each_subnet() {
        let local = [
            nic_with("eth0", "10.240.0.4", &["10.240.0.5/16", "10.240.0.6/16"]),
            nic_with("eth1", "10.9.0.4", &["10.9.0.5/24"]),
        ];
        let pools = nic(&local, None).pools;
        let seen: Vec<_> = pools
            .iter()
            .map(|pool| (pool.interface.as_str(), pool.addresses.len()))
            .collect();
        assert_eq!(seen, [("eth1", 1), ("eth0", 2)]);
        assert_eq!(nic(&local, Some("eth1")).pools, pools[..1]);
    }

    #[test]
    fn addresses_and_ranges_of_the_configuration() {
        let local = [nic_with("eth0", "10.240.0.6", &[])];
        let settings = settings(
            "10.240.0.0/24",
            &["10.240.0.1", "10.240.0.5-10.240.0.7", "10.240.0.9"],
        );
        let list = fixed(&settings, &local).unwrap();
        let addresses: Vec<String> = list.pools[0].addresses.iter().map(ToString::to_string).collect();
        assert_eq!(addresses, ["10.240.0.5", "10.240.0.7", "10.240.0.9"]);
        assert_eq!(
            (list.skipped.len(), list.pools[0].interface.as_str()),
            (2, "eth0")
        );
    }

    #[test]
    fn a_list_that_cannot_be_meant_is_refused() {
        for (subnet, addresses, needle) in [
            ("", &["10.0.0.5"][..], "needs ipam.subnet"),
            ("10.0.0.0/24", &[], "needs a list"),
            (
                "10.0.0.0/24",
                &["10.0.0.9-10.0.0.5"],
                "neither an address nor a range",
            ),
            (
                "10.0.0.0/8",
                &["10.0.0.0-10.255.0.0"],
                "neither an address nor a range",
            ),
            ("10.0.0.0/24", &["ten"], "neither an address nor a range"),
            ("10.0.0.0/24", &["10.0.1.5"], "is outside ipam.subnet"),
        ] {
            let error = fixed(&settings(subnet, addresses), &[]).unwrap_err().to_string();
            assert!(error.contains(needle), "{addresses:?}: {error}");
        }
    }
}
