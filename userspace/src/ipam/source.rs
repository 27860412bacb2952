//! The address list of environments `mas` and `fileIpam`: which addresses the fabric has given to this node's NICs.
//!
//! Owns the file's format and what of it is used. Knows nothing of who holds an address ([`super::pool`]).

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
};

use ipnet::IpNet;
use serde_json::Value;

use crate::{
    durable,
    go_json::{Fields, ShapeError, mac_text, parse_mac},
};

/// Where the incumbent reads the list.
pub const INTERFACES: &str = "/etc/kubernetes/interfaces.json";

/// An interface of the node, as far as the list is matched with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalNic {
    /// Its name.
    pub name: String,
    /// Its Ethernet address.
    pub mac: [u8; 6],
    /// Its own addresses.
    pub addresses: Vec<IpAddr>,
}

/// Addresses of one subnet that pods may have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourcePool {
    /// The subnet, without host bits.
    pub subnet: IpNet,
    /// The interface that the fabric delivers these addresses to.
    pub interface: String,
    /// 0 for the primary NIC, 1 for others: those are taken first.
    pub priority: i64,
    /// Addresses for pods: no primary one, no gateway, none of the node's own.
    pub addresses: BTreeSet<IpAddr>,
}

/// What the list gives.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceList {
    /// One pool for every subnet.
    pub pools: Vec<SourcePool>,
    /// Entries that were left out, and why.
    pub skipped: Vec<String>,
}

/// Why there is no list.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The file cannot be read.
    #[error("cannot read the address list {path}: {source}; ipam.environment \"mas\" needs that file")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The file is no JSON.
    #[error("the address list {path} is not JSON: {source}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Line and column.
        source: serde_json::Error,
    },
    /// The file is JSON of another form.
    #[error("the address list {path} is not understood: {source}")]
    Shape {
        /// The file.
        path: PathBuf,
        /// What is wrong where.
        source: ShapeError,
    },
    /// The list is for another machine.
    #[error(
        "the address list {path} names the interfaces {listed}, but this node has {local}: correct the list's \
         MacAddress, or move that interface to this node"
    )]
    ForeignMachine {
        /// The file.
        path: PathBuf,
        /// MACs of the list.
        listed: String,
        /// The node's interfaces.
        local: String,
    },
}

/// Reads the list at `path` for a node with the given interfaces.
pub fn read(path: &Path, local: &[LocalNic]) -> Result<SourceList, SourceError> {
    let bytes = durable::read_configuration(path).map_err(|source| SourceError::Read {
        path: path.to_owned(),
        source,
    })?;
    parse(&bytes, path, local)
}

fn parse(bytes: &[u8], path: &Path, local: &[LocalNic]) -> Result<SourceList, SourceError> {
    let document: Value = serde_json::from_slice(bytes).map_err(|source| SourceError::Syntax {
        path: path.to_owned(),
        source,
    })?;
    let listed = interfaces(&document).map_err(|source| SourceError::Shape {
        path: path.to_owned(),
        source,
    })?;
    let list = match_nics(&listed, local);
    if list.pools.is_empty() && listed.iter().any(|nic| !nic.subnets.is_empty()) {
        return Err(SourceError::ForeignMachine {
            path: path.to_owned(),
            listed: join(
                listed
                    .iter()
                    .map(|nic| nic.mac.map_or("(no MacAddress)".to_owned(), mac_text)),
            ),
            local: join(
                local
                    .iter()
                    .map(|nic| format!("{} {}", nic.name, mac_text(nic.mac))),
            ),
        });
    }
    Ok(list)
}

/// An interface of the list.
struct ListedNic {
    mac: Option<[u8; 6]>,
    primary: bool,
    subnets: Vec<ListedSubnet>,
}

struct ListedSubnet {
    prefix: IpNet,
    addresses: Vec<(String, bool)>,
}

fn interfaces(document: &Value) -> Result<Vec<ListedNic>, ShapeError> {
    Fields::of(document, "")?
        .objects("Interfaces")?
        .iter()
        .map(interface)
        .collect()
}

fn interface(fields: &Fields<'_>) -> Result<ListedNic, ShapeError> {
    Ok(ListedNic {
        mac: fields.parsed(
            "MacAddress",
            "six bytes in hexadecimal such as 000D3A0A0B0C",
            parse_mac,
        )?,
        primary: fields.flag("IsPrimary")?,
        subnets: fields
            .objects("IPSubnets")?
            .iter()
            .map(subnet)
            .collect::<Result<_, _>>()?,
    })
}

fn subnet(fields: &Fields<'_>) -> Result<ListedSubnet, ShapeError> {
    let prefix = "a subnet such as 10.240.0.0/16";
    let subnet = fields.parsed("Prefix", prefix, |text| text.parse::<IpNet>().ok())?;
    let address = |fields: &Fields<'_>| Ok((fields.string("Address")?.to_owned(), fields.flag("IsPrimary")?));
    Ok(ListedSubnet {
        prefix: subnet.ok_or_else(|| fields.unlike("Prefix", prefix))?.trunc(),
        addresses: fields
            .objects("IPAddresses")?
            .iter()
            .map(address)
            .collect::<Result<_, _>>()?,
    })
}

fn match_nics(listed: &[ListedNic], local: &[LocalNic]) -> SourceList {
    let own: BTreeSet<IpAddr> = local
        .iter()
        .flat_map(|nic| nic.addresses.iter().copied())
        .collect();
    let (mut pools, mut skipped) = (BTreeMap::new(), Vec::new());
    for nic in listed {
        for subnet in &nic.subnets {
            let Some(interface) = owner(nic, &subnet.prefix, local) else {
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
                },
            );
        }
    }
    SourceList {
        pools: pools.into_values().collect(),
        skipped,
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

fn is_reserved(subnet: &IpNet, address: IpAddr) -> bool {
    // RFC 3021: point-to-point subnets have neither.
    let has_ends = subnet.max_prefix_len() - subnet.prefix_len() > 1;
    has_ends && (address == subnet.network() || address == gateway(subnet) || address == subnet.broadcast())
}

/// The subnet's gateway as the fabric and the incumbent have it: the first address.
pub fn gateway(subnet: &IpNet) -> IpAddr {
    match subnet.network() {
        IpAddr::V4(network) => Ipv4Addr::from_bits(network.to_bits() | 1).into(),
        IpAddr::V6(network) => Ipv6Addr::from_bits(network.to_bits() | 1).into(),
    }
}

fn join(parts: impl Iterator<Item = String>) -> String {
    let parts: Vec<String> = parts.collect();
    if parts.is_empty() {
        "none".to_owned()
    } else {
        parts.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: [u8; 6] = [0x00, 0x0d, 0x3a, 0x0a, 0x0b, 0x0c];

    fn nic(name: &str, mac: [u8; 6], addresses: &[&str]) -> LocalNic {
        let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
        LocalNic {
            name: name.to_owned(),
            mac,
            addresses,
        }
    }

    fn list(text: &str, local: &[LocalNic]) -> Result<SourceList, String> {
        parse(text.as_bytes(), Path::new("/etc/list.json"), local).map_err(|error| error.to_string())
    }

    #[test]
    fn the_reference_example_in_capitals_and_in_lower_case() {
        let text = r#"{"Interfaces":[{"MacAddress":"00:0D:3A:0A:0B:0C","IsPrimary":true,"IPSubnets":[{"Prefix":"10.240.0.0/16",
            "IPAddresses":[{"Address":"10.240.0.4","IsPrimary":true},{"Address":"10.240.0.5","IsPrimary":false}]}]}]}"#;
        let local = [nic("eth0", MAC, &["10.240.0.4"])];
        let expected = SourcePool {
            subnet: "10.240.0.0/16".parse().unwrap(),
            interface: "eth0".to_owned(),
            priority: 0,
            addresses: BTreeSet::from(["10.240.0.5".parse().unwrap()]),
        };
        for text in [text.to_owned(), text.to_lowercase()] {
            let list = list(&text, &local).unwrap();
            assert_eq!((list.pools, list.skipped), (vec![expected.clone()], vec![]));
        }
        assert_eq!(gateway(&expected.subnet).to_string(), "10.240.0.1");
    }

    #[test]
    fn what_no_pod_may_have_is_left_out_and_named() {
        let text = r#"{"Interfaces":[{"MacAddress":"000D3A0A0B0C","IPSubnets":[{"Prefix":"10.1.2.3/24","IPAddresses":[
            {"Address":"10.1.2.0"},{"Address":"10.1.2.1"},{"Address":"10.1.2.4"},{"Address":"10.1.2.9"},{"Address":"10.1.2.255"},
            {"Address":"10.1.3.1"},{"Address":"ten"},{"Address":"10.1.2.9"}]},{"Prefix":"10.1.2.0/24"}]}]}"#;
        let list = list(text, &[nic("eth1", MAC, &["10.1.2.4"])]).unwrap();
        assert_eq!(list.pools.len(), 1);
        assert_eq!(list.pools[0].priority, 1);
        assert_eq!(
            list.pools[0].addresses,
            BTreeSet::from(["10.1.2.9".parse().unwrap()])
        );
        assert_eq!(list.skipped.len(), 7, "{:#?}", list.skipped);
    }

    #[test]
    fn of_two_interfaces_with_one_mac_the_one_with_the_address_is_meant() {
        let text = r#"{"Interfaces":[{"MacAddress":"000d3a0a0b0c","IPSubnets":[{"Prefix":"10.1.2.0/24","IPAddresses":null}]}]}"#;
        let local = [nic("enP1", MAC, &[]), nic("eth0", MAC, &["10.1.2.4"])];
        assert_eq!(list(text, &local).unwrap().pools[0].interface, "eth0");
        assert_eq!(list(text, &local[..1]).unwrap().pools[0].interface, "enP1");
    }

    #[test]
    fn without_a_mac_the_subnet_decides() {
        let text = r#"{"Interfaces":[{"IPSubnets":[{"Prefix":"10.1.2.0/24","IPAddresses":[{"Address":"10.1.2.7"}]}]}]}"#;
        assert_eq!(
            list(text, &[nic("eth0", MAC, &["10.1.2.4"])]).unwrap().pools[0].interface,
            "eth0"
        );
        assert!(
            list(text, &[nic("eth0", MAC, &["10.9.9.4"])])
                .unwrap_err()
                .contains("(no MacAddress)")
        );
    }

    #[test]
    fn errors_say_which_file_what_and_how_to_mend_it() {
        let local = [nic("eth0", MAC, &[])];
        for (text, needle) in [
            ("{", "/etc/list.json is not JSON: EOF while parsing"),
            ("[]", "the document: expected an object, found a list"),
            (r#"{"Interfaces":{}}"#, "Interfaces: expected a list"),
            (
                r#"{"Interfaces":[{"MacAddress":"*"}]}"#,
                "Interfaces[0].MacAddress: expected six bytes",
            ),
            (
                r#"{"Interfaces":[{"IPSubnets":[{}]}]}"#,
                "Interfaces[0].IPSubnets[0].Prefix: expected a subnet",
            ),
            (
                r#"{"Interfaces":[{"IPSubnets":[{"Prefix":"10.0.0.0/33"}]}]}"#,
                "found \"10.0.0.0/33\"",
            ),
            (
                r#"{"Interfaces":[{"MacAddress":"0A0000000001","IPSubnets":[{"Prefix":"10.0.0.0/8"}]}]}"#,
                "names the interfaces 0a:00:00:00:00:01, but this node has eth0 00:0d:3a:0a:0b:0c",
            ),
        ] {
            let error = list(text, &local).unwrap_err();
            assert!(error.contains(needle), "{text}: {error}");
        }
        let error = read(Path::new("/nonexistent/list.json"), &local)
            .unwrap_err()
            .to_string();
        assert!(error.contains("/nonexistent/list.json: No such file"), "{error}");
        assert!(list(r#"{"Interfaces":[]}"#, &local).unwrap().pools.is_empty());
        assert!(list("{}", &local).unwrap().pools.is_empty());
    }
}
