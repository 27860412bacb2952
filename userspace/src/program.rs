//! Programs of the distribution, for what only they know: rules of iptables, ebtables and nftables, versions of plug-ins.

use std::{
    ffi::OsStr,
    io::{self, Read, Write as _},
    process::{Child, Command, ExitStatus, Stdio},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use thiserror::Error;

/// Where administrators' programs are, besides what `PATH` names.
const DIRECTORIES: &str = "/usr/sbin:/sbin";
/// How long a program may take that is only asked for something.
const FOR_AN_ANSWER: Duration = Duration::from_secs(5);

/// Why a program did not do what it was to do.
#[derive(Debug, Error)]
pub enum ProgramError {
    /// The node does not have it.
    #[error("{0} is not installed")]
    Missing(String),
    /// It was killed, as it took longer than anybody waits.
    #[error("{program} did not end within {} s", patience.as_secs())]
    Hangs {
        /// Its name or path.
        program: String,
        /// How long it was waited for.
        patience: Duration,
    },
    /// It ended with an error, or could not be started.
    #[error("{program} failed: {said}")]
    Failed {
        /// Its name or path.
        program: String,
        /// What it said on standard error, or how it ended if it said nothing.
        said: String,
    },
}

impl ProgramError {
    /// Whether the node does not have the program.
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Missing(_))
    }
}

/// What a program wrote to standard output and to standard error.
#[derive(Debug)]
pub struct Told {
    /// Bytes that are not UTF-8 are replaced.
    pub output: String,
    /// Likewise.
    pub errors: String,
}

/// Asks a program for something: it is given no input, and 5 s.
///
/// # Errors
///
/// As [`run`].
pub fn ask(program: impl AsRef<OsStr>, arguments: &[&str]) -> Result<Told, ProgramError> {
    run(program, arguments, "", FOR_AN_ANSWER)
}

/// Runs a program with `input` to its end, or kills it after `patience`.
///
/// # Errors
///
/// It is missing, has not ended in time, or has ended with an error.
pub fn run(
    program: impl AsRef<OsStr>,
    arguments: &[&str],
    input: &str,
    patience: Duration,
) -> Result<Told, ProgramError> {
    let program = program.as_ref();
    let name = || program.to_string_lossy().into_owned();
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => ProgramError::Missing(name()),
        _ => ProgramError::Failed {
            program: name(),
            said: error.to_string(),
        },
    };
    let mut child = start(program, arguments).map_err(failed)?;
    let fed = feed(&mut child, input.as_bytes().to_vec());
    let readers = (read(child.stdout.take()), read(child.stderr.take()));
    let Some(status) = wait(&mut child, patience).map_err(failed)? else {
        return Err(ProgramError::Hangs {
            program: name(),
            patience,
        });
    };
    let told = Told {
        output: text(readers.0),
        errors: text(readers.1),
    };
    if !status.success() {
        return Err(ProgramError::Failed {
            program: name(),
            said: match told.errors.trim() {
                "" => status.to_string(),
                errors => errors.to_owned(),
            },
        });
    }
    match fed.join() {
        // One that ends well without having read everything did not need it.
        Ok(Err(error)) if error.kind() != io::ErrorKind::BrokenPipe => Err(failed(error)),
        _ => Ok(told),
    }
}

fn start(program: &OsStr, arguments: &[&str]) -> io::Result<Child> {
    let path = std::env::var("PATH").unwrap_or_default();
    Command::new(program)
        .args(arguments)
        .env("PATH", format!("{path}:{DIRECTORIES}"))
        .env_remove("CNI_COMMAND")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
}

fn feed(child: &mut Child, input: Vec<u8>) -> JoinHandle<io::Result<()>> {
    let pipe = child.stdin.take();
    thread::spawn(move || pipe.map_or(Ok(()), |mut pipe| pipe.write_all(&input)))
}

fn read(pipe: Option<impl Read + Send + 'static>) -> JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            // What was read before an error is worth having.
            pipe.read_to_end(&mut bytes).ok();
        }
        bytes
    })
}

fn text(reader: JoinHandle<Vec<u8>>) -> String {
    String::from_utf8_lossy(&reader.join().unwrap_or_default()).into_owned()
}

/// How a child ended; `None` where it did not and was killed.
fn wait(child: &mut Child, patience: Duration) -> io::Result<Option<ExitStatus>> {
    let end = Instant::now() + patience;
    loop {
        match child.try_wait()? {
            None if Instant::now() < end => thread::sleep(Duration::from_millis(2)),
            None => {
                // It may have ended just now: then there is nothing to kill.
                child.kill().ok();
                child.wait().ok();
                return Ok(None);
            }
            status => return Ok(status),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_outputs_are_told_and_a_failure_says_why() {
        let told = ask("sh", &["-c", "echo out; echo err >&2"]).unwrap();
        assert_eq!((told.output.trim(), told.errors.trim()), ("out", "err"));
        let error = |script: &str| ask("sh", &["-c", script]).unwrap_err().to_string();
        assert_eq!(error("echo no >&2; exit 3"), "sh failed: no");
        assert_eq!(error("exit 3"), "sh failed: exit status: 3");
    }

    #[test]
    fn a_program_that_is_not_there_is_missing() {
        assert!(ask("no-such-program-anywhere", &[]).unwrap_err().is_missing());
    }

    #[test]
    fn input_is_given_and_need_not_be_read() {
        let input = "x".repeat(1 << 20);
        assert_eq!(run("cat", &[], &input, FOR_AN_ANSWER).unwrap().output, input);
        assert_eq!(run("true", &[], &input, FOR_AN_ANSWER).unwrap().output, "");
    }

    #[test]
    fn one_that_hangs_is_ended() {
        let error = run("sleep", &["600"], "", Duration::from_millis(50)).unwrap_err();
        assert!(matches!(error, ProgramError::Hangs { .. }), "{error}");
    }
}
