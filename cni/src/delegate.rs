//! Other IPAM plug-ins, run as the specification has it: the same environment, the very bytes of the configuration,
//! their standard error passed on, their errors ours.

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use causeway::endpoints::Key;
use serde_json::Value;

use crate::{
    error::{CniError, code},
    invocation::Verb,
    result::CniResult,
};

/// An IPAM plug-in that is found, and what it is given.
#[derive(Clone, Debug)]
pub(crate) struct Delegate<'a> {
    name: &'a str,
    program: PathBuf,
    configuration: &'a [u8],
}

impl<'a> Delegate<'a> {
    /// Finds the plug-in `name` in the directories of `path`, which is `CNI_PATH`.
    pub(crate) fn find(name: &'a str, path: &str, configuration: &'a [u8]) -> Result<Self, CniError> {
        let problem = |problem: String| CniError::new(code::PLUGIN, problem);
        if name.contains('/') || matches!(name, "." | "..") {
            return Err(problem(format!(
                "invalid plugin name: {name:?} in ipam.type is not a file's name"
            )));
        }
        let directories = path.split(':').filter(|directory| !directory.is_empty());
        let mut programs = directories.map(|directory| Path::new(directory).join(name));
        let program = programs.find(|program| is_program(program)).ok_or_else(|| {
            problem(format!(
                "failed to find plugin {name:?} in path [{path}]: install it in a directory of CNI_PATH"
            ))
        })?;
        Ok(Self {
            name,
            program,
            configuration,
        })
    }

    /// ADD. One that fails is taken back by its own DEL.
    pub(crate) fn add(&self) -> Result<CniResult, CniError> {
        let added = self.run(Verb::Add, None).and_then(|answer| {
            let value: Value = serde_json::from_slice(&answer).map_err(|error| self.unreadable(&error))?;
            CniResult::from_json(&value, "the result").map_err(|error| self.unreadable(&error))
        });
        added.map_err(|error| match self.run(Verb::Del, None) {
            Ok(_) => error,
            Err(deleting) => error.and(&format!("its DEL failed as well: {}", deleting.msg)),
        })
    }

    /// DEL, CHECK, STATUS or GC of this call.
    pub(crate) fn call(&self, verb: Verb) -> Result<(), CniError> {
        self.run(verb, None).map(drop)
    }

    /// DEL of an attachment that is not this call's.
    pub(crate) fn del(&self, attachment: &Key) -> Result<(), CniError> {
        self.run(Verb::Del, Some(attachment)).map(drop)
    }

    fn run(&self, verb: Verb, other: Option<&Key>) -> Result<Vec<u8>, CniError> {
        let mut command = Command::new(&self.program);
        command.env("CNI_COMMAND", verb.name());
        if let Some(attachment) = other {
            command
                .env("CNI_CONTAINERID", &attachment.container)
                .env("CNI_IFNAME", &attachment.interface)
                .env("CNI_NETNS", "");
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let failed = |error: io::Error| {
            CniError::new(
                code::PLUGIN,
                format!("cannot run {}: {error}", self.program.display()),
            )
        };
        let mut child = start(&mut command).map_err(failed)?;
        if let Some(mut stdin) = child.stdin.take() {
            // It may have ended without reading.
            stdin.write_all(self.configuration).ok();
        }
        let output = child.wait_with_output().map_err(failed)?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        Err(self.refusal(verb, &output.stdout, &output.status.to_string()))
    }

    /// What the plug-in says about its failure, as it says it.
    fn refusal(&self, verb: Verb, answer: &[u8], status: &str) -> CniError {
        let said = serde_json::from_slice::<Value>(answer).ok();
        let said = said.as_ref().and_then(|said| {
            let code = u32::try_from(said.get("code")?.as_u64()?).ok()?;
            Some((
                code,
                said.get("msg")?.as_str()?,
                said.get("details").and_then(Value::as_str),
            ))
        });
        if let Some((code, msg, details)) = said {
            return CniError::new(code, msg).with_details(details.unwrap_or_default());
        }
        let msg = format!(
            "netplugin failed with no error message: {} {} ({status})",
            self.name,
            verb.name()
        );
        CniError::new(code::PLUGIN, msg).with_details(String::from_utf8_lossy(answer).trim())
    }

    fn unreadable(&self, error: &dyn std::fmt::Display) -> CniError {
        CniError::new(
            code::PLUGIN,
            format!("the IPAM plug-in {} printed no result: {error}", self.name),
        )
    }
}

fn is_program(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

/// A program that is being replaced cannot be run for a moment.
fn start(command: &mut Command) -> io::Result<Child> {
    for _ in 0..5 {
        match command.spawn() {
            Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy => {
                thread::sleep(Duration::from_millis(200));
            }
            other => return other,
        }
    }
    command.spawn()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plugin(directory: &Path, script: &str) -> String {
        let program = directory.join("other");
        fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        directory.to_string_lossy().into_owned()
    }

    #[test]
    fn a_plugin_is_found_by_its_name_in_the_path_only() {
        let directory = tempfile::tempdir().unwrap();
        let path = plugin(directory.path(), "");
        fs::write(directory.path().join("data"), "").unwrap();
        assert!(Delegate::find("other", &format!("/nonexistent::{path}"), b"").is_ok());
        for (name, path) in [
            ("none", path.as_str()),
            ("data", &path),
            ("other", ""),
            ("../other", &path),
            ("..", &path),
        ] {
            Delegate::find(name, path, b"").unwrap_err();
        }
    }

    #[test]
    fn its_errors_are_ours_and_a_failed_add_is_deleted() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("log");
        let script = format!(
            "echo $CNI_COMMAND >>{}; cat >&2; [ $CNI_COMMAND = DEL ] && exit 0\n\
             echo '{{\"code\":7,\"msg\":\"no range\",\"details\":\"d\"}}'; exit 1",
            log.display()
        );
        let path = plugin(directory.path(), &script);
        let error = Delegate::find("other", &path, b"{}").unwrap().add().unwrap_err();
        assert_eq!(
            (error.code, error.msg.as_str(), error.details.as_str()),
            (7, "no range", "d")
        );
        assert_eq!(fs::read_to_string(log).unwrap(), "ADD\nDEL\n");
    }

    #[test]
    fn what_is_not_understood_is_quoted() {
        let directory = tempfile::tempdir().unwrap();
        let path = plugin(directory.path(), "echo out of order; exit 3");
        let error = Delegate::find("other", &path, b"{}")
            .unwrap()
            .call(Verb::Check)
            .unwrap_err();
        assert_eq!((error.code, error.details.as_str()), (100, "out of order"));
        let path = plugin(directory.path(), "echo done");
        let error = Delegate::find("other", &path, b"{}").unwrap().add().unwrap_err();
        assert!(error.msg.contains("printed no result"), "{}", error.msg);
    }
}
