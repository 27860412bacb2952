//! `causeway migrate`.

use std::io::{self, Write};

use causeway::{
    migrate::{self, Applied, Plan, RolledBack},
    root::Root,
};
use clap::Args;
use serde::Serialize;

use super::{
    Failure,
    output::{self, Format, Report},
};

/// What is to be done. One of them, so that nobody migrates a node by leaving a word out.
#[derive(Args)]
pub(crate) struct What {
    #[command(flatten)]
    direction: Direction,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
struct Direction {
    /// Show what --apply would do; change nothing
    #[arg(long)]
    dry_run: bool,
    /// Take the node over; go on if that was interrupted
    #[arg(long)]
    apply: bool,
    /// Give the node back as it was found
    #[arg(long)]
    rollback: bool,
}

pub(crate) fn run(root: &Root, what: &What) -> Result<(), Failure> {
    let format = Format::new(what.json);
    if what.direction.apply {
        output::print(Done::Applied(migrate::apply(root)?), format)
    } else if what.direction.rollback {
        output::print(Done::RolledBack(migrate::rollback(root)?), format)
    } else {
        output::print(Planned(migrate::plan(root)?), format)
    }
}

#[derive(Serialize)]
struct Planned(Plan);

impl Report for Planned {
    const KIND: &'static str = "MigrationPlan";

    fn write_text(&self, out: &mut dyn Write) -> io::Result<()> {
        let Plan {
            node,
            obstacles,
            steps,
            notes,
            ..
        } = &self.0;
        match *node {
            "causeway" if steps.is_empty() => writeln!(out, "this node has been taken over")?,
            "causeway" => writeln!(
                out,
                "this node has been taken over, and has pods on the bridge again"
            )?,
            "bridge" => {}
            _ => writeln!(
                out,
                "a migration was interrupted: --apply goes on, --rollback goes back"
            )?,
        }
        for step in steps {
            writeln!(out, "{}", step.what)?;
            writeln!(out, "    is    {}", step.now)?;
            writeln!(out, "    will  {}", step.then)?;
        }
        for note in notes {
            writeln!(out, "note: {note}")?;
        }
        for obstacle in obstacles {
            writeln!(out, "cannot: {obstacle}")?;
        }
        match obstacles.len() {
            0 => writeln!(out, "nothing stands in the way"),
            n => writeln!(out, "{n} in the way"),
        }
    }

    fn failure(self) -> Option<Failure> {
        (!self.0.possible).then_some(Failure::NotPossible)
    }
}

#[derive(Serialize)]
#[serde(untagged)]
enum Done {
    Applied(Applied),
    RolledBack(RolledBack),
}

impl Report for Done {
    const KIND: &'static str = "Migration";

    fn write_text(&self, out: &mut dyn Write) -> io::Result<()> {
        let (lost, place) = match self {
            Self::Applied(done) => {
                writeln!(
                    out,
                    "taken over: {} pods; {} flows that are carried, {} of services, {} from outside",
                    done.pods, done.carried, done.kernel, done.answers
                )?;
                (&done.lost_flows, "could not be taken over")
            }
            Self::RolledBack(done) => {
                writeln!(out, "given back: {} pods, {} flows", done.pods, done.flows)?;
                (&done.lost_flows, "are lost: conntrack has no room for them")
            }
        };
        if !lost.is_empty() {
            writeln!(out, "{} flows {place}", lost.len())?;
        }
        lost.iter().try_for_each(|flow| writeln!(out, "    {flow}"))
    }
}
