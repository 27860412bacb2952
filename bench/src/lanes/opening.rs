//! First packets: each one opens a flow. A block ends with a peer that has forgotten them.

use std::{net::Ipv4Addr, sync::Arc, thread};

use anyhow::{Context, Result, ensure};
use causeway_tests::node::Pod;

use super::{
    frames::{RESOLVED, SharedCounter, lock, shared},
    way::{Load, OUTSIDE, Way, stream},
};
use crate::{
    counter::{At, Counter, Wanted},
    generator::{Flows, Generator, Stream},
    peer::Kind,
    rounds::{Lane, Plan},
    stand::Stand,
};

/// Flows of a block at most: what the tables hold stays far from full.
const MOST: u32 = 30_000;
/// Ports that translated flows to one remote can have: all but the first 1024 and the 2768 of NodePorts.
const PORTS: u32 = 65_536 - 1024 - 2768;
/// The lowest of them.
const FIRST_PORT: u16 = 1024;
/// Flows to a crowded remote that are opened before the stopwatch runs: the first that finds no port by probing makes the
/// map of the remote's ports, which is forgotten with the pod of each block.
const UNTIMED: u32 = 48;

/// Flows of a block to a crowded remote: half of the ports that are left when ninety-nine of a hundred are in use. As many
/// with fewer in use, because a block this short has its fixed costs in each flow.
const CROWD_FLOWS: u32 = PORTS / 200;

/// New flows a second, to many remotes or to one whose ports are nearly used up.
pub(crate) struct OpeningLane<'a> {
    label: String,
    stand: &'a Stand,
    plan: Plan,
    counter: SharedCounter,
    flows: u32,
    crowd: Option<Crowd<'a>>,
    blocks: u32,
    /// Flows that were to be opened so far, and that were.
    asked: u32,
    opened: u32,
}

/// One remote whose ports a pod holds.
#[derive(Clone, Copy)]
struct Crowd<'a> {
    holder: &'a Pod,
    held: u32,
    number: u8,
}

impl<'a> OpeningLane<'a> {
    /// Flows to many remotes; each keeps its port.
    pub(crate) fn new(stand: &'a Stand, plan: &Plan) -> Result<Self> {
        let wanted = Wanted {
            src: (
                stand.seen(&stand.pods[0]).into(),
                if stand.peer.translates() { 32 } else { 24 },
            ),
            dst: (OUTSIDE.into(), 16),
            verify: true,
        };
        Ok(Self {
            label: stand.peer.name().to_owned(),
            stand,
            plan: *plan,
            counter: shared(Counter::new(stand.far(), "node", At::Xdp, wanted)?),
            flows: 0,
            crowd: None,
            blocks: 0,
            asked: 0,
            opened: 0,
        })
    }

    /// The same lane under another name.
    pub(crate) fn named(mut self, label: String) -> Self {
        self.label = label;
        self
    }

    /// Flows to one remote, of which another pod holds so many per cent of the ports, those that are asked for among them.
    /// `number` tells the remotes of several such lanes apart, and the pods that hold their ports.
    pub(crate) fn crowded(&self, percent: u32, number: u8) -> Result<Self> {
        let holder = self
            .stand
            .pods
            .get(usize::from(number))
            .context("no pod is left to hold ports")?;
        let held = PORTS * percent / 100;
        Ok(Self {
            label: format!("{} {percent} %", self.stand.peer.name()),
            stand: self.stand,
            plan: self.plan,
            counter: Arc::clone(&self.counter),
            flows: CROWD_FLOWS,
            crowd: Some(Crowd { holder, held, number }),
            blocks: u32::from(number) * 1000,
            asked: 0,
            opened: 0,
        })
    }

    /// Opens flows from a pod, those that come after the `first`; how many came through, and how many a second.
    fn open(&mut self, pod: &Pod, first: u32, flows: u32) -> Result<(u32, f64)> {
        let plain = stream(self.stand, pod, Way::Out, Load::PLAIN)?;
        let stream = match self.crowd {
            None => plain,
            Some(crowd) => Stream {
                dst: Ipv4Addr::from_bits(OUTSIDE.to_bits() + 0x8000 + u32::from(crowd.number)).into(),
                ports: (FIRST_PORT, plain.ports.1),
                port_bits: 16,
                ..plain
            },
        };
        let mut generator = Generator::new(&pod.ns, "eth0", &stream)?;
        generator.choose(Flows::From(first))?;
        let mut counter = lock(&self.counter);
        let before = counter.read()?;
        let took = generator.send(&pod.ns, self.plan.cpu, flows)?;
        let after = counter.settled(before, flows.into())?;
        ensure!(after.bad == before.bad, "packets arrived with a wrong checksum");
        let opened = u32::try_from(after.packets - before.packets)?;
        Ok((opened, f64::from(opened) / took.as_secs_f64()))
    }

    /// Lets the peer forget the flows of a pod.
    fn forget(&self, pod: &Pod) -> Result<()> {
        let node = self.stand.node()?;
        if self.stand.peer.kind() == Kind::Ours {
            return node.remove(pod);
        }
        // Fails if there was none.
        let addr = pod.addr.to_string();
        node.ns
            .output("conntrack", &["-D", "-s", &addr])
            .map(drop)
            .or(Ok(()))
    }

    /// A pod that has no flows yet.
    fn with_fresh_pod<T>(&mut self, f: impl FnOnce(&mut Self, &Pod) -> Result<T>) -> Result<T> {
        let stand = self.stand;
        if stand.peer.kind() != Kind::Ours {
            // The last one: the others may hold ports.
            let pod = stand.pods.last().context("a peer has pods")?;
            let done = f(self, pod);
            self.forget(pod)?;
            return done;
        }
        self.blocks += 1;
        let pod = stand.add(&format!("opening-{}", self.blocks))?;
        let done = f(self, &pod);
        self.forget(&pod)?;
        done
    }
}

impl Lane for OpeningLane<'_> {
    fn note(&self) -> Option<String> {
        let refused = self.asked - self.opened;
        (refused > 0).then(|| format!("{}: {refused} of {} flows were refused", self.label, self.asked))
    }

    fn label(&self) -> String {
        self.label.clone()
    }

    fn warm_up(&mut self) -> Result<()> {
        self.with_fresh_pod(|lane, pod| lane.open(pod, 0, 1))?;
        thread::sleep(RESOLVED);
        if let Some(Crowd { holder, held, .. }) = self.crowd {
            if held == 0 {
                return Ok(());
            }
            let (opened, _) = self.open(holder, 0, held)?;
            self.asked += held;
            self.opened += opened;
            ensure!(
                opened * 100 >= held * 99,
                "{opened} of {held} ports were taken; {}",
                self.stand.says()
            );
            return Ok(());
        }
        let (_, rate) = self.with_fresh_pod(|lane, pod| lane.open(pod, 0, 2_000))?;
        self.flows = self.plan.packets(rate).min(MOST);
        Ok(())
    }

    fn block(&mut self) -> Result<f64> {
        let flows = self.flows;
        let untimed = if self.crowd.is_some() { UNTIMED } else { 0 };
        let (opened, rate) = self.with_fresh_pod(|lane, pod| {
            if untimed > 0 {
                lane.open(pod, 0, untimed)?;
            }
            lane.open(pod, untimed, flows)
        })?;
        self.asked += flows;
        self.opened += opened;
        // Only where ports run out may a flow be refused.
        ensure!(
            opened * 1000 >= flows * 999 || self.crowd.is_some(),
            "{opened} of {flows} flows were opened"
        );
        Ok(rate)
    }
}
