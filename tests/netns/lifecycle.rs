//! Pods come and go, the datapath is loaded and unloaded, and nothing of one life reaches the next.

use std::{
    fs,
    io::Write,
    net::{SocketAddrV4, TcpListener, UdpSocket},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use causeway_tests::{
    capture::Capture,
    echo::Echo,
    fabric::{INTERNET, NODE, VNET},
    netns::Netns,
    node::Datapath,
    rig::Rig,
    rules,
    talk::{Tcp, Udp},
    walk::Walk,
};

use crate::table::pin;

#[test]
fn a_new_pod_with_the_old_address_gets_no_packet_of_the_old_ones_flows() -> Result<()> {
    let rig = Rig::with(Datapath::Causeway, 1)?;
    let old = rig.pod("old")?;
    let server = SocketAddrV4::new(INTERNET, 7);
    let remote = rig.fabric.internet.bind(|| UdpSocket::bind(server))?;
    let client = Udp::connect(&old.ns, server)?;
    for _ in 0..5 {
        client.0.send(b"old")?;
    }
    remote.set_read_timeout(Some(Duration::from_secs(1)))?;
    let (_, seen) = remote.recv_from(&mut [0; 64]).context("the server got nothing")?;
    remote.send_to(b"answer", seen)?;
    client.0.recv(&mut [0; 64]).context("the answer did not come")?;

    rig.node.remove(&old)?;
    let new = rig.pod("new")?;
    ensure!(
        new.addr == old.addr,
        "a pool of one gave {} after {}",
        new.addr,
        old.addr
    );
    let wire = Capture::start(&new.ns, "eth0")?;
    for _ in 0..50 {
        remote.send_to(b"late", seen)?;
        thread::sleep(Duration::from_millis(2));
    }
    thread::sleep(Duration::from_millis(100));
    let late: Vec<_> = wire
        .stop()
        .into_iter()
        .filter(|f| f.ip.as_ref().is_some_and(|ip| ip.src == INTERNET))
        .collect();
    ensure!(late.is_empty(), "the new pod got {late:#?}");
    // The address works for its new owner, also from the old one's port.
    drop(remote);
    let _echo = Echo::start(&rig.fabric.internet, 7)?;
    let port = client.local()?.port();
    Udp::connect_from(&new.ns, SocketAddrV4::new(new.addr, port), server)?.chat(5)
}

/// TCP and UDP, carried and through a Service: the old flows' server goes on talking, to nobody.
#[test]
fn whatever_the_old_flows_were_the_new_pod_hears_nothing_of_them() -> Result<()> {
    let vip = SocketAddrV4::new([10, 0, 0, 50].into(), 80);
    let server = SocketAddrV4::new(INTERNET, 7);
    let rig = Rig::with(Datapath::Causeway, 1)?;
    rules::cluster_ip(&rig.node.ns, vip, server)?;
    let internet = &rig.fabric.internet;
    let (listener, datagrams) =
        internet.bind(|| Ok((TcpListener::bind(server)?, UdpSocket::bind(server)?)))?;
    let old = rig.pod("old")?;
    let mut open = Vec::new();
    for dial in [server, vip] {
        let (tcp, udp) = (Tcp::connect(&old.ns, dial)?, Udp::connect(&old.ns, dial)?);
        let (connection, _) = listener.accept()?;
        udp.0.send(b"old")?;
        let (_, seen) = datagrams.recv_from(&mut [0; 64])?;
        datagrams.send_to(b"answer", seen)?;
        udp.0.recv(&mut [0; 64]).context("the answer did not come")?;
        open.push((connection, seen, tcp, udp));
    }
    rig.node.remove(&old)?;
    let new = rig.pod("new")?;
    ensure!(new.addr == old.addr, "{} after {}", new.addr, old.addr);
    let wire = Capture::start(&new.ns, "eth0")?;
    for _ in 0..20 {
        for (connection, seen, _, _) in &mut open {
            // The node may have reset the connection by now.
            connection.write_all(b"late").ok();
            datagrams.send_to(b"late", *seen)?;
        }
        thread::sleep(Duration::from_millis(5));
    }
    thread::sleep(Duration::from_millis(100));
    let mut late = wire.stop();
    late.retain(|frame| frame.ip.as_ref().is_some_and(|ip| ip.src == INTERNET));
    ensure!(late.is_empty(), "the new pod got {late:#?}");
    Ok(())
}

/// What the old pod's processes still send after DEL leaves the node with no address at all.
#[test]
fn a_removed_pod_sends_nothing_more() -> Result<()> {
    let rig = Rig::causeway()?;
    let pod = rig.pod("a")?;
    let echo = Echo::start(&rig.fabric.internet, 7)?;
    let client = Udp::connect(&pod.ns, SocketAddrV4::new(INTERNET, 7))?;
    client.chat(5)?;
    echo.seen();
    rig.node.remove(&pod)?;
    // The interface may be gone with DEL, so sending may fail: what counts is what arrives.
    for _ in 0..20 {
        client.0.send(b"still here").ok();
    }
    thread::sleep(Duration::from_millis(100));
    ensure!(echo.seen().is_empty());
    Ok(())
}

#[test]
fn pods_come_and_go_beside_a_connection_that_stays() -> Result<()> {
    let rig = Rig::causeway()?;
    let stays = rig.pod("stays")?;
    let _echo = Echo::start(&rig.fabric.internet, 7)?;
    let mut connection = Tcp::connect(&stays.ns, SocketAddrV4::new(INTERNET, 7))?;
    for round in 0..8 {
        connection.chat(5)?;
        let guest = rig.pod(&format!("guest-{round}"))?;
        Udp::connect(&guest.ns, SocketAddrV4::new(INTERNET, 7))?.chat(5)?;
        connection.chat(5)?;
        rig.node.remove(&guest)?;
        rig.node.remove(&guest).context("DEL a second time")?;
    }
    connection.chat(5)
}

/// A tree whose programs know nothing of the map is used as it is.
#[test]
fn a_datapath_that_keeps_no_hints_is_adopted() -> Result<()> {
    let rig = Rig::causeway()?;
    let stays = rig.pod("stays")?;
    let _echo = Echo::start(&rig.fabric.internet, 7)?;
    let mut connection = Tcp::connect(&stays.ns, SocketAddrV4::new(INTERNET, 7))?;
    connection.chat(5)?;
    fs::remove_file(pin(&rig, "cwy_moved"))?;
    let guest = rig.pod("guest")?;
    Udp::connect(&guest.ns, SocketAddrV4::new(INTERNET, 7))?.chat(5)?;
    ensure!(rig.node.causeway_json("status")?["loaded"] == true);
    rig.node.causeway(&["sweep"])?;
    rig.node.remove(&guest)?;
    connection.chat(5)
}

#[test]
fn a_pod_whose_namespace_is_gone_can_be_removed() -> Result<()> {
    let rig = Rig::with(Datapath::Causeway, 1)?;
    for name in ["a", "b", "c"] {
        let pod = rig.pod(name)?;
        let path = pod.ns.path();
        drop(pod);
        rig.node.plugin("DEL", name, &path)?;
    }
    Ok(())
}

#[test]
fn pods_added_at_the_same_time_get_an_address_each() -> Result<()> {
    let rig = Rig::causeway()?;
    let node = &rig.node;
    let pods = thread::scope(|scope| {
        let adding: Vec<_> = (0..8)
            .map(|n| scope.spawn(move || node.add(&format!("pod-{n}"))))
            .collect();
        adding
            .into_iter()
            .map(|add| add.join().expect("no panic"))
            .collect::<Result<Vec<_>>>()
    })?;
    let mut addrs: Vec<_> = pods.iter().map(|pod| pod.addr).collect();
    addrs.sort_unstable();
    addrs.dedup();
    ensure!(addrs.len() == 8, "{addrs:?}");
    for pair in pods.windows(2) {
        let walk = Walk::direct(&pair[0].ns, &pair[1].ns, SocketAddrV4::new(pair[1].addr, 7));
        walk.tcp(&rig)?.expect_carried(pair[0].addr)?;
    }
    Ok(())
}

/// Everything by which a datapath could leave a trace in the node's namespace, as text.
fn traces(rig: &Rig) -> Result<Vec<(&'static str, String)>> {
    let ns: &Netns = &rig.node.ns;
    let tcx = ns.output("bpftool", &["net", "show"])?;
    Ok(vec![
        ("links", ns.output("ip", &["-o", "link", "show"])?),
        ("addresses", ns.output("ip", &["-o", "addr", "show"])?),
        ("routes", ns.output("ip", &["route", "show", "table", "all"])?),
        ("rules", ns.output("ip", &["rule", "show"])?),
        (
            "permanent neighbours",
            ns.output("ip", &["neigh", "show", "nud", "permanent"])?,
        ),
        ("qdiscs", ns.output("tc", &["qdisc", "show"])?),
        ("programs", tcx),
        (
            "iptables",
            ns.output("iptables-save", &["-t", "nat"])?
                .lines()
                .filter(|l| !l.starts_with('#'))
                .collect(),
        ),
        ("bpffs", files_below(&rig.node.root.join("/sys/fs/bpf"))),
        (
            "/run/causeway",
            files_below(&rig.node.root.join("/run/causeway/restore")),
        ),
        ("ip_forward", ns.read_sysctl("net/ipv4/ip_forward")?),
    ])
}

fn files_below(dir: &Path) -> String {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.path().display().to_string() + "\n")
        .collect()
}

#[test]
fn unload_leaves_the_node_as_it_was_found() -> Result<()> {
    let rig = Rig::causeway()?;
    // Creates the table, as any use of iptables does.
    rig.node.ns.output("iptables", &["-t", "nat", "-nL"])?;
    let before = traces(&rig)?;
    let pods = [rig.pod("a")?, rig.pod("b")?];
    Walk::direct(&pods[0].ns, &rig.fabric.internet, SocketAddrV4::new(INTERNET, 7))
        .tcp(&rig)?
        .expect_carried(NODE)?;
    for pod in &pods {
        rig.node.remove(pod)?;
    }
    rig.node.causeway(&["unload"])?;
    rig.node.causeway(&["unload"]).context("unload a second time")?;
    for ((what, was), (_, is)) in before.into_iter().zip(traces(&rig)?) {
        ensure!(was == is, "{what}\n--- before\n{was}\n--- after unload\n{is}");
    }
    // And it can be loaded again.
    let again = rig.pod("again")?;
    Walk::direct(&again.ns, &rig.fabric.internet, SocketAddrV4::new(INTERNET, 7))
        .udp(&rig)?
        .expect_carried(NODE)
}

#[test]
fn nodes_side_by_side_know_nothing_of_each_other() -> Result<()> {
    let rigs = [Rig::causeway()?, Rig::causeway()?, Rig::causeway()?];
    let pods = [rigs[0].pod("a")?, rigs[1].pod("a")?, rigs[2].pod("a")?];
    let talk = |n: usize| -> Result<()> {
        let walk = Walk::direct(
            &pods[n].ns,
            &rigs[n].fabric.internet,
            SocketAddrV4::new(INTERNET, 7),
        );
        walk.tcp(&rigs[n])?.expect_carried(NODE)?;
        walk.udp(&rigs[n])?.expect_carried(NODE)
    };
    thread::scope(|scope| {
        let talks = [
            scope.spawn(|| talk(0)),
            scope.spawn(|| talk(1)),
            scope.spawn(|| talk(2)),
        ];
        talks
            .into_iter()
            .try_for_each(|talk| talk.join().expect("no panic"))
    })?;
    rigs[1].node.remove(&pods[1])?;
    rigs[1].node.causeway(&["unload"])?;
    talk(0)?;
    talk(2)
}

#[test]
fn a_node_that_is_gone_leaves_no_file_no_mount_and_no_program() -> Result<()> {
    let rig = Rig::causeway()?;
    let pod = rig.pod("a")?;
    Walk::direct(&pod.ns, &rig.fabric.vnet, SocketAddrV4::new(VNET, 7))
        .udp(&rig)?
        .expect_carried(pod.addr)?;
    let root = rig.node.root.path().to_owned();
    let pin = rig.node.root.join("/sys/fs/bpf/causeway/v2/progs/cwy_to_uplink");
    let shown = rig.node.ns.json(
        "bpftool",
        &["-j", "prog", "show", "pinned", &pin.display().to_string()],
    )?;
    let id = shown["id"].as_u64().context("the program has no id")?.to_string();
    drop((pod, rig));

    ensure!(!root.exists(), "{} is still there", root.display());
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    ensure!(
        !mounts.contains(&root.display().to_string()),
        "still mounted below {}",
        root.display()
    );
    // The kernel frees a program after a grace period.
    let end = Instant::now() + Duration::from_secs(5);
    let elsewhere = Netns::new()?;
    while elsewhere.output("bpftool", &["prog", "show", "id", &id]).is_ok() {
        ensure!(Instant::now() < end, "program {id} is still loaded");
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
