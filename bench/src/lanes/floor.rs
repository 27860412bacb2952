//! The floor under the CNI plug-ins: a static program that makes the netlink requests of a pod's connection (floor/floor.rs).

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context as _, Result};
use causeway::datapath::Expedited;
use causeway_tests::{
    netns::{Netns, stdout_of},
    scratch::Scratch,
};

use super::plugins::Call;
use crate::{rounds::Lane, stand::Stand};

static FLOOR: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/floor"));

/// One connection made or taken away, milliseconds.
pub(crate) struct FloorLane {
    node: Netns,
    files: Scratch,
    call: Call,
    /// Directories of pinned programs that are attached as well, and of their links.
    hooks: Option<[String; 2]>,
    /// Whether the kernel's grace periods are short meanwhile, as the plug-in makes them.
    expedited: bool,
}

impl FloorLane {
    /// On a node of its own.
    pub(crate) fn new(call: Call) -> Result<Self> {
        let files = Scratch::new()?;
        let program = files.join("/floor");
        fs::write(&program, FLOOR)?;
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
        let node = Netns::new()?;
        Ok(Self {
            node,
            files,
            call,
            hooks: None,
            expedited: false,
        })
    }

    /// The same, and the programs of a node that is up on both hooks of the interface.
    pub(crate) fn with_hooks(call: Call, stand: &Stand) -> Result<Self> {
        let bpffs = stand.node()?.root.join("/sys/fs/bpf");
        let programs = find_programs(&bpffs.join("causeway"))?;
        let links = bpffs.join("floor");
        fs::create_dir_all(&links)?;
        let hooks = [programs, links].map(|path| path.to_string_lossy().into_owned());
        Ok(Self {
            hooks: Some(hooks),
            ..Self::new(call)?
        })
    }

    /// The same lane, with short grace periods.
    pub(crate) fn expedited(mut self) -> Self {
        self.expedited = true;
        self
    }

    /// Milliseconds of a run.
    fn run(&self, arguments: &[&str]) -> Result<f64> {
        let mut command = Command::new(self.files.join("/floor"));
        command.args(arguments).args(self.hooks.iter().flatten());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let _expedited = self.expedited.then(|| Expedited::begin(true));
        let start = Instant::now();
        let output = self.node.spawn(&mut command)?.wait_with_output();
        let took = start.elapsed().as_secs_f64() * 1e3;
        stdout_of(output, || format!("floor {}", arguments.join(" "))).map(|_| took)
    }
}

/// The programs of the datapath, of whichever schema.
fn find_programs(trees: &Path) -> Result<PathBuf> {
    let mut found = fs::read_dir(trees)?
        .filter_map(Result::ok)
        .map(|tree| tree.path().join("progs"));
    found
        .find(|programs| programs.is_dir())
        .with_context(|| format!("no programs in {}", trees.display()))
}

impl Lane for FloorLane {
    fn label(&self) -> String {
        let label = match (&self.hooks, self.expedited) {
            (None, _) => "netlink alone",
            (Some(_), false) => "netlink, two tcx links",
            (Some(_), true) => "netlink, two tcx links, expedited",
        };
        label.to_owned()
    }

    fn warm_up(&mut self) -> Result<()> {
        self.block().map(drop)
    }

    fn block(&mut self) -> Result<f64> {
        let netns = Netns::new()?;
        let add = self.run(&["add", &netns.path(), "azvfloor", "10.240.0.9"])?;
        let del = self.run(&["del", "azvfloor"])?;
        Ok(if self.call == Call::Del { del } else { add })
    }
}
