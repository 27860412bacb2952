//! The object file of the kernel programs: one call of cargo with the compiler and linker that fit.
//!
//! aya-build serves only a rustup toolchain; Debian's compiler with its sources is the second route here, so the call is
//! this module's own. Installs nothing and repairs nothing: that is `cargo xtask setup`.

mod command;
mod lean;
mod probe;
mod select;

use std::{
    env,
    ffi::OsString,
    fmt, fs, io,
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
};

use command::{PROFILE, target_dir};
pub use command::{SYSTEM_CLIPPY, Target, Verb, cargo};
pub use probe::{SYSTEM_RUSTC, linker_dir, probe};
pub use select::{Compiler, Found, Gap, Linker, Refusal, Route, Toolchain, select};

/// The bpf-linker that is used, exactly: its output is what the verifier sees.
pub const LINKER_VERSION: &str = "0.13.0";

/// A package of kernel programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Programs {
    /// The package.
    pub package: &'static str,
    /// The object's name in the target directory: the `[[bin]]` of the package.
    object: &'static str,
    /// The files the object is made of, from the root of the workspace.
    inputs: &'static [&'static str],
}

/// What Causeway is made of.
pub const CAUSEWAY: Programs = Programs {
    package: "causeway-ebpf",
    object: "causeway",
    inputs: &[
        "ebpf",
        "common/src",
        "common/Cargo.toml",
        "Cargo.toml",
        "Cargo.lock",
    ],
};

/// The same programs for IPv6, with their parts that differ.
pub const CAUSEWAY_IPV6: Programs = Programs {
    object: "causeway6",
    ..CAUSEWAY
};

/// What the bench sends, counts and compares with.
pub const BENCH: Programs = Programs {
    package: "causeway-bench-ebpf",
    object: "causeway-bench-programs",
    inputs: &["bench/ebpf", "Cargo.toml", "Cargo.lock"],
};

/// Every package of kernel programs: none of them compiles for the host.
pub const ALL: [Programs; 2] = [CAUSEWAY, BENCH];

/// `1` adds aya-log to every program.
const LOG_VARIABLE: &str = "CAUSEWAY_EBPF_LOG";

/// What becomes of the compiler's messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// Straight to the terminal.
    Shown,
    /// Kept, and part of the error when compiling fails.
    Kept,
}

/// Compiles the programs of the workspace at `root` and puts the object, without debug information, at `out`. Says
/// which toolchain did it.
///
/// Reads `CAUSEWAY_EBPF_LOG`: `1` adds the feature `log` (aya-log in every program, for debugging).
pub fn build(programs: &Programs, root: &Path, out: &Path, output: Output) -> Result<Toolchain, BuildError> {
    // One spelling of the path for every caller: the linker's is part of the flags, and other flags compile all anew.
    let root = &fs::canonicalize(root).map_err(|source| BuildError::Root {
        root: root.to_owned(),
        source,
    })?;
    let toolchain = select(&probe(root)).map_err(BuildError::NoToolchain)?;
    let target = Target::of_this_build();
    let mut command = cargo(programs, &toolchain, &target, root, Verb::Build);
    if programs.package == CAUSEWAY.package && env::var_os(LOG_VARIABLE).is_some_and(|value| value == "1") {
        command.args(["--features", "log"]);
    }
    run(programs, command, output)?;
    let object = target_dir(root)
        .join(target.triple())
        .join(PROFILE)
        .join(programs.object);
    let put = |source| BuildError::Copy {
        from: object.clone(),
        to: out.to_owned(),
        source,
    };
    let bytes = fs::read(&object).map_err(put)?;
    let bytes = lean::without_debug_information(&bytes).map_err(|source| BuildError::Lean {
        object: object.clone(),
        source,
    })?;
    fs::write(out, bytes).map_err(put)?;
    Ok(toolchain)
}

/// [`build`] as a build script does it: the object at `out`, and on standard output what cargo has to know.
#[expect(
    clippy::print_stdout,
    reason = "standard output is how a build script talks to cargo"
)]
pub fn build_from_script(programs: &Programs, root: &Path, out: &Path) {
    for input in programs.inputs {
        println!("cargo::rerun-if-changed={}", root.join(input).display());
    }
    println!("cargo::rerun-if-env-changed={LOG_VARIABLE}");
    match build(programs, root, out, Output::Kept) {
        Ok(toolchain) => {
            println!("cargo::rerun-if-changed={}", toolchain.linker.display());
            if toolchain.route == Route::System {
                println!("cargo::rerun-if-changed={SYSTEM_RUSTC}");
            }
        }
        Err(error) => {
            for line in error.to_string().lines() {
                println!("cargo::error={line}");
            }
        }
    }
}

fn run(programs: &Programs, mut command: Command, output: Output) -> Result<(), BuildError> {
    if output == Output::Kept {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
    }
    let program = command.get_program().to_owned();
    let result = command
        .stdin(Stdio::null())
        .spawn()
        .and_then(std::process::Child::wait_with_output)
        .map_err(|source| BuildError::Start { program, source })?;
    if result.status.success() {
        return Ok(());
    }
    let messages = String::from_utf8_lossy(&result.stderr).into_owned();
    Err(BuildError::Compile {
        package: programs.package,
        status: result.status,
        messages,
    })
}

/// Why there is no object.
#[derive(Debug)]
pub enum BuildError {
    /// There is no workspace where it was said to be.
    Root {
        /// The directory.
        root: PathBuf,
        /// Why it cannot be used.
        source: io::Error,
    },
    /// No compiler and linker on this machine fit.
    NoToolchain(Refusal),
    /// Cargo could not be started.
    Start {
        /// The program that was to run.
        program: OsString,
        /// Why it did not.
        source: io::Error,
    },
    /// The programs did not compile or link.
    Compile {
        /// The package.
        package: &'static str,
        /// How cargo ended.
        status: ExitStatus,
        /// What it said; empty when that went to the terminal.
        messages: String,
    },
    /// The object is not one that debug information can be taken out of.
    Lean {
        /// What the linker made.
        object: PathBuf,
        /// What is wrong with it.
        source: object::build::Error,
    },
    /// The object could not be put where it was wanted.
    Copy {
        /// Where cargo left it.
        from: PathBuf,
        /// Where it was to go.
        to: PathBuf,
        /// Why it did not.
        source: io::Error,
    },
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root { root, source } => write!(f, "no workspace at {}: {source}", root.display()),
            Self::NoToolchain(refusal) => refusal.fmt(f),
            Self::Start { program, source } => {
                write!(
                    f,
                    "cannot start {} to compile the kernel programs: {source}",
                    program.display()
                )
            }
            Self::Compile {
                package,
                status,
                messages,
            } => {
                write!(
                    f,
                    "{messages}the kernel programs ({package}) did not compile: cargo ended with {status}"
                )
            }
            Self::Lean { object, source } => {
                write!(
                    f,
                    "cannot take the debug information out of {}: {source}",
                    object.display()
                )
            }
            Self::Copy { from, to, source } => {
                write!(
                    f,
                    "cannot copy the kernel programs from {} to {}: {source}",
                    from.display(),
                    to.display()
                )
            }
        }
    }
}

impl std::error::Error for BuildError {}
