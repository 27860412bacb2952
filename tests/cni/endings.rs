//! How leases end other than by DEL: GC (case 39), a pod that is gone, a boot; and when an address may be given again.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use causeway_tests::netns::Netns;
use serde_json::{Value, json};

use crate::call::{Call, World, address};

fn gc<'a>(world: &'a World, valid: &[&str]) -> Result<Call<'a>> {
    let attachment = |id: &&str| json!({ "containerID": id, "ifname": "eth0" });
    let valid: Vec<Value> = valid.iter().map(attachment).collect();
    let call = world.network("GC", "")?.with("cniVersion", json!("1.1.0"));
    Ok(call
        .without("CNI_CONTAINERID")
        .without("CNI_IFNAME")
        .with("cni.dev/valid-attachments", json!(valid)))
}

#[test]
fn gc_removes_exactly_what_is_not_in_the_list() -> Result<()> {
    let world = World::new(5)?;
    let pods = [Netns::new()?, Netns::new()?, Netns::new()?, Netns::new()?];
    for (n, ns) in (1..).zip(&pods[..3]) {
        world.network("ADD", &format!("container-{n}"))?.netns(ns).ok()?;
    }
    world
        .network("ADD", "container-4")?
        .netns(&pods[3])
        .with("name", json!("other"))
        .ok()?;
    // Nobody's pod, but another plug-in's lease in this network.
    world.ipam("ADD", "container-5").ok()?;
    let held = || {
        let mut held: Vec<String> = world
            .leases()?
            .into_iter()
            .map(|(_, container)| container)
            .collect();
        held.sort();
        Ok::<_, anyhow::Error>(held)
    };
    gc(&world, &[])?
        .with("cni.dev/valid-attachments", Value::Null)
        .ok()?;
    assert_eq!(held()?.len(), 5, "without a list nothing is done");
    gc(&world, &["container-2", "container-5", "container-9"])?.ok()?;
    assert_eq!(held()?, ["container-2", "container-4", "container-5"]);
    assert_eq!((world.served()?.len(), world.interfaces()?.len()), (2, 2));
    for ns in [&pods[1], &pods[3]] {
        ns.output("ping", &["-c1", "-i0.2", "-w5", "10.240.0.4"])?;
    }
    gc(&world, &[])?.ok()?;
    assert_eq!(held()?, ["container-4"]);
    gc(&world, &[])?.with("name", json!("other")).ok()?;
    world.assert_empty()
}

#[test]
fn gc_of_azure_vnet_ipam_frees_its_networks_leases() -> Result<()> {
    let world = World::new(3)?;
    for id in ["a", "b"] {
        world.ipam("ADD", id).ok()?;
    }
    world.ipam("ADD", "c").with("name", json!("other")).ok()?;
    let attachment = json!([{ "containerID": "b", "ifname": "eth0" }]);
    let gc = world.ipam("GC", "").with("cniVersion", json!("1.1.0"));
    gc.with("cni.dev/valid-attachments", attachment).ok()?;
    let held: Vec<String> = world
        .leases()?
        .into_iter()
        .map(|(_, container)| container)
        .collect();
    assert_eq!(held, ["b", "c"]);
    Ok(())
}

fn orphans(world: &World) -> Result<Vec<String>> {
    let leases: Value = serde_json::from_str(&world.node.causeway(&["leases", "--orphans", "--json"])?)?;
    let rows = leases["leases"].as_array().into_iter().flatten();
    Ok(rows
        .map(|row| row["container"].as_str().unwrap_or_default().to_owned())
        .collect())
}

#[test]
fn a_pod_that_is_gone_without_a_del_makes_room() -> Result<()> {
    let world = World::new(3)?;
    let pods = [Netns::new()?, Netns::new()?];
    let args = "K8S_POD_NAMESPACE=default;K8S_POD_NAME=web";
    let [gone, stays] = pods;
    world
        .network("ADD", "container-1")?
        .netns(&gone)
        .env("CNI_ARGS", args)
        .ok()?;
    world.network("ADD", "container-2")?.netns(&stays).ok()?;
    world.ipam("ADD", "container-3").ok()?;
    assert_eq!(orphans(&world)?, [""; 0]);
    drop(gone);
    let end = Instant::now() + Duration::from_secs(20);
    while world.interfaces()?.len() > 1 {
        ensure!(
            Instant::now() < end,
            "the kernel has not taken the namespace down"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(orphans(&world)?, ["container-1"]);
    let all = world.node.causeway(&["leases"])?;
    for words in [
        "orphaned  default/web",
        "held",
        "unknown",
        "3 of 3 addresses of 10.240.0.0/16",
    ] {
        assert!(
            all.split_whitespace()
                .collect::<Vec<_>>()
                .join(" ")
                .contains(&words.split_whitespace().collect::<Vec<_>>().join(" ")),
            "{words}: {all}"
        );
    }
    // Only the address whose pod is gone is given again.
    let ns = Netns::new()?;
    let given = address(&world.network("ADD", "container-4")?.netns(&ns).ok()?)?;
    assert_eq!(given.octets()[3], 5);
    stays.output("ping", &["-c1", "-i0.2", "-w5", &given.to_string()])?;
    let failure = world
        .network("ADD", "container-5")?
        .netns(&world.fabric.partner)
        .error()?;
    assert!(failure.msg.ends_with("No available addresses"), "{failure:?}");
    world.network("DEL", "container-1")?.env("CNI_NETNS", "").ok()?;
    for container in ["container-2", "container-4"] {
        world.network("DEL", container)?.ok()?;
    }
    world.ipam("DEL", "container-3").ok()?;
    world.assert_empty()
}

/// The state directory survives a boot on some systems; the kernel's part never does.
#[test]
fn a_boot_ends_every_lease() -> Result<()> {
    let world = World::new(2)?;
    let pods = [Netns::new()?, Netns::new()?];
    for (n, ns) in (1..).zip(&pods) {
        world.network("ADD", &format!("container-{n}"))?.netns(ns).ok()?;
    }
    drop(pods);
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    for file in ["azure-vnet.json", "azure-vnet-ipam.json"] {
        let path = world.node.root.join(&format!("/var/run/{file}"));
        let text = fs::read_to_string(&path)?;
        assert!(text.contains(boot.trim()), "{text}");
        fs::write(
            &path,
            text.replace(boot.trim(), "00000000-0000-0000-0000-000000000000"),
        )?;
    }
    world.node.causeway(&["unload"])?;
    for interface in world.interfaces()? {
        world.node.ns.ip(&format!("link del {interface}")).ok();
    }
    world.network("DEL", "container-1")?.env("CNI_NETNS", "").ok()?;
    let pods = [Netns::new()?, Netns::new()?];
    for (n, ns) in (3..).zip(&pods) {
        world.network("ADD", &format!("container-{n}"))?.netns(ns).ok()?;
        ns.output("ping", &["-c1", "-i0.2", "-w5", "10.240.0.4"])?;
    }
    for n in [2, 3, 4] {
        world.network("DEL", &format!("container-{n}"))?.ok()?;
    }
    world.assert_empty()
}

#[test]
fn an_address_in_quarantine_is_given_to_nobody() -> Result<()> {
    let world = World::new(2)?;
    let with = |quarantine: Value| json!({ "type": "azure-vnet-ipam", "environment": "mas", "quarantine": quarantine });
    let add = |id: &str| world.ipam("ADD", id).with("ipam", with(json!("3600")));
    assert_eq!(address(&add("a").ok()?)?.octets()[3], 5);
    world.ipam("DEL", "a").ok()?;
    assert_eq!(address(&add("b").ok()?)?.octets()[3], 6);
    let failure = add("c").error()?;
    assert!(
        failure.msg.ends_with("No available addresses") && failure.details.contains("1 more in quarantine"),
        "{failure:?}"
    );
    // Who does not ask for a quarantine gets the address whose release is longest ago.
    assert_eq!(address(&world.ipam("ADD", "c").ok()?)?.octets()[3], 5);
    Ok(())
}
