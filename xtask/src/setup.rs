//! What the other verbs need from the machine: found, or installed, or named.
//!
//! Installs through apt and cargo only; touches neither rustup's toolchains nor anything it did not put there.

mod aim;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use aim::{Aim, LINKER_LLVMS, decide};
use anyhow::{Context as _, Result, bail};
use xtask::ebpf_object::{Found, Gap, LINKER_VERSION, Route, SYSTEM_CLIPPY, linker_dir, probe, select};

use crate::{
    apt::Apt,
    emulator::{self, Emulator},
    progress::Step,
    workspace::{Workspace, cargo_program, find_program, require_root},
};

/// One thing that is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    /// A compiler with the sources of `core`.
    Compiler,
    /// The LLVM the linker is built with.
    Llvm,
    /// bpf-linker.
    Linker,
    /// A clippy that belongs to the compiler.
    Lints,
    /// The programs tests and demo call.
    Tools,
    /// What boots other kernels.
    Emulator,
    /// bpffs.
    Bpffs,
}

pub(crate) const BUILD: &[Need] = &[Need::Compiler, Need::Llvm, Need::Linker];
pub(crate) const CHECK: &[Need] = &[Need::Compiler, Need::Llvm, Need::Linker, Need::Lints];
pub(crate) const RUN: &[Need] = &[Need::Compiler, Need::Llvm, Need::Linker, Need::Tools, Need::Bpffs];
pub(crate) const TEST: &[Need] = &[
    Need::Compiler,
    Need::Llvm,
    Need::Linker,
    Need::Tools,
    Need::Emulator,
    Need::Bpffs,
];
pub(crate) const ALL: &[Need] = &[
    Need::Compiler,
    Need::Llvm,
    Need::Linker,
    Need::Lints,
    Need::Tools,
    Need::Emulator,
    Need::Bpffs,
];

/// Programs that tests and demo call, and the Debian package of each.
const TOOLS: &[(&str, &str)] = &[
    ("ip", "iproute2"),
    ("tc", "iproute2"),
    ("iptables", "iptables"),
    ("bpftool", "bpftool"),
    ("ethtool", "ethtool"),
    ("tcpdump", "tcpdump"),
    ("conntrack", "conntrack"),
    ("ping", "iputils-ping"),
    ("nft", "nftables"),
    ("sysctl", "procps"),
    ("unshare", "util-linux"),
    ("mount", "mount"),
    ("tar", "tar"),
    ("jq", "jq"),
    ("strace", "strace"),
    ("busybox", "busybox-static"),
    ("runc", "runc"),
    ("containerd", "containerd"),
    ("ctr", "containerd"),
    ("podman", "podman"),
    ("/usr/lib/cni/portmap", "containernetworking-plugins"),
];

/// Programs with which other kernels are unpacked.
const UNPACKERS: [(&str, &str); 2] = [("busybox", "busybox-static"), ("xz", "xz-utils")];

/// Programs that tests call on other kernels, where there is nothing but what is put there.
pub(crate) const GUEST_TOOLS: &[&str] = &[
    "ip",
    "tc",
    "bridge",
    "iptables",
    "iptables-save",
    "iptables-restore",
    "iptables-legacy",
    "iptables-legacy-save",
    "iptables-nft",
    "iptables-nft-save",
    "ip6tables",
    "ip6tables-save",
    "ebtables",
    "ebtables-save",
    "nft",
    "conntrack",
    "bpftool",
    "ethtool",
    "tcpdump",
    "ping",
    "sysctl",
    "unshare",
    "nsenter",
    "setpriv",
    "capsh",
    "mount",
    "umount",
    "strace",
    "jq",
    "tar",
    "bash",
];

const BPFFS: &str = "/sys/fs/bpf";

/// Sees to each need, a line for each.
pub(crate) fn setup(workspace: &Workspace, needs: &[Need]) -> Result<()> {
    let log = workspace.root.join("target/cache/setup.log");
    let mut setup = Setup {
        workspace,
        apt: Apt::find(),
        found: probe(&workspace.root),
        aim: None,
    };
    for (index, need) in needs.iter().enumerate() {
        let step = |name: &str| Step::start(index + 1, needs.len(), name, &log);
        match need {
            Need::Compiler => setup.compiler(step("eBPF compiler")),
            Need::Llvm => setup.llvm(step("LLVM for the linker")),
            Need::Linker => setup.linker(step("bpf-linker")),
            Need::Lints => setup.lints(step("eBPF lints")),
            Need::Tools => setup.tools(
                TOOLS,
                "which tests and demo call",
                step("tools for tests and demo"),
            ),
            Need::Emulator => setup.emulator(step("other kernels")),
            Need::Bpffs => bpffs(step("bpffs")),
        }?;
    }
    Ok(())
}

struct Setup<'a> {
    workspace: &'a Workspace,
    apt: Option<Apt>,
    found: Found,
    /// Decided by the first step.
    aim: Option<Aim>,
}

impl Setup<'_> {
    fn compiler(&mut self, step: Step) -> Result<()> {
        if let Some(aim) = self.decide(&step)? {
            step.already(&format!(
                "{} (rustc {}, LLVM {})",
                aim.route, aim.release, aim.llvm
            ));
            self.aim = Some(aim);
            return Ok(());
        }
        let packages: &[&str] = match &self.found.system {
            Err(Gap::NoSource { .. }) => &["rust-web-src"],
            _ => &["rustc-web", "rust-web-src"],
        };
        let apt = self.apt.as_ref().with_context(|| by_hand(&self.found))?;
        let why = "they compile the kernel programs";
        // Lists that are out of date may hold a compiler that is too old.
        loop {
            apt.install(packages, why, &step)
                .with_context(|| by_hand(&self.found))?;
            self.found = probe(&self.workspace.root);
            if !matches!(self.found.system, Err(Gap::TooOld { .. })) || !apt.refresh(&step)? {
                break;
            }
        }
        let aim = self.decide(&step)?.with_context(|| by_hand(&self.found))?;
        step.done(&format!(
            "{} (rustc {}, LLVM {})",
            aim.route, aim.release, aim.llvm
        ));
        self.aim = Some(aim);
        Ok(())
    }

    /// The compiler to go on with, when one is there whose linker is there or can be had.
    fn decide(&self, step: &Step) -> Result<Option<Aim>> {
        decide(&self.found, |llvm| match &self.apt {
            _ if llvm_prefix(llvm).is_some() => Ok(true),
            Some(apt) => apt.has(&format!("llvm-{llvm}-dev"), step),
            // The step that needs it says what to install.
            None => Ok(true),
        })
    }

    fn llvm(&self, step: Step) -> Result<()> {
        let aim = self.aim.as_ref().context("no compiler has been decided on")?;
        if aim.linker.is_some() || llvm_prefix(aim.llvm).is_some() {
            step.already(&format!("LLVM {}", aim.llvm));
            return Ok(());
        }
        let package = format!("llvm-{}-dev", aim.llvm);
        let why = format!(
            "bpf-linker is linked with libLLVM {}, the compiler's own",
            aim.llvm
        );
        let Some(apt) = &self.apt else {
            bail!(
                "install libLLVM {0} with its development files so that /usr/lib/llvm-{0}/lib/libLLVM.so is there ({why}), \
                 or put a bpf-linker {LINKER_VERSION} in PATH",
                aim.llvm
            );
        };
        apt.install(&[&package], &why, &step)?;
        step.done(&package);
        Ok(())
    }

    fn linker(&self, step: Step) -> Result<()> {
        let aim = self.aim.as_ref().context("no compiler has been decided on")?;
        if let Some(linker) = &aim.linker {
            step.already(&format!(
                "{LINKER_VERSION} for LLVM {} ({})",
                aim.llvm,
                linker.display()
            ));
            return Ok(());
        }
        let prefix = llvm_prefix(aim.llvm).with_context(|| format!("LLVM {} is not installed", aim.llvm))?;
        let into = linker_dir(&self.workspace.root, aim.llvm);
        // Kept while it is being built, so that a build that was interrupted goes on where it was.
        let scratch = self.workspace.root.join("target/cache/bpf-linker-build");
        step.say("cargo install");
        let mut command = Command::new(cargo_program());
        command.args([
            "install",
            "bpf-linker",
            "--locked",
            "--force",
            "--no-default-features",
            "--version",
            LINKER_VERSION,
        ]);
        command.args(["--features", &format!("llvm-{}", aim.llvm)]);
        command.arg("--root").arg(&into).arg("--target-dir").arg(&scratch);
        command
            .env("LLVM_PREFIX", prefix)
            .env_remove("RUSTFLAGS")
            .env_remove("CARGO_ENCODED_RUSTFLAGS");
        step.run(&mut command)
            .with_context(|| format!("cannot build bpf-linker {LINKER_VERSION}"))?;
        fs::remove_dir_all(&scratch).with_context(|| format!("cannot remove {}", scratch.display()))?;
        let toolchain = select(&probe(&self.workspace.root)).map_err(anyhow::Error::msg)?;
        step.done(&format!(
            "{LINKER_VERSION} for LLVM {} ({})",
            aim.llvm,
            toolchain.linker.display()
        ));
        Ok(())
    }

    fn lints(&self, step: Step) -> Result<()> {
        let aim = self.aim.as_ref().context("no compiler has been decided on")?;
        match aim.route {
            Route::Nightly => {
                let there = Command::new("rustup")
                    .args(["run", "nightly", "cargo", "clippy", "--version"])
                    .output()
                    .is_ok_and(|output| output.status.success());
                if there {
                    step.already("clippy of rustup's nightly");
                } else {
                    step.skipped("nightly has no clippy (rustup component add clippy --toolchain nightly)");
                }
            }
            Route::System if Path::new(SYSTEM_CLIPPY).exists() => step.already(SYSTEM_CLIPPY),
            Route::System => match &self.apt {
                Some(apt) => {
                    apt.install(
                        &["rust-web-clippy"],
                        "the clippy that belongs to the eBPF compiler",
                        &step,
                    )?;
                    step.done("rust-web-clippy");
                }
                None => step.skipped("there is no /usr/bin/cargo-clippy beside the eBPF compiler"),
            },
        }
        Ok(())
    }

    fn emulator(&self, step: Step) -> Result<()> {
        let why = "with which tests boot other kernels";
        let mut found = Emulator::find(self.workspace);
        if found.is_none()
            && let Some(apt) = &self.apt
        {
            let changes = apt.foresee(emulator::PACKAGE, &step)?;
            if !changes.removed.is_empty() {
                step.say(&format!(
                    "{} would remove {}, so it goes into the cache:",
                    emulator::PACKAGE,
                    changes.removed.join(", ")
                ));
                found = Some(Emulator::unpack(self.workspace, apt, &changes.installed, &step)?);
            }
        }
        let mut tools = UNPACKERS.to_vec();
        if !matches!(found, Some(Emulator::Unpacked(_))) {
            tools.push((emulator::PROGRAM, emulator::PACKAGE));
        }
        self.tools(&tools, why, step)
    }

    /// `why` comes after the programs' names.
    fn tools(&self, tools: &[(&str, &str)], why: &str, step: Step) -> Result<()> {
        let missing: Vec<_> = tools
            .iter()
            .filter(|(program, _)| find_program(program).is_none())
            .collect();
        if missing.is_empty() {
            let names: Vec<_> = tools.iter().map(|(program, _)| *program).collect();
            step.already(&names.join(" "));
            return Ok(());
        }
        let programs = missing
            .iter()
            .map(|(program, _)| *program)
            .collect::<Vec<_>>()
            .join(", ");
        let mut packages: Vec<_> = missing.iter().map(|(_, package)| *package).collect();
        packages.dedup();
        let Some(apt) = &self.apt else {
            bail!(
                "install {programs}, {why} (Debian's packages: {})",
                packages.join(" ")
            );
        };
        apt.install(&packages, &format!("{programs}, {why}"), &step)?;
        step.done(&packages.join(" "));
        Ok(())
    }
}

/// What a person can install where set-up cannot, and what is there.
fn by_hand(found: &Found) -> String {
    let reasons = select(found).map_or_else(
        |refusal| refusal.reasons(),
        |toolchain| vec![toolchain.to_string()],
    );
    format!(
        "the kernel programs need a compiler with the sources of `core`, and this machine has none that serves:\n  {}\n\
         Install either of these, then run `cargo xtask setup` again:\n  \
         rustup toolchain install nightly --component rust-src, with libLLVM and its development files of the major \
         number that `rustc +nightly -vV` shows ({} to {})\n  \
         Debian's rustc-web and rust-web-src, which the security updates of Debian 12 keep current",
        reasons.join("\n  "),
        LINKER_LLVMS.start(),
        LINKER_LLVMS.end(),
    )
}

/// Where Debian puts an LLVM, when its shared library can be linked with.
fn llvm_prefix(llvm: u32) -> Option<PathBuf> {
    let prefix = PathBuf::from(format!("/usr/lib/llvm-{llvm}"));
    prefix.join("lib/libLLVM.so").exists().then_some(prefix)
}

fn bpffs(step: Step) -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("cannot read /proc/self/mounts")?;
    if is_bpffs(&mounts, BPFFS) {
        step.already(BPFFS);
        return Ok(());
    }
    require_root(format!("mounting bpffs at {BPFFS}"))?;
    step.say("mount");
    step.run(Command::new("mount").args(["-t", "bpf", "bpf", BPFFS])).with_context(|| {
        format!("programs and maps are kept in a bpffs, and none can be mounted at {BPFFS} (a container needs CAP_SYS_ADMIN)")
    })?;
    step.done(BPFFS);
    Ok(())
}

/// Whether the topmost file system at `path` is a bpffs, by the lines of /proc/self/mounts.
fn is_bpffs(mounts: &str, path: &str) -> bool {
    let mut kinds = mounts.lines().filter_map(|line| {
        let mut fields = line.split_whitespace();
        (fields.nth(1)? == path).then(|| fields.next()).flatten()
    });
    kinds.next_back() == Some("bpf")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_topmost_mount_counts() {
        let mounts = "sysfs /sys sysfs rw 0 0\nbpf /sys/fs/bpf bpf rw 0 0\n";
        assert!(is_bpffs(mounts, "/sys/fs/bpf"));
        assert!(!is_bpffs("sysfs /sys sysfs rw 0 0\n", "/sys/fs/bpf"));
        assert!(!is_bpffs(
            &format!("{mounts}tmpfs /sys/fs/bpf tmpfs rw 0 0\n"),
            "/sys/fs/bpf"
        ));
    }
}
