//! Cases 10 to 12: pods with an address of each family. What is of IPv6 is moved by the kernel.

mod addresses;
mod pods;
mod state;

use std::{
    collections::BTreeMap,
    fs,
    io::{Read, Write},
    net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

use anyhow::{Context, Result};
use causeway_tests::netns::Netns;
use serde_json::{Value, json};

use crate::call::World;

/// The node's address.
const NODE: Ipv6Addr = at(4);

/// That of the VNet's other host.
const VNET: Ipv6Addr = at(0x1_0010);

/// The next hop of every pod.
const GATEWAY: &str = "fe80::1234:5678:9abc";

/// An address of the subnet of node and pods, fd00:10::/64.
const fn at(host: u32) -> Ipv6Addr {
    Ipv6Addr::from_bits(0xfd00_0010 << 96 | host as u128)
}

/// A node with `pods` addresses of IPv4 for pods and these of IPv6, in a fabric that routes both. New interfaces of the node
/// and of pods have IPv6 turned off, as some administrators have it.
fn world(pods: u8, of_ipv6: &[Ipv6Addr]) -> Result<World> {
    let world = World::new(pods)?;
    let (node, fabric) = (&world.node.ns, &world.fabric);
    for (ns, names) in [
        (node, &["lo", "eth0"][..]),
        (&fabric.vnet, &["eth0"]),
        (&fabric.router, &["node", "vnet"]),
    ] {
        for name in names {
            ns.sysctl(&format!("net/ipv6/conf/{name}/disable_ipv6"), "0")?;
        }
    }
    fabric.router.sysctl("net/ipv6/conf/all/forwarding", "1")?;
    let mut routes = vec![
        "addr add fe80::1/64 dev node nodad".to_owned(),
        "addr add fe80::1/64 dev vnet nodad".to_owned(),
        format!("route add {NODE} dev node\nroute add {VNET} dev vnet"),
    ];
    let to_pod = |pod: &Ipv6Addr| format!("route add {pod} via {NODE} dev node onlink");
    routes.extend(of_ipv6.iter().map(to_pod));
    fabric.router.ip(&routes.join("\n"))?;
    for (ns, address) in [(node, NODE), (&fabric.vnet, VNET)] {
        ns.ip(&format!(
            "addr add {address}/64 dev eth0 nodad noprefixroute\nroute add default via fe80::1 dev eth0"
        ))?;
    }
    list(&world, pods, &[("fd00:10::/64", of_ipv6)])?;
    Ok(world)
}

/// Writes the address list: `pods` addresses of IPv4, and the subnets of IPv6 with theirs.
fn list(world: &World, pods: u8, subnets: &[(&str, &[Ipv6Addr])]) -> Result<()> {
    let entry = |address: IpAddr, is_primary: bool| json!({ "Address": address, "IsPrimary": is_primary });
    let of_ipv4 = (5..5 + pods).map(|host| entry([10, 240, 0, host].into(), false));
    let own = entry([10, 240, 0, 4].into(), true);
    let mut all = vec![
        json!({ "Prefix": "10.240.0.0/16", "IPAddresses": std::iter::once(own).chain(of_ipv4).collect::<Vec<_>>() }),
    ];
    for (prefix, addresses) in subnets {
        let addresses = addresses.iter().map(|address| entry((*address).into(), false));
        let own = entry(NODE.into(), true);
        all.push(json!({ "Prefix": prefix, "IPAddresses": std::iter::once(own).chain(addresses).collect::<Vec<_>>() }));
    }
    let mac = world.node.mac()?.map(|byte| format!("{byte:02x}")).concat();
    let list = json!({ "Interfaces": [{ "MacAddress": mac, "IsPrimary": true, "IPSubnets": all }] });
    world
        .node
        .root
        .write("/etc/kubernetes/interfaces.json", &list.to_string())
}

/// Every address that is leased, with its container.
fn held(world: &World) -> Result<BTreeMap<String, String>> {
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

/// A connection is made and carries something. With the first packet: the kernel sends the second one after a second.
fn talk(from: &Netns, to: &Netns, address: Ipv6Addr) -> Result<()> {
    let server = SocketAddr::new(address.into(), 7000);
    let listener = to.bind(|| TcpListener::bind(server))?;
    let patience = Duration::from_millis(950);
    let client = from.run(|| TcpStream::connect_timeout(&server, patience))?;
    let mut client = client.with_context(|| format!("no connection to {server}"))?;
    let (mut accepted, _) = listener.accept()?;
    for stream in [&client, &accepted] {
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    }
    client.write_all(b"question")?;
    let mut heard = [0; 8];
    accepted.read_exact(&mut heard)?;
    accepted.write_all(&heard)?;
    client.read_exact(&mut heard)?;
    assert_eq!(&heard, b"question");
    Ok(())
}
