//! Everything of a node that a migration may touch, to be compared. What changes by itself (counters, timers, neighbours that
//! were resolved) is left out.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use causeway_tests::netns::Netns;

use crate::incumbent::Site;

/// A node and its pods, in lines that name what they are about.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Snapshot(Vec<String>);

impl Snapshot {
    pub(crate) fn of(site: &Site) -> Result<Self> {
        let mut lines = namespace("node", &site.node.ns)?;
        for (command, arguments) in [
            ("bridge", &["-d", "link", "show"][..]),
            ("iptables-nft-save", &[]),
            ("iptables-legacy-save", &[]),
            ("ebtables-save", &[]),
            ("nft", &["list", "tables"]),
        ] {
            let text = site.node.ns.output(command, arguments)?;
            let kept = text
                .lines()
                .filter(|line| !line.starts_with('#'))
                .map(without_counters);
            lines.extend(kept.map(|line| format!("node {command}: {line}")));
        }
        let options = site
            .node
            .ns
            .output("ip", &["-d", "link", "show", "dev", "azure0"])?;
        let delay = options
            .split_whitespace()
            .skip_while(|word| *word != "forward_delay")
            .nth(1);
        lines.push(format!(
            "node forward delay: {}",
            delay.context("no forward delay")?
        ));
        lines.push(format!(
            "node ip_forward: {}",
            site.node.ns.read_sysctl("net/ipv4/ip_forward")?
        ));
        for pod in &site.pods {
            lines.extend(namespace(&pod.addr.to_string(), &pod.ns)?);
        }
        files(site.node.root.path(), &mut lines)?;
        Ok(Self(lines))
    }

    /// Fails with the lines that differ.
    pub(crate) fn assert_is(&self, before: &Self) {
        let only = |left: &Self, right: &Self| -> Vec<String> {
            left.0
                .iter()
                .filter(|line| !right.0.contains(line))
                .cloned()
                .collect()
        };
        let (gone, came) = (only(before, self), only(self, before));
        assert!(
            gone.is_empty() && came.is_empty(),
            "gone: {gone:#?}\ncame: {came:#?}"
        );
        assert_eq!(self, before, "the order has changed");
    }
}

fn namespace(name: &str, ns: &Netns) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    for arguments in [
        &["-o", "link", "show"][..],
        &["-4", "-o", "addr", "show"],
        &["route", "show", "table", "all"],
        &["rule", "show"],
        &["neigh", "show", "nud", "permanent"],
    ] {
        let text = ns.output("ip", arguments)?;
        lines.extend(
            text.lines()
                .map(|line| format!("{name} {}: {}", arguments.join(" "), line.trim_end())),
        );
    }
    Ok(lines)
}

/// `:INPUT ACCEPT [12:840]` without the numbers.
fn without_counters(line: &str) -> &str {
    line.split(" [").next().unwrap_or(line).trim_end()
}

/// The files below a directory; of locks only the names.
fn files(directory: &Path, lines: &mut Vec<String>) -> Result<()> {
    let mut entries = fs::read_dir(directory)?.collect::<std::io::Result<Vec<_>>>()?;
    entries.sort_unstable_by_key(fs::DirEntry::path);
    for entry in entries {
        let path = entry.path();
        if path.is_dir() {
            files(&path, lines)?;
        } else {
            let is_lock = path.extension().is_some_and(|extension| extension == "lock");
            let content = if is_lock {
                String::new()
            } else {
                fs::read_to_string(&path)?
            };
            lines.push(format!("file {}: {content}", path.display()));
        }
    }
    Ok(())
}
