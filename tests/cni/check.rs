//! Case 28: CHECK finds what is broken and names it; what others have added is none of its business.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use causeway_tests::netns::Netns;
use serde_json::{Value, json};

use crate::call::{Call, World};

const CONTAINER: &str = "0123456789abcdef";

fn call<'a>(world: &'a World, verb: &str, ns: &Netns) -> Result<Call<'a>> {
    Ok(world
        .network(verb, CONTAINER)?
        .netns(ns)
        .with("cniVersion", json!("1.0.0")))
}

#[test]
fn a_whole_pod_passes_in_every_version_that_has_the_verb() -> Result<()> {
    let world = World::new(1)?;
    for version in ["0.4.0", "1.0.0", "1.1.0"] {
        let ns = Netns::new()?;
        let at = |verb| Ok::<_, anyhow::Error>(call(&world, verb, &ns)?.with("cniVersion", json!(version)));
        let result = at("ADD")?.ok()?;
        assert_eq!(at("CHECK")?.with("prevResult", result.clone()).ok()?, Value::Null);
        ns.ip("route add 192.0.2.0/24 dev eth0\naddr add 192.0.2.7/32 dev eth0")?;
        at("CHECK")?.with("prevResult", result.clone()).ok()?;
        let failure = at("CHECK")?.error()?;
        assert!(
            failure.code == 7 && failure.msg.contains("prevResult"),
            "{failure:?}"
        );
        let mut other = result;
        other["interfaces"][0]["sandbox"] = "/proc/1/ns/net".into();
        let failure = at("CHECK")?.with("prevResult", other).error()?;
        assert!(
            failure.msg.contains("prevResult has no interface eth0"),
            "{failure:?}"
        );
        at("DEL")?.ok()?;
        let failure = at("CHECK")?.with("prevResult", json!({ "ips": [] })).error()?;
        assert!(failure.msg.contains("has no endpoint"), "{failure:?}");
    }
    world.assert_empty()
}

#[test]
fn what_is_broken_is_named() -> Result<()> {
    let world = World::new(1)?;
    let damages: [(&str, Damage); 12] = [
        ("the host's interface azv", |_, ns, _| ns.ip("link del eth0")),
        ("the pod's interface eth0 is down", |_, ns, _| {
            ns.ip("link set eth0 down")
        }),
        ("the pod's interface eth0 has another MAC", |_, ns, _| {
            ns.ip("link set eth0 address 02:00:00:00:00:99")
        }),
        ("has not the address 10.240.0.5/16", |_, ns, _| {
            ns.ip("addr add 10.240.0.6/16 dev eth0 noprefixroute\naddr del 10.240.0.5/16 dev eth0")
        }),
        ("the pod's default route via 169.254.1.1", |_, ns, _| {
            ns.ip("route del default")
        }),
        ("the pod's neighbour 169.254.1.1", |_, ns, _| {
            ns.ip("neigh del 169.254.1.1 dev eth0")
        }),
        ("the host's route 10.240.0.5/32", |world, _, _| {
            world.node.ns.ip("route del 10.240.0.5")
        }),
        ("the host's neighbour 10.240.0.5", |world, _, host| {
            world.node.ns.ip(&format!("neigh del 10.240.0.5 dev {host}"))
        }),
        (
            "the entry 10.240.0.5 of map cwy_pods is missing",
            |world, _, _| {
                let map = pins(world)?.join("maps/cwy_pods");
                let map = map.to_string_lossy().into_owned();
                let arguments = ["map", "delete", "pinned", &map, "key", "10", "240", "0", "5"];
                world.node.ns.output("bpftool", &arguments).map(drop)
            },
        ),
        ("is not attached to azv", |world, _, host| {
            let mut pinned = Vec::new();
            find(&pins(world)?.join("links"), &mut pinned)?;
            let of_pod = pinned.iter().filter(|path| path.to_string_lossy().contains(host));
            match of_pod.min() {
                Some(first) => Ok(fs::remove_file(first)?),
                None => world
                    .node
                    .ns
                    .output("tc", &["filter", "del", "dev", host, "ingress"])
                    .map(drop),
            }
        }),
        ("is not leased to container", |world, _, _| {
            let state = world.node.root.join("/var/run/azure-vnet-ipam.json");
            let text = fs::read_to_string(&state)?.replace("\"InUse\": true", "\"InUse\": false");
            Ok(fs::write(&state, text)?)
        }),
        ("has no endpoint in the state", |world, _, _| {
            Ok(fs::remove_file(world.node.root.join("/var/run/azure-vnet.json"))?)
        }),
    ];
    names(&world, &|verb, ns| call(&world, verb, ns), &damages)
}

/// What is broken: the node, the pod and the name of the host's end.
pub(crate) type Damage = fn(&World, &Netns, &str) -> Result<()>;

/// What ADD has made is broken in each of these ways; CHECK must say so in these words, and DEL must leave nothing all the
/// same.
pub(crate) fn names<'a>(
    world: &World,
    call: &dyn Fn(&str, &Netns) -> Result<Call<'a>>,
    damages: &[(&str, Damage)],
) -> Result<()> {
    for (needle, damage) in damages {
        let ns = Netns::new()?;
        let result = call("ADD", &ns)?.ok()?;
        let check = call("CHECK", &ns)?.with("prevResult", result.clone());
        check.ok()?;
        damage(
            world,
            &ns,
            result["interfaces"][1]["name"].as_str().unwrap_or_default(),
        )?;
        let failure = check.error()?;
        assert!(
            failure.code == 100 && failure.msg.contains(needle),
            "{needle}: {failure:?}"
        );
        call("DEL", &ns)?.ok()?;
        world.assert_empty()?;
    }
    Ok(())
}

/// Where the datapath is pinned.
pub(crate) fn pins(world: &World) -> Result<PathBuf> {
    let status = world.node.causeway_json("status")?;
    Ok(PathBuf::from(
        status["pins"].as_str().context("no pins in the status")?,
    ))
}

/// Every file below a directory.
pub(crate) fn find(directory: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            find(&path, found)?;
        } else {
            found.push(path);
        }
    }
    Ok(())
}

#[test]
fn azure_vnet_ipam_checks_its_lease() -> Result<()> {
    let world = World::new(2)?;
    let result = world.ipam("ADD", "a").ok()?;
    world.ipam("CHECK", "a").with("prevResult", result.clone()).ok()?;
    let failure = world.ipam("CHECK", "b").with("prevResult", result).error()?;
    assert!(failure.msg.contains("leased to container b"), "{failure:?}");
    Ok(())
}
