//! Flows that are over are forgotten, and nothing else is: with real traffic, and times of a second.

use std::{
    fs::{self, File},
    io::{Read, Write},
    net::{SocketAddrV4, TcpListener, UdpSocket},
    thread,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context, Result, ensure};
use causeway_common::lifetime::Timeouts;
use causeway_tests::{
    echo::Echo,
    fabric::{INTERNET, NODE, VNET},
    netns::Netns,
    node::Pod,
    rig::Rig,
    talk::{Tcp, Udp},
};
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, ipproto, sendto, socket_with};

use crate::table::set_timeouts;

const ECHO: u16 = 7;
const SINK: u16 = 9;
/// Longer than a time of one second can last, counted in whole seconds.
pub(crate) const OVER: Duration = Duration::from_millis(3200);

/// Everything is over after a second, but for established TCP.
pub(crate) const SHORT: Timeouts = Timeouts {
    offered: 1,
    tcp_opening: 1,
    tcp_established: 432_000,
    tcp_closing: 1,
    tcp_reset: 1,
    udp: 1,
    udp_stream: 1,
    icmp: 1,
};

fn rig_with(timeouts: Timeouts) -> Result<(Rig, Pod)> {
    let rig = Rig::causeway()?;
    let pod = rig.pod("a")?;
    set_timeouts(&rig, timeouts)?;
    Ok((rig, pod))
}

/// Sweeps. Entries scanned, and entries deleted.
pub(crate) fn sweep(rig: &Rig) -> Result<[u64; 2]> {
    let swept = rig.node.causeway_json("sweep")?;
    let number = |name: &str| swept[name].as_u64().with_context(|| format!("{name} in {swept}"));
    Ok([number("scanned")?, number("deleted")?])
}

fn states(rig: &Rig, protocol: &str, pod: &Pod, client: SocketAddrV4) -> Result<Vec<String>> {
    rig.node
        .flow_states(protocol, SocketAddrV4::new(pod.addr, client.port()))
}

/// TCP segments that the namespace has sent again.
fn retransmits(ns: &Netns) -> Result<u64> {
    ns.snmp("Tcp", "RetransSegs")
}

#[test]
fn idle_flows_go_and_flows_with_traffic_notice_nothing() -> Result<()> {
    let (rig, pod) = rig_with(SHORT)?;
    let echo = Echo::start(&rig.fabric.internet, ECHO)?;
    let to = |port| SocketAddrV4::new(INTERNET, port);
    let _sink = rig.fabric.internet.bind(|| UdpSocket::bind(to(SINK)))?;
    let before = retransmits(&pod.ns)?;

    let (mut busy_tcp, mut idle_tcp, mut closed_tcp) = (
        Tcp::connect(&pod.ns, to(ECHO))?,
        Tcp::connect(&pod.ns, to(ECHO))?,
        Tcp::connect(&pod.ns, to(ECHO))?,
    );
    let (busy_udp, idle_udp, one_way) = (
        Udp::connect(&pod.ns, to(ECHO))?,
        Udp::connect(&pod.ns, to(ECHO))?,
        Udp::connect(&pod.ns, to(SINK))?,
    );
    for tcp in [&mut busy_tcp, &mut idle_tcp, &mut closed_tcp] {
        tcp.chat(5)?;
    }
    for udp in [&busy_udp, &idle_udp] {
        udp.chat(5)?;
    }
    let closed = closed_tcp.local()?;
    drop(closed_tcp);
    let seen_before = distinct(&echo);

    let end = Instant::now() + OVER;
    let mut deleted = 0;
    while Instant::now() < end {
        busy_tcp.chat(2)?;
        busy_udp.chat(2)?;
        one_way.0.send(b"nobody answers")?;
        deleted += sweep(&rig)?[1];
        thread::sleep(Duration::from_millis(100));
    }

    ensure!(deleted >= 4, "{deleted} entries were deleted");
    let halves = |protocol, client| states(&rig, protocol, &pod, client);
    ensure!(halves("udp", idle_udp.local()?)?.is_empty(), "idle UDP stays");
    ensure!(halves("tcp", closed)?.is_empty(), "closed TCP stays");
    for client in [busy_tcp.local()?, idle_tcp.local()?] {
        let states = halves("tcp", client)?;
        ensure!(states == ["carried", "carried"], "TCP {client}: {states:?}");
    }
    for client in [busy_udp.local()?, one_way.local()?] {
        let states = halves("udp", client)?;
        ensure!(states.len() == 2, "UDP {client}: {states:?}");
    }
    idle_tcp.chat(5)?;
    ensure!(retransmits(&pod.ns)? == before, "segments were sent again");
    // The server saw no flow change its port.
    busy_udp.chat(5)?;
    let seen_after = distinct(&echo);
    ensure!(
        seen_after.iter().all(|peer| seen_before.contains(peer)),
        "{seen_before:?} became {seen_after:?}"
    );
    // And a forgotten flow is a flow like any other when it comes again.
    idle_udp.chat(5)
}

fn distinct(echo: &Echo) -> Vec<SocketAddrV4> {
    let mut seen = echo.seen();
    seen.sort_unstable();
    seen.dedup();
    seen
}

/// Without translation both directions have entries of their own.
#[test]
fn flows_that_keep_their_address_go_as_well() -> Result<()> {
    let (rig, pod) = rig_with(SHORT)?;
    let other = rig.pod("b")?;
    let _echoes = [
        Echo::start(&rig.fabric.vnet, ECHO)?,
        Echo::start(&other.ns, ECHO)?,
    ];
    let mut stays = Tcp::connect(&pod.ns, SocketAddrV4::new(other.addr, ECHO))?;
    stays.chat(5)?;
    let mut clients = Vec::new();
    for server in [VNET, other.addr] {
        let udp = Udp::connect(&pod.ns, SocketAddrV4::new(server, ECHO))?;
        udp.chat(5)?;
        clients.push(udp.local()?);
    }
    let before = retransmits(&pod.ns)?;
    thread::sleep(OVER);
    let [scanned, deleted] = sweep(&rig)?;
    ensure!(deleted >= 4, "{deleted} of {scanned} entries were deleted");
    for client in clients {
        let left = states(&rig, "udp", &pod, client)?;
        ensure!(left.is_empty(), "{client}: {left:?}");
    }
    stays.chat(5)?;
    ensure!(states(&rig, "tcp", &pod, stays.local()?)? == ["carried", "carried"]);
    ensure!(retransmits(&pod.ns)? == before, "segments were sent again");
    Ok(())
}

/// Only the server sends, and of TCP the pod only acknowledges: the answers keep the flow, by its tuple inside.
#[test]
fn a_one_way_download_outlives_its_timeout() -> Result<()> {
    let (rig, pod) = rig_with(Timeouts {
        tcp_established: 1,
        ..SHORT
    })?;
    let to = SocketAddrV4::new(INTERNET, ECHO);
    let (listener, server) = rig
        .fabric
        .internet
        .bind(|| Ok((TcpListener::bind(to)?, UdpSocket::bind(to)?)))?;
    let (tcp, udp) = (Tcp::connect(&pod.ns, to)?, Udp::connect(&pod.ns, to)?);
    let (mut download, _) = listener.accept()?;
    udp.0.send(b"subscribe")?;
    let (_, seen) = server.recv_from(&mut [0; 64])?;

    let end = Instant::now() + OVER;
    let mut sent = 0;
    while Instant::now() < end {
        download.write_all(&[7; 100])?;
        server.send_to(b"news", seen)?;
        sent += 1;
        udp.0.recv(&mut [0; 64]).context("a datagram is lost")?;
        sweep(&rig)?;
        thread::sleep(Duration::from_millis(50));
    }
    let mut got = vec![0; 100 * sent];
    (&tcp.0)
        .read_exact(&mut got)
        .context("the download is incomplete")?;
    // The pod speaks again, and is who it was.
    udp.0.send(b"still me")?;
    let (_, again) = server.recv_from(&mut [0; 64])?;
    ensure!(again == seen, "{seen} became {again}");
    (&tcp.0).write_all(b"thanks")?;
    download.set_read_timeout(Some(Duration::from_secs(2)))?;
    download
        .read_exact(&mut [0; 6])
        .context("the connection is cut the other way")
}

#[test]
fn ten_thousand_pings_leave_nothing_behind() -> Result<()> {
    const PINGS: u16 = 10_000;
    let (rig, pod) = rig_with(SHORT)?;
    // The first one teaches the neighbours.
    let host = INTERNET.to_string();
    pod.ns.output("ping", &["-c1", "-W2", &host])?;
    pod.ns.run(|| ping_with_ids(1..=PINGS))??;
    thread::sleep(OVER);
    let [scanned, deleted] = sweep(&rig)?;
    ensure!(
        deleted >= 2 * u64::from(PINGS),
        "{deleted} of {scanned} entries were deleted"
    );
    let text = rig.node.causeway(&["flows", "--json", "--proto", "icmp"])?;
    let flows: serde_json::Value = serde_json::from_str(&text)?;
    let left = flows["flows"].as_array().context("no list of flows")?.len();
    ensure!(left == 0, "{left} flows are left behind");
    // The identifiers are free again.
    pod.ns.run(|| ping_with_ids(1..=1))??;
    pod.ns.output("ping", &["-c3", "-i0.1", "-W2", &host]).map(drop)
}

/// Sends an echo request for each identifier.
fn ping_with_ids(ids: std::ops::RangeInclusive<u16>) -> Result<()> {
    let socket = socket_with(
        AddressFamily::INET,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        Some(ipproto::ICMP),
    )?;
    let to = SocketAddrV4::new(INTERNET, 0);
    for id in ids {
        let [high, low] = id.to_be_bytes();
        // Echo request, code 0, sequence 0, no data: the checksum is that of type and identifier.
        let (sum, carry) = 0x0800u16.overflowing_add(id);
        let [check_high, check_low] = (!(sum + u16::from(carry))).to_be_bytes();
        sendto(
            &socket,
            &[8, 0, check_high, check_low, high, low, 0, 0],
            SendFlags::empty(),
            &to,
        )?;
    }
    Ok(())
}

/// There is no daemon: DEL sweeps when the schedule says so, and what it finds changes the schedule. ADD leaves a table alone
/// that has room.
#[test]
fn a_del_sweeps_when_it_is_due() -> Result<()> {
    let (rig, pod) = rig_with(SHORT)?;
    let _echo = Echo::start(&rig.fabric.internet, ECHO)?;
    let udp = Udp::connect(&pod.ns, SocketAddrV4::new(INTERNET, ECHO))?;
    udp.chat(5)?;
    let halves = || Ok::<_, anyhow::Error>(states(&rig, "udp", &pod, udp.local()?)?.len());
    ensure!(halves()? == 2, "both halves of {} towards {NODE}", udp.local()?);
    sweep(&rig)?;
    thread::sleep(OVER);

    rig.node.remove(&rig.pod("b")?)?;
    ensure!(halves()? == 2, "swept right after the last sweep");

    let path = rig.node.root.join("/run/causeway/sweep-ipv4");
    let schedule = || Ok::<u64, anyhow::Error>(fs::read_to_string(&path)?.trim().parse()?);
    let seconds = schedule()?;
    ensure!(
        seconds == 120,
        "after a sweep for nothing the next one is in {seconds} s"
    );
    let mark = File::options().append(true).open(&path)?;
    let long_ago = SystemTime::now() - Duration::from_secs(seconds + 1);
    mark.set_modified(long_ago)?;
    let guest = rig.pod("c")?;
    ensure!(halves()? == 2, "an ADD swept a table that is nearly empty");
    // Somebody else is sweeping: the DEL waits for nothing.
    mark.lock()?;
    rig.node.remove(&guest)?;
    ensure!(halves()? == 2, "swept beside another sweep");
    mark.unlock()?;
    rig.node.remove(&guest)?;
    ensure!(halves()? == 0, "a DEL that was due did not sweep");
    ensure!(mark.metadata()?.modified()? > long_ago, "the sweep is not noted");
    ensure!(
        schedule()? == 60,
        "there was much to forget, and the next one is in {} s",
        schedule()?
    );
    Ok(())
}
