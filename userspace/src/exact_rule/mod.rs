//! The kernel's own masquerading beside the programs, by a table of nftables that the agent keeps.
//!
//! Packets of pods that leave by the uplink are `cwy_to_uplink`'s, and nothing else is. Where a route sends pods' packets out by
//! another interface, the table masquerades those. With `exactRule` it does what the rule that is replaced did, to the
//! letter: it masquerades whoever sends, guests of other bridges and further addresses of the node as well.

mod rule;
mod spans;

use std::{fs, io, path::PathBuf, time::Duration};

use self::rule::Family;
pub use self::rule::{Rule, past_the_programs};
use crate::{
    durable,
    program::{self, ProgramError},
    root::Root,
};

/// The tables, of family `ip` and, for pods' IPv6, `ip6`.
pub const TABLE: &str = "causeway";
/// Says which were made, for who has to take them away.
const MADE: &str = "/run/causeway/exact-rule";
const NFT: &str = "nft";
/// How long it may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// The rule cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum ExactRuleError {
    /// The kernel's rule is made by `nft`.
    #[error("the kernel's rule for what the programs do not see: {0}{hint}", hint = hint(.0))]
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

fn hint(error: &ProgramError) -> &'static str {
    if error.is_missing() {
        "\nhint: the package is called nftables; it is needed with exactRule, and where pods' packets leave by another interface than the uplink"
    } else {
        "\nhint: `nft list ruleset` has to work here; it is needed with exactRule, and where pods' packets leave by another interface than the uplink"
    }
}

/// Keeps the kernel's rule.
#[derive(Debug, Default)]
pub struct ExactRule {
    made: Option<Made>,
}

#[derive(Debug)]
struct Made {
    rule: Rule,
    /// As the kernel told it then; `None` if somebody was quicker.
    listing: Option<String>,
}

impl Made {
    fn is_in_force(&self) -> bool {
        self.listing.is_some() && self.listing == listing(&self.rule).ok()
    }
}

impl ExactRule {
    /// Whether the kernel's rule is this one, as it was made.
    pub fn is_kept(&self, rule: &Rule) -> bool {
        let same = self.made.as_ref().filter(|made| made.rule == *rule);
        same.is_some_and(Made::is_in_force)
    }

    /// Makes the kernel's rule this one, in one transaction (nft(8)): connections keep the translation that they have.
    /// Returns whether somebody else had changed what was made.
    ///
    /// # Errors
    ///
    /// If `nft` is missing or refuses: what was in force before stays.
    pub fn make(&mut self, root: &Root, rule: Rule) -> Result<bool, ExactRuleError> {
        let was_changed = self.made.as_ref().is_some_and(|made| made.rule == rule);
        let before = made(root);
        let wanted: Vec<Family> = rule.families().collect();
        // Whoever is killed in between has left a table that the note knows of.
        note(root, &[&before[..], &wanted].concat())?;
        let removed = Family::ALL
            .into_iter()
            .filter(|family| before.contains(family) || wanted.contains(family));
        let removal: String = removed.map(Family::removal).collect();
        let script = rule.script();
        if let Err(error) = nft(&["-f", "-"], &format!("{removal}{script}")) {
            note(root, &before)?;
            return Err(error.into());
        }
        note(root, &wanted)?;
        tracing::info!("the kernel masquerades what the programs do not see");
        let listing = listing(&rule).ok().filter(|listing| tells_of(listing, &script));
        self.made = Some(Made { rule, listing });
        Ok(was_changed)
    }

    /// Takes the kernel's rule away, if it was made.
    ///
    /// # Errors
    ///
    /// As [`Self::make`].
    pub fn remove(&mut self, root: &Root) -> Result<(), ExactRuleError> {
        self.made = None;
        remove(root)
    }
}

/// Takes the tables away that were made.
pub(crate) fn remove(root: &Root) -> Result<(), ExactRuleError> {
    let families = made(root);
    if families.is_empty() {
        return Ok(());
    }
    let removal: String = families.into_iter().map(Family::removal).collect();
    nft(&["-f", "-"], &removal)?;
    note(root, &[])
}

/// Whether there is a table of a family, as far as is noted.
pub fn is_made(root: &Root, is_ipv4: bool) -> bool {
    made(root).contains(&Family::of(is_ipv4))
}

/// The families of which there is a table. Where it is not told, as before there were two, it is that of IPv4.
fn made(root: &Root) -> Vec<Family> {
    let Ok(noted) = fs::read_to_string(root.path(MADE)) else {
        return Vec::new();
    };
    let is_told = |family: &Family| noted.lines().any(|line| line == family.name());
    let told: Vec<Family> = Family::ALL.into_iter().filter(is_told).collect();
    if told.is_empty() { vec![Family::Ip] } else { told }
}

fn note(root: &Root, families: &[Family]) -> Result<(), ExactRuleError> {
    let path = root.path(MADE);
    let names: Vec<&str> = families.iter().map(|family| family.name()).collect();
    let noted = if names.is_empty() {
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    } else {
        path.parent()
            .map_or(Ok(()), fs::create_dir_all)
            .and_then(|()| durable::write(&path, names.join("\n").as_bytes()))
    };
    noted.map_err(|source| ExactRuleError::File { path, source })
}

/// Whether a listing has as many rules and sets with elements as a script: their text depends on the version of `nft`.
fn tells_of(listing: &str, script: &str) -> bool {
    let same = |word: &str| listing.matches(word).count() == script.matches(word).count();
    ["accept", "masquerade", "elements"].into_iter().all(same)
}

fn listing(rule: &Rule) -> Result<String, ProgramError> {
    let list = |family: Family| format!("list table {} {TABLE}\n", family.name());
    nft(&["-f", "-"], &rule.families().map(list).collect::<String>())
}

fn nft(arguments: &[&str], input: &str) -> Result<String, ProgramError> {
    program::run(NFT, arguments, input, PATIENCE).map(|told| told.output)
}

/// Whether a table of nftables is one that [`ExactRule`] makes, of this family or of either.
pub fn is_ours(family: &str, table: &str, is_ipv4: Option<bool>) -> bool {
    let mut known = Family::ALL
        .into_iter()
        .filter(|known| is_ipv4.is_none_or(|is_ipv4| *known == Family::of(is_ipv4)));
    table == TABLE && known.any(|known| known.name() == family)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Settings;

    #[test]
    fn a_listing_without_rules_or_elements_is_not_of_the_script() {
        let settings = Settings {
            exact_rule: true,
            ..Settings::default()
        };
        let script = Rule::wanted(&settings, Some(2), Vec::new()).script();
        let listing = "table ip causeway {\n\tset excluded {\n\t\ttype ipv4_addr\n\t\tflags interval\n\t\telements = { 10.0.0.0/8, 168.63.129.16 }\n\t}\n\n\
            \tchain postrouting {\n\t\ttype nat hook postrouting priority srcnat; policy accept;\n\
            \t\tiifname \"azv*\" oifname \"azv*\" accept\n\
            \t\tiifname \"azv*\" oif \"eth0\" accept comment \"cwy_to_uplink translates\"\n\
            \t\tfib daddr type local accept\n\t\tip daddr @excluded accept\n\t\tmasquerade\n\t}\n}\n";
        assert!(tells_of(listing, &script));
        assert!(!tells_of(&listing.replace("\t\tmasquerade\n", ""), &script));
        assert!(!tells_of(
            &listing.replace("\t\telements = { 10.0.0.0/8, 168.63.129.16 }\n", ""),
            &script
        ));
    }

    #[test]
    fn what_an_earlier_build_has_made_is_of_ipv4() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::new(directory.path());
        assert!(made(&root).is_empty() && !is_made(&root, true));
        note(&root, &[Family::Ip6]).unwrap();
        assert!(is_made(&root, false) && !is_made(&root, true));
        note(&root, &Family::ALL).unwrap();
        assert_eq!(made(&root), Family::ALL);
        fs::write(root.path(MADE), TABLE).unwrap();
        assert_eq!(made(&root), [Family::Ip]);
        note(&root, &[]).unwrap();
        note(&root, &[]).unwrap();
        assert!(made(&root).is_empty());
    }
}
