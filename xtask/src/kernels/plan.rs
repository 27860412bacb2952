//! What runs on which kernel: `tests/kernels/plan`.

use std::fs;

use anyhow::{Context as _, Result, bail, ensure};

use super::Selection;
use crate::workspace::Workspace;

/// The one room that is no test program: `causeway-bench`.
pub(crate) const BENCH: &str = "bench";

/// How much of the plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Extent {
    /// What every run of the tests includes.
    Short,
    /// All of it.
    Full,
}

/// The plan, cut to what is to run.
pub(crate) struct Plan {
    lines: Vec<Line>,
    filter: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Line {
    room: String,
    /// `None`: on every kernel.
    kernel: Option<String>,
    arguments: String,
}

/// One call of a room's program in the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Step {
    pub(crate) room: String,
    pub(crate) arguments: String,
}

impl Plan {
    pub(crate) fn read(workspace: &Workspace, selection: &Selection<'_>) -> Result<Self> {
        let path = workspace.root.join("tests/kernels/plan");
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let mut lines = parse(&text, selection.extent).with_context(|| format!("in {}", path.display()))?;
        // It has no tests to choose from.
        lines.retain(|line| selection.filter.is_none() || line.room != BENCH);
        Ok(Self {
            lines,
            filter: selection.filter.map(str::to_owned),
        })
    }

    /// The rooms whose programs are needed, each once.
    pub(crate) fn rooms(&self) -> Vec<&str> {
        let mut rooms: Vec<_> = self.lines.iter().map(|line| line.room.as_str()).collect();
        rooms.sort_unstable();
        rooms.dedup();
        rooms
    }

    /// What runs on a kernel, in order. With a filter each room runs once, with the filter in the place of the plan's.
    pub(crate) fn steps(&self, kernel: &str) -> Vec<Step> {
        let on_this = |line: &&Line| line.kernel.as_deref().is_none_or(|name| name == kernel);
        let mut steps: Vec<Step> = Vec::new();
        for line in self.lines.iter().filter(on_this) {
            let step = match &self.filter {
                Some(name) => Step {
                    room: line.room.clone(),
                    arguments: name.clone(),
                },
                None => Step {
                    room: line.room.clone(),
                    arguments: line.arguments.clone(),
                },
            };
            if !steps.contains(&step) {
                steps.push(step);
            }
        }
        steps
    }
}

/// A line is `EXTENT KERNEL ROOM [ARGUMENTS OF THE TEST PROGRAM]`; `*` is every kernel.
fn parse(text: &str, extent: Extent) -> Result<Vec<Line>> {
    let mut lines = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let mut words = line.split_whitespace();
        let (Some(of), Some(kernel), Some(room)) = (words.next(), words.next(), words.next()) else {
            bail!("line {}: an extent, a kernel and a room", number + 1);
        };
        ensure!(
            ["short", "full"].contains(&of),
            "line {}: {of} is neither short nor full",
            number + 1
        );
        let is_short = of == "short";
        if is_short == (extent == Extent::Short) {
            lines.push(Line {
                room: room.to_owned(),
                kernel: (kernel != "*").then(|| kernel.to_owned()),
                arguments: words.collect::<Vec<_>>().join(" "),
            });
        }
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str =
        "# heading\nshort * kernels\nfull * prog --skip two_million\nfull 6.12 netns path:: walks::\n";

    fn plan(extent: Extent, filter: Option<&str>) -> Plan {
        Plan {
            lines: parse(TEXT, extent).unwrap(),
            filter: filter.map(str::to_owned),
        }
    }

    fn step(room: &str, arguments: &str) -> Step {
        Step {
            room: room.to_owned(),
            arguments: arguments.to_owned(),
        }
    }

    #[test]
    fn a_kernel_runs_its_own_lines_and_everybodys() {
        let full = plan(Extent::Full, None);
        assert_eq!(full.rooms(), ["netns", "prog"]);
        assert_eq!(full.steps("6.1"), [step("prog", "--skip two_million")]);
        assert_eq!(full.steps("6.12").len(), 2);
        assert_eq!(plan(Extent::Short, None).steps("6.1"), [step("kernels", "")]);
    }

    #[test]
    fn a_filter_runs_in_every_room() {
        let steps = plan(Extent::Full, Some("restart")).steps("6.12");
        assert_eq!(steps, [step("prog", "restart"), step("netns", "restart")]);
    }

    #[test]
    fn a_line_that_is_none_is_refused() {
        assert!(parse("often * prog", Extent::Full).is_err());
        assert!(parse("full prog", Extent::Full).is_err());
    }
}
