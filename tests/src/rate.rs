//! Packets per second and core of two nodes, side by side on one machine.
//!
//! Noise on a shared machine is larger than what is compared, so the two take turns in short blocks, A B B A, and what counts is
//! the median of the ratios of neighbouring blocks. One CPU does everything: it generates the packets and runs the
//! datapath, and the far end of the uplink counts, by a rule that matches only packets that carry the node's address, and drops.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::{
    capture::Capture,
    fabric::{INTERNET, NODE},
    generator::{Course, Generator, Kind},
    netns::Netns,
    node::Pod,
    offload,
    rig::Rig,
    rules,
    talk::Udp,
};

/// UDP port of the measured packets (RFC 863, discard).
const PORT: u16 = 9;

/// Length of a block: long enough for the counter, short enough that both lanes of a pair meet the same noise.
const BLOCK: Duration = Duration::from_millis(150);

/// A node under load: a pod that sends to the internet.
#[derive(Debug)]
pub struct Lane<'a> {
    rig: &'a Rig,
    pod: &'a Pod,
    generator: Generator,
}

/// What a comparison found.
#[derive(Clone, Debug)]
pub struct Comparison {
    /// Median rate of the first lane, packets a second.
    pub first: f64,
    /// Median rate of the second lane, packets a second.
    pub second: f64,
    /// Ratios first to second of neighbouring blocks, ascending.
    pub ratios: Vec<f64>,
}

impl Comparison {
    /// The median of the ratios.
    pub fn ratio(&self) -> f64 {
        median(&self.ratios)
    }
}

impl<'a> Lane<'a> {
    /// Prepares a pod of the rig to send.
    pub fn new(rig: &'a Rig, pod: &'a Pod) -> Result<Self> {
        rules::sink(&rig.fabric.router, NODE, PORT)?;
        offload::set(&rig.node.ns, &rig.node.host_interface(pod)?, offload::GRO, true)?;
        let (gateway_mac, pod_mac) = first_hop(&pod.ns, INTERNET)?;
        let course = Course {
            gateway_mac,
            pod_mac,
            pod: pod.addr.into(),
            to: INTERNET.into(),
            port: PORT,
            kind: Kind::Datagrams,
        };
        Ok(Self {
            rig,
            pod,
            generator: Generator::new(&pod.ns, "eth0", &course)?,
        })
    }

    /// Sends `packets` and returns how many a second arrived translated.
    fn block(&self, packets: u32) -> Result<f64> {
        let (arrived, took) = self.send(packets)?;
        Ok(f64::from(arrived) / took.as_secs_f64())
    }

    /// Opens every flow, and finds out how many packets make a block of [`BLOCK`].
    fn warm_up(&self) -> Result<u32> {
        self.send(50_000)?;
        let (arrived, took) = self.send(200_000)?;
        let packets = u128::from(arrived) * BLOCK.as_nanos() / took.as_nanos().max(1);
        Ok(u32::try_from(packets)?)
    }

    /// Sends `packets`; how many arrived translated, and how long it took.
    fn send(&self, packets: u32) -> Result<(u32, Duration)> {
        let before = self.arrived()?;
        let took = self
            .pod
            .ns
            .run(|| on_one_cpu(|| self.generator.send(packets)))??;
        Ok((u32::try_from(self.arrived()? - before)?, took))
    }

    fn arrived(&self) -> Result<u64> {
        rules::dropped(&self.rig.fabric.router, "raw", "PREROUTING")
    }
}

/// Lets two lanes take turns for about `length`, after a warm-up.
pub fn compare(first: &Lane<'_>, second: &Lane<'_>, length: Duration) -> Result<Comparison> {
    let (first_packets, second_packets) = (first.warm_up()?, second.warm_up()?);
    let (mut firsts, mut seconds, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    let mut first_leads = true;
    let end = Instant::now() + length;
    while Instant::now() < end || !first_leads {
        let (one, other) = if first_leads {
            let one = first.block(first_packets)?;
            (one, second.block(second_packets)?)
        } else {
            let other = second.block(second_packets)?;
            (first.block(first_packets)?, other)
        };
        ensure!(
            one > 0.0 && other > 0.0,
            "no packet arrived with the node's address"
        );
        firsts.push(one);
        seconds.push(other);
        ratios.push(one / other);
        first_leads = !first_leads;
    }
    for list in [&mut firsts, &mut seconds, &mut ratios] {
        list.sort_by(f64::total_cmp);
    }
    Ok(Comparison {
        first: median(&firsts),
        second: median(&seconds),
        ratios,
    })
}

/// Destination and source MAC of what a pod sends to an address.
pub fn first_hop(pod: &Netns, to: Ipv4Addr) -> Result<([u8; 6], [u8; 6])> {
    let wire = Capture::start(pod, "eth0")?;
    Udp::connect(pod, SocketAddrV4::new(to, PORT))?.0.send(b"first")?;
    std::thread::sleep(Duration::from_millis(50));
    let frames = wire.stop();
    let sent = frames
        .iter()
        .find(|frame| frame.ip.as_ref().is_some_and(|ip| ip.dst == to));
    let sent = sent.with_context(|| format!("the pod sent nothing towards {to}"))?;
    Ok((sent.dst_mac, sent.src_mac))
}

/// Runs `f` on the first CPU that the process may use. Called on a thread that ends after it.
fn on_one_cpu<T>(f: impl FnOnce() -> Result<T>) -> Result<T> {
    let allowed = sched_getaffinity(None)?;
    let first = (0..CpuSet::MAX_CPU)
        .find(|&cpu| allowed.is_set(cpu))
        .context("no CPU is allowed")?;
    let mut one = CpuSet::new();
    one.set(first);
    sched_setaffinity(None, &one)?;
    f()
}

/// Of a sorted, non-empty list.
fn median(sorted: &[f64]) -> f64 {
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 {
        sorted[middle]
    } else {
        f64::midpoint(sorted[middle - 1], sorted[middle])
    }
}
