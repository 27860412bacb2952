//! The sweep: flows that have been idle for longer than their time are forgotten, so that `cwy_flows` holds what is
//! alive. The program `cwy_sweep` judges each entry where it stands; this module decides when a sweep is due, and that
//! there is one at a time.
//!
//! No daemon is needed: CNI calls sweep when the family's schedule says so ([`causeway_common::schedule`]), `causeway sweep`
//! at any time. The programs reclaim what has expired themselves when they need a port or room.

mod mark;

use std::fs::{self, File};

use causeway_common::{
    maps::{FLOW_ENTRIES, SWEEP_MOST, SweepJob, Usage},
    schedule::Found,
};

use self::mark::Mark;
use super::{Datapath, DatapathError, family::Family, load, now};
use crate::root::Root;

/// What a sweep found and did. Entries; each flow has one for each direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Entries read.
    pub scanned: usize,
    /// Entries forgotten.
    pub deleted: usize,
    /// Entries that are idle and stay because the other direction is not.
    pub pairs_kept_by_peer: usize,
}

/// Who would sweep by the way, and must not be delayed for nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Occasion {
    /// Somebody waits for a pod: only when the table is more than half full.
    Add,
    /// A pod has gone.
    Del,
}

impl Datapath {
    /// Forgets the flows that are over at `now` ([`now()`]), and counts anew how many flows each pod has. Waits for another
    /// sweep to end. As many passes over the table as it takes.
    pub fn sweep(&self, now: u32) -> Result<Swept, DatapathError> {
        let of_v4 = self.sweep_family::<[u8; 4]>(now)?;
        if !self.has_ipv6() {
            return Ok(of_v4);
        }
        Ok(of_v4.and(self.sweep_family::<[u8; 16]>(now)?))
    }

    fn sweep_family<A: Family>(&self, now: u32) -> Result<Swept, DatapathError> {
        let mark = Mark::<A>::open(&self.root)?;
        mark.lock()?;
        let mut deleted = 0;
        loop {
            let pass = self.pass(now, &mark)?;
            let all = pass.and_before(deleted);
            if !pass.is_cut() {
                return Ok(all);
            }
            deleted = all.deleted;
        }
    }

    /// One pass over the table, if a sweep is due; `None` if it is not, or if somebody else is sweeping. Costs some system
    /// calls then. If more than a pass forgets is over, the next sweep is due at once.
    pub fn sweep_if_needed(&self, occasion: Occasion) -> Result<Option<Swept>, DatapathError> {
        let of_v4 = self.sweep_family_if_needed::<[u8; 4]>(occasion)?;
        if !self.has_ipv6() {
            return Ok(of_v4);
        }
        let of_v6 = self.sweep_family_if_needed::<[u8; 16]>(occasion)?;
        Ok(match (of_v4, of_v6) {
            (Some(one), Some(other)) => Some(one.and(other)),
            (one, other) => one.or(other),
        })
    }

    fn sweep_family_if_needed<A: Family>(&self, occasion: Occasion) -> Result<Option<Swept>, DatapathError> {
        let mark = Mark::<A>::open(&self.root)?;
        if !mark.is_due()? || occasion == Occasion::Add && !self.is_half_full::<A>()? {
            return Ok(None);
        }
        // Whoever held the lock until now may have swept.
        if !mark.try_lock()? || !mark.is_due()? {
            return Ok(None);
        }
        self.pass(now(), &mark).map(Some)
    }

    /// The caller holds the mark's lock.
    fn pass<A: Family>(&self, now: u32, mark: &Mark<A>) -> Result<Swept, DatapathError> {
        // The families have one job between them.
        let _alone = Job::lock(&self.root)?;
        let program = load::sweep_program(&self.pins, A::SWEEP)?;
        let tables = self.tables.of::<A>();
        let mut usage = tables.usage()?;
        for (account, before) in usage.all()? {
            usage.insert(account, Usage { swept: 0, ..before })?;
        }
        self.tables.set_sweep_job(&SweepJob {
            now,
            ..SweepJob::default()
        })?;
        tables.flows()?.iterate(&program)?;
        for (account, Usage { swept, .. }) in usage.all()? {
            usage.insert(
                account,
                Usage {
                    flows: swept,
                    swept: 0,
                },
            )?;
        }
        let job = self.tables.sweep_job()?;
        let swept = Swept {
            scanned: job.scanned as usize,
            deleted: job.deleted as usize,
            pairs_kept_by_peer: job.kept_by_peer as usize,
        };
        let next = mark.schedule()?.after(swept.found());
        mark.set(next)?;
        tracing::debug!(?swept, seconds_to_the_next = next.seconds(), "swept");
        Ok(swept)
    }

    fn is_half_full<A: Family>(&self) -> Result<bool, DatapathError> {
        let entries = self.tables.of::<A>().flows()?.estimate(FLOW_ENTRIES);
        Ok(entries.is_some_and(|entries| entries > FLOW_ENTRIES / 2))
    }
}

impl Swept {
    /// Whether it forgot as much as a pass may.
    fn is_cut(self) -> bool {
        self.deleted >= SWEEP_MOST as usize
    }

    fn found(self) -> Found {
        Found {
            scanned: self.scanned,
            forgotten: self.deleted,
            is_cut: self.is_cut(),
        }
    }

    /// Of both families.
    fn and(self, other: Self) -> Self {
        Self {
            scanned: self.scanned + other.scanned,
            deleted: self.deleted + other.deleted,
            pairs_kept_by_peer: self.pairs_kept_by_peer + other.pairs_kept_by_peer,
        }
    }

    /// The last pass with those before it, which have forgotten `deleted`: what they kept it has read again.
    fn and_before(self, deleted: usize) -> Self {
        Self {
            scanned: self.scanned + deleted,
            deleted: self.deleted + deleted,
            ..self
        }
    }
}

/// Who has it fills in `cwy_sweep_job`.
struct Job(#[expect(dead_code, reason = "held, not read")] File);

impl Job {
    fn lock(root: &Root) -> Result<Self, DatapathError> {
        let path = root.path("/run/causeway/sweep-job");
        let failed = |source| DatapathError::file(&path, source);
        path.parent().map_or(Ok(()), fs::create_dir_all).map_err(failed)?;
        let file = File::options()
            .create(true)
            .append(true)
            .open(&path)
            .map_err(failed)?;
        file.lock().map_err(failed)?;
        Ok(Self(file))
    }
}

#[cfg(test)]
mod tests;
