//! The facts [`super::select`] decides on: asks the compilers and linkers of this machine what they are.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use super::{
    LINKER_VERSION,
    select::{Compiler, Found, Gap, Linker},
};

/// The distribution's compiler. By path: a rustup proxy of the same name usually comes first in PATH.
pub const SYSTEM_RUSTC: &str = "/usr/bin/rustc";

/// The workspace's `rust-version`.
pub(super) const OLDEST_RUST: &str = env!("CARGO_PKG_RUST_VERSION");

/// Asks this machine. `root` is the workspace, below which the cached linkers are.
pub fn probe(root: &Path) -> Found {
    Found {
        nightly: compiler("rustup", &["run", "nightly", "rustc"]),
        system: compiler(SYSTEM_RUSTC, &[]),
        linkers: linkers(root),
    }
}

/// Where `cargo xtask setup` installs the linker for a major number of LLVM (`cargo install --root`).
pub fn linker_dir(root: &Path, llvm: u32) -> PathBuf {
    cache(root).join(format!("{}{llvm}", cached_prefix()))
}

fn compiler(program: &str, before: &[&str]) -> Result<Compiler, Gap> {
    let ask = |argument: &str| {
        let output = Command::new(program)
            .args(before)
            .arg(argument)
            .env_remove("RUSTUP_TOOLCHAIN")
            .env("RUSTUP_AUTO_INSTALL", "0")
            .output()
            .ok()?;
        output
            .status
            .success()
            .then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let said = ask("-vV").ok_or(Gap::NotInstalled)?;
    let compiler = read_version(&said).ok_or(Gap::Unreadable { said })?;
    let release = compiler.release.clone();
    if !is_recent(&release, OLDEST_RUST) {
        return Err(Gap::TooOld { release });
    }
    let sysroot = ask("--print=sysroot").ok_or(Gap::NotInstalled)?;
    let core = Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core/src/lib.rs");
    if core.exists() {
        Ok(compiler)
    } else {
        Err(Gap::NoSource { release })
    }
}

/// Reads `rustc -vV`.
fn read_version(said: &str) -> Option<Compiler> {
    let field = |name: &str| {
        said.lines()
            .find_map(|line| line.strip_prefix(name))
            .map(str::trim)
    };
    let llvm = field("LLVM version:")?.split('.').next()?.parse().ok()?;
    Some(Compiler {
        release: field("release:")?.to_owned(),
        llvm,
    })
}

/// Whether `release` (`1.97.0-nightly`) is `oldest` (`1.95`) or later.
fn is_recent(release: &str, oldest: &str) -> bool {
    let numbers = |text: &str| -> Vec<u32> {
        let plain = text.split('-').next().unwrap_or_default();
        plain.split('.').map_while(|part| part.parse().ok()).collect()
    };
    numbers(release) >= numbers(oldest)
}

fn linkers(root: &Path) -> Vec<Linker> {
    let mut found = Vec::new();
    for entry in fs::read_dir(cache(root)).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let llvm = name
            .to_str()
            .and_then(|name| name.strip_prefix(&cached_prefix())?.parse().ok());
        if let Some(llvm) = llvm {
            found.extend(linker(entry.path().join("bin/bpf-linker"), Some(llvm)));
        }
    }
    let path = env::var_os("PATH").unwrap_or_default();
    for directory in env::split_paths(&path) {
        let program = directory.join("bpf-linker");
        if program.is_file() {
            let llvm = llvm_of(&program);
            found.extend(linker(program, llvm));
        }
    }
    found
}

/// `None` when it does not run, for instance because its libLLVM is gone.
fn linker(path: PathBuf, llvm: Option<u32>) -> Option<Linker> {
    let output = Command::new(&path).arg("--version").output().ok()?;
    let said = String::from_utf8_lossy(&output.stdout);
    let version = said.trim().strip_prefix("bpf-linker ")?.to_owned();
    output.status.success().then_some(Linker { path, version, llvm })
}

/// The major number in the name of the shared libLLVM a program is linked with.
fn llvm_of(program: &Path) -> Option<u32> {
    const SONAME: &[u8] = b"libLLVM.so.";
    // One with LLVM inside has more than this, and names no shared library.
    const LARGEST_DYNAMIC: u64 = 32 << 20;
    if fs::metadata(program).ok()?.len() > LARGEST_DYNAMIC {
        return None;
    }
    let bytes = fs::read(program).ok()?;
    let at = bytes.windows(SONAME.len()).position(|window| window == SONAME)?;
    let digits: String = bytes[at + SONAME.len()..]
        .iter()
        .take_while(|byte| byte.is_ascii_digit())
        .map(|&byte| char::from(byte))
        .collect();
    digits.parse().ok()
}

fn cache(root: &Path) -> PathBuf {
    root.join("target/cache")
}

fn cached_prefix() -> String {
    format!("bpf-linker-{LINKER_VERSION}-llvm")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn release_and_llvm_are_read_from_the_compiler() {
        let said = "rustc 1.96.0 (ac68faa20 2026-05-25) (built from a source tarball)\nbinary: rustc\nhost: \
                    x86_64-unknown-linux-gnu\nrelease: 1.96.0\nLLVM version: 22.1.8\n";
        assert_eq!(
            read_version(said),
            Some(Compiler {
                release: "1.96.0".to_owned(),
                llvm: 22
            })
        );
        assert_eq!(read_version("rustc 1.96.0\nrelease: 1.96.0\n"), None);
    }

    #[test]
    fn releases_are_compared_as_numbers() {
        for (release, recent) in [
            ("1.95.0", true),
            ("1.97.0-nightly", true),
            ("2.0.0", true),
            ("1.94.1", false),
            ("1.100.0", true),
        ] {
            assert_eq!(is_recent(release, "1.95"), recent, "{release}");
        }
    }

    #[test]
    fn a_compiler_that_is_not_there_is_not_installed() {
        assert_eq!(compiler("/nonexistent/rustc", &[]), Err(Gap::NotInstalled));
    }
}
