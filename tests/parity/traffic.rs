//! The writer: draws flows, sends the next step of every living one to both lanes, and has what comes out compared.

mod resting;

use std::{fs, time::Instant};

use anyhow::{Context, Result};
use causeway_tests::node::Datapath;
use rustix::thread::{CpuSet, sched_getcpu, sched_setaffinity};

use crate::{
    archetypes::{self, Draw, Kind, Memory},
    family::Family,
    frames::Inputs,
    judge::{Judge, Sent},
    lane::Lane,
    lifetimes::Lifetimes,
    mappings,
    report::Report,
    rng::Rng,
    script::Script,
};

/// Flows that live at a time. A batch holds a step of each, and must fit into the kernel's backlog of 1000 packets twice.
const ALIVE: usize = 240;

/// Packets after which the lanes' tables are compared.
const BETWEEN_TABLES: u64 = 250_000;

/// What goes through one pair of lanes.
pub(crate) struct Traffic {
    family: Family,
    seed: u64,
    rng: Rng,
    kinds: Vec<Kind>,
    judge: Judge,
    drawn: u64,
    batches: u64,
    inputs: Inputs,
}

/// A flow under way.
struct Flow {
    number: u64,
    kind: usize,
    script: Script,
    next: usize,
    /// The step at which it stops for the time being.
    until: usize,
}

impl Traffic {
    /// Of every kind of flow of the family whose name begins so.
    pub(crate) fn new(family: Family, seed: u64, name: &str) -> Self {
        let mut kinds = archetypes::all(family);
        kinds.retain(|kind| kind.name.starts_with(name));
        Self::of(family, seed, kinds)
    }

    /// Of the kinds of flows that rest.
    pub(crate) fn resting(family: Family, seed: u64) -> Self {
        Self::of(family, seed, archetypes::resting())
    }

    fn of(family: Family, seed: u64, kinds: Vec<Kind>) -> Self {
        Self {
            family,
            seed,
            rng: Rng::new(seed),
            judge: Judge::new(Report::new(kinds.iter().map(|kind| kind.name))),
            kinds,
            drawn: 0,
            batches: 0,
            inputs: Inputs::default(),
        }
    }

    /// Sends at least `packets` packets through a pair of lanes, or what there is time for until `end`.
    pub(crate) fn run(mut self, datapath: Datapath, packets: u64, end: Instant) -> Result<Report> {
        stay_on_this_cpu()?;
        let mut lanes = Lane::pair(datapath, self.family, &Lifetimes::LASTING)?;
        let mut memory = Memory::default();
        let mut flows: Vec<Flow> = Vec::new();
        let lost = backlog_drops()?;
        let mut tables_at = 0;
        let mut is_over = false;
        while !is_over {
            while flows.len() < ALIVE {
                flows.push(self.draw(&lanes[0], &mut memory));
            }
            let before = self.judge.report.times_found();
            self.batch(&mut lanes, &mut flows)?;
            let compared = self.judge.report.compared;
            is_over = compared >= packets || Instant::now() >= end;
            if is_over || compared >= tables_at + BETWEEN_TABLES {
                self.compare_tables(&lanes)?;
                tables_at = compared;
            }
            if self.judge.report.times_found() > before && backlog_drops()? != lost {
                // Other work on this CPU has filled its backlog, and the kernel has dropped a packet of one lane.
                self.judge.report.found.clear();
                self.judge.report.spoilt += 1;
                is_over = true;
            }
        }
        let mut report = self.judge.report;
        if !report.found.is_empty() {
            report.status = Some(lanes[1].node.causeway(&["status"])?);
        }
        report.lanes += 1;
        Ok(report)
    }

    fn draw(&mut self, lane: &Lane, memory: &mut Memory) -> Flow {
        let total: usize = self.kinds.iter().map(|kind| kind.weight).sum();
        let mut at = self.rng.below(total);
        let number = self
            .kinds
            .iter()
            .position(|kind| {
                let here = at < kind.weight;
                at = at.saturating_sub(kind.weight);
                here
            })
            .expect("below the sum of the weights");
        let kind = &self.kinds[number];
        let pods = [lane.pod_addr(1), lane.pod_addr(2), lane.pod_addr(3)];
        let mut draw = Draw {
            family: self.family,
            rng: &mut self.rng,
            pods: &pods,
            memory,
            name: kind.name,
        };
        let script = (kind.write)(&mut draw);
        self.judge.report.tally(number).flows += 1;
        self.drawn += 1;
        Flow {
            number: self.drawn,
            kind: number,
            until: script.steps.len(),
            script,
            next: 0,
        }
    }

    /// What either lane remembers.
    fn compare_tables(&mut self, [left, right]: &[Lane; 2]) -> Result<()> {
        let tables = [
            mappings::of_conntrack(&left.node.ns, self.family)?,
            mappings::of_causeway(&right.node, self.family)?,
        ];
        let context = self.place();
        self.judge.compare_tables(tables.each_ref(), &context);
        Ok(())
    }

    fn place(&self) -> String {
        format!("{:?}, seed {}, batch {}", self.family, self.seed, self.batches)
    }

    /// The next step of every flow that does not rest. Flows that are at their end go.
    fn batch(&mut self, lanes: &mut [Lane; 2], flows: &mut Vec<Flow>) -> Result<()> {
        let mut sent = Vec::new();
        let mut abandoned = Vec::new();
        self.inputs.clear();
        for flow in moving(flows) {
            if flow.script.steps[flow.next].iter().any(|shot| shot.anew) {
                self.judge.ports.forget(flow.number);
            }
        }
        let mut next_id = 0;
        for flow in moving(flows) {
            let ports = self.judge.ports.of(flow.number);
            for shot in &flow.script.steps[flow.next] {
                next_id += u16::from(!shot.same_id);
                let id = shot.id.unwrap_or(next_id);
                let macs = lanes[0].macs[shot.point];
                let Some(()) = self.inputs.push(shot.point, macs, (&shot.spec, id), ports) else {
                    abandoned.push(flow.number);
                    continue;
                };
                sent.push(Sent {
                    flow: flow.number,
                    kind: (flow.kind, flow.script.archetype),
                    step: flow.next,
                    shot,
                    id,
                    protocol: flow.script.protocol,
                    remote: flow.script.remote,
                    pod_port: flow.script.pod_port,
                    translated: flow.script.translated,
                });
            }
        }
        // In the order in which they are sent: by points.
        sent.sort_by_key(|sent: &Sent<'_>| sent.shot.point);
        let [left, right] = lanes;
        let outputs = [
            left.pass(&self.inputs, 0).context("the kernel's lane")?,
            right.pass(&self.inputs, 1).context("Causeway's lane")?,
        ];
        self.batches += 1;
        let context = self.place();
        self.judge.compare(&sent, outputs, &context);
        drop(sent);
        flows.retain_mut(|flow| {
            if flow.next == flow.until {
                return true;
            }
            flow.next += 1;
            let is_abandoned = abandoned.contains(&flow.number);
            let goes_on = flow.next < flow.script.steps.len() && !is_abandoned;
            if !goes_on {
                self.judge.report.tally(flow.kind).abandoned += u64::from(is_abandoned);
                self.judge.ports.forget(flow.number);
            }
            goes_on
        });
        Ok(())
    }
}

fn moving(flows: &[Flow]) -> impl Iterator<Item = &Flow> {
    flows.iter().filter(|flow| flow.next < flow.until)
}

/// Packets that found the backlog of this CPU full: the second column of its row.
fn backlog_drops() -> Result<u64> {
    let table = fs::read_to_string("/proc/net/softnet_stat").context("/proc/net/softnet_stat")?;
    let rows = table.lines().map(|row| {
        let columns: Vec<u64> = row
            .split_whitespace()
            .filter_map(|column| u64::from_str_radix(column, 16).ok())
            .collect();
        (columns.get(12).copied(), columns.get(1).copied())
    });
    let cpu = sched_getcpu() as u64;
    rows.filter(|(row, _)| *row == Some(cpu))
        .find_map(|(_, dropped)| dropped)
        .context("no row for this CPU in /proc/net/softnet_stat")
}

/// The order of packets is the order in one CPU's backlog.
fn stay_on_this_cpu() -> Result<()> {
    stay_on(sched_getcpu())
}

/// Keeps the calling thread, and what it starts, on a CPU.
pub(crate) fn stay_on(cpu: usize) -> Result<()> {
    let mut here = CpuSet::new();
    here.set(cpu);
    sched_setaffinity(None, &here).with_context(|| format!("pinning the writer to CPU {cpu}"))
}
