//! The part of cargo-deny that needs nothing but `cargo metadata`: allowed licences, banned crates, sources.
//!
//! Reads the same two lists of deny.toml. Does not replace cargo-deny: no advisories, no duplicates, no clarifications.

use std::fs;

use anyhow::{Context as _, Result, bail};

use crate::workspace::Workspace;

/// Checks every dependency that is compiled for this machine.
pub(crate) fn check(workspace: &Workspace) -> Result<()> {
    let path = workspace.root.join("deny.toml");
    let rules = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let allowed = strings(section(&rules, "licenses")?, "allow")?;
    let banned = strings(section(&rules, "bans")?, "deny")?;

    let host = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let metadata = workspace.metadata(&["--locked", "--all-features", "--filter-platform", &host])?;
    let packages = metadata["packages"]
        .as_array()
        .context("cargo metadata lists no packages")?;
    let mut faults = Vec::new();
    for package in packages {
        let name = package["name"].as_str().unwrap_or_default();
        let version = package["version"].as_str().unwrap_or_default();
        if banned.contains(&name) {
            faults.push(format!("{name} {version} is banned (deny.toml says why)"));
        }
        match package["source"].as_str() {
            Some(source) if !source.starts_with("registry+") => {
                faults.push(format!(
                    "{name} {version} comes from {source}, not from the registry"
                ));
            }
            _ => {}
        }
        match package["license"].as_str() {
            None => faults.push(format!("{name} {version} names no licence")),
            Some(licence) if !is_allowed(licence, &allowed) => {
                faults.push(format!(
                    "{name} {version}: licence {licence} is not in deny.toml's list"
                ));
            }
            Some(_) => {}
        }
    }
    if !faults.is_empty() {
        bail!("\n  {}", faults.join("\n  "));
    }
    println!(
        "{} packages: licences, bans and sources as deny.toml wants them",
        packages.len()
    );
    Ok(())
}

/// The lines of `[name]`.
fn section<'a>(rules: &'a str, name: &str) -> Result<&'a str> {
    let header = format!("\n[{name}]\n");
    let (_, after) = rules
        .split_once(&header)
        .with_context(|| format!("deny.toml has no [{name}]"))?;
    Ok(after.split("\n[").next().unwrap_or(after))
}

/// The first string on each line of the list `key = [ … ]`, which has one entry a line.
fn strings<'a>(section: &'a str, key: &str) -> Result<Vec<&'a str>> {
    let mut lines = section.lines();
    let head = format!("{key} = [");
    lines
        .find(|line| line.trim() == head)
        .with_context(|| format!("deny.toml has no `{head}` on a line of its own"))?;
    let entries = lines.take_while(|line| line.trim() != "]");
    Ok(entries
        .filter(|line| !line.trim().starts_with('#'))
        .filter_map(|line| line.split('"').nth(1))
        .collect())
}

/// Whether an SPDX expression can be met with these licences. What cannot be read is not allowed.
fn is_allowed(expression: &str, allowed: &[&str]) -> bool {
    // Crates older than SPDX expressions write "/" for OR.
    let spaced = expression
        .replace('/', " OR ")
        .replace('(', " ( ")
        .replace(')', " ) ");
    let mut words = spaced.split_whitespace().peekable();
    let met = any(&mut words, allowed);
    met == Some(true) && words.next().is_none()
}

type Words<'a, 'b> = &'b mut std::iter::Peekable<std::str::SplitWhitespace<'a>>;

fn any(words: Words, allowed: &[&str]) -> Option<bool> {
    let mut met = all(words, allowed)?;
    while words.next_if_eq(&"OR").is_some() {
        met |= all(words, allowed)?;
    }
    Some(met)
}

fn all(words: Words, allowed: &[&str]) -> Option<bool> {
    let mut met = one(words, allowed)?;
    while words.next_if_eq(&"AND").is_some() {
        met &= one(words, allowed)?;
    }
    Some(met)
}

fn one(words: Words, allowed: &[&str]) -> Option<bool> {
    let first = words.next()?;
    if first == "(" {
        let met = any(words, allowed)?;
        return words.next_if_eq(&")").map(|_| met);
    }
    // An exception only permits more: the licence alone is enough.
    if words.next_if_eq(&"WITH").is_some() {
        words.next()?;
    }
    Some(allowed.contains(&first))
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: &str = "# head\n\n[licenses]\nconfidence-threshold = 0.9\nallow = [\n  \"MIT\",\n  # \"GPL-3.0-only\",\n  \
                         \"Apache-2.0\", # both ways\n]\n\n[bans]\ndeny = [\n  { crate = \"fs2\", reason = \"idle\" },\n]\n";

    #[test]
    fn lists_are_read_from_their_section() {
        assert_eq!(
            strings(section(RULES, "licenses").unwrap(), "allow").unwrap(),
            ["MIT", "Apache-2.0"]
        );
        assert_eq!(strings(section(RULES, "bans").unwrap(), "deny").unwrap(), ["fs2"]);
        assert!(strings(section(RULES, "bans").unwrap(), "allow").is_err());
        assert!(section(RULES, "sources").is_err());
    }

    #[test]
    fn expressions_are_met_or_not() {
        let allowed = ["MIT", "Apache-2.0", "Unicode-3.0"];
        for (expression, met) in [
            ("MIT", true),
            ("GPL-3.0-only", false),
            ("MIT OR GPL-3.0-only", true),
            ("MIT AND GPL-3.0-only", false),
            ("MIT/Apache-2.0", true),
            ("(MIT OR Apache-2.0) AND Unicode-3.0", true),
            ("GPL-2.0-only OR (MIT AND BSD-3-Clause)", false),
            ("Apache-2.0 WITH LLVM-exception OR GPL-2.0-only", true),
            ("MIT OR", false),
            ("(MIT", false),
            ("MIT MIT", false),
            ("", false),
        ] {
            assert_eq!(is_allowed(expression, &allowed), met, "{expression}");
        }
    }
}
