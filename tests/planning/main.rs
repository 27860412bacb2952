//! A network before there is one, or before it changes: `causeway apiserver check` and `causeway plan`.
//!
//! Black box: the installed command on files as the Azure CLI and the engine's users write them; what it prints, and
//! with which code it ends. Needs no node.

mod check;
mod plan;

use std::{
    ffi::OsStr,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use causeway_tests::dist::Dist;
use serde_json::Value;

/// How a command ended.
struct Ended {
    code: Option<i32>,
    output: String,
    errors: String,
}

impl Ended {
    /// What it printed, if it ended so.
    fn with(self, code: i32) -> Result<String> {
        ensure!(
            self.code == Some(code),
            "ended with {:?}: {}{}",
            self.code,
            self.output,
            self.errors
        );
        ensure!(!self.errors.contains("panicked"), "{}", self.errors);
        Ok(self.output)
    }

    /// Its only complaint, if it ended so.
    fn complaint(self, code: i32) -> Result<String> {
        ensure!(
            self.code == Some(code),
            "ended with {:?}: {}{}",
            self.code,
            self.output,
            self.errors
        );
        ensure!(!self.errors.contains("panicked"), "{}", self.errors);
        Ok(self.errors)
    }

    fn document(self, code: i32) -> Result<Value> {
        let output = self.with(code)?;
        serde_json::from_str(&output).with_context(|| output)
    }
}

/// Runs the command in the directory of the fixtures.
fn causeway(arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Result<Ended> {
    with_input(arguments, b"")
}

fn with_input(arguments: impl IntoIterator<Item = impl AsRef<OsStr>>, input: &[u8]) -> Result<Ended> {
    let mut child = Command::new(Dist::from_env()?.cli())
        .args(arguments)
        .current_dir(fixtures())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    // A command that does not read its input closes it.
    child.stdin.take().context("no input")?.write_all(input).ok();
    let output = child.wait_with_output()?;
    Ok(Ended {
        code: output.status.code(),
        output: String::from_utf8(output.stdout)?,
        errors: String::from_utf8(output.stderr)?,
    })
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("planning/fixtures")
}

/// The words of a text, whatever lines and columns they are in.
fn words(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Lines of 80 columns, but for a word that is longer.
fn fits_a_terminal(text: &str) -> Result<()> {
    for line in text.lines() {
        let is_one_word = line.trim_end_matches(" \\").split_whitespace().count() == 1;
        ensure!(line.chars().count() <= 80 || is_one_word, "{line}");
    }
    Ok(())
}
