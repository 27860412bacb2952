//! Environments `mas` and `fileIpam`: the list that the platform leaves in a file.

use std::{fs, path::Path};

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::Value;

use super::{
    Answer, LocalNic, SourceError, SourceList, cache,
    listed::{ListedNic, ListedSubnet, for_this_node},
};
use crate::{
    durable,
    go_json::{Fields, ShapeError, parse_mac},
};

/// Reads the list at `path` for a node with the given interfaces.
pub(super) fn read(path: &Path, local: &[LocalNic]) -> Answer {
    let bytes = durable::read_configuration(path).map_err(|source| SourceError::Read {
        path: path.to_owned(),
        source,
    });
    let written = fs::metadata(path).and_then(|metadata| metadata.modified());
    let age = written.ok().map_or(String::new(), cache::age);
    Answer::of(
        bytes.and_then(|bytes| parse(&bytes, path, local)),
        format!("{}{age}", path.display()),
    )
}

fn parse(bytes: &[u8], path: &Path, local: &[LocalNic]) -> Result<SourceList, SourceError> {
    let origin = path.display().to_string();
    if let Some(listed) = usual(bytes) {
        return for_this_node(&listed, &origin, local);
    }
    let document: Value = serde_json::from_slice(bytes).map_err(|source| SourceError::Syntax {
        path: path.to_owned(),
        source,
    })?;
    let listed = interfaces(&document).map_err(|source| SourceError::Shape {
        path: path.to_owned(),
        source,
    })?;
    for_this_node(&listed, &origin, local)
}

/// The list as the platform writes it, read without a tree of values in between. `None` for any other: that is for
/// [`interfaces`], which takes more and says what is wrong.
fn usual(bytes: &[u8]) -> Option<Vec<ListedNic>> {
    let document: UsualDocument<'_> = serde_json::from_slice(bytes).ok()?;
    document.interfaces.into_iter().map(UsualNic::read).collect()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct UsualDocument<'a> {
    #[serde(borrow)]
    interfaces: Vec<UsualNic<'a>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct UsualNic<'a> {
    mac_address: &'a str,
    is_primary: bool,
    #[serde(borrow, rename = "IPSubnets")]
    ip_subnets: Vec<UsualSubnet<'a>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct UsualSubnet<'a> {
    prefix: &'a str,
    #[serde(borrow, rename = "IPAddresses")]
    ip_addresses: Vec<UsualAddress<'a>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct UsualAddress<'a> {
    address: &'a str,
    is_primary: bool,
}

impl UsualNic<'_> {
    fn read(self) -> Option<ListedNic> {
        let subnets = self.ip_subnets.into_iter().map(|subnet| {
            let addresses = subnet.ip_addresses.into_iter();
            Some(ListedSubnet {
                prefix: subnet.prefix.parse::<IpNet>().ok()?.trunc(),
                addresses: addresses
                    .map(|one| (one.address.to_owned(), one.is_primary))
                    .collect(),
            })
        });
        Some(ListedNic {
            mac: Some(parse_mac(self.mac_address)?),
            primary: self.is_primary,
            subnets: subnets.collect::<Option<_>>()?,
        })
    }
}

fn interfaces(document: &Value) -> Result<Vec<ListedNic>, ShapeError> {
    Fields::of(document, "")?
        .objects("Interfaces")?
        .iter()
        .map(interface)
        .collect()
}

fn interface(fields: &Fields<'_>) -> Result<ListedNic, ShapeError> {
    let mac = match fields.get("MacAddress").and_then(Value::as_str) {
        // Any, as in the wireserver's lists.
        Some("*") => None,
        _ => fields.parsed(
            "MacAddress",
            "six bytes in hexadecimal such as 000D3A0A0B0C, or *",
            parse_mac,
        )?,
    };
    Ok(ListedNic {
        mac,
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::{super::gateway, *};
    use crate::ipam::source::SourcePool;

    const MAC: [u8; 6] = [0x00, 0x0d, 0x3a, 0x0a, 0x0b, 0x0c];

    fn nic(name: &str, mac: [u8; 6], addresses: &[&str]) -> LocalNic {
        let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
        LocalNic {
            name: name.to_owned(),
            mac,
            addresses,
            secondary: Vec::new(),
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
            on_interface: false,
        };
        for text in [text.to_owned(), text.to_lowercase()] {
            let list = list(&text, &local).unwrap();
            assert_eq!((list.pools, list.skipped), (vec![expected.clone()], vec![]));
        }
        assert_eq!(gateway(&expected.subnet).to_string(), "10.240.0.1");
    }

    #[test]
    fn the_usual_list_is_read_the_same_both_ways_and_others_one_way() {
        let text = r#"{"Interfaces":[{"MacAddress":"000D3A0A0B0C","IsPrimary":true,"IPSubnets":[
            {"Prefix":"10.240.3.4/16","IPAddresses":[{"Address":"10.240.0.5","IsPrimary":false},{"Address":"","IsPrimary":true}]},
            {"Prefix":"fd00::/64","IPAddresses":[]}]}]}"#;
        let document: Value = serde_json::from_str(text).unwrap();
        let usual_list = usual(text.as_bytes());
        assert_eq!(usual_list, interfaces(&document).ok());
        assert!(usual_list.is_some());
        for (from, to) in [
            ("IsPrimary", "isPrimary"),
            ("\"10.240.0.5\"", "null"),
            ("000D3A0A0B0C", "*"),
            ("[]", "[],\"Name\":\"x\""),
            ("10.240.0.5", "10.240.0.\\u0035"),
        ] {
            assert_eq!(usual(text.replace(from, to).as_bytes()), None, "{to}");
        }
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
        for text in [
            text,
            &text.replace("[{\"IPSubnets", "[{\"MacAddress\":\"*\",\"IPSubnets"),
        ] {
            assert_eq!(
                list(text, &[nic("eth0", MAC, &["10.1.2.4"])]).unwrap().pools[0].interface,
                "eth0"
            );
        }
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
                r#"{"Interfaces":[{"MacAddress":"**"}]}"#,
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
        let answer = read(Path::new("/nonexistent/list.json"), &local);
        let error = answer.error.unwrap().to_string();
        assert!(error.contains("/nonexistent/list.json: No such file"), "{error}");
        assert!(list(r#"{"Interfaces":[]}"#, &local).unwrap().pools.is_empty());
        assert!(list("{}", &local).unwrap().pools.is_empty());
    }
}
