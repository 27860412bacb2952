//! What is noted of them, and what becomes of it: CHECK, GC, the files.

use std::fs;

use anyhow::{Context as _, Result};
use causeway_tests::netns::Netns;
use serde_json::{Value, json};

use super::{GATEWAY, at, held, nothing_is_left, of_ipv6, talk, world};
use crate::{
    check::{Damage, names},
    pods::{add, del, id},
};

#[test]
fn check_names_what_is_broken_of_ipv6() -> Result<()> {
    let world = world(1, &[at(5)])?;
    let damages: [(&str, Damage); 6] = [
        ("has not the address fd00:10::5/64", |_, ns, _| {
            ns.ip("addr del fd00:10::5/64 dev eth0")
        }),
        ("the pod's default route via fe80::1234:5678:9abc", |_, ns, _| {
            ns.output("ip", &["-6", "route", "del", "default"]).map(drop)
        }),
        ("the pod's neighbour fe80::1234:5678:9abc", |_, ns, _| {
            ns.ip(&format!("neigh del {GATEWAY} dev eth0"))
        }),
        ("the host's route fd00:10::5/128", |world, _, _| {
            world.node.ns.ip("route del fd00:10::5")
        }),
        ("the host's neighbour fd00:10::5", |world, _, host| {
            world.node.ns.ip(&format!("neigh del fd00:10::5 dev {host}"))
        }),
        ("the address fd00:10::5 is not leased", |world, _, _| {
            let path = world.node.root.join("/var/run/azure-vnet-ipam.json");
            let mut state: Value = serde_json::from_str(&fs::read_to_string(&path)?)?;
            let pools = &mut state["IPAM"]["AddressSpaces"]["local"]["Pools"];
            pools["fd00:10::/64"]["Addresses"]["fd00:10::5"]["InUse"] = false.into();
            Ok(fs::write(path, state.to_string())?)
        }),
    ];
    let call = |verb: &str, ns: &Netns| {
        let call = world.network(verb, &id(1))?.netns(ns);
        Ok(call.with("cniVersion", json!("1.0.0")))
    };
    names(&world, &call, &damages)?;
    // An address that somebody else has added is none of its business.
    let ns = Netns::new()?;
    let result = call("ADD", &ns)?.ok()?;
    ns.ip("addr add fd00:99::7/128 dev eth0 nodad")?;
    call("CHECK", &ns)?.with("prevResult", result).ok()?;
    call("DEL", &ns)?.ok()?;
    nothing_is_left(&world)
}

#[test]
fn azure_vnet_ipam_names_the_address_that_is_not_leased() -> Result<()> {
    let world = world(2, &[at(5), at(6)])?;
    let result = world.ipam("ADD", "a").ok()?;
    let check = |result: &Value| world.ipam("CHECK", "a").with("prevResult", result.clone());
    check(&result).ok()?;
    for (n, other, missing) in [
        (0, "10.240.0.6/16", "10.240.0.6"),
        (1, "fd00:10::6/64", "fd00:10::6"),
    ] {
        let mut result = result.clone();
        result["ips"][n]["address"] = other.into();
        let failure = check(&result).error()?;
        let expected = format!("the address {missing} is not leased to container a");
        assert_eq!((failure.code, failure.msg), (100, expected));
    }
    // Of another plug-in's subnet nothing is known here.
    let mut more = result;
    let ips = more["ips"].as_array_mut().context("no addresses")?;
    ips.push(json!({ "address": "192.0.2.9/24" }));
    check(&more).ok()?;
    world.ipam("DEL", "a").ok()?;
    nothing_is_left(&world)
}

#[test]
fn gc_gives_both_addresses_back() -> Result<()> {
    let world = world(2, &[at(5), at(6)])?;
    let pods = [Netns::new()?, Netns::new()?];
    for n in [0, 1] {
        add(&world, n, &pods[n as usize])?.ok()?;
    }
    let valid = json!([{ "containerID": id(1), "ifname": "eth0" }]);
    let gc = world.network("GC", "")?.with("cniVersion", json!("1.1.0"));
    gc.with("cni.dev/valid-attachments", valid).ok()?;
    let left: Vec<String> = held(&world)?.into_keys().collect();
    assert_eq!(left, ["10.240.0.6", "fd00:10::6"]);
    talk(&world.node.ns, &pods[1], at(6))?;
    del(&world, 1)?.ok()?;
    nothing_is_left(&world)
}

/// The files of the incumbent with a pool of IPv6: its leases are kept, the others are given.
#[test]
fn the_incumbents_pools_of_ipv6_are_taken_over() -> Result<()> {
    let world = world(2, &[at(5), at(6)])?;
    let free = |address: &str| json!({ "ID": "", "Addr": address, "InUse": false });
    let held_by = |address: &str| json!({ "ID": id(7), "Addr": address, "InUse": true });
    let pools = json!({
        "10.240.0.0/16": { "Id": "10.240.0.0/16", "IfName": "eth0", "Subnet": { "IP": "10.240.0.0", "Mask": "//8AAA==" },
            "Gateway": "10.240.0.1", "IsIPv6": false, "Priority": 0, "RefCount": 1,
            "Addresses": { "10.240.0.5": held_by("10.240.0.5"), "10.240.0.6": free("10.240.0.6") } },
        "fd00:10::/64": { "Id": "fd00:10::/64", "IfName": "eth0",
            "Subnet": { "IP": "fd00:10::", "Mask": "//////////8AAAAAAAAAAA==" },
            "Gateway": "fd00:10::1", "IsIPv6": true, "Priority": 0, "RefCount": 1,
            "Addresses": { "fd00:10::5": held_by("fd00:10::5"), "fd00:10::6": free("fd00:10::6") } },
    });
    let state = json!({ "IPAM": { "Version": "v1.4.20", "TimeStamp": "2099-01-02T03:04:05.678901234+02:00",
        "AddressSpaces": { "local": { "Id": "local", "Scope": 0, "Pools": pools } } } });
    let path = "/var/run/azure-vnet-ipam.json";
    world
        .node
        .root
        .write(path, &serde_json::to_string_pretty(&state)?)?;
    let ns = Netns::new()?;
    let result = add(&world, 1, &ns)?.ok()?;
    assert_eq!(of_ipv6(&result)?, at(6));
    let holders: Vec<(String, String)> = held(&world)?.into_iter().collect();
    let expected = [
        ("10.240.0.5", 7),
        ("10.240.0.6", 1),
        ("fd00:10::5", 7),
        ("fd00:10::6", 1),
    ];
    assert_eq!(holders, expected.map(|(address, n)| (address.to_owned(), id(n))));
    let written: Value = serde_json::from_str(&fs::read_to_string(world.node.root.join(path))?)?;
    let pool = &written["IPAM"]["AddressSpaces"]["local"]["Pools"]["fd00:10::/64"];
    for name in [
        "Id", "IfName", "Subnet", "Gateway", "IsIPv6", "Priority", "RefCount",
    ] {
        assert_eq!(pool[name], pools["fd00:10::/64"][name], "{name}");
    }
    let endpoints = fs::read_to_string(world.node.root.join("/var/run/azure-vnet.json"))?;
    let endpoints: Value = serde_json::from_str(&endpoints)?;
    let network = &endpoints["Network"]["ExternalInterfaces"]["eth0"]["Networks"]["azure"];
    assert_eq!(
        (&network["Subnets"][0]["Family"], &network["Subnets"][1]["Family"]),
        (&json!(2), &json!(10))
    );
    let endpoint = &network["Endpoints"][format!("{}-eth0", &id(1)[..8])];
    assert_eq!(endpoint["IPAddresses"][1]["IP"], "fd00:10::6");
    assert_eq!(endpoint["Gateways"], json!(["10.240.0.1", "fd00:10::1"]));
    // Lost, they come back from the endpoints.
    fs::remove_file(world.node.root.join(path))?;
    del(&world, 7)?.ok()?;
    let other = Netns::new()?;
    assert_eq!(of_ipv6(&add(&world, 2, &other)?.ok()?)?, at(5));
    assert_eq!(held(&world)?.len(), 4);
    Ok(())
}

/// With every file lost, what answers is not given to a second pod.
#[test]
fn an_address_that_answers_is_not_given_again() -> Result<()> {
    let world = world(3, &[at(5), at(6)])?;
    let pods = [Netns::new()?, Netns::new()?];
    add(&world, 1, &pods[0])?.ok()?;
    for file in ["azure-vnet-ipam.json", "azure-vnet.json"] {
        fs::remove_file(world.node.root.join(&format!("/var/run/{file}")))?;
    }
    let result = add(&world, 2, &pods[1])?.ok()?;
    assert_eq!(of_ipv6(&result)?, at(6));
    talk(&pods[0], &pods[1], at(6))?;
    talk(&pods[1], &pods[0], at(5))
}
