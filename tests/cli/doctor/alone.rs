//! Pods with an address of IPv6 and none of IPv4: what is wrong with one is found by the same codes, and the other commands
//! show it.

use anyhow::{Context, Result, ensure};
use causeway_common::maps::{IfaceEntry, PodEntry};
use causeway_tests::{
    dual_stack::{Connection, at, list_alone},
    netns::Netns,
    rig::Rig,
};
use serde_json::{Value, json};

use super::{
    deeds::{ENDPOINTS, endpoints},
    diagnose,
    maps::hash,
};
use crate::scene::Scene;

type V6 = [u8; 16];

/// A node with two such pods, fd00:10::5 and fd00:10::6, and the names of the host's ends of their links.
fn scene() -> Result<(Scene, [Netns; 2], Vec<String>)> {
    let scene = Scene::of(Rig::dual_stack()?, 0)?;
    let addresses: Vec<_> = (5..9).map(at).collect();
    list_alone(&scene.rig.node, &[("fd00:10::/64", &addresses)])?;
    let pods = [Netns::new()?, Netns::new()?];
    let mut names = Vec::new();
    for (n, ns) in pods.iter().enumerate() {
        let result = scene.rig.node.plugin("ADD", &format!("pod{n}"), &ns.path())?;
        ensure!(
            result["ips"][0]["address"] == format!("{}/64", at(5 + n as u32)),
            "{result}"
        );
        let name = result["interfaces"][1]["name"].as_str();
        names.push(name.context("no interface")?.to_owned());
    }
    Ok((scene, pods, names))
}

fn is_found(scene: &Scene, code: &str, what: &str) -> Result<()> {
    let (found, _) = diagnose(scene)?;
    ensure!(found == [code], "{what}: {code} expected, {found:?} found");
    Ok(())
}

fn is_well(scene: &Scene) -> Result<()> {
    let (diagnosis, exit) = scene.json(&["doctor", "--json"])?;
    ensure!(exit == 0 && diagnosis["findings"] == json!([]), "{diagnosis:#}");
    ensure!(diagnosis["skipped"] == json!([]), "{diagnosis:#}");
    Ok(())
}

/// Does what the doctor says about the first finding.
fn follow(scene: &Scene) -> Result<()> {
    let (diagnosis, _) = scene.json(&["doctor", "--json"])?;
    let fix = diagnosis["findings"][0]["fix"].as_str().context("no fix")?;
    scene.rig.node.ns.output("sh", &["-c", fix]).map(drop)
}

#[test]
fn what_the_kernel_has_of_a_pod_with_ipv6_alone() -> Result<()> {
    let (scene, _pods, names) = scene()?;
    let [own, other] = [&names[0], &names[1]];
    let (node, addr) = (&scene.rig.node.ns, at(5));
    is_well(&scene)?;
    node.ip(&format!("route del {addr}"))?;
    is_found(&scene, "CWY037", "no route")?;
    follow(&scene)?;
    is_well(&scene)?;
    node.ip(&format!("route del {addr}\nroute add {addr} dev {other}"))?;
    is_found(&scene, "CWY038", "a route elsewhere")?;
    node.ip(&format!("route del {addr}\nroute add {addr} dev {own}"))?;
    is_well(&scene)?;
    node.ip(&format!("neigh del {addr} dev {own}"))?;
    is_found(&scene, "CWY039", "no neighbour")?;
    follow(&scene)?;
    is_well(&scene)?;
    node.ip(&format!(
        "neigh replace {addr} lladdr 02:00:00:00:00:99 dev {own} nud permanent"
    ))?;
    is_found(&scene, "CWY039", "another MAC")?;
    follow(&scene)?;
    node.ip(&format!("link set {own} down"))?;
    is_found(&scene, "CWY031", "a link that is down")?;
    follow(&scene)?;
    is_well(&scene)?;
    node.ip(&format!("link del {own}"))?;
    is_found(&scene, "CWY030", "no link")
}

#[test]
fn what_the_programs_and_the_files_have_of_a_pod_with_ipv6_alone() -> Result<()> {
    let (scene, _pods, names) = scene()?;
    let (node, addr) = (&scene.rig.node.ns, at(5).octets());
    let mut pods = hash::<V6, PodEntry>(&scene, "cwy_pods6")?;
    let entry = pods.get(&addr, 0)?;
    pods.remove(&addr)?;
    is_found(&scene, "CWY034", "a pod forgotten by the programs")?;
    pods.insert(addr, entry, 0)?;
    let index = node.ifindex(&names[0])?;
    let mut ifaces = hash::<u32, IfaceEntry<V6>>(&scene, "cwy_ifaces6")?;
    let entry = ifaces.get(&index, 0)?;
    ifaces.remove(&index)?;
    is_found(&scene, "CWY035", "a link forgotten by the programs")?;
    let another = IfaceEntry {
        addr: at(6).octets(),
        ..entry
    };
    ifaces.insert(index, another, 0)?;
    is_found(&scene, "CWY035", "a link taken for another pod's")?;
    ifaces.insert(index, entry, 0)?;
    is_well(&scene)?;

    let root = &scene.rig.node.root;
    let before = std::fs::read_to_string(root.join(ENDPOINTS))?;
    scene.edit(ENDPOINTS, |state| {
        endpoints(state)?.retain(|_, endpoint| endpoint["IPAddresses"][0]["IP"] != "fd00:10::5");
        Some(())
    })?;
    is_found(&scene, "CWY036", "a pod forgotten by the state file")?;
    root.write(ENDPOINTS, &before)?;
    scene.edit("/var/run/azure-vnet-ipam.json", |state| {
        let pools = &mut state["IPAM"]["AddressSpaces"]["local"]["Pools"];
        pools["fd00:10::/64"]["Addresses"]["fd00:10::5"]["InUse"] = false.into();
        Some(())
    })?;
    is_found(&scene, "CWY043", "an address that could be given again")?;
    scene.edit(ENDPOINTS, |state| {
        let endpoints = endpoints(state)?;
        let addresses = endpoints.values().map(|endpoint| endpoint["IPAddresses"].clone());
        let first = addresses.min_by_key(Value::to_string)?;
        for endpoint in endpoints.values_mut() {
            endpoint["IPAddresses"] = first.clone();
        }
        Some(())
    })?;
    let (found, _) = diagnose(&scene)?;
    ensure!(found.contains(&"CWY042".to_owned()), "{found:?}");
    Ok(())
}

#[test]
fn the_other_commands_show_a_pod_with_ipv6_alone() -> Result<()> {
    let (scene, pods, names) = scene()?;
    Connection::open(&pods[0], &pods[1], at(6), 7000)?.chat(5)?;
    let (shown, _) = scene.json(&["pods", "--json"])?;
    let rows = shown["pods"].as_array().context("no pods")?;
    let seen: Vec<_> = rows
        .iter()
        .map(|row| (&row["address"], &row["state"], &row["interface"]))
        .collect();
    let (ready, first, second) = (json!("ready"), json!("fd00:10::5"), json!("fd00:10::6"));
    let (one, two) = (json!(names[0]), json!(names[1]));
    ensure!(
        seen == [(&first, &ready, &one), (&second, &ready, &two)],
        "{shown}"
    );
    ensure!(rows[0]["flows"].as_u64() >= Some(1), "{shown}");
    let (leases, _) = scene.json(&["leases", "--json"])?;
    let text = leases.to_string();
    ensure!(
        text.contains("fd00:10::5") && text.contains("default/pod0"),
        "{leases}"
    );
    let (top, _) = scene.json(&["top", "--once", "--json"])?;
    ensure!(top["pods"][0]["name"] == "default/pod0", "{top}");
    let (status, _) = scene.json(&["status", "--json"])?;
    ensure!(
        status["pods"]["ready"] == 2 && status["hooks"].as_array().map(Vec::len) == Some(6),
        "{status}"
    );
    let (fate, _) = scene.json(&["explain", "fd00:10::5", "[fd00:10::6]:7001", "tcp", "--json"])?;
    ensure!(
        fate["hooks"][0]["program"] == "cwy_from_pod6" && fate["outcome"] == "stack",
        "{fate}"
    );
    // Gone, they are noted as departed.
    for (n, ns) in pods.iter().enumerate() {
        scene.rig.node.plugin("DEL", &format!("pod{n}"), &ns.path())?;
    }
    let (status, _) = scene.json(&["status", "--json"])?;
    ensure!(
        (&status["pods"]["ready"], &status["pods"]["departed"]) == (&json!(0), &json!(2)),
        "{status}"
    );
    is_well(&scene)
}
