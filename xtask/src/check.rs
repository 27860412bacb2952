//! The checks that need no root: format, lints, documentation, dependencies.

use std::process::Command;

use anyhow::{Context as _, Result, bail};
use xtask::ebpf_object::{
    self, ALL, CAUSEWAY, Programs, Route, SYSTEM_CLIPPY, Target, Toolchain, Verb, probe, select,
};

use crate::{
    licences,
    progress::heading,
    workspace::{HOST, Workspace, find_program, run},
};

/// Runs all checks, whatever fails, and names at the end those that did and what was not checked.
pub(crate) fn check(workspace: &Workspace) -> Result<()> {
    let toolchain = select(&probe(&workspace.root)).map_err(anyhow::Error::msg)?;
    let mut report = Report::default();

    report.add("format", format(workspace));
    report.add("lints, host", host_lints(workspace));
    if let Some(missing) = missing_clippy(&toolchain) {
        report.left_out.push(format!("lints, eBPF ({missing})"));
    } else {
        for programs in ALL {
            report.add(
                &format!("lints, {}", programs.package),
                ebpf(workspace, &programs, &toolchain, Verb::Clippy, &[]),
            );
        }
        report.add(
            "lints, eBPF with the feature log",
            ebpf(
                workspace,
                &CAUSEWAY,
                &toolchain,
                Verb::Clippy,
                &["--features", "log"],
            ),
        );
    }
    report.add("documentation, host", host_docs(workspace));
    for programs in ALL {
        report.add(
            &format!("documentation, {}", programs.package),
            ebpf(workspace, &programs, &toolchain, Verb::Doc, &["--no-deps"]),
        );
    }
    dependencies(workspace, &mut report);
    report.finish()
}

#[derive(Default)]
struct Report {
    passed: Vec<String>,
    failed: Vec<String>,
    left_out: Vec<String>,
}

impl Report {
    fn add(&mut self, name: &str, result: Result<()>) {
        match result {
            Ok(()) => self.passed.push(name.to_owned()),
            Err(error) => {
                println!("{name}: {error:#}");
                self.failed.push(name.to_owned());
            }
        }
    }

    fn finish(self) -> Result<()> {
        heading("result");
        for (what, names) in [
            ("checked", &self.passed),
            ("not checked", &self.left_out),
            ("failed", &self.failed),
        ] {
            for name in names {
                println!("{what}: {name}");
            }
        }
        if !self.failed.is_empty() {
            bail!(
                "{} of {} checks failed",
                self.failed.len(),
                self.failed.len() + self.passed.len()
            );
        }
        Ok(())
    }
}

fn format(workspace: &Workspace) -> Result<()> {
    heading("format (rustfmt)");
    run(workspace.cargo(["fmt", "--all", "--check", "--", "-l"]))
        .context("run `cargo fmt --all`, or add the component rustfmt")
}

fn host_lints(workspace: &Workspace) -> Result<()> {
    heading("lints (clippy, host)");
    let mut command = workspace.cargo(["clippy"]);
    command
        .args(HOST)
        .args(["--all-targets", "--all-features", "--", "-D", "warnings"]);
    run(command)
}

/// Why the compiler of the programs has no clippy of its own; another compiler's cannot read its `core`.
fn missing_clippy(toolchain: &Toolchain) -> Option<&'static str> {
    let (mut command, missing) = match toolchain.route {
        Route::Nightly => {
            let mut command = Command::new("rustup");
            command.args(["run", "nightly", "cargo", "clippy"]);
            (
                command,
                "nightly has no clippy: rustup component add clippy --toolchain nightly",
            )
        }
        Route::System => (
            Command::new(SYSTEM_CLIPPY),
            "/usr/bin/rustc has no clippy beside it: Debian's rust-web-clippy",
        ),
    };
    let there = command
        .arg("--version")
        .output()
        .is_ok_and(|output| output.status.success());
    (!there).then_some(missing)
}

fn ebpf(
    workspace: &Workspace,
    programs: &Programs,
    toolchain: &Toolchain,
    verb: Verb,
    arguments: &[&str],
) -> Result<()> {
    heading(&format!("{verb:?}, {} {}", programs.package, arguments.join(" ")));
    let mut command = ebpf_object::cargo(
        programs,
        toolchain,
        &Target::of_this_build(),
        &workspace.root,
        verb,
    );
    command.args(arguments).env("RUSTDOCFLAGS", "-Dwarnings");
    if verb == Verb::Clippy {
        command.args(["--", "-D", "warnings"]);
    }
    run(command)
}

fn host_docs(workspace: &Workspace) -> Result<()> {
    heading("documentation (rustdoc, host)");
    let mut command = workspace.cargo(["doc", "--no-deps"]);
    command.args(HOST).env("RUSTDOCFLAGS", "-Dwarnings");
    run(command)
}

/// cargo-deny where it is installed, its rules by our own reading of them where it is not.
fn dependencies(workspace: &Workspace, report: &mut Report) {
    if find_program("cargo-deny").is_some() {
        heading("dependencies (cargo-deny)");
        let checks = ["deny", "--offline", "check", "bans", "licenses", "sources"];
        report.add(
            "dependencies: bans, licences, sources (cargo-deny)",
            run(workspace.cargo(checks)),
        );
    } else {
        heading("dependencies (deny.toml, read by xtask: cargo-deny is not installed)");
        report.add(
            "dependencies: banned crates, licences, sources (xtask)",
            licences::check(workspace),
        );
        report
            .left_out
            .push("dependencies: duplicates (only cargo-deny does)".to_owned());
    }
    report.left_out.push(
        "dependencies: advisories (their database has to be fetched: cargo deny check advisories)".to_owned(),
    );
}
