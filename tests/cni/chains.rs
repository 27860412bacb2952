//! Cases 34 to 38: the reference's plug-ins before and after ours, doing their work.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    time::Duration,
};

use anyhow::{Context, Result};
use causeway_tests::{
    echo::Echo,
    fabric::{INTERNET, NODE},
    kernel,
    netns::Netns,
    stream::exchange,
    talk::{Tcp, Udp},
};
use serde_json::{Value, json};

use crate::{
    call::{World, address},
    chain::Chain,
};

fn portmap() -> Value {
    json!({ "type": "portmap", "capabilities": { "portMappings": true }, "snat": true })
}

/// containerd's form, and podman's.
fn mappings(host_port: u16, protocol: &str) -> [Value; 2] {
    [
        json!([{ "HostPort": host_port, "ContainerPort": 80, "Protocol": protocol, "HostIP": "" }]),
        json!([{ "hostPort": host_port, "containerPort": 80, "protocol": protocol }]),
    ]
}

fn rules(world: &World) -> Result<String> {
    world.node.ns.output("iptables", &["-t", "nat", "-S"])
}

#[test]
fn a_host_port_leads_to_the_pod_from_everywhere() -> Result<()> {
    let world = World::new(2)?;
    for mapping in mappings(8082, "tcp") {
        let (ns, other) = (Netns::new()?, Netns::new()?);
        let mut chain = Chain::after_ours(&world, "1.0.0", [portmap()])?;
        chain.runtime.insert("portMappings", mapping);
        let result = chain.add("container-1", &ns)?;
        assert_eq!(
            result["interfaces"][0]["sandbox"],
            ns.path(),
            "portmap hands on what we made"
        );
        chain.check("container-1", &ns, &result)?;
        world.network("ADD", "container-2")?.netns(&other).ok()?;
        let server = Echo::start(&ns, 80)?;
        let dial = SocketAddrV4::new(NODE, 8082);
        for client in [&world.fabric.vnet, &other, &ns] {
            Tcp::connect(client, dial)?.chat(40)?;
        }
        Tcp::connect(&world.node.ns, SocketAddrV4::new(Ipv4Addr::LOCALHOST, 8082))?.chat(5)?;
        assert_eq!(server.seen().len(), 4);
        chain.del("container-1", &ns, &result)?;
        assert!(!rules(&world)?.contains("8082"), "{}", rules(&world)?);
        world.network("DEL", "container-2")?.ok()?;
    }
    world.assert_empty()
}

/// Which port a pod's connection from port 8082 leaves the node with.
fn outgoing_port(world: &World, from: Ipv4Addr, ns: &Netns) -> Result<u16> {
    let server = Echo::start(&world.fabric.internet, 9000)?;
    let connection = Tcp::connect_from(
        ns,
        SocketAddrV4::new(from, 8082),
        SocketAddrV4::new(INTERNET, 9000),
    );
    connection?.chat(3)?;
    Ok(server.seen().first().context("the server saw nobody")?.port())
}

#[test]
fn no_translation_takes_a_host_port_while_a_pod_has_it() -> Result<()> {
    let world = World::new(3)?;
    let pods = [Netns::new()?, Netns::new()?, Netns::new()?];
    let mut chain = Chain::after_ours(&world, "1.0.0", [portmap()])?;
    let from = address(&world.network("ADD", "client")?.netns(&pods[0]).ok()?)?;
    chain
        .runtime
        .insert("portMappings", mappings(8082, "tcp")[0].clone());
    let results = [chain.add("one", &pods[1])?, chain.add("two", &pods[2])?];
    assert_ne!(outgoing_port(&world, from, &pods[0])?, 8082);
    chain.del("one", &pods[1], &results[0])?;
    assert_ne!(
        outgoing_port(&world, from, &pods[0])?,
        8082,
        "the other pod has it still"
    );
    // As a runtime does that has lost its cache: the ports are known from the state.
    world.network("DEL", "two")?.env("CNI_NETNS", "").ok()?;
    assert_eq!(outgoing_port(&world, from, &pods[0])?, 8082);
    world.network("DEL", "client")?.ok()?;
    world.assert_empty()
}

#[test]
fn without_the_capability_nothing_changes() -> Result<()> {
    let world = World::new(2)?;
    let pods = [Netns::new()?, Netns::new()?];
    let mut chain = Chain::after_ours(&world, "0.3.0", [portmap()])?;
    chain.ours("capabilities", Value::Null);
    chain
        .runtime
        .insert("portMappings", mappings(8082, "tcp")[0].clone());
    let from = address(&world.network("ADD", "client")?.netns(&pods[0]).ok()?)?;
    let result = chain.add("one", &pods[1])?;
    let _server = Echo::start(&pods[1], 80)?;
    Tcp::connect(&world.fabric.vnet, SocketAddrV4::new(NODE, 8082))?.chat(40)?;
    assert_eq!(outgoing_port(&world, from, &pods[0])?, 8082);
    chain.del("one", &pods[1], &result)?;
    world.network("DEL", "client")?.ok()?;
    world.assert_empty()
}

/// Case 35: the client goes on sending from one port while one pod takes the other's place.
#[test]
fn a_udp_host_port_survives_the_replacement_of_its_pod() -> Result<()> {
    let world = World::new(2)?;
    let client = Udp::connect_from(
        &world.fabric.vnet,
        SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 5555),
        SocketAddrV4::new(NODE, 5300),
    )?;
    let mut chain = Chain::after_ours(&world, "1.0.0", [portmap()])?;
    chain
        .runtime
        .insert("portMappings", mappings(5300, "udp")[0].clone());
    for n in 0..3 {
        // Nobody is there yet, or any more, and the node says that the port is closed. The client goes on.
        client.0.send(b"anybody there?")?;
        client.0.recv(&mut [0; 64]).unwrap_err();
        let ns = Netns::new()?;
        let container = format!("container-{n}");
        let result = chain.add(&container, &ns)?;
        let server = Echo::start(&ns, 80)?;
        client.chat(10)?;
        assert!(!server.seen().is_empty());
        chain.del(&container, &ns, &result)?;
    }
    world.assert_empty()
}

/// Case 36.
#[test]
fn a_host_port_of_zero_is_refused() -> Result<()> {
    let (world, ns) = (World::new(1)?, Netns::new()?);
    for mapping in mappings(0, "tcp") {
        let failure = world
            .network("ADD", "container-1")?
            .netns(&ns)
            .with("runtimeConfig", json!({ "portMappings": mapping }));
        let failure = failure.error()?;
        assert!(
            failure.code == 7 && failure.msg.starts_with("Invalid host port number: 0"),
            "{failure:?}"
        );
    }
    world.assert_empty()
}

/// Limits as the runtime says them; of what the pod sends only where the plug-in can have them
/// ([`a_limit_of_what_the_pod_sends_needs_tcx`]).
fn limits(rate: u64, burst: u64) -> Result<Value> {
    let mut limits = json!({ "ingressRate": rate, "ingressBurst": burst });
    if kernel::has_tcx()? {
        limits["egressRate"] = rate.into();
        limits["egressBurst"] = burst.into();
    }
    Ok(limits)
}

/// The same with containerd's capitals.
fn as_containerd_says(limits: &Value) -> Value {
    let members = limits.as_object().into_iter().flatten();
    let capital = |(key, value): (&String, &Value)| {
        let (first, rest) = key.split_at(1);
        (first.to_uppercase() + rest, value.clone())
    };
    Value::Object(members.map(capital).collect())
}

/// The plug-in makes an ingress qdisc of its own, for which there is no room beside a clsact.
#[test]
fn a_limit_of_what_the_pod_sends_needs_tcx() -> Result<()> {
    let (world, ns) = (World::new(1)?, Netns::new()?);
    let bandwidth = json!({ "type": "bandwidth", "capabilities": { "bandwidth": true } });
    let mut chain = Chain::after_ours(&world, "1.0.0", [bandwidth])?;
    let egress = json!({ "egressRate": 8_000_000, "egressBurst": 8_000_000 });
    chain.runtime.insert("bandwidth", egress);
    let added = chain.add("container-1", &ns);
    if kernel::has_tcx()? {
        added?;
    } else {
        let refusal = added.err().context("there is room for both")?;
        assert!(refusal.to_string().contains("create ingress qdisc"), "{refusal}");
    }
    chain.del("container-1", &ns, &Value::Null)?;
    world.assert_empty()
}

/// Case 37: the plug-in finds the host's end in our result, and its interface is gone after DEL.
#[test]
fn bandwidth_finds_the_hosts_end() -> Result<()> {
    let (world, ns) = (World::new(1)?, Netns::new()?);
    let bandwidth = json!({ "type": "bandwidth", "capabilities": { "bandwidth": true } });
    let mut chain = Chain::after_ours(&world, "1.0.0", [bandwidth])?;
    chain
        .runtime
        .insert("bandwidth", as_containerd_says(&limits(8_000_000, 8_000_000)?));
    let links = || world.node.ns.output("ip", &["-br", "link"]);
    let before = links()?;
    let result = chain.add("container-1", &ns)?;
    // What the pod sends is limited by an interface of the plug-in's own.
    let interfaces = 2 + usize::from(kernel::has_tcx()?);
    assert_eq!(
        result["interfaces"].as_array().map(Vec::len),
        Some(interfaces),
        "{result}"
    );
    let host = result["interfaces"][1]["name"].as_str().unwrap_or_default();
    assert!(
        world
            .node
            .ns
            .output("tc", &["qdisc", "show", "dev", host])?
            .contains("tbf")
    );
    ns.output("ping", &["-c1", "-i0.2", "-w5", "10.240.0.4"])?;
    chain.check("container-1", &ns, &result)?;
    chain.del("container-1", &ns, &result)?;
    assert_eq!(links()?, before);
    world.assert_empty()
}

/// Case 37: what is limited, and flows with it. Without limits the same flow is carried; with them every packet of it is
/// seen by the queueing disciplines, and takes as long as they make it.
#[test]
fn limits_hold_for_flows_that_would_be_carried() -> Result<()> {
    const RATE: u64 = 8_000_000;
    const BURST: u64 = 800_000;
    const BYTES: u64 = 1_500_000;
    let (world, ns) = (World::new(1)?, Netns::new()?);
    let bandwidth = json!({ "type": "bandwidth", "capabilities": { "bandwidth": true } });
    for runtime in [None, Some(limits(RATE, BURST)?)] {
        let mut chain = Chain::after_ours(&world, "1.0.0", [bandwidth.clone()])?;
        let is_limited = runtime.is_some();
        if let Some(limits) = runtime {
            chain.runtime.insert("bandwidth", limits);
        }
        let result = chain.add("container-1", &ns)?;
        let carried = || {
            Ok::<_, anyhow::Error>(
                world.node.count("carried_to_uplink")? + world.node.count("carried_to_pod")?,
            )
        };
        let before = carried()?;
        let server = SocketAddrV4::new(INTERNET, 9000);
        let (took, _) = exchange(&ns, &world.fabric.internet, server, BYTES)?;
        let carried = carried()? - before;
        if is_limited {
            // What the burst does not cover passes at the rate at best. A busy machine only takes longer.
            let least = Duration::from_millis((BYTES * 8 - BURST) * 1000 / RATE);
            assert!(took > least, "{BYTES} bytes took {took:?}, not {least:?}");
            assert_eq!(carried, 0, "a limited flow was carried");
        } else {
            assert!(carried > 50, "{carried} packets carried");
        }
        chain.del("container-1", &ns, &result)?;
    }
    world.assert_empty()
}

/// Case 38.
#[test]
fn tuning_and_firewall_do_their_work_after_ours() -> Result<()> {
    let (world, ns) = (World::new(1)?, Netns::new()?);
    let tuning = json!({ "type": "tuning", "sysctl": { "net.core.somaxconn": "501" } });
    let firewall = json!({ "type": "firewall", "backend": "iptables" });
    let chain = Chain::after_ours(&world, "1.0.0", [tuning, firewall])?;
    let result = chain.add("container-1", &ns)?;
    assert_eq!(ns.read_sysctl("net/core/somaxconn")?, "501");
    let pod = address(&result)?.to_string();
    let filter = || world.node.ns.output("iptables", &["-S"]);
    assert!(filter()?.contains(&pod));
    let _server = Echo::start(&world.fabric.vnet, 9000)?;
    Tcp::connect(&ns, SocketAddrV4::new(causeway_tests::fabric::VNET, 9000))?.chat(40)?;
    chain.check("container-1", &ns, &result)?;
    chain.del("container-1", &ns, &result)?;
    assert!(!filter()?.contains(&pod));
    world.assert_empty()
}

/// A plug-in before ours: what it made stays in the result, and indices still point where they should.
#[test]
fn what_came_before_is_handed_on() -> Result<()> {
    let (world, ns) = (World::new(1)?, Netns::new()?);
    let previous = json!({ "cniVersion": "1.0.0",
        "interfaces": [{ "name": "net1", "mac": "02:00:00:00:00:77", "sandbox": ns.path() }],
        "ips": [{ "address": "192.0.2.7/24", "interface": 0 }], "routes": [{ "dst": "198.18.0.0/15", "gw": "192.0.2.1" }] });
    let call = world
        .network("ADD", "container-1")?
        .netns(&ns)
        .with("cniVersion", json!("1.0.0"));
    let result = call.with("prevResult", previous).ok()?;
    let names: Vec<&str> = result["interfaces"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|i| i["name"].as_str())
        .collect();
    assert_eq!(names[..2], ["net1", "eth0"]);
    assert_eq!(
        result["ips"][1],
        json!({ "address": "10.240.0.5/16", "gateway": "10.240.0.1", "interface": 1 })
    );
    assert_eq!(result["routes"].as_array().map(Vec::len), Some(2));
    let check = world
        .network("CHECK", "container-1")?
        .netns(&ns)
        .with("cniVersion", json!("1.0.0"));
    check.with("prevResult", result).ok()?;
    world.network("DEL", "container-1")?.ok()?;
    world.assert_empty()
}
