//! Established flows while something is done to the datapath: how many of their packets are lost, and how fast the others are.
//!
//! What is done runs on whatever CPU the kernel gives it; the packets have the measurement's own.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use aya::maps::{Array, Map, MapData};
use causeway_common::{lifetime::Timeouts, maps::Config};

use super::{
    frames::{FrameLane, Passed, number},
    way::{Load, Way},
};
use crate::{
    facts::Fact,
    ranges,
    rounds::{Lane, Plan},
    stand::Stand,
};

/// Pods whose flows fill the table.
pub(crate) const PODS: u8 = 7;
/// Flows of each: all of them together are seven eighths of what the table holds.
const FLOWS: u32 = 1 << 15;
/// Idle seconds after which a flow is over, where it is to be. Those that are measured have packets all the time, and the second of
/// the last one is written once a second at most.
const SHORT: u32 = 3;
/// Longer than that can last, counted in whole seconds.
const OVER: Duration = Duration::from_secs(5);
/// Idle seconds that no run lasts.
const LONG: u32 = 86_400;

/// What is done meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Disturbance {
    /// Nothing.
    None,
    /// `causeway upgrade --again`: every program is loaded, verified and exchanged.
    Upgrade,
    /// The excluded ranges become two others, and ten thousand more, and what they were.
    Reload,
    /// `causeway sweep`, with nothing to forget.
    Sweep,
    /// `causeway sweep`, with everything to forget but the flows that are measured.
    SweepOfIdle,
}

/// 1024 established flows of one pod, disturbed.
pub(crate) struct DisturbedLane<'a> {
    label: String,
    stand: &'a Stand,
    disturbance: Disturbance,
    measured: FrameLane<'a>,
    /// The flows that fill the table.
    crowd: Option<FrameLane<'a>>,
    total: Passed,
    /// How long they were sent.
    seconds: f64,
    /// What was done: how long each time, seconds.
    took: Vec<f64>,
    /// Entries that the sweeps read and forgot.
    swept: [u64; 2],
}

impl<'a> DisturbedLane<'a> {
    /// Disturbs flows on `way`.
    pub(crate) fn new(
        label: String,
        stand: &'a Stand,
        (way, load): (Way, Load),
        disturbance: Disturbance,
        plan: &Plan,
    ) -> Result<Self> {
        let measured = FrameLane::new(stand, way, load, plan)?;
        Ok(Self::with(label, stand, measured, disturbance))
    }

    /// The same flows, disturbed by something else.
    pub(crate) fn beside(
        &self,
        label: String,
        (way, load): (Way, Load),
        disturbance: Disturbance,
    ) -> Result<Self> {
        let measured = self.measured.beside(self.stand, way, load, label.clone())?;
        Ok(Self::with(label, self.stand, measured, disturbance))
    }

    /// With a table that other flows fill to seven eighths.
    pub(crate) fn crowded(mut self) -> Result<Self> {
        let load = Load {
            pods: PODS.into(),
            flows: u32::from(PODS) * FLOWS,
            ..Load::PLAIN
        };
        let crowd = self
            .measured
            .beside(self.stand, Way::Out, load, "crowd".to_owned())?;
        self.crowd = Some(crowd);
        Ok(self)
    }

    fn with(label: String, stand: &'a Stand, measured: FrameLane<'a>, disturbance: Disturbance) -> Self {
        Self {
            label,
            stand,
            disturbance,
            measured,
            crowd: None,
            total: Passed::default(),
            seconds: 0.0,
            took: Vec::new(),
            swept: [0; 2],
        }
    }

    /// Opens those of the crowd's flows that are not open, and lets them rest where they are to be over.
    fn gather(&mut self) -> Result<()> {
        let Some(crowd) = &mut self.crowd else {
            return Ok(());
        };
        set_life(self.stand, LONG)?;
        crowd.each_flow_once()?;
        if self.disturbance == Disturbance::SweepOfIdle {
            let end = Instant::now() + OVER;
            self.measured.runs_while(|_| Instant::now() < end)?;
            set_life(self.stand, SHORT)?;
        }
        Ok(())
    }

    /// Sends until what disturbs has ended.
    fn pass(&mut self) -> Result<Passed> {
        let (stand, disturbance) = (self.stand, self.disturbance);
        let measured = &mut self.measured;
        let (passed, done) = thread::scope(|scope| {
            let disturbing = scope.spawn(move || disturb(stand, disturbance));
            let passed = measured.runs_while(|runs| runs == 0 || !disturbing.is_finished());
            let done = disturbing.join();
            (
                passed,
                done.unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            )
        });
        self.note_done(&done?)?;
        passed
    }

    fn note_done(&mut self, done: &Done) -> Result<()> {
        let [scanned, deleted] = done.swept;
        match self.disturbance {
            Disturbance::SweepOfIdle => ensure!(
                deleted * 10 > scanned * 9,
                "{deleted} of {scanned} entries were forgotten: not nearly all"
            ),
            Disturbance::Sweep => ensure!(
                deleted * 100 < scanned,
                "{deleted} of {scanned} entries were forgotten: not nearly none"
            ),
            Disturbance::None | Disturbance::Upgrade | Disturbance::Reload => {}
        }
        if self.disturbance != Disturbance::None {
            self.took.push(done.seconds);
        }
        self.swept[0] += scanned;
        self.swept[1] += deleted;
        Ok(())
    }
}

impl DisturbedLane<'_> {
    /// What was done: how often, how long each time, and to how many entries.
    fn deeds(&self) -> String {
        let mut took = self.took.clone();
        took.sort_by(f64::total_cmp);
        let (Some(least), Some(most)) = (took.first(), took.last()) else {
            return String::new();
        };
        let milliseconds = |seconds: f64| format!("{:.0} ms", seconds * 1e3);
        let median = milliseconds(took[took.len() / 2]);
        let times = took.len() as u64;
        let [least, most] = [least, most].map(|&seconds| milliseconds(seconds));
        let text = format!("; {times} times, {median} each ({least} … {most})");
        match self.swept.map(|entries| entries / times) {
            [0, _] => text,
            [scanned, deleted] => format!("{text}, {scanned} entries read and {deleted} forgotten"),
        }
    }
}

impl Lane for DisturbedLane<'_> {
    fn label(&self) -> String {
        self.label.clone()
    }

    fn warm_up(&mut self) -> Result<()> {
        if let Some(crowd) = &mut self.crowd {
            set_life(self.stand, LONG)?;
            crowd.warm_up()?;
        }
        self.measured.warm_up()
    }

    fn block(&mut self) -> Result<f64> {
        self.gather()?;
        self.measured.each_flow_once()?;
        let Passed {
            sent,
            arrived,
            a_second,
        } = self.pass()?;
        self.total.sent += sent;
        self.total.arrived += arrived;
        self.seconds += number(sent) / a_second;
        Ok(a_second * number(arrived) / number(sent))
    }

    fn note(&self) -> Option<String> {
        let Passed { sent, arrived, .. } = self.total;
        Some(format!(
            "{}: {sent} packets sent in {:.1} s, {arrived} received, {} lost{}",
            self.label,
            self.seconds,
            sent - arrived,
            self.deeds()
        ))
    }

    fn facts(&self) -> Vec<Fact> {
        let Passed { sent, arrived, .. } = self.total;
        let fact = |name: String, value: u64, unit| Fact {
            name,
            value: u32::try_from(value).unwrap_or(u32::MAX),
            unit,
        };
        vec![
            fact(format!("{}, sent", self.label), sent, "packets"),
            fact(format!("{}, lost", self.label), sent - arrived, "packets"),
        ]
    }
}

/// What has been done.
#[derive(Default)]
struct Done {
    seconds: f64,
    /// Entries read and forgotten.
    swept: [u64; 2],
}

fn disturb(stand: &Stand, disturbance: Disturbance) -> Result<Done> {
    let node = stand.node()?;
    match disturbance {
        Disturbance::None => Ok(Done::default()),
        Disturbance::Upgrade => {
            let start = Instant::now();
            let said = node.causeway(&["upgrade", "--again"])?;
            ensure!(said.contains("exchanged on"), "causeway upgrade said: {said}");
            Ok(Done {
                seconds: start.elapsed().as_secs_f64(),
                swept: [0; 2],
            })
        }
        Disturbance::Reload => {
            let start = Instant::now();
            for others in [2, ranges::MANY, 0] {
                ranges::exclude(stand, others)?;
            }
            Ok(Done {
                seconds: start.elapsed().as_secs_f64(),
                swept: [0; 2],
            })
        }
        Disturbance::Sweep | Disturbance::SweepOfIdle => {
            let swept = node.causeway_json("sweep")?;
            let count = |name: &str| swept[name].as_u64().with_context(|| format!("{name} in {swept}"));
            Ok(Done {
                seconds: swept["seconds"].as_f64().context("how long the sweep took")?,
                swept: [count("scanned")?, count("deleted")?],
            })
        }
    }
}

/// Sets after how many idle seconds a UDP flow is over.
fn set_life(stand: &Stand, seconds: u32) -> Result<()> {
    let pin = stand.pins()?.join("maps/cwy_cfg");
    let data = MapData::from_pin(&pin).with_context(|| format!("cannot open {}", pin.display()))?;
    let mut map: Array<_, Config<[u8; 4]>> = Array::try_from(Map::Array(data))?;
    let config = map.get(&0, 0)?;
    let timeouts = Timeouts {
        offered: seconds,
        udp: seconds,
        udp_stream: seconds,
        ..config.timeouts
    };
    map.set(0, Config { timeouts, ..config }, 0)
        .context("cannot set how long flows live")
}
