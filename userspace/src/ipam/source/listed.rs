//! A list of the fabric, in whatever form it came, matched with the interfaces of this node.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;

use super::{LocalNic, SourceError, SourceList, SourcePool, is_reserved};
use crate::go_json::mac_text;

/// An interface of the list.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ListedNic {
    /// `None` for any: the subnet decides.
    pub(super) mac: Option<[u8; 6]>,
    pub(super) primary: bool,
    pub(super) subnets: Vec<ListedSubnet>,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct ListedSubnet {
    pub(super) prefix: IpNet,
    /// Addresses, and whether it is the interface's primary one.
    pub(super) addresses: Vec<(String, bool)>,
}

/// What pods of this node may have. `origin` names the list in errors.
pub(super) fn for_this_node(
    listed: &[ListedNic],
    origin: &str,
    local: &[LocalNic],
) -> Result<SourceList, SourceError> {
    let list = match_nics(listed, local);
    if list.pools.is_empty() && listed.iter().any(|nic| !nic.subnets.is_empty()) {
        let macs = listed
            .iter()
            .map(|nic| nic.mac.map_or("(no MacAddress)".to_owned(), mac_text));
        return Err(SourceError::ForeignMachine {
            origin: origin.to_owned(),
            listed: join(macs),
            local: join(
                local
                    .iter()
                    .map(|nic| format!("{} {}", nic.name, mac_text(nic.mac))),
            ),
        });
    }
    Ok(list)
}

fn match_nics(listed: &[ListedNic], local: &[LocalNic]) -> SourceList {
    let own: BTreeSet<IpAddr> = local
        .iter()
        .flat_map(|nic| nic.addresses.iter().copied())
        .collect();
    let (mut pools, mut skipped, mut misses_an_interface) = (BTreeMap::new(), Vec::new(), false);
    for nic in listed {
        for subnet in &nic.subnets {
            let Some(interface) = owner(nic, &subnet.prefix, local) else {
                misses_an_interface = true;
                let mac = nic.mac.map_or("an unnamed interface".to_owned(), mac_text);
                skipped.push(format!("{}: no interface here is {mac}", subnet.prefix));
                continue;
            };
            if pools.contains_key(&subnet.prefix) {
                skipped.push(format!(
                    "{} on {interface}: Address pool already exists",
                    subnet.prefix
                ));
                continue;
            }
            let addresses = usable(subnet, &own, &mut skipped);
            let priority = i64::from(!nic.primary);
            let interface = interface.to_owned();
            pools.insert(
                subnet.prefix,
                SourcePool {
                    subnet: subnet.prefix,
                    interface,
                    priority,
                    addresses,
                    on_interface: false,
                },
            );
        }
    }
    SourceList {
        pools: pools.into_values().collect(),
        skipped,
        misses_an_interface,
    }
}

/// The node's interface that is meant. With accelerated networking two have the same MAC: the one that carries an
/// address of the subnet is the one that routes.
fn owner<'a>(listed: &ListedNic, subnet: &IpNet, local: &'a [LocalNic]) -> Option<&'a str> {
    let carries = |nic: &&LocalNic| nic.addresses.iter().any(|address| subnet.contains(address));
    let same = |nic: &&LocalNic| listed.mac.is_none_or(|mac| nic.mac == mac);
    let any = || local.iter().find(|nic| listed.mac == Some(nic.mac));
    local
        .iter()
        .filter(same)
        .find(carries)
        .or_else(any)
        .map(|nic| nic.name.as_str())
}

fn usable(subnet: &ListedSubnet, own: &BTreeSet<IpAddr>, skipped: &mut Vec<String>) -> BTreeSet<IpAddr> {
    let mut usable = BTreeSet::new();
    for (text, primary) in &subnet.addresses {
        let refusal = match text.parse::<IpAddr>() {
            _ if *primary => continue,
            Err(_) => "is not an address",
            Ok(address) if !subnet.prefix.contains(&address) => "is outside the subnet",
            Ok(address) if own.contains(&address) => "is configured on the node itself",
            Ok(address) if is_reserved(&subnet.prefix, address) => {
                "is the subnet's own, broadcast or gateway address"
            }
            Ok(address) => {
                usable.insert(address);
                continue;
            }
        };
        skipped.push(format!("{text} in {}: {refusal}", subnet.prefix));
    }
    usable
}

fn join(parts: impl Iterator<Item = String>) -> String {
    let parts: Vec<String> = parts.collect();
    if parts.is_empty() {
        "none".to_owned()
    } else {
        parts.join(", ")
    }
}
