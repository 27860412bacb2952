//! `causeway doctor`: what is wrong with the node, why, and what to type.
//!
//! The node is read once ([`snapshot`]); each check is a function of what was read. [`code`] is the list of what can be
//! found. A subject a module; what belongs to a migration has codes of its own (CWY09x).

mod addresses;
mod bypass;
mod code;
mod configuration;
mod kernel;
mod pins;
mod plugins;
mod pods;
mod rules;
mod snapshot;
mod table;
mod uplink;

use std::{
    fmt::Display,
    io::{self, Write},
};

use causeway::root::Root;
use serde::Serialize;

use self::snapshot::Snapshot;
pub(crate) use self::{
    code::{Code, Severity},
    snapshot::Depth,
};
use super::{Failure, output::Report};

/// The checks, each about a subject.
const CHECKS: [fn(&Snapshot) -> Vec<Finding>; 9] = [
    kernel::check,
    pins::check,
    uplink::check,
    pods::check,
    addresses::check,
    table::check,
    plugins::check,
    rules::check,
    configuration::check,
];

/// What is wrong with the node.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Diagnosis {
    healthy: bool,
    errors: usize,
    warnings: usize,
    findings: Vec<Finding>,
    /// How many things are looked at.
    checks: usize,
    /// What could not be looked at, and why.
    skipped: Vec<String>,
    /// What the kernel does not have and is done without, and what that costs.
    lacks: Vec<&'static str>,
    #[serde(skip)]
    root: Root,
}

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    #[serde(serialize_with = "name_of")]
    pub(crate) code: Code,
    severity: &'static str,
    what: &'static str,
    /// What exactly was found.
    pub(crate) about: String,
    cause: &'static str,
    fix: String,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn name_of<S: serde::Serializer>(code: &Code, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(code.name())
}

impl Finding {
    fn new(code: Code, about: impl Into<String>) -> Self {
        Self {
            code,
            severity: code.severity().name(),
            what: code.what(),
            about: about.into(),
            cause: code.cause(),
            fix: code.fix().to_owned(),
        }
    }

    /// Says in the fix what a word in capitals stands for.
    fn with(mut self, word: &str, value: impl Display) -> Self {
        self.fix = self.fix.replace(word, &value.to_string());
        self
    }
}

/// Looks at the node.
pub(crate) fn gather(root: &Root, depth: Depth) -> Result<Diagnosis, Failure> {
    let snapshot = Snapshot::take(root, depth)?;
    let mut findings: Vec<Finding> = CHECKS.iter().flat_map(|check| check(&snapshot)).collect();
    findings.sort_by_key(|finding| (finding.code.severity() == Severity::Warning, finding.code));
    let errors = findings
        .iter()
        .filter(|finding| finding.code.severity() == Severity::Error)
        .count();
    Ok(Diagnosis {
        healthy: errors == 0,
        errors,
        warnings: findings.len() - errors,
        findings,
        checks: Code::ALL.len(),
        lacks: kernel::lacks(&snapshot.kernel),
        skipped: snapshot.skipped,
        root: root.clone(),
    })
}

impl Diagnosis {
    /// Whether nothing but warnings was found.
    pub(crate) fn is_healthy(&self) -> bool {
        self.healthy
    }

    /// One line: all is well, or the first thing that is not.
    pub(crate) fn summary(&self) -> String {
        let rest = match self.findings.len() {
            0 => return "all is well".to_owned(),
            1 => "`causeway doctor` tells more".to_owned(),
            more => format!("and {} more: `causeway doctor`", more - 1),
        };
        if self.errors == 0 {
            let codes: Vec<&str> = self.findings.iter().map(|finding| finding.code.name()).collect();
            return format!(
                "all is well, with warnings ({}): `causeway doctor`",
                codes.join(", ")
            );
        }
        let first = &self.findings[0];
        format!("{} {}: {} ({rest})", first.code.name(), first.what, first.about)
    }

    /// The findings' codes, for documents that only name them.
    pub(crate) fn codes(&self) -> Vec<&'static str> {
        self.findings.iter().map(|finding| finding.code.name()).collect()
    }
}

impl Report for Diagnosis {
    const KIND: &'static str = "Diagnosis";

    fn write_text(&self, out: &mut dyn Write) -> io::Result<()> {
        for finding in &self.findings {
            writeln!(
                out,
                "{} {:<8} {}",
                finding.code.name(),
                finding.severity,
                finding.what
            )?;
            writeln!(out, "       found    {}", finding.about)?;
            writeln!(out, "       cause    {}", finding.cause)?;
            writeln!(out, "       fix      {}\n", finding.fix)?;
        }
        for skipped in &self.skipped {
            writeln!(out, "not looked at: {skipped}")?;
        }
        for lack in &self.lacks {
            writeln!(out, "done without: {lack}")?;
        }
        match (self.errors, self.warnings) {
            (0, 0) => writeln!(out, "all is well: {} things were looked at", self.checks),
            (errors, warnings) => writeln!(
                out,
                "{}, {}; `causeway explain {}` tells more",
                several(errors, "error"),
                several(warnings, "warning"),
                self.findings[0].code.name()
            ),
        }
    }

    fn failure(self) -> Option<Failure> {
        let not_loaded = [Code::NotLoaded, Code::NoBpffs];
        if self
            .findings
            .iter()
            .any(|finding| not_loaded.contains(&finding.code))
        {
            return Some(Failure::NotLoaded(self.root));
        }
        (self.errors > 0).then_some(Failure::Unhealthy(self.errors))
    }
}

/// `1 error`, `2 errors`.
pub(crate) fn several(count: usize, what: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {what}{plural}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fix_names_what_was_found() {
        let finding = Finding::new(Code::RouteMissing, "x")
            .with("ADDRESS", "10.240.0.5")
            .with("INTERFACE", "azv1");
        assert_eq!(finding.fix, "ip route replace 10.240.0.5 dev azv1 scope link");
    }

    #[test]
    fn an_error_comes_before_a_warning_and_makes_the_exit_code() {
        let diagnosis = |findings: Vec<Finding>, errors| Diagnosis {
            healthy: errors == 0,
            errors,
            warnings: findings.len() - errors,
            findings,
            checks: 0,
            skipped: Vec::new(),
            lacks: Vec::new(),
            root: Root::new("/"),
        };
        let warning = || Finding::new(Code::NoBtf, "");
        assert_eq!(diagnosis(vec![], 0).summary(), "all is well");
        assert!(diagnosis(vec![warning()], 0).summary().contains("CWY002"));
        assert!(diagnosis(vec![warning()], 0).failure().is_none());
        let wrong = diagnosis(vec![Finding::new(Code::NotForwarding, "0"), warning()], 1);
        assert!(wrong.summary().starts_with("CWY004") && wrong.summary().contains("1 more"));
        assert!(matches!(wrong.failure(), Some(Failure::Unhealthy(1))));
        let absent = diagnosis(vec![Finding::new(Code::NotLoaded, "")], 1);
        assert!(matches!(absent.failure(), Some(Failure::NotLoaded(_))));
    }
}
