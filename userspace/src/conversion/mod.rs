//! Whether a cluster's network is ready for API Server VNet Integration: what can be told before the conversion, which
//! cannot be taken back.
//!
//! Pure: documents of the Azure CLI and a few words go in ([`facts`]), findings come out ([`check`]). Nothing is asked of
//! Azure. The rules are the documentation's:
//! <https://learn.microsoft.com/azure/aks/api-server-vnet-integration>.
//!
//! - `subnet` and `tenants`: the subnet, its place among the others, who is in it and its room;
//! - `traffic`: what network security groups let pass ([`rules`], [`evaluate`]);
//! - `change`: what the conversion changes for those who use the cluster.

pub mod azure;
mod change;
pub mod document;
pub mod error;
pub mod evaluate;
pub mod facts;
mod material;
mod roles;
pub mod rules;
pub mod spans;
mod subnet;
mod tenants;
mod traffic;

use serde::Serialize;

use self::facts::Facts;

/// How a check ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Verdict {
    /// It is right.
    Pass,
    /// The conversion would fail, or the cluster after it.
    Fail,
    /// It works, and somebody has to know.
    Warn,
    /// Nobody said what it takes to tell.
    Unknown,
}

/// One check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// Its name, which stays from version to version.
    pub id: &'static str,
    /// How it ends.
    pub verdict: Verdict,
    /// What was found.
    pub reason: String,
    /// What to do, or where to find out.
    pub fix: Option<String>,
    /// What the groups decide, of checks of traffic.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub decisions: Vec<Ruling>,
}

/// What a group decides about some connections.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Ruling {
    /// The group's name.
    pub group: String,
    /// `inbound` or `outbound`, as its subnet sees it.
    pub direction: &'static str,
    /// Who opens them.
    pub sources: String,
    /// From which ports.
    pub source_ports: String,
    /// To whom.
    pub destinations: String,
    /// To which TCP port.
    pub port: u16,
    /// `allow`, `deny` or `unknown`.
    pub access: &'static str,
    /// The rule that decides, or the one behind that in doubt.
    pub rule: String,
    /// Its priority.
    pub priority: u32,
    /// The rule that may decide otherwise.
    pub doubt: Option<String>,
}

/// Every check, in an order for reading.
pub fn check(facts: &Facts) -> Vec<Finding> {
    let mut findings = subnet::check(facts);
    findings.extend(traffic::check(facts));
    findings.extend(change::check(facts));
    findings
}

impl Finding {
    fn new(id: &'static str, verdict: Verdict, reason: impl Into<String>) -> Self {
        Self {
            id,
            verdict,
            reason: reason.into(),
            fix: None,
            decisions: Vec::new(),
        }
    }

    fn pass(id: &'static str, reason: impl Into<String>) -> Self {
        Self::new(id, Verdict::Pass, reason)
    }

    fn fail(id: &'static str, reason: impl Into<String>, fix: impl Into<String>) -> Self {
        Self::new(id, Verdict::Fail, reason).fix(fix)
    }

    fn warn(id: &'static str, reason: impl Into<String>, fix: impl Into<String>) -> Self {
        Self::new(id, Verdict::Warn, reason).fix(fix)
    }

    fn unknown(id: &'static str, reason: impl Into<String>, fix: impl Into<String>) -> Self {
        Self::new(id, Verdict::Unknown, reason).fix(fix)
    }

    fn fix(mut self, fix: impl Into<String>) -> Self {
        self.fix = Some(fix.into());
        self
    }
}

#[cfg(test)]
mod tests;
