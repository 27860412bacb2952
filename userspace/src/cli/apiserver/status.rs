//! `causeway apiserver status`.

use std::{
    io::{self, Write},
    net::Ipv4Addr,
    time::Duration,
};

use causeway::{
    apiserver::{Known, Mode, Steward, own_connections, reach},
    config,
    datapath::{Datapath, End},
    root::Root,
};
use serde::Serialize;

use super::Failure;
use crate::cli::output::{self, Report};

/// How long an address may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// Where the API server is, and how it does.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Status {
    vip: Option<Ipv4Addr>,
    mode: Mode,
    /// Seconds since 1970.
    changed: Option<u64>,
    changes: u64,
    /// Whether this node spreads connections itself.
    is_balanced: bool,
    ports: Vec<Answer>,
    backends: Vec<Backend>,
    connections: Vec<Connected>,
}

/// Whether a port of the virtual address answers from this node.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    port: u16,
    milliseconds: Option<f64>,
    error: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Backend {
    address: Ipv4Addr,
    is_healthy: bool,
    /// Seconds since 1970.
    since: u64,
    fault: Option<String>,
    connections: usize,
}

/// Who is connected to an address.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Connected {
    address: Ipv4Addr,
    /// `in use`, `drains` or `refused`.
    what: &'static str,
    connections: usize,
}

pub(crate) fn gather(root: &Root) -> Result<Status, Failure> {
    let wanted = config::load(root).map_err(Failure::Config)?.api_server;
    let steward = Steward::new(root);
    let Known {
        vip,
        mode,
        changed,
        changes,
        gone,
        backends,
    } = steward.known().clone();
    let mut ports = wanted
        .as_ref()
        .map_or_else(Vec::new, |wanted| wanted.ports.clone());
    let is_balanced = wanted.as_ref().is_some_and(|wanted| wanted.backends.is_some());
    if let Some(wanted) = wanted.filter(|wanted| wanted.backends.is_none()) {
        ports.push(wanted.health_port);
    }
    let addresses = vip.map(|vip| (vip, "in use")).into_iter().chain(
        gone.iter()
            .filter(|gone| !gone.is_backend)
            .map(|gone| (gone.address, if gone.is_over { "refused" } else { "drains" })),
    );
    let addresses: Vec<_> = addresses.collect();
    let ends: Vec<End> = addresses
        .iter()
        .map(|(address, _)| End::Address(*address))
        .chain(backends.keys().map(|backend| End::Backend(*backend)))
        .collect();
    let mut counts = match Datapath::open(root)? {
        Some(datapath) => datapath.count_connections(&ends)?,
        None => vec![0; ends.len()],
    };
    let of_backends = counts.split_off(addresses.len());
    let own = own_connections().map_err(Failure::Events)?;
    let connections = addresses
        .iter()
        .zip(counts)
        .map(|(&(address, what), in_table)| Connected {
            address,
            what,
            connections: if is_balanced && what == "in use" {
                in_table
            } else {
                in_table + own.iter().filter(|remote| **remote == address).count()
            },
        });
    Ok(Status {
        vip,
        mode,
        changed,
        changes,
        is_balanced,
        connections: connections.collect(),
        ports: vip.map_or_else(|| Ok(Vec::new()), |vip| answers(vip, &ports))?,
        backends: backends
            .into_iter()
            .zip(of_backends)
            .map(|((address, state), connections)| Backend {
                address,
                is_healthy: state.is_healthy,
                since: state.since,
                fault: state.fault,
                connections,
            })
            .collect(),
    })
}

/// Which ports answer. All are asked at the same time.
fn answers(vip: Ipv4Addr, ports: &[u16]) -> Result<Vec<Answer>, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Failure::Events)?;
    runtime.block_on(async {
        let asked: Vec<_> = ports
            .iter()
            .map(|port| (*port, tokio::spawn(reach(vip, *port, PATIENCE))))
            .collect();
        let mut answers = Vec::new();
        for (port, asked) in asked {
            let answer = asked.await.unwrap_or_else(|error| Err(error.to_string()));
            answers.push(Answer {
                port,
                milliseconds: answer.as_ref().ok().map(|took| took.as_secs_f64() * 1e3),
                error: answer.err(),
            });
        }
        Ok(answers)
    })
}

impl Report for Status {
    const KIND: &'static str = "ApiServer";

    fn write_text(&self, out: &mut dyn Write) -> io::Result<()> {
        let Some(vip) = self.vip else {
            return writeln!(out, "no API server is configured (docs/api-server.md)");
        };
        let who = if self.is_balanced {
            ", balanced by this node"
        } else {
            ""
        };
        writeln!(out, "API server   {vip}, {}{who}", self.mode.name())?;
        if let Some(changed) = self.changed {
            let changed = i64::try_from(changed)
                .ok()
                .and_then(|seconds| jiff::Timestamp::from_second(seconds).ok());
            let changed = changed.map_or_else(|| "?".to_owned(), |time| time.to_string());
            writeln!(out, "last change  {changed} ({} of the address)", self.changes)?;
        }
        for Answer {
            port,
            milliseconds,
            error,
        } in &self.ports
        {
            match (milliseconds, error) {
                (Some(milliseconds), _) => writeln!(out, "port {port:<7} answers in {milliseconds:.1} ms")?,
                (None, error) => {
                    writeln!(
                        out,
                        "port {port:<7} does not answer: {}",
                        error.as_deref().unwrap_or("?")
                    )?;
                }
            }
        }
        writeln!(out)?;
        let rows = self.connections.iter().map(|row| {
            [
                row.address.to_string(),
                row.what.to_owned(),
                row.connections.to_string(),
            ]
        });
        output::write_table(out, ["ADDRESS", "STATE", "CONNECTIONS"], rows)?;
        if self.backends.is_empty() {
            return Ok(());
        }
        writeln!(out)?;
        let rows = self.backends.iter().map(|backend| {
            [
                backend.address.to_string(),
                if backend.is_healthy {
                    "healthy"
                } else {
                    "not healthy"
                }
                .to_owned(),
                backend.connections.to_string(),
                backend.fault.clone().unwrap_or_default(),
            ]
        });
        output::write_table(out, ["BACKEND", "STATE", "CONNECTIONS", "FAULT"], rows)
    }
}
