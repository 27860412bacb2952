//! Live frames from one end of a peer to the other: packets a second on one CPU.

use std::{
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use anyhow::{Result, ensure};
use causeway_tests::netns::Netns;

use super::{
    bound,
    way::{Load, Way, second, stream, wanted},
};
use crate::{
    counter::{At, Counter, Wanted},
    generator::{Flows, Generator, Stream},
    peer::Peer,
    programs::Programs,
    rounds::{Lane, Plan},
    stand::Stand,
};

/// A counter that several lanes read.
pub(crate) type SharedCounter = Arc<Mutex<Counter>>;

pub(crate) fn shared(counter: Counter) -> SharedCounter {
    Arc::new(Mutex::new(counter))
}

pub(crate) fn lock(counter: &SharedCounter) -> std::sync::MutexGuard<'_, Counter> {
    counter.lock().unwrap_or_else(PoisonError::into_inner)
}

/// After this long a neighbour has answered.
pub(crate) const RESOLVED: Duration = Duration::from_millis(20);
/// Packets of a block for each flow, at least: so many that of a second that begins in the block all of its flows' first
/// packets are in it too.
const PACKETS_A_FLOW: u32 = 4;

/// Live frames on one way of one peer.
pub(crate) struct FrameLane<'a> {
    label: String,
    senders: Vec<Sender<'a>>,
    counter: SharedCounter,
    wanted: Wanted,
    /// Opens the flows, where the measured packets are answers.
    opener: Option<Sender<'a>>,
    plan: Plan,
    together: bool,
    packets: u32,
    /// What redirects in place of a datapath.
    bound: Option<Arc<Programs>>,
}

/// What became of some packets.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Passed {
    /// Packets that were sent.
    pub(crate) sent: u64,
    /// Packets of those that arrived as they should.
    pub(crate) arrived: u64,
    /// How many were sent a second.
    pub(crate) a_second: f64,
}

/// A generator, where it runs, and its own flows.
struct Sender<'a> {
    ns: &'a Netns,
    generator: Generator,
    first: u32,
    flows: u32,
}

impl<'a> FrameLane<'a> {
    /// Prepares a way of a peer.
    pub(crate) fn new(stand: &'a Stand, way: Way, load: Load, plan: &Plan) -> Result<Self> {
        let counter = shared(counter(stand, way, wanted(stand, way, load.family)?)?);
        let bound = bound::attach(stand, way)?.map(Arc::new);
        Self::build(stand, way, load, plan, counter, bound)
    }

    /// A way that ends at the same place of the same peer, with another load, under another name.
    pub(crate) fn beside(&self, stand: &'a Stand, way: Way, load: Load, label: String) -> Result<Self> {
        let (counter, bound) = (Arc::clone(&self.counter), self.bound.clone());
        Ok(Self::build(stand, way, load, &self.plan, counter, bound)?.named(label))
    }

    /// The same lane under another name.
    pub(crate) fn named(mut self, label: String) -> Self {
        self.label = label;
        self
    }

    fn build(
        stand: &'a Stand,
        way: Way,
        load: Load,
        plan: &Plan,
        counter: SharedCounter,
        bound: Option<Arc<Programs>>,
    ) -> Result<Self> {
        let senders = match way {
            Way::Out => stand.pods.iter().take(load.pods).collect(),
            Way::Back | Way::ToVnet | Way::FromVnet | Way::Across | Way::Service => {
                vec![&stand.pods[0]]
            }
        };
        let each = load.flows / senders.len() as u32;
        let senders = senders.into_iter().zip(0..).map(|(pod, number)| {
            let stream = stream(stand, pod, way, load)?;
            let (ns, interface) = match way {
                Way::Out | Way::ToVnet | Way::Across | Way::Service => (&pod.ns, "eth0"),
                Way::Back | Way::FromVnet => (stand.far(), "node"),
            };
            Sender::new(ns, interface, &stream, number * each, each)
        });
        let opener = (way == Way::Back).then(|| {
            let pod = &stand.pods[0];
            let question = stream(stand, pod, Way::Out, load)?;
            Sender::new(&pod.ns, "eth0", &question, 0, load.flows)
        });
        Ok(Self {
            label: stand.peer.name().to_owned(),
            senders: senders.collect::<Result<_>>()?,
            counter,
            wanted: wanted(stand, way, load.family)?,
            opener: opener.transpose()?,
            plan: *plan,
            together: load.together,
            packets: 0,
            bound,
        })
    }

    /// One packet of each flow, which opens those that are not.
    pub(crate) fn each_flow_once(&mut self) -> Result<Passed> {
        self.senders.iter_mut().try_for_each(Sender::each_in_turn)?;
        let passed = self.pass(|sender| sender.flows);
        self.senders.iter_mut().try_for_each(Sender::at_random)?;
        passed
    }

    /// Runs of the first sender with hardly a pause, whether the packets arrive or not, as long as `goes_on` says so of their
    /// number. A run is long: between two the kernel may wait for whoever reads under RCU.
    pub(crate) fn runs_while(&mut self, goes_on: impl Fn(u32) -> bool + Sync) -> Result<Passed> {
        const BLOCKS: u32 = 10;
        let (cpu, packets) = (self.plan.cpu, BLOCKS * self.packets);
        self.counted(|senders| {
            let sender = &mut senders[0];
            let (runs, took) = sender.generator.send_while(sender.ns, cpu, packets, goes_on)?;
            let sent = u64::from(packets) * u64::from(runs);
            Ok((sent, number(sent) / took.as_secs_f64()))
        })
    }

    /// Sends a number of packets from each sender; how many arrived a second.
    fn send(&mut self, packets: impl Fn(&Sender<'_>) -> u32 + Sync) -> Result<f64> {
        let Passed {
            sent,
            arrived,
            a_second,
        } = self.pass(packets)?;
        ensure!(
            arrived * 1000 >= sent * 999,
            "{sent} packets were sent and {arrived} arrived as they should"
        );
        Ok(a_second * number(arrived) / number(sent))
    }

    /// Sends a number of packets from each sender, and waits for them.
    fn pass(&mut self, packets: impl Fn(&Sender<'_>) -> u32 + Sync) -> Result<Passed> {
        let (cpu, together) = (self.plan.cpu, self.together);
        self.counted(|senders| {
            let sent: u64 = senders.iter().map(|sender| u64::from(packets(sender))).sum();
            let a_second = if together {
                thread::scope(|scope| -> Result<f64> {
                    let senders = senders.iter_mut().zip(cpu..);
                    let running: Vec<_> = senders
                        .map(|(sender, cpu)| {
                            let packets = packets(sender);
                            let send = move || sender.generator.send(sender.ns, cpu, packets);
                            (packets, scope.spawn(send))
                        })
                        .collect();
                    let rates = running.into_iter().map(|(packets, sender)| {
                        let took = sender
                            .join()
                            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
                        Ok(f64::from(packets) / took.as_secs_f64())
                    });
                    rates.sum()
                })?
            } else {
                let mut took = Duration::ZERO;
                for sender in senders {
                    let packets = packets(sender);
                    took += sender.generator.send(sender.ns, cpu, packets)?;
                }
                number(sent) / took.as_secs_f64()
            };
            Ok((sent, a_second))
        })
    }

    /// Sends, and counts what arrives. `send` says how many packets it has sent, and how many a second.
    fn counted(&mut self, send: impl FnOnce(&mut [Sender<'a>]) -> Result<(u64, f64)>) -> Result<Passed> {
        let mut counter = lock(&self.counter);
        counter.expect(self.wanted)?;
        let before = counter.read()?;
        let (sent, a_second) = send(&mut self.senders)?;
        let after = counter.settled(before, sent)?;
        ensure!(
            after.bad == before.bad,
            "{} of the packets that were looked at arrived with a wrong checksum",
            after.bad - before.bad
        );
        Ok(Passed {
            sent,
            arrived: after.packets - before.packets,
            a_second,
        })
    }
}

impl Lane for FrameLane<'_> {
    fn label(&self) -> String {
        self.label.clone()
    }

    fn warm_up(&mut self) -> Result<()> {
        for sender in self.opener.iter_mut().chain(&mut self.senders) {
            sender.each_in_turn()?;
            sender.resolve(self.plan.cpu)?;
        }
        if let Some(opener) = &mut self.opener {
            opener.each_in_turn()?;
            opener.generator.send(opener.ns, self.plan.cpu, opener.flows)?;
        }
        // Twice: what is decided by the first packet shows at the second.
        for _ in 0..2 {
            self.senders.iter_mut().try_for_each(Sender::each_in_turn)?;
            self.send(|sender| sender.flows)?;
        }
        self.senders.iter_mut().try_for_each(Sender::at_random)?;
        let rate = self.send(|_| 20_000)?;
        // One after the other, they share a block.
        let share = if self.together {
            1
        } else {
            self.senders.len() as u32
        };
        let flows = self.senders.iter().map(|sender| sender.flows).max();
        self.packets = (self.plan.packets(rate) / share).max(PACKETS_A_FLOW * flows.unwrap_or(0));
        Ok(())
    }

    /// Beforehand every flow has a packet that is not timed. Once a second Causeway looks at a flow's route and at its other
    /// half: under such a load one packet in a thousand, but after a second's pause every flow's first.
    fn block(&mut self) -> Result<f64> {
        self.senders.iter_mut().try_for_each(Sender::each_in_turn)?;
        self.send(|sender| sender.flows)?;
        self.senders.iter_mut().try_for_each(Sender::at_random)?;
        let packets = self.packets;
        self.send(|_| packets)
    }
}

impl<'a> Sender<'a> {
    fn new(ns: &'a Netns, interface: &str, stream: &Stream, first: u32, flows: u32) -> Result<Self> {
        Ok(Self {
            ns,
            generator: Generator::new(ns, interface, stream)?,
            first,
            flows,
        })
    }

    fn each_in_turn(&mut self) -> Result<()> {
        self.generator.choose(Flows::From(self.first))
    }

    /// One packet alone, so that the neighbours on its way are known: only a few can wait for an answer.
    fn resolve(&mut self, cpu: usize) -> Result<()> {
        self.generator.send(self.ns, cpu, 1)?;
        thread::sleep(RESOLVED);
        Ok(())
    }

    fn at_random(&mut self) -> Result<()> {
        self.generator.choose(Flows::Random {
            first: self.first,
            count: self.flows,
        })
    }
}

#[expect(clippy::cast_precision_loss, reason = "a run's packets")]
pub(crate) fn number(packets: u64) -> f64 {
    packets as f64
}

/// The counter at the end of a way.
fn counter(stand: &Stand, way: Way, wanted: Wanted) -> Result<Counter> {
    // What the driver hands over as a frame never becomes a packet of the stack.
    let inside = match stand.peer {
        Peer::BlindXdp => At::Xdp,
        Peer::CausewayXdp => At::Either,
        _ => At::Tc,
    };
    let (ns, interface, at) = match way {
        Way::Out | Way::ToVnet | Way::Service => (stand.far(), "node", At::Xdp),
        Way::Back | Way::FromVnet => (&stand.pods[0].ns, "eth0", inside),
        Way::Across => (&second(stand)?.ns, "eth0", inside),
    };
    Counter::new(ns, interface, at, wanted)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        family::Family,
        generator::{Frames, SMALLEST_OF_BOTH},
        lanes::way::OUTSIDE,
        stand::Build,
    };

    /// Needs root and `CAUSEWAY_DIST`, as everything that builds a node.
    #[test]
    fn packets_of_a_causeway_node_arrive_translated_and_whole() {
        let plan = Plan {
            block: Duration::from_millis(5),
            rounds: 1,
            cpu: 0,
        };
        let stand = Stand::build(Peer::Causeway, 1, &Build::default()).unwrap();
        let mut lane = FrameLane::new(&stand, Way::Out, Load::PLAIN, &plan).unwrap();
        lane.warm_up().unwrap();
        assert!(lane.block().unwrap() > 0.0);

        // The counter believes nobody: from another source nothing counts.
        let stranger = Wanted {
            src: (stand.pods[0].addr.into(), 32),
            dst: (OUTSIDE.into(), 16),
            verify: true,
        };
        drop(lane);
        let mut counter = Counter::new(stand.far(), "node", At::Xdp, stranger).unwrap();
        let stream = stream(&stand, &stand.pods[0], Way::Out, Load::PLAIN).unwrap();
        let mut generator = Generator::new(&stand.pods[0].ns, "eth0", &stream).unwrap();
        generator.send(&stand.pods[0].ns, 0, 1000).unwrap();
        let before = counter.read().unwrap();
        assert_eq!(counter.settled(before, 1).unwrap().packets, 0);
    }

    /// As above.
    #[test]
    fn packets_of_both_families_are_told_apart_by_one_counter() {
        let plan = Plan {
            block: Duration::from_millis(5),
            rounds: 1,
            cpu: 0,
        };
        let stand = Stand::dual_stack(Peer::Causeway, 2).unwrap();
        let of_ipv6 = Load {
            family: Family::V6,
            frames: Frames::Of(SMALLEST_OF_BOTH),
            ..Load::PLAIN
        };
        for way in [Way::Across, Way::ToVnet, Way::FromVnet] {
            let mut lane = FrameLane::new(&stand, way, of_ipv6, &plan).unwrap();
            let mut other = lane.beside(&stand, way, Load::PLAIN, String::new()).unwrap();
            for lane in [&mut lane, &mut other] {
                lane.warm_up().unwrap();
                assert!(lane.block().unwrap() > 0.0);
            }
            lane.wanted = other.wanted;
            let passed = lane.runs_while(|runs| runs == 0).unwrap();
            assert!(passed.sent > 0 && passed.arrived == 0, "{way:?}: {passed:?}");
        }
    }
}
