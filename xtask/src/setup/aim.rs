//! Which compiler set-up goes for: pure, so that every machine can be tested on this one.

use std::{ops::RangeInclusive, path::PathBuf};

use anyhow::Result;
use xtask::ebpf_object::{Found, Route, select};

/// The majors of LLVM this release of bpf-linker can be built with (its features `llvm-N`).
pub(super) const LINKER_LLVMS: RangeInclusive<u32> = 21..=23;

/// The first route that is ready, else the first that lacks nothing but a linker that `reachable` says can be had.
pub(super) fn decide(found: &Found, reachable: impl Fn(u32) -> Result<bool>) -> Result<Option<Aim>> {
    if let Ok(toolchain) = select(found) {
        let linker = Some(toolchain.linker);
        return Ok(Some(Aim {
            route: toolchain.route,
            release: toolchain.release,
            llvm: toolchain.llvm,
            linker,
        }));
    }
    for (route, compiler) in [(Route::Nightly, &found.nightly), (Route::System, &found.system)] {
        if let Ok(compiler) = compiler
            && LINKER_LLVMS.contains(&compiler.llvm)
            && reachable(compiler.llvm)?
        {
            let release = compiler.release.clone();
            return Ok(Some(Aim {
                route,
                release,
                llvm: compiler.llvm,
                linker: None,
            }));
        }
    }
    Ok(None)
}

/// The compiler that is taken, and whether its linker is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Aim {
    pub(super) route: Route,
    pub(super) release: String,
    pub(super) llvm: u32,
    /// A bpf-linker that fits and is there.
    pub(super) linker: Option<PathBuf>,
}

#[cfg(test)]
mod tests {
    use xtask::ebpf_object::{Compiler, Gap, LINKER_VERSION, Linker};

    use super::*;

    fn compiler(llvm: u32) -> Compiler {
        Compiler {
            release: format!("1.9{llvm}.0"),
            llvm,
        }
    }

    fn found(nightly: Result<Compiler, Gap>, system: Result<Compiler, Gap>, linkers: &[u32]) -> Found {
        let linkers = linkers
            .iter()
            .map(|&llvm| Linker {
                path: "/l".into(),
                version: LINKER_VERSION.to_owned(),
                llvm: Some(llvm),
            })
            .collect();
        Found {
            nightly,
            system,
            linkers,
        }
    }

    fn decided(found: &Found, reachable: &[u32]) -> Option<(Route, u32, bool)> {
        let aim = decide(found, |llvm| Ok(reachable.contains(&llvm))).unwrap()?;
        Some((aim.route, aim.llvm, aim.linker.is_some()))
    }

    #[test]
    fn what_is_ready_is_taken_before_what_would_have_to_be_installed() {
        let machine = found(Ok(compiler(23)), Ok(compiler(22)), &[22]);
        assert_eq!(decided(&machine, &[22, 23]), Some((Route::System, 22, true)));
    }

    #[test]
    fn nightly_is_taken_when_its_llvm_can_be_had() {
        let machine = found(Ok(compiler(23)), Ok(compiler(22)), &[]);
        assert_eq!(decided(&machine, &[22, 23]), Some((Route::Nightly, 23, false)));
        assert_eq!(decided(&machine, &[22]), Some((Route::System, 22, false)));
    }

    #[test]
    fn an_llvm_the_pinned_linker_does_not_know_is_no_way() {
        let machine = found(Ok(compiler(24)), Err(Gap::NotInstalled), &[]);
        assert_eq!(decided(&machine, &[24]), None);
    }
}
