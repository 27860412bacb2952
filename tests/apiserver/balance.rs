//! Without a load balancer of the cloud the node itself spreads connections over the API servers.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddrV4},
    time::Duration,
};

use anyhow::{Result, ensure};
use causeway_tests::delegated::{NOBODYS, SERVERS};

use crate::{
    clients::{Watch, is_refused},
    control_plane::PORTS,
    scene::{SERVICE, Scene, VIP},
};

fn scene() -> Result<Scene> {
    Scene::new("probe: {intervalSeconds: 1, timeoutSeconds: 1, unhealthyAfter: 2}")
}

fn by_server(watches: &[Watch]) -> BTreeMap<Ipv4Addr, usize> {
    let mut counts = BTreeMap::new();
    for watch in watches {
        *counts.entry(*watch.server.ip()).or_default() += 1;
    }
    counts
}

#[test]
fn pods_and_the_node_are_spread_over_all_and_seen_with_their_own_addresses() -> Result<()> {
    let scene = scene()?;
    for port in &PORTS[..2] {
        for ns in [&scene.pod.ns, &scene.rig.node.ns] {
            let mut watches = scene.connect(ns, SocketAddrV4::new(NOBODYS, *port), 30)?;
            for watch in &mut watches {
                for _ in 0..3 {
                    watch.chat()?;
                }
                ensure!(
                    watch.seen_as == watch.local,
                    "{} is seen as {}",
                    watch.local,
                    watch.seen_as
                );
            }
            let counts = by_server(&watches);
            // One of three has none of thirty with a probability of 1.6e-5.
            ensure!(counts.len() == SERVERS.len(), "{counts:?}");
        }
    }
    // A pod's connections are carried.
    let before = scene.rig.node.count("carried_to_uplink")?;
    let mut watch = scene.trust.connect(&scene.pod.ns, VIP)?;
    for _ in 0..5 {
        watch.chat()?;
    }
    ensure!(scene.rig.node.count("carried_to_uplink")? >= before + 5);
    ensure!(scene.rig.leaks().is_empty());
    Ok(())
}

/// kube-proxy translates the ClusterIP of `kubernetes` to the virtual address, and the node spreads what comes out.
#[test]
fn the_services_cluster_ip_leads_to_a_backend_too() -> Result<()> {
    let scene = scene()?;
    for ns in [&scene.pod.ns, &scene.rig.node.ns] {
        let mut watches = scene.connect(ns, SERVICE, 12)?;
        watches.extend(scene.connect(ns, VIP, 12)?);
        for watch in &mut watches {
            watch.chat()?;
            ensure!(watch.seen_as == watch.local && SERVERS.contains(watch.server.ip()));
        }
    }
    Ok(())
}

#[test]
fn a_backend_that_goes_gets_no_more_connections_and_those_it_had_end_after_the_drain() -> Result<()> {
    let mut scene = scene()?;
    let mut watches = scene.connect(&scene.pod.ns, VIP, 18)?;
    watches.extend(scene.connect(&scene.rig.node.ns, VIP, 18)?);
    watches.extend(scene.connect(&scene.pod.ns, SERVICE, 18)?);
    let gone = SERVERS[1];
    if let Some(server) = &mut scene.servers[1] {
        server.stop_listening();
    }
    scene.wait_for_health([true, false, true])?;
    let new = scene.connect(&scene.pod.ns, VIP, 20)?;
    ensure!(!by_server(&new).contains_key(&gone), "{:?}", by_server(&new));
    let (its, others): (Vec<_>, Vec<_>) = watches.into_iter().partition(|watch| *watch.server.ip() == gone);
    ensure!(!its.is_empty());
    for mut watch in its {
        watch.wait_for_reset(Duration::from_secs(10))?;
    }
    for mut watch in others.into_iter().chain(new) {
        watch.chat()?;
    }
    scene.servers[1] = None;
    scene.servers[1] = Some(scene.plane.serve(gone)?);
    scene.wait_for_health([true; 3])?;
    let again = scene.connect(&scene.pod.ns, VIP, 30)?;
    ensure!(by_server(&again).contains_key(&gone));
    Ok(())
}

#[test]
fn without_a_healthy_backend_a_connection_is_refused_at_once() -> Result<()> {
    let mut scene = scene()?;
    let mut watch = scene.trust.connect(&scene.pod.ns, VIP)?;
    watch.chat()?;
    scene.servers.clear();
    scene.wait_for_health([false; 3])?;
    // What the agent knows is in force a moment later: until then the servers' host refuses.
    let node = &scene.rig.node;
    scene.agent.wait_for("the programs to refuse", |_| {
        is_refused(&node.ns, VIP)?;
        Ok(node.count("no_backend")? > 0)
    })?;
    let before = node.count("no_backend")?;
    for ns in [&scene.pod.ns, &scene.rig.node.ns] {
        is_refused(ns, VIP)?;
        is_refused(ns, SERVICE)?;
    }
    ensure!(scene.rig.node.count("no_backend")? >= before + 4);
    ensure!(scene.health()? == [false; 3]);
    let status = scene.rig.node.causeway(&["apiserver", "status"])?;
    ensure!(
        status.contains("not healthy") && status.contains("refused"),
        "{status}"
    );
    Ok(())
}

/// A connection to a backend itself stands beside those to the virtual address.
#[test]
fn a_backend_can_be_reached_by_its_own_address_as_well() -> Result<()> {
    let scene = scene()?;
    for ns in [&scene.pod.ns, &scene.rig.node.ns] {
        let mut watches = scene.connect(ns, VIP, 6)?;
        for server in SERVERS {
            watches.extend(scene.connect(ns, SocketAddrV4::new(server, 443), 3)?);
        }
        for watch in &mut watches {
            watch.chat()?;
            ensure!(watch.seen_as == watch.local);
        }
    }
    Ok(())
}
