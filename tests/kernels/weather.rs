//! Networks that lose, reorder and double packets (`sch_netem`), under translation.

use std::net::SocketAddrV4;

use anyhow::{Result, ensure};
use causeway_tests::{
    echo::Echo,
    fabric::{INTERNET, NODE, VNET},
    netns::Netns,
    rig::Rig,
    stream,
    talk::Tcp,
};

const MEBIBYTE: u64 = 1 << 20;

/// Both ways between the node and the rest of the world.
fn storm(rig: &Rig, weather: &str) -> Result<()> {
    let add = |ns: &Netns, interface: &str| {
        let words = format!("qdisc add dev {interface} root netem {weather}");
        ns.output("tc", &words.split(' ').collect::<Vec<_>>()).map(drop)
    };
    add(&rig.fabric.router, "node")?;
    add(&rig.fabric.router, "internet")?;
    add(&rig.fabric.router, "vnet")
}

/// How many packets netem dropped towards the node: weather that does nothing would prove nothing.
fn lost(rig: &Rig) -> Result<u64> {
    let shown = rig
        .fabric
        .router
        .json("tc", &["-s", "-j", "qdisc", "show", "dev", "node"])?;
    Ok(shown[0]["drops"].as_u64().unwrap_or(0))
}

#[test]
fn a_stream_through_the_translation_stays_whole_whatever_is_lost_reordered_and_doubled() -> Result<()> {
    let rig = Rig::causeway()?;
    let pod = rig.pod("a")?;
    storm(&rig, "delay 2ms 1ms loss 1% duplicate 2% reorder 25%")?;
    let server = SocketAddrV4::new(INTERNET, 99);
    let (_, seen) = stream::exchange(&pod.ns, &rig.fabric.internet, server, 4 * MEBIBYTE)?;
    ensure!(seen.ip() == NODE, "the server saw {seen}");
    let lost = lost(&rig)?;
    ensure!(lost > 0, "nothing was lost");
    for reason in ["snat_no_mapping", "snat_collision", "rewrite_failed"] {
        ensure!(rig.node.count(reason)? == 0, "{reason}");
    }
    Ok(())
}

#[test]
fn a_stream_within_the_vnet_stays_whole_too() -> Result<()> {
    let rig = Rig::causeway()?;
    let pod = rig.pod("a")?;
    storm(&rig, "delay 2ms 1ms loss 1% duplicate 2% reorder 25%")?;
    let server = SocketAddrV4::new(VNET, 99);
    let (_, seen) = stream::exchange(&pod.ns, &rig.fabric.vnet, server, 2 * MEBIBYTE)?;
    ensure!(seen.ip() == pod.addr, "the server saw {seen}");
    ensure!(lost(&rig)? > 0, "nothing was lost");
    Ok(())
}

/// A lost SYN or answer is sent again, and a doubled SYN opens one connection.
#[test]
fn connections_are_made_and_ended_in_it() -> Result<()> {
    let rig = Rig::causeway()?;
    let pod = rig.pod("a")?;
    storm(&rig, "delay 1ms duplicate 50% reorder 25%")?;
    let _echo = Echo::start(&rig.fabric.internet, 7)?;
    for _ in 0..40 {
        let mut tcp = Tcp::connect(&pod.ns, SocketAddrV4::new(INTERNET, 7))?;
        tcp.chat(2)?;
    }
    ensure!(rig.node.count("snat_no_mapping")? == 0);
    Ok(())
}
