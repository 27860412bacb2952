//! The command line. Reads the pinned maps and prints them, and sweeps them; the agent is not asked.
//!
//! Exit codes: 0 done, 1 failed, 2 wrong usage, 4 the datapath is not loaded.

mod config;
mod doctor;
pub(crate) mod documents;
mod explain;
mod flows;
mod leases;
mod maps;
mod monitor;
mod network;
mod output;
mod pods;
mod ranges;
mod status;
mod sweep;
mod tool;
mod upgrade;
mod version;

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use causeway::{
    datapath::{Datapath, DatapathError, Unloaded},
    leases::LeasesError,
    root::Root,
};
use clap::{Args, Parser, Subcommand};
use thiserror::Error;

use self::output::{Format, Report};
use crate::agent;

/// Parses the arguments, does what they say, and tells the shell how it went.
pub(crate) fn main() -> ExitCode {
    let root = Root::from_env();
    match run(Cli::parse().command, &root) {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever reads us has seen enough (`causeway flows | head`).
        Err(Failure::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(failure) => {
            // Standard error may be closed as well, and there is nobody else to tell.
            writeln!(io::stderr(), "causeway: {failure}").ok();
            failure.exit_code()
        }
    }
}

/// Shows what Causeway's datapath does on this node.
///
/// The first pod (CNI ADD) loads the datapath; no daemon is needed.
///
/// CAUSEWAY_ROOT    directory that stands for /, where a machine has several nodes
/// CAUSEWAY_ATTACH  auto, tcx or clsact: how the CNI plug-in attaches programs
#[derive(Parser)]
#[command(name = "causeway", version, verbatim_doc_comment)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Whether the node is right, what is attached, where packets went
    Status {
        /// Also reasons never given, timeouts, flows by pod
        #[arg(short, long, alias = "all")]
        verbose: bool,
        #[command(flatten)]
        shown: Shown,
    },
    /// The pods of this node
    Pods {
        #[command(flatten)]
        shown: Shown,
    },
    /// The flows, one row for each direction
    Flows {
        #[command(flatten)]
        filter: flows::Filter,
        #[command(flatten)]
        shown: Shown,
    },
    /// The addresses that pods have, by the state files
    Leases {
        /// Only those whose pod is gone
        #[arg(long)]
        orphans: bool,
        #[command(flatten)]
        shown: Shown,
    },
    /// The ranges whose addresses are not masqueraded
    Ranges {
        #[command(flatten)]
        shown: Shown,
    },
    /// What is wrong with the node, why, and what to type
    ///
    /// Exit codes: 0 nothing but warnings, 1 something is wrong, 4 no datapath, and
    /// there are pods.
    #[command(verbatim_doc_comment)]
    Doctor {
        #[command(flatten)]
        shown: Shown,
    },
    /// What a code of the doctor means, or what becomes of a packet
    ///
    /// causeway explain CWY021
    /// causeway explain 10.240.0.5:40000 203.0.113.9:443 tcp
    ///
    /// The port of an ICMP query is its identifier. Without a source port the packet
    /// is one of a new flow. What the kernel's own rules do to it is not known here.
    #[command(verbatim_doc_comment)]
    Explain {
        #[command(flatten)]
        question: explain::Question,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Packets that are dropped, as it happens
    ///
    /// A sample: `status` has the counters.
    Monitor {
        #[command(flatten)]
        until: monitor::Until,
        /// Print JSON, one document a line
        #[arg(long)]
        json: bool,
    },
    /// Forget the flows that have been idle for longer than their time
    ///
    /// CNI calls do so too, as their schedule says; this is for a timer.
    Sweep {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Versions of the program, of the map layouts and of the kernel
    Version {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Keep the node right: live configuration, repairs, metrics
    ///
    /// Runs until SIGTERM; the datapath and its flows stay. SIGHUP reads the
    /// configuration again. Pods and packets do without the agent.
    Agent {
        #[command(flatten)]
        options: agent::Options,
    },
    /// The configuration: what is in force, from where, and is it right
    Config {
        #[command(subcommand)]
        action: config::Action,
    },
    /// Exchange the pinned programs for this version's, under traffic
    ///
    /// The agent does so when it starts. Maps and flows stay.
    Upgrade {
        /// Also if they are this version's already
        #[arg(long)]
        again: bool,
    },
    /// Take everything away and leave the node as it was found
    ///
    /// Pods that are still there lose masquerading: only the kernel routes them.
    Unload,
}

/// How a report is shown.
#[derive(Args)]
struct Shown {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Show it again every SECONDS, until interrupted
    #[arg(short, long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2",
          value_parser = clap::value_parser!(u32).range(1..=86_400))]
    watch: Option<u32>,
}

fn run(command: Command, root: &Root) -> Result<(), Failure> {
    match command {
        Command::Status { verbose, shown } => show(&shown, || status::gather(root, verbose)),
        Command::Pods { shown } => show(&shown, || pods::gather(&open(root)?)),
        Command::Flows { filter, shown } => show(&shown, || flows::gather(&open(root)?, &filter)),
        Command::Leases { orphans, shown } => show(&shown, || leases::gather(root, orphans)),
        Command::Ranges { shown } => show(&shown, || ranges::gather(&open(root)?)),
        Command::Doctor { shown } => show(&shown, || doctor::gather(root, doctor::Depth::Full)),
        Command::Explain { question, json } => explain::run(root, &question, json),
        Command::Monitor { until, json } => monitor::run(&open(root)?, &until, json),
        Command::Sweep { json } => output::print(sweep::gather(&open(root)?)?, Format::new(json)),
        Command::Version { json } => output::print(version::gather(), Format::new(json)),
        Command::Agent { options } => Ok(agent::run(root, &options)?),
        Command::Config { action } => config::run(&action, root),
        Command::Upgrade { again } => upgrade::run(root, again),
        Command::Unload => unload(root),
    }
}

fn show<R: Report>(shown: &Shown, gather: impl Fn() -> Result<R, Failure>) -> Result<(), Failure> {
    let format = Format::new(shown.json);
    match shown.watch {
        None => output::print(gather()?, format),
        Some(seconds) => output::watch(seconds, format, gather),
    }
}

fn unload(root: &Root) -> Result<(), Failure> {
    let Unloaded { was_loaded } = Datapath::unload(root)?;
    let text = if was_loaded {
        "unloaded"
    } else {
        "nothing was loaded"
    };
    writeln!(io::stdout(), "{text}").map_err(Failure::Output)
}

fn open(root: &Root) -> Result<Datapath, Failure> {
    Datapath::open(root)?.ok_or_else(|| Failure::NotLoaded(root.clone()))
}

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
    #[error("{0} things are wrong")]
    Unhealthy(usize),
    #[error("{0}")]
    Usage(String),
    #[error("cannot read the input: {0}")]
    Input(io::Error),
    #[error(transparent)]
    Agent(#[from] agent::AgentError),
    #[error("the configuration is wrong: {0}")]
    Config(causeway::config::ConfigError),
    #[error("cannot wait for events: {0}")]
    Events(io::Error),
    #[error("cannot write the output: {0}")]
    Output(io::Error),
}

impl Failure {
    fn exit_code(&self) -> ExitCode {
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

fn permission_hint(error: &DatapathError) -> &'static str {
    let denied = |error: &io::Error| error.kind() == io::ErrorKind::PermissionDenied;
    let mut source: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = source {
        if error.downcast_ref::<io::Error>().is_some_and(denied) {
            return "\nhint: the pins are root's: run it as root";
        }
        source = error.source();
    }
    ""
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn help_fits_a_terminal_of_80_columns() {
        let mut commands = vec![Cli::command()];
        commands.extend(Cli::command().get_subcommands().cloned());
        for mut command in commands {
            for text in [
                command.render_help().to_string(),
                command.render_long_help().to_string(),
            ] {
                let too_long = text.lines().find(|line| line.chars().count() > 80);
                assert_eq!(too_long, None, "{}", command.get_name());
            }
        }
    }

    #[test]
    fn watching_takes_seconds_or_none() {
        let watch = |arguments: &[&str]| match Cli::try_parse_from(arguments).map(|cli| cli.command) {
            Ok(Command::Pods { shown }) => shown.watch,
            _ => panic!("{arguments:?} is not understood"),
        };
        assert_eq!(watch(&["causeway", "pods"]), None);
        assert_eq!(watch(&["causeway", "pods", "-w"]), Some(2));
        assert_eq!(watch(&["causeway", "pods", "--watch", "5", "--json"]), Some(5));
        assert!(Cli::try_parse_from(["causeway", "pods", "-w", "0"]).is_err());
    }

    #[test]
    fn a_datapath_that_is_not_loaded_says_how_it_is_loaded_and_exits_with_4() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::new(directory.path());
        let failure = run(
            Command::Pods {
                shown: Shown {
                    json: false,
                    watch: None,
                },
            },
            &root,
        )
        .unwrap_err();
        let text = failure.to_string();
        assert!(
            text.contains("CNI ADD") && text.contains("CAUSEWAY_ROOT"),
            "{text}"
        );
        assert_eq!(
            format!("{:?}", failure.exit_code()),
            format!("{:?}", ExitCode::from(4))
        );
    }
}
