//! `causeway top`: who has how many flows, again and again.

use std::{
    cmp::Reverse,
    collections::HashMap,
    io::{self, Write},
    net::IpAddr,
};

use causeway::{
    datapath::{Datapath, DatapathError},
    endpoints,
    root::Root,
};
use causeway_common::flow::State;
use clap::Args;
use serde::Serialize;

use super::{
    Failure, open,
    output::{self, Format, Report},
};

/// What is shown, and how often.
#[derive(Args)]
pub(crate) struct Ranking {
    /// How many pods
    #[arg(short = 'n', long, value_name = "COUNT", default_value_t = 20)]
    rows: usize,
    /// Seconds between two looks
    #[arg(short, long, value_name = "SECONDS", default_value_t = 2,
          value_parser = clap::value_parser!(u32).range(1..=86_400))]
    interval: u32,
    /// Look once
    #[arg(long)]
    once: bool,
}

#[derive(Serialize)]
pub(crate) struct Top {
    pods: Vec<Pod>,
    /// How many more have flows than are shown.
    omitted: usize,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Pod {
    address: IpAddr,
    /// `namespace/name`; empty where it is not known.
    name: String,
    /// By its account; a quota is for these.
    flows: i32,
    quota: u32,
    /// Since the look before; null at the first.
    change: Option<i32>,
    carried: usize,
    kernel: usize,
    offered: usize,
}

/// Shows the pods until there is no reader any more, or once.
pub(crate) fn run(root: &Root, ranking: &Ranking, json: bool) -> Result<(), Failure> {
    let mut before = HashMap::new();
    let mut look = || gather(&open(root)?, root, ranking.rows, &mut before);
    let format = Format::new(json);
    if ranking.once {
        output::print(look()?, format)
    } else {
        output::watch(ranking.interval, format, look)
    }
}

/// `before` is what the look before has found, and is replaced.
fn gather(
    datapath: &Datapath,
    root: &Root,
    rows: usize,
    before: &mut HashMap<IpAddr, i32>,
) -> Result<Top, Failure> {
    let usage = datapath.usage()?;
    let (states, names) = (count(datapath)?, names(root));
    let quota = datapath.config()?.pod_quota;
    let mut pods: Vec<Pod> = usage
        .into_iter()
        .filter(|(address, _)| !address.is_unspecified())
        .map(|(address, usage)| {
            let [offered, carried, kernel] = states.get(&address).copied().unwrap_or_default();
            Pod {
                address,
                name: names.get(&address).cloned().unwrap_or_default(),
                flows: usage.flows,
                quota,
                change: before.get(&address).map(|before| usage.flows - before),
                carried,
                kernel,
                offered,
            }
        })
        .collect();
    *before = pods.iter().map(|pod| (pod.address, pod.flows)).collect();
    pods.sort_unstable_by_key(|pod| (Reverse(pod.flows), pod.address));
    let omitted = pods.len().saturating_sub(rows);
    pods.truncate(rows);
    Ok(Top { pods, omitted })
}

/// Entries of which each address is the source, by state: offered, carried, the kernel's.
fn count(datapath: &Datapath) -> Result<HashMap<IpAddr, [usize; 3]>, DatapathError> {
    let mut states: HashMap<IpAddr, [usize; 3]> = HashMap::new();
    let mut count = |source: IpAddr, state: u8| {
        let of_source = states.entry(source).or_default();
        match state {
            State::OFFERED => of_source[0] += 1,
            State::CARRIED => of_source[1] += 1,
            _ => of_source[2] += 1,
        }
    };
    datapath.for_each_flow(|key, entry| count(key.src.into(), entry.state))?;
    datapath.for_each_flow_v6(|key, entry| count(key.src.into(), entry.state))?;
    Ok(states)
}

/// Names of pods by their addresses; none where the state file cannot be read.
fn names(root: &Root) -> HashMap<IpAddr, String> {
    let Ok(Some(state)) = endpoints::snapshot(root) else {
        return HashMap::new();
    };
    let mut names = HashMap::new();
    for (_, endpoint) in state.endpoints() {
        let parts = [endpoint.namespace.as_str(), endpoint.pod.as_str()];
        let parts: Vec<&str> = parts.into_iter().filter(|part| !part.is_empty()).collect();
        for address in endpoint.addresses() {
            names.insert(address.addr(), parts.join("/"));
        }
    }
    names
}

impl Report for Top {
    const KIND: &'static str = "Top";

    fn write_text(&self, out: &mut dyn Write) -> io::Result<()> {
        let row = |pod: &Pod| {
            let percent = f64::from(pod.flows) / f64::from(pod.quota.max(1)) * 100.0;
            [
                pod.address.to_string(),
                pod.flows.to_string(),
                pod.change
                    .map_or_else(|| "-".to_owned(), |change| format!("{change:+}")),
                format!("{percent:.1} %"),
                pod.carried.to_string(),
                pod.kernel.to_string(),
                pod.offered.to_string(),
                pod.name.clone(),
            ]
        };
        let heading = [
            "ADDRESS", "FLOWS", "CHANGE", "OF QUOTA", "CARRIED", "KERNEL", "OFFERED", "NAME",
        ];
        output::write_table(out, heading, self.pods.iter().map(row))?;
        if self.omitted > 0 {
            writeln!(out, "({} more)", self.omitted)?;
        }
        Ok(())
    }
}
