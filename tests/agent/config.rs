//! Configuration under traffic: every packet is judged by the list of before or by the one of after, never by a part.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
    os::unix::fs::symlink,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use causeway_common::maps::SCHEMA;
use causeway_tests::{
    agent::Agent,
    echo::Echo,
    fabric::{INTERNET, NODE, VNET},
    node::Pod,
    rig::Rig,
    rng::{Rng, seed},
    talk::Tcp,
};

const FILE: &str = "/etc/causeway/config.yaml";
const MASQ: &str = "/etc/config/ip-masq-agent";

/// The address that a server sees of the pod, in a flow of its own.
pub(crate) fn seen_from(pod: &Pod, server: &UdpSocket, at: SocketAddrV4) -> Result<Ipv4Addr> {
    let client = pod.ns.bind(|| UdpSocket::bind("0.0.0.0:0"))?;
    client.send_to(b"who am I", at)?;
    let (_, from) = server.recv_from(&mut [0; 64]).context("nothing arrived")?;
    match from.ip() {
        std::net::IpAddr::V4(addr) => Ok(addr),
        std::net::IpAddr::V6(addr) => anyhow::bail!("{addr} is not IPv4"),
    }
}

fn server(rig: &Rig, addr: Ipv4Addr) -> Result<(UdpSocket, SocketAddrV4)> {
    let ns = if addr == INTERNET {
        &rig.fabric.internet
    } else {
        &rig.fabric.vnet
    };
    let at = SocketAddrV4::new(addr, 9);
    let socket = ns.bind(|| UdpSocket::bind(at))?;
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    Ok((socket, at))
}

/// A file of ip-masq-agent comes, changes by a swap of symbolic links as Kubernetes does it, and goes.
#[test]
fn the_list_of_ip_masq_agent_is_followed() -> Result<()> {
    let rig = Rig::causeway()?;
    let pod = rig.pod("a")?;
    let (vnet, at) = server(&rig, VNET)?;
    let mut agent = Agent::start(&rig.node)?;
    let mut becomes = |what: &str, expected: Ipv4Addr| {
        agent.wait_for(what, |_| Ok(seen_from(&pod, &vnet, at)? == expected))
    };
    becomes("the default", pod.addr)?;
    let volume = rig.node.root.join("/etc/config");
    let write = |version: &str, text: &str| -> Result<()> {
        fs::create_dir_all(volume.join(version))?;
        fs::write(volume.join(version).join("ip-masq-agent"), text)?;
        symlink(version, volume.join("..data_tmp"))?;
        fs::rename(volume.join("..data_tmp"), volume.join("..data"))?;
        Ok(())
    };
    write("..1", "nonMasqueradeCIDRs: [192.168.0.0/16]\n")?;
    symlink("..data/ip-masq-agent", volume.join("ip-masq-agent"))?;
    becomes("a list without the VNet", NODE)?;
    write("..2", "nonMasqueradeCIDRs: [10.0.0.0/8]\n")?;
    becomes("a list with the VNet", pod.addr)?;
    write("..3", "nonMasqueradeCIDRs: []\n")?;
    becomes("an empty list", NODE)?;
    fs::remove_file(volume.join("ip-masq-agent"))?;
    becomes("the default again", pod.addr)?;
    agent.end()
}

/// What the kernel says of the pinned tables: flows, and keys in the order in which they began.
fn table_sizes(rig: &Rig) -> Result<[u64; 2]> {
    let mut sizes = [0; 2];
    for (size, map) in sizes.iter_mut().zip(["cwy_flows", "cwy_age_queue"]) {
        let pin = rig
            .node
            .root
            .join(&format!("/sys/fs/bpf/causeway/v{SCHEMA}/maps/{map}"));
        let pin = pin.display().to_string();
        let shown = rig
            .node
            .ns
            .json("bpftool", &["-j", "map", "show", "pinned", &pin])?;
        *size = shown["max_entries"].as_u64().context("no max_entries")?;
    }
    Ok(sizes)
}

/// Another size waits for the next load, and no flow is lost to it.
#[test]
fn the_table_is_made_for_as_many_flows_as_was_chosen() -> Result<()> {
    let rig = Rig::causeway()?;
    let chosen = |flows: &str| rig.node.root.write(FILE, &format!("maxFlows: {flows}\n"));
    chosen("20000")?;
    let mut agent = Agent::start(&rig.node)?;
    let pod = rig.pod("a")?;
    assert_eq!(table_sizes(&rig)?, [40_000, 20_000]);
    let status = rig.node.causeway_json("status")?;
    assert_eq!(
        (&status["flows"]["capacity"], &status["usage"]["podQuota"]),
        (&40_000.into(), &5_000.into())
    );
    let _echo = Echo::start(&rig.fabric.internet, 8080)?;
    let mut flow = Tcp::connect(&pod.ns, SocketAddrV4::new(INTERNET, 8080))?;
    flow.chat(5)?;
    chosen("600000")?;
    agent.wait_for("the quota of a usual table", |_| {
        let status = rig.node.causeway_json("status")?;
        Ok(status["usage"]["podQuota"] == 65_536)
    })?;
    assert!(
        agent.log().contains("until the datapath is loaded anew"),
        "{}",
        agent.log()
    );
    assert_eq!(agent.metric("causeway_flows_max")?, 20_000);
    rig.node.causeway(&["upgrade", "--again"])?;
    assert_eq!(table_sizes(&rig)?, [40_000, 20_000]);
    flow.chat(5)?;
    rig.node.remove(&pod)?;
    rig.node.causeway(&["unload"])?;
    rig.pod("b")?;
    assert_eq!(table_sizes(&rig)?, [1_200_000, 600_000]);
    agent.end()
}

#[test]
fn a_wrong_file_changes_nothing_and_is_named_with_its_line() -> Result<()> {
    let rig = Rig::causeway()?;
    let pod = rig.pod("a")?;
    let (vnet, at) = server(&rig, VNET)?;
    rig.node
        .root
        .write(MASQ, "nonMasqueradeCIDRs: [192.168.0.0/16]\n")?;
    let mut agent = Agent::start(&rig.node)?;
    ensure!(seen_from(&pod, &vnet, at)? == NODE);
    rig.node
        .root
        .write(MASQ, "nonMasqueradeCIDRs:\n- 10.0.0.0/8\n- 10.0.0.0/33\n")?;
    agent.wait_for("the complaint", |agent| {
        let (status, body) = agent.ask("GET /readyz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")?;
        Ok(status == 503 && body.contains("ip-masq-agent") && body.contains("line 3"))
    })?;
    ensure!(agent.metric("causeway_config_last_reload_successful")? == 0);
    ensure!(
        seen_from(&pod, &vnet, at)? == NODE,
        "the list of before is not in force"
    );
    // Also an agent that starts with it: what was in force stays so.
    agent.end()?;
    let agent = Agent::start(&rig.node)?;
    ensure!(seen_from(&pod, &vnet, at)? == NODE, "not kept over a start");
    // And one that starts after a boot, which has emptied /run.
    agent.end()?;
    fs::remove_file(rig.node.root.join(causeway::settings::FILE))?;
    let mut agent = Agent::start(&rig.node)?;
    ensure!(seen_from(&pod, &vnet, at)? == NODE, "not kept over a boot");
    rig.node.root.write(MASQ, "nonMasqueradeCIDRs:\n- 10.0.0.0/8\n")?;
    agent.wait_for("readiness", |agent| Ok(agent.get("/readyz").is_ok()))?;
    ensure!(seen_from(&pod, &vnet, at)? == pod.addr);
    agent.end()
}

/// Whoever loads the datapath while no agent runs loads it with the same choice.
#[test]
fn a_plug_in_that_loads_the_datapath_follows_what_the_agent_has_noted() -> Result<()> {
    let rig = Rig::causeway()?;
    rig.node
        .root
        .write(MASQ, "nonMasqueradeCIDRs: [192.168.0.0/16]\n")?;
    Agent::start(&rig.node)?.end()?;
    ensure!(
        !rig.node.root.join("/sys/fs/bpf/causeway").exists(),
        "the agent has loaded a datapath for no pod"
    );
    let pod = rig.pod("a")?;
    let (vnet, at) = server(&rig, VNET)?;
    ensure!(seen_from(&pod, &vnet, at)? == NODE);
    Ok(())
}

/// A list in which the VNet's host is excluded and the internet's is masqueraded, one way or another.
fn list(rng: &mut Rng) -> String {
    let mut excluded: Vec<String> = (0..rng.below(40))
        .map(|_| {
            let length = 9 + rng.below(20) as u8;
            let addr = Ipv4Addr::from(0x4000_0000 + (rng.below(1 << 28) as u32));
            ipnet::Ipv4Net::new_assert(addr, length).trunc().to_string()
        })
        .collect();
    let around = |addr: Ipv4Addr, length: u8| ipnet::Ipv4Net::new_assert(addr, length).trunc().to_string();
    excluded.push(around(VNET, 8 + rng.below(25) as u8));
    let mut masqueraded = Vec::new();
    if rng.below(2) == 0 {
        let outer = 8 + rng.below(16) as u8;
        excluded.push(around(INTERNET, outer));
        let inner = outer + 1 + rng.below(usize::from(32 - outer)) as u8;
        masqueraded.push(around(INTERNET, inner));
    }
    format!(
        "excludedRanges: [{}]\nmasqueradedRanges: [{}]\n",
        excluded.join(", "),
        masqueraded.join(", ")
    )
}

fn random_lists(lists: u64) -> Result<()> {
    let rig = Rig::causeway()?;
    let pod = rig.pod("a")?;
    let mut rng = Rng::new(seed(20));
    let file = rig.node.root.join("/etc/causeway/config.yaml");
    rig.node
        .root
        .write("/etc/causeway/config.yaml", &list(&mut rng))?;
    let mut agent = Agent::start(&rig.node)?;
    let stop = AtomicBool::new(false);
    let judged = thread::scope(|scope| -> Result<[u64; 2]> {
        let traffic = [(VNET, pod.addr), (INTERNET, NODE)].map(|(addr, expected)| {
            let (server, at) = server(&rig, addr)?;
            let (pod, stop) = (&pod, &stop);
            Ok(scope.spawn(move || -> Result<u64> {
                let mut judged = 0;
                while !stop.load(Ordering::Relaxed) {
                    let seen = seen_from(pod, &server, at)?;
                    ensure!(seen == expected, "flow {judged} to {addr} was seen as {seen}");
                    judged += 1;
                }
                Ok(judged)
            }))
        });
        let written = (0..lists).try_for_each(|_| -> Result<()> {
            let before = agent.metric("causeway_config_reloads_total{result=\"success\"}")?;
            let next = file.with_extension("next");
            fs::write(&next, list(&mut rng))?;
            fs::rename(&next, &file)?;
            agent.wait_for("another list", |agent| {
                Ok(agent.metric("causeway_config_reloads_total{result=\"success\"}")? > before)
            })
        });
        stop.store(true, Ordering::Relaxed);
        let mut judged = [0; 2];
        for (count, thread) in judged.iter_mut().zip(traffic) {
            let thread: Result<_> = thread;
            *count = thread?.join().expect("no panic")?;
        }
        written?;
        Ok(judged)
    })?;
    println!("{lists} lists; flows judged: {judged:?}");
    ensure!(
        judged.iter().all(|&flows| flows > lists),
        "too little traffic: {judged:?}"
    );
    agent.end()
}

#[test]
fn random_lists_under_traffic_are_each_in_force_as_a_whole() -> Result<()> {
    random_lists(60)
}

#[test]
#[ignore = "minutes"]
fn long_ten_thousand_random_lists_under_traffic() -> Result<()> {
    random_lists(10_000)
}
