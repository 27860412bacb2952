//! Flows that rest together, until some of them have expired.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use causeway_tests::node::Datapath;

use super::{ALIVE, Traffic, backlog_drops, stay_on_this_cpu};
use crate::{archetypes::Memory, lane::Lane, lifetimes::Lifetimes};

/// The rests. All that is short outlives the first one, no stream the last one; conntrack takes for a stream what goes on
/// after two seconds.
const RESTS: [Duration; 3] = [
    Duration::from_millis(2_200),
    Duration::from_millis(5_200),
    Duration::from_millis(9_200),
];
/// Flows send what they have to send between two rests in this time, or they may expire where they should not.
const IN_TIME: Duration = Duration::from_millis(600);

impl Traffic {
    /// Takes `number` flows of the kinds that rest through their rests. What has expired by then is swept, or it is left in
    /// the table, to be found by what comes. `false`: the machine was too busy to keep the times.
    pub(crate) fn rested(&mut self, datapath: Datapath, number: usize, swept: bool) -> Result<bool> {
        stay_on_this_cpu()?;
        let mut lanes = Lane::pair(datapath, &Lifetimes::BRIEF)?;
        let mut memory = Memory::default();
        let begun = Instant::now();
        self.shards += 1;
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
        for turn in 0..=RESTS.len() {
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
            if start.elapsed() > IN_TIME || backlog_drops()? != lost {
                return Ok(false);
            }
            let Some(&rest) = RESTS.get(turn) else { break };
            thread::sleep(rest);
            for flow in groups.iter().flatten() {
                self.judge
                    .outlived(flow.script.rests[turn].outlived, flow.script.insides());
            }
            if swept {
                lanes[1].node.causeway(&["sweep"])?;
                self.compare_tables(&lanes)?;
            }
        }
        self.judge.start_over();
        self.spent += begun.elapsed();
        Ok(true)
    }
}
