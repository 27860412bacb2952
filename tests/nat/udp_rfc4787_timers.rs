//! RFC 4787: how long a mapping lives, and what renews it.

use std::net::SocketAddr;

use anyhow::{Result, ensure};

use crate::{
    family::{Family, of_both_families},
    mapping::{Flow, UDP, expect_seconds, sysctl},
    peer::Peer,
    side::{Side, agree, both, both_with},
    udp_rfc4787::{PORT, SERVER, server},
};

of_both_families!(
    req_5_an_idle_mapping_lives_for_two_minutes,
    req_5a_well_known_ports_have_no_timer_of_their_own,
    req_5b_the_timer_is_the_kernels_sysctl,
    req_5c_five_minutes_are_a_sysctl_away,
    req_6_a_datagram_from_inside_renews_the_mapping,
    req_6a_a_datagram_from_outside_renews_the_mapping,
);

/// RFC 4787 REQ-5 | an idle mapping lives for two minutes at least | 120 s after datagrams of one side and of both
/// (`nf_conntrack_udp_timeout`, `…_stream`, not below 120 s); then nothing comes in by it | 30 s after datagrams of one side,
/// 120 s after those of both | met
fn req_5_an_idle_mapping_lives_for_two_minutes(family: Family) -> Result<()> {
    let [causeway, nf_nat] = both(family, |side| {
        let (pod, server) = (side.peer(&side.pod, PORT)?, server(side)?);
        let flow = Flow(UDP, pod.addr);
        let mapped = pod.reach(&server)?;
        let one_way = side.lifetime(flow)?;
        // conntrack calls a flow a stream when it has lasted for two seconds.
        server.reach_by(mapped, &pod)?;
        std::thread::sleep(std::time::Duration::from_millis(2100));
        pod.reach(&server)?;
        server.reach_by(mapped, &pod)?;
        let both_ways = side.lifetime(flow)?;
        if side.is_causeway() {
            side.age_beyond(flow, 120)?;
            ensure!(!side.knows(flow)?);
            ensure!(
                !server.does_reach(mapped, &pod)?,
                "a forgotten mapping lets a datagram in"
            );
            ensure!(
                pod.reach(&server)? == mapped,
                "and is made again with another port"
            );
        }
        Ok([one_way, both_ways])
    })?;
    for (seconds, expected) in causeway.into_iter().chain(nf_nat).zip([120, 120, 30, 120]) {
        expect_seconds(seconds, expected)?;
    }
    Ok(())
}

/// RFC 4787 REQ-5a | a mapping towards a well-known port may have a shorter timer | none has: port 53 is like any other | the same | met
fn req_5a_well_known_ports_have_no_timer_of_their_own(family: Family) -> Result<()> {
    let lifetimes = both(family, |side| {
        let pod = side.peer(&side.pod, PORT)?;
        let mut lifetimes = Vec::new();
        for port in [53, 123, SERVER] {
            pod.reach(&Peer::on(side.internet(), side.near_at(port))?)?;
            lifetimes.push(side.lifetime(Flow(UDP, pod.addr))?);
        }
        Ok(lifetimes)
    })?;
    for (lifetimes, expected) in lifetimes.into_iter().zip([120, 30]) {
        lifetimes
            .into_iter()
            .try_for_each(|seconds| expect_seconds(seconds, expected))?;
    }
    Ok(())
}

/// RFC 4787 REQ-5b | the timer may be configurable | by the kernel's own `nf_conntrack_udp_timeout` and `…_stream`, read when the datapath is
/// loaded | by the same | met
fn req_5b_the_timer_is_the_kernels_sysctl(family: Family) -> Result<()> {
    let timer = sysctl("udp_timeout");
    let lifetimes = both_with(family, &[(&timer, "777")], |side| {
        let (pod, server) = (side.peer(&side.pod, PORT)?, server(side)?);
        pod.reach(&server)?;
        side.lifetime(Flow(UDP, pod.addr))
    })?;
    lifetimes
        .into_iter()
        .try_for_each(|seconds| expect_seconds(seconds, 777))
}

/// RFC 4787 REQ-5c | five minutes are recommended as the default | 120 s: the kernel's default for streams | 120 s | by design not: a node keeps
/// the timers it had; `nf_conntrack_udp_timeout_stream` = 300 gives five minutes
fn req_5c_five_minutes_are_a_sysctl_away(family: Family) -> Result<()> {
    let timers = [sysctl("udp_timeout"), sysctl("udp_timeout_stream")];
    let as_recommended: Vec<(&str, &str)> = timers.iter().map(|timer| (timer.as_str(), "300")).collect();
    for (sysctls, expected) in [(&[][..], [120, 30]), (&as_recommended, [300, 300])] {
        let lifetimes = both_with(family, sysctls, |side| {
            let (pod, server) = (side.peer(&side.pod, PORT)?, server(side)?);
            let mapped = pod.reach(&server)?;
            server.reach_by(mapped, &pod)?;
            side.lifetime(Flow(UDP, pod.addr))
        })?;
        // Within its first two seconds a flow is no stream yet to conntrack.
        for (seconds, expected) in lifetimes.into_iter().zip(expected) {
            expect_seconds(seconds, expected)?;
        }
    }
    Ok(())
}

/// RFC 4787 REQ-6 | a datagram from inside keeps its mapping alive | yes, looked at once a second | yes | met
fn req_6_a_datagram_from_inside_renews_the_mapping(family: Family) -> Result<()> {
    agree(family, |side| {
        let idle = Idle::new(side)?;
        ensure!(!side.is_renewed(idle.flow)?, "renewed by nothing");
        idle.pod.reach(&idle.server)?;
        ensure!(side.is_renewed(idle.flow)?, "not renewed");
        Ok(())
    })
}

/// RFC 4787 REQ-6a | a datagram from outside may keep it alive too | yes | yes | met
fn req_6a_a_datagram_from_outside_renews_the_mapping(family: Family) -> Result<()> {
    agree(family, |side| {
        let idle = Idle::new(side)?;
        idle.server.reach_by(idle.mapped, &idle.pod)?;
        ensure!(side.is_renewed(idle.flow)?, "not renewed");
        Ok(())
    })
}

/// A mapping that nothing has passed for a while.
pub(crate) struct Idle {
    pub(crate) pod: Peer,
    pub(crate) server: Peer,
    /// The pod as the server sees it.
    pub(crate) mapped: SocketAddr,
    pub(crate) flow: Flow,
}

impl Idle {
    pub(crate) fn new(side: &Side) -> Result<Self> {
        let (pod, server) = (side.peer(&side.pod, PORT)?, server(side)?);
        let flow = Flow(UDP, pod.addr);
        let mapped = pod.reach(&server)?;
        side.age(flow)?;
        Ok(Self {
            pod,
            server,
            mapped,
            flow,
        })
    }
}
