//! Cases 10 to 12: pods with an address of each family, and with one of IPv6 alone.

mod addresses;
mod alone;
mod alone_sends;
mod interrupted;
mod pods;
mod state;

use std::{collections::BTreeMap, fs, net::Ipv6Addr};

use anyhow::{Context, Result};
use causeway_tests::{
    dual_stack::{self, Connection, GATEWAY, NODE, VNET, at, enable},
    netns::Netns,
};
use serde_json::Value;

use crate::call::World;

/// A node with `pods` addresses of IPv4 for pods and these of IPv6, in a fabric that routes both.
fn world(pods: u8, of_ipv6: &[Ipv6Addr]) -> Result<World> {
    let world = World::new(pods)?;
    enable(&world.fabric, &world.node.ns, of_ipv6)?;
    list(&world, pods, &[("fd00:10::/64", of_ipv6)])?;
    Ok(world)
}

/// Writes the address list: `pods` addresses of IPv4, and the subnets of IPv6 with theirs.
fn list(world: &World, pods: u8, subnets: &[(&str, &[Ipv6Addr])]) -> Result<()> {
    dual_stack::list(&world.node, pods, subnets)
}

/// Every address that is leased, with its container.
pub(crate) fn held(world: &World) -> Result<BTreeMap<String, String>> {
    let path = world.node.root.join("/var/run/azure-vnet-ipam.json");
    if !path.exists() {
        return Ok(BTreeMap::new());
    }
    let state: Value = serde_json::from_str(&fs::read_to_string(path)?)?;
    let pools = state["IPAM"]["AddressSpaces"]["local"]["Pools"].as_object();
    let mut held = BTreeMap::new();
    for (subnet, pool) in pools.into_iter().flatten() {
        assert_eq!(pool["IsIPv6"], subnet.contains(':'), "{subnet}");
        let addresses = pool["Addresses"].as_object().into_iter().flatten();
        for (address, record) in addresses.filter(|(_, record)| record["InUse"] == true) {
            let container = record["ID"].as_str().unwrap_or_default();
            held.insert(address.clone(), container.to_owned());
        }
    }
    Ok(held)
}

fn nothing_is_left(world: &World) -> Result<()> {
    world.assert_empty()?;
    assert_eq!(held(world)?, BTreeMap::new());
    let routes = world.node.ns.output("ip", &["-6", "route"])?;
    assert!(!routes.contains("azv"), "{routes}");
    Ok(())
}

/// The address of IPv6 in a result of any version.
fn of_ipv6(result: &Value) -> Result<Ipv6Addr> {
    let old = result["ip6"]["ip"].as_str();
    let ips = result["ips"].as_array().into_iter().flatten();
    let texts = old.into_iter().chain(ips.filter_map(|ip| ip["address"].as_str()));
    let mut addresses = texts.filter_map(|text| text.split('/').next()?.parse().ok());
    addresses
        .next()
        .with_context(|| format!("no address of IPv6 in {result}"))
}

/// A connection is made and carries something.
fn talk(from: &Netns, to: &Netns, address: Ipv6Addr) -> Result<()> {
    Connection::open(from, to, address, 7000)?.chat(1)
}
