//! iptables and ebtables, by the programs of that name: only they know where their rules are kept, and only what they
//! print can be put back by them to the letter.

use std::{fs, net::Ipv4Addr, time::Duration};

use serde::{Deserialize, Serialize};

use super::MigrateError;
use crate::program;
use crate::program::ProgramError;

/// Which of the two programs has the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Backend {
    Nft,
    Legacy,
    /// The machine has only one.
    Only,
}

impl Backend {
    /// `iptables` without a suffix is one of the others, where they are.
    fn program(self, verb: &str) -> String {
        match self {
            Self::Nft => format!("iptables-nft-{verb}"),
            Self::Legacy => format!("iptables-legacy-{verb}"),
            Self::Only => format!("iptables-{verb}"),
        }
    }
}

/// A rule of the nat table's POSTROUTING, which is taken away and put back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Rule {
    pub(super) backend: Backend,
    /// Its place in the chain, from 1.
    pub(super) position: usize,
    /// Matches and target, as `iptables-save` prints them.
    pub(super) text: String,
}

/// The rules of one backend, as it prints them.
#[derive(Debug)]
pub(super) struct Listing {
    pub(super) backend: Backend,
    text: String,
}

type Result<T> = std::result::Result<T, MigrateError>;

/// Longer than `iptables-restore` is told to wait for the lock.
const PATIENCE: Duration = Duration::from_secs(40);

/// The rules of every backend that has some. Asking changes nothing: a backend that has never been used is not asked,
/// because it would make its tables.
pub(super) fn listings() -> Result<Vec<Listing>> {
    let mut listings = Vec::new();
    let has_legacy =
        fs::read_to_string("/proc/thread-self/net/ip_tables_names").is_ok_and(|names| !names.is_empty());
    for backend in [Backend::Nft, Backend::Legacy] {
        if backend == Backend::Legacy && !has_legacy {
            continue;
        }
        match run(&backend.program("save"), &[], "") {
            Ok(text) => listings.push(Listing { backend, text }),
            Err(error) if error.is_missing() => {}
            // A kernel without nf_tables has its rules in the other place.
            Err(error) if has_legacy && backend == Backend::Nft => tracing::debug!(%error, "no nf_tables"),
            Err(error) => return Err(error.into()),
        }
    }
    if listings.is_empty()
        && let Some(text) = installed(run(&Backend::Only.program("save"), &[], ""))?
    {
        let backend = Backend::Only;
        listings.push(Listing { backend, text });
    }
    Ok(listings)
}

/// What a program printed. It may wait for another's lock of the rules.
fn run(program: &str, arguments: &[&str], input: &str) -> std::result::Result<String, ProgramError> {
    program::run(program, arguments, input, PATIENCE).map(|told| told.output)
}

/// `None` of a program that the node does not have.
fn installed(told: std::result::Result<String, ProgramError>) -> Result<Option<String>> {
    match told {
        Err(error) if error.is_missing() => Ok(None),
        told => told.map(Some).map_err(MigrateError::from),
    }
}

impl Listing {
    /// The rules of a chain, each without `-A CHAIN`.
    pub(super) fn chain<'a>(&'a self, table: &str, chain: &str) -> Vec<&'a str> {
        let prefix = format!("-A {chain} ");
        self.table(table)
            .filter_map(|line| line.strip_prefix(prefix.as_str()))
            .collect()
    }

    /// The names of all chains.
    pub(super) fn chains(&self) -> impl Iterator<Item = &str> {
        let declared = self.text.lines().filter_map(|line| line.strip_prefix(':'));
        declared.filter_map(|line| line.split_whitespace().next())
    }

    fn table<'a>(&'a self, table: &str) -> impl Iterator<Item = &'a str> {
        let heading = format!("*{table}");
        let lines = self.text.lines().skip_while(move |line| *line != heading);
        lines.take_while(|line| *line != "COMMIT")
    }

    fn count(&self, rule: &Rule) -> usize {
        let rules = self.chain("nat", "POSTROUTING");
        rules.iter().filter(|text| **text == rule.text).count()
    }
}

/// Takes the rules away that are there.
pub(super) fn remove(rules: &[Rule]) -> Result<()> {
    change(rules, |listing, rule, wanted| {
        (listing.count(rule) > 0 && wanted > 0).then(|| format!("-D POSTROUTING {}\n", rule.text))
    })
}

/// Puts the rules back that are not there, each at its place, or at the end of a chain that has become shorter.
pub(super) fn put_back(rules: &[Rule]) -> Result<()> {
    change(rules, |listing, rule, wanted| {
        let place = rule.position.min(listing.chain("nat", "POSTROUTING").len() + 1);
        (listing.count(rule) < wanted).then(|| format!("-I POSTROUTING {place} {}\n", rule.text))
    })
}

/// One rule after the other, for each changes the chain. `line` is given the rules as they are, and how many like this one
/// there are in `rules` up to this one.
fn change(rules: &[Rule], line: impl Fn(&Listing, &Rule, usize) -> Option<String>) -> Result<()> {
    let mut ordered: Vec<_> = rules.iter().collect();
    ordered.sort_unstable_by_key(|rule| rule.position);
    for (at, rule) in ordered.iter().enumerate() {
        let alike = ordered[..=at]
            .iter()
            .filter(|other| other.text == rule.text)
            .count();
        let listings = listings()?;
        let listing = listings.iter().find(|listing| listing.backend == rule.backend);
        let Some(line) = listing.and_then(|listing| line(listing, rule, alike)) else {
            continue;
        };
        let program = rule.backend.program("restore");
        run(
            &program,
            &["--noflush", "-w", "30"],
            &format!("*nat\n{line}COMMIT\n"),
        )?;
    }
    Ok(())
}

/// A pod, as the incumbent's rules of ebtables know it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Station {
    pub(super) address: Ipv4Addr,
    pub(super) mac: [u8; 6],
}

/// Makes the incumbent's rules of ebtables those of these pods: those of `gone` go, and who has none gets them. On a node
/// without rules for the node's own address nothing is done: they are not used there.
pub(super) fn set_stations(uplink: &str, node: Ipv4Addr, pods: &[Station], gone: &[Ipv4Addr]) -> Result<()> {
    let Some(text) = installed(run("ebtables", &["-t", "nat", "-L", "PREROUTING"], ""))? else {
        return Ok(());
    };
    let rules: Vec<Vec<&str>> = text
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    let about = |rule: &[&str], address: Ipv4Addr| {
        let address = address.to_string();
        rule.windows(2)
            .any(|pair| matches!(pair[0], "--arp-ip-dst" | "--ip-dst") && pair[1] == address)
    };
    if !rules.iter().any(|rule| about(rule, node)) {
        return Ok(());
    }
    let (stale, kept): (Vec<_>, Vec<_>) = rules
        .iter()
        .partition(|rule| gone.iter().any(|address| about(rule, *address)));
    stale.into_iter().try_for_each(|rule| ebtables("-D", rule))?;
    let is_new = |pod: &&Station| !kept.iter().any(|rule| about(rule, pod.address));
    for pod in pods.iter().filter(is_new) {
        let (address, mac) = (pod.address.to_string(), crate::go_json::mac_text(pod.mac));
        ebtables("-A", &format!(
            "-p ARP --arp-op Request --arp-ip-dst {address} -j arpreply --arpreply-mac {mac} --arpreply-target DROP"
        ).split(' ').collect::<Vec<_>>())?;
        ebtables(
            "-A",
            &format!("-p IPv4 -i {uplink} --ip-dst {address} -j dnat --to-dst {mac} --dnat-target ACCEPT")
                .split(' ')
                .collect::<Vec<_>>(),
        )?;
    }
    Ok(())
}

fn ebtables(verb: &str, rule: &[&str]) -> Result<()> {
    let arguments = [&["-t", "nat", verb, "PREROUTING"], rule].concat();
    run("ebtables", &arguments, "")
        .map(drop)
        .map_err(MigrateError::from)
}

#[cfg(test)]
pub(super) fn listing(text: &str) -> Listing {
    Listing {
        backend: Backend::Nft,
        text: text.to_owned(),
    }
}
