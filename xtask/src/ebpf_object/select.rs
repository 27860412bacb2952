//! The choice of toolchain, from facts alone: pure, so that every machine can be tested on this one.

use std::{fmt, path::PathBuf};

use super::{LINKER_VERSION, SYSTEM_RUSTC};

/// Takes the first route whose compiler has the sources of `core` and a linker that reads its bitcode.
///
/// Nightly first: it is what the aya project itself tests with.
pub fn select(found: &Found) -> Result<Toolchain, Refusal> {
    let mut gaps = Vec::new();
    for (route, compiler) in [(Route::Nightly, &found.nightly), (Route::System, &found.system)] {
        match compiler {
            Err(gap) => gaps.push((route, gap.clone())),
            Ok(Compiler { release, llvm }) => {
                let (release, llvm) = (release.clone(), *llvm);
                if let Some(linker) = linker_for(llvm, &found.linkers) {
                    return Ok(Toolchain {
                        route,
                        release,
                        llvm,
                        linker: linker.path.clone(),
                    });
                }
                gaps.push((
                    route,
                    Gap::NoLinker {
                        release,
                        llvm,
                        unfit: found.linkers.clone(),
                    },
                ));
            }
        }
    }
    Err(Refusal { gaps })
}

/// LLVM reads the bitcode of its own and of older major numbers, never of newer ones.
fn linker_for(llvm: u32, linkers: &[Linker]) -> Option<&Linker> {
    let pinned = || linkers.iter().filter(|linker| linker.version == LINKER_VERSION);
    pinned()
        .find(|linker| linker.llvm == Some(llvm))
        .or_else(|| pinned().find(|linker| linker.llvm.is_none_or(|own| own > llvm)))
}

/// Where the compiler comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// rustup's nightly with the component `rust-src`.
    Nightly,
    /// The distribution's compiler with its sources. Debian: rustc-web and rust-web-src.
    System,
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nightly => f.write_str("rustup's nightly"),
            Self::System => f.write_str(SYSTEM_RUSTC),
        }
    }
}

/// What [`super::probe`] found on a machine.
#[derive(Debug, Clone)]
pub struct Found {
    /// rustup's nightly, or why it does not serve.
    pub nightly: Result<Compiler, Gap>,
    /// The distribution's compiler, or why it does not serve.
    pub system: Result<Compiler, Gap>,
    /// Every bpf-linker that runs, ours first.
    pub linkers: Vec<Linker>,
}

/// A compiler that is new enough and has the sources of `core`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compiler {
    /// As `rustc -vV` gives it, e.g. `1.97.0-nightly`.
    pub release: String,
    /// Major number of the LLVM whose bitcode it writes.
    pub llvm: u32,
}

/// A bpf-linker that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Linker {
    /// The program.
    pub path: PathBuf,
    /// As it says itself.
    pub version: String,
    /// Major number of the LLVM inside; `None` when it cannot be told (statically linked).
    pub llvm: Option<u32>,
}

impl Linker {
    fn describe(&self) -> String {
        let llvm = self
            .llvm
            .map_or_else(|| "an unknown LLVM".to_owned(), |llvm| format!("LLVM {llvm}"));
        format!("; {} is {} with {llvm}", self.path.display(), self.version)
    }
}

/// What compiles and links the programs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Toolchain {
    /// Where the compiler comes from.
    pub route: Route,
    /// The compiler's release.
    pub release: String,
    /// Major number of its LLVM.
    pub llvm: u32,
    /// The bpf-linker.
    pub linker: PathBuf,
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            route,
            release,
            llvm,
            linker,
        } = self;
        write!(
            f,
            "{route} (rustc {release}, LLVM {llvm}) and bpf-linker {LINKER_VERSION} ({})",
            linker.display()
        )
    }
}

/// Why a route does not serve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Gap {
    /// There is no such compiler.
    NotInstalled,
    /// The compiler has no `library/core` to compile for the bpf target.
    NoSource {
        /// The compiler's release.
        release: String,
    },
    /// The compiler is older than the workspace's `rust-version`.
    TooOld {
        /// The compiler's release.
        release: String,
    },
    /// The compiler does not say what it is.
    Unreadable {
        /// What it said instead.
        said: String,
    },
    /// The compiler serves, the linker is missing.
    NoLinker {
        /// The compiler's release.
        release: String,
        /// Major number of LLVM the linker needs at least.
        llvm: u32,
        /// Those that are there and do not fit.
        unfit: Vec<Linker>,
    },
}

impl Gap {
    /// What is missing, and what to install, in one line.
    fn describe(&self, route: Route) -> String {
        let install = match route {
            Route::Nightly => "rustup toolchain install nightly --component rust-src",
            Route::System => "Debian: apt-get install rustc-web rust-web-src",
        };
        match self {
            Self::NotInstalled => format!("not installed ({install})"),
            Self::NoSource { release } => format!(
                "rustc {release} has no sources of `core`, which the bpf target is compiled from ({install})"
            ),
            Self::TooOld { release } => {
                format!(
                    "rustc {release} is older than {} ({install})",
                    super::probe::OLDEST_RUST
                )
            }
            Self::Unreadable { said } => format!("does not say its version: {said} ({install})"),
            Self::NoLinker { release, llvm, unfit } => {
                let unfit: String = unfit.iter().map(Linker::describe).collect();
                format!(
                    "rustc {release} is there, but no bpf-linker {LINKER_VERSION} for LLVM {llvm}, neither below \
                     target/cache nor in PATH{unfit}"
                )
            }
        }
    }
}

/// Why no route serves. Prints what is missing on each, and the command that installs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// One gap a route.
    pub gaps: Vec<(Route, Gap)>,
}

impl Refusal {
    /// A line for each route: what it lacks.
    pub fn reasons(&self) -> Vec<String> {
        self.gaps
            .iter()
            .map(|(route, gap)| format!("{route}: {}", gap.describe(*route)))
            .collect()
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "no toolchain on this machine can compile the kernel programs (ebpf/). One of these is enough:"
        )?;
        for reason in self.reasons() {
            writeln!(f, "  {reason}")?;
        }
        f.write_str(
            "Run `cargo xtask setup` as root: it installs what is missing, or says what to install by hand.",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compiler(llvm: u32) -> Compiler {
        Compiler {
            release: "1.96.0".to_owned(),
            llvm,
        }
    }

    fn linker(path: &str, version: &str, llvm: Option<u32>) -> Linker {
        Linker {
            path: path.into(),
            version: version.to_owned(),
            llvm,
        }
    }

    fn pinned(path: &str, llvm: Option<u32>) -> Linker {
        linker(path, LINKER_VERSION, llvm)
    }

    #[test]
    fn nightly_with_source_comes_before_the_system() {
        let found = Found {
            nightly: Ok(compiler(23)),
            system: Ok(compiler(22)),
            linkers: vec![pinned("/l", Some(23))],
        };
        let chosen = select(&found).unwrap();
        assert_eq!((chosen.route, chosen.llvm), (Route::Nightly, 23));
    }

    #[test]
    fn nightly_without_source_gives_way_to_the_system() {
        let gap = Gap::NoSource {
            release: "1.97.0-nightly".to_owned(),
        };
        let found = Found {
            nightly: Err(gap),
            system: Ok(compiler(22)),
            linkers: vec![pinned("/l", Some(22))],
        };
        assert_eq!(select(&found).unwrap().route, Route::System);
    }

    #[test]
    fn nightly_whose_llvm_no_linker_reads_gives_way_to_the_system() {
        let found = Found {
            nightly: Ok(compiler(23)),
            system: Ok(compiler(22)),
            linkers: vec![pinned("/l", Some(22))],
        };
        assert_eq!(select(&found).unwrap().route, Route::System);
    }

    #[test]
    fn the_linker_with_the_same_llvm_is_preferred() {
        let linkers = vec![
            pinned("/newer", Some(23)),
            pinned("/unknown", None),
            pinned("/same", Some(22)),
        ];
        let found = Found {
            nightly: Err(Gap::NotInstalled),
            system: Ok(compiler(22)),
            linkers,
        };
        assert_eq!(select(&found).unwrap().linker, PathBuf::from("/same"));
    }

    #[test]
    fn a_linker_of_another_version_or_an_older_llvm_is_refused_by_name() {
        let linkers = vec![linker("/old", "0.9.1", Some(22)), pinned("/llvm21", Some(21))];
        let found = Found {
            nightly: Err(Gap::NotInstalled),
            system: Ok(compiler(22)),
            linkers,
        };
        let text = select(&found).unwrap_err().to_string();
        assert!(text.contains("/old is 0.9.1 with LLVM 22"), "{text}");
        assert!(text.contains("/llvm21 is 0.13.0 with LLVM 21"), "{text}");
        assert!(text.contains("bpf-linker 0.13.0 for LLVM 22"), "{text}");
    }

    #[test]
    fn a_refusal_names_each_gap_and_the_command() {
        let found = Found {
            nightly: Err(Gap::NoSource {
                release: "1.97.0-nightly".to_owned(),
            }),
            system: Err(Gap::NotInstalled),
            linkers: Vec::new(),
        };
        let text = select(&found).unwrap_err().to_string();
        assert!(
            text.contains("rustc 1.97.0-nightly has no sources of `core`"),
            "{text}"
        );
        assert!(
            text.contains("/usr/bin/rustc: not installed (Debian: apt-get install rustc-web rust-web-src)")
        );
        assert!(text.contains("`cargo xtask setup`"), "{text}");
    }
}
