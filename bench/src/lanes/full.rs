//! A node with as many pods as it can have.

use std::{
    io::Write as _,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use causeway_tests::{
    dist::Dist,
    netns::{Netns, stdout_of},
};

use crate::{
    rounds::Lane,
    stand::{Build, Stand},
};

/// Pods of a full node: the most that the platform assigns.
const PODS: usize = 250;

/// What is asked of the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Question {
    /// The slowest but one per cent of ADDs that come all at once, milliseconds.
    Adds,
    /// The same of DELs.
    Dels,
    /// One STATUS with all pods but one there, milliseconds. With all of them, an ADD would fail.
    Status,
}

/// A full node.
pub(crate) struct FullLane {
    stand: Stand,
    question: Question,
    pods: Vec<(String, Netns)>,
}

impl FullLane {
    /// Of a node of its own, built like `like`.
    pub(crate) fn new(like: &Stand, build: &Build, question: Question) -> Result<Self> {
        Ok(Self {
            stand: Stand::build(like.peer, 0, build)?,
            question,
            pods: Vec::new(),
        })
    }

    fn fill(&mut self, pods: usize) -> Result<f64> {
        for number in 0..pods {
            self.pods.push((format!("full-{number}"), Netns::new()?));
        }
        self.all("ADD")
    }

    /// Calls for every pod at once. Milliseconds after which all but one per cent are done, each from its own start.
    fn all(&self, verb: &str) -> Result<f64> {
        let node = self.stand.node()?;
        let call = |(name, netns): &(String, Netns)| -> Result<Duration> {
            let start = Instant::now();
            node.plugin(verb, name, &netns.path())?;
            Ok(start.elapsed())
        };
        let mut times: Vec<Duration> = thread::scope(|scope| {
            let calls: Vec<_> = self
                .pods
                .iter()
                .map(|pod| scope.spawn(move || call(pod)))
                .collect();
            let done = calls.into_iter().map(|call| {
                call.join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            });
            done.collect::<Result<_>>()
        })?;
        times.sort_unstable();
        Ok(times[(times.len() - 1) * 99 / 100].as_secs_f64() * 1e3)
    }

    /// Milliseconds of a STATUS of the installed plug-in.
    fn status(&self) -> Result<f64> {
        let (node, dist) = (self.stand.node()?, Dist::from_env()?);
        let mut config = dist.plugin_config()?;
        config["cniVersion"] = "1.1.0".into();
        let mut command = Command::new(dist.plugin("azure-vnet"));
        command
            .env("CAUSEWAY_ROOT", node.root.path())
            .env("CNI_COMMAND", "STATUS")
            .env("CNI_PATH", dist.plugins())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let start = Instant::now();
        let mut child = node.ns.spawn(&mut command)?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(config.to_string().as_bytes())?;
        }
        let output = child.wait_with_output();
        let took = start.elapsed().as_secs_f64() * 1e3;
        stdout_of(output, || "azure-vnet STATUS".to_owned()).map(|_| took)
    }
}

impl Lane for FullLane {
    fn label(&self) -> String {
        let what = match self.question {
            Question::Adds => "ADD, 99 of 100",
            Question::Dels => "DEL, 99 of 100",
            Question::Status => "STATUS",
        };
        format!("{}, {what}", self.stand.peer.name())
    }

    fn warm_up(&mut self) -> Result<()> {
        if self.question == Question::Status {
            self.fill(PODS - 1)?;
        }
        Ok(())
    }

    fn block(&mut self) -> Result<f64> {
        if self.question == Question::Status {
            return self.status();
        }
        let adds = self.fill(PODS)?;
        let dels = self.all("DEL")?;
        self.pods.clear();
        Ok(if self.question == Question::Adds {
            adds
        } else {
            dels
        })
    }
}
