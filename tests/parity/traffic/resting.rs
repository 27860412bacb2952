//! Flows that rest together, until some of them have expired.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use causeway_tests::node::Datapath;

use super::{ALIVE, Traffic, backlog_drops, stay_on_this_cpu};
use crate::{archetypes::Memory, lane::Lane, lifetimes::Lifetimes, report::Report};

/// A rest, and the most that may lie between the packets before and behind it: else flows expire that should not.
struct Pause {
    rest: Duration,
    most: Duration,
}

/// All that is short outlives the first one, no stream the last one. Conntrack takes for a stream what goes on after two
/// seconds.
const PAUSES: [Pause; 3] = [
    Pause {
        rest: Duration::from_millis(2_200),
        most: Duration::from_millis(3_900),
    },
    Pause {
        rest: Duration::from_millis(5_200),
        most: Duration::from_millis(7_900),
    },
    Pause {
        rest: Duration::from_millis(9_200),
        most: Duration::from_hours(1),
    },
];

impl Traffic {
    /// Takes `number` flows of the kinds that rest through their rests. What has expired by then is swept, or it is left in
    /// the table, to be found by what comes. `None`: the machine was too busy to keep the times.
    pub(crate) fn rest(mut self, datapath: Datapath, number: usize, swept: bool) -> Result<Option<Report>> {
        stay_on_this_cpu()?;
        let mut lanes = Lane::pair(datapath, self.family, &Lifetimes::BRIEF)?;
        let mut memory = Memory::default();
        let lost = backlog_drops()?;
        let mut groups = vec![Vec::new()];
        for n in 0..number {
            if n % ALIVE == 0 {
                groups.push(Vec::new());
            }
            let mut flow = self.draw(&lanes[0], &mut memory);
            if !swept {
                flow.script.leave_out_late_ones();
            }
            groups.last_mut().expect("there is one").push(flow);
        }
        let mut last = Instant::now();
        for turn in 0..=PAUSES.len() {
            let start = Instant::now();
            for group in &mut groups {
                for flow in &mut *group {
                    flow.until = flow
                        .script
                        .rests
                        .get(turn)
                        .map_or(flow.script.steps.len(), |rest| rest.before);
                }
                while group.iter().any(|flow| flow.next < flow.until) {
                    self.batch(&mut lanes, group)?;
                }
            }
            let most = turn
                .checked_sub(1)
                .map_or(Duration::MAX, |before| PAUSES[before].most);
            if last.elapsed() > most || backlog_drops()? != lost {
                return Ok(None);
            }
            last = start;
            let Some(pause) = PAUSES.get(turn) else { break };
            thread::sleep(pause.rest);
            for flow in groups.iter().flatten() {
                self.judge
                    .outlived(flow.script.rests[turn].outlived, flow.script.insides());
            }
            if swept {
                lanes[1].node.causeway(&["sweep"])?;
                self.compare_tables(&lanes)?;
            }
        }
        let mut report = self.judge.report;
        report.lanes += 1;
        Ok(Some(report))
    }
}
