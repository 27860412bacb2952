//! `causeway apiserver`: the API server in the cluster's network.

mod check;

use clap::Subcommand;

use super::Failure;

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
}

pub(crate) fn run(action: Action) -> Result<(), Failure> {
    match action {
        Action::Check(arguments) => check::run(*arguments),
    }
}
