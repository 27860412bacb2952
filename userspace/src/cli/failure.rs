//! Why a command failed, and what the shell is told.

use std::{io, path::PathBuf, process::ExitCode};

use causeway::{
    config::ConfigError, datapath::DatapathError, leases::LeasesError, migrate::MigrateError,
    plan::interfaces::InterfacesError, root::Root,
};
use rustix::process::geteuid;
use thiserror::Error;

use super::doctor::several;
use crate::agent::AgentError;

/// Why the command did not do what it was asked.
#[derive(Debug, Error)]
pub(crate) enum Failure {
    #[error(
        "the datapath is not loaded: there is no {}\n\
         hint: the first pod loads it (CNI ADD through azure-vnet); {}",
        .0.path("/sys/fs/bpf/causeway").display(),
        root_hint(.0)
    )]
    NotLoaded(Root),
    #[error("{0}{hint}", hint = permission_hint(.0))]
    Datapath(#[from] DatapathError),
    #[error(transparent)]
    Leases(#[from] LeasesError),
    #[error("the doctor found {}", several(*.0, "error"))]
    Unhealthy(usize),
    #[error("{0}")]
    Usage(String),
    #[error("cannot read the input: {0}")]
    Input(io::Error),
    #[error("{}: {source}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Agent(#[from] AgentError),
    #[error("the configuration is wrong: {0}")]
    Config(ConfigError),
    #[error("{0}{hint}", hint = permission_hint(.0))]
    Migrate(#[from] MigrateError),
    #[error("the node cannot be migrated as it is")]
    NotPossible,
    #[error("the network is not ready: {} failed", several(*.0, "check"))]
    NotReady(usize),
    #[error("the definition has {}", several(*.0, "error"))]
    Unsound(usize),
    #[error(transparent)]
    Interfaces(#[from] InterfacesError),
    #[error("cannot get the subnets of the pods of node {node}: {problem}")]
    PodCidrs { node: String, problem: String },
    #[error("cannot wait for events: {0}")]
    Events(io::Error),
    #[error("cannot write the output: {0}")]
    Output(io::Error),
}

impl Failure {
    /// What the shell is told.
    pub(crate) fn exit_code(&self) -> ExitCode {
        match self {
            Self::NotLoaded(_) => ExitCode::from(4),
            Self::Usage(_) => ExitCode::from(2),
            _ => ExitCode::FAILURE,
        }
    }
}

fn root_hint(root: &Root) -> String {
    if root.is_system() {
        format!(
            "if this node has a root of its own, name it in {}",
            Root::VARIABLE
        )
    } else {
        format!(
            "{} is {}: is that the node you mean?",
            Root::VARIABLE,
            root.path("/").display()
        )
    }
}

/// What to say where the system refused.
pub(crate) fn permission_hint(error: &(dyn std::error::Error + 'static)) -> &'static str {
    let denied = |error: &io::Error| error.kind() == io::ErrorKind::PermissionDenied;
    let mut source = Some(error);
    while let Some(error) = source {
        if error.downcast_ref::<io::Error>().is_some_and(denied) {
            return if geteuid().is_root() {
                "\nhint: it needs CAP_BPF and CAP_NET_ADMIN, CAP_PERFMON as well where it loads programs, and in a container \
                 a seccomp profile that lets bpf() through"
            } else {
                "\nhint: the pins are root's: run it as root"
            };
        }
        source = error.source();
    }
    ""
}
