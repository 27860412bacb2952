//! Whole pods: links, routes, neighbours, map entries, state; and that nothing of them is left.

use std::fs;

use anyhow::Result;
use causeway_tests::netns::Netns;
use serde_json::{Value, json};

use crate::{
    call::{Call, World, address},
    protocol::VERSIONS,
};

pub(crate) fn id(n: u32) -> String {
    format!("{n:08x}").repeat(8)
}

pub(crate) fn add<'a>(world: &'a World, n: u32, ns: &Netns) -> Result<Call<'a>> {
    let args = format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=pod-{n}");
    Ok(world.network("ADD", &id(n))?.netns(ns).env("CNI_ARGS", args))
}

pub(crate) fn del(world: &World, n: u32) -> Result<Call<'_>> {
    world.network("DEL", &id(n))
}

#[test]
fn a_pod_of_every_version_comes_and_goes() -> Result<()> {
    let world = World::new(VERSIONS.len() as u8)?;
    let pods: Vec<Netns> = VERSIONS.iter().map(|_| Netns::new()).collect::<Result<_>>()?;
    for ((n, ns), version) in (1..).zip(&pods).zip(VERSIONS) {
        let result = add(&world, n, ns)?.with("cniVersion", json!(version)).ok()?;
        check_result(&world, ns, &result, version)?;
        check_pod(&world, ns, &result)?;
    }
    assert_eq!(
        (
            world.leases()?.len(),
            world.endpoints()?.len(),
            world.interfaces()?.len()
        ),
        (VERSIONS.len(), VERSIONS.len(), VERSIONS.len())
    );
    assert_eq!(world.served()?.len(), VERSIONS.len());
    for to in ["10.240.0.6", "10.240.0.7", "10.240.0.4"] {
        pods[0].output("ping", &["-c1", "-i0.2", "-w5", to])?;
    }
    for (n, ns) in (1..).zip(&pods) {
        for _ in 0..3 {
            assert_eq!(del(&world, n)?.netns(ns).ok()?, Value::Null);
        }
        assert!(!ns.output("ip", &["link"])?.contains("eth0"));
    }
    world.assert_empty()
}

fn check_result(world: &World, ns: &Netns, result: &Value, version: &str) -> Result<()> {
    let routes = json!([{ "dst": "0.0.0.0/0", "gw": "10.240.0.1" }]);
    let address = format!("{}/16", address(result)?);
    let mut expected = json!({ "cniVersion": version, "dns": { "nameservers": ["168.63.129.16"] } });
    if version < "0.3" {
        expected["ip4"] = json!({ "ip": address, "gateway": "10.240.0.1", "routes": routes });
        assert_eq!(*result, expected);
        return Ok(());
    }
    let host_name = host_interface(world, ns)?;
    let mac = |ns: &Netns, name: &str| {
        Ok::<_, anyhow::Error>(ns.mac(name)?.map(|byte| format!("{byte:02x}")).join(":"))
    };
    expected["routes"] = routes;
    expected["interfaces"] = json!([
        { "name": "eth0", "mac": mac(ns, "eth0")?, "sandbox": ns.path() },
        { "name": host_name, "mac": mac(&world.node.ns, &host_name)?, "sandbox": "" },
    ]);
    expected["ips"] = json!([{ "interface": 0, "address": address, "gateway": "10.240.0.1" }]);
    if version < "1" {
        expected["ips"][0]["version"] = "4".into();
    }
    if version == "1.1.0" {
        for end in [0, 1] {
            expected["interfaces"][end]["mtu"] = 1500.into();
        }
    }
    assert_eq!(*result, expected);
    Ok(())
}

/// The node's end of the pod's link, by the index that the pod's end names.
fn host_interface(world: &World, ns: &Netns) -> Result<String> {
    let index = ns.json("ip", &["-j", "link", "show", "dev", "eth0"])?[0]["link_index"].clone();
    let links = world.node.ns.json("ip", &["-j", "link"])?;
    let link = links
        .as_array()
        .into_iter()
        .flatten()
        .find(|link| link["ifindex"] == index);
    Ok(link
        .and_then(|link| link["ifname"].as_str())
        .unwrap_or_default()
        .to_owned())
}

fn check_pod(world: &World, ns: &Netns, result: &Value) -> Result<()> {
    let (pod, host) = (address(result)?, host_interface(world, ns)?);
    let mac = |ns: &Netns, name: &str| {
        Ok::<_, anyhow::Error>(json!(ns.mac(name)?.map(|byte| format!("{byte:02x}")).join(":")))
    };
    let eth0 = &ns.json("ip", &["-j", "addr", "show", "dev", "eth0"])?[0];
    assert_eq!((&eth0["operstate"], &eth0["mtu"]), (&json!("UP"), &json!(1500)));
    let own: Vec<&Value> = eth0["addr_info"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|a| a["family"] == "inet")
        .collect();
    assert_eq!(own.len(), 1);
    assert_eq!(
        (&own[0]["local"], &own[0]["prefixlen"]),
        (&json!(pod), &json!(16))
    );
    let routes = ns.json("ip", &["-j", "route"])?;
    let gateways: Vec<&Value> = routes
        .as_array()
        .into_iter()
        .flatten()
        .map(|route| &route["gateway"])
        .collect();
    assert_eq!(gateways, [&json!("169.254.1.1"), &Value::Null], "{routes}");
    let neighbours = ns.json("ip", &["-j", "neigh"])?;
    assert_eq!(neighbours[0]["lladdr"], mac(&world.node.ns, &host)?);
    assert_eq!(neighbours[0]["state"], json!(["PERMANENT"]));
    let route = &world
        .node
        .ns
        .json("ip", &["-j", "route", "show", &pod.to_string()])?[0];
    assert_eq!((&route["dev"], &route["scope"]), (&json!(host), &json!("link")));
    let neighbour = &world
        .node
        .ns
        .json("ip", &["-j", "neigh", "show", &pod.to_string()])?[0];
    assert_eq!(neighbour["lladdr"], mac(ns, "eth0")?);
    Ok(())
}

#[test]
fn names_of_the_host_interface_are_the_incumbents() -> Result<()> {
    let world = World::new(2)?;
    let pods = [Netns::new()?, Netns::new()?];
    world
        .network("ADD", &"0123456789abcdef".repeat(4))?
        .netns(&pods[0])
        .ok()?;
    let args = "K8S_POD_NAMESPACE=kube-system;K8S_POD_NAME=metrics-server-77c8679d7d-6ksdh";
    let transparent = |verb| {
        Ok::<_, anyhow::Error>(
            world
                .network(verb, "c2")?
                .with("mode", json!("transparent"))
                .env("CNI_ARGS", args),
        )
    };
    transparent("ADD")?.netns(&pods[1]).ok()?;
    let mut names = world.interfaces()?;
    names.sort();
    assert_eq!(names, ["azvb87ebbb93f6", "azvd805fb1b0f8"]);
    transparent("DEL")?.without("CNI_ARGS").ok()?;
    assert_eq!(
        world.interfaces()?,
        ["azvb87ebbb93f6"],
        "found by what was noted, without the pod's name"
    );
    Ok(())
}

#[test]
fn a_new_sandbox_of_a_pod_takes_over_in_mode_transparent() -> Result<()> {
    let world = World::new(2)?;
    let pods = [Netns::new()?, Netns::new()?];
    let args = "K8S_POD_NAMESPACE=default;K8S_POD_NAME=web";
    let call = |verb, container: &str| {
        Ok::<_, anyhow::Error>(
            world
                .network(verb, container)?
                .with("mode", json!("transparent"))
                .env("CNI_ARGS", args),
        )
    };
    call("ADD", "old")?.netns(&pods[0]).ok()?;
    let new = address(&call("ADD", "new")?.netns(&pods[1]).ok()?)?;
    assert_eq!(
        world.leases()?.len(),
        2,
        "the old sandbox keeps its address until its DEL"
    );
    call("DEL", "old")?.ok()?;
    pods[1].output("ping", &["-c1", "-i0.2", "-w5", "10.240.0.4"])?;
    assert_eq!(
        (world.leases()?, world.served()?),
        (vec![(new, "new".to_owned())], vec![new.to_string()])
    );
    call("DEL", "new")?.ok()?;
    world.assert_empty()
}

#[test]
fn a_second_add_is_answered_as_the_first() -> Result<()> {
    let world = World::new(2)?;
    let ns = Netns::new()?;
    for version in ["0.2.0", "1.1.0"] {
        let call = |verb: &str| {
            let call = world.network(verb, &id(1))?.netns(&ns);
            Ok::<_, anyhow::Error>(call.with("cniVersion", json!(version)))
        };
        let first = call("ADD")?.ok()?;
        let links = |ns: &Netns| ns.output("ip", &["-d", "link", "show", "dev", "eth0"]);
        let link = links(&ns)?;
        assert_eq!(call("ADD")?.ok()?, first);
        let mine = call("ADD")?
            .env("CNI_ARGS", format!("IP={}", address(&first)?))
            .ok()?;
        assert_eq!(mine, first);
        assert_eq!(links(&ns)?, link, "the pod has got another interface");
        ns.output("ping", &["-c1", "-i0.2", "-w5", "10.240.0.4"])?;
        assert_eq!(world.leases()?, [(address(&first)?, id(1))]);
        call("DEL")?.ok()?;
        world.assert_empty()?;
    }
    Ok(())
}

/// What is asked for otherwise, and what is said of it.
#[test]
fn a_second_add_that_asks_for_something_else_is_refused_and_the_first_pod_left_alone() -> Result<()> {
    let world = World::new(2)?;
    let (ns, other) = (Netns::new()?, Netns::new()?);
    let first = address(&add(&world, 1, &ns)?.ok()?)?;
    let again = || add(&world, 1, &ns);
    let port = json!({ "portMappings": [{ "hostPort": 8080, "containerPort": 80, "protocol": "tcp" }] });
    let mac = json!({ "mac": "02:00:00:00:00:42" });
    let refusals = [
        (again()?.netns(&other), "it is in the namespace".to_owned()),
        (
            again()?.env("CNI_ARGS", "IP=10.240.0.6"),
            format!("it has the address {first}, not 10.240.0.6"),
        ),
        (
            again()?.with("runtimeConfig", mac),
            "not 02:00:00:00:00:42".to_owned(),
        ),
        (again()?.with("mtu", json!(1400)), "bytes, not 1400".to_owned()),
        (
            again()?.with("runtimeConfig", port),
            "other ports of the node".to_owned(),
        ),
    ];
    for (call, needle) in refusals {
        let failure = call.error()?;
        assert!(
            failure.code == 999 && failure.msg.ends_with("Endpoint already exists"),
            "{failure:?}"
        );
        assert!(failure.details.contains(&needle), "{needle}: {failure:?}");
        ns.output("ping", &["-c1", "-i0.2", "-w5", "10.240.0.4"])?;
        assert_eq!(world.leases()?, [(first, id(1))]);
    }
    // A lease that is gone is not given to it a second time: another pod may have it.
    let state = world.node.root.join("/var/run/azure-vnet-ipam.json");
    let text = fs::read_to_string(&state)?.replace("\"InUse\": true", "\"InUse\": false");
    fs::write(&state, text)?;
    let failure = again()?.error()?;
    assert!(failure.details.contains("is not leased to it"), "{failure:?}");
    ns.output("ping", &["-c1", "-i0.2", "-w5", "10.240.0.4"])?;
    del(&world, 1)?.ok()?;
    world.assert_empty()
}

#[test]
fn interfaces_of_a_container_are_independent() -> Result<()> {
    let world = World::new(2)?;
    let ns = Netns::new()?;
    let first = address(&add(&world, 1, &ns)?.ok()?)?;
    let second = address(&add(&world, 1, &ns)?.env("CNI_IFNAME", "eth1").ok()?)?;
    assert_eq!(world.leases()?.len(), 2);
    let ping = |more: &[&str]| ns.output("ping", &[&["-c1", "-i0.2", "-w5", "10.240.0.4"], more].concat());
    for source in [first, second] {
        ping(&["-I", &source.to_string()])?;
    }
    del(&world, 1)?.ok()?;
    assert_eq!(world.leases()?, [(second, id(1))]);
    let links = ns.output("ip", &["link"])?;
    assert!(links.contains("eth1") && !links.contains("eth0"), "{links}");
    ping(&[])?;
    // And back again beside the one that stayed.
    let first = address(&add(&world, 1, &ns)?.ok()?)?;
    for source in [first, second] {
        ping(&["-I", &source.to_string()])?;
    }
    for interface in ["eth0", "eth1"] {
        del(&world, 1)?.env("CNI_IFNAME", interface).ok()?;
    }
    world.assert_empty()
}

#[test]
fn the_mtu_that_is_asked_for_is_on_both_ends() -> Result<()> {
    let world = World::new(2)?;
    for (asked, given) in [(1400, 1400), (9000, 1500)] {
        let ns = Netns::new()?;
        let result = add(&world, 1, &ns)?
            .with("cniVersion", json!("1.1.0"))
            .with("mtu", json!(asked))
            .ok()?;
        assert_eq!(result["interfaces"][0]["mtu"], given);
        let host = host_interface(&world, &ns)?;
        for (ns, name) in [(&ns, "eth0"), (&world.node.ns, host.as_str())] {
            assert_eq!(
                ns.json("ip", &["-j", "link", "show", "dev", name])?[0]["mtu"],
                given
            );
        }
        ns.output(
            "ping",
            &[
                "-c1",
                "-W2",
                "-Mdo",
                "-s",
                &(given - 28).to_string(),
                "10.240.0.4",
            ],
        )?;
        del(&world, 1)?.ok()?;
    }
    world.assert_empty()
}

/// No bridge is made or taken over: whatever has the configured name stays as it is.
#[test]
fn the_bridge_of_the_configuration_is_left_alone() -> Result<()> {
    let world = World::new(1)?;
    let ns = Netns::new()?;
    for kind in ["bridge", "veth peer name azure0-peer"] {
        world.node.ns.ip(&format!(
            "link add azure0 type {kind}\naddr add 192.0.2.1/24 dev azure0"
        ))?;
        let before = world
            .node
            .ns
            .output("ip", &["-j", "addr", "show", "dev", "azure0"])?;
        add(&world, 1, &ns)?.ok()?;
        del(&world, 1)?.ok()?;
        assert_eq!(
            world
                .node
                .ns
                .output("ip", &["-j", "addr", "show", "dev", "azure0"])?,
            before
        );
        world.node.ns.ip("link del azure0")?;
    }
    world.assert_empty()
}

#[test]
fn the_endpoints_are_listed_in_the_incumbents_form() -> Result<()> {
    let world = World::new(2)?;
    let list = || world.network("GET_ENDPOINT_STATE", "")?.stdin("").ok();
    assert_eq!(list()?, json!({ "ContainerInterfaces": {} }));
    let ns = Netns::new()?;
    add(&world, 0xabc, &ns)?.ok()?;
    let endpoint = json!({ "PodName": "pod-2748", "PodNamespace": "default", "PodEndpointId": "00000abc-eth0",
        "ContainerID": id(0xabc), "IPAddresses": [{ "IP": "10.240.0.5", "Mask": "//8AAA==" }] });
    assert_eq!(
        list()?,
        json!({ "ContainerInterfaces": { "00000abc-eth0": endpoint } })
    );
    Ok(())
}

#[test]
fn a_failed_add_leaves_nothing_at_any_step() -> Result<()> {
    let world = World::new(2)?;
    let ns = Netns::new()?;
    let refused = |needle: &str| -> Result<()> {
        let failure = add(&world, 1, &ns)?.error()?;
        assert!(failure.msg.contains(needle), "expected {needle}: {failure:?}");
        assert_eq!(world.leases()?, [], "{needle}");
        assert_eq!(world.interfaces()?, [""; 0], "{needle}");
        Ok(())
    };
    // The name is taken in the pod.
    ns.ip("link add eth0 type veth peer name other")?;
    refused("eth0")?;
    world.assert_empty()?;
    ns.ip("link del eth0")?;
    // The endpoint cannot be noted.
    let state = world.node.root.join("/var/run/azure-vnet.json");
    fs::remove_file(&state).ok();
    fs::create_dir(&state)?;
    refused("azure-vnet.json")?;
    fs::remove_dir(&state)?;
    world.assert_empty()?;
    // The address list is for another machine.
    let list = world.node.root.join("/etc/kubernetes/interfaces.json");
    let text = fs::read_to_string(&list)?;
    fs::write(
        &list,
        r#"{"Interfaces":[{"MacAddress":"0A0000000001","IPSubnets":[{"Prefix":"10.240.0.0/16","IPAddresses":[{"Address":"10.240.0.9"}]}]}]}"#,
    )?;
    fs::remove_file(world.node.root.join("/var/run/azure-vnet-ipam.json")).ok();
    refused("0a:00:00:00:00:01")?;
    fs::write(&list, text)?;
    add(&world, 1, &ns)?.ok()?;
    del(&world, 1)?.ok()?;
    world.assert_empty()
}

#[test]
fn the_runtimes_wishes_are_met() -> Result<()> {
    let world = World::new(3)?;
    let ns = Netns::new()?;
    // podman: no namespace of the pod, address and MAC in CNI_ARGS, then in capabilities.
    let podman = world.network("ADD", "podman")?.netns(&ns).env(
        "CNI_ARGS",
        "IgnoreUnknown=1;K8S_POD_NAME=b;MAC=02:00:00:00:00:60;IP=10.240.0.7",
    );
    let result = podman.ok()?;
    assert_eq!(
        (address(&result)?.octets()[3], ns.mac("eth0")?),
        (7, [2, 0, 0, 0, 0, 0x60])
    );
    world.network("DEL", "podman")?.ok()?;
    // containerd: PascalCase, nulls; ctr: no CNI_ARGS, ids that share eight characters.
    let wishes = json!({ "PortMappings": [{ "HostPort": 8082, "ContainerPort": 80, "Protocol": "tcp", "HostIP": "" }], "dns": null });
    world
        .network("ADD", "default-t1")?
        .netns(&ns)
        .with("runtimeConfig", wishes)
        .with("prevResult", Value::Null)
        .ok()?;
    let other = Netns::new()?;
    let dns = json!({ "Nameservers": ["10.0.0.10"], "search": ["svc.cluster.local"] });
    let result = world
        .network("ADD", "default-t2")?
        .netns(&other)
        .with("dns", dns)
        .ok()?;
    assert_eq!(
        result["dns"],
        json!({ "nameservers": ["10.0.0.10"], "search": ["svc.cluster.local"] })
    );
    for container in ["default-t1", "default-t2"] {
        world.network("DEL", container)?.env("CNI_NETNS", "").ok()?;
    }
    world.assert_empty()
}
