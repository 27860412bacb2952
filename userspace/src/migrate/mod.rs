//! A node goes over from the incumbent's bridge to Causeway and back, with its pods and their flows.
//!
//! What the node was stands in a `journal` before anything is changed. Every step can be done twice, so a migration that
//! was interrupted goes on, or back, from wherever it was. The order of the steps is such that at no moment a pod's packet
//! can leave untranslated: the programs are on the uplink and know the pod before the rule that translates is taken away,
//! and the other way round on the way back (`docs/migration.md`).
//!
//! The bridge stays, empty and without addresses, and so do the rules of ebtables, which concern what is bridged: so the
//! way back ends with the same interface, not with one like it.

mod apply;
pub(crate) mod conntrack;
mod flows;
mod journal;
mod kernel;
mod masquerade;
pub(crate) mod netlink;
mod plan;
mod pods;
mod rollback;
mod rules;
mod survey;
mod uplink;

use std::{fs, io, path::PathBuf, time::Duration};

use rustix::process::{getpriority_process, setpriority_process};

pub use self::{
    apply::{Applied, apply},
    journal::JOURNAL,
    plan::{Plan, Step, plan},
    rollback::{RolledBack, rollback},
};
use crate::{
    datapath::DatapathError,
    durable::{Lock, LockError},
    endpoints::{self, EndpointsError},
    ipam::store,
    links::LinkError,
    node::NodeError,
    program::ProgramError,
    root::Root,
};

/// Why a node is not migrated.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// It cannot be, and nothing was changed.
    #[error("this node cannot be migrated:{}\nhint: `causeway migrate --dry-run` shows the whole plan", list(.0))]
    Refused(Vec<String>),
    /// There is nothing to go back to.
    #[error("this node was not migrated: there is no {}", .0.display())]
    NotMigrated(PathBuf),
    /// The kernel refused.
    #[error("cannot {action}: {source}")]
    Kernel {
        /// What was asked.
        action: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// `iptables` or `ebtables` failed.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// The journal cannot be read or written.
    #[error("the journal {}: {what}", path.display())]
    Journal {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// The agent runs, and would mend what is being changed.
    #[error("{0}\nhint: stop it for as long as this takes")]
    AgentRuns(#[source] LockError),
    /// Another call holds a state file.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The endpoints cannot be read.
    #[error(transparent)]
    Endpoints(#[from] EndpointsError),
    /// The datapath failed.
    #[error(transparent)]
    Datapath(#[from] DatapathError),
    /// rtnetlink failed.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The node could not be set up.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// A map could not be changed.
    #[error("cannot change the map {name}: {source}")]
    Map {
        /// Its name.
        name: &'static str,
        /// What went wrong.
        source: aya::maps::MapError,
    },
    /// It failed and was undone.
    #[error("{error}; everything that was done has been undone")]
    Undone {
        /// Why.
        error: Box<Self>,
    },
    /// It failed, and so did undoing it, or there was nothing to go back to.
    #[error(
        "the migration is not complete:{}\nhint: the journal {} has what the node was: remove the cause, then `causeway migrate --rollback` or --apply",
        list(errors), journal.display()
    )]
    Stuck {
        /// What failed.
        errors: Vec<String>,
        /// The journal.
        journal: PathBuf,
    },
}

fn list(lines: &[String]) -> String {
    lines.iter().flat_map(|line| ["\n- ", line]).collect()
}

/// How long a call of a plug-in is waited for.
const PATIENCE: Duration = Duration::from_secs(30);

/// The agent's own lock, which it holds while it runs.
const AGENT_LOCK: &str = "/run/causeway/agent.lock";
/// How long is waited for an agent that is about to end.
const AGENT_PATIENCE: Duration = Duration::from_secs(2);

/// Keeps the agent away, which would put back what is taken away. Leaves no file behind.
#[derive(Debug)]
struct Agentless {
    path: PathBuf,
    _lock: Lock,
}

impl Agentless {
    fn wait(root: &Root) -> Result<Self, MigrateError> {
        let path = root.path(AGENT_LOCK);
        let lock = Lock::acquire(&path, AGENT_PATIENCE).map_err(MigrateError::AgentRuns)?;
        Ok(Self { path, _lock: lock })
    }
}

impl Drop for Agentless {
    fn drop(&mut self) {
        // Held until after this: whoever waits for it sees that the name is gone, and makes it anew.
        fs::remove_file(&self.path).ok();
        if let Some(directory) = self.path.parent() {
            fs::remove_dir(directory).ok();
        }
    }
}

/// No pod is added or deleted while this is held, by the incumbent or by Causeway, once its call has got to its state file.
#[derive(Debug)]
struct Alone(#[expect(dead_code, reason = "held until dropped")] [Lock; 2]);

impl Alone {
    fn wait(root: &Root) -> Result<Self, MigrateError> {
        let network = Lock::acquire(&root.path(endpoints::LOCK), PATIENCE)?;
        Ok(Self([network, Lock::acquire(&root.path(store::LOCK), PATIENCE)?]))
    }
}

/// The highest priority of an ordinary thread (setpriority(2)).
const URGENT: i32 = -20;

/// The thread goes before others while this is held, and so do the programs that it starts: flows that are held are silent for
/// as long as it waits for a CPU.
#[derive(Debug)]
struct Urgent {
    before: Option<i32>,
}

impl Urgent {
    fn begin() -> Self {
        let raised = getpriority_process(None).and_then(|before| {
            setpriority_process(None, URGENT)?;
            Ok(before)
        });
        if let Err(error) = &raised {
            tracing::debug!(%error, "waits for a CPU like everybody");
        }
        Self { before: raised.ok() }
    }
}

impl Drop for Urgent {
    fn drop(&mut self) {
        if let Some(before) = self.before
            && let Err(error) = setpriority_process(None, before)
        {
            tracing::debug!(%error, "goes before others to its end");
        }
    }
}
