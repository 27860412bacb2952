//! What a pod has of IPv6: addresses, ways, neighbours; from us and from other IPAM plug-ins.

use std::{net::Ipv6Addr, path::PathBuf};

use anyhow::{Context, Result};
use causeway_tests::netns::Netns;
use serde_json::{Value, json};

use super::{GATEWAY, NODE, VNET, at, held, list, nothing_is_left, of_ipv6, talk, world};
use crate::{
    call::World,
    chain::reference,
    pods::{add, del, id},
    protocol::VERSIONS,
};

#[test]
fn a_pod_of_both_families_comes_and_goes_in_every_version() -> Result<()> {
    let count = VERSIONS.len() as u8;
    let addresses: Vec<Ipv6Addr> = (5..5 + u32::from(count)).map(at).collect();
    let world = world(count, &addresses)?;
    let pods: Vec<Netns> = VERSIONS.iter().map(|_| Netns::new()).collect::<Result<_>>()?;
    for (n, version) in VERSIONS.iter().enumerate() {
        let call = add(&world, n as u32, &pods[n])?.with("cniVersion", json!(version));
        let result = call.ok()?;
        check_result(&result, version, addresses[n]);
        check_pod(&world, &pods[n], addresses[n])?;
    }
    assert_eq!(held(&world)?.len(), 2 * VERSIONS.len());
    let ping = |from: &Netns, to: Ipv6Addr| from.output("ping", &["-c1", "-i0.2", "-w5", &to.to_string()]);
    for to in [addresses[1], addresses[2], NODE, VNET] {
        ping(&pods[0], to)?;
    }
    talk(&pods[0], &pods[1], addresses[1])?;
    talk(&pods[1], &pods[1], addresses[1])?;
    talk(&pods[0], &world.fabric.vnet, VNET)?;
    talk(&world.fabric.vnet, &pods[0], addresses[0])?;
    pods[0].output("ping", &["-c1", "-i0.2", "-w5", "10.240.1.10"])?;
    for n in 0..VERSIONS.len() as u32 {
        for _ in 0..2 {
            assert_eq!(del(&world, n)?.netns(&pods[n as usize]).ok()?, Value::Null);
        }
    }
    nothing_is_left(&world)
}

fn check_result(result: &Value, version: &str, address: Ipv6Addr) {
    let (address, gateway) = (format!("{address}/64"), "fd00:10::1");
    let route = |to: &str, by: &str| json!({ "dst": to, "gw": by });
    if version < "0.3" {
        let expected = json!({ "ip": address, "gateway": gateway, "routes": [route("::/0", gateway)] });
        assert_eq!(result["ip6"], expected, "{version}");
        assert_eq!(result["ip4"]["routes"], json!([route("0.0.0.0/0", "10.240.0.1")]));
        return;
    }
    let mut expected = json!({ "interface": 0, "address": address, "gateway": gateway });
    if version < "1" {
        expected["version"] = "6".into();
        assert_eq!(result["ips"][0]["version"], "4", "{version}");
    }
    assert_eq!(result["ips"].as_array().map(Vec::len), Some(2), "{result}");
    assert_eq!(result["ips"][1], expected, "{version}");
    let routes = json!([route("0.0.0.0/0", "10.240.0.1"), route("::/0", gateway)]);
    assert_eq!(result["routes"], routes);
}

pub(super) fn check_pod(world: &World, ns: &Netns, address: Ipv6Addr) -> Result<()> {
    let eth0 = &ns.json(
        "ip",
        &["-j", "-6", "addr", "show", "dev", "eth0", "scope", "global"],
    )?[0];
    let own = eth0["addr_info"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|a| !a["local"].is_null());
    let own: Vec<&Value> = own.collect();
    assert_eq!(own.len(), 1, "{eth0}");
    assert_eq!(
        (&own[0]["local"], &own[0]["prefixlen"]),
        (&json!(address), &json!(64))
    );
    assert!(own[0]["tentative"].is_null(), "{eth0}");
    for (name, value) in [("accept_ra", "0"), ("accept_dad", "0"), ("disable_ipv6", "0")] {
        assert_eq!(
            ns.read_sysctl(&format!("net/ipv6/conf/eth0/{name}"))?,
            value,
            "{name}"
        );
    }
    let routes = ns.output("ip", &["-6", "route"])?;
    let default = format!("default via {GATEWAY} dev eth0");
    assert!(
        routes.contains(&default) && !routes.contains("fd00:10::/64"),
        "{routes}"
    );
    let links = world.node.ns.json("ip", &["-j", "link"])?;
    let peer = ns.json("ip", &["-j", "link", "show", "dev", "eth0"])?[0]["link_index"].clone();
    let host = links
        .as_array()
        .into_iter()
        .flatten()
        .find(|link| link["ifindex"] == peer);
    let host = host.context("no interface of the node leads to the pod")?;
    let neighbour = |ns: &Netns, address: &str| {
        let known = ns.json("ip", &["-j", "-6", "neigh", "show", address])?;
        assert_eq!(known[0]["state"], json!(["PERMANENT"]), "{known}");
        Ok::<_, anyhow::Error>(known[0]["lladdr"].clone())
    };
    assert_eq!(neighbour(ns, GATEWAY)?, host["address"]);
    let mac = ns.mac("eth0")?.map(|byte| format!("{byte:02x}")).join(":");
    assert_eq!(neighbour(&world.node.ns, &address.to_string())?, json!(mac));
    let route = world
        .node
        .ns
        .json("ip", &["-j", "-6", "route", "show", &address.to_string()])?;
    assert_eq!(route[0]["dev"], host["ifname"]);
    let all = world.node.ns.json(
        "ip",
        &[
            "-j",
            "-6",
            "addr",
            "show",
            "dev",
            host["ifname"].as_str().unwrap_or_default(),
        ],
    )?;
    assert!(
        !all.to_string().contains("fe80"),
        "the host's end needs no address: {all}"
    );
    Ok(())
}

/// ADD returns when the address can be used, however long duplicate address detection would have taken.
#[test]
fn its_address_can_be_used_when_add_returns() -> Result<()> {
    let addresses: Vec<Ipv6Addr> = (5..13).map(at).collect();
    let world = world(8, &addresses)?;
    let mut pods = Vec::new();
    for n in 0..8 {
        let ns = Netns::new()?;
        let address = of_ipv6(&add(&world, n, &ns)?.ok()?)?;
        talk(&world.node.ns, &ns, address)?;
        talk(&ns, &world.node.ns, NODE)?;
        pods.push(ns);
    }
    Ok(())
}

/// The second interface of a pod answers by itself, in both families.
#[test]
fn a_second_interface_has_its_own_way_out() -> Result<()> {
    let (world, ns) = (world(2, &[at(5), at(6)])?, Netns::new()?);
    for name in ["eth0", "eth1"] {
        add(&world, 1, &ns)?.env("CNI_IFNAME", name).ok()?;
    }
    for address in [at(5), at(6)] {
        talk(&world.fabric.vnet, &ns, address)?;
    }
    let rules = ns.output("ip", &["-6", "rule"])?;
    assert!(rules.contains("from fd00:10::6"), "{rules}");
    del(&world, 1)?.env("CNI_IFNAME", "eth0").ok()?;
    talk(&world.fabric.vnet, &ns, at(6))?;
    del(&world, 1)?.env("CNI_IFNAME", "eth1").ok()?;
    nothing_is_left(&world)
}

#[test]
fn another_plug_in_gives_both_families() -> Result<()> {
    let world = world(1, &[at(5)])?;
    reference("host-local")?;
    let data: PathBuf = world.node.root.join("/var/lib/cni/networks");
    let range = |subnet: &str| json!([{ "subnet": subnet }]);
    let of = |ranges: &Value| json!({ "type": "host-local", "dataDir": data, "ranges": ranges });
    for ranges in [
        json!([range("10.240.9.0/24"), range("fd00:9::/64")]),
        json!([range("fd00:9::/64"), range("10.240.9.0/24"), range("fd00:8::/64")]),
    ] {
        let ns = Netns::new()?;
        let call =
            |verb| Ok::<_, anyhow::Error>(world.network(verb, &id(1))?.netns(&ns).with("ipam", of(&ranges)));
        let result = call("ADD")?.with("cniVersion", json!("1.0.0")).ok()?;
        let count = ranges.as_array().map(Vec::len);
        assert_eq!(result["ips"].as_array().map(Vec::len), count, "{result}");
        assert!(
            result["ips"][0]["address"]
                .as_str()
                .is_some_and(|text| text.starts_with("10."))
        );
        for ip in result["ips"].as_array().into_iter().flatten().skip(1) {
            let text = ip["address"].as_str().unwrap_or_default();
            talk(
                &world.node.ns,
                &ns,
                text.split('/').next().unwrap_or_default().parse()?,
            )?;
        }
        ns.output("ping", &["-c1", "-i0.2", "-w5", "10.240.0.4"])?;
        let check = call("CHECK")?
            .with("cniVersion", json!("1.0.0"))
            .with("prevResult", result);
        check.ok()?;
        call("DEL")?.ok()?;
        nothing_is_left(&world)?;
    }
    Ok(())
}

/// A node that forwards drops the default route that it has from advertisements, unless told to listen all the same.
#[test]
fn the_node_forwards_and_goes_on_listening_to_its_router() -> Result<()> {
    let (world, ns) = (world(2, &[at(5)])?, Netns::new()?);
    let read = |name: &str| world.node.ns.read_sysctl(&format!("net/ipv6/conf/{name}"));
    list(&world, 2, &[])?;
    add(&world, 1, &ns)?.ok()?;
    assert_eq!(
        (read("all/forwarding")?, read("eth0/accept_ra")?),
        ("0".to_owned(), "1".to_owned())
    );
    assert_eq!(
        ns.read_sysctl("net/ipv6/conf/eth0/disable_ipv6")?,
        "1",
        "nobody asked for IPv6"
    );
    del(&world, 1)?.ok()?;
    list(&world, 2, &[("fd00:10::/64", &[at(5)])])?;
    add(&world, 1, &ns)?.ok()?;
    assert_eq!(
        (read("all/forwarding")?, read("eth0/accept_ra")?),
        ("1".to_owned(), "2".to_owned())
    );
    assert_eq!(read("default/accept_ra")?, "1");
    del(&world, 1)?.ok()?;
    world.node.causeway(&["unload"])?;
    assert_eq!(
        (read("all/forwarding")?, read("eth0/accept_ra")?),
        ("0".to_owned(), "1".to_owned())
    );
    Ok(())
}
