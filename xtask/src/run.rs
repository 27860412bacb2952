//! Tests and demo, each in a mount namespace of its own: the bpffs they mount for their nodes go when they end.

use std::{
    io::{self, BufRead as _, BufReader, IsTerminal as _, Write as _},
    os::unix::process::CommandExt as _,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    progress::heading,
    workspace::{HOST, Workspace, path_with_sbin},
};

/// Runs the workspace's tests on the binaries in `target/dist`, and prints one line that sums up all of them.
pub(crate) fn test(workspace: &Workspace, long: bool, filter: Option<&str>) -> Result<()> {
    let mut total = Summary::default();
    // With a filter the name decides; without one the long tests are those that are called so.
    let runs: &[&[&str]] = match (long, filter) {
        (false, None) => &[&[]],
        (false, Some(name)) => &[&[name]],
        (true, None) => &[&[], &["--ignored", "long_"]],
        (true, Some(name)) => &[&["--include-ignored", name]],
    };
    for (index, selection) in runs.iter().enumerate() {
        heading(if index == 0 { "tests" } else { "long tests" });
        total += cargo_test(workspace, &HOST, selection, long)?;
        if index == 0 {
            // The command's own tests need a feature that must not reach the library other crates build with.
            total += cargo_test(
                workspace,
                &["--package", "xtask", "--features", "cli", "--bins"],
                selection,
                long,
            )?;
        }
    }
    println!(
        "==> {} passed, {} failed, {} ignored",
        total.passed, total.failed, total.ignored
    );
    if let Some(name) = filter
        && total.passed + total.failed == 0
    {
        bail!(
            "no test has {name} in its name{}",
            if long { "" } else { "; long ones need --long" }
        );
    }
    if total.failed > 0 {
        bail!("failed tests: {}", total.failed);
    }
    if total.broken {
        bail!("some tests did not compile, or their program did not end by itself: see above");
    }
    Ok(())
}

/// Runs the demo. Does not return when it starts: this process becomes it, so that an interrupt reaches it alone.
pub(crate) fn demo(workspace: &Workspace) -> Result<()> {
    heading("demo");
    let demo = workspace.target.join("release/demo");
    let mut command = private(&Command::new(&demo), workspace);
    Err(command.exec()).with_context(|| format!("cannot start {}", demo.display()))
}

/// Runs the bench with `arguments`. Does not return when it starts, as [`demo`].
pub(crate) fn bench(workspace: &Workspace, arguments: &[String]) -> Result<()> {
    heading("bench");
    let bench = workspace.target.join("release/causeway-bench");
    let mut command = private(Command::new(&bench).args(arguments), workspace);
    Err(command.exec()).with_context(|| format!("cannot start {}", bench.display()))
}

fn cargo_test(workspace: &Workspace, packages: &[&str], selection: &[&str], long: bool) -> Result<Summary> {
    let mut cargo = workspace.cargo(["test", "--no-fail-fast"]);
    cargo.args(packages).arg("--").args(selection);
    if io::stdout().is_terminal() {
        cargo.args(["--color", "always"]);
    }
    let mut command = private(&cargo, workspace);
    if long {
        command.env("CAUSEWAY_LONG", "1");
    }
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start unshare (util-linux)")?;
    let mut summary = Summary::default();
    if let Some(output) = child.stdout.take() {
        let mut output = BufReader::new(output);
        let mut line = Vec::new();
        while output.read_until(b'\n', &mut line)? > 0 {
            io::stdout().write_all(&line)?;
            summary.add(&String::from_utf8_lossy(&line));
            line.clear();
        }
    }
    summary.broken = !child.wait()?.success();
    Ok(summary)
}

/// The same command where mounts stay its own, with the system's tools in PATH.
fn private(command: &Command, workspace: &Workspace) -> Command {
    let mut private = Command::new("unshare");
    private.args(["--mount", "--propagation", "private", "--"]);
    private.arg(command.get_program()).args(command.get_args());
    private.current_dir(&workspace.root);
    private
        .env("PATH", path_with_sbin())
        .env("CAUSEWAY_DIST", workspace.dist());
    private
}

/// What test programs counted.
#[derive(Debug, Default, PartialEq, Eq)]
struct Summary {
    passed: u64,
    failed: u64,
    ignored: u64,
    /// A program did not compile, or did not end well.
    broken: bool,
}

impl Summary {
    /// Adds what a line says when it is one a test program ends with.
    fn add(&mut self, line: &str) {
        let Some((_, counts)) = line
            .split_once("test result: ")
            .filter(|(before, _)| before.is_empty())
        else {
            return;
        };
        for part in counts.split(['.', ';']) {
            let mut words = part.split_whitespace();
            let (Some(number), Some(what)) = (
                words.next().and_then(|word| word.parse::<u64>().ok()),
                words.next(),
            ) else {
                continue;
            };
            match what {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.ignored += number,
                _ => {}
            }
        }
    }
}

impl std::ops::AddAssign for Summary {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
        self.broken |= other.broken;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_test_programs_add_up() {
        let mut summary = Summary::default();
        for line in [
            "running 3 tests\n",
            "test result: ok. 14 passed; 0 failed; 2 ignored; 0 measured; 0 filtered out; finished in 0.00s\n",
            "test result: \u{1b}[31mFAILED\u{1b}[m. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s\n",
            "the peer said test result: ok. 9 passed; 9 failed\n",
        ] {
            summary.add(line);
        }
        assert_eq!(
            summary,
            Summary {
                passed: 15,
                failed: 2,
                ignored: 2,
                broken: false
            }
        );
    }
}
