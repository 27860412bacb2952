//! The rule that is replaced, to the letter: it masquerades whoever sends, not pods alone.
//!
//! Packets of pods that leave by the uplink are `cwy_to_uplink`'s. With `exactRule` the kernel has a rule beside it, in a
//! table of nftables of its own, for everything else: guests of other bridges, further addresses of the node, and pods'
//! packets that leave by another interface.

use std::{collections::BTreeMap, fmt::Write as _, fs, io, net::Ipv4Addr, path::PathBuf};

use causeway_common::{decide::masquerade, maps::RangeEntry};

use crate::{
    datapath::Range,
    durable,
    program::{self, ProgramError},
    root::Root,
};

/// The table, of family `ip`.
pub const TABLE: &str = "causeway";
/// Says that the table was made, for who has to take it away.
const MADE: &str = "/run/causeway/exact-rule";
const NFT: &str = "nft";
/// Removes the table, also where there is none.
const REMOVAL: &str = "table ip causeway\ndelete table ip causeway\n";

/// What the rule leaves alone.
#[derive(Clone, Copy, Debug)]
pub struct Rule<'a> {
    /// Index of the interface by which `cwy_to_uplink` sees pods' packets leave, if there is one.
    pub uplink: Option<u32>,
    /// The list of the masquerade decision.
    pub ranges: &'a [Range],
}

/// The rule cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum ExactRuleError {
    /// The kernel's rule is made by `nft`.
    #[error("exactRule: {0}\nhint: the package is called nftables; without exactRule it is not needed")]
    Program(#[from] ProgramError),
    /// Who takes the table away would not know of it.
    #[error("{path}: {source}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: io::Error,
    },
}

/// Keeps the kernel's rule.
#[derive(Debug, Default)]
pub struct ExactRule {
    made: Option<Made>,
}

#[derive(Debug)]
struct Made {
    script: String,
    /// As the kernel told it then; `None` if somebody was quicker.
    listing: Option<String>,
}

impl Made {
    fn is_in_force(&self) -> bool {
        self.listing.is_some() && self.listing == listing().ok()
    }
}

impl ExactRule {
    /// Makes the kernel's rule this one, or takes it away. Returns whether somebody else had changed what was made.
    ///
    /// # Errors
    ///
    /// If `nft` is missing or refuses: what was in force before stays.
    pub fn keep(&mut self, root: &Root, wanted: Option<Rule<'_>>) -> Result<bool, ExactRuleError> {
        let Some(rule) = wanted else {
            self.made = None;
            return remove(root).map(|()| false);
        };
        let script = rule.script();
        let same = self.made.as_ref().filter(|made| made.script == script);
        if same.is_some_and(Made::is_in_force) {
            return Ok(false);
        }
        let was_changed = same.is_some();
        self.make(root, script)?;
        Ok(was_changed)
    }

    fn make(&mut self, root: &Root, script: String) -> Result<(), ExactRuleError> {
        let path = root.path(MADE);
        let failed = |source| ExactRuleError::File {
            path: path.clone(),
            source,
        };
        path.parent().map_or(Ok(()), fs::create_dir_all).map_err(failed)?;
        durable::write(&path, TABLE.as_bytes()).map_err(failed)?;
        nft(&["-f", "-"], &script)?;
        let listing = listing().ok().filter(|listing| tells_of(listing, &script));
        self.made = Some(Made { script, listing });
        tracing::info!("the kernel masquerades who is no pod");
        Ok(())
    }
}

/// Takes the table away, if it was made.
pub(crate) fn remove(root: &Root) -> Result<(), ExactRuleError> {
    let path = root.path(MADE);
    if !path.exists() {
        return Ok(());
    }
    nft(&["-f", "-"], REMOVAL)?;
    match fs::remove_file(&path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(ExactRuleError::File { path, source }),
        _ => Ok(()),
    }
}

/// Whether a listing has as many rules and sets with elements as a script: their text depends on the version of `nft`.
fn tells_of(listing: &str, script: &str) -> bool {
    let same = |word: &str| listing.matches(word).count() == script.matches(word).count();
    ["accept", "masquerade", "elements"].into_iter().all(same)
}

fn listing() -> Result<String, ProgramError> {
    nft(&["list", "table", "ip", TABLE], "")
}

fn nft(arguments: &[&str], input: &str) -> Result<String, ProgramError> {
    program::run(NFT, arguments, input)?.ok_or_else(|| ProgramError::missing(NFT))
}

impl Rule<'_> {
    /// One transaction (nft(8)), which replaces what there was. Connections keep the translation that they have.
    fn script(&self) -> String {
        let mut elements = String::new();
        for (first, last) in excluded(self.ranges) {
            let separator = if elements.is_empty() { "elements = {" } else { "," };
            // Writing to a string cannot fail.
            write!(elements, "{separator} {first}-{last}").ok();
        }
        if !elements.is_empty() {
            elements.push_str(" }");
        }
        let of_uplink = self.uplink.map_or_else(String::new, |index| {
            format!("iifname \"azv*\" oif {index} accept comment \"cwy_to_uplink translates\"\n")
        });
        format!(
            "{REMOVAL}table ip {TABLE} {{\n\
             set excluded {{\ntype ipv4_addr\nflags interval\n{elements}\n}}\n\
             chain postrouting {{\ntype nat hook postrouting priority 100; policy accept;\n\
             iifname \"azv*\" oifname \"azv*\" accept\n\
             {of_uplink}\
             fib daddr type local accept\n\
             ip daddr @excluded accept\n\
             masquerade\n}}\n}}\n"
        )
    }
}

/// The destinations that are not masqueraded, first and last address of each, in order and apart from each other: the
/// longest prefix decides, as it does in `cwy_ranges`.
fn excluded(ranges: &[Range]) -> Vec<(Ipv4Addr, Ipv4Addr)> {
    let mut widest_first: Vec<&Range> = ranges.iter().collect();
    widest_first.sort_by_key(|(net, _)| net.prefix_len());
    // First address of each span, and the first one behind it.
    let mut spans: BTreeMap<u64, u64> = BTreeMap::new();
    for (net, class) in widest_first {
        let start = u64::from(u32::from(net.network()));
        let end = u64::from(u32::from(net.broadcast())) + 1;
        // Prefixes nest: what overlaps this one is of a wider one, and is around it.
        let around = spans
            .range(..=start)
            .next_back()
            .map(|(first, behind)| (*first, *behind));
        if let Some((first, behind)) = around.filter(|(_, behind)| *behind > start) {
            spans.remove(&first);
            let rest = [(first, start), (end, behind)];
            spans.extend(rest.into_iter().filter(|(first, behind)| first < behind));
        }
        if !is_masqueraded(*class) {
            spans.insert(start, end);
        }
    }
    let mut joined: Vec<(u64, u64)> = Vec::new();
    for (first, behind) in spans {
        match joined.last_mut() {
            Some(before) if before.1 == first => before.1 = behind,
            _ => joined.push((first, behind)),
        }
    }
    let addresses =
        |(first, behind): (u64, u64)| (Ipv4Addr::from(first as u32), Ipv4Addr::from((behind - 1) as u32));
    joined.into_iter().map(addresses).collect()
}

fn is_masqueraded(class: u8) -> bool {
    masquerade(Some(&RangeEntry { class, _pad: [0; 3] }))
}

/// Whether a table of nftables is the one that [`ExactRule`] makes.
pub fn is_ours(family: &str, table: &str) -> bool {
    family == "ip" && table == TABLE
}

#[cfg(test)]
mod tests {
    use causeway_common::maps::RangeClass;
    use ipnet::Ipv4Net;
    use proptest::prelude::*;

    use super::*;

    fn texts(ranges: &[(&str, u8)]) -> Vec<String> {
        let ranges: Vec<Range> = ranges
            .iter()
            .map(|(net, class)| (net.parse().unwrap(), *class))
            .collect();
        let pairs = excluded(&ranges).into_iter();
        pairs.map(|(first, last)| format!("{first}-{last}")).collect()
    }

    #[test]
    fn the_longest_prefix_decides() {
        const EX: u8 = RangeClass::EXCLUDED;
        const MASQ: u8 = RangeClass::MASQUERADED;
        assert_eq!(
            texts(&[("10.0.0.0/8", EX), ("168.63.129.16/32", EX)]),
            ["10.0.0.0-10.255.255.255", "168.63.129.16-168.63.129.16"]
        );
        assert_eq!(
            texts(&[
                ("10.0.0.0/8", EX),
                ("10.9.0.0/16", MASQ),
                ("10.9.1.0/24", RangeClass::API_SERVER)
            ]),
            [
                "10.0.0.0-10.8.255.255",
                "10.9.1.0-10.9.1.255",
                "10.10.0.0-10.255.255.255"
            ]
        );
        assert_eq!(texts(&[("0.0.0.0/0", EX)]), ["0.0.0.0-255.255.255.255"]);
        assert_eq!(
            texts(&[("0.0.0.0/1", EX), ("128.0.0.0/1", EX)]),
            ["0.0.0.0-255.255.255.255"]
        );
        assert_eq!(
            texts(&[("255.255.255.255/32", MASQ), ("255.0.0.0/8", EX)]),
            ["255.0.0.0-255.255.255.254"]
        );
        assert!(texts(&[("10.0.0.0/8", MASQ)]).is_empty() && texts(&[]).is_empty());
    }

    #[test]
    fn a_listing_without_rules_or_elements_is_not_of_the_script() {
        let ranges = [("10.0.0.0/8".parse().unwrap(), RangeClass::EXCLUDED)];
        let rule = Rule {
            uplink: Some(2),
            ranges: &ranges,
        };
        let script = rule.script();
        let listing = "table ip causeway {\n\tset excluded {\n\t\ttype ipv4_addr\n\t\tflags interval\n\t\telements = { 10.0.0.0/8 }\n\t}\n\n\
            \tchain postrouting {\n\t\ttype nat hook postrouting priority srcnat; policy accept;\n\
            \t\tiifname \"azv*\" oifname \"azv*\" accept\n\
            \t\tiifname \"azv*\" oif \"eth0\" accept comment \"cwy_to_uplink translates\"\n\
            \t\tfib daddr type local accept\n\t\tip daddr @excluded accept\n\t\tmasquerade\n\t}\n}\n";
        assert!(tells_of(listing, &script));
        assert!(!tells_of(&listing.replace("\t\tmasquerade\n", ""), &script));
        assert!(!tells_of(
            &listing.replace("\t\telements = { 10.0.0.0/8 }\n", ""),
            &script
        ));
    }

    #[test]
    fn every_address_is_judged_as_the_map_judges_it() {
        let net = (any::<u32>(), 0..=32u8).prop_map(|(addr, length)| {
            // Close together, so that they nest.
            Ipv4Net::new_assert((addr & 0xff00_0fff).into(), length).trunc()
        });
        let list = proptest::collection::btree_map(net, 1..=6u8, 0..24);
        proptest!(|(list in list)| {
            let ranges: Vec<Range> = list.into_iter().collect();
            let found = excluded(&ranges);
            for pair in found.windows(2) {
                prop_assert!(u32::from(pair[0].1) + 1 < u32::from(pair[1].0));
            }
            let edges = ranges.iter().flat_map(|(net, _)| {
                let (first, last) = (u32::from(net.network()), u32::from(net.broadcast()));
                [first.wrapping_sub(1), first, last, last.wrapping_add(1)]
            });
            for addr in edges.chain([0, u32::MAX]).map(Ipv4Addr::from) {
                let longest = ranges.iter().filter(|(net, _)| net.contains(&addr)).max_by_key(|(net, _)| net.prefix_len());
                let expected = longest.is_some_and(|(_, class)| !is_masqueraded(*class));
                let is_in = found.iter().any(|(first, last)| (first..=last).contains(&&addr));
                prop_assert_eq!(is_in, expected, "{}", addr);
            }
        });
    }
}
