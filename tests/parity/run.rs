//! A run: pairs of lanes one after the other, as many at a time as there are CPUs, until enough has been compared.

use std::{
    env,
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use causeway_tests::node::Datapath;
use rustix::thread::{CpuSet, sched_getaffinity};

use crate::{
    family::Family,
    report::Report,
    traffic::{Traffic, stay_on},
};

/// Packets through one pair of lanes: less than what fills a table or a pod's quota of it.
const MOST: u64 = 500_000;
/// Pairs of lanes of a run, at least: each way to attach the programs, on each of two CPUs.
const LEAST_LANES: u64 = 4;
/// Pairs of lanes between two lines that say how far it is.
const BETWEEN_LINES: u64 = 10;

/// How far a run goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Extent {
    pub(crate) packets: u64,
    pub(crate) time: Duration,
}

impl Extent {
    /// An idle machine with two cores needs a fifteenth of the time.
    const ORDINARY: Self = Self {
        packets: 1_000_000,
        time: Duration::from_mins(5),
    };
    /// However busy the machine is.
    const LONG: Self = Self {
        packets: 100_000_000,
        time: Duration::from_hours(24),
    };

    /// `CAUSEWAY_LONG` asks for a long run, `CAUSEWAY_PARITY_SECONDS` ends any early, whatever is missing then.
    pub(crate) fn asked_for() -> Self {
        let extent = match env::var_os("CAUSEWAY_LONG") {
            Some(_) => Self::LONG,
            None => Self::ORDINARY,
        };
        match env::var("CAUSEWAY_PARITY_SECONDS") {
            Ok(seconds) => Self {
                packets: u64::MAX,
                time: Duration::from_secs(seconds.parse().expect("a number of seconds")),
            },
            Err(_) => extent,
        }
    }

    /// Whether a run of it is cut short.
    pub(crate) fn lacks(&self, report: &Report) -> bool {
        self.packets != u64::MAX && report.compared < self.packets
    }
}

/// What is under way.
struct Run<'a> {
    family: Family,
    seed: u64,
    kinds: &'a str,
    extent: Extent,
    begun: Instant,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Pairs of lanes so far.
    begun: u64,
    /// Packets that those which are not over yet will compare.
    promised: u64,
    failed: bool,
    /// What those which are over have shown.
    report: Option<Report>,
}

/// Compares as many packets as asked for. The same seed gives the same traffic: a pair of lanes has the run's seed and its
/// own number for a seed, whichever CPU it is on.
pub(crate) fn run(family: Family, seed: u64, kinds: &str, extent: Extent) -> Result<Report> {
    let run = Run {
        family,
        seed,
        kinds,
        extent,
        begun: Instant::now(),
        state: Mutex::default(),
    };
    let allowed = sched_getaffinity(None)?;
    let cpus = (0..CpuSet::MAX_CPU).filter(|&cpu| allowed.is_set(cpu));
    thread::scope(|scope| -> Result<()> {
        let run = &run;
        let workers: Vec<_> = cpus.map(|cpu| scope.spawn(move || run.work_on(cpu))).collect();
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().expect("a worker that does not panic"))
    })?;
    let state = run.state.into_inner().unwrap_or_else(PoisonError::into_inner);
    let report = state.report.expect("at least one pair of lanes");
    println!("{family:?}: {}", report.summary(run.begun.elapsed()));
    Ok(report)
}

impl Run<'_> {
    fn work_on(&self, cpu: usize) -> Result<()> {
        stay_on(cpu)?;
        while let Some((number, packets)) = self.next() {
            // The seed alone tells the whole traffic, so that a pair of lanes can be repeated by itself.
            let seed = self.seed.wrapping_add(number);
            let datapath = [Datapath::Causeway, Datapath::CausewayClsact][(seed % 2) as usize];
            let end = self.begun + self.extent.time;
            let done = Traffic::new(self.family, seed, self.kinds).run(datapath, packets, end);
            self.add(packets, done)?;
        }
        Ok(())
    }

    /// The number of the next pair of lanes, and the packets that it has to compare. `None` if there is enough.
    fn next(&self) -> Option<(u64, u64)> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let compared = state.report.as_ref().map_or(0, |report| report.compared);
        let left = self.extent.packets.saturating_sub(compared + state.promised);
        let is_late = self.begun.elapsed() >= self.extent.time;
        if left == 0 || state.failed || is_late && state.begun > 0 {
            return None;
        }
        let packets = left.min(MOST).min(self.extent.packets / LEAST_LANES);
        state.promised += packets;
        state.begun += 1;
        Some((state.begun - 1, packets))
    }

    fn add(&self, promised: u64, done: Result<Report>) -> Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.promised -= promised;
        state.failed |= done.is_err();
        let done = done?;
        let report = match state.report.take() {
            Some(mut report) => {
                report.add(done);
                report
            }
            None => done,
        };
        if report.lanes % BETWEEN_LINES == 0 {
            println!("{}", report.totals(self.begun.elapsed()));
        }
        state.report = Some(report);
        Ok(())
    }
}
