//! A node on which everything is right: installed, loaded, with pods.

use std::{
    fs,
    os::unix::fs::symlink,
    path::PathBuf,
    process::{Command, Output},
    sync::atomic::{AtomicBool, Ordering},
};

use anyhow::{Context, Result};
use causeway_common::maps::SCHEMA;
use causeway_tests::{
    dist::Dist,
    node::{Datapath, Pod},
    rig::Rig,
};
use serde_json::Value;

/// The node with its pods.
pub(crate) struct Scene {
    pub(crate) rig: Rig,
    pub(crate) pods: Vec<Pod>,
    /// The command is run where the kernel does not describe its types.
    pub(crate) without_btf: AtomicBool,
    dist: Dist,
}

impl Scene {
    pub(crate) fn with(datapath: Datapath, addresses: u8, pods: usize) -> Result<Self> {
        Self::of(Rig::unwatched(datapath, addresses)?, pods)
    }

    /// Of a node that is there, and so many pods.
    pub(crate) fn of(rig: Rig, pods: usize) -> Result<Self> {
        let dist = Dist::from_env()?;
        rig.node.root.write(
            "/etc/cni/net.d/10-azure.conflist",
            &fs::read_to_string(dist.conflist())?,
        )?;
        let plugins = rig.node.root.join("/opt/cni/bin");
        fs::create_dir_all(&plugins)?;
        for name in ["azure-vnet", "azure-vnet-ipam"] {
            symlink(dist.plugin(name), plugins.join(name))?;
        }
        let pods = (0..pods)
            .map(|n| rig.pod(&format!("pod{n}")))
            .collect::<Result<_>>()?;
        Ok(Self {
            rig,
            pods,
            without_btf: AtomicBool::new(false),
            dist,
        })
    }

    /// The command line with these arguments, to be run on the node.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let cli = self.dist.cli();
        let mut command = if self.without_btf.load(Ordering::Relaxed) {
            let script = "mount -t tmpfs none /sys/kernel/btf && exec \"$0\" \"$@\"";
            let mut command = self.rig.node.ns.command("unshare");
            command.args(["--mount", "sh", "-c", script]).arg(cli);
            command
        } else {
            self.rig.node.ns.command(cli)
        };
        command
            .args(arguments)
            .env("CAUSEWAY_ROOT", self.rig.node.root.path());
        command
    }

    /// What the command printed and how it ended.
    pub(crate) fn run(&self, arguments: &[&str]) -> Result<Output> {
        Ok(self.command(arguments).output()?)
    }

    /// What the command printed as JSON, however it ended; and its exit code.
    pub(crate) fn json(&self, arguments: &[&str]) -> Result<(Value, i32)> {
        let output = self.run(arguments)?;
        let text = String::from_utf8_lossy(&output.stdout);
        let document = serde_json::from_str(&text).with_context(|| {
            let errors = String::from_utf8_lossy(&output.stderr);
            format!("causeway {} printed: {text}{errors}", arguments.join(" "))
        })?;
        Ok((document, output.status.code().context("a signal ended it")?))
    }

    /// The path of a pin.
    pub(crate) fn pin(&self, name: &str) -> PathBuf {
        let base = self.rig.node.root.join("/sys/fs/bpf/causeway");
        base.join(format!("v{SCHEMA}")).join(name)
    }

    /// The host's end of the first pod's link.
    pub(crate) fn host_if(&self) -> Result<String> {
        self.rig.node.host_interface(&self.pods[0])
    }

    /// Changes a state file.
    pub(crate) fn edit(&self, path: &str, change: impl FnOnce(&mut Value) -> Option<()>) -> Result<()> {
        let file = self.rig.node.root.join(path);
        let mut document: Value = serde_json::from_slice(&fs::read(&file)?)?;
        change(&mut document).with_context(|| format!("{path} is not what it was taken for: {document}"))?;
        self.rig.node.root.write(path, &document.to_string())
    }
}
