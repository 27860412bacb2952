//! The agent comes, goes and is killed, programs are exchanged: no connection feels it.

use std::{
    net::SocketAddrV4,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use causeway_tests::{
    agent::Agent,
    echo::Echo,
    fabric::{INTERNET, VNET},
    node::Datapath,
    rig::Rig,
    talk::{Tcp, Udp},
};

use crate::places::Places;

/// Runs `disturb` while connections of two pods to three places go on, and checks every byte of them.
fn nobody_feels(
    datapath: Datapath,
    [tcp, udp]: [usize; 2],
    disturb: impl Fn(&Rig) -> Result<()>,
) -> Result<()> {
    let rig = Rig::with(datapath, 20)?;
    let (pod, other) = (rig.pod("a")?, rig.pod("b")?);
    let places = Places::new(&rig, &other)?;
    let mut streams: Vec<Tcp> = (0..tcp)
        .map(|n| Tcp::connect(&pod.ns, places.address(n)))
        .collect::<Result<_>>()?;
    let sockets: Vec<Udp> = (0..udp)
        .map(|n| Udp::connect(&pod.ns, places.address(n)))
        .collect::<Result<_>>()?;
    streams.iter_mut().try_for_each(|tcp| tcp.chat(1))?;
    sockets.iter().try_for_each(|udp| udp.chat(1))?;
    let (stop, turns) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| -> Result<()> {
        let (stop, turns) = (&stop, &turns);
        let count = |done: Result<()>| {
            turns.fetch_add(1, Ordering::Relaxed);
            done
        };
        let streams = scope.spawn(move || -> Result<()> {
            while !stop.load(Ordering::Relaxed) {
                for (n, tcp) in streams.iter_mut().enumerate() {
                    count(tcp.chat(1).with_context(|| format!("TCP connection {n}")))?;
                }
            }
            Ok(())
        });
        let datagrams = scope.spawn(move || -> Result<()> {
            while !stop.load(Ordering::Relaxed) {
                for (n, udp) in sockets.iter().enumerate() {
                    count(
                        udp.chat(1)
                            .with_context(|| format!("UDP socket {n}: a datagram is lost")),
                    )?;
                }
            }
            Ok(())
        });
        let disturbed = disturb(&rig);
        thread::sleep(Duration::from_millis(100));
        stop.store(true, Ordering::Relaxed);
        streams.join().expect("no panic")?;
        datagrams.join().expect("no panic")?;
        disturbed
    })?;
    let connections: usize = places.seen().into_iter().sum();
    // A socket of each kind may have the same port.
    ensure!(
        connections <= tcp + udp,
        "{connections} connections: some were opened again"
    );
    println!("{} messages, none lost", turns.load(Ordering::Relaxed));
    Ok(())
}

/// Killed at any moment of its start and of its work.
fn kills(rig: &Rig, times: u64) -> Result<()> {
    for time in 0..times {
        let agent = if time % 4 == 0 {
            Agent::start(&rig.node)?
        } else {
            let agent = Agent::spawn(&rig.node)?;
            thread::sleep(Duration::from_millis(time * 7 % 90));
            agent
        };
        agent.kill()?;
    }
    let mut agent = Agent::start(&rig.node)?;
    agent.wait_for("readiness", |agent| Ok(agent.get("/readyz").is_ok()))?;
    agent.end()
}

/// By the command and by agents that find another build's programs.
fn upgrades(rig: &Rig, times: u32) -> Result<()> {
    for time in 0..times {
        if time % 2 == 0 {
            let said = rig.node.causeway(&["upgrade", "--again"])?;
            ensure!(said.contains("exchanged on 6 hooks"), "{said}");
        } else {
            rig.node.root.write("/run/causeway/build", "another")?;
            let agent = Agent::start(&rig.node)?;
            ensure!(
                agent.log().contains("the programs are exchanged"),
                "{}",
                agent.log()
            );
            agent.end()?;
        }
    }
    let said = rig.node.causeway(&["upgrade"])?;
    ensure!(said.contains("this version's"), "{said}");
    Ok(())
}

#[test]
fn nobody_feels_an_agent_that_is_killed() -> Result<()> {
    nobody_feels(Datapath::Causeway, [50, 20], |rig| kills(rig, 20))
}

#[test]
fn nobody_feels_an_exchange_of_the_programs() -> Result<()> {
    nobody_feels(Datapath::Causeway, [50, 20], |rig| upgrades(rig, 6))
}

#[test]
fn nobody_feels_an_exchange_of_the_programs_under_clsact() -> Result<()> {
    nobody_feels(Datapath::CausewayClsact, [20, 10], |rig| upgrades(rig, 4))
}

#[test]
fn nobody_feels_an_exchange_of_the_programs_with_xdp() -> Result<()> {
    nobody_feels(Datapath::CausewayXdp, [20, 10], |rig| {
        for _ in 0..3 {
            rig.node.causeway(&["upgrade", "--again"])?;
            let status = rig.node.causeway_json("status")?;
            ensure!(status["xdp"] == true, "{status}");
        }
        Ok(())
    })
}

#[test]
#[ignore = "minutes"]
fn long_two_hundred_kills_under_traffic() -> Result<()> {
    nobody_feels(Datapath::Causeway, [500, 100], |rig| kills(rig, 200))
}

#[test]
#[ignore = "minutes"]
fn long_fifty_exchanges_under_traffic() -> Result<()> {
    nobody_feels(Datapath::Causeway, [500, 100], |rig| upgrades(rig, 50))
}

#[test]
fn there_is_one_agent() -> Result<()> {
    let rig = Rig::causeway()?;
    let first = Agent::start(&rig.node)?;
    let second = rig.node.causeway_command(&["agent"])?.output()?;
    let text = String::from_utf8_lossy(&second.stderr);
    ensure!(
        !second.status.success()
            && text.contains("another agent is running")
            && text.contains(&first.pid().to_string()),
        "{text}"
    );
    first.end()
}

/// A datapath that an older release has loaded, whose tree is `v1`, is taken over under the traffic that it carries.
///
/// `CAUSEWAY_OLD_DIST` names the installed tree of such a release: commit f8b04a4 is the last one of schema 1.
#[test]
#[ignore = "needs an older release"]
fn an_older_schema_is_taken_over_under_its_traffic() -> Result<()> {
    let old = std::env::var_os("CAUSEWAY_OLD_DIST").context("CAUSEWAY_OLD_DIST is not set")?;
    let old = causeway_tests::dist::Dist::at(old.as_ref())?;
    let fabric = causeway_tests::fabric::Fabric::new()?;
    let mut node = causeway_tests::node::Node::new(&fabric, Datapath::Causeway, 20)?;
    let new = node.exchange_programs(old)?;
    let pod = node.add("a")?;
    let echoes = [Echo::start(&fabric.internet, 7)?, Echo::start(&fabric.vnet, 7)?];
    let places = [INTERNET, VNET].map(|addr| SocketAddrV4::new(addr, 7));
    let mut streams: Vec<Tcp> = (0..40)
        .map(|n| Tcp::connect(&pod.ns, places[n % 2]))
        .collect::<Result<_>>()?;
    streams.iter_mut().try_for_each(|tcp| tcp.chat(3))?;
    let before = node.causeway_json("status")?;
    ensure!(before["schema"] == 1, "{before}");
    node.exchange_programs(new)?;
    let stop = AtomicBool::new(false);
    thread::scope(|scope| -> Result<()> {
        let chatting = scope.spawn(|| -> Result<()> {
            while !stop.load(Ordering::Relaxed) {
                streams.iter_mut().try_for_each(|tcp| tcp.chat(1))?;
            }
            Ok(())
        });
        let agent = Agent::start(&node);
        thread::sleep(Duration::from_secs(1));
        stop.store(true, Ordering::Relaxed);
        chatting.join().expect("no panic")?;
        let agent = agent?;
        ensure!(
            agent.log().contains("an older schema is taken over"),
            "{}",
            agent.log()
        );
        agent.get("/readyz")?;
        agent.end()
    })?;
    let after = node.causeway_json("status")?;
    ensure!(
        after["schema"] == causeway_common::maps::SCHEMA && after["attached"] == "tcx",
        "{after}"
    );
    ensure!(!node.root.join("/sys/fs/bpf/causeway/v1").exists());
    Tcp::connect(&pod.ns, places[0])?.chat(3)?;
    let seen: usize = echoes.iter().map(|echo| echo.seen().len()).sum();
    ensure!(seen == 41, "{seen} connections");
    node.remove(&pod)?;
    node.causeway(&["unload"])?;
    Ok(())
}
