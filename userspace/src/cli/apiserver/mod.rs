//! `causeway apiserver`: the API server in the cluster's network.

mod check;
mod set;
mod status;

use causeway::root::Root;
use clap::Subcommand;

use super::{
    Failure,
    output::{self, Format},
};

/// What about the API server.
#[derive(Subcommand)]
pub(crate) enum Action {
    /// Whether a cluster's network is ready for API Server VNet Integration
    ///
    /// Reads what the Azure CLI exports, any part of it, or the same facts as
    /// flags; asks nobody. What is not given is `unknown`. See
    /// docs/api-server-check.md.
    ///
    /// Exit codes: 0 nothing fails, 1 something does, 2 the input is wrong.
    #[command(
        verbatim_doc_comment,
        override_usage = "causeway apiserver check [--aks FILE] [--vnet FILE] …"
    )]
    Check(Box<check::Arguments>),
    /// Say where the API server is: what is given changes, the rest stays
    ///
    /// In force within a second. Connections to an address that is given up go on
    /// until they end or have drained; then their openers are told by a reset.
    /// What is said here stands over the configuration file (docs/api-server.md).
    #[command(verbatim_doc_comment)]
    Set(set::Arguments),
    /// Where it is, whether it answers from here, and who is connected
    Status {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// The status again every few seconds, until interrupted
    Watch {
        /// Seconds between two
        #[arg(value_name = "SECONDS", default_value = "2", value_parser = clap::value_parser!(u32).range(1..=86_400))]
        every: u32,
        /// Print JSON, one document a line
        #[arg(long)]
        json: bool,
    },
}

pub(crate) fn run(action: Action, root: &Root) -> Result<(), Failure> {
    match action {
        Action::Check(arguments) => check::run(*arguments),
        Action::Set(arguments) => set::run(arguments, root),
        Action::Status { json } => output::print(status::gather(root)?, Format::new(json)),
        Action::Watch { every, json } => output::watch(every, Format::new(json), || status::gather(root)),
    }
}
