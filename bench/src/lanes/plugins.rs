//! CNI plug-ins as a runtime calls them: processes, from start to end.

use std::{
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context, Result};
use causeway_tests::{
    netns::{Netns, stdout_of},
    scratch::Scratch,
};
use serde_json::{Value, json};

use crate::{
    rounds::Lane,
    stand::{Build, Stand},
};

/// Where distributions put the reference plug-ins.
const REFERENCE: &str = "/usr/lib/cni";

/// What adds and removes pods.
pub(crate) enum Plugins<'a> {
    /// Causeway.
    Causeway(&'a Stand),
    /// The reference plug-ins bridge and host-local; with bridge's masquerade and portmap if `translated`.
    Reference {
        node: Box<Netns>,
        files: Scratch,
        translated: bool,
    },
}

/// What is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    /// One ADD.
    Add,
    /// One DEL.
    Del,
    /// That many ADDs at once, until the last one is done.
    Storm(u32),
}

/// One call of one set of plug-ins, milliseconds.
pub(crate) struct PluginLane<'a> {
    plugins: Plugins<'a>,
    call: Call,
}

impl Plugins<'_> {
    /// The reference plug-ins on nodes of their own; none where they are not installed.
    pub(crate) fn reference() -> Result<Vec<Self>> {
        let installed = ["bridge", "host-local", "portmap"]
            .iter()
            .all(|name| Path::new(REFERENCE).join(name).is_file());
        if !installed {
            return Ok(Vec::new());
        }
        let reference = |translated| {
            Ok(Self::Reference {
                node: Box::new(Netns::new()?),
                files: Scratch::new()?,
                translated,
            })
        };
        [false, true].map(reference).into_iter().collect()
    }

    fn call(&self, verb: &str, pod: &str, netns: &str) -> Result<()> {
        match self {
            Self::Causeway(stand) => stand.node()?.plugin(verb, pod, netns).map(drop),
            Self::Reference {
                node,
                files,
                translated,
            } => {
                let bridge = json!({
                    "cniVersion": "0.4.0", "name": "bench", "type": "bridge", "bridge": "cni0",
                    "isGateway": true, "ipMasq": translated, "hairpinMode": true,
                    "ipam": { "type": "host-local", "subnet": "10.99.0.0/16", "dataDir": files.join("/ipam") },
                });
                let portmap = |result: Value| {
                    json!({
                        "cniVersion": "0.4.0", "name": "bench", "type": "portmap",
                        "capabilities": { "portMappings": true }, "prevResult": result,
                    })
                };
                if !translated {
                    return reference(node, "bridge", verb, (pod, netns), &bridge).map(drop);
                }
                if verb == "DEL" {
                    reference(node, "portmap", verb, (pod, netns), &portmap(Value::Null))?;
                    return reference(node, "bridge", verb, (pod, netns), &bridge).map(drop);
                }
                let result = reference(node, "bridge", verb, (pod, netns), &bridge)?;
                reference(node, "portmap", verb, (pod, netns), &portmap(result)).map(drop)
            }
        }
    }
}

impl<'a> PluginLane<'a> {
    /// Times a call.
    pub(crate) fn new(plugins: Plugins<'a>, call: Call) -> Self {
        Self { plugins, call }
    }

    /// Milliseconds of `f`.
    fn timed(f: impl FnOnce() -> Result<()>) -> Result<f64> {
        let start = Instant::now();
        f()?;
        Ok(start.elapsed().as_secs_f64() * 1e3)
    }

    fn storm(&self, pods: u32) -> Result<f64> {
        let namespaces: Vec<Netns> = (0..pods).map(|_| Netns::new()).collect::<Result<_>>()?;
        let names: Vec<String> = (0..pods).map(|number| format!("storm-{number}")).collect();
        let calls: Vec<_> = names.iter().zip(namespaces.iter().map(Netns::path)).collect();
        let took = Self::timed(|| {
            std::thread::scope(|scope| {
                let adding: Vec<_> = calls
                    .iter()
                    .map(|(name, netns)| scope.spawn(move || self.plugins.call("ADD", name, netns)))
                    .collect();
                adding.into_iter().try_for_each(|add| {
                    add.join()
                        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
                })
            })
        });
        for (name, netns) in calls {
            self.plugins.call("DEL", name, &netns)?;
        }
        took
    }
}

impl Lane for PluginLane<'_> {
    fn label(&self) -> String {
        match &self.plugins {
            Plugins::Causeway(stand) => stand.peer.name().to_owned(),
            Plugins::Reference { translated: true, .. } => "bridge, host-local, portmap".to_owned(),
            Plugins::Reference { .. } => "bridge, host-local".to_owned(),
        }
    }

    fn warm_up(&mut self) -> Result<()> {
        self.block().map(drop)
    }

    fn block(&mut self) -> Result<f64> {
        let netns = Netns::new()?;
        let call = |verb| self.plugins.call(verb, "bench-cni", &netns.path());
        match self.call {
            Call::Add => {
                let took = Self::timed(|| call("ADD"));
                call("DEL")?;
                took
            }
            Call::Del => {
                call("ADD")?;
                Self::timed(|| call("DEL"))
            }
            Call::Storm(pods) => self.storm(pods),
        }
    }
}

/// Calls a reference plug-in; its answer, or null.
fn reference(
    node: &Netns,
    name: &str,
    verb: &str,
    (pod, netns): (&str, &str),
    config: &Value,
) -> Result<Value> {
    let mut command = Command::new(Path::new(REFERENCE).join(name));
    command
        .env("CNI_COMMAND", verb)
        .env("CNI_CONTAINERID", pod)
        .env("CNI_NETNS", netns)
        .env("CNI_IFNAME", "eth0")
        .env("CNI_PATH", REFERENCE)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = node.spawn(&mut command)?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(config.to_string().as_bytes())?;
    }
    let text = stdout_of(child.wait_with_output(), || format!("{name} {verb}"))?;
    if text.trim().is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_str(&text).with_context(|| format!("{name} {verb} printed: {text}"))
}

/// Milliseconds that the first ADD of a node takes longer than its others: loading, verifying and attaching the programs.
pub(crate) struct LoadLane<'a> {
    stand: &'a Stand,
    build: &'a Build,
}

impl<'a> LoadLane<'a> {
    /// Of nodes like this one.
    pub(crate) fn new(stand: &'a Stand, build: &'a Build) -> Self {
        Self { stand, build }
    }
}

impl Lane for LoadLane<'_> {
    fn label(&self) -> String {
        self.stand.peer.name().to_owned()
    }

    fn warm_up(&mut self) -> Result<()> {
        Ok(())
    }

    fn block(&mut self) -> Result<f64> {
        let fresh = Stand::build(self.stand.peer, 0, self.build)?;
        let [first, second] = ["first", "second"].map(|name| {
            let netns = Netns::new()?;
            PluginLane::timed(|| fresh.node()?.plugin("ADD", name, &netns.path()).map(drop))
        });
        Ok((first? - second?).max(f64::MIN_POSITIVE))
    }
}
