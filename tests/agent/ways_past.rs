//! Routes that send pods' packets out by another interface than the uplink: what is to be masqueraded leaves with the node's
//! address there as well.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket},
    time::Duration,
};

use anyhow::{Result, ensure};
use causeway_tests::{
    agent::Agent,
    dual_stack::Connection,
    fabric::{INTERNET, NODE, VNET},
    netns::{Netns, connect},
    node::{Datapath, Node},
    rig::Rig,
};

use super::exact_rule::{FILE, GUEST, NODE_AT_SITE, Place, SITE};

/// An address that a container of somebody else's has.
const CONTAINER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 77);

#[test]
fn pods_leave_by_another_card_with_its_address_and_nobody_else_is_touched() -> Result<()> {
    let place = Place::new(Datapath::Causeway)?;
    let node = &place.rig.node;
    let seen = |to| place.seen(&place.pod.ns, place.pod.addr, to);
    ensure!(seen(SITE)? == place.pod.addr, "the rule is not the agent's doing");
    ensure!(
        node.causeway(&["doctor"])
            .is_err_and(|error| error.to_string().contains("CWY029"))
    );
    let mut agent = Agent::start(node)?;
    agent.wait_for("the rule", |_| Ok(seen(SITE)? == NODE_AT_SITE))?;
    ensure!(place.seen(&place.guest, GUEST, SITE)? == GUEST);
    // A container's network is of the node, and knows the pod.
    node.ns.ip(&format!("route add {CONTAINER} dev guest"))?;
    place.guest.ip(&format!("addr add {CONTAINER}/32 dev eth0"))?;
    let server = place.guest.bind(|| UdpSocket::bind((CONTAINER, 53)))?;
    server.set_read_timeout(Some(Duration::from_secs(2)))?;
    let client = place.pod.ns.bind(|| UdpSocket::bind((place.pod.addr, 0)))?;
    client.send_to(b"who am I", (CONTAINER, 53))?;
    let (_, source) = server.recv_from(&mut [0; 64])?;
    ensure!(source.ip() == place.pod.addr, "{source}");
    ensure!(place.seen(&place.guest, GUEST, INTERNET)? == GUEST);
    let before = node.count("snat_promoted")?;
    ensure!(seen(INTERNET)? == NODE && seen(VNET)? == place.pod.addr);
    ensure!(
        node.count("snat_promoted")? == before + 1,
        "the programs had the uplink's"
    );
    let told = node.causeway(&[
        "explain",
        &place.pod.addr.to_string(),
        &format!("{SITE}:53"),
        "udp",
    ])?;
    ensure!(
        told.contains("leaves by eth1") && !told.contains("to_uplink"),
        "{told}"
    );
    let doctor = node
        .causeway(&["doctor"])
        .unwrap_or_else(|error| error.to_string());
    ensure!(!doctor.contains("CWY029"), "{doctor}");
    agent.end()
}

#[test]
fn the_rule_comes_and_goes_with_the_routes_that_need_it() -> Result<()> {
    let place = Place::new(Datapath::Causeway)?;
    let node = &place.rig.node;
    let mut agent = Agent::start(node)?;
    let has_tables = || Ok(!place.tables()?.is_empty());
    let has_none = || Ok(place.tables()?.is_empty());
    agent.wait_for("the rule", |_| has_tables())?;
    // Containers of others are on the node, whatever their addresses.
    let containers = "link add docker0 type bridge\naddr add 172.17.0.1/16 dev docker0\nlink set docker0 up";
    node.ns.ip(&format!("route del {SITE}\n{containers}"))?;
    agent.wait_for("no rule", |_| has_none())?;
    let by_card = "via 198.19.0.1 dev eth1";
    for (route, no_route) in [
        (
            format!("route add {SITE} nexthop {by_card} nexthop {by_card} weight 2"),
            format!("route del {SITE}"),
        ),
        (
            format!("route add {SITE} {by_card} table 700"),
            "route flush table 700".to_owned(),
        ),
        (
            format!("route add 0.0.0.0/1 {by_card}"),
            "route del 0.0.0.0/1".to_owned(),
        ),
    ] {
        node.ns.ip(&route)?;
        agent.wait_for(&route, |_| has_tables())?;
        node.ns.ip(&no_route)?;
        agent.wait_for(&no_route, |_| has_none())?;
    }
    // What the pods may reach with their own addresses needs none.
    place
        .rig
        .node
        .root
        .write(FILE, "excludedRanges: [198.18.0.0/15]\n")?;
    agent.wait_for("the list", |agent| {
        Ok(agent.log().contains("the configuration is in force"))
    })?;
    node.ns.ip(&format!(
        "route add {SITE} {by_card}\nroute add 192.0.2.200 {by_card}"
    ))?;
    agent.wait_for("another destination", |_| has_tables())?;
    node.ns.ip("route del 192.0.2.200")?;
    agent.wait_for("no other destination", |_| has_none())?;
    // Nor does a route that another one goes before.
    node.ns.ip(&format!("route add default {by_card} metric 4000"))?;
    two_passes(&mut agent, node)?;
    ensure!(has_none()?);
    agent.end()
}

#[test]
fn who_unloads_the_datapath_is_not_given_the_rule_back() -> Result<()> {
    let place = Place::new(Datapath::Causeway)?;
    let node = &place.rig.node;
    let mut agent = Agent::start(node)?;
    agent.wait_for("the rule", |_| Ok(!place.tables()?.is_empty()))?;
    node.causeway(&["unload"])?;
    ensure!(place.tables()?.is_empty());
    two_passes(&mut agent, node)?;
    ensure!(place.tables()?.is_empty());
    agent.end()?;
    // Nor is it by the next one, while no pod comes.
    node.remove(&place.pod)?;
    let mut agent = Agent::start(node)?;
    two_passes(&mut agent, node)?;
    ensure!(place.tables()?.is_empty());
    agent.end()
}

/// Waits until the agent has looked at everything that is there now: what it was at when it was asked may be older.
fn two_passes(agent: &mut Agent, node: &Node) -> Result<()> {
    for name in ["first", "second"] {
        let passes = agent.metric("causeway_reconcile_passes_total")?;
        node.ns.ip(&format!("link add {name} type bridge"))?;
        agent.wait_for("a pass", |agent| {
            Ok(agent.metric("causeway_reconcile_passes_total")? > passes)
        })?;
        node.ns.ip(&format!("link del {name}"))?;
    }
    Ok(())
}

/// A host behind the node's second network card, and the node there.
const SITE_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 5, 0, 0, 0, 0, 0x10);
const NODE_AT_SITE_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 5, 0, 0, 0, 0, 0, 4);

/// A second network card with a host behind it.
fn second_card(node: &Netns) -> Result<Netns> {
    let site = Netns::new()?;
    connect(&site, "eth0", node, "eth1")?;
    for (ns, name) in [(&site, "eth0"), (node, "eth1")] {
        ns.sysctl(&format!("net/ipv6/conf/{name}/accept_dad"), "0")?;
        ns.sysctl(&format!("net/ipv6/conf/{name}/disable_ipv6"), "0")?;
    }
    site.ip(&format!(
        "addr add fd00:5::1/64 dev eth0 nodad\naddr add {SITE_V6}/128 dev eth0 nodad\nroute add default via {NODE_AT_SITE_V6}"
    ))?;
    node.ip(&format!(
        "addr add {NODE_AT_SITE_V6}/64 dev eth1 nodad\nroute add 2001:db8:5::/64 via fd00:5::1 dev eth1"
    ))?;
    Ok(site)
}

#[test]
fn pods_ipv6_leaves_by_another_card_with_its_address_where_it_is_masqueraded() -> Result<()> {
    let rig = Rig::masquerading_ipv6()?;
    let node = &rig.node;
    let site = second_card(&node.ns)?;
    let pod = rig.pod("a")?;
    let seen = || -> Result<IpAddr> {
        let connection = Connection::open(&pod.ns, &site, SITE_V6, 7000)?;
        Ok(connection.server.peer_addr()?.ip())
    };
    ensure!(seen()? == pod.addr_v6()?, "the rule is not the agent's doing");
    node.root.write(FILE, "masqueradeIPv6: true\n")?;
    let mut agent = Agent::start(node)?;
    let mut old = Connection::open(&pod.ns, &site, SITE_V6, 7001)?;
    agent.wait_for("the rule", |_| Ok(seen()? == NODE_AT_SITE_V6))?;
    old.chat(5)?;
    let tables = node.ns.output("nft", &["list", "tables"])?;
    ensure!(
        tables.contains("ip6 causeway") && !tables.contains("table ip causeway"),
        "{tables}"
    );
    node.root.write(FILE, "{}\n")?;
    agent.wait_for("no rule", |_| Ok(seen()? == pod.addr_v6()?))?;
    agent.end()
}
