//! Between the API server's subnet and the node with its pods nothing is translated, and what can be carried is.

use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::{Result, ensure};
use causeway_tests::{
    agent::Agent,
    delegated::{SERVERS, SUBNET, VIPS},
    echo::Echo,
    fabric::{INTERNET, NODE},
    rig::Rig,
    talk::Tcp,
    walk::Walk,
};

use crate::{
    clients::Trust,
    control_plane::{ControlPlane, PORTS},
};

const CONFIG: &str = "/etc/causeway/config.yaml";

/// A configuration that would masquerade everything, were it not for the API server's subnet.
fn masquerade_all(rig: &Rig) -> Result<()> {
    rig.node.root.write(
        CONFIG,
        &format!(
            "excludedRanges: [192.0.2.0/24]\nmasqueradedRanges: [10.226.0.0/29, 10.0.0.0/8]\n\
             apiServer:\n  subnets: [{SUBNET}]\n  vip: {}\n",
            VIPS[0]
        ),
    )
}

#[test]
fn pods_and_the_node_reach_it_with_their_own_addresses_whatever_the_excluded_ranges_say() -> Result<()> {
    let rig = Rig::causeway()?;
    masquerade_all(&rig)?;
    let _agent = Agent::start(&rig.node)?;
    let pod = rig.pod("a")?;
    let plane = ControlPlane::new(&rig.fabric)?;
    let trust = Trust::new(&plane.certificate)?;
    let _servers = [plane.serve(VIPS[0])?, plane.serve(SERVERS[0])?];
    for address in [VIPS[0], SERVERS[0]] {
        for port in &PORTS[..2] {
            for (ns, own) in [(&pod.ns, pod.addr), (&rig.node.ns, NODE)] {
                let to = SocketAddrV4::new(address, *port);
                let mut watch = trust.connect(ns, to)?;
                ensure!(
                    (watch.seen_as, watch.server) == (watch.local, to),
                    "{} {}",
                    watch.seen_as,
                    watch.server
                );
                ensure!(*watch.local.ip() == own);
                watch.chat()?;
            }
        }
    }
    // And the internet is masqueraded as ever.
    let echo = Echo::start(&rig.fabric.internet, 7)?;
    Tcp::connect(&pod.ns, SocketAddrV4::new(INTERNET, 7))?.chat(1)?;
    ensure!(echo.seen().iter().all(|client| *client.ip() == NODE));
    Ok(())
}

#[test]
fn it_reaches_pods_and_the_kubelet_with_its_own_address_and_is_carried() -> Result<()> {
    let rig = Rig::causeway()?;
    masquerade_all(&rig)?;
    let _agent = Agent::start(&rig.node)?;
    let pod = rig.pod("a")?;
    let plane = ControlPlane::new(&rig.fabric)?;
    // A webhook, and a pod that opens a connection to the API server by the same way.
    let webhook = SocketAddrV4::new(pod.addr, 8443);
    Walk::direct(&plane.ns, &pod.ns, webhook)
        .tcp(&rig)?
        .expect_carried(VIPS[0])?;
    let server = SocketAddrV4::new(SERVERS[1], 443);
    Walk::direct(&pod.ns, &plane.ns, server)
        .tcp(&rig)?
        .expect_carried(pod.addr)?;
    let kubelet = Echo::start(&rig.node.ns, 10_250)?;
    Tcp::connect(&plane.ns, SocketAddrV4::new(NODE, 10_250))?.chat(3)?;
    ensure!(
        kubelet.seen().iter().all(|client| *client.ip() == VIPS[0]),
        "{:?}",
        kubelet.seen()
    );
    Ok(())
}

/// Without an agent the plug-in does it, by the conflist.
#[test]
fn the_conflist_may_say_where_it_is() -> Result<()> {
    let rig = Rig::causeway()?;
    let mut conflist = rig.node.plugin_config()?;
    conflist["causeway"] = serde_json::json!({"apiServer": {"subnets": [SUBNET], "vip": VIPS[0]}});
    let pod = rig.node.add_with("a", &conflist)?;
    let ranges = rig.node.causeway_json("ranges")?;
    let class = |prefix: &str| {
        let ranges = ranges["ranges"].as_array().cloned().unwrap_or_default();
        let found = ranges.iter().find(|range| range["prefix"] == prefix);
        found.map_or(String::new(), |range| {
            range["class"].as_str().unwrap_or_default().to_owned()
        })
    };
    ensure!(class(SUBNET) == "API server", "{ranges}");
    ensure!(class(&format!("{}/32", VIPS[0])) == "API server", "{ranges}");
    let plane = ControlPlane::new(&rig.fabric)?;
    let _server = plane.serve(VIPS[0])?;
    let watch = Trust::new(&plane.certificate)?.connect(&pod.ns, SocketAddrV4::new(VIPS[0], 443))?;
    ensure!(*watch.seen_as.ip() == pod.addr);
    conflist["causeway"] = serde_json::json!({"apiServer": {"vip": "not an address"}});
    let refused = rig.node.add_with("b", &conflist).unwrap_err().to_string();
    ensure!(
        refused.contains("apiServer") && refused.contains("not an address"),
        "{refused}"
    );
    let _: Ipv4Addr = pod.addr;
    Ok(())
}
