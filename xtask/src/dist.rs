//! Release builds, and the installable tree made of them.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, process::Command};

use anyhow::{Context as _, Result};
use xtask::ebpf_object::{self, CAUSEWAY, CAUSEWAY_IPV6, Output};

use crate::{
    progress::heading,
    workspace::{HOST, Workspace, run},
};

/// The files of the tree: what it is made from, below the target directory or the repository, and where it goes.
const BINARIES: &[(&str, &str)] = &[
    ("plugin/causeway-cni", "opt/cni/bin/azure-vnet"),
    ("plugin/causeway-cni", "opt/cni/bin/azure-vnet-ipam"),
    ("release/causeway", "usr/bin/causeway"),
    ("release/causeway-pod-cidrs", "usr/bin/causeway-pod-cidrs"),
];
const FILES: &[(&str, &str)] = &[
    ("deploy/10-azure.conflist", "etc/cni/net.d/10-azure.conflist"),
    (
        "deploy/systemd/causeway-agent.service",
        "usr/lib/systemd/system/causeway-agent.service",
    ),
    ("deploy/config.yaml", "usr/share/doc/causeway/config.yaml"),
];

/// Compiles the kernel programs, then the workspace.
pub(crate) fn build(workspace: &Workspace) -> Result<()> {
    heading("kernel programs");
    for (programs, name) in [(CAUSEWAY, "causeway.bpf.o"), (CAUSEWAY_IPV6, "causeway6.bpf.o")] {
        let object = workspace.root.join("target").join(name);
        let toolchain = ebpf_object::build(&programs, &workspace.root, &object, Output::Shown)?;
        println!(
            "{} ({} bytes), compiled by {toolchain}",
            object.display(),
            fs::metadata(&object)?.len()
        );
    }

    heading("release build");
    // By itself: among the others cargo would link it with the library features that only the command line wants. Nothing is
    // left for the dynamic linker to do, and nothing is expected of the C library of the node.
    let mut plugin = workspace.cargo(["rustc", "--profile", "plugin", "--package", "causeway-cni", "--"]);
    plugin.args([
        "-C",
        "target-feature=+crt-static",
        "-C",
        "relocation-model=static",
    ]);
    run(plugin)?;
    // By itself as well: what the client for Kubernetes wants of libraries would grow the agent by a mebibyte of memory.
    run(workspace.cargo(["build", "--release", "--package", "causeway-kubernetes"]))?;
    let mut others = workspace.cargo(["build", "--release"]);
    others.args(HOST);
    others.args(["--exclude", "causeway-cni", "--exclude", "causeway-kubernetes"]);
    run(others)
}

/// Fills `target/dist` from what [`build`] made. Files of an earlier run that are no longer part of it are removed.
pub(crate) fn fill(workspace: &Workspace) -> Result<()> {
    let dist = workspace.dist();
    heading(&format!("{}", dist.display()));
    let fresh = dist.with_extension("new");
    remove(&fresh)?;
    for (from, to) in BINARIES {
        install(&workspace.target.join(from), &fresh.join(to), 0o755)?;
    }
    for (from, to) in FILES {
        install(&workspace.root.join(from), &fresh.join(to), 0o644)?;
    }
    remove(&dist)?;
    fs::rename(&fresh, &dist)
        .with_context(|| format!("cannot rename {} to {}", fresh.display(), dist.display()))?;
    for to in BINARIES.iter().chain(FILES).map(|(_, to)| to) {
        println!("  {to} ({} bytes)", fs::metadata(dist.join(to))?.len());
    }
    Ok(())
}

/// Packs `target/dist` with its scripts: the tarball of a release and its checksum, in `target`.
pub(crate) fn pack(workspace: &Workspace) -> Result<()> {
    let dist = workspace.dist();
    let directory = dist.parent().unwrap_or(&workspace.root);
    heading("release");
    let mut script = Command::new(workspace.root.join("scripts/pack-release.sh"));
    script
        .arg(&dist)
        .arg(concat!("v", env!("CARGO_PKG_VERSION")))
        .arg(directory);
    run(script)?;
    println!(
        "{}/causeway-v{}-*.tar.gz",
        directory.display(),
        env!("CARGO_PKG_VERSION")
    );
    Ok(())
}

fn install(from: &Path, to: &Path, mode: u32) -> Result<()> {
    if let Some(directory) = to.parent() {
        fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    }
    fs::copy(from, to).with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    let permissions = fs::Permissions::from_mode(mode);
    fs::set_permissions(to, permissions).with_context(|| format!("cannot set the mode of {}", to.display()))
}

fn remove(directory: &Path) -> Result<()> {
    if directory.exists() {
        fs::remove_dir_all(directory).with_context(|| format!("cannot remove {}", directory.display()))?;
    }
    Ok(())
}
