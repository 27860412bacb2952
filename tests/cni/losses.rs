//! Namespaces, state files and interfaces that are gone when they are looked for: nobody loses an address by it.

use std::fs;

use anyhow::Result;
use causeway_tests::netns::Netns;
use serde_json::Value;

use crate::{
    call::{World, address},
    pods::{add, del, id},
};

/// What may have happened between ADD and DEL.
type Damage = fn(&World) -> Result<()>;

#[test]
fn del_needs_neither_namespace_nor_state() -> Result<()> {
    let world = World::new(1)?;
    let damages: [(&str, Damage); 6] = [
        ("nothing", |_| Ok(())),
        ("endpoints lost", |world| {
            Ok(fs::remove_file(world.node.root.join("/var/run/azure-vnet.json"))?)
        }),
        ("endpoints damaged", |world| {
            world.node.root.write("/var/run/azure-vnet.json", "{\"Network\":")
        }),
        ("leases lost", |world| {
            Ok(fs::remove_file(
                world.node.root.join("/var/run/azure-vnet-ipam.json"),
            )?)
        }),
        ("leases damaged", |world| {
            world.node.root.write("/var/run/azure-vnet-ipam.json", "garbage")
        }),
        ("the interface lost", |world| {
            world.node.ns.ip(&format!("link del {}", world.interfaces()?[0]))
        }),
    ];
    for (what, damage) in damages {
        for netns in ["", "netnspath", "/nonexistent", "/dev/null"] {
            let ns = Netns::new()?;
            add(&world, 1, &ns)?.ok()?;
            damage(&world)?;
            drop(ns);
            for _ in 0..2 {
                let answer = del(&world, 1)?.env("CNI_NETNS", netns).ok();
                assert_eq!(answer.map_err(|error| error.context(what))?, Value::Null);
            }
            world.assert_empty()?;
        }
    }
    Ok(())
}

#[test]
fn del_before_any_add_and_without_a_datapath() -> Result<()> {
    let world = World::new(1)?;
    del(&world, 1)?.env("CNI_NETNS", "netnspath").ok()?;
    world.assert_empty()?;
    let ns = Netns::new()?;
    add(&world, 1, &ns)?.ok()?;
    world.node.causeway(&["unload"])?;
    del(&world, 1)?.ok()?;
    world.assert_empty()
}

/// With every lease forgotten, the programs still know who answers to an address.
#[test]
fn an_address_that_answers_is_not_given_again() -> Result<()> {
    let world = World::new(3)?;
    let pods = [Netns::new()?, Netns::new()?];
    add(&world, 1, &pods[0])?.ok()?;
    for file in ["azure-vnet.json", "azure-vnet-ipam.json"] {
        fs::remove_file(world.node.root.join(&format!("/var/run/{file}")))?;
    }
    assert_eq!(address(&add(&world, 2, &pods[1])?.ok()?)?.octets()[3], 6);
    pods[1].output("ping", &["-c1", "-i0.2", "-w5", "10.240.0.5"])?;
    for n in [1, 2] {
        del(&world, n)?.ok()?;
    }
    world.assert_empty()
}

#[test]
fn leases_are_rebuilt_from_the_endpoints() -> Result<()> {
    let world = World::new(3)?;
    let pods = [Netns::new()?, Netns::new()?];
    let first = address(&add(&world, 1, &pods[0])?.ok()?)?;
    world
        .node
        .root
        .write("/var/run/azure-vnet-ipam.json", "{\"IPAM\":")?;
    let second = address(&add(&world, 2, &pods[1])?.ok()?)?;
    assert_eq!(world.leases()?, [(first, id(1)), (second, id(2))]);
    let aside = world.node.root.join("/var/run/azure-vnet-ipam.json.corrupt-0");
    assert_eq!(fs::read_to_string(aside)?, "{\"IPAM\":");
    Ok(())
}
