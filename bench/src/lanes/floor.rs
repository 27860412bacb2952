//! The floor under the CNI plug-ins: a static program that makes the netlink requests of a pod's connection (floor/floor.rs).

use std::{fs, os::unix::fs::PermissionsExt as _, time::Instant};

use anyhow::Result;
use causeway_tests::{
    netns::{Netns, stdout_of},
    scratch::Scratch,
};

use super::plugins::Call;
use crate::rounds::Lane;

static FLOOR: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/floor"));

/// One connection made or taken away, milliseconds.
pub(crate) struct FloorLane {
    node: Netns,
    files: Scratch,
    call: Call,
}

impl FloorLane {
    /// On a node of its own.
    pub(crate) fn new(call: Call) -> Result<Self> {
        let files = Scratch::new()?;
        let program = files.join("/floor");
        fs::write(&program, FLOOR)?;
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
        let node = Netns::new()?;
        Ok(Self { node, files, call })
    }

    /// Milliseconds of a run.
    fn run(&self, arguments: &[&str]) -> Result<f64> {
        let mut command = self.node.command(self.files.join("/floor"));
        let start = Instant::now();
        let output = command.args(arguments).output();
        let took = start.elapsed().as_secs_f64() * 1e3;
        stdout_of(output, || format!("floor {}", arguments.join(" "))).map(|_| took)
    }
}

impl Lane for FloorLane {
    fn label(&self) -> String {
        "netlink alone".to_owned()
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
