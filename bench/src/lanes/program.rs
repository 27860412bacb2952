//! One installed program's own nanoseconds, on the tables that its node has.
//!
//! `BPF_PROG_TEST_RUN` repeats a program of the bench that writes the packet of some flow and goes on into the measured one by
//! a tail call; the same with a program that does nothing is taken off. Redirections are noted and not carried out.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use aya::{
    maps::ProgramArray,
    programs::{SchedClassifier, TestRun as _, TestRunOptions},
};
use causeway_tests::netns::Netns;

use crate::{
    cpu,
    family::Family,
    generator::{Flows, Stream},
    programs::{Programs, layout::Feed},
    rounds::{Lane, Plan},
    stand::Stand,
};

/// Index of the measured program among those that can follow.
const MEASURED: u32 = 0;
/// Index of the one that does nothing.
const NOTHING: u32 = 1;

/// Runs in a block.
const SLICES: u32 = 8;

/// What a program is to say of every packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Says {
    /// `TC_ACT_REDIRECT`.
    Redirect,
    /// `TC_ACT_UNSPEC`: the stack's.
    Stack,
}

/// One program and one kind of packet.
pub(crate) struct ProgramLane<'a> {
    label: String,
    node: &'a Netns,
    feeder: Programs,
    /// Its program for the family.
    feed: &'static str,
    /// Held: the array does not.
    _measured: SchedClassifier,
    stream: Stream,
    ifindex: u32,
    says: Says,
    plan: Plan,
    repeat: u32,
}

impl<'a> ProgramLane<'a> {
    /// Feeds `program` of a Causeway node with packets that arrive on `interface`.
    pub(crate) fn new(
        label: String,
        stand: &'a Stand,
        (program, interface): (&str, &str),
        stream: Stream,
        says: Says,
        plan: &Plan,
    ) -> Result<Self> {
        let node = stand.node()?;
        let measured = SchedClassifier::from_pin(stand.pins()?.join("progs").join(program))
            .with_context(|| format!("cannot open the pin of {program}"))?;
        let mut feeder = Programs::load()?;
        let feed = match Family::of(stream.src) {
            Family::V4 => "cwb_feed",
            Family::V6 => "cwb_feed6",
        };
        feeder.tc(feed)?;
        let nop = feeder.tc("cwb_nop")?.fd()?.try_clone()?;
        let mut targets = ProgramArray::try_from(feeder.map("cwb_target")?)?;
        targets.set(MEASURED, measured.fd()?, 0)?;
        targets.set(NOTHING, &nop, 0)?;
        Ok(Self {
            label,
            node: &node.ns,
            feeder,
            feed,
            _measured: measured,
            stream,
            ifindex: node.ns.ifindex(interface)?,
            says,
            plan: *plan,
            repeat: 0,
        })
    }

    /// Seconds of `repeat` passes, and what the last one said.
    fn run(&mut self, target: u32, repeat: u32) -> Result<(Duration, u32)> {
        let course = self.stream.course(self.ifindex);
        self.feeder.set("cwb_next", 0u32)?;
        self.feeder.set("cwb_feed_cfg", Feed { course, target })?;
        let mut frame = vec![0; course.frame_len as usize];
        for (bytes, word) in frame.chunks_exact_mut(4).zip(course.header) {
            bytes.copy_from_slice(&word.to_ne_bytes());
        }
        // `struct __sk_buff` (Linux 6.18): `ingress_ifindex` stands at offset 36 and `ifindex` at 40.
        let mut context = [0u8; 192];
        context[40..44].copy_from_slice(&self.ifindex.to_ne_bytes());
        let cpu = self.plan.cpu;
        let program = &*self.feeder.tc(self.feed)?;
        let timed = || {
            let start = Instant::now();
            let result = program.test_run(TestRunOptions {
                data_in: Some(&frame),
                ctx_in: Some(&context),
                repeat,
                ..TestRunOptions::new()
            })?;
            Ok((start.elapsed(), result.return_value))
        };
        self.node.run(|| cpu::alone_on(cpu, timed))?
    }
}

impl Lane for ProgramLane<'_> {
    fn label(&self) -> String {
        self.label.clone()
    }

    fn warm_up(&mut self) -> Result<()> {
        let (took, said) = self.run(MEASURED, 20_000)?;
        let expected = match self.says {
            Says::Redirect => 7,
            Says::Stack => u32::MAX,
        };
        ensure!(said == expected, "the program said {said:#x}, not {expected:#x}");
        self.repeat = self.plan.packets(20_000.0 / took.as_secs_f64());
        Ok(())
    }

    /// Short runs with and without in turn, so that both meet the same noise. Beforehand every flow has a packet that is not
    /// timed, as in [`super::frames`].
    fn block(&mut self) -> Result<f64> {
        let timed = self.stream.flows;
        if let Flows::Random { first, count } = timed {
            self.stream.flows = Flows::From(first);
            self.run(MEASURED, count)?;
            self.stream.flows = timed;
        }
        let repeat = (self.repeat / SLICES).max(1);
        let (mut all, mut idle) = (Duration::ZERO, Duration::ZERO);
        for _ in 0..SLICES / 2 {
            all += self.run(MEASURED, repeat)?.0;
            idle += self.run(NOTHING, repeat)?.0;
        }
        let passes = f64::from(repeat) * f64::from(SLICES / 2);
        Ok((all.as_secs_f64() - idle.as_secs_f64()) / passes * 1e9)
    }
}

/// Flows for a feeder: any of the first `count`.
pub(crate) fn any_of(count: u32) -> Flows {
    Flows::Random { first: 0, count }
}
