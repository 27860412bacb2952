//! Completions and manual pages, judged by the shells and the formatter that read them.

use std::{collections::BTreeSet, fs, process::Command};

use anyhow::{Context, Result, ensure};
use causeway_tests::{dist::Dist, netns::stdout_of};
use tempfile::TempDir;

/// The names of the commands, by the help.
fn commands(dist: &Dist) -> Result<BTreeSet<String>> {
    let help = stdout_of(Command::new(dist.cli()).arg("--help").output(), || {
        "--help".to_owned()
    })?;
    let list = help.split("Commands:").nth(1).context("no list of commands")?;
    let list = list.split("Options:").next().unwrap_or_default();
    let names = list
        .lines()
        .filter_map(|line| line.strip_prefix("  ")?.split(' ').next());
    let names: BTreeSet<String> = names.filter(|name| !name.is_empty()).map(str::to_owned).collect();
    ensure!(names.len() > 10, "{help}");
    Ok(names)
}

#[test]
fn bash_completes_commands_and_every_shell_knows_them_all() -> Result<()> {
    let (dist, directory) = (Dist::from_env()?, TempDir::new()?);
    for shell in ["bash", "zsh", "fish"] {
        let output = Command::new(dist.cli()).args(["completion", shell]).output();
        let script = stdout_of(output, || shell.to_owned())?;
        for command in commands(&dist)? {
            ensure!(script.contains(&command), "{shell}: {command}");
        }
        fs::write(directory.path().join(shell), script)?;
    }
    let ask = "source \"$0\"; COMP_WORDS=(causeway doc); COMP_CWORD=1; _causeway causeway doc causeway; echo ${COMPREPLY[@]}";
    let output = Command::new("bash")
        .args(["--norc", "-c", ask])
        .arg(directory.path().join("bash"))
        .output();
    let words = stdout_of(output, || "bash".to_owned())?;
    ensure!(words.trim() == "doctor", "{words}");
    Ok(())
}

#[test]
fn every_command_has_a_page_that_formats_without_a_warning() -> Result<()> {
    let (dist, directory) = (Dist::from_env()?, TempDir::new()?);
    let output = Command::new(dist.cli()).arg("man").arg(directory.path()).output();
    stdout_of(output, || "man".to_owned())?;
    let mut names = commands(&dist)?;
    names.remove("help");
    for name in names {
        let path = directory.path().join(format!("causeway-{name}.1"));
        let page = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        ensure!(page.contains(".TH ") && page.contains(".SH SYNOPSIS"), "{page}");
        let output = Command::new("groff")
            .args(["-man", "-ww", "-Tutf8"])
            .arg(&path)
            .output()?;
        let warnings = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success() && warnings.is_empty(),
            "{name}: {warnings}"
        );
        let text = String::from_utf8_lossy(&output.stdout).to_lowercase();
        ensure!(text.contains(&name), "{name}: {text}");
    }
    Ok(())
}
