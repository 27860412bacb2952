//! Programs of the distribution that keep what only they know how to keep: rules of iptables, ebtables and nftables.

use std::{
    io::{self, Write as _},
    process::{Command, Stdio},
};

/// Where administrators' programs are, besides what `PATH` names.
const DIRECTORIES: &str = "/usr/sbin:/sbin";

/// A program has failed.
#[derive(Debug, thiserror::Error)]
#[error("{program} failed: {said}")]
pub struct ProgramError {
    program: String,
    /// What it said on standard error.
    said: String,
}

impl ProgramError {
    /// `program` is needed, and the node does not have it.
    pub(crate) fn missing(program: &str) -> Self {
        Self {
            program: program.to_owned(),
            said: "it is not installed".to_owned(),
        }
    }
}

/// Runs a program to its end, gives it `input`, and returns what it printed; `None` where there is no such program.
pub(crate) fn run(program: &str, arguments: &[&str], input: &str) -> Result<Option<String>, ProgramError> {
    let failed = |said: String| ProgramError {
        program: program.to_owned(),
        said,
    };
    let path = std::env::var("PATH").unwrap_or_default();
    let child = Command::new(program)
        .args(arguments)
        .env("PATH", format!("{path}:{DIRECTORIES}"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = match child {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        child => child.map_err(|error| failed(error.to_string()))?,
    };
    let fed = child
        .stdin
        .take()
        .map_or(Ok(()), |mut stdin| stdin.write_all(input.as_bytes()));
    let output = child
        .wait_with_output()
        .map_err(|error| failed(error.to_string()))?;
    if !output.status.success() {
        return Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
    }
    // One that ends well without having read everything did not need it.
    match fed {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(failed(error.to_string())),
        _ => Ok(Some(String::from_utf8_lossy(&output.stdout).into_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_is_told_and_what_fails_says_why() {
        assert_eq!(run("cat", &[], "a\nb\n").unwrap().unwrap(), "a\nb\n");
        let error = run("sh", &["-c", "echo no >&2; exit 3"], "").unwrap_err();
        assert_eq!(error.to_string(), "sh failed: no");
        assert!(run("no-such-program-anywhere", &[], "").unwrap().is_none());
        assert_eq!(run("true", &[], &"x".repeat(1 << 20)).unwrap().unwrap(), "");
    }
}
