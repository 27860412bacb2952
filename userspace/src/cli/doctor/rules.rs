//! Rules of others in the kernel's firewall: those that translate pods a second time, and those that drop what they send.
//!
//! What is read is text of `iptables-save` and JSON of `nft`: both are interfaces that scripts rely on. Judged is the way
//! of a new flow from a pod; a rule with a condition that is not looked at (a mark, a state, a set) is taken for one that
//! does not apply.

pub(super) mod iptables;
pub(super) mod nftables;

use std::net::{IpAddr, Ipv4Addr};

use causeway::{exact_rule, program};

use super::{Code, Finding, Snapshot};

/// What the firewall was when it was asked.
#[derive(Debug, Default)]
pub(super) struct Rules {
    iptables: Option<iptables::Ruleset>,
    nftables: Option<serde_json::Value>,
}

impl Rules {
    /// Whether the kernel's own rule for a family is there; `None` where nobody was asked.
    pub(super) fn has_own(&self, is_ipv4: bool) -> Option<bool> {
        let ruleset = self.nftables.as_ref()?;
        let is_it = |family: &str, table: &str| exact_rule::is_ours(family, table, Some(is_ipv4));
        Some(nftables::has_table(ruleset, is_it))
    }

    pub(super) fn read(skipped: &mut Vec<String>) -> Self {
        let mut ask = |program: &str, arguments: &[&str]| match program::ask(program, arguments) {
            Ok(told) => Some(told.output),
            Err(error) => {
                skipped.push(format!("rules of the firewall: {error}"));
                None
            }
        };
        let iptables = ask("iptables-save", &[]).map(|text| iptables::Ruleset::parse(&text));
        let nftables = ask("nft", &["-j", "list", "ruleset"]);
        Self {
            iptables,
            nftables: nftables.and_then(|text| serde_json::from_str(&text).ok()),
        }
    }
}

/// Whose packets the rules are asked about.
pub(super) struct Traffic<'a> {
    pub(super) pods: &'a [Ipv4Addr],
    pub(super) uplink: &'a str,
    pub(super) host_ifs: &'a [&'a str],
}

pub(super) fn check(snapshot: &Snapshot) -> Vec<Finding> {
    let Some(uplink) = snapshot.uplink() else {
        return Vec::new();
    };
    let pods: Vec<Ipv4Addr> = snapshot
        .endpoints()
        .iter()
        .filter_map(|endpoint| match endpoint.addr {
            IpAddr::V4(addr) => Some(addr),
            IpAddr::V6(_) => None,
        })
        .collect();
    let host_ifs: Vec<&str> = snapshot
        .endpoints()
        .iter()
        .map(|endpoint| endpoint.host_if.as_str())
        .collect();
    if pods.is_empty() {
        return Vec::new();
    }
    let traffic = Traffic {
        pods: &pods,
        uplink: &uplink.name,
        host_ifs: &host_ifs,
    };
    let mut found = missing_rule(snapshot);
    if let Some(rules) = &snapshot.rules.iptables {
        found.extend(rules.masquerading(&traffic).into_iter().map(|rule| {
            Finding::new(Code::ForeignMasquerade, rule.clone()).with(
                "VALUE",
                format!("iptables -t nat {}", rule.replacen("-A", "-D", 1)),
            )
        }));
        found.extend(
            rules
                .forbidding(&traffic)
                .map(|why| Finding::new(Code::ForwardDropped, why)),
        );
    }
    if let Some(ruleset) = &snapshot.rules.nftables {
        let is_known = |table: &str| snapshot.rules.iptables.is_some() && iptables::TABLES.contains(&table);
        found.extend(
            nftables::masquerading(ruleset, &is_known)
                .into_iter()
                .map(|rule| {
                    Finding::new(Code::ForeignMasquerade, format!("nftables: {}", rule.place)).with(
                        "VALUE",
                        format!("nft delete rule {} handle {}", rule.place, rule.handle),
                    )
                }),
        );
        found.extend(nftables::forbidding(ruleset, &is_known).into_iter().map(|chain| {
            Finding::new(Code::NftDrops, format!("chain {chain} has the policy drop")).with(
                "VALUE",
                format!("add rule {chain} oifname {} accept", traffic.uplink),
            )
        }));
    }
    found
}

/// The kernel's rule beside the programs, if it was asked for.
fn missing_rule(snapshot: &Snapshot) -> Vec<Finding> {
    if !snapshot.wants_exact_rule() || snapshot.rules.has_own(true) == Some(true) {
        return Vec::new();
    }
    let about = format!("nftables has no table ip {}", exact_rule::TABLE);
    vec![Finding::new(Code::ExactRuleMissing, about)]
}
