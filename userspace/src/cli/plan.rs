//! `causeway plan`.

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    str::FromStr,
};

use causeway::plan::{
    self, Fault, Outcome, Prefix, Severity,
    interfaces::{self, MAC_PREFIX},
    json::LARGEST,
    reckon::{Plan, PoolNeeds, SubnetNeeds},
};
use clap::Args;
use serde::Serialize;

use super::{
    Failure, input,
    output::{self, Format, Report},
    paragraph,
};

/// Of which definition, and what to make of it.
#[derive(Args)]
pub(crate) struct Arguments {
    /// The definition; - for standard input
    file: PathBuf,
    /// The prefix of a subnet that is only named
    #[arg(long, value_name = "[NAME=]PREFIX", num_args = 1..)]
    subnet: Vec<NamedPrefix>,
    /// Write each node's interfaces.json there
    #[arg(long, value_name = "DIRECTORY")]
    emit_interfaces: Option<PathBuf>,
    /// Replace the lists that are there
    #[arg(long, requires = "emit_interfaces")]
    force: bool,
    /// How each MAC begins, 02:00 if not said
    #[arg(long, value_name = "XX:XX", requires = "emit_interfaces")]
    mac_prefix: Option<MacPrefix>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone)]
struct NamedPrefix(Prefix);

impl FromStr for NamedPrefix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (subnet, prefix) = text.rsplit_once('=').unwrap_or(("", text));
        let prefix = prefix.parse::<ipnet::Ipv4Net>();
        let prefix = prefix.map_err(|_| "write it as 10.240.0.0/16, or as NAME=10.240.0.0/16".to_owned())?;
        Ok(Self(Prefix {
            subnet: subnet.to_owned(),
            prefix: prefix.trunc(),
        }))
    }
}

#[derive(Clone)]
struct MacPrefix([u8; 2]);

impl FromStr for MacPrefix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let byte = |text: &str| {
            (text.len() == 2)
                .then(|| u8::from_str_radix(text, 16).ok())
                .flatten()
        };
        match text
            .split_once(':')
            .map(|(first, second)| (byte(first), byte(second)))
        {
            Some((Some(first), Some(_))) if first & 1 == 1 => {
                Err(format!("{text} begins a multicast address"))
            }
            Some((Some(first), Some(second))) => Ok(Self([first, second])),
            _ => Err("write it as 02:00".to_owned()),
        }
    }
}

pub(crate) fn run(arguments: Arguments) -> Result<(), Failure> {
    let file = &arguments.file;
    let wrong = |problem: String| Failure::Usage(format!("{}: {problem}", file.display()));
    let text = input::read(file, LARGEST as u64).map_err(wrong)?;
    let prefixes: Vec<Prefix> = arguments
        .subnet
        .into_iter()
        .map(|NamedPrefix(prefix)| prefix)
        .collect();
    let Outcome { faults, plan } = plan::plan(&text, &prefixes).map_err(|fault| wrong(fault.to_string()))?;
    let errors = faults
        .iter()
        .filter(|fault| fault.severity == Severity::Error)
        .count();
    let mut written = None;
    if let (Some(directory), Some(plan), 0) = (arguments.emit_interfaces, &plan, errors) {
        let MacPrefix(mac) = arguments.mac_prefix.unwrap_or(MacPrefix(MAC_PREFIX));
        written = Some(emit(plan, &directory, mac, arguments.force)?);
    }
    let planned = Planned {
        valid: errors == 0,
        errors,
        warnings: faults.len() - errors,
        faults,
        plan,
        written,
    };
    output::print(planned, Format::new(arguments.json))
}

fn emit(plan: &Plan, directory: &Path, mac: [u8; 2], force: bool) -> Result<Written, Failure> {
    let lists = interfaces::lists(plan, mac)?;
    interfaces::write(directory, &lists, force)?;
    Ok(Written {
        directory: directory.display().to_string(),
        nodes: lists.into_iter().map(|list| list.node).collect(),
    })
}

/// A definition, and what comes of it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Planned {
    valid: bool,
    errors: usize,
    warnings: usize,
    faults: Vec<Fault>,
    plan: Option<Plan>,
    written: Option<Written>,
}

#[derive(Serialize)]
struct Written {
    directory: String,
    nodes: Vec<String>,
}

impl Report for Planned {
    const KIND: &'static str = "ClusterPlan";

    fn write_text(&self, out: &mut dyn Write) -> io::Result<()> {
        if let Some(plan) = &self.plan {
            write_plan(out, plan)?;
        }
        for fault in &self.faults {
            let label = match fault.severity {
                Severity::Error => "error    ",
                Severity::Warning => "warning  ",
            };
            paragraph::write(out, label, &fault.to_string())?;
        }
        match &self.written {
            Some(Written { directory, nodes }) => {
                writeln!(out, "wrote the lists of {} nodes to {directory}", nodes.len())
            }
            None => Ok(()),
        }
    }

    fn failure(self) -> Option<Failure> {
        (self.errors > 0).then_some(Failure::Unsound(self.errors))
    }
}

fn write_plan(out: &mut dyn Write, plan: &Plan) -> io::Result<()> {
    let or_dash = |number: Option<String>| number.unwrap_or_else(|| "-".to_owned());
    let pools = plan.pools.iter().map(|pool: &PoolNeeds| {
        [
            pool.name.clone(),
            pool.count.to_string(),
            pool.max_pods.to_string(),
            pool.addresses_per_node.to_string(),
            pool.needed.to_string(),
            or_dash(pool.most.map(|most| most.to_string())),
            pool.subnet.clone(),
        ]
    });
    let heading = [
        "POOL",
        "NODES",
        "PODS EACH",
        "ADDRESSES EACH",
        "IN ALL",
        "NODES AT MOST",
        "SUBNET",
    ];
    output::write_table(out, heading, pools)?;
    writeln!(out)?;
    let subnets = plan.subnets.iter().map(|subnet: &SubnetNeeds| {
        [
            subnet.name.clone(),
            or_dash(subnet.prefix.map(|prefix| prefix.to_string())),
            or_dash(subnet.usable.map(|usable| usable.to_string())),
            subnet.needed.to_string(),
            or_dash(subnet.free.map(|free| free.to_string())),
        ]
    });
    output::write_table(out, ["SUBNET", "PREFIX", "USABLE", "NEEDED", "FREE"], subnets)?;
    writeln!(out)?;
    if let Some(chosen) = &plan.chosen {
        let masters: Vec<String> = chosen.masters.iter().map(ToString::to_string).collect();
        writeln!(out, "masters                 {}", masters.join(", "))?;
        match chosen.load_balancer {
            Some(address) => writeln!(out, "internal load balancer  {address}")?,
            None => writeln!(out, "internal load balancer  none, with one master")?,
        }
    }
    writeln!(out, "addresses in all        {}\n", plan.needed)
}
