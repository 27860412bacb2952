//! The sweep: flows that have been idle for longer than their time are forgotten, so that `cwy_flows` holds what is
//! alive. The program `cwy_sweep` judges each entry where it stands; this module decides when a sweep is due, and that
//! there is one at a time: the families share `cwy_sweep_job`.
//!
//! No daemon is needed: CNI calls sweep when the family's schedule says so ([`causeway_common::schedule`]), `causeway sweep`
//! at any time. The programs reclaim what has expired themselves when they need a port or room.

mod mark;

use causeway_common::{
    maps::{SWEEP_MOST, SweepJob, Usage},
    schedule::Found,
};

use self::mark::{Mark, V4, V6};
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
        let mark = Mark::<V4>::open(&self.root)?;
        mark.lock()?;
        let of_v4 = self.passes(now, &mark)?;
        if !self.has_ipv6() {
            return Ok(of_v4);
        }
        Ok(of_v4.and(self.passes(now, &Mark::<V6>::open(&self.root)?)?))
    }

    fn passes<A: Family>(&self, now: u32, mark: &Mark<A>) -> Result<Swept, DatapathError> {
        let mut deleted = 0;
        loop {
            let pass = self.pass(now, mark)?;
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
        let of_v4 = Mark::<V4>::open(&self.root)?;
        let of_v6 = if self.has_ipv6() {
            Some(Mark::<V6>::open(&self.root)?)
        } else {
            None
        };
        let needs_v6 = || {
            of_v6
                .as_ref()
                .map_or(Ok(false), |mark| self.needs(mark, occasion))
        };
        if !(self.needs(&of_v4, occasion)? || needs_v6()?) || !of_v4.try_lock()? {
            return Ok(None);
        }
        // Whoever held the lock until now may have swept.
        let mut swept = None;
        if self.needs(&of_v4, occasion)? {
            swept = Some(self.pass(now(), &of_v4)?);
        }
        if let Some(of_v6) = &of_v6
            && self.needs(of_v6, occasion)?
        {
            let pass = self.pass(now(), of_v6)?;
            swept = Some(swept.map_or(pass, |of_v4: Swept| of_v4.and(pass)));
        }
        Ok(swept)
    }

    fn needs<A: Family>(&self, mark: &Mark<A>, occasion: Occasion) -> Result<bool, DatapathError> {
        Ok(mark.is_due()? && (occasion == Occasion::Del || self.is_half_full::<A>()?))
    }

    /// The caller holds the lock.
    fn pass<A: Family>(&self, now: u32, mark: &Mark<A>) -> Result<Swept, DatapathError> {
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
        let flows = self.tables.of::<A>().flows()?;
        let capacity = flows.capacity()?;
        Ok(flows
            .estimate(capacity)
            .is_some_and(|entries| entries > capacity / 2))
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

/// Whether a sweep is due on a node, by what the last ones have left: for who would open the datapath for nothing else.
pub fn is_sweep_due(root: &Root) -> Result<bool, DatapathError> {
    Ok(Mark::<V4>::open(root)?.is_due()?
        || Mark::<V6>::find(root)?.map_or(Ok(false), |mark| mark.is_due())?)
}

#[cfg(test)]
mod tests;
