//! Rules as the Azure CLI writes them, expectations written by hand; and points tried one by one.
//!
//! Nodes are 10.240.0.0/16, API servers 10.226.0.0/28, the network 10.224.0.0/11.

mod points;
mod reading;

use std::{fmt::Write as _, path::Path};

use serde_json::{Map, Value, json};

use super::*;
use crate::conversion::document::Document;

const NODES: &str = "10.240.0.0/16";
const API: &str = "10.226.0.0/28";
const PROBE: &str = "168.63.129.16/32";
const ONPREM: &str = "192.168.0.0/16";

/// `100 in allow Tcp SOURCES SOURCE-PORTS > DESTINATIONS PORTS`, lists with commas, `asg:NAME` for a security group.
pub(super) fn rule(text: &str) -> Value {
    let words: Vec<&str> = text.split_whitespace().collect();
    let [
        priority,
        direction,
        access,
        protocol,
        sources,
        source_ports,
        ">",
        destinations,
        ports,
    ] = words[..]
    else {
        panic!("{text}");
    };
    let mut rule = json!({
        "name": format!("r{priority}"),
        "priority": priority.parse::<u32>().unwrap(),
        "direction": if direction == "in" { "Inbound" } else { "Outbound" },
        "access": if access == "allow" { "Allow" } else { "Deny" },
        "protocol": protocol,
        "type": "Microsoft.Network/networkSecurityGroups/securityRules",
    });
    let rule_map = rule.as_object_mut().unwrap();
    side_of(rule_map, "source", sources, source_ports);
    side_of(rule_map, "destination", destinations, ports);
    rule
}

fn side_of(rule: &mut Map<String, Value>, side: &str, addresses: &str, ports: &str) {
    for (one, words) in [("AddressPrefix", addresses), ("PortRange", ports)] {
        let many = if one == "PortRange" {
            "PortRanges"
        } else {
            "AddressPrefixes"
        };
        let (groups, words): (Vec<&str>, Vec<&str>) =
            words.split(',').partition(|word| word.starts_with("asg:"));
        let single = if words.len() == 1 {
            words[0].into()
        } else {
            Value::Null
        };
        rule.insert(format!("{side}{one}"), single);
        rule.insert(
            format!("{side}{many}"),
            if words.len() > 1 { words.into() } else { json!([]) },
        );
        if one == "AddressPrefix" {
            let groups: Vec<Value> = groups
                .iter()
                .map(|name| json!({ "id": format!("/x/{name}") }))
                .collect();
            rule.insert(format!("{side}ApplicationSecurityGroups"), groups.into());
        }
    }
}

pub(super) fn group(rules: &[Value]) -> SecurityGroup {
    let document = Document::parse(Path::new("nsg.json"), json!(rules).to_string().as_bytes()).unwrap();
    SecurityGroup::read(&document).unwrap()
}

fn network(text: &str) -> Spans {
    Spans::network(text.parse().unwrap())
}

/// What becomes of the connections: `allow r100 SOURCES from PORTS to DESTINATIONS`, where each is said that is not whole.
fn judge(direction: Direction, port: u16, from: &str, to: &str, rules: &[&str]) -> String {
    let rules: Vec<Value> = rules.iter().map(|text| rule(text)).collect();
    let group = group(&rules);
    let connections = Connections {
        sources: network(from),
        source_ports: Spans::range(1024, 65_535),
        destinations: network(to),
    };
    let whole = connections.clone();
    let known = VirtualNetwork {
        known: network("10.224.0.0/11"),
    };
    let mut texts: Vec<String> = Vec::new();
    for decision in evaluate(&group, direction, port, connections, &known) {
        let access = match decision.allowed {
            Some(true) => "allow",
            Some(false) => "deny",
            None => "unknown",
        };
        let mut text = format!("{access} {}", decision.rule.name);
        if let Some(doubt) = decision.doubt {
            write!(text, "?{}", doubt.name).unwrap();
        }
        let Connections {
            sources,
            source_ports,
            destinations,
        } = decision.connections;
        if sources != whole.sources {
            write!(text, " {}", sources.address_text()).unwrap();
        }
        if source_ports != whole.source_ports {
            write!(text, " from {}", source_ports.number_text()).unwrap();
        }
        if destinations != whole.destinations {
            write!(text, " to {}", destinations.address_text()).unwrap();
        }
        texts.push(text);
    }
    texts.sort();
    texts.join("; ")
}

#[test]
fn nodes_to_api_servers_at_the_api_servers_group() {
    for (rules, expected) in [
        (&[][..], "allow AllowVnetInBound"),
        (&["4096 in deny * * * > * *"], "deny r4096"),
        (
            &[
                "200 in allow Tcp 10.240.0.0/16 * > 10.226.0.0/28 443",
                "4096 in deny * * * > * *",
            ],
            "allow r200",
        ),
        (
            &["4096 in allow Tcp * * > * 443", "200 in deny * * * > * *"],
            "deny r200",
        ),
        // Another protocol is another matter, and its name has no case.
        (&["100 in deny Udp * * > * *"], "allow AllowVnetInBound"),
        (&["100 in deny Icmp * * > * *"], "allow AllowVnetInBound"),
        (&["100 in deny TCP * * > * 443"], "deny r100"),
        (
            &["100 in allow tcp * * > * 443", "200 in deny * * * > * *"],
            "allow r100",
        ),
        (
            &["100 in allow Udp * * > * 443", "200 in deny * * * > * *"],
            "deny r200",
        ),
        // Ports: one, a range, a list.
        (&["100 in deny Tcp * * > * 80"], "allow AllowVnetInBound"),
        (&["100 in deny Tcp * * > * 444"], "allow AllowVnetInBound"),
        (&["100 in deny Tcp * * > * 443"], "deny r100"),
        (&["100 in deny Tcp * * > * 400-443"], "deny r100"),
        (&["100 in deny Tcp * * > * 443-500"], "deny r100"),
        (&["100 in deny Tcp * * > * 400-442"], "allow AllowVnetInBound"),
        (&["100 in deny Tcp * * > * 80,443,8080-8090"], "deny r100"),
        (
            &["100 in allow Tcp * * > * 80,443", "200 in deny * * * > * *"],
            "allow r100",
        ),
        // Sources: part of the subnet, all of it and more, none of it.
        (
            &["100 in deny * 10.240.128.0/17 * > * *"],
            "allow AllowVnetInBound 10.240.0.0/17; deny r100 10.240.128.0/17",
        ),
        (
            &[
                "100 in allow Tcp 10.240.0.0/17 * > * 443",
                "200 in deny * * * > * *",
            ],
            "allow r100 10.240.0.0/17; deny r200 10.240.128.0/17",
        ),
        (
            &[
                "100 in allow Tcp 10.240.0.0/17,10.240.128.0/17 * > * 443",
                "200 in deny * * * > * *",
            ],
            "allow r100",
        ),
        (
            &["100 in deny * 10.240.0.4 * > * *"],
            "allow AllowVnetInBound 10.240.0.0/30, 10.240.0.5 to 10.240.255.255; deny r100 10.240.0.4",
        ),
        (&["100 in deny * 10.240.0.0-10.240.255.255 * > * *"], "deny r100"),
        (&["100 in deny * 10.0.0.0/8 * > * *"], "deny r100"),
        (&["100 in deny * 0.0.0.0/0 * > * *"], "deny r100"),
        (
            &["100 in deny * 10.241.0.0/16,172.16.0.0/12 * > * *"],
            "allow AllowVnetInBound",
        ),
        (&["100 in deny * ::/0 * > * *"], "allow AllowVnetInBound"),
        (
            &[
                "100 in deny * 10.240.0.0/18 * > * *",
                "200 in allow * 10.240.0.0/17 * > * *",
                "300 in deny * * * > * *",
            ],
            "allow r200 10.240.64.0/18; deny r100 10.240.0.0/18; deny r300 10.240.128.0/17",
        ),
        // Destinations.
        (&["100 in deny * * * > 10.226.1.0/24 *"], "allow AllowVnetInBound"),
        (
            &["100 in allow * * * > 10.226.0.4 443", "200 in deny * * * > * *"],
            "allow r100 to 10.226.0.4; deny r200 to 10.226.0.0/30, 10.226.0.5 to 10.226.0.15",
        ),
        // Source ports: whoever writes the port into the wrong column allows nothing.
        (&["100 in deny * * 22 > * *"], "allow AllowVnetInBound"),
        (
            &["100 in allow Tcp * 443 > * *", "200 in deny * * * > * *"],
            "deny r200",
        ),
        (
            &["100 in deny * * 1024-2000 > * *"],
            "allow AllowVnetInBound from 2001-65535; deny r100 from 1024-2000",
        ),
        // The order is the priorities', not the list's; and another direction's rules are not asked.
        (
            &["300 in deny * * * > * *", "100 in allow * * * > * *"],
            "allow r100",
        ),
        (&["100 out deny * * * > * *"], "allow AllowVnetInBound"),
        // Tags.
        (
            &["4000 in deny * VirtualNetwork * > VirtualNetwork *"],
            "deny r4000",
        ),
        (
            &[
                "100 in allow * virtualnetwork * > * 443",
                "200 in deny * * * > * *",
            ],
            "allow r100",
        ),
        (&["100 in deny * Internet * > * *"], "allow AllowVnetInBound"),
        (
            &["100 in deny * AzureLoadBalancer * > * *"],
            "allow AllowVnetInBound",
        ),
        (
            &["100 in deny * Storage.WestEurope * > * *"],
            "unknown AllowVnetInBound?r100",
        ),
        (&["100 in allow * AzureCloud * > * *"], "allow AllowVnetInBound"),
        (
            &["100 in allow * AzureCloud * > * *", "200 in deny * * * > * *"],
            "unknown r200?r100",
        ),
        (
            &["100 in deny * AzureCloud * > * *", "200 in deny * * * > * *"],
            "deny r200",
        ),
        (
            &["100 in deny * AzureCloud,10.240.0.0/17 * > * *"],
            "deny r100 10.240.0.0/17; unknown AllowVnetInBound?r100 10.240.128.0/17",
        ),
        (
            &["100 in allow * Storage * > * *", "200 in deny * Sql * > * *"],
            "unknown r200?r100",
        ),
        // Application security groups: who is in them is not known.
        (
            &["100 in deny * asg:nodes * > * *"],
            "unknown AllowVnetInBound?r100",
        ),
        (
            &["100 in allow * asg:nodes * > * 443", "200 in deny * * * > * *"],
            "unknown r200?r100",
        ),
        (&["100 in allow * * * > asg:api 443"], "allow AllowVnetInBound"),
    ] {
        assert_eq!(
            judge(Direction::Inbound, 443, NODES, API, rules),
            expected,
            "{rules:?}"
        );
    }
}

#[test]
fn nodes_to_api_servers_at_the_nodes_group() {
    for (rules, expected) in [
        (&[][..], "allow AllowVnetOutBound"),
        (&["4096 out deny * * * > * *"], "deny r4096"),
        (
            &[
                "100 out allow Tcp * * > VirtualNetwork *",
                "4096 out deny * * * > * *",
            ],
            "allow r100",
        ),
        (&["4096 out deny * * * > Internet *"], "allow AllowVnetOutBound"),
        (
            &["100 out deny Tcp * * > 10.226.0.0/29 *"],
            "allow AllowVnetOutBound to 10.226.0.8/29; deny r100 to 10.226.0.0/29",
        ),
        (
            &[
                "100 out allow Tcp * * > AzureCloud 4443",
                "200 out deny * * * > * *",
            ],
            "unknown r200?r100",
        ),
        (&["100 in deny * * * > * *"], "allow AllowVnetOutBound"),
        (
            &["100 out deny * 10.240.0.0/17 * > 10.226.0.0/29 *"],
            "allow AllowVnetOutBound 10.240.0.0/17 to 10.226.0.8/29; allow AllowVnetOutBound 10.240.128.0/17; \
             deny r100 10.240.0.0/17 to 10.226.0.0/29",
        ),
    ] {
        assert_eq!(
            judge(Direction::Outbound, 4443, NODES, API, rules),
            expected,
            "{rules:?}"
        );
    }
}

#[test]
fn the_platforms_probes() {
    for (rules, expected) in [
        (&[][..], "allow AllowAzureLoadBalancerInBound"),
        (&["4096 in deny * * * > * *"], "deny r4096"),
        (
            &[
                "100 in allow Tcp AzureLoadBalancer * > 10.226.0.0/28 9988",
                "4096 in deny * * * > * *",
            ],
            "allow r100",
        ),
        (
            &[
                "100 in allow Udp AzureLoadBalancer * > 10.226.0.0/28 9988",
                "4096 in deny * * * > * *",
            ],
            "deny r4096",
        ),
        (
            &[
                "100 in allow Tcp azureloadbalancer * > * *",
                "4096 in deny * * * > * *",
            ],
            "allow r100",
        ),
        (
            &[
                "100 in allow Tcp 168.63.129.16 * > * 9988",
                "4096 in deny * * * > * *",
            ],
            "allow r100",
        ),
        (
            &[
                "100 in allow Tcp 10.0.0.0/8 * > * 9988",
                "4096 in deny * * * > * *",
            ],
            "deny r4096",
        ),
        (
            &["100 in allow * * * > * 443,4443", "4096 in deny * * * > * *"],
            "deny r4096",
        ),
        // The documentation counts the host's virtual address among both.
        (
            &["4000 in deny * VirtualNetwork * > * *"],
            "unknown AllowVnetInBound?r4000",
        ),
        (
            &["4000 in deny * Internet * > * *"],
            "unknown AllowVnetInBound?r4000",
        ),
        (&["100 in deny * AzureLoadBalancer * > * *"], "deny r100"),
    ] {
        assert_eq!(
            judge(Direction::Inbound, 9988, PROBE, API, rules),
            expected,
            "{rules:?}"
        );
    }
}

#[test]
fn a_network_that_may_be_connected_is_neither_allowed_nor_denied() {
    let judge = |rules| judge(Direction::Inbound, 443, ONPREM, API, rules);
    assert_eq!(judge(&[]), "unknown DenyAllInBound?AllowVnetInBound");
    assert_eq!(judge(&["100 in allow * 192.168.0.0/16 * > * *"]), "allow r100");
    assert_eq!(
        judge(&["100 in deny * VirtualNetwork * > * *"]),
        "unknown AllowVnetInBound?r100"
    );
    assert_eq!(
        judge(&["100 in deny * Internet * > * *", "200 in allow * * * > * *"]),
        "allow r200"
    );
}
