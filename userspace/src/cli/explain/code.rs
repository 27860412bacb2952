//! `causeway explain CWY021`: the long form of what the doctor finds.

use std::io::{self, Write};

use serde::Serialize;

use crate::cli::{doctor::Code, output::Report};

#[derive(Serialize)]
pub(crate) struct Explanation {
    code: &'static str,
    severity: &'static str,
    what: &'static str,
    cause: &'static str,
    /// Commands that show it.
    look: Vec<&'static str>,
    fix: &'static str,
}

/// The code of this name, in either case.
pub(crate) fn named(text: &str) -> Option<Code> {
    let name = text.to_ascii_uppercase();
    Code::ALL.iter().copied().find(|code| code.name() == name)
}

pub(crate) fn gather(code: Code) -> Explanation {
    Explanation {
        code: code.name(),
        severity: code.severity().name(),
        what: code.what(),
        cause: code.cause(),
        look: code.look().lines().collect(),
        fix: code.fix(),
    }
}

impl Report for Explanation {
    const KIND: &'static str = "Explanation";

    fn write_text(&self, out: &mut dyn Write) -> io::Result<()> {
        let Self {
            code,
            severity,
            what,
            cause,
            look,
            fix,
        } = self;
        writeln!(out, "{code}, {severity}: {what}\n\n{cause}\n\nTo look at it:")?;
        for command in look {
            writeln!(out, "  {command}")?;
        }
        writeln!(out, "\nTo put it right:\n  {fix}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_is_found_in_either_case_and_shows_commands() {
        let code = named("cwy021").unwrap();
        assert_eq!(code.name(), "CWY021");
        assert!(named("CWY999").is_none() && named("10.240.0.5").is_none());
        let mut out = Vec::new();
        gather(code).write_text(&mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(
            text.contains("  ip -4 addr show") && text.contains("bpftool map"),
            "{text}"
        );
    }
}
