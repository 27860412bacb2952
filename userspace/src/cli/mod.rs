//! The command line. Reads the pinned maps and prints them, and sweeps them; the agent is not asked.
//!
//! Exit codes: 0 done, 1 failed, 2 wrong usage, 4 the datapath is not loaded.

mod apiserver;
mod bundle;
mod config;
mod doctor;
pub(crate) mod documents;
mod explain;
mod failure;
mod flows;
mod input;
mod leases;
mod maps;
mod migrate;
mod monitor;
mod nat;
mod network;
mod output;
mod paragraph;
mod plan;
mod pod_cidrs;
mod pods;
mod ranges;
mod shell;
mod status;
mod sweep;
mod top;
mod upgrade;
mod version;

use std::{
    io::{self, Write as _},
    path::PathBuf,
    process::ExitCode,
};

use causeway::{
    datapath::{Datapath, Unloaded},
    root::Root,
};
use clap::{Args, CommandFactory as _, Parser, Subcommand};

pub(crate) use self::failure::{Failure, permission_hint};
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
    /// Translations of addresses and ports
    Nat {
        #[command(subcommand)]
        command: Nat,
    },
    /// The pods with the most flows
    Top {
        #[command(flatten)]
        ranking: top::Ranking,
        /// Print JSON, one document a line
        #[arg(long)]
        json: bool,
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
    /// What is dropped or refused, and flows that begin
    ///
    /// A sample: `status` has the counters.
    Monitor {
        #[command(flatten)]
        options: monitor::Options,
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
    /// Take a node over from azure-vnet's bridge, or give it back
    ///
    /// Pods keep their addresses and their flows. See docs/migration.md.
    Migrate {
        #[command(flatten)]
        what: migrate::What,
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
    #[command(verbatim_doc_comment)]
    Agent {
        #[command(flatten)]
        options: agent::Options,
    },
    /// The configuration: what is in force, from where, and is it right
    Config {
        #[command(subcommand)]
        action: config::Action,
    },
    /// The API server in the cluster's network
    Apiserver {
        #[command(subcommand)]
        action: apiserver::Action,
    },
    /// How many addresses a cluster needs, by its definition
    ///
    /// Reads a cluster definition of acs-engine or aks-engine (vlabs), with `-->`
    /// remarks if it has some. See docs/planning.md.
    ///
    /// Exit codes: 0 it fits, 1 something is wrong, 2 the file is no definition.
    #[command(verbatim_doc_comment)]
    Plan {
        #[command(flatten)]
        arguments: plan::Arguments,
    },
    /// Ask Kubernetes for the subnets of this node's pods, and note them
    ///
    /// For CNI configurations with the ipam.environment podCIDRs: they read what is
    /// noted, /run/causeway/pod-cidrs.json. Once a boot is enough. See docs/cni.md.
    #[command(verbatim_doc_comment)]
    PodCidrs {
        #[command(flatten)]
        arguments: pod_cidrs::Arguments,
    },
    /// Exchange the pinned programs for this version's, under traffic
    ///
    /// The agent does so when it starts. Maps and flows stay.
    Upgrade {
        /// Also if they are this version's already
        #[arg(long)]
        again: bool,
    },
    /// Write a support archive: reports, maps, rules, state
    ///
    /// It has addresses and names of pods, and no traffic. What cannot be read is
    /// named in its manifest.
    #[command(verbatim_doc_comment)]
    Bundle {
        /// The archive; - for standard output
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Write a script that completes this command's words
    Completion {
        /// Whose
        shell: shell::Shell,
    },
    /// Write the manual pages, one a command
    Man {
        /// Where to
        directory: PathBuf,
    },
    /// Take everything away and leave the node as it was found
    ///
    /// Pods that are still there lose masquerading: only the kernel routes them.
    Unload,
}

#[derive(Subcommand)]
enum Nat {
    /// The translated flows, one row for each
    List {
        #[command(flatten)]
        filter: flows::Filter,
        #[command(flatten)]
        shown: Shown,
    },
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
        Command::Nat {
            command: Nat::List { filter, shown },
        } => show(&shown, || nat::gather(&open(root)?, &filter)),
        Command::Top { ranking, json } => top::run(root, &ranking, json),
        Command::Leases { orphans, shown } => show(&shown, || leases::gather(root, orphans)),
        Command::Ranges { shown } => show(&shown, || ranges::gather(&open(root)?)),
        Command::Doctor { shown } => show(&shown, || doctor::gather(root, doctor::Depth::Full)),
        Command::Explain { question, json } => explain::run(root, &question, json),
        Command::Monitor { options, json } => monitor::run(&open(root)?, &options, json),
        Command::Sweep { json } => output::print(sweep::gather(&open(root)?)?, Format::new(json)),
        Command::Migrate { what } => migrate::run(root, &what),
        Command::Version { json } => output::print(version::gather(), Format::new(json)),
        Command::Agent { options } => Ok(agent::run(root, &options)?),
        Command::Config { action } => config::run(&action, root),
        Command::Apiserver { action } => apiserver::run(action, root),
        Command::Plan { arguments } => plan::run(arguments),
        Command::PodCidrs { arguments } => pod_cidrs::run(root, &arguments),
        Command::Upgrade { again } => upgrade::run(root, again),
        Command::Bundle { output } => bundle::run(root, output.as_deref()),
        Command::Completion { shell } => shell::complete(&mut Cli::command(), shell),
        Command::Man { directory } => shell::manual(Cli::command(), &directory),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn help_fits_a_terminal_of_80_columns() {
        let mut commands = vec![Cli::command()];
        while let Some(mut command) = commands.pop() {
            commands.extend(command.get_subcommands().cloned());
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
