//! What the agent knows, for whoever asks while it works.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use causeway::{apiserver, config::Configuration, reconcile::Pass, root::Root};

/// A pass that is older says nothing any more.
const STALE: Duration = Duration::from_secs(30);

/// Shared by the loop, the passes and the servers.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) root: Root,
    known: Mutex<Known>,
}

/// What is known at one moment.
#[derive(Clone, Debug, Default)]
pub(super) struct Known {
    pub(super) configuration: Option<Configuration>,
    /// What was wrong with the configuration when it was read last.
    pub(super) config_error: Option<String>,
    pub(super) reloads: BTreeMap<&'static str, u64>,
    pub(super) applied: Option<SystemTime>,
    pub(super) last: Pass,
    pub(super) api_server: apiserver::Known,
    pub(super) last_at: Option<Instant>,
    pub(super) passes: u64,
    pub(super) pass_seconds: f64,
    pub(super) mended: u64,
    pub(super) collected: u64,
    pub(super) sweeps: u64,
    pub(super) swept: u64,
    pub(super) forgotten: u64,
}

impl Shared {
    pub(super) fn new(root: &Root) -> Self {
        Self {
            root: root.clone(),
            known: Mutex::default(),
        }
    }

    pub(super) fn known(&self) -> Known {
        self.lock().clone()
    }

    /// Where to answer over TCP.
    pub(super) fn listen(&self) -> Option<SocketAddr> {
        self.lock().configuration.as_ref()?.listen
    }

    pub(super) fn set_configuration(&self, configuration: Configuration) {
        self.lock().configuration = Some(configuration);
    }

    pub(super) fn note_reload(&self, result: Result<(), String>) {
        let mut known = self.lock();
        let word = if result.is_ok() { "success" } else { "failure" };
        *known.reloads.entry(word).or_default() += 1;
        known.config_error = result.err();
    }

    pub(super) fn note_api_server(&self, known: &apiserver::Known) {
        let mut here = self.lock();
        if here.api_server != *known {
            here.api_server = known.clone();
        }
    }

    pub(super) fn note_applied(&self) {
        self.lock().applied = Some(SystemTime::now());
    }

    pub(super) fn note_pass(&self, pass: &Pass, took: Duration) {
        let mut known = self.lock();
        for fault in &pass.faults {
            if !known.last.faults.contains(fault) {
                tracing::error!(fault, "cannot be put right");
            }
        }
        known.passes += 1;
        known.pass_seconds += took.as_secs_f64();
        known.mended += pass.mended.len() as u64;
        known.collected += pass.collected as u64;
        if let Some(swept) = pass.swept {
            known.sweeps += 1;
            known.swept += swept.scanned as u64;
            known.forgotten += swept.deleted as u64;
        }
        known.last = pass.clone();
        known.last_at = Some(Instant::now());
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        // Every change is complete at any moment at which its holder could panic.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    /// What keeps the agent from having done its work, each in a line; nothing if it has.
    pub(super) fn not_ready(&self) -> Vec<String> {
        let mut reasons = self.last.faults.clone();
        match self.last_at {
            None => reasons.push("the node has not been looked at yet".to_owned()),
            Some(at) if at.elapsed() > STALE => {
                reasons.push(format!(
                    "the node was looked at {} s ago for the last time",
                    at.elapsed().as_secs()
                ));
            }
            Some(_) => {}
        }
        reasons.extend(
            self.config_error
                .iter()
                .map(|error| format!("configuration: {error}")),
        );
        reasons
    }

    /// Whether passes are made at all.
    pub(super) fn is_alive(&self) -> bool {
        self.last_at.is_none_or(|at| at.elapsed() <= STALE)
    }
}
