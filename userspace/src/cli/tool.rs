//! Other people's programs, asked for what only they know: rules of iptables and nftables, versions of plug-ins. None of
//! them is needed; one that is missing or hangs costs what it would have told.

use std::{
    ffi::OsStr,
    io::{self, Read},
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use thiserror::Error;

/// How long a program may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Where administrators' programs are, besides what `PATH` names.
const DIRECTORIES: [&str; 2] = ["/usr/sbin", "/sbin"];

/// Why a program told nothing.
#[derive(Debug, Error)]
pub(crate) enum ToolError {
    #[error("{0} is not installed")]
    Missing(String),
    #[error("{0} did not end within {seconds} s", seconds = PATIENCE.as_secs())]
    Hangs(String),
    #[error("{program} failed: {text}")]
    Failed { program: String, text: String },
}

impl ToolError {
    pub(crate) fn is_missing(&self) -> bool {
        matches!(self, Self::Missing(_))
    }
}

/// What a program wrote to standard output and to standard error.
#[derive(Debug)]
pub(crate) struct Told {
    pub(crate) output: String,
    pub(crate) errors: String,
}

/// Runs a program to its end.
pub(crate) fn run(program: impl AsRef<OsStr>, arguments: &[&str]) -> Result<Told, ToolError> {
    let program = program.as_ref();
    let name = || program.to_string_lossy().into_owned();
    let failed = |text: String| ToolError::Failed {
        program: name(),
        text,
    };
    let mut child = match spawn(program, arguments) {
        Ok(child) => child,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(ToolError::Missing(name())),
        Err(error) => return Err(failed(error.to_string())),
    };
    let readers = (read(child.stdout.take()), read(child.stderr.take()));
    let end = Instant::now() + PATIENCE;
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if Instant::now() < end => thread::sleep(Duration::from_millis(2)),
            Ok(None) => {
                // It may have ended just now: then there is nothing to kill.
                child.kill().ok();
                child.wait().ok();
                return Err(ToolError::Hangs(name()));
            }
            Err(error) => return Err(failed(error.to_string())),
        }
    };
    let text = |reader: thread::JoinHandle<Vec<u8>>| {
        String::from_utf8_lossy(&reader.join().unwrap_or_default()).into_owned()
    };
    let told = Told {
        output: text(readers.0),
        errors: text(readers.1),
    };
    if status.success() {
        Ok(told)
    } else {
        Err(failed(format!("{status}: {}", told.errors.trim())))
    }
}

fn spawn(program: &OsStr, arguments: &[&str]) -> io::Result<std::process::Child> {
    let start = |program: &OsStr| {
        Command::new(program)
            .args(arguments)
            .env_remove("CNI_COMMAND")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
    };
    let mut started = start(program);
    for directory in DIRECTORIES {
        match &started {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                started = start(Path::new(directory).join(program).as_os_str());
            }
            _ => break,
        }
    }
    started
}

fn read(pipe: Option<impl Read + Send + 'static>) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            // What was read before an error is worth having.
            pipe.read_to_end(&mut bytes).ok();
        }
        bytes
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_outputs_are_told_and_a_failure_says_why() {
        let told = run("sh", &["-c", "echo out; echo err >&2"]).unwrap();
        assert_eq!((told.output.trim(), told.errors.trim()), ("out", "err"));
        let error = run("sh", &["-c", "echo no >&2; exit 3"]).unwrap_err().to_string();
        assert!(error.contains('3') && error.ends_with("no"), "{error}");
    }

    #[test]
    fn a_program_that_is_not_there_is_missing() {
        assert!(run("no-such-program-anywhere", &[]).unwrap_err().is_missing());
    }
}
