//! `causeway completion` and `causeway man`: what a shell and a reader need besides the program.

use std::{
    fs,
    io::{self, Write as _},
    path::Path,
};

use clap::{Command, ValueEnum};

use super::Failure;

/// A shell that completes words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Shell {
    Bash,
    Zsh,
    Fish,
}

/// Writes the shell's script to standard output.
pub(crate) fn complete(command: &mut Command, shell: Shell) -> Result<(), Failure> {
    let generator = match shell {
        Shell::Bash => clap_complete::Shell::Bash,
        Shell::Zsh => clap_complete::Shell::Zsh,
        Shell::Fish => clap_complete::Shell::Fish,
    };
    let mut script = Vec::new();
    let name = command.get_name().to_owned();
    clap_complete::generate(generator, command, name, &mut script);
    io::stdout().write_all(&script).map_err(Failure::Output)
}

/// Writes a page for the command and one for each of its commands.
pub(crate) fn manual(command: Command, directory: &Path) -> Result<(), Failure> {
    let failed = |source| Failure::File {
        path: directory.to_owned(),
        source,
    };
    fs::create_dir_all(directory).map_err(failed)?;
    clap_mangen::generate_to(command, directory).map_err(failed)
}
