//! Any one thing is taken away under a pod's connection. The agent puts it right, and no packet meanwhile is translated
//! wrongly or not at all (the rig's watch on the wire).

use std::{fs, net::SocketAddrV4, path::PathBuf, time::Instant};

use anyhow::{Context, Result, ensure};
use aya::maps::{Array, HashMap, Map, MapData};
use causeway_common::maps::{Config, IfaceEntry, PodEntry, PortWord, SCHEMA, Usage};
use causeway_tests::{agent::Agent, echo::Echo, fabric::INTERNET, node::Pod, rig::Rig, talk::Tcp};

use crate::{hooks::take_off, places::Places};

const ENDPOINTS: &str = "/var/run/azure-vnet.json";
const LEASES: &str = "/var/run/azure-vnet-ipam.json";

pub(crate) fn pins(rig: &Rig) -> PathBuf {
    rig.node.root.join(&format!("/sys/fs/bpf/causeway/v{SCHEMA}"))
}

pub(crate) fn map(rig: &Rig, name: &str) -> Result<MapData> {
    Ok(MapData::from_pin(pins(rig).join("maps").join(name))?)
}

/// How it is told that something is there again.
type Repaired = Box<dyn Fn(&Rig, &Pod) -> Result<bool>>;
/// Takes something away.
type Fault = fn(&Rig, &Pod) -> Result<Repaired>;

/// The connections live on, and others can be opened.
fn is_mended(fault: Fault) -> Result<()> {
    let rig = Rig::causeway()?;
    let (pod, other) = (rig.pod("a")?, rig.pod("b")?);
    let places = Places::new(&rig, &other)?;
    let mut connections = places.connect(&pod)?;
    connections.iter_mut().try_for_each(|tcp| tcp.chat(5))?;
    let mut agent = Agent::start(&rig.node)?;
    let before = agent.metric("causeway_reconcile_mended_total")?;
    let is_there = fault(&rig, &pod)?;
    let since = Instant::now();
    agent.wait_for("repair", |agent| {
        Ok(is_there(&rig, &pod)? && agent.metric("causeway_reconcile_mended_total")? > before)
    })?;
    println!("put right after {:?}", since.elapsed());
    ensure!(agent.log().contains("put right"), "not logged: {}", agent.log());
    agent.wait_for("readiness", |agent| Ok(agent.get("/readyz").is_ok()))?;
    for (n, tcp) in connections.iter_mut().enumerate() {
        tcp.chat(5).with_context(|| {
            format!(
                "the connection to {} does not live: {}",
                places.address(n),
                agent.log()
            )
        })?;
    }
    places.connect(&pod)?.iter_mut().try_for_each(|tcp| tcp.chat(5))?;
    let seen = places.seen();
    ensure!(seen == [2; 3], "{seen:?} connections");
    agent.end()
}

/// A file that is to be there again.
fn removed(path: PathBuf) -> Result<Repaired> {
    fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
    Ok(Box::new(move |_, _| Ok(path.exists())))
}

#[test]
fn the_pin_of_a_map() -> Result<()> {
    is_mended(|rig, _| removed(pins(rig).join("maps/cwy_flows")))
}

#[test]
fn the_pin_of_a_program() -> Result<()> {
    is_mended(|rig, _| removed(pins(rig).join("progs/cwy_to_uplink")))
}

#[test]
fn the_pin_of_the_uplinks_link() -> Result<()> {
    is_mended(|rig, _| removed(pins(rig).join("links/uplink_egress")))
}

#[test]
fn the_pin_of_a_pods_link() -> Result<()> {
    is_mended(|rig, pod| {
        let host_if = rig.node.host_interface(pod)?;
        removed(pins(rig).join(format!("links/{host_if}_ingress")))
    })
}

#[test]
fn the_whole_tree_of_pins() -> Result<()> {
    is_mended(|rig, _| {
        let tree = pins(rig);
        fs::remove_dir_all(&tree)?;
        Ok(Box::new(move |_, _| {
            Ok(tree.join("links/uplink_ingress").exists())
        }))
    })
}

fn detached(rig: &Rig, interface: &str, direction: &str) -> Result<Repaired> {
    take_off(rig, interface, direction)?;
    Ok(Box::new(|rig, _| {
        let status = rig.node.causeway_json("status")?;
        let hooks = status["hooks"].as_array().context("no hooks")?;
        let is_held = |hook: &serde_json::Value| hook["attached"] == "tcx" || hook["attached"] == "clsact";
        Ok(hooks.iter().all(is_held))
    }))
}

#[test]
fn the_program_on_the_uplinks_way_in() -> Result<()> {
    is_mended(|rig, _| detached(rig, "eth0", "ingress"))
}

#[test]
fn the_program_on_a_pods_interface() -> Result<()> {
    is_mended(|rig, pod| detached(rig, &rig.node.host_interface(pod)?, "egress"))
}

#[test]
fn the_route_to_a_pod() -> Result<()> {
    is_mended(|rig, pod| {
        rig.node.ns.ip(&format!("route del {}/32", pod.addr))?;
        Ok(Box::new(|rig, pod| {
            let routes = rig.node.ns.output("ip", &["route", "show"])?;
            Ok(routes.contains(&format!("{} dev azv", pod.addr)))
        }))
    })
}

#[test]
fn the_neighbour_entry_of_a_pod() -> Result<()> {
    is_mended(|rig, pod| {
        let host_if = rig.node.host_interface(pod)?;
        rig.node.ns.ip(&format!("neigh del {} dev {host_if}", pod.addr))?;
        Ok(Box::new(|rig, pod| {
            let neighbours = rig.node.ns.output("ip", &["neigh", "show", "nud", "permanent"])?;
            Ok(neighbours.contains(&pod.addr.to_string()))
        }))
    })
}

#[test]
fn a_host_interface_that_is_down() -> Result<()> {
    is_mended(|rig, pod| {
        let host_if = rig.node.host_interface(pod)?;
        rig.node.ns.ip(&format!("link set {host_if} down"))?;
        Ok(Box::new(move |rig, _| {
            let link = rig.node.ns.output("ip", &["link", "show", "dev", &host_if])?;
            Ok(link.contains("state UP"))
        }))
    })
}

#[test]
fn forwarding_that_is_off() -> Result<()> {
    is_mended(|rig, _| {
        rig.node.ns.sysctl("net/ipv4/ip_forward", "0")?;
        Ok(Box::new(|rig, _| {
            Ok(rig.node.ns.read_sysctl("net/ipv4/ip_forward")? == "1")
        }))
    })
}

#[test]
fn a_pods_entry_in_cwy_pods() -> Result<()> {
    is_mended(|rig, pod| {
        let mut pods: HashMap<_, [u8; 4], PodEntry> = HashMap::try_from(Map::HashMap(map(rig, "cwy_pods")?))?;
        pods.remove(&pod.addr.octets())?;
        Ok(Box::new(move |_, pod| {
            Ok(pods
                .get(&pod.addr.octets(), 0)
                .is_ok_and(|entry| entry.is_ready()))
        }))
    })
}

#[test]
fn a_pods_entry_in_cwy_ifaces() -> Result<()> {
    is_mended(|rig, pod| {
        let index = rig.node.ns.ifindex(&rig.node.host_interface(pod)?)?;
        let mut ifaces: HashMap<_, u32, IfaceEntry<[u8; 4]>> =
            HashMap::try_from(Map::HashMap(map(rig, "cwy_ifaces")?))?;
        ifaces.remove(&index)?;
        Ok(Box::new(move |_, _| Ok(ifaces.get(&index, 0).is_ok())))
    })
}

#[test]
fn a_pods_account() -> Result<()> {
    is_mended(|rig, pod| {
        let mut usage: HashMap<_, [u8; 4], Usage> = HashMap::try_from(Map::HashMap(map(rig, "cwy_usage")?))?;
        usage.remove(&pod.addr.octets())?;
        Ok(Box::new(move |_, pod| {
            Ok(usage.get(&pod.addr.octets(), 0).is_ok())
        }))
    })
}

#[test]
fn a_range_in_cwy_ranges() -> Result<()> {
    is_mended(|rig, _| {
        // Key of the stock list's first range in the list in force.
        let config: Array<_, Config<[u8; 4]>> = Array::try_from(Map::Array(map(rig, "cwy_cfg")?))?;
        let list = config.get(&0, 0)?.range_list.to_string();
        let pin = pins(rig).join("maps/cwy_ranges").display().to_string();
        let key = ["16", "0", "0", "0", &list, "10", "0", "0", "0"];
        let arguments: Vec<&str> = ["map", "delete", "pinned", &pin, "key"]
            .into_iter()
            .chain(key)
            .collect();
        rig.node.ns.output("bpftool", &arguments)?;
        Ok(Box::new(|rig, _| {
            let ranges = rig.node.causeway_json("ranges")?;
            Ok(ranges.to_string().contains("10.0.0.0/8"))
        }))
    })
}

#[test]
fn a_reserved_port() -> Result<()> {
    is_mended(|rig, _| {
        // NodePort 30,016 is bit 0 of word 469.
        const WORD: u32 = 30_016 / 64;
        let mut ports: Array<_, PortWord> = Array::try_from(Map::Array(map(rig, "cwy_ports")?))?;
        let before = ports.get(&WORD, 0)?;
        ensure!(before.reserved != 0, "word {WORD} has no NodePort");
        ports.set(WORD, PortWord { reserved: 0 }, 0)?;
        Ok(Box::new(move |_, _| Ok(ports.get(&WORD, 0)? == before)))
    })
}

#[test]
fn the_quota_and_the_address_in_cwy_cfg() -> Result<()> {
    is_mended(|rig, _| {
        let mut map: Array<_, Config<[u8; 4]>> = Array::try_from(Map::Array(map(rig, "cwy_cfg")?))?;
        let before = map.get(&0, 0)?;
        let changed = Config {
            pod_quota: 1,
            uplink_mtu: 9000,
            ..before
        };
        map.set(0, changed, 0)?;
        Ok(Box::new(move |_, _| Ok(map.get(&0, 0)? == before)))
    })
}

/// The file has again what it had.
fn damaged(rig: &Rig, path: &str, damage: Option<&str>) -> Result<Repaired> {
    let file = rig.node.root.join(path);
    let before = fs::read(&file)?;
    match damage {
        Some(damage) => fs::write(&file, damage)?,
        None => fs::remove_file(&file)?,
    }
    Ok(Box::new(move |_, _| {
        Ok(fs::read(&file).unwrap_or_default() == before)
    }))
}

#[test]
fn a_state_of_endpoints_that_was_emptied() -> Result<()> {
    is_mended(|rig, _| damaged(rig, ENDPOINTS, Some("")))
}

#[test]
fn a_state_of_endpoints_that_was_garbled() -> Result<()> {
    is_mended(|rig, _| damaged(rig, ENDPOINTS, Some("{\"Network\":")))
}

#[test]
fn a_state_of_endpoints_that_was_deleted() -> Result<()> {
    is_mended(|rig, _| damaged(rig, ENDPOINTS, None))
}

#[test]
fn leases_that_were_emptied() -> Result<()> {
    is_mended(|rig, _| damaged(rig, LEASES, Some("")))
}

#[test]
fn leases_that_were_garbled() -> Result<()> {
    is_mended(|rig, _| damaged(rig, LEASES, Some("no JSON")))
}

/// The connections of a pod end with its interface: they are no fault of the repair.
#[test]
fn an_interface_that_was_deleted_is_made_again_with_address_and_mac() -> Result<()> {
    let rig = Rig::causeway()?;
    let _echo = Echo::start(&rig.fabric.internet, 7)?;
    let server = SocketAddrV4::new(INTERNET, 7);
    let name = "named";
    let ns = causeway_tests::netns::Netns::new()?;
    let place = rig.node.root.join("/run/netns/named");
    fs::create_dir_all(place.parent().context("a parent")?)?;
    fs::write(&place, "")?;
    rustix::mount::mount_bind(ns.path(), &place)?;
    rig.node.plugin("ADD", name, &place.display().to_string())?;
    let mac = ns.mac("eth0")?;
    let mut agent = Agent::start(&rig.node)?;
    Tcp::connect(&ns, server)?.chat(3)?;
    let links = rig.node.ns.json("ip", &["-j", "link", "show", "type", "veth"])?;
    let host_if = links
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|link| link["ifname"].as_str())
        .find(|name| name.starts_with("azv"))
        .context("no host interface")?
        .to_owned();
    rig.node.ns.ip(&format!("link del {host_if}"))?;
    agent.wait_for("interface", |_| Ok(Tcp::connect(&ns, server).is_ok()))?;
    Tcp::connect(&ns, server)?.chat(3)?;
    ensure!(ns.mac("eth0")? == mac, "another MAC");
    agent.wait_for("readiness", |agent| Ok(agent.get("/readyz").is_ok()))?;
    rig.node.plugin("DEL", name, &place.display().to_string())?;
    ensure!(ns.mac("eth0").is_err(), "the DEL left the interface");
    rustix::mount::unmount(&place, rustix::mount::UnmountFlags::DETACH)?;
    agent.end()
}

/// Whoever unloads means it: nothing is loaded until a pod asks for it.
#[test]
fn a_datapath_that_was_unloaded_stays_so_until_the_next_pod() -> Result<()> {
    let rig = Rig::causeway()?;
    let pod = rig.pod("a")?;
    let mut agent = Agent::start(&rig.node)?;
    rig.node.remove(&pod)?;
    rig.node.causeway(&["unload"])?;
    let before = agent.metric("causeway_reconcile_passes_total")?;
    agent.wait_for("three more passes", |agent| {
        Ok(agent.metric("causeway_reconcile_passes_total")? >= before + 3)
    })?;
    ensure!(!pins(&rig).exists(), "loaded again: {}", agent.log());
    let pod = rig.pod("b")?;
    let _echo = Echo::start(&rig.fabric.internet, 7)?;
    Tcp::connect(&pod.ns, SocketAddrV4::new(INTERNET, 7))?.chat(3)?;
    agent.wait_for("a loaded datapath", |agent| {
        Ok(agent.metric("causeway_datapath_loaded")? > 0)
    })?;
    agent.end()
}

/// A pod's new sandbox has the interface's name; the endpoint of the old one is there until its DEL comes.
#[test]
fn an_outdated_endpoint_of_the_same_interface_costs_the_pod_nothing() -> Result<()> {
    let rig = Rig::causeway()?;
    let pod = rig.pod("a")?;
    let file = rig.node.root.join(ENDPOINTS);
    let text = fs::read_to_string(&file)?;
    let mut state: serde_json::Value = serde_json::from_str(&text)?;
    let endpoints = state
        .pointer_mut("/Network/ExternalInterfaces/eth0/Networks/azure/Endpoints")
        .and_then(serde_json::Value::as_object_mut)
        .context("no endpoints")?;
    let mut outdated = endpoints.values().next().context("no endpoint")?.clone();
    let address = outdated["IPAddresses"][0]["IP"].take();
    ensure!(address == pod.addr.to_string(), "{address}");
    outdated["IPAddresses"][0]["IP"] = "10.240.0.20".into();
    outdated["ContainerID"] = "outdated".into();
    outdated["MacAddress"] = "AgAAAAAB".into();
    for id in ["0-eth0", "z-eth0"] {
        outdated["Id"] = id.into();
        endpoints.insert(id.to_owned(), outdated.clone());
    }
    fs::write(&file, state.to_string())?;
    let _echo = Echo::start(&rig.fabric.internet, 7)?;
    let mut tcp = Tcp::connect(&pod.ns, SocketAddrV4::new(INTERNET, 7))?;
    let mut agent = Agent::start(&rig.node)?;
    let before = agent.metric("causeway_reconcile_passes_total")?;
    agent.wait_for("two more passes", |agent| {
        tcp.chat(1)?;
        Ok(agent.metric("causeway_reconcile_passes_total")? >= before + 2)
    })?;
    ensure!(!agent.log().contains("put right"), "{}", agent.log());
    let pods = rig.node.causeway_json("pods")?.to_string();
    ensure!(!pods.contains("10.240.0.20"), "{pods}");
    agent.end()
}

/// Nobody was there when the pins went: the datapath is loaded anew for the pods.
#[test]
fn pods_that_have_lost_their_datapath_while_no_agent_ran_are_served_again() -> Result<()> {
    let rig = Rig::causeway()?;
    let pod = rig.pod("a")?;
    fs::remove_dir_all(pins(&rig))?;
    let mut agent = Agent::start(&rig.node)?;
    let _echo = Echo::start(&rig.fabric.internet, 7)?;
    let server = SocketAddrV4::new(INTERNET, 7);
    agent.wait_for("service", |_| Ok(Tcp::connect(&pod.ns, server).is_ok()))?;
    agent.wait_for("readiness", |agent| Ok(agent.get("/readyz").is_ok()))?;
    agent.end()
}
