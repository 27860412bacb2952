//! A pod that opens connections as fast as it can, and never one to its end.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use causeway_tests::{
    echo::Echo,
    fabric::{INTERNET, NODE, VNET},
    generator::{Course, Generator, Kind},
    node::Pod,
    offload,
    rig::Rig,
    talk::{Tcp, Udp},
};

/// Nobody answers there, not even with a reset.
const NOWHERE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 99);
/// The flood leaves the others little of the CPU on a busy machine. What counts is that they go on.
const PATIENCE: Duration = Duration::from_secs(30);
/// Twice what the flow table can hold.
const SYNS: u32 = 600_000;
/// How often so many are sent, if the node has room for all that reach it.
const MOST_FLOODS: usize = 30;

fn flood(rig: &Rig, pod: &Pod) -> Result<()> {
    rig.fabric.router.ip(&format!("route add blackhole {NOWHERE}"))?;
    offload::set(&rig.node.ns, &rig.node.host_interface(pod)?, offload::GRO, true)?;
    let [pod_mac, gateway_mac] = pod.macs()?;
    let course = Course {
        gateway_mac,
        pod_mac,
        pod: pod.addr,
        to: NOWHERE,
        port: 80,
        kind: Kind::Syns,
    };
    let generator = Generator::new(&pod.ns, "eth0", &course)?;
    // On a busy machine most of them can find the queue between the pod and the node full.
    for _ in 0..MOST_FLOODS {
        let took = pod.ns.run(|| generator.send(SYNS))??;
        println!("{SYNS} SYNs in {took:?}");
        if refused(rig)? > 0 {
            break;
        }
    }
    Ok(())
}

/// Connections of every kind that were there before: carried with and without translation, and opened from outside.
#[test]
fn a_syn_flood_leaves_what_is_established_alone() -> Result<()> {
    let rig = Rig::causeway()?;
    let (attacker, victim) = (rig.pod("attacker")?, rig.pod("victim")?);
    let outside = Echo::start(&rig.fabric.internet, 7)?;
    let _echoes = [Echo::start(&rig.fabric.vnet, 7)?, Echo::start(&victim.ns, 7)?];
    let to_pod = SocketAddrV4::new(victim.addr, 7);
    let mut connections = [
        Tcp::connect(&victim.ns, SocketAddrV4::new(INTERNET, 7))?,
        Tcp::connect(&victim.ns, SocketAddrV4::new(VNET, 7))?,
        Tcp::connect(&rig.fabric.partner, to_pod)?,
    ];
    let sockets = [
        Udp::connect(&victim.ns, SocketAddrV4::new(INTERNET, 7))?,
        Udp::connect(&rig.fabric.vnet, to_pod)?,
    ];
    for connection in &connections {
        connection.0.set_read_timeout(Some(PATIENCE))?;
    }
    for socket in &sockets {
        socket.0.set_read_timeout(Some(PATIENCE))?;
    }
    let mut all = || -> Result<()> {
        connections
            .iter_mut()
            .try_for_each(|connection| connection.chat(2))?;
        sockets.iter().try_for_each(|socket| socket.chat(2))
    };
    all()?;
    let turns = beside_a_flood(&rig, &attacker, &mut all)?;
    ensure!(turns > 3, "the flood was over after {turns} turns");
    all().context("after the flood")?;
    let seen = outside.seen();
    ensure!(seen.iter().all(|peer| *peer.ip() == NODE));
    is_refused_some(&rig)
}

/// The flood has its pod's share of the table, and the rest is for others: their first packets find room.
#[test]
fn a_syn_flood_leaves_room_for_the_connections_of_others() -> Result<()> {
    let rig = Rig::causeway()?;
    let (attacker, other) = (rig.pod("attacker")?, rig.pod("other")?);
    let outside = Echo::start(&rig.fabric.internet, 7)?;
    let _echoes = [Echo::start(&rig.fabric.vnet, 7)?, Echo::start(&other.ns, 7)?];
    let partner = &rig.fabric.partner;
    let turns = beside_a_flood(&rig, &attacker, || {
        for (client, to) in [(&other.ns, INTERNET), (&other.ns, VNET), (partner, other.addr)] {
            let to = SocketAddrV4::new(to, 7);
            let mut tcp = Tcp::connect_within(client, to, PATIENCE)?;
            tcp.0.set_read_timeout(Some(PATIENCE))?;
            tcp.chat(2)?;
            let udp = Udp::connect(client, to)?;
            udp.0.set_read_timeout(Some(PATIENCE))?;
            udp.chat(2)?;
        }
        Ok(())
    })?;
    ensure!(turns > 3, "the flood was over after {turns} turns");
    let seen = outside.seen();
    ensure!(seen.iter().all(|peer| *peer.ip() == NODE));
    is_refused_some(&rig)
}

/// How often `others` was done while the pod floods.
fn beside_a_flood(rig: &Rig, attacker: &Pod, mut others: impl FnMut() -> Result<()>) -> Result<u32> {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let flood = scope.spawn(|| {
            let done = flood(rig, attacker);
            over.store(true, Ordering::Relaxed);
            done
        });
        let mut turns = 0;
        while !over.load(Ordering::Relaxed) {
            others().with_context(|| format!("after {turns} turns in the flood"))?;
            turns += 1;
        }
        flood.join().expect("no panic")?;
        Ok(turns)
    })
}

fn is_refused_some(rig: &Rig) -> Result<()> {
    ensure!(refused(rig)? > 0, "the table had room for all of it");
    Ok(())
}

fn refused(rig: &Rig) -> Result<u64> {
    Ok(rig.node.count("snat_table_full")? + rig.node.count("snat_quota")?)
}
