//! The project's tasks: `cargo xtask --help`.
//!
//! Each verb does the set-up it needs by itself. Root is needed to install and to run (namespaces, tc, bpffs), never to
//! build or to check.

mod apt;
mod check;
mod dist;
mod emulator;
mod kernels;
mod licences;
mod progress;
mod run;
mod setup;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::{
    kernels::TestExtent,
    workspace::{NeedsRoot, Workspace},
};

/// Builds, tests, checks and packages Causeway.
#[derive(Parser)]
#[command(name = "cargo xtask", version)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Install what building, testing and the demo need; quick when all is there.
    Setup,
    /// Compile the kernel programs, then everything else (release).
    Build,
    /// Run all tests, in a mount namespace of their own (root).
    Test {
        /// The long ones too: soaks and stress, ignored otherwise.
        #[arg(long)]
        long: bool,
        /// Only tests whose name contains this.
        #[arg(long, value_name = "NAME")]
        filter: Option<String>,
        /// Only on Debian's other kernels, under emulation: the part that belongs to every run, or the whole of
        /// tests/kernels/plan.
        #[arg(
            long,
            conflicts_with = "long",
            num_args = 0..=1,
            require_equals = true,
            default_missing_value = "full",
            value_name = "EXTENT"
        )]
        kernels: Option<TestExtent>,
        /// With --kernels: only this one, such as 6.1.
        #[arg(long, value_name = "SERIES", requires = "kernels")]
        kernel: Option<String>,
    },
    /// Check format, lints (host and eBPF), documentation, licences and banned crates.
    Check,
    /// Fill target/dist with an installable tree, and pack it with its scripts into a tarball beside it.
    Dist,
    /// Measure Causeway beside what it replaces and beside what the machine allows (root).
    Bench {
        /// Arguments of the bench: `--quick`, names of measures, `--help`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGUMENTS")]
        arguments: Vec<String>,
    },
    /// Show the main job on this machine, with nothing but namespaces (root).
    Demo,
}

fn main() -> ExitCode {
    let verb = Cli::parse().verb;
    match act(&verb) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report(&verb, &error);
            ExitCode::FAILURE
        }
    }
}

fn report(verb: &Verb, error: &anyhow::Error) {
    if let Some(needs_root) = error.downcast_ref::<NeedsRoot>() {
        // Not the verb itself where set-up is all that root is needed for: files built by root are in the way later.
        let verb = match verb {
            Verb::Test { .. } => "test",
            Verb::Demo => "demo",
            Verb::Bench { .. } => "bench",
            Verb::Setup | Verb::Build | Verb::Check | Verb::Dist => "setup",
        };
        eprintln!("{}", needs_root.hint(verb));
        return;
    }
    eprintln!("error: {error}");
    for cause in error.chain().skip(1) {
        eprintln!("because: {cause}");
    }
}

fn act(verb: &Verb) -> anyhow::Result<()> {
    let workspace = Workspace::find()?;
    match verb {
        Verb::Setup => setup::setup(&workspace, setup::ALL),
        Verb::Build => {
            setup::setup(&workspace, setup::BUILD)?;
            dist::build(&workspace)
        }
        Verb::Dist => {
            setup::setup(&workspace, setup::BUILD)?;
            dist::build(&workspace)?;
            dist::fill(&workspace)?;
            dist::pack(&workspace)
        }
        Verb::Check => {
            setup::setup(&workspace, setup::CHECK)?;
            check::check(&workspace)
        }
        Verb::Test {
            long,
            filter,
            kernels,
            kernel,
        } => {
            prepare_to_run(&workspace, setup::TEST)?;
            let filter = filter.as_deref();
            if let Some(extent) = *kernels {
                return other_kernels(&workspace, extent, filter, kernel.as_deref());
            }
            run::test(&workspace, *long, filter)?;
            if filter.is_some() {
                return Ok(());
            }
            other_kernels(&workspace, TestExtent::Short, None, None)
        }
        Verb::Bench { arguments } => {
            prepare_to_run(&workspace, setup::RUN)?;
            run::bench(&workspace, arguments)
        }
        Verb::Demo => {
            prepare_to_run(&workspace, setup::RUN)?;
            run::demo(&workspace)
        }
    }
}

fn other_kernels(
    workspace: &Workspace,
    extent: TestExtent,
    filter: Option<&str>,
    kernel: Option<&str>,
) -> anyhow::Result<()> {
    let selection = kernels::Selection {
        kernel,
        filter,
        extent,
    };
    kernels::test(workspace, &selection)
}

fn prepare_to_run(workspace: &Workspace, needs: &[setup::Need]) -> anyhow::Result<()> {
    workspace::require_root("namespaces, tc and bpffs")?;
    setup::setup(workspace, needs)?;
    dist::build(workspace)?;
    dist::fill(workspace)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_follows_bench_is_the_benchs() {
        let cli = Cli::try_parse_from(["xtask", "bench", "--quick", "snat", "--rounds", "3"]).ok();
        let Some(Verb::Bench { arguments }) = cli.map(|cli| cli.verb) else {
            panic!("not understood as a bench")
        };
        assert_eq!(arguments, ["--quick", "snat", "--rounds", "3"]);
    }
}
