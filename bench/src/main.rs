//! Causeway beside what it replaces and beside what the machine allows: `cargo xtask bench`.
//!
//! Owns the order: the peers are built, all of them, then measured, one measure after the other, each with all peers in
//! turn ([`rounds`]), then come the goals and the files.

mod counter;
mod cpu;
mod facts;
mod family;
mod generator;
mod goals;
mod lanes;
mod machine;
mod measure;
mod peer;
mod plot;
mod programs;
mod ranges;
mod results;
mod rounds;
mod stand;
mod stats;
mod swap;
mod table;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Result, ensure};
use clap::Parser;

use crate::{
    machine::Machine,
    measure::{Hall, Measure},
    peer::Peer,
    results::Results,
    rounds::Plan,
    stand::{Build, Stand},
};

/// Pods of every peer.
const PODS: u8 = 4;

/// Causeway beside what it replaces and beside what the machine allows.
#[derive(Parser)]
#[command(name = "cargo xtask bench")]
struct Arguments {
    /// Measures to take; all of them unless named.
    names: Vec<String>,
    /// The goals alone, in seven minutes.
    #[arg(long)]
    quick: bool,
    /// List measures and peers, and do nothing.
    #[arg(long)]
    list: bool,
    /// Peers to build besides Causeway; all of them unless named.
    #[arg(long, value_name = "PEER", value_delimiter = ',')]
    peers: Vec<String>,
    /// Another installable tree (`cargo xtask dist` of another version), measured beside this one as `other-build`.
    #[arg(long, value_name = "DIRECTORY")]
    other: Option<PathBuf>,
    /// Another object of kernel programs with the same maps (target/causeway.bpf.o of another version), in place of the tree's
    /// own, measured as `other-build`.
    #[arg(long, value_name = "FILE")]
    object: Option<PathBuf>,
    /// Rounds of each measure.
    #[arg(long)]
    rounds: Option<usize>,
    /// Length of a block, milliseconds.
    #[arg(long, default_value_t = 20)]
    block: u64,
    /// The CPU of whatever is measured on one, counted from 0 among those allowed; the last one unless given.
    #[arg(long)]
    cpu: Option<usize>,
    /// Write tables, JSON and plots to this directory.
    #[arg(long, value_name = "DIRECTORY")]
    save: Option<PathBuf>,
}

fn main() -> ExitCode {
    match bench(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn bench(arguments: &Arguments) -> Result<()> {
    if arguments.list {
        list();
        return Ok(());
    }
    let measures = arguments.measures()?;
    let hall = arguments.hall()?;
    let mut results = Results::new(Machine::here());
    println!("{}\n", results.machine);
    let mut failed = Vec::new();
    for measure in measures {
        // The figures of the others are none the worse.
        match measure.run(&hall) {
            Ok(outcome) => {
                println!("{}", table::outcome(&outcome));
                results.outcomes.push(outcome);
            }
            Err(error) => {
                println!("{}: {error:#}\n", measure.name);
                failed.push(measure.name);
            }
        }
    }
    results.facts = hall.facts()?;
    println!("{}", table::facts(&results.facts));
    results.goals = goals::judge(&results.outcomes, &results.facts);
    if !results.goals.is_empty() {
        println!("{}", table::goals(&results.goals));
    }
    if let Some(directory) = &arguments.save {
        results.save(directory)?;
    }
    ensure!(failed.is_empty(), "no figures: {}", failed.join(", "));
    Ok(())
}

impl Arguments {
    fn measures(&self) -> Result<Vec<&'static Measure>> {
        let known = |name: &String| measure::ALL.iter().any(|measure| measure.name == name);
        if let Some(unknown) = self.names.iter().find(|name| !known(name)) {
            anyhow::bail!("no measure is called {unknown}: --list shows them all");
        }
        let wanted = |measure: &&Measure| {
            if self.names.is_empty() {
                measure.quick || !self.quick
            } else {
                self.names.iter().any(|name| name == measure.name)
            }
        };
        Ok(measure::ALL.iter().filter(wanted).collect())
    }

    /// Builds the peers.
    fn hall(&self) -> Result<Hall> {
        let unknown = self
            .peers
            .iter()
            .find(|name| Peer::ALL.iter().all(|peer| peer.name() != **name));
        if let Some(unknown) = unknown {
            anyhow::bail!("no peer is called {unknown}: --list shows them all");
        }
        let is_wanted = |peer: &Peer| {
            *peer == Peer::Causeway
                || self.peers.is_empty()
                || self.peers.iter().any(|name| name == peer.name())
        };
        let mut peers = Vec::new();
        for peer in Peer::ALL.into_iter().filter(is_wanted) {
            if stand::is_possible(peer)? {
                peers.push(peer);
            } else {
                eprintln!("without {}: this kernel lacks what it is made of", peer.name());
            }
        }
        if self.other.is_some() || self.object.is_some() {
            peers.insert(1, Peer::OtherBuild);
        }
        let cpus = cpu::allowed()?;
        let build = Build {
            dist: self.other.clone(),
            object: self.object.clone(),
            max_flows: None,
        };
        let rounds = self.rounds.unwrap_or(if self.quick { 15 } else { 31 });
        ensure!(rounds > 0, "no rounds, no figures");
        eprintln!("building {} peers", peers.len());
        let stands: Result<Vec<Stand>> = peers
            .into_iter()
            .map(|peer| Stand::build(peer, PODS, &build))
            .collect();
        Ok(Hall {
            stands: stands?,
            build,
            plan: Plan {
                block: Duration::from_millis(self.block),
                rounds,
                cpu: self.cpu.unwrap_or(cpus.len() - 1),
            },
        })
    }
}

fn list() {
    println!("measures (* with --quick)");
    for measure in measure::ALL {
        let mark = if measure.quick { '*' } else { ' ' };
        println!("  {mark} {:<18} {}", measure.name, measure.title);
    }
    println!("\npeers");
    for peer in Peer::ALL {
        println!("    {:<18} {}", peer.name(), peer.description());
    }
}
