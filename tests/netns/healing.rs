//! What is lost comes back: a half of a translated flow that disappears under its traffic, and the uplink's address.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use causeway_common::tuple::{ICMP, TCP, UDP};
use causeway_tests::{
    capture::Capture,
    echo::Echo,
    fabric::{GATEWAY, INTERNET, NODE, PARTNER, SUBNET_BITS},
    leak::LeakWatch,
    netns::Netns,
    node::Pod,
    ping::Pinger,
    rig::Rig,
    rules,
    talk::{SILENCE, Tcp, Udp},
};

use crate::table::{Pair, Table};

const SERVER: SocketAddrV4 = SocketAddrV4::new(INTERNET, 7);
const VIP: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 50), 80);

/// The flow has both halves again, under the port that it had.
fn is_whole(table: &Table, pod: &Pod, before: &Pair) -> Result<()> {
    let port = u16::from_be_bytes(before.forward.src_port);
    let after = table.pair(pod, before.forward.protocol, port)?;
    ensure!(
        after.outside() == before.outside(),
        "{} became {}",
        before.outside(),
        after.outside()
    );
    Ok(())
}

/// A half of a translated flow.
#[derive(Clone, Copy, Debug)]
enum Half {
    /// As the pod sends.
    Forward,
    /// As the answers come.
    Reverse,
}

fn lose(table: &mut Table, pair: &Pair, half: Half) -> Result<()> {
    match half {
        Half::Forward => table.remove(&pair.forward),
        Half::Reverse => table.remove(&pair.reverse),
    }
}

/// TCP and UDP to `dial`, which is the internet's server, directly or through a Service. Not a packet may be lost with the half.
fn a_lost_half_comes_back(half: Half, dial: SocketAddrV4, beside: fn(&Netns) -> Result<()>) -> Result<()> {
    let rig = Rig::causeway()?;
    let pod = rig.pod("a")?;
    rules::cluster_ip(&rig.node.ns, VIP, SERVER)?;
    beside(&rig.node.ns)?;
    let echo = Echo::start(&rig.fabric.internet, SERVER.port())?;
    let mut table = Table::of(&rig)?;
    let (mut tcp, udp) = (Tcp::connect(&pod.ns, dial)?, Udp::connect(&pod.ns, dial)?);
    tcp.chat(5)?;
    udp.chat(5)?;
    let pairs = [
        table.pair(&pod, TCP, tcp.local()?.port())?,
        table.pair(&pod, UDP, udp.local()?.port())?,
    ];
    for round in 0..5 {
        for pair in &pairs {
            lose(&mut table, pair, half)?;
        }
        tcp.chat(3).with_context(|| format!("TCP, round {round}"))?;
        udp.chat(3).with_context(|| format!("UDP, round {round}"))?;
        for pair in &pairs {
            is_whole(&table, &pod, pair)?;
        }
    }
    let mut seen = echo.seen();
    seen.sort_unstable();
    seen.dedup();
    let mut expected = pairs.map(|pair| pair.outside());
    expected.sort_unstable();
    ensure!(seen == expected, "the server saw {seen:?}, not {expected:?}");
    Ok(())
}

#[test]
fn a_lost_forward_half_of_a_carried_flow_comes_back_with_its_port() -> Result<()> {
    a_lost_half_comes_back(Half::Forward, SERVER, |_| Ok(()))
}

#[test]
fn a_lost_forward_half_of_a_flow_of_the_kernel_comes_back_with_its_port() -> Result<()> {
    a_lost_half_comes_back(Half::Forward, VIP, |_| Ok(()))
}

/// Conntrack has seen a carried connection's first packets alone, so kube-proxy's rule would drop the next one.
#[test]
fn a_lost_forward_half_comes_back_beside_a_rule_against_invalid_packets() -> Result<()> {
    a_lost_half_comes_back(Half::Forward, SERVER, rules::forbid_invalid)
}

#[test]
fn a_lost_reverse_half_of_a_carried_flow_comes_back_with_its_port() -> Result<()> {
    a_lost_half_comes_back(Half::Reverse, SERVER, |_| Ok(()))
}

#[test]
fn a_lost_reverse_half_of_a_flow_of_the_kernel_comes_back_with_its_port() -> Result<()> {
    a_lost_half_comes_back(Half::Reverse, VIP, |_| Ok(()))
}

#[test]
fn a_lost_half_of_a_ping_comes_back_with_its_identifier() -> Result<()> {
    const ID: u16 = 77;
    let rig = Rig::causeway()?;
    let pod = rig.pod("a")?;
    let mut table = Table::of(&rig)?;
    let pinger = Pinger::new(&pod.ns, ID)?;
    pinger.chat(INTERNET, 5)?;
    let pair = table.pair(&pod, ICMP, ID)?;
    for half in [Half::Forward, Half::Reverse, Half::Forward, Half::Reverse] {
        lose(&mut table, &pair, half)?;
        pinger.chat(INTERNET, 3).with_context(|| format!("{half:?}"))?;
        is_whole(&table, &pod, &pair)?;
    }
    Ok(())
}

/// A port, or an identifier, that two pods want.
const WANTED: u16 = 45_000;

/// A pod that has what it wants, and one that does not, with the flow that it has instead.
struct Rivals<S> {
    first: (Pod, S),
    second: (Pod, S),
    pair: Pair,
}

impl<S> Rivals<S> {
    /// `chats` opens a flow of a pod with [`WANTED`].
    fn meet(rig: &Rig, protocol: u8, chats: impl Fn(&Pod) -> Result<S>) -> Result<(Self, Table)> {
        let meet = |name| {
            let pod = rig.pod(name)?;
            let socket = chats(&pod)?;
            anyhow::Ok((pod, socket))
        };
        let (first, second) = (meet("first")?, meet("second")?);
        let table = Table::of(rig)?;
        let pair = table.pair(&second.0, protocol, WANTED)?;
        ensure!(pair.outside().port() != WANTED, "it was free");
        Ok((Self { first, second, pair }, table))
    }

    /// The flow of the second pod keeps its port when it loses its forward half and what it wanted is free.
    fn part(self, table: &mut Table, chat: impl Fn(&S) -> Result<()>) -> Result<()> {
        let (second, socket) = &self.second;
        let pair = table.pair(&self.first.0, self.pair.forward.protocol, WANTED)?;
        lose(table, &pair, Half::Forward)?;
        lose(table, &pair, Half::Reverse)?;
        for round in 0..3 {
            lose(table, &self.pair, Half::Forward)?;
            chat(socket).with_context(|| format!("round {round}"))?;
            is_whole(table, second, &self.pair)?;
        }
        chat(&self.first.1)
    }
}

fn udp_rivals(rig: &Rig) -> Result<(Rivals<Udp>, Table)> {
    Rivals::meet(rig, UDP, |pod| {
        let socket = Udp::connect_from(&pod.ns, SocketAddrV4::new(pod.addr, WANTED), SERVER)?;
        socket.chat(5)?;
        Ok(socket)
    })
}

#[test]
fn a_lost_forward_half_comes_back_with_its_port_though_its_own_is_free_again() -> Result<()> {
    let rig = Rig::causeway()?;
    let echo = Echo::start(&rig.fabric.internet, SERVER.port())?;
    let (rivals, mut table) = udp_rivals(&rig)?;
    let expected = [SocketAddrV4::new(NODE, WANTED), rivals.pair.outside()];
    rivals.part(&mut table, |socket| socket.chat(3))?;
    let seen = echo.seen();
    ensure!(
        seen.iter().all(|peer| expected.contains(peer)),
        "the server saw {seen:?}, not {expected:?}"
    );
    Ok(())
}

#[test]
fn a_lost_forward_half_of_a_ping_comes_back_with_its_identifier_though_its_own_is_free_again() -> Result<()> {
    let rig = Rig::causeway()?;
    let (rivals, mut table) = Rivals::meet(&rig, ICMP, |pod| {
        let pinger = Pinger::new(&pod.ns, WANTED)?;
        pinger.chat(INTERNET, 3)?;
        Ok(pinger)
    })?;
    rivals.part(&mut table, |pinger| pinger.chat(INTERNET, 3))
}

/// Nothing in its answers says whose a port is that the pod does not have itself. The flow's own packets say it, once a second.
#[test]
fn a_lost_reverse_half_of_a_flow_with_another_port_comes_back_within_a_second() -> Result<()> {
    let rig = Rig::causeway()?;
    let echo = Echo::start(&rig.fabric.internet, SERVER.port())?;
    let (rivals, mut table) = udp_rivals(&rig)?;
    let Rivals {
        first: (_first, first_socket),
        second: (second, socket),
        pair,
    } = rivals;
    echo.seen();
    for round in 0..3 {
        lose(&mut table, &pair, Half::Reverse)?;
        let mut turns = 0;
        while socket.is_unanswered(32, Duration::from_millis(100))? {
            turns += 1;
            ensure!(turns < 15, "round {round}: no answer any more");
        }
        socket.chat(3).with_context(|| format!("round {round}"))?;
        is_whole(&table, &second, &pair)?;
    }
    ensure!(echo.seen().iter().all(|&peer| peer == pair.outside()));
    first_socket.chat(3)
}

/// Not between two questions, but whenever it happens: in the middle of a stream.
#[test]
fn forward_halves_are_lost_while_the_traffic_goes_on() -> Result<()> {
    let rig = Rig::causeway()?;
    let pod = rig.pod("a")?;
    let echo = Echo::start(&rig.fabric.internet, SERVER.port())?;
    let mut table = Table::of(&rig)?;
    let mut tcp = Tcp::connect(&pod.ns, SERVER)?;
    tcp.chat(5)?;
    let pair = table.pair(&pod, TCP, tcp.local()?.port())?;
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let talk = scope.spawn(|| -> Result<u32> {
            let mut turns = 0;
            while !over.load(Ordering::Relaxed) {
                tcp.chat(10)?;
                turns += 10;
            }
            Ok(turns)
        });
        let mut losses = 0;
        for _ in 0..100 {
            // It may be away already: lost, and not asked for since.
            losses += u32::from(table.remove(&pair.forward).is_ok());
            thread::sleep(Duration::from_millis(3));
        }
        over.store(true, Ordering::Relaxed);
        let turns = talk.join().expect("no panic")?;
        ensure!(
            losses > 50 && turns > 200,
            "{losses} losses in {turns} turns show nothing"
        );
        Ok(())
    })?;
    ensure!(echo.seen() == [pair.outside()]);
    is_whole(&table, &pod, &pair)
}

/// The uplink is given another address. Without a daemon the next ADD notices: flows of the old address end, and the rest
/// goes on with the new one.
#[test]
fn another_address_of_the_uplink_is_followed() -> Result<()> {
    const NEW: Ipv4Addr = Ipv4Addr::new(10, 240, 200, 4);
    let mut rig = Rig::causeway()?;
    let pod = rig.pod("a")?;
    let echo = Echo::start(&rig.fabric.internet, SERVER.port())?;
    let (mut tcp, udp) = (Tcp::connect(&pod.ns, SERVER)?, Udp::connect(&pod.ns, SERVER)?);
    tcp.chat(5)?;
    udp.chat(5)?;
    ensure!(echo.seen().iter().all(|peer| *peer.ip() == NODE));

    ensure!(rig.end_watch().is_empty(), "leaked before the change");
    rig.fabric
        .internet
        .ip(&format!("route add {NEW} via 203.0.113.1"))?;
    rig.node.ns.ip(&format!(
        "addr add {NEW}/{SUBNET_BITS} dev eth0\naddr del {NODE}/{SUBNET_BITS} dev eth0\n\
         addr replace {NEW}/{SUBNET_BITS} dev eth0\nroute replace default via {GATEWAY}"
    ))?;
    let other = rig.pod("b")?;
    Tcp::connect(&other.ns, SERVER)?.chat(5)?;
    // A flow is looked at once a second.
    thread::sleep(Duration::from_millis(1100));
    echo.seen();
    let mut turns = 0;
    while udp.is_unanswered(32, Duration::from_millis(100))? {
        turns += 1;
        ensure!(turns < 10, "the datagrams of an older socket find no way");
    }
    ensure!(
        tcp.chat(1).is_err(),
        "a connection of an address that is gone was answered"
    );
    let router = &rig.fabric.router;
    let watch = LeakWatch::start(router, "node", NEW, rig.node.mac()?, PARTNER)?;
    let wire = Capture::start(router, "node")?;
    echo.seen();
    udp.chat(20)?;
    Tcp::connect(&pod.ns, SERVER)?.chat(5)?;
    tcp.chat(1).ok();
    thread::sleep(SILENCE);
    let mut late = wire.stop();
    late.retain(|frame| !frame.outgoing && frame.ip.as_ref().is_some_and(|ip| ip.src == NODE));
    ensure!(late.is_empty(), "sent with the old address: {late:#?}");
    ensure!(echo.seen().iter().all(|peer| *peer.ip() == NEW));
    let leaks = watch.leaks();
    ensure!(leaks.is_empty(), "leaked: {leaks:#?}");
    Ok(())
}
