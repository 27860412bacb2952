//! Rules as they are read.

use super::*;

#[test]
fn a_thousand_rules_that_cut_everything_into_pieces_end_in_doubt_and_soon() {
    let rules: Vec<Value> = (0..1000_u32)
        .map(|n| {
            let (access, x) = (
                if n % 2 == 0 { "allow" } else { "deny" },
                n.wrapping_mul(2_654_435_761),
            );
            let (a, b, port) = (x >> 24, x >> 16 & 0xff, 1024 + x % 40_000);
            rule(&format!(
                "{} in {access} Tcp 10.240.{a}.{b},10.240.{b}.{a} {port}-65535 > 10.226.0.{} *",
                100 + n,
                x % 16
            ))
        })
        .collect();
    let group = group(&rules);
    let connections = Connections {
        sources: network(NODES),
        source_ports: Spans::range(1024, 65_535),
        destinations: network(API),
    };
    let decisions = evaluate(
        &group,
        Direction::Inbound,
        443,
        connections,
        &VirtualNetwork::default(),
    );
    assert!(decisions.len() < 5000, "{}", decisions.len());
    assert!(
        decisions
            .iter()
            .any(|decision| decision.allowed.is_none() && decision.doubt.is_none())
    );
}

#[test]
fn rules_that_the_document_already_has_are_not_added_again() {
    let mut default = rule("65000 in allow * VirtualNetwork * > VirtualNetwork *");
    default["name"] = "AllowVnetInBound".into();
    let group = group(&[default, rule("100 in deny * * * > * 22")]);
    let names: Vec<&str> = group.rules.iter().map(|rule| rule.name.as_str()).collect();
    assert_eq!(
        names,
        [
            "r100",
            "AllowVnetInBound",
            "AllowAzureLoadBalancerInBound",
            "DenyAllInBound",
            "AllowVnetOutBound",
            "AllowInternetOutBound",
            "DenyAllOutBound",
        ]
    );
}

#[test]
fn a_rule_that_is_none_is_named_with_its_place() {
    let read = |change: &dyn Fn(&mut Value)| {
        let mut rules = json!([rule("100 in deny * * * > * 22"), rule("200 in deny * * * > * 23")]);
        change(&mut rules);
        let document = Document::parse(Path::new("nsg.json"), rules.to_string().as_bytes()).unwrap();
        SecurityGroup::read(&document)
            .map(|_| ())
            .unwrap_err()
            .to_string()
    };
    for (change, expected) in [
        (
            &(|rules: &mut Value| rules[1]["access"] = json!("Permit")) as &dyn Fn(&mut Value),
            "[1].access: expected Allow or Deny, found \"Permit\"",
        ),
        (
            &|rules| rules[1]["direction"] = Value::Null,
            "[1].direction: expected Inbound or Outbound",
        ),
        (
            &|rules| rules[1]["priority"] = json!(-5),
            "[1].priority: expected a number",
        ),
        (
            &|rules| rules[1]["priority"] = json!(100),
            "two Inbound rules of priority 100",
        ),
        (
            &|rules| rules[0]["protocol"] = Value::Null,
            "[0].protocol: is missing",
        ),
        (
            &|rules| rules[0]["destinationPortRange"] = json!("22-"),
            "[0].destinationPortRange: \"22-\" is no port",
        ),
        (
            &|rules| rules[0]["destinationPortRange"] = json!("70000"),
            "\"70000\" is no port",
        ),
        (
            &|rules| rules[0]["destinationPortRange"] = json!("30-20"),
            "in 30-20 the first port is above the last one",
        ),
        (
            &|rules| rules[0]["sourceAddressPrefix"] = json!("10.0.0.0/33"),
            "[0].sourceAddressPrefix: \"10.0.0.0/33\" is no address",
        ),
        (
            &|rules| rules[0]["sourceAddressPrefixes"] = json!([5]),
            "[0].sourceAddressPrefixes[0]: expected a string, found 5",
        ),
        (
            &|rules| {
                rules[0]["id"] = json!("/g/networkSecurityGroups/a/securityRules/r100");
                rules[1]["id"] = json!("/g/networkSecurityGroups/b/securityRules/r200");
            },
            "holds rules of 2 groups",
        ),
    ] {
        let error = read(change);
        assert!(
            error.starts_with("nsg.json: ") && error.contains(expected),
            "{error}"
        );
    }
}
