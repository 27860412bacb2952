//! Which addresses are given: sources, wishes, pools that are used up.

use std::{fs, net::Ipv6Addr};

use anyhow::{Context, Result};
use causeway_tests::netns::Netns;
use serde_json::json;

use super::{at, held, list, nothing_is_left, of_ipv6, talk, world};
use crate::{
    call::Call,
    pods::{add, del, id},
    sources::Wireserver,
};

#[test]
fn where_one_family_has_none_left_nothing_of_the_other_is_taken() -> Result<()> {
    let world = world(3, &[at(5)])?;
    let pods = [Netns::new()?, Netns::new()?];
    add(&world, 0, &pods[0])?.ok()?;
    let before = held(&world)?;
    assert_eq!(before.len(), 2);
    let failure = add(&world, 1, &pods[1])?.error()?;
    assert!(failure.msg.ends_with("No available addresses"), "{failure:?}");
    for part in [
        "1 of 1 addresses of pool fd00:10::/64 are in use",
        "interfaces.json",
    ] {
        assert!(failure.details.contains(part), "{failure:?}");
    }
    assert_eq!(held(&world)?, before);
    assert_eq!((world.endpoints()?.len(), world.interfaces()?.len()), (1, 1));
    let status = world.network("STATUS", "")?.with("cniVersion", json!("1.1.0"));
    let failure = status.error()?;
    assert!(
        failure.code == 50 && failure.details.contains("fd00:10::/64"),
        "{failure:?}"
    );
    let failure = world.ipam("ADD", "alone").error()?;
    assert!(
        failure.details.contains("1 of 1 addresses of pool fd00:10::/64"),
        "{failure:?}"
    );
    del(&world, 0)?.ok()?;
    status.ok()?;
    add(&world, 1, &pods[1])?.ok()?;
    del(&world, 1)?.ok()?;
    nothing_is_left(&world)
}

/// How a runtime asks.
type Wish = fn(Call<'_>) -> Call<'_>;

#[test]
fn addresses_of_either_family_can_be_asked_for() -> Result<()> {
    let world = world(4, &[at(5), at(6), at(7), at(8)])?;
    let asked: [(&str, Wish, [&str; 2]); 4] = [
        (
            "both in CNI_ARGS",
            |call| call.env("CNI_ARGS", "IP=10.240.0.8,fd00:10::7"),
            ["10.240.0.8", "fd00:10::7"],
        ),
        (
            "one of IPv6",
            |call| call.with("runtimeConfig", json!({ "ips": ["fd00:10::6/64"] })),
            ["10.240.0.5", "fd00:10::6"],
        ),
        (
            "one of IPv4",
            |call| call.with("runtimeConfig", json!({ "ips": ["10.240.0.7"] })),
            ["10.240.0.7", "fd00:10::5"],
        ),
        (
            "ipam.ipAddress",
            |call| {
                let ipam = json!({ "type": "azure-vnet-ipam", "environment": "mas", "ipAddress": "fd00:10::8, 10.240.0.6" });
                call.with("ipam", ipam)
            },
            ["10.240.0.6", "fd00:10::8"],
        ),
    ];
    for (n, (name, ask, expected)) in (0..).zip(asked) {
        let ns = Netns::new()?;
        let result = ask(add(&world, n, &ns)?).ok()?;
        let given = [0, 1].map(|n| {
            let text = result["ips"][n]["address"].as_str().unwrap_or_default();
            text.split('/').next().unwrap_or_default().to_owned()
        });
        assert_eq!(given, expected, "{name}");
        world.network("DEL", &id(n))?.ok()?;
        // The least recently released one is next: the first ones again.
        fs::remove_file(world.node.root.join("/var/run/azure-vnet-ipam.json"))?;
    }
    let ns = Netns::new()?;
    for (ips, needle) in [
        (json!(["fd00:10::99"]), "Address not found: fd00:10::99"),
        (
            json!(["10.240.0.5", "fd00:11::5"]),
            "Address not found: fd00:11::5",
        ),
        (json!(["fd00:10::5", "fd00:10::6"]), "one address of a family"),
    ] {
        let failure = add(&world, 9, &ns)?
            .with("runtimeConfig", json!({ "ips": ips }))
            .error()?;
        assert!(failure.msg.contains(needle), "{failure:?}");
        nothing_is_left(&world)?;
    }
    list(&world, 4, &[])?;
    let failure = add(&world, 9, &ns)?.env("CNI_ARGS", "IP=fd00:10::5").error()?;
    assert!(
        failure.msg.contains("Address not found: fd00:10::5"),
        "{failure:?}"
    );
    nothing_is_left(&world)
}

#[test]
fn azure_vnet_ipam_answers_with_both() -> Result<()> {
    let world = world(2, &[at(5), at(6)])?;
    let result = world.ipam("ADD", "a").ok()?;
    let expected = json!([
        { "address": "10.240.0.5/16", "gateway": "10.240.0.1" },
        { "address": "fd00:10::5/64", "gateway": "fd00:10::1" },
    ]);
    assert_eq!(result["ips"], expected);
    assert_eq!(
        world.ipam("ADD", "a").ok()?,
        result,
        "the same container, the same addresses"
    );
    assert_eq!(held(&world)?.len(), 2);
    let old = world.ipam("ADD", "b").with("cniVersion", json!("0.2.0")).ok()?;
    assert_eq!(
        (&old["ip4"]["ip"], &old["ip6"]["ip"]),
        (&json!("10.240.0.6/16"), &json!("fd00:10::6/64"))
    );
    for container in ["a", "b"] {
        world.ipam("DEL", container).ok()?;
    }
    nothing_is_left(&world)
}

/// The addresses that a card carries itself: the first one of its subnet is the node's own.
#[test]
fn addresses_of_the_interface_and_of_the_configuration() -> Result<()> {
    let world = world(2, &[at(5), at(6)])?;
    let carried = || {
        world.node.ns.output(
            "ip",
            &["-6", "-o", "addr", "show", "dev", "eth0", "scope", "global"],
        )
    };
    world.node.ns.ip(&format!(
        "addr add 10.240.0.5/16 dev eth0\naddr add {}/64 dev eth0 nodad noprefixroute",
        at(5)
    ))?;
    let ns = Netns::new()?;
    let ipam = json!({ "type": "azure-vnet-ipam", "environment": "nic" });
    let result = add(&world, 1, &ns)?.with("ipam", ipam.clone()).ok()?;
    assert_eq!(of_ipv6(&result)?, at(5));
    let left = carried()?;
    assert!(
        left.contains("fd00:10::4/64") && !left.contains("fd00:10::5"),
        "{left}"
    );
    talk(&world.fabric.vnet, &ns, at(5))?;
    let other = Netns::new()?;
    let failure = add(&world, 2, &other)?.with("ipam", ipam.clone()).error()?;
    assert!(failure.msg.contains("No available addresses"), "{failure:?}");
    del(&world, 1)?.with("ipam", ipam).ok()?;
    assert!(carried()?.contains("fd00:10::5/64"));
    world
        .node
        .ns
        .ip("addr del fd00:10::5/64 dev eth0\naddr del 10.240.0.5/16 dev eth0")?;
    nothing_is_left(&world)?;
    let ipam = json!({ "type": "azure-vnet-ipam", "environment": "static", "subnet": "10.240.0.0/16,fd00:10::/64",
        "addresses": ["10.240.0.5-10.240.0.6", "fd00:10::5-fd00:10::6"] });
    let result = add(&world, 1, &ns)?.with("ipam", ipam).ok()?;
    assert_eq!(of_ipv6(&result)?, at(6), "released longest ago");
    talk(&world.fabric.vnet, &ns, at(6))?;
    del(&world, 1)?.ok()?;
    nothing_is_left(&world)
}

#[test]
fn a_prescribed_subnet_prescribes_the_family() -> Result<()> {
    let world = world(2, &[at(5), at(6)])?;
    let ns = Netns::new()?;
    let with = |subnet: &str| {
        let ipam = json!({ "type": "azure-vnet-ipam", "environment": "mas", "subnet": subnet });
        Ok::<_, anyhow::Error>(add(&world, 1, &ns)?.with("ipam", ipam))
    };
    let result = with("10.240.0.0/16")?.ok()?;
    assert_eq!(result["ips"].as_array().map(Vec::len), Some(1));
    del(&world, 1)?.ok()?;
    let result = with("fd00:10::/64")?.ok()?;
    assert_eq!(
        (of_ipv6(&result)?, result["ips"].as_array().map(Vec::len)),
        (at(5), Some(1))
    );
    del(&world, 1)?.ok()?;
    for (subnet, needle) in [
        ("10.240.0.0/16,fd00:77::/64", "fd00:77::/64 not found"),
        ("10.240.0.0/16,x", "10.240.0.0/16,x not found"),
    ] {
        let failure = with(subnet)?.error()?;
        assert!(failure.msg.contains(needle), "{failure:?}");
        nothing_is_left(&world)?;
    }
    let result = with("10.240.0.0/16,fd00:10::/64")?.ok()?;
    assert_eq!(of_ipv6(&result)?, at(6), "released longest ago");
    Ok(())
}

/// Case 12. Of several pools of IPv6 a pod has one address; whoever has another IPAM plug-in has what that gives.
#[test]
fn two_subnets_of_ipv6() -> Result<()> {
    let world = world(2, &[at(5)])?;
    let second: Ipv6Addr = "fd00:11::5".parse()?;
    list(
        &world,
        2,
        &[("fd00:10::/64", &[at(5)]), ("fd00:11::/64", &[second])],
    )?;
    let pods = [Netns::new()?, Netns::new()?];
    let mut given = Vec::new();
    for n in [0, 1] {
        let result = add(&world, n, &pods[n as usize])?.ok()?;
        assert_eq!(result["ips"].as_array().map(Vec::len), Some(2), "{result}");
        given.push(of_ipv6(&result)?);
    }
    given.sort_unstable();
    assert_eq!(given, [at(5), second]);
    talk(&pods[0], &pods[1], of_pod(&pods[1])?)?;
    for n in [0, 1] {
        del(&world, n)?.ok()?;
    }
    nothing_is_left(&world)
}

/// The pod's first address of IPv6.
fn of_pod(ns: &Netns) -> Result<Ipv6Addr> {
    let eth0 = ns.output(
        "ip",
        &["-6", "-o", "addr", "show", "dev", "eth0", "scope", "global"],
    )?;
    let text = eth0.split_whitespace().find_map(|word| word.strip_suffix("/64"));
    Ok(text.context("no address")?.parse()?)
}

/// The list of the fabric itself, with a subnet of each family.
#[test]
fn the_wireserver_lists_both_families() -> Result<()> {
    let (world, ns) = (world(1, &[at(5)])?, Netns::new()?);
    let server = Wireserver::start(&world)?;
    server.answer(
        &world,
        "<IPSubnet Prefix=\"10.240.0.0/16\"><IPAddress Address=\"10.240.0.4\" IsPrimary=\"true\"/>\
         <IPAddress Address=\"10.240.0.5\" IsPrimary=\"false\"/></IPSubnet><IPSubnet Prefix=\"fd00:10::/64\">\
         <IPAddress Address=\"fd00:10::4\" IsPrimary=\"true\"/><IPAddress Address=\"fd00:10::5\" IsPrimary=\"false\"/></IPSubnet>",
    )?;
    let ipam = json!({ "type": "azure-vnet-ipam" });
    let result = add(&world, 1, &ns)?.with("ipam", ipam).ok()?;
    assert_eq!(of_ipv6(&result)?, at(5));
    talk(&world.fabric.vnet, &ns, at(5))?;
    del(&world, 1)?.ok()?;
    nothing_is_left(&world)
}
