//! `exactRule`: whoever sends through the node is masqueraded as by the rule that is replaced, which is asked beside it.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddrV4, UdpSocket},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use causeway_tests::{
    agent::Agent,
    echo::Echo,
    fabric::{INTERNET, NODE, PARTNER, PEERED, VNET, WIRESERVER},
    netns::{Netns, connect},
    node::{Datapath, Pod},
    rig::Rig,
};

pub(crate) const FILE: &str = "/etc/causeway/config.yaml";
/// A guest of another bridge of the node (a container of Docker, say).
pub(crate) const GUEST: Ipv4Addr = Ipv4Addr::new(172, 18, 0, 2);
/// A further address of the node.
const FURTHER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 7);
/// A host behind the node's second network card, and the node there.
pub(crate) const SITE: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 10);
pub(crate) const NODE_AT_SITE: Ipv4Addr = Ipv4Addr::new(198, 19, 0, 4);

/// A node with a pod, a guest that is none, a further address, and a second network card.
pub(crate) struct Place {
    pub(crate) rig: Rig,
    pub(crate) guest: Netns,
    pub(crate) site: Netns,
    pub(crate) pod: Pod,
}

impl Place {
    pub(crate) fn new(datapath: Datapath) -> Result<Self> {
        let rig = Rig::unwatched(datapath, 4)?;
        let node = &rig.node.ns;
        let (guest, site) = (Netns::new()?, Netns::new()?);
        connect(&guest, "eth0", node, "guest")?;
        connect(&site, "eth0", node, "eth1")?;
        node.ip(&format!(
            "addr add 172.18.0.1/24 dev guest\naddr add {FURTHER}/32 dev lo\naddr add {NODE_AT_SITE}/16 dev eth1\n\
             route add {SITE} via 198.19.0.1 dev eth1"
        ))?;
        guest.ip(&format!(
            "addr add {GUEST}/24 dev eth0\nroute add default via 172.18.0.1"
        ))?;
        site.ip(&format!(
            "addr add 198.19.0.1/16 dev eth0\naddr add {SITE}/32 dev lo\nroute add default via {NODE_AT_SITE}"
        ))?;
        let pod = rig.pod("a")?;
        Ok(Self {
            rig,
            guest,
            site,
            pod,
        })
    }

    fn server_of(&self, addr: Ipv4Addr) -> &Netns {
        let fabric = &self.rig.fabric;
        match addr {
            INTERNET => &fabric.internet,
            PARTNER => &fabric.partner,
            WIRESERVER => &fabric.router,
            SITE => &self.site,
            _ => &fabric.vnet,
        }
    }

    /// The address that `to` sees of who sends from `own`.
    pub(crate) fn seen(&self, from: &Netns, own: Ipv4Addr, to: Ipv4Addr) -> Result<Ipv4Addr> {
        let at = SocketAddrV4::new(to, 53);
        let server = self.server_of(to).bind(|| UdpSocket::bind(at))?;
        server.set_read_timeout(Some(Duration::from_secs(2)))?;
        let client = from.bind(|| UdpSocket::bind((own, 0)))?;
        client.send_to(b"who am I", at)?;
        let (_, source) = server
            .recv_from(&mut [0; 64])
            .with_context(|| format!("nothing of {own} arrived at {to}"))?;
        match source.ip() {
            IpAddr::V4(addr) => Ok(addr),
            IpAddr::V6(addr) => anyhow::bail!("{addr} is not IPv4"),
        }
    }

    /// What every destination sees of every sender, a line each.
    fn everything(&self) -> Result<String> {
        let node = &self.rig.node.ns;
        let senders = [
            ("guest", &self.guest, GUEST),
            ("node", node, NODE),
            ("further address", node, FURTHER),
            ("pod", &self.pod.ns, self.pod.addr),
        ];
        let mut lines = Vec::new();
        for (name, ns, own) in senders {
            for to in [VNET, PEERED, INTERNET, PARTNER, WIRESERVER, SITE] {
                // The bridge takes pods past the node's routes.
                if name == "pod" && to == SITE {
                    continue;
                }
                let seen = self.seen(ns, own, to)?;
                lines.push(format!("{name} {own} -> {to}: {seen}"));
            }
        }
        Ok(lines.join("\n"))
    }
}

#[test]
fn every_sender_is_masqueraded_as_by_the_rule_that_is_replaced() -> Result<()> {
    let expected = Place::new(Datapath::BridgeMasquerade)?.everything()?;
    for (from, to, seen) in [
        ("guest", INTERNET, NODE),
        ("guest", SITE, NODE_AT_SITE),
        ("guest", VNET, GUEST),
    ] {
        let line = expected
            .lines()
            .find(|line| line.starts_with(from) && line.contains(&format!("-> {to}:")));
        ensure!(
            line.is_some_and(|line| line.ends_with(&seen.to_string())),
            "{from}: {expected}"
        );
    }
    let place = Place::new(Datapath::Causeway)?;
    ensure!(
        place.everything()? != expected,
        "without the rule nothing is missing"
    );
    place.rig.node.root.write(FILE, "exactRule: true\n")?;
    let agent = Agent::start(&place.rig.node)?;
    let found = place.everything()?;
    ensure!(
        found == expected,
        "with Causeway:\n{found}\nwith the rule:\n{expected}"
    );
    // Pods' own packets are still the programs', but where those do not see them.
    ensure!(place.rig.node.count("snat_promoted")? >= 2);
    ensure!(place.seen(&place.pod.ns, place.pod.addr, SITE)? == NODE_AT_SITE);
    agent.end()
}

#[test]
fn the_lists_are_followed_and_the_rule_goes_with_its_key() -> Result<()> {
    let place = Place::new(Datapath::Causeway)?;
    // Nothing else needs a rule of the kernel's.
    place.rig.node.ns.ip(&format!("route del {SITE}"))?;
    let root = &place.rig.node.root;
    let mut agent = Agent::start(&place.rig.node)?;
    let seen = |to| place.seen(&place.guest, GUEST, to);
    ensure!(seen(INTERNET)? == GUEST);
    root.write(
        FILE,
        "exactRule: true\nexcludedRanges: [203.0.113.0/24]\nmasqueradedRanges: [203.0.113.10/32]\n",
    )?;
    agent.wait_for("the rule", |_| Ok(seen(INTERNET)? == NODE))?;
    ensure!(seen(VNET)? == NODE, "10.0.0.0/8 is no default any more");
    root.write(FILE, "exactRule: true\nexcludedRanges: [203.0.113.0/24]\n")?;
    agent.wait_for("another list", |_| Ok(seen(INTERNET)? == GUEST))?;
    ensure!(seen(VNET)? == NODE);
    root.write(FILE, "{}\n")?;
    agent.wait_for("no rule", |_| Ok(seen(PARTNER)? == GUEST))?;
    ensure!(place.tables()?.is_empty(), "{}", place.tables()?);
    agent.end()
}

impl Place {
    pub(crate) fn tables(&self) -> Result<String> {
        self.rig.node.ns.output("nft", &["list", "tables"])
    }

    fn nft(&self, words: &str) -> Result<String> {
        let words: Vec<&str> = words.split(' ').collect();
        self.rig.node.ns.output("nft", &words)
    }
}

#[test]
fn a_rule_that_was_changed_or_flushed_is_made_again_and_unload_takes_it_away() -> Result<()> {
    let place = Place::new(Datapath::Causeway)?;
    place.rig.node.root.write(FILE, "exactRule: true\n")?;
    let mut agent = Agent::start(&place.rig.node)?;
    let is_whole = |place: &Place| -> Result<bool> {
        let listing = place.nft("list table ip causeway").unwrap_or_default();
        Ok(listing.contains("masquerade") && listing.contains("10.0.0.0"))
    };
    agent.wait_for("the rule", |_| is_whole(&place))?;
    for deed in [
        "flush ruleset",
        "flush chain ip causeway postrouting",
        "flush set ip causeway excluded",
    ] {
        place.nft(deed)?;
        ensure!(!is_whole(&place)?, "{deed} did nothing");
        agent.wait_for(deed, |_| is_whole(&place))?;
    }
    agent.wait_for("the count", |agent| {
        Ok(agent.metric("causeway_reconcile_mended_total")? >= 3)
    })?;
    // Connections keep their translation while the rule is made anew.
    place.rig.node.root.write(
        FILE,
        "exactRule: true\nexcludedRanges: [10.0.0.0/8, 192.168.0.0/16]\n",
    )?;
    agent.wait_for("another list", |_| {
        Ok(place
            .nft("list set ip causeway excluded")?
            .contains("192.168.0.0"))
    })?;
    agent.end()?;
    // The rule does not go with the agent.
    ensure!(is_whole(&place)?);
    place.rig.node.causeway(&["unload"])?;
    ensure!(place.tables()?.is_empty(), "{}", place.tables()?);
    Ok(())
}

#[test]
fn a_guests_connection_outlives_the_agent_and_a_change_of_the_list() -> Result<()> {
    let place = Place::new(Datapath::Causeway)?;
    let root = &place.rig.node.root;
    root.write(FILE, "exactRule: true\n")?;
    let mut agent = Agent::start(&place.rig.node)?;
    let at = SocketAddrV4::new(INTERNET, 7);
    let echo = Echo::on(&place.rig.fabric.internet, at)?;
    let mut stream = place.guest.bind(|| std::net::TcpStream::connect(at))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut say = |what: &[u8]| -> Result<()> {
        use std::io::{Read, Write};
        stream.write_all(what)?;
        let mut heard = vec![0; what.len()];
        stream.read_exact(&mut heard)?;
        ensure!(heard == what);
        Ok(())
    };
    say(b"first")?;
    root.write(FILE, "exactRule: true\nexcludedRanges: [0.0.0.0/0]\n")?;
    agent.wait_for("a list of everything", |_| {
        Ok(place.seen(&place.guest, GUEST, PARTNER)? == GUEST)
    })?;
    say(b"second")?;
    agent.kill()?;
    say(b"third")?;
    root.write(FILE, "exactRule: true\n")?;
    let agent = Agent::start(&place.rig.node)?;
    say(b"fourth")?;
    let seen = echo.seen();
    ensure!(
        !seen.is_empty() && seen.iter().all(|from| *from.ip() == NODE),
        "{seen:?}"
    );
    agent.end()
}

#[test]
fn a_node_without_nft_says_so_and_everything_else_goes_on() -> Result<()> {
    let place = Place::new(Datapath::Causeway)?;
    place.rig.node.root.write(FILE, "exactRule: true\n")?;
    let bin = place.rig.node.root.join("/bin");
    fs::create_dir_all(&bin)?;
    // A program of this name that cannot do it stands before the real one.
    fs::write(
        bin.join("nft"),
        "#!/bin/sh\necho 'nft: no nf_tables here' >&2\nexit 1\n",
    )?;
    fs::set_permissions(
        bin.join("nft"),
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )?;
    let path = format!("PATH={}:{}", bin.display(), std::env::var("PATH")?);
    let mut agent = Agent::start_through(&place.rig.node, &["env", &path])?;
    agent.wait_for("the fault", |agent| {
        let (status, body) = agent.ask("GET /readyz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")?;
        Ok(status == 503 && body.contains("exactRule") && body.contains("no nf_tables here"))
    })?;
    ensure!(place.seen(&place.pod.ns, place.pod.addr, INTERNET)? == NODE);
    agent.end()
}
