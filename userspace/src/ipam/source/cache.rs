//! The wireserver's last answer, kept for the calls that follow and for times when it does not answer.

use std::{
    io,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

use super::CACHE;
use crate::{
    durable::{self, Lock, LockError},
    go_json::to_vec,
    root::Root,
};

/// Held by the process that is asking.
const LOCK: &str = "/run/causeway/address-list.lock";
/// How long a process without any list waits for the one that is asking: as long as that may take, and a little more.
const PATIENCE: Duration = Duration::from_secs(25);

/// What was seen. Times are milliseconds since 1970, 0 for never.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Cache {
    fetched_at: u64,
    tried_at: u64,
    /// Why the last try failed, empty when it did not.
    pub(super) error: String,
    /// The last good answer, empty when there was none.
    pub(super) body: String,
}

impl Cache {
    /// What the last call left. A file that cannot be read is as good as none.
    pub(super) fn read(root: &Root) -> Self {
        let bytes = durable::read(&root.path(CACHE)).ok().flatten();
        bytes
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or_default()
    }

    pub(super) fn write(&self, root: &Root) -> io::Result<()> {
        durable::write(&root.path(CACHE), &to_vec(self)?)
    }

    /// Whether the last try, good or not, is less than `interval` ago. One in the future is of a clock that was wrong.
    pub(super) fn is_fresh(&self, interval: Duration) -> bool {
        let since = now().checked_sub(self.tried_at);
        self.tried_at != 0 && since.is_some_and(|since| u128::from(since) < interval.as_millis())
    }

    /// Becomes the one that asks. Waits for another one only if there is no list to go on with.
    pub(super) fn claim(&self, root: &Root) -> Result<Lock, LockError> {
        let patience = if self.body.is_empty() {
            PATIENCE
        } else {
            Duration::ZERO
        };
        Lock::acquire(&root.path(LOCK), patience)
    }

    /// Notes how a try ended.
    pub(super) fn note(&mut self, tried: Result<String, String>) {
        self.tried_at = now();
        match tried {
            Ok(body) => {
                self.fetched_at = self.tried_at;
                self.error.clear();
                self.body = body;
            }
            Err(error) => self.error = error,
        }
    }

    /// When the list was seen.
    pub(super) fn fetched(&self) -> Option<SystemTime> {
        (self.fetched_at != 0).then(|| UNIX_EPOCH + Duration::from_millis(self.fetched_at))
    }
}

/// `, 12 s old`, for people.
pub(super) fn age(since: SystemTime) -> String {
    let age = SystemTime::now().duration_since(since).unwrap_or_default();
    format!(", {} s old", age.as_secs())
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_try_counts_for_the_interval_whether_it_was_good_or_not() {
        let mut cache = Cache::default();
        assert!(!cache.is_fresh(Duration::from_secs(10)));
        cache.note(Err("x".to_owned()));
        assert!(cache.is_fresh(Duration::from_secs(10)) && !cache.is_fresh(Duration::ZERO));
        cache.tried_at += 3_600_000;
        assert!(!cache.is_fresh(Duration::from_secs(10)), "the clock went back");
    }

    #[test]
    fn what_is_written_is_read_and_damage_is_no_list() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::new(directory.path());
        assert!(Cache::read(&root).body.is_empty());
        let mut cache = Cache::default();
        cache.note(Ok("<list/>".to_owned()));
        cache.write(&root).unwrap();
        assert_eq!(Cache::read(&root).body, "<list/>");
        std::fs::write(root.path(CACHE), "{").unwrap();
        assert!(Cache::read(&root).body.is_empty());
    }
}
