//! The writer: draws flows, sends the next step of every living one to both lanes, and has what comes out compared.

mod resting;

use std::{
    fmt::Write as _,
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use causeway_tests::node::Datapath;
use rustix::thread::{CpuSet, sched_getcpu, sched_setaffinity};

use crate::{
    archetypes::{self, Draw, Kind, Memory},
    judge::{Judge, Sent},
    lane::Lane,
    lifetimes::Lifetimes,
    mappings,
    rng::Rng,
    script::Script,
};

/// Flows that live at a time. A batch holds a step of each, and must fit into the kernel's backlog of 1000 packets twice.
const ALIVE: usize = 240;

/// Packets after which the lanes' tables are compared.
const BETWEEN_TABLES: u64 = 100_000;

/// Differences that are told of.
const SHOWN: usize = 25;

/// A run.
pub(crate) struct Traffic {
    seed: u64,
    rng: Rng,
    kinds: Vec<Kind>,
    pub(crate) judge: Judge,
    drawn: u64,
    batches: u64,
    shards: u64,
    spent: Duration,
    /// Shards that ended because the machine lost a packet.
    spoilt: u64,
    /// What Causeway counted, up to the end of the last shard that showed another difference.
    status: Option<String>,
}

/// A flow under way.
struct Flow {
    number: u64,
    script: Script,
    next: usize,
    /// The step at which it stops for the time being.
    until: usize,
}

impl Traffic {
    /// Of every kind of flow whose name begins with one of `names`.
    pub(crate) fn new(seed: u64, names: &[&str]) -> Self {
        let mut kinds = archetypes::all();
        kinds.retain(|kind| names.iter().any(|name| kind.name.starts_with(name)));
        let waiting = archetypes::waiting().into_iter();
        kinds.extend(waiting.filter(|kind| names.contains(&kind.name)));
        Self::of(seed, kinds)
    }

    /// Of the kinds of flows that rest.
    pub(crate) fn resting(seed: u64) -> Self {
        Self::of(seed, archetypes::resting())
    }

    fn of(seed: u64, kinds: Vec<Kind>) -> Self {
        Self {
            seed,
            rng: Rng::new(seed),
            kinds,
            judge: Judge::default(),
            drawn: 0,
            batches: 0,
            shards: 0,
            spent: Duration::ZERO,
            spoilt: 0,
            status: None,
        }
    }

    /// Sends at most `packets` packets through a fresh pair of lanes, and stops at `end`.
    pub(crate) fn shard(&mut self, datapath: Datapath, packets: u64, end: Instant) -> Result<()> {
        stay_on_this_cpu()?;
        let mut lanes = Lane::pair(datapath, &Lifetimes::LASTING)?;
        let stop = self.judge.compared + packets;
        let mut memory = Memory::default();
        let mut flows: Vec<Flow> = Vec::new();
        let start = Instant::now();
        self.shards += 1;
        let (lost, known) = (backlog_drops()?, self.judge.found.clone());
        let kinds_known = known.len();
        let mut tables_at = self.judge.compared;
        let mut is_over = false;
        while !is_over {
            while flows.len() < ALIVE {
                flows.push(self.draw(&lanes[0], &mut memory));
            }
            let before = self.judge.times_found();
            self.batch(&mut lanes, &mut flows)?;
            is_over = self.judge.compared >= stop || Instant::now() >= end;
            if is_over || self.judge.compared >= tables_at + BETWEEN_TABLES {
                self.compare_tables(&lanes)?;
                tables_at = self.judge.compared;
            }
            if self.judge.times_found() > before && backlog_drops()? != lost {
                // Other work on this CPU has filled its backlog, and the kernel has dropped a packet of one lane.
                self.judge.found.clone_from(&known);
                self.spoilt += 1;
                is_over = true;
            }
        }
        if self.judge.found.len() > kinds_known {
            self.status = Some(lanes[1].node.causeway(&["status"])?);
        }
        self.judge.start_over();
        self.spent += start.elapsed();
        Ok(())
    }

    fn draw(&mut self, lane: &Lane, memory: &mut Memory) -> Flow {
        let total: usize = self.kinds.iter().map(|kind| kind.weight).sum();
        let mut at = self.rng.below(total);
        let kind = self
            .kinds
            .iter()
            .find(|kind| {
                let here = at < kind.weight;
                at = at.saturating_sub(kind.weight);
                here
            })
            .expect("below the sum of the weights");
        let pods = [lane.pod_addr(1), lane.pod_addr(2), lane.pod_addr(3)];
        let mut draw = Draw {
            rng: &mut self.rng,
            pods: &pods,
            memory,
            name: kind.name,
        };
        let script = (kind.write)(&mut draw);
        self.judge.tally.entry(kind.name).or_default().flows += 1;
        self.drawn += 1;
        Flow {
            number: self.drawn,
            until: script.steps.len(),
            script,
            next: 0,
        }
    }

    /// What either lane remembers.
    fn compare_tables(&mut self, [left, right]: &[Lane; 2]) -> Result<()> {
        let tables = [
            mappings::of_conntrack(&left.node.ns)?,
            mappings::of_causeway(&right.node)?,
        ];
        let context = self.place();
        self.judge.compare_tables(tables.each_ref(), &context);
        Ok(())
    }

    fn place(&self) -> String {
        format!(
            "seed {}, shard {}, batch {}",
            self.seed, self.shards, self.batches
        )
    }

    /// The next step of every flow that does not rest. Flows that are at their end go.
    fn batch(&mut self, lanes: &mut [Lane; 2], flows: &mut Vec<Flow>) -> Result<()> {
        let mut frames: [Vec<(usize, Vec<u8>)>; 2] = [Vec::new(), Vec::new()];
        let mut sent = Vec::new();
        let mut abandoned = Vec::new();
        for flow in moving(flows) {
            if flow.script.steps[flow.next].iter().any(|shot| shot.anew) {
                self.judge
                    .forget(flow.number, flow.script.protocol, flow.script.remote);
            }
        }
        let mut next_id = 0;
        for flow in moving(flows) {
            for shot in &flow.script.steps[flow.next] {
                next_id += u16::from(!shot.same_id);
                let id = shot.id.unwrap_or(next_id);
                let ports = self.judge.ports(flow.number);
                let [inward, outward] = lanes[0].macs[shot.point];
                let rendered = [0, 1].map(|lane| {
                    let port = ports.map(|ports| ports[lane]);
                    shot.spec.frame([inward, outward], id, port)
                });
                let [Some(left), Some(right)] = rendered else {
                    abandoned.push(flow.number);
                    continue;
                };
                frames[0].push((shot.point, left));
                frames[1].push((shot.point, right));
                sent.push(Sent {
                    flow: flow.number,
                    archetype: flow.script.archetype,
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
            left.pass(&frames[0]).context("the kernel's lane")?,
            right.pass(&frames[1]).context("Causeway's lane")?,
        ];
        self.batches += 1;
        let context = self.place();
        self.judge
            .compare(&sent, outputs.each_ref().map(Vec::as_slice), &context);
        drop(sent);
        flows.retain_mut(|flow| {
            if flow.next == flow.until {
                return true;
            }
            flow.next += 1;
            let is_abandoned = abandoned.contains(&flow.number);
            let goes_on = flow.next < flow.script.steps.len() && !is_abandoned;
            if !goes_on {
                let tally = self.judge.tally.entry(flow.script.archetype).or_default();
                tally.abandoned += u64::from(is_abandoned);
                self.judge
                    .forget(flow.number, flow.script.protocol, flow.script.remote);
            }
            goes_on
        });
        Ok(())
    }

    /// What was compared.
    pub(crate) fn summary(&self) -> String {
        let judge = &self.judge;
        let mut text = format!(
            "{:<48}{:>9}{:>10}{:>10}{:>10}\n",
            "kind of flow", "flows", "packets", "came out", "cut short"
        );
        for (name, tally) in &judge.tally {
            writeln!(
                text,
                "{name:<48}{:>9}{:>10}{:>10}{:>10}",
                tally.flows, tally.sent, tally.came_out, tally.abandoned
            )
            .ok();
        }
        for (row, times) in &judge.allowed {
            writeln!(text, "wanted difference {row:?}: {times} packets").ok();
        }
        text += &self.totals();
        for kind in archetypes::waiting() {
            write!(text, "\nnot compared unless it is named: {}", kind.name).ok();
        }
        if self.spoilt > 0 {
            write!(
                text,
                "\n{} shards ended early: this CPU's backlog was full",
                self.spoilt
            )
            .ok();
        }
        text
    }

    /// The figures of the whole run so far.
    pub(crate) fn totals(&self) -> String {
        let judge = &self.judge;
        let rate = u128::from(judge.compared) * 1000 / self.spent.as_millis().max(1);
        format!(
            "{} packets of {} flows compared in {:.1} s ({rate} a second), {} kinds, {} pairs of lanes; \
             {} mappings, of which nf_nat kept the pod's port in {} and Causeway in {}; \
             tables compared {} times with {} mappings in all; {} differences that no row describes",
            judge.compared,
            self.drawn,
            self.spent.as_secs_f64(),
            self.kinds.len(),
            self.shards,
            judge.mappings,
            judge.kept_ports[0],
            judge.kept_ports[1],
            judge.tables[0],
            judge.tables[1],
            judge.times_found(),
        )
    }

    /// Every difference that no row describes, the most frequent first.
    pub(crate) fn findings(&self) -> String {
        let mut found: Vec<_> = self.judge.found.iter().collect();
        found.sort_by_key(|(_, found)| std::cmp::Reverse(found.times));
        let mut text = String::new();
        for (title, found) in found.into_iter().take(SHOWN) {
            writeln!(text, "{} times: {title}\n  {}", found.times, found.example).ok();
        }
        text.extend(self.status.as_deref());
        text
    }

    /// Whether every kind of flow was seen, and something came out of it.
    pub(crate) fn is_complete(&self) -> bool {
        self.kinds.iter().all(|kind| {
            let tally = self.judge.tally.get(kind.name);
            tally.is_some_and(|tally| {
                (tally.came_out > 0 || archetypes::is_silent(kind.name)) && tally.abandoned == 0
            })
        })
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
    let mut here = CpuSet::new();
    here.set(sched_getcpu());
    sched_setaffinity(None, &here).context("pinning the writer to its CPU")
}
