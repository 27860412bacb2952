//! The call of cargo that compiles, lints or documents the programs.

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
    process::Command,
};

use super::{
    Programs,
    probe::SYSTEM_RUSTC,
    select::{Route, Toolchain},
};

/// The profile that programs are compiled with (root Cargo.toml).
pub(super) const PROFILE: &str = "bpf";
/// What cargo is asked to do with the programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// Compile and link the object.
    Build,
    /// Lint. The caller adds lints after `--`.
    Clippy,
    /// Document.
    Doc,
}

impl Verb {
    fn name(self) -> &'static str {
        match self {
            Self::Build => "build",
            Self::Clippy => "clippy",
            Self::Doc => "doc",
        }
    }
}

/// The call of cargo that works on the programs, right under a terminal, in a build script and below clippy alike.
pub fn cargo(
    programs: &Programs,
    toolchain: &Toolchain,
    target: &Target,
    root: &Path,
    verb: Verb,
) -> Command {
    let mut command = match toolchain.route {
        Route::Nightly => {
            let mut command = Command::new("rustup");
            command.args(["run", "nightly", "cargo"]);
            command
        }
        Route::System if verb == Verb::Clippy => Command::new(SYSTEM_CLIPPY),
        Route::System => Command::new(host_cargo()),
    };
    command.arg(verb.name()).args([
        "--package",
        programs.package,
        "--target",
        target.triple(),
        "--profile",
        PROFILE,
        "-Z",
        "build-std=core",
    ]);
    command
        .arg("--target-dir")
        .arg(target_dir(root))
        .current_dir(root);
    // Left over from the cargo, the rustup or the clippy above; each of them would pick another compiler.
    for name in [
        "RUSTC",
        "RUSTDOC",
        "RUSTC_WORKSPACE_WRAPPER",
        "RUSTUP_TOOLCHAIN",
        "CLIPPY_ARGS",
        "RUSTFLAGS",
    ] {
        command.env_remove(name);
    }
    match toolchain.route {
        Route::Nightly => command.env_remove("CARGO").env_remove("RUSTC_BOOTSTRAP"),
        Route::System => command
            .env("CARGO", host_cargo())
            .env("RUSTC", SYSTEM_RUSTC)
            .env("RUSTDOC", SYSTEM_RUSTDOC)
            .env("RUSTC_BOOTSTRAP", "1"),
    };
    command.env("CARGO_ENCODED_RUSTFLAGS", rustflags(toolchain, target));
    command
}

/// The `/usr/bin` clippy that belongs to [`SYSTEM_RUSTC`] (Debian: package rust-web-clippy).
pub const SYSTEM_CLIPPY: &str = "/usr/bin/cargo-clippy";
const SYSTEM_RUSTDOC: &str = "/usr/bin/rustdoc";

/// The flags aya-build 0.2 gives, and the linker: BTF is made from the debug information, and aya-ebpf reads
/// `bpf_target_arch` to know the registers of the machine it is loaded on.
///
/// Copying in order is turned off: with it LLVM calls a function with a loop for every few zeros that are written, which
/// the verifier walks each time (a tenth of all that it looks at).
fn rustflags(toolchain: &Toolchain, target: &Target) -> OsString {
    let mut linker = OsString::from("-Clinker=");
    linker.push(&toolchain.linker);
    let flags: [OsString; 5] = [
        format!("--cfg=bpf_target_arch=\"{}\"", target.arch).into(),
        "-Cdebuginfo=2".into(),
        "-Clink-arg=--btf".into(),
        "-Clink-arg=--disable-expand-memcpy-in-order".into(),
        linker,
    ];
    flags.join("\x1f".as_ref())
}

/// The cargo that runs us, not a rustup proxy that would decide anew.
fn host_cargo() -> OsString {
    env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

/// A directory of its own: cargo locks the one it builds in, and a build script runs below such a cargo.
pub(super) fn target_dir(root: &Path) -> PathBuf {
    root.join("target/ebpf")
}

/// The machine the programs are loaded on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// As rustc names it, e.g. `x86_64`.
    pub arch: String,
    /// Byte order of that machine, which BPF follows.
    pub big_endian: bool,
}

impl Target {
    /// What cargo compiles for when this runs in a build script, this machine otherwise.
    pub fn of_this_build() -> Self {
        let arch = env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_else(|_| env::consts::ARCH.to_owned());
        let big_endian =
            env::var("CARGO_CFG_TARGET_ENDIAN").map_or(cfg!(target_endian = "big"), |endian| endian == "big");
        // aya-ebpf knows one name for all of them.
        let arch = if arch.starts_with("riscv64") {
            "riscv64".to_owned()
        } else {
            arch
        };
        Self { arch, big_endian }
    }

    /// The compiler's name of the BPF machine.
    pub fn triple(&self) -> &'static str {
        if self.big_endian {
            "bpfeb-unknown-none"
        } else {
            "bpfel-unknown-none"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::CAUSEWAY, *};

    fn toolchain(route: Route) -> Toolchain {
        Toolchain {
            route,
            release: "1.96.0".to_owned(),
            llvm: 22,
            linker: "/cache/bpf-linker".into(),
        }
    }

    fn x86() -> Target {
        Target {
            arch: "x86_64".to_owned(),
            big_endian: false,
        }
    }

    fn words(command: &Command) -> String {
        let words: Vec<_> = std::iter::once(command.get_program())
            .chain(command.get_args())
            .map(|word| word.to_string_lossy())
            .collect();
        words.join(" ")
    }

    fn is_removed(command: &Command, name: &str) -> bool {
        command
            .get_envs()
            .any(|(key, value)| key == name && value.is_none())
    }

    fn variable(command: &Command, name: &str) -> Option<String> {
        let (_, value) = command.get_envs().find(|(key, _)| *key == name)?;
        value.map(|value| value.to_string_lossy().into_owned())
    }

    fn command(route: Route, verb: Verb) -> Command {
        cargo(&CAUSEWAY, &toolchain(route), &x86(), Path::new("/w"), verb)
    }

    #[test]
    fn nightly_runs_through_rustup_without_what_the_outer_cargo_left() {
        let command = command(Route::Nightly, Verb::Build);
        assert_eq!(
            words(&command),
            "rustup run nightly cargo build --package causeway-ebpf --target bpfel-unknown-none --profile bpf -Z build-std=core \
             --target-dir /w/target/ebpf"
        );
        assert_eq!(command.get_current_dir(), Some(Path::new("/w")));
        for name in [
            "CARGO",
            "RUSTC",
            "RUSTC_BOOTSTRAP",
            "RUSTC_WORKSPACE_WRAPPER",
            "RUSTUP_TOOLCHAIN",
        ] {
            assert!(is_removed(&command, name), "{name}");
        }
    }

    #[test]
    fn the_system_compiler_is_told_to_accept_build_std() {
        let command = command(Route::System, Verb::Build);
        assert_eq!(variable(&command, "RUSTC").as_deref(), Some("/usr/bin/rustc"));
        assert_eq!(variable(&command, "RUSTC_BOOTSTRAP").as_deref(), Some("1"));
        assert!(is_removed(&command, "RUSTC_WORKSPACE_WRAPPER"));
        assert!(is_removed(&command, "RUSTUP_TOOLCHAIN"));
    }

    #[test]
    fn each_route_lints_with_the_clippy_of_its_compiler() {
        let nightly = command(Route::Nightly, Verb::Clippy);
        assert!(words(&nightly).starts_with("rustup run nightly cargo clippy --package causeway-ebpf"));
        let system = command(Route::System, Verb::Clippy);
        assert!(words(&system).starts_with("/usr/bin/cargo-clippy clippy --package causeway-ebpf"));
    }

    #[test]
    fn flags_make_btf_and_name_machine_and_linker() {
        let command = command(Route::System, Verb::Build);
        assert_eq!(
            variable(&command, "CARGO_ENCODED_RUSTFLAGS").as_deref(),
            Some(
                "--cfg=bpf_target_arch=\"x86_64\"\x1f-Cdebuginfo=2\x1f-Clink-arg=--btf\x1f-Clink-arg=--disable-expand-memcpy-in-order\x1f-Clinker=/cache/bpf-linker"
            )
        );
    }

    #[test]
    fn byte_order_of_the_machine_picks_the_bpf_target() {
        assert_eq!(
            Target {
                arch: "s390x".to_owned(),
                big_endian: true
            }
            .triple(),
            "bpfeb-unknown-none"
        );
        assert_eq!(x86().triple(), "bpfel-unknown-none");
    }
}
