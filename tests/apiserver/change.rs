//! The API server's address changes under live connections.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use causeway_tests::{
    agent::Agent,
    delegated::{SUBNET, VIPS},
    echo::Echo,
    fabric::{INTERNET, VNET},
    netns::Netns,
    node::{Node, Pod},
    rig::Rig,
    rules,
    talk::Tcp,
};

use crate::{
    clients::{Trust, Watch, is_refused},
    control_plane::ControlPlane,
};

/// The ClusterIP of `kubernetes`.
const SERVICE: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 1), 443);

pub(crate) struct Scene {
    pub(crate) rig: Rig,
    pods: [Pod; 2],
    pub(crate) plane: ControlPlane,
    pub(crate) trust: Trust,
    agent: Agent,
}

pub(crate) fn scene(drain: u32) -> Result<Scene> {
    let rig = Rig::causeway()?;
    let agent = Agent::start(&rig.node)?;
    let pods = [rig.pod("a")?, rig.pod("b")?];
    let plane = ControlPlane::new(&rig.fabric)?;
    let trust = Trust::new(&plane.certificate)?;
    set(
        &rig.node,
        &[
            "--subnet",
            SUBNET,
            "--drain",
            &drain.to_string(),
            "--vip",
            &VIPS[0].to_string(),
        ],
    )?;
    Ok(Scene {
        rig,
        pods,
        plane,
        trust,
        agent,
    })
}

/// Says something of the API server. Returns how long it took until it was in force.
pub(crate) fn set(node: &Node, what: &[&str]) -> Result<Duration> {
    let begun = Instant::now();
    let said = node.causeway(&[&["apiserver", "set"], what].concat())?;
    ensure!(said.starts_with("in force"), "{said}");
    Ok(begun.elapsed())
}

pub(crate) fn at(vip: Ipv4Addr) -> SocketAddrV4 {
    SocketAddrV4::new(vip, 443)
}

impl Scene {
    /// Everybody who may have a connection.
    pub(crate) fn everybody(&self) -> [&Netns; 3] {
        [&self.pods[0].ns, &self.pods[1].ns, &self.rig.node.ns]
    }

    fn connect_all(&self, to: SocketAddrV4) -> Result<Vec<Watch>> {
        self.everybody()
            .iter()
            .map(|ns| self.trust.connect(ns, to))
            .collect()
    }
}

#[test]
fn connections_to_the_old_address_drain_and_are_reset_and_no_others_are() -> Result<()> {
    let scene = scene(3)?;
    let _servers = [scene.plane.serve(VIPS[0])?, scene.plane.serve(VIPS[1])?];
    rules::forbid_invalid(&scene.rig.node.ns)?;
    rules::cluster_ip(&scene.rig.node.ns, SERVICE, at(VIPS[0]))?;
    let mut old = scene.connect_all(at(VIPS[0]))?;
    old.extend(scene.connect_all(SERVICE)?);
    let mut others = Vec::new();
    let _echoes = [
        Echo::start(&scene.rig.fabric.internet, 7)?,
        Echo::start(&scene.rig.fabric.vnet, 7)?,
    ];
    for ns in scene.everybody() {
        for to in [INTERNET, VNET] {
            others.push(Tcp::connect(ns, SocketAddrV4::new(to, 7))?);
        }
    }
    let set_at = Instant::now();
    let took = set(&scene.rig.node, &["--vip", &VIPS[1].to_string()])?;
    ensure!(took < Duration::from_secs(1), "in force after {took:?}");
    for ns in scene.everybody() {
        is_refused(ns, at(VIPS[0]))?;
        is_refused(ns, SERVICE).context("the ClusterIP still leads to the old address")?;
    }
    let mut new = scene.connect_all(at(VIPS[1]))?;
    for watch in old.iter_mut().chain(&mut new) {
        watch.chat().context("while it drains")?;
    }
    ensure!(
        set_at.elapsed() < Duration::from_secs(3),
        "the machine is too slow for this test"
    );
    for watch in &mut old {
        watch.wait_for_reset(Duration::from_secs(10))?;
    }
    for watch in &mut new {
        watch.chat()?;
    }
    for other in &mut others {
        other.chat(3)?;
    }
    ensure!(scene.rig.node.count("drained")? > 0 && scene.rig.node.count("retired_address")? > 0);
    ensure!(scene.rig.leaks().is_empty());
    Ok(())
}

/// The agent that was killed while connections drain has a successor, which ends them.
#[test]
fn a_drain_outlives_the_agent() -> Result<()> {
    let scene = scene(2)?;
    let _servers = [scene.plane.serve(VIPS[0])?, scene.plane.serve(VIPS[1])?];
    let mut old = scene.connect_all(at(VIPS[0]))?;
    set(&scene.rig.node, &["--vip", &VIPS[1].to_string()])?;
    scene.agent.kill()?;
    let _agent = Agent::start(&scene.rig.node)?;
    is_refused(&scene.pods[0].ns, at(VIPS[0]))?;
    for watch in &mut old {
        watch.wait_for_reset(Duration::from_secs(10))?;
    }
    Ok(())
}

#[test]
fn who_comes_back_in_time_loses_nothing() -> Result<()> {
    let scene = scene(2)?;
    let _servers = [scene.plane.serve(VIPS[0])?, scene.plane.serve(VIPS[1])?];
    let mut first = scene.connect_all(at(VIPS[0]))?;
    set(&scene.rig.node, &["--vip", &VIPS[1].to_string()])?;
    let mut second = scene.connect_all(at(VIPS[1]))?;
    set(&scene.rig.node, &["--vip", &VIPS[0].to_string()])?;
    is_refused(&scene.pods[0].ns, at(VIPS[1]))?;
    for watch in &mut second {
        watch.wait_for_reset(Duration::from_secs(10))?;
    }
    thread::sleep(Duration::from_secs(1));
    for watch in &mut first {
        watch.chat()?;
    }
    Ok(())
}

/// What changes is who may come in, not the virtual address: connections to that do not notice.
#[test]
fn a_private_cluster_has_no_public_endpoint() -> Result<()> {
    let scene = scene(1)?;
    let public = INTERNET.to_string();
    let _server = scene.plane.serve(VIPS[0])?;
    let _echo = Echo::start(&scene.rig.fabric.internet, 443)?;
    set(
        &scene.rig.node,
        &["--public-address", &public, "--mode", "public"],
    )?;
    let mut private = scene.connect_all(at(VIPS[0]))?;
    let mut outside = Tcp::connect(&scene.pods[0].ns, at(INTERNET))?;
    outside.chat(2)?;
    for _ in 0..2 {
        set(&scene.rig.node, &["--mode", "private"])?;
        is_refused(&scene.pods[0].ns, at(INTERNET))?;
        is_refused(&scene.rig.node.ns, at(INTERNET))?;
        for watch in &mut private {
            watch.chat()?;
        }
        let end = Instant::now() + Duration::from_secs(10);
        while outside.chat(1).is_ok() {
            ensure!(
                Instant::now() < end,
                "a connection to the public endpoint goes on"
            );
            thread::sleep(Duration::from_millis(50));
        }
        set(&scene.rig.node, &["--mode", "public"])?;
        outside = Tcp::connect(&scene.pods[0].ns, at(INTERNET))?;
        outside.chat(1)?;
    }
    ensure!(scene.rig.leaks().is_empty());
    Ok(())
}

/// What `status` says: which ports answer from here, and who is connected to which address.
#[test]
fn status_shows_ports_and_connections() -> Result<()> {
    let scene = scene(30)?;
    let _servers = [scene.plane.serve(VIPS[0])?, scene.plane.serve(VIPS[1])?];
    let _old = scene.connect_all(at(VIPS[0]))?;
    set(&scene.rig.node, &["--vip", &VIPS[1].to_string()])?;
    let _new = scene.connect_all(at(VIPS[1]))?;
    let status = scene.rig.node.causeway(&["apiserver", "status", "--json"])?;
    let status: serde_json::Value = serde_json::from_str(&status)?;
    let answering = |port: u16| {
        let ports = status["ports"].as_array().into_iter().flatten();
        ports
            .filter(|answer| answer["port"] == port && answer["milliseconds"].is_f64())
            .count()
    };
    for port in [443, 4443, 9988] {
        ensure!(answering(port) == 1, "{port}: {status:#}");
    }
    let connections = status["connections"].as_array().cloned().unwrap_or_default();
    for (vip, what) in [(VIPS[1], "in use"), (VIPS[0], "drains")] {
        let row = connections.iter().find(|row| row["address"] == vip.to_string());
        let row = row.with_context(|| format!("{vip}: {status:#}"))?;
        ensure!(
            row["what"] == what && row["connections"].as_u64() >= Some(3),
            "{row}"
        );
    }
    Ok(())
}

#[test]
fn a_wrong_word_changes_nothing() -> Result<()> {
    let scene = scene(1)?;
    let before = scene.rig.node.causeway_json("ranges")?;
    for (wrong, part) in [
        (["--vip", "10.9.9.9"], "none of the subnets"),
        (["--port", "0"], "ports"),
        (["--backend", "10.226.0.4"], "is the vip"),
    ] {
        let error = set(&scene.rig.node, &wrong).unwrap_err().to_string();
        ensure!(error.contains(part), "{wrong:?}: {error}");
    }
    ensure!(scene.rig.node.causeway_json("ranges")? == before);
    let status = scene.rig.node.causeway(&["apiserver", "status"])?;
    ensure!(
        status.contains(&VIPS[0].to_string()) && status.contains("does not answer"),
        "{status}"
    );
    Ok(())
}
