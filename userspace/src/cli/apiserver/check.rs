//! `causeway apiserver check`.

use std::{
    io::{self, Write},
    net::IpAddr,
    path::{Path, PathBuf},
};

use causeway::conversion::{
    self, Finding, Verdict,
    document::Document,
    error::InputError,
    facts::{Facts, Inputs, Named},
};
use clap::Args;
use ipnet::IpNet;
use serde::Serialize;

use super::super::{
    Failure, input,
    output::{self, Format, Report},
    paragraph,
};

/// No export of the Azure CLI is larger, in bytes.
const LARGEST: u64 = 64 << 20;

/// What is known, and how the findings are shown.
#[derive(Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    known: Known,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
#[group(required = true, multiple = true)]
struct Known {
    /// What `az aks show` writes
    #[arg(long, value_name = "FILE")]
    aks: Option<PathBuf>,
    /// What `az network vnet show` writes
    #[arg(long, value_name = "FILE")]
    vnet: Option<PathBuf>,
    /// `az network vnet subnet show`, of each
    #[arg(long, value_name = "FILE", num_args = 1..)]
    subnet: Vec<PathBuf>,
    /// `az network nsg rule list`, of each
    #[arg(long, value_name = "FILE", num_args = 1..)]
    nsg: Vec<PathBuf>,
    /// The API servers' subnet: its prefix or name
    #[arg(long, value_name = "SUBNET")]
    api_subnet: Option<String>,
    /// A subnet of nodes or of pods, likewise
    #[arg(long, value_name = "SUBNET", num_args = 1..)]
    cluster_subnet: Vec<String>,
    /// The network's addresses
    #[arg(long, value_name = "PREFIX", num_args = 1..)]
    vnet_cidr: Vec<IpNet>,
    /// Pods' addresses, if not the network's
    #[arg(long, value_name = "PREFIX", num_args = 1..)]
    pod_cidr: Vec<IpNet>,
    /// Services' addresses
    #[arg(long, value_name = "PREFIX", num_args = 1..)]
    service_cidr: Vec<IpNet>,
    /// The group of the API servers' subnet
    #[arg(long, value_name = "FILE|none")]
    api_nsg: Option<PathBuf>,
    /// The group of the cluster's subnets
    #[arg(long, value_name = "FILE|none")]
    cluster_nsg: Option<PathBuf>,
    /// Where the API server is until then
    #[arg(long, value_name = "ADDRESS")]
    old_address: Option<IpAddr>,
}

pub(crate) fn run(arguments: Arguments) -> Result<(), Failure> {
    let facts = facts(arguments.known).map_err(|errors| Failure::Usage(lines(&errors)))?;
    output::print(
        Findings::of(conversion::check(&facts)),
        Format::new(arguments.json),
    )
}

fn facts(known: Known) -> Result<Facts, Vec<InputError>> {
    let mut errors = Vec::new();
    let mut read = |path: &Path| {
        let document = input::read(path, LARGEST)
            .map_err(|problem| InputError::new(path.display().to_string(), problem))
            .and_then(|bytes| Document::parse(path, &bytes));
        document.map_err(|error| errors.push(error)).ok()
    };
    let cluster = known.aks.as_deref().and_then(&mut read);
    let network = known.vnet.as_deref().and_then(&mut read);
    let subnets = known.subnet.iter().filter_map(|path| read(path)).collect();
    let groups = known.nsg.iter().filter_map(|path| read(path)).collect();
    let mut named = |path: Option<PathBuf>| match path {
        Some(path) if path == Path::new("none") => Some(Named::Nothing),
        path => path.and_then(|path| read(&path)).map(Named::Rules),
    };
    let inputs = Inputs {
        cluster,
        network,
        subnets,
        groups,
        api_group: named(known.api_nsg),
        cluster_group: named(known.cluster_nsg),
        api_subnet: known.api_subnet,
        cluster_subnets: known.cluster_subnet,
        network_ranges: known.vnet_cidr,
        pods: known.pod_cidr,
        services: known.service_cidr,
        old_address: known.old_address,
    };
    match Facts::gather(inputs) {
        Ok(facts) if errors.is_empty() => Ok(facts),
        Ok(_) => Err(errors),
        Err(more) => {
            errors.extend(more);
            Err(errors)
        }
    }
}

fn lines(errors: &[InputError]) -> String {
    let lines: Vec<String> = errors.iter().map(InputError::to_string).collect();
    lines.join("\n")
}

/// What was found.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Findings {
    passed: usize,
    failed: usize,
    warnings: usize,
    unknown: usize,
    checks: Vec<Finding>,
}

impl Findings {
    fn of(checks: Vec<Finding>) -> Self {
        let count = |verdict| checks.iter().filter(|check| check.verdict == verdict).count();
        Self {
            passed: count(Verdict::Pass),
            failed: count(Verdict::Fail),
            warnings: count(Verdict::Warn),
            unknown: count(Verdict::Unknown),
            checks,
        }
    }
}

impl Report for Findings {
    const KIND: &'static str = "ApiServerCheck";

    fn write_text(&self, out: &mut dyn Write) -> io::Result<()> {
        for Finding {
            id,
            verdict,
            reason,
            fix,
            ..
        } in &self.checks
        {
            let verdict = match verdict {
                Verdict::Pass => "pass",
                Verdict::Fail => "FAIL",
                Verdict::Warn => "warn",
                Verdict::Unknown => "unknown",
            };
            paragraph::write(out, &format!("{verdict:<7}  {id:<17}  "), reason)?;
            if let Some(fix) = fix {
                // A sentence goes on behind a comma or a semicolon, a command has neither.
                let is_command = fix.starts_with("az ") && !fix.contains(", ") && !fix.contains("; ");
                let write = if is_command {
                    paragraph::write_command
                } else {
                    paragraph::write
                };
                write(out, "         > ", fix)?;
            }
        }
        writeln!(
            out,
            "\n{} passed, {} failed, {} to know, {} unknown",
            self.passed, self.failed, self.warnings, self.unknown
        )
    }

    fn failure(self) -> Option<Failure> {
        (self.failed > 0).then(|| Failure::NotReady(self.failed))
    }
}
