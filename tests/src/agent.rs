//! The agent of a node, as a process of its own.

use std::{
    fs,
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::PathBuf,
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::node::Node;

/// How long the agent may take for anything, on a machine that does other things.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A running agent. Dropped, it is told to end.
#[derive(Debug)]
pub struct Agent {
    process: Child,
    socket: PathBuf,
    log: PathBuf,
}

impl Agent {
    /// Starts the agent of a node and waits until it answers.
    pub fn start(node: &Node) -> Result<Self> {
        Self::start_through(node, &[])
    }

    /// As [`Self::start`], by a program that becomes the agent, with its arguments.
    pub fn start_through(node: &Node, through: &[&str]) -> Result<Self> {
        let mut agent = Self::spawn_through(node, through)?;
        agent.wait_for("an answer", |agent| Ok(agent.get("/livez").is_ok()))?;
        Ok(agent)
    }

    /// Starts the agent of a node.
    pub fn spawn(node: &Node) -> Result<Self> {
        Self::spawn_through(node, &[])
    }

    fn spawn_through(node: &Node, through: &[&str]) -> Result<Self> {
        let log = node.root.join("agent.log");
        let file = fs::OpenOptions::new().create(true).append(true).open(&log)?;
        let process = node
            .causeway_through(through, &["agent"])?
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(file)
            .spawn()
            .context("cannot start the agent")?;
        Ok(Self {
            process,
            socket: node.root.join("/run/causeway/causeway.sock"),
            log,
        })
    }

    /// Where it listens.
    pub fn socket(&self) -> &std::path::Path {
        &self.socket
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Asks the agent on its socket. An answer that is not "200 OK" is an error that holds it.
    pub fn get(&self, path: &str) -> Result<String> {
        let (status, body) = self.ask(&format!(
            "GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
        ))?;
        ensure!(status == 200, "{path}: {status}: {body}");
        Ok(body)
    }

    /// Sends any bytes to the agent. Returns the status and what follows the head.
    pub fn ask(&self, request: &str) -> Result<(u16, String)> {
        let mut stream = UnixStream::connect(&self.socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
        Ok((status.context("no answer")?, body.to_owned()))
    }

    /// The whole part of a metric's value: of the line that begins with `name`, labels included.
    pub fn metric(&self, name: &str) -> Result<u64> {
        let text = self.get("/metrics")?;
        let line = text
            .lines()
            .find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(' ')));
        let value = line.and_then(|line| line.rsplit(' ').next());
        value
            .and_then(|value| value.split('.').next()?.parse().ok())
            .with_context(|| format!("no {name} in\n{text}"))
    }

    /// Waits until something is so.
    pub fn wait_for(&mut self, what: &str, mut is_so: impl FnMut(&Self) -> Result<bool>) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            if is_so(self)? {
                return Ok(());
            }
            if let Some(status) = self.process.try_wait()? {
                bail!("the agent has ended ({status}): {}", self.log());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        bail!("the agent: no {what} within {PATIENCE:?}: {}", self.log())
    }

    /// Everything that agents of this node have logged.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(self.process.id().cast_signed()).context("a process id is positive")?;
        Ok(kill_process(pid, signal)?)
    }

    /// Kills it, without a word.
    pub fn kill(mut self) -> Result<()> {
        self.process.kill()?;
        self.process.wait()?;
        Ok(())
    }

    /// Tells it to end, and waits until it has.
    pub fn end(mut self) -> Result<()> {
        self.signal(Signal::TERM)?;
        let status = self.process.wait()?;
        ensure!(status.success(), "the agent ended with {status}: {}", self.log());
        Ok(())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // It may have ended already.
        self.signal(Signal::TERM).ok();
        self.process.wait().ok();
    }
}
