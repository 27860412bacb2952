//! The sweep: flows that have been idle for longer than their time are forgotten, so that `cwy_flows` holds what is
//! alive. The program `cwy_sweep` judges each entry where it stands; this module decides when a sweep is due, and that
//! there is one at a time.
//!
//! No daemon is needed: CNI calls sweep when a minute has passed, `causeway sweep` at any time. The programs reclaim
//! what has expired themselves when they need a port or room.

use std::{
    fs::{self, File, TryLockError},
    path::PathBuf,
    time::{Duration, SystemTime},
};

use causeway_common::maps::{FLOW_ENTRIES, SweepJob, Usage};

use super::{Datapath, DatapathError, load, now};

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

/// Sweeps by the way are at least this far apart.
const PERIOD: Duration = Duration::from_mins(1);
/// Locked by whoever sweeps; its modification time is the end of the last sweep, or the time of the first call.
const MARK: &str = "/run/causeway/sweep";

impl Datapath {
    /// Forgets the flows that are over at `now` ([`now()`]), and counts anew how many flows each pod has. Waits for another
    /// sweep to end.
    pub fn sweep(&self, now: u32) -> Result<Swept, DatapathError> {
        let mark = self.mark()?;
        mark.file.lock().map_err(|source| mark.failed(source))?;
        self.sweep_alone(now, &mark)
    }

    /// Sweeps if that is due; `None` if it is not, or if somebody else is sweeping. Costs a system call or two then.
    pub fn sweep_if_needed(&self, occasion: Occasion) -> Result<Option<Swept>, DatapathError> {
        let mark = self.mark()?;
        if !mark.is_due()? || occasion == Occasion::Add && !self.is_half_full()? {
            return Ok(None);
        }
        match mark.file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(source)) => return Err(mark.failed(source)),
        }
        // Whoever held the lock until now may have swept.
        if !mark.is_due()? {
            return Ok(None);
        }
        self.sweep_alone(now(), &mark).map(Some)
    }

    fn sweep_alone(&self, now: u32, mark: &Mark) -> Result<Swept, DatapathError> {
        let program = load::sweep_program(&self.pins)?;
        let mut usage = self.tables.usage()?;
        for (account, before) in usage.all()? {
            usage.insert(account, Usage { swept: 0, ..before })?;
        }
        self.tables.set_sweep_job(&SweepJob {
            now,
            ..SweepJob::default()
        })?;
        self.tables.flows()?.iterate(&program)?;
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
        mark.set()?;
        tracing::debug!(?swept, "swept");
        Ok(swept)
    }

    fn is_half_full(&self) -> Result<bool, DatapathError> {
        let entries = self.tables.flows()?.estimate(FLOW_ENTRIES);
        Ok(entries.is_some_and(|entries| entries > FLOW_ENTRIES / 2))
    }

    fn mark(&self) -> Result<Mark, DatapathError> {
        let path = self.root.path(MARK);
        let failed = |source| DatapathError::file(&path, source);
        path.parent().map_or(Ok(()), fs::create_dir_all).map_err(failed)?;
        let file = File::options()
            .create(true)
            .append(true)
            .open(&path)
            .map_err(failed)?;
        Ok(Mark { path, file })
    }
}

/// The file that says when the last sweep was.
struct Mark {
    path: PathBuf,
    file: File,
}

impl Mark {
    fn is_due(&self) -> Result<bool, DatapathError> {
        let modified = self.file.metadata().and_then(|metadata| metadata.modified());
        let modified = modified.map_err(|source| self.failed(source))?;
        // A time to come is of a clock that has been set back.
        Ok(modified.elapsed().map_or(true, |age| age > PERIOD))
    }

    fn set(&self) -> Result<(), DatapathError> {
        let set = self.file.set_modified(SystemTime::now());
        set.map_err(|source| self.failed(source))
    }

    fn failed(&self, source: std::io::Error) -> DatapathError {
        DatapathError::file(&self.path, source)
    }
}

#[cfg(test)]
mod tests;
