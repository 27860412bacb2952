//! Pods with an address of IPv6 and none of IPv4: where it comes from, what is noted of it, what becomes of it. What they send
//! is in [`super::alone_sends`].

use std::{fs, net::Ipv6Addr};

use anyhow::{Context as _, Result};
use causeway_tests::{dual_stack::list_alone, netns::Netns};
use serde_json::{Value, json};

use super::{NODE, VNET, at, held, list, nothing_is_left, of_ipv6, pods::check_pod, talk, world};
use crate::{
    call::{Call, World},
    chain::reference,
    check::{Damage, find, names, pins},
    faults::choose,
    pods::{add, del, id},
    protocol::VERSIONS,
    sources::Wireserver,
};

/// A node with these addresses for pods and none of IPv4.
pub(super) fn alone(addresses: &[Ipv6Addr]) -> Result<World> {
    let world = world(5, addresses)?;
    list_alone(&world.node, &[("fd00:10::/64", addresses)])?;
    Ok(world)
}

/// Nothing of a pod is left, not even a pin.
pub(super) fn nothing_at_all_is_left(world: &World) -> Result<()> {
    nothing_is_left(world)?;
    let mut left = Vec::new();
    find(&pins(world)?.join("links"), &mut left)?;
    let of_pods = left.iter().filter(|path| path.to_string_lossy().contains("azv"));
    assert_eq!(of_pods.count(), 0, "{left:?}");
    Ok(())
}

/// The pod has this address and nothing of IPv4: no address, no route, no neighbour; nor has the host for it.
fn has_no_ipv4(world: &World, ns: &Netns) -> Result<()> {
    let of_pod = [
        &["-4", "addr", "show", "dev", "eth0"][..],
        &["-4", "route", "show", "table", "main"],
        &["-4", "neigh"],
    ];
    for what in of_pod {
        assert_eq!(ns.output("ip", what)?, "", "{what:?}");
    }
    for host_if in world.interfaces()? {
        for what in ["route", "neigh"] {
            assert_eq!(
                world
                    .node
                    .ns
                    .output("ip", &["-4", what, "show", "dev", &host_if])?,
                "",
                "{what}"
            );
        }
    }
    Ok(())
}

#[test]
fn a_pod_comes_and_goes_in_every_version() -> Result<()> {
    let count = VERSIONS.len();
    let addresses: Vec<Ipv6Addr> = (5..8 + count as u32).map(at).collect();
    let world = alone(&addresses)?;
    let pods: Vec<Netns> = VERSIONS.iter().map(|_| Netns::new()).collect::<Result<_>>()?;
    for (n, version) in VERSIONS.iter().enumerate() {
        let call = add(&world, n as u32, &pods[n])?.with("cniVersion", json!(version));
        let result = call.ok()?;
        check_result(&result, version, addresses[n]);
        check_pod(&world, &pods[n], addresses[n])?;
        has_no_ipv4(&world, &pods[n])?;
        // Asked once more, the same.
        assert_eq!(call.ok()?, result, "{version}");
    }
    assert_eq!(held(&world)?.len(), count);
    let mut served = world.served()?;
    served.sort_unstable();
    let mut expected: Vec<String> = addresses[..count].iter().map(Ipv6Addr::to_string).collect();
    expected.sort_unstable();
    assert_eq!(served, expected);
    let status = world.node.causeway_json("status")?;
    assert_eq!(
        (&status["healthy"], &status["problems"], &status["pods"]["ready"]),
        (&json!(true), &json!([]), &json!(count))
    );
    assert_eq!(
        status["hooks"].as_array().map(Vec::len),
        Some(2 + 2 * count),
        "{status}"
    );
    for to in [addresses[1], NODE, VNET] {
        pods[0].output("ping", &["-c1", "-i0.2", "-w5", &to.to_string()])?;
    }
    for (n, ns) in (0..).zip(&pods) {
        for _ in 0..2 {
            assert_eq!(del(&world, n)?.netns(ns).ok()?, Value::Null);
        }
        assert!(!ns.output("ip", &["link"])?.contains("eth0"));
    }
    nothing_at_all_is_left(&world)
}

fn check_result(result: &Value, version: &str, address: Ipv6Addr) {
    let (address, gateway) = (format!("{address}/64"), "fd00:10::1");
    let routes = json!([{ "dst": "::/0", "gw": gateway }]);
    assert_eq!(
        result["dns"],
        json!({}),
        "the fabric's name server is out of reach"
    );
    if version < "0.3" {
        let expected = json!({ "ip": address, "gateway": gateway, "routes": routes });
        assert_eq!(
            (&result["ip6"], &result["ip4"]),
            (&expected, &Value::Null),
            "{version}"
        );
        return;
    }
    let mut expected = json!([{ "interface": 0, "address": address, "gateway": gateway }]);
    if version < "1" {
        expected[0]["version"] = "6".into();
    }
    assert_eq!(
        (&result["ips"], &result["routes"]),
        (&expected, &routes),
        "{version}"
    );
}

/// The addresses that this `ipam` gives serve a pod, and another plug-in that asks for an address alone.
fn serves(world: &World, ipam: &Value) -> Result<()> {
    let failed = || ipam.to_string();
    let ns = Netns::new()?;
    let status = world.network("STATUS", "")?.with("cniVersion", json!("1.1.0"));
    status.with("ipam", ipam.clone()).ok().with_context(failed)?;
    let call = add(world, 1, &ns)?.with("ipam", ipam.clone());
    let result = call.ok().with_context(failed)?;
    let address = of_ipv6(&result)?;
    assert_eq!(result["ips"].as_array().map(Vec::len), Some(1), "{result}");
    has_no_ipv4(world, &ns)?;
    talk(&world.node.ns, &ns, address).with_context(failed)?;
    talk(&world.fabric.vnet, &ns, address).with_context(failed)?;
    talk(&ns, &world.fabric.vnet, VNET).with_context(failed)?;
    let asks = |verb| world.ipam(verb, "alone").with("ipam", ipam.clone());
    let alone = asks("ADD").ok().with_context(failed)?;
    assert_eq!(alone["ips"].as_array().map(Vec::len), Some(1), "{alone}");
    assert_eq!(of_ipv6(&alone)?.segments()[..3], address.segments()[..3]);
    asks("DEL").ok().with_context(failed)?;
    let call = del(world, 1)?.with("ipam", ipam.clone());
    call.ok().with_context(failed)?;
    nothing_at_all_is_left(world).with_context(failed)
}

fn ours(environment: &str) -> Value {
    json!({ "type": "azure-vnet-ipam", "environment": environment })
}

#[test]
fn every_source_may_list_ipv6_alone() -> Result<()> {
    let world = alone(&[at(5), at(6)])?;
    serves(&world, &ours("fileIpam"))?;
    list(&world, 3, &[("fd00:10::/64", &[at(5), at(6)])])?;
    let mut prescribed = ours("fileIpam");
    prescribed["subnet"] = "fd00:10::/64".into();
    serves(&world, &prescribed)?;
    let mut fixed = ours("static");
    fixed["subnet"] = "fd00:10::/64".into();
    fixed["addresses"] = json!(["fd00:10::5-fd00:10::6"]);
    serves(&world, &fixed)
}

#[test]
fn the_nodes_own_sources_may_have_ipv6_alone() -> Result<()> {
    let world = alone(&[at(5), at(6)])?;
    let carry = |verb: &str| {
        let address = |host| format!("addr {verb} {}/64 dev eth0", at(host));
        let flags = if verb == "add" { " nodad noprefixroute" } else { "" };
        world
            .node
            .ns
            .ip(&format!("{}{flags}\n{}{flags}", address(5), address(6)))
    };
    carry("add")?;
    serves(&world, &ours("nic"))?;
    carry("del")?;
    let subnet = "fd00:244:3::/64";
    world
        .fabric
        .router
        .ip(&format!("route add {subnet} via {NODE} dev node onlink"))?;
    let noted =
        json!({ "node": "pool-0", "uid": "5e8a", "podCIDRs": [subnet], "readAt": "2026-01-02T03:04:05Z" });
    world
        .node
        .root
        .write("/run/causeway/pod-cidrs.json", &noted.to_string())?;
    serves(&world, &ours("podCIDRs"))
}

#[test]
fn the_wireserver_may_list_ipv6_alone() -> Result<()> {
    let world = alone(&[at(5), at(6)])?;
    let server = Wireserver::start(&world)?;
    let of_ipv6 = "<IPSubnet Prefix=\"fd00:10::/64\"><IPAddress Address=\"fd00:10::4\" IsPrimary=\"true\"/>\
         <IPAddress Address=\"fd00:10::5\" IsPrimary=\"false\"/><IPAddress Address=\"fd00:10::6\" IsPrimary=\"false\"/></IPSubnet>";
    server.answer(&world, of_ipv6)?;
    serves(&world, &json!({ "type": "azure-vnet-ipam" }))
}

/// A subnet of IPv4 in which nothing is the pods' yet: a pod that took what there is would never get an address of it.
#[test]
fn a_subnet_of_ipv4_without_an_address_is_waited_for_unless_ipv6_is_prescribed() -> Result<()> {
    let world = alone(&[at(5), at(6)])?;
    list(&world, 0, &[("fd00:10::/64", &[at(5), at(6)])])?;
    let ns = Netns::new()?;
    let failure = add(&world, 1, &ns)?.error()?;
    let text = format!("{} {}", failure.msg, failure.details);
    let hint = "for pods with IPv6 alone say \"subnet\": \"fd00:10::/64\"";
    assert!(failure.code == 100 && text.contains(hint), "{failure:?}");
    let status = world.network("STATUS", "")?.with("cniVersion", json!("1.1.0"));
    assert_eq!(status.error()?.code, 50);
    nothing_at_all_is_left(&world)?;
    let ipam = json!({ "type": "azure-vnet-ipam", "environment": "mas", "subnet": "fd00:10::/64" });
    serves(&world, &ipam)
}

#[test]
fn another_plug_in_may_give_ipv6_alone() -> Result<()> {
    let world = world(1, &[at(5)])?;
    reference("host-local")?;
    let data = world.node.root.join("/var/lib/cni/networks");
    let of = |ranges: &[&str]| {
        let ranges: Vec<Value> = ranges
            .iter()
            .map(|subnet| json!([{ "subnet": subnet }]))
            .collect();
        json!({ "type": "host-local", "dataDir": data, "ranges": ranges })
    };
    let call = |verb: &str, ns: &Netns, ranges: &[&str]| {
        let call = world.network(verb, &id(1))?.netns(ns).with("ipam", of(ranges));
        Ok::<_, anyhow::Error>(call.with("cniVersion", json!("1.0.0")))
    };
    let (ns, one) = (Netns::new()?, &["fd00:9::/64"]);
    let result = call("ADD", &ns, one)?.ok()?;
    assert_eq!(call("ADD", &ns, one)?.ok()?, result, "asked once more");
    assert_eq!(result["ips"].as_array().map(Vec::len), Some(1), "{result}");
    assert_eq!(result["routes"], json!([{ "dst": "::/0", "gw": "fd00:9::1" }]));
    has_no_ipv4(&world, &ns)?;
    let before = world.node.count("source_address")?;
    talk(&world.node.ns, &ns, of_ipv6(&result)?)?;
    talk(&ns, &world.node.ns, NODE)?;
    assert_eq!(world.node.count("source_address")?, before);
    assert_eq!(world.served()?, [of_ipv6(&result)?.to_string()]);
    call("CHECK", &ns, one)?.with("prevResult", result).ok()?;
    call("DEL", &ns, one)?.ok()?;
    nothing_at_all_is_left(&world)?;
    // The programs know a pod by one address: with two, nobody would look at what it sends.
    let failure = call("ADD", &ns, &["fd00:9::/64", "fd00:8::/64"])?.error()?;
    let why = "\"host-local\" gave 2 addresses of IPv6 and none of IPv4";
    assert!(failure.code == 100 && failure.msg.contains(why), "{failure:?}");
    nothing_at_all_is_left(&world)
}

#[test]
fn check_names_what_is_broken() -> Result<()> {
    let world = alone(&[at(5)])?;
    let damages: [(&str, Damage); 7] = [
        ("has not the address fd00:10::5/64", |_, ns, _| {
            ns.ip("addr del fd00:10::5/64 dev eth0")
        }),
        ("the pod's default route via fe80::1234:5678:9abc", |_, ns, _| {
            ns.output("ip", &["-6", "route", "del", "default"]).map(drop)
        }),
        ("the host's route fd00:10::5/128", |world, _, _| {
            world.node.ns.ip("route del fd00:10::5")
        }),
        ("the host's neighbour fd00:10::5", |world, _, host| {
            world.node.ns.ip(&format!("neigh del fd00:10::5 dev {host}"))
        }),
        (
            "the entry fd00:10::5 of map cwy_pods6 is missing",
            |world, _, _| delete(world, "cwy_pods6", &at(5).octets()),
        ),
        ("of map cwy_ifaces6 is missing", |world, _, host| {
            let index = world.node.ns.ifindex(host)?;
            delete(world, "cwy_ifaces6", &index.to_ne_bytes())
        }),
        ("is not attached to azv", |world, _, host| {
            Ok(fs::remove_file(
                pins(world)?.join(format!("links/{host}_ingress")),
            )?)
        }),
    ];
    let call = |verb: &str, ns: &Netns| {
        let call = world.network(verb, &id(1))?.netns(ns);
        Ok(call.with("cniVersion", json!("1.0.0")))
    };
    names(&world, &call, &damages)?;
    // What somebody else has added, of either family, is none of its business.
    let ns = Netns::new()?;
    let mut result = call("ADD", &ns)?.ok()?;
    ns.ip("addr add fd00:99::7/128 dev eth0 nodad\naddr add 192.0.2.9/32 dev eth0")?;
    let ips = result["ips"].as_array_mut().context("no addresses")?;
    ips.push(json!({ "address": "192.0.2.9/32", "interface": 0 }));
    call("CHECK", &ns)?.with("prevResult", result).ok()?;
    call("DEL", &ns)?.ok()?;
    nothing_is_left(&world)
}

/// Deletes an entry of a map, by bpftool.
fn delete(world: &World, map: &str, key: &[u8]) -> Result<()> {
    let pin = pins(world)?.join("maps").join(map).display().to_string();
    let key: Vec<String> = key.iter().map(u8::to_string).collect();
    let words = ["map", "delete", "pinned", &pin, "key"].into_iter();
    let words: Vec<&str> = words.chain(key.iter().map(String::as_str)).collect();
    world.node.ns.output("bpftool", &words).map(drop)
}

#[test]
fn used_up_collected_and_given_again() -> Result<()> {
    let world = alone(&[at(5), at(6)])?;
    let pods = [Netns::new()?, Netns::new()?, Netns::new()?];
    for n in [0, 1] {
        add(&world, n, &pods[n as usize])?.ok()?;
    }
    let status = world.network("STATUS", "")?.with("cniVersion", json!("1.1.0"));
    for failure in [
        add(&world, 2, &pods[2])?.error()?,
        status.error()?,
        world.ipam("ADD", "alone").error()?,
    ] {
        assert!(
            failure.msg.ends_with("No available addresses")
                && failure
                    .details
                    .contains("2 of 2 addresses of pool fd00:10::/64 are in use"),
            "{failure:?}"
        );
    }
    let asked = add(&world, 9, &pods[2])?.env("CNI_ARGS", "IP=fd00:10::5");
    assert!(asked.error()?.msg.contains("already in use"));
    let valid = json!([{ "containerID": id(1), "ifname": "eth0" }]);
    let gc = world.network("GC", "")?.with("cniVersion", json!("1.1.0"));
    gc.with("cni.dev/valid-attachments", valid).ok()?;
    let left: Vec<String> = held(&world)?.into_keys().collect();
    assert_eq!(
        (left, world.served()?),
        (vec![at(6).to_string()], vec![at(6).to_string()])
    );
    talk(&world.node.ns, &pods[1], at(6))?;
    status.ok()?;
    // Lost, the leases come back from the endpoints.
    fs::remove_file(world.node.root.join("/var/run/azure-vnet-ipam.json"))?;
    assert_eq!(of_ipv6(&add(&world, 2, &pods[2])?.ok()?)?, at(5));
    talk(&pods[2], &pods[1], at(6))?;
    // With every file lost, what answers is not given again.
    for file in ["azure-vnet-ipam.json", "azure-vnet.json"] {
        fs::remove_file(world.node.root.join(&format!("/var/run/{file}")))?;
    }
    let failure = add(&world, 3, &pods[0])?.error()?;
    assert!(failure.msg.ends_with("No available addresses"), "{failure:?}");
    talk(&pods[2], &pods[1], at(6))
}

#[test]
fn the_files_have_the_incumbents_form() -> Result<()> {
    let (world, ns) = (alone(&[at(5)])?, Netns::new()?);
    add(&world, 1, &ns)?.ok()?;
    let state = |name: &str| {
        let text = fs::read_to_string(world.node.root.join(&format!("/var/run/{name}")))?;
        Ok::<Value, anyhow::Error>(serde_json::from_str(&text)?)
    };
    let pools = &state("azure-vnet-ipam.json")?["IPAM"]["AddressSpaces"]["local"]["Pools"];
    let pool = &pools["fd00:10::/64"];
    assert_eq!(pools.as_object().map(serde_json::Map::len), Some(1), "{pools}");
    assert_eq!(
        (
            &pool["IsIPv6"],
            &pool["IfName"],
            &pool["Gateway"],
            &pool["Addresses"]["fd00:10::5"]["ID"]
        ),
        (&json!(true), &json!("eth0"), &json!("fd00:10::1"), &json!(id(1)))
    );
    let interface = &state("azure-vnet.json")?["Network"]["ExternalInterfaces"]["eth0"];
    let network = &interface["Networks"]["azure"];
    assert_eq!(interface["Subnets"], json!(["fd00:10::/64"]));
    assert_eq!(network["Subnets"].as_array().map(Vec::len), Some(1));
    assert_eq!(network["Subnets"][0]["Family"], 10);
    let endpoint = &network["Endpoints"][format!("{}-eth0", &id(1)[..8])];
    let mask = "//////////8AAAAAAAAAAA==";
    assert_eq!(
        endpoint["IPAddresses"],
        json!([{ "IP": "fd00:10::5", "Mask": mask }])
    );
    assert_eq!(endpoint["Gateways"], json!(["fd00:10::1"]));
    assert_eq!(endpoint["Routes"].as_array().map(Vec::len), Some(1));
    assert_eq!(endpoint["Routes"][0]["Dst"]["IP"], "::");
    let told = world.network("GET_ENDPOINT_STATE", "")?.ok()?;
    let addresses = &told["ContainerInterfaces"][format!("{}-eth0", &id(1)[..8])]["IPAddresses"];
    assert_eq!(addresses[0]["IP"], "fd00:10::5", "{told}");
    del(&world, 1)?.ok()?;
    nothing_at_all_is_left(&world)
}

/// Beside pods of both families, and of IPv4: each goes without taking anything of another's with it.
#[test]
fn pods_of_every_kind_side_by_side() -> Result<()> {
    let world = world(4, &[at(5), at(6), at(7), at(8)])?;
    let both: &[(&str, &[Ipv6Addr])] = &[("fd00:10::/64", &[at(5), at(6), at(7), at(8)])];
    let pods: Vec<Netns> = (0..5).map(|_| Netns::new()).collect::<Result<_>>()?;
    let ipam = |subnet: &str| json!({ "type": "azure-vnet-ipam", "environment": "mas", "subnet": subnet });
    list(&world, 4, both)?;
    let of = [
        "fd00:10::/64",
        "10.240.0.0/16,fd00:10::/64",
        "10.240.0.0/16",
        "fd00:10::/64",
        "10.240.0.0/16,fd00:10::/64",
    ];
    for (n, subnet) in (0..).zip(of) {
        add(&world, n, &pods[n as usize])?
            .with("ipam", ipam(subnet))
            .ok()?;
    }
    let talks = |from: usize, to: usize, address| talk(&pods[from], &pods[to], address);
    talks(0, 1, at(6))?;
    talks(1, 3, at(7))?;
    del(&world, 1)?.ok()?;
    talks(0, 4, at(8))?;
    talks(4, 3, at(7))?;
    del(&world, 3)?.ok()?;
    pods[2].output("ping", &["-c1", "-i0.2", "-w5", "10.240.0.7"])?;
    pods[4].output("ping", &["-c1", "-i0.2", "-w5", "10.240.1.10"])?;
    del(&world, 4)?.ok()?;
    del(&world, 2)?.ok()?;
    talk(&world.fabric.vnet, &pods[0], at(5))?;
    // An address of a pod of both families is a pod's only one next, and the other way round.
    let mut given = Vec::new();
    for (n, subnet) in [(1, of[0]), (2, of[1]), (3, of[0])] {
        given.push(of_ipv6_alone(
            &add(&world, n, &pods[n as usize])?
                .with("ipam", ipam(subnet))
                .ok()?,
        )?);
    }
    given.sort_unstable();
    assert_eq!(given, [at(6), at(7), at(8)]);
    for n in 0..4 {
        del(&world, n)?.ok()?;
    }
    nothing_at_all_is_left(&world)
}

/// That of IPv6, whichever comes first.
fn of_ipv6_alone(result: &Value) -> Result<Ipv6Addr> {
    let ips = result["ips"].as_array().into_iter().flatten();
    let mut texts = ips.filter_map(|ip| ip["address"].as_str());
    let text = texts
        .find(|text| text.contains(':'))
        .context("no address of IPv6")?;
    Ok(text.trim_end_matches("/64").parse()?)
}

/// An IPv6 address has no ARP to fall back on: a kernel without IPv6 is told apart before anything is made.
#[test]
fn a_kernel_without_ipv6_is_refused_by_name() -> Result<()> {
    let (world, ns) = (alone(&[at(5)])?, Netns::new()?);
    let says = |call: &Call<'_>| {
        let mut tool = world.node.ns.command("unshare");
        let hidden = "mount -t tmpfs none /proc/sys/net/ipv6 && exec \"$0\"";
        tool.args(["--mount", "sh", "-c", hidden]);
        let output = call.feed(call.run_by(tool))?.wait_with_output()?;
        assert!(!output.status.success());
        let text = String::from_utf8(output.stdout)?;
        let failure: Value = serde_json::from_str(&text).with_context(|| text.clone())?;
        let msg = failure["msg"].as_str().unwrap_or_default();
        let why = "fd00:10::/64 is IPv6, and the kernel of this node speaks IPv4 alone";
        assert!(msg.contains(why), "{failure}");
        Ok::<_, anyhow::Error>(failure["code"].clone())
    };
    let status = world.network("STATUS", "")?.with("cniVersion", json!("1.1.0"));
    assert_eq!(says(&add(&world, 1, &ns)?)?, 100);
    assert_eq!(says(&status)?, 50);
    assert_eq!(says(&world.ipam("ADD", "alone"))?, 100);
    world.assert_empty()?;
    assert_eq!(held(&world)?.len(), 0);
    // A list of both families serves pods of IPv4 there.
    list(&world, 1, &[("fd00:10::/64", &[at(5)])])?;
    status.ok()?;
    Ok(())
}

/// The programs of an earlier build hand nothing over: nobody would look at what the pod sends.
#[test]
fn programs_of_an_earlier_build_are_refused_by_name() -> Result<()> {
    let world = world(2, &[at(5)])?;
    let pods = [Netns::new()?, Netns::new()?];
    list(&world, 2, &[])?;
    add(&world, 1, &pods[0])?.ok()?;
    fs::remove_file(pins(&world)?.join("maps/cwy_ipv6"))?;
    list_alone(&world.node, &[("fd00:10::/64", &[at(5)])])?;
    let failure = add(&world, 2, &pods[1])?.error()?;
    assert!(
        failure.code == 100 && failure.msg.contains("causeway upgrade"),
        "{failure:?}"
    );
    assert!(!pods[1].output("ip", &["link"])?.contains("eth0"));
    assert_eq!((held(&world)?.len(), world.interfaces()?.len()), (1, 1));
    pods[0]
        .output("ping", &["-c1", "-i0.2", "-w5", "10.240.1.10"])
        .map(drop)
}

/// A further interface of the container answers by itself, whatever the first one has.
#[test]
fn a_second_interface_may_have_ipv6_alone() -> Result<()> {
    let world = world(2, &[at(5), at(6)])?;
    let first = "10.240.0.0/16,fd00:10::/64";
    for (first, addresses) in [("fd00:10::/64", [5, 6]), (first, [5, 6])] {
        let ns = Netns::new()?;
        for (name, subnet) in [("eth0", first), ("eth1", "fd00:10::/64")] {
            let ipam = json!({ "type": "azure-vnet-ipam", "environment": "mas", "subnet": subnet });
            let call = add(&world, 1, &ns)?.env("CNI_IFNAME", name);
            call.with("ipam", ipam).ok()?;
        }
        for host in addresses {
            talk(&world.fabric.vnet, &ns, at(host))?;
        }
        assert_eq!(ns.output("ip", &["-4", "addr", "show", "dev", "eth1"])?, "");
        del(&world, 1)?.env("CNI_IFNAME", "eth0").ok()?;
        talk(&world.fabric.vnet, &ns, at(addresses[1]))?;
        del(&world, 1)?.env("CNI_IFNAME", "eth1").ok()?;
        nothing_at_all_is_left(&world)?;
        // Released longest ago, the first one is the first again.
        fs::remove_file(world.node.root.join("/var/run/azure-vnet-ipam.json"))?;
    }
    Ok(())
}

/// The node itself keeps an address of IPv4 on its uplink.
#[test]
fn a_node_without_ipv4_is_refused_by_name() -> Result<()> {
    let (world, ns) = (alone(&[at(5)])?, Netns::new()?);
    world.node.ns.ip("addr del 10.240.0.4/16 dev eth0")?;
    let failure = add(&world, 1, &ns)?.error()?;
    assert!(
        failure.code == 100 && failure.msg.contains("eth0 has no global IPv4 address"),
        "{failure:?}"
    );
    nothing_is_left(&world)
}

/// How many of the system calls of an ADD and of a DEL are tried.
const SAMPLE: usize = 24;

/// Whatever of an ADD or of a DEL is done when it is killed: the next call finishes it.
#[test]
fn killed_anywhere_it_is_finished_by_the_next_call() -> Result<()> {
    let (world, ns, neighbour) = (alone(&[at(5), at(6)])?, Netns::new()?, Netns::new()?);
    add(&world, 9, &neighbour)?.ok()?;
    let (call, end) = (add(&world, 1, &ns)?, del(&world, 1)?.netns(&ns));
    let points = world.points(&call, "all")?;
    for (turn, point) in choose(points, Some(SAMPLE)).into_iter().enumerate() {
        let what = || format!("ADD killed at {point:?}");
        end.ok()?;
        world.kill(&call, &point)?;
        if turn % 2 == 0 {
            let output = call.output()?;
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            let is_there = output.status.success() || said.contains("already exists");
            assert!(is_there, "{}: {said}", what());
            talk(&neighbour, &ns, at(6)).with_context(what)?;
        }
        end.ok().with_context(what)?;
        assert_eq!(world.served()?, [at(5).to_string()], "{}", what());
    }
    call.ok()?;
    for point in choose(world.points(&end, "all")?, Some(SAMPLE)) {
        let what = || format!("DEL killed at {point:?}");
        call.ok().with_context(what)?;
        world.kill(&end, &point)?;
        end.ok().with_context(what)?;
        assert_eq!(world.served()?, [at(5).to_string()], "{}", what());
        assert!(!ns.output("ip", &["link"])?.contains("eth0"), "{}", what());
    }
    talk(&world.node.ns, &neighbour, at(5))?;
    del(&world, 9)?.ok()?;
    nothing_is_left(&world)
}
