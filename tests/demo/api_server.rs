//! The API server moves to another address, and the node becomes its load balancer.

use std::{
    collections::BTreeMap,
    io::Read as _,
    net::{Ipv4Addr, SocketAddrV4},
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use causeway_tests::{
    agent::Agent,
    delegated::{self, NOBODYS, SERVERS, SUBNET, VIPS},
    echo::Echo,
    fabric::NODE,
    netns::Netns,
    rig::Rig,
    talk::Tcp,
};

use crate::{scenes::Pods, story::Story};

const PORT: u16 = 443;
/// How long a connection that drains may take to end.
const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) fn moves(story: &mut Story, rig: &Rig, pods: &Pods) -> Result<()> {
    story.scene("The API server moves to another address, and the node becomes its load balancer");
    let _agent = Agent::start(&rig.node)?;
    let subnet = delegated::subnet(&rig.fabric)?;
    let echoes: Vec<Echo> = VIPS
        .iter()
        .chain(&SERVERS)
        .map(|address| Echo::on(&subnet, SocketAddrV4::new(*address, PORT)))
        .collect::<Result<_>>()?;
    let [old, new] = VIPS;
    set(story, rig, &format!("--subnet {SUBNET} --drain 1 --vip {old}"))?;
    let mut watches = Vec::new();
    for ns in [&pods.web.ns, &rig.node.ns] {
        watches.push(Tcp::connect(ns, at(old))?);
    }
    set(story, rig, &format!("--vip {new}"))?;
    let is_refused = |ns: &Netns| Tcp::connect_within(ns, at(old), Duration::from_millis(500)).is_err();
    story.check(
        is_refused(&pods.web.ns) && is_refused(&rig.node.ns),
        &format!("a new connection to {old}: refused at once, for pods and for the node"),
    );
    story.check(
        watches.iter_mut().all(|watch| watch.chat(1).is_ok()),
        "those that were open go on while they drain",
    );
    let begun = Instant::now();
    let ended = watches.iter_mut().all(|watch| {
        watch.0.set_read_timeout(Some(PATIENCE)).is_ok()
            && watch.0.read(&mut [0]).is_err()
            && begun.elapsed() < PATIENCE
    });
    story.check(ended, "and are reset then, though nobody said a word");
    let reached =
        [&pods.web.ns, &rig.node.ns].map(|ns| Tcp::connect(ns, at(new)).and_then(|mut tcp| tcp.chat(2)));
    let own = [pods.web.addr, NODE];
    let seen: Vec<Ipv4Addr> = echoes[1].seen().iter().map(|client| *client.ip()).collect();
    story.check(
        reached.iter().all(Result::is_ok) && seen.iter().all(|client| own.contains(client)),
        &format!("{new} is reached, and sees their own addresses"),
    );
    let backends = SERVERS.map(|server| format!("--backend {server}")).join(" ");
    set(story, rig, &format!("--vip {NOBODYS} --port {PORT} {backends}"))?;
    let connections = (0..24).map(|_| Tcp::connect(&pods.web.ns, at(NOBODYS)));
    let connections: Vec<Tcp> = connections.collect::<Result<_>>()?;
    let by_server: BTreeMap<Ipv4Addr, usize> = SERVERS
        .iter()
        .zip(&echoes[2..])
        .map(|(server, echo)| (*server, seen_from(echo, pods.web.addr)))
        .collect();
    story.check(
        by_server.values().all(|count| *count > 0) && connections.len() == 24,
        &format!("24 connections to {NOBODYS}, which nobody has: {by_server:?}"),
    );
    story.tell("\n$ causeway apiserver status");
    story.tell(&rig.node.causeway(&["apiserver", "status"])?);
    drop(connections);
    rig.node.causeway(&["apiserver", "set", "--unset"])?;
    Ok(())
}

fn set(story: &mut Story, rig: &Rig, what: &str) -> Result<()> {
    story.tell(&format!("$ causeway apiserver set {what}"));
    let words: Vec<&str> = ["apiserver", "set"].into_iter().chain(what.split(' ')).collect();
    let said = rig.node.causeway(&words)?;
    story.tell(said.trim_end());
    ensure!(said.starts_with("in force"), "{said}");
    Ok(())
}

/// Connections of one client; the agent's probes are others.
fn seen_from(echo: &Echo, client: Ipv4Addr) -> usize {
    echo.seen().iter().filter(|seen| *seen.ip() == client).count()
}

fn at(address: Ipv4Addr) -> SocketAddrV4 {
    SocketAddrV4::new(address, PORT)
}
