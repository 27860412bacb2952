//! Case 4: the node's own subnets, as `causeway pod-cidrs` notes them. The fabric routes them to the node; no interface of it has
//! an address of theirs.

use std::{collections::BTreeSet, fs, net::Ipv6Addr};

use anyhow::{Context, Result};
use causeway_tests::{
    dual_stack::{self, Connection},
    netns::Netns,
};
use serde_json::{Value, json};

use crate::{
    call::{Call, World, address},
    dual_stack::held,
    pods::{add, del, id},
};

/// Five addresses for pods.
const V4: &str = "10.244.3.0/29";
const V6: &str = "fd00:244:3::/64";
const FILE: &str = "/run/causeway/pod-cidrs.json";

/// A node that the fabric routes both subnets to.
fn world() -> Result<World> {
    let world = World::new(1)?;
    dual_stack::enable(&world.fabric, &world.node.ns, &[])?;
    let node = dual_stack::NODE;
    world.fabric.router.ip(&format!(
        "route add {V4} via 10.240.0.4 dev node onlink\nroute add {V6} via {node} dev node onlink"
    ))?;
    Ok(world)
}

fn note(world: &World, cidrs: &[&str]) -> Result<()> {
    let text =
        json!({ "node": "pool-0", "uid": "5e8a", "podCIDRs": cidrs, "readAt": "2026-01-02T03:04:05Z" });
    world.node.root.write(FILE, &text.to_string())
}

fn with_pod_cidrs(call: Call<'_>) -> Call<'_> {
    call.with(
        "ipam",
        json!({ "type": "azure-vnet-ipam", "environment": "podCIDRs" }),
    )
}

fn of_ipv6(result: &Value) -> Result<Ipv6Addr> {
    let text = result["ips"][1]["address"]
        .as_str()
        .context("no second address")?;
    Ok(text.strip_suffix("/64").context("another mask")?.parse()?)
}

fn nothing_is_left(world: &World) -> Result<()> {
    assert_eq!(held(world)?.len(), 0, "leases");
    assert_eq!(world.endpoints()?, [""; 0], "endpoints");
    assert_eq!(world.interfaces()?, [""; 0], "interfaces");
    assert_eq!(world.served()?, [""; 0], "pods of the datapath");
    world.assert_no_litter()
}

#[test]
fn pods_have_an_address_of_each_of_the_nodes_subnets_until_they_are_used_up() -> Result<()> {
    let world = world()?;
    note(&world, &[V6, V4])?;
    let status = world.network("STATUS", "")?.with("cniVersion", json!("1.1.0"));
    let status = with_pod_cidrs(status);
    status.ok()?;
    let pods: Vec<Netns> = (0..6).map(|_| Netns::new()).collect::<Result<_>>()?;
    let mut given = BTreeSet::new();
    let mut of_v6 = Vec::new();
    for (n, ns) in (0..5).zip(&pods) {
        let result = with_pod_cidrs(add(&world, n, ns)?).ok()?;
        assert_eq!(result["ips"][0]["gateway"], "10.244.3.1");
        given.insert(address(&result)?.to_string());
        of_v6.push(of_ipv6(&result)?);
    }
    let expected = (2..=6).map(|host| format!("10.244.3.{host}")).collect();
    assert_eq!(given, expected);
    assert_eq!(
        of_v6,
        (2..=6)
            .map(|host| Ipv6Addr::new(0xfd00, 0x244, 3, 0, 0, 0, 0, host))
            .collect::<Vec<_>>()
    );
    assert_eq!(held(&world)?.len(), 10);

    for target in ["10.244.3.3", "10.240.0.4", "10.240.1.10"] {
        pods[0].output("ping", &["-c1", "-i0.2", "-w5", target])?;
    }
    Connection::open(&pods[0], &pods[1], of_v6[1], 7000)?.chat(1)?;
    Connection::open(&world.fabric.vnet, &pods[2], of_v6[2], 7000)?.chat(1)?;

    let failure = with_pod_cidrs(add(&world, 5, &pods[5])?).error()?;
    assert!(failure.msg.ends_with("No available addresses"), "{failure:?}");
    for part in [
        "5 of 5 addresses of pool 10.244.3.0/29",
        "pod-cidrs.json of node pool-0, ",
        " s old",
    ] {
        assert!(failure.details.contains(part), "{failure:?}");
    }
    assert_eq!(held(&world)?.len(), 10, "a refused pod has nothing");
    assert_eq!(status.error()?.code, 50);
    let leases = world.node.causeway_json("leases")?;
    let pools: Vec<_> = [0, 1]
        .map(|n| (&leases["pools"][n]["subnet"], &leases["pools"][n]["used"]))
        .into();
    assert_eq!(pools, [(&json!(V4), &json!(5)), (&json!(V6), &json!(5))]);

    with_pod_cidrs(del(&world, 3)?).ok()?;
    status.ok()?;
    // In any case, as other keys are.
    let again = add(&world, 5, &pods[5])?;
    let again = again.with(
        "ipam",
        json!({ "type": "azure-vnet-ipam", "environment": "podcidrs" }),
    );
    let again = again.ok()?;
    assert_eq!(
        (address(&again)?.to_string().as_str(), of_ipv6(&again)?),
        ("10.244.3.5", of_v6[3])
    );
    for n in [0, 1, 2, 4, 5] {
        with_pod_cidrs(del(&world, n)?).ok()?;
    }
    nothing_is_left(&world)
}

#[test]
fn without_a_list_of_use_the_error_says_who_makes_it_and_known_addresses_serve() -> Result<()> {
    let world = world()?;
    let ns = Netns::new()?;
    let ask = || Ok::<_, anyhow::Error>(with_pod_cidrs(add(&world, 0, &ns)?));
    let file = world.node.root.join(FILE);
    let missing = |needle: &str| -> Result<()> {
        let status = world.network("STATUS", "")?.with("cniVersion", json!("1.1.0"));
        for failure in [ask()?.error()?, with_pod_cidrs(status).error()?] {
            for part in [FILE, needle, "`causeway pod-cidrs` writes that file"] {
                assert!(failure.msg.contains(part), "{part}: {failure:?}");
            }
        }
        Ok(())
    };
    missing("there is no such file")?;
    world.node.root.write(FILE, "{ \"node\": ")?;
    missing("EOF")?;
    note(&world, &["10.244.3.9/29"])?;
    missing("10.244.3.8/29 is meant?")?;
    note(&world, &[V6])?;
    let result = ask()?.ok()?;
    assert_eq!(result["ips"].as_array().map(Vec::len), Some(1));
    assert_eq!(result["ips"][0]["address"], "fd00:244:3::2/64");
    world.network("DEL", &id(0))?.ok()?;
    assert_eq!(held(&world)?.len(), 0);

    note(&world, &[V4])?;
    let result = ask()?.ok()?;
    assert_eq!(result["ips"].as_array().map(Vec::len), Some(1));
    world.network("DEL", &id(0))?.ok()?;
    fs::remove_file(&file)?;
    assert_eq!(
        address(&ask()?.ok()?)?.to_string(),
        "10.244.3.3",
        "the one released longest ago"
    );
    world.network("DEL", &id(0))?.ok()?;
    nothing_is_left(&world)
}

/// What served pods before may have left its bridge.
#[test]
fn a_bridge_with_an_address_of_the_subnet_is_not_the_uplink() -> Result<()> {
    let world = world()?;
    world
        .node
        .ns
        .ip("link add cbr0 type bridge\naddr add 10.244.3.1/29 dev cbr0 noprefixroute\nlink set cbr0 up")?;
    note(&world, &[V4])?;
    let ns = Netns::new()?;
    with_pod_cidrs(add(&world, 0, &ns)?).ok()?;
    ns.output("ping", &["-c1", "-i0.2", "-w5", "10.240.1.10"])?;
    let uplink = &world.node.causeway_json("status")?["uplink"]["interface"];
    assert_eq!(uplink, "eth0");
    with_pod_cidrs(del(&world, 0)?).ok()?;
    nothing_is_left(&world)
}

#[test]
fn with_other_subnets_new_pods_have_those_and_old_ones_keep_theirs() -> Result<()> {
    let world = world()?;
    let pods = [Netns::new()?, Netns::new()?];
    note(&world, &[V4])?;
    let old = with_pod_cidrs(add(&world, 0, &pods[0])?);
    old.ok()?;
    note(&world, &["10.244.9.0/29"])?;
    let new = with_pod_cidrs(add(&world, 1, &pods[1])?).ok()?;
    assert_eq!(address(&new)?.to_string(), "10.244.9.2");
    assert_eq!(address(&old.ok()?)?.to_string(), "10.244.3.2");
    pods[1].output("ping", &["-c1", "-i0.2", "-w5", "10.244.3.2"])?;
    for n in [0, 1] {
        with_pod_cidrs(del(&world, n)?).ok()?;
    }
    nothing_is_left(&world)
}
