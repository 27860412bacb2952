//! `causeway apiserver watch`: one status after the other.

use std::{
    io::{BufRead as _, BufReader, Lines},
    process::{Child, ChildStdout, Stdio},
};

use anyhow::{Context, Result, ensure};
use causeway_tests::{delegated::SERVERS, node::Node};
use serde_json::Value;

use crate::scene::{Scene, backends};

/// Documents to read before something must have shown: one a second.
const DOCUMENTS: usize = 20;

/// A watch that goes on. Dropped, it is ended.
struct Watching {
    child: Child,
    lines: Option<Lines<BufReader<ChildStdout>>>,
}

impl Watching {
    fn start(node: &Node, arguments: &[&str]) -> Result<Self> {
        let mut child = node
            .causeway_command(&[&["apiserver", "watch"], arguments].concat())?
            .stdout(Stdio::piped())
            .spawn()?;
        let output = child.stdout.take().context("no output")?;
        Ok(Self {
            child,
            lines: Some(BufReader::new(output).lines()),
        })
    }

    fn line(&mut self) -> Result<String> {
        let lines = self.lines.as_mut().context("nobody reads")?;
        Ok(lines.next().context("the watch has ended")??)
    }

    fn next(&mut self) -> Result<Value> {
        let line = self.line()?;
        serde_json::from_str(&line).with_context(|| format!("the watch printed: {line}"))
    }

    /// Reads until a status names these servers as healthy.
    fn wait_for(&mut self, healthy: &[&str]) -> Result<()> {
        let mut last = Value::Null;
        for _ in 0..DOCUMENTS {
            last = self.next()?;
            let found: Vec<_> = backends(&last)
                .into_iter()
                .filter_map(|(address, is_healthy)| is_healthy.then_some(address))
                .collect();
            if found == healthy {
                return Ok(());
            }
        }
        anyhow::bail!("{healthy:?} are never healthy: {last:#}")
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

#[test]
fn a_watch_shows_a_server_that_goes_and_comes_back_in_one_document_a_line() -> Result<()> {
    let mut scene = Scene::new("probe: {intervalSeconds: 1, timeoutSeconds: 1, unhealthyAfter: 1}")?;
    let [first, second, third] = SERVERS.map(|address| address.to_string());
    let mut watch = Watching::start(&scene.rig.node, &["1", "--json"])?;
    let first_document = watch.next()?;
    ensure!(first_document["kind"] == "ApiServer", "{first_document:#}");
    watch.wait_for(&[&first, &second, &third])?;
    scene.servers[1] = None;
    watch.wait_for(&[&first, &third])?;
    scene.servers[1] = Some(scene.plane.serve(SERVERS[1])?);
    watch.wait_for(&[&first, &second, &third])
}

#[test]
fn a_watch_in_words_says_each_time_what_the_status_says() -> Result<()> {
    let mut scene = Scene::new("probe: {intervalSeconds: 1, timeoutSeconds: 1, unhealthyAfter: 1}")?;
    scene.wait_for_health([true; 3])?;
    let mut watch = Watching::start(&scene.rig.node, &["1"])?;
    let status = scene.rig.node.causeway(&["apiserver", "status"])?;
    for _ in 0..2 {
        // Times go on between the two; what stands before the first one does not.
        for expected in status.lines() {
            let (shown, expected) = (watch.line()?, words(expected));
            ensure!(words(&shown) == expected, "`{shown}`, not `{expected}`");
        }
        ensure!(watch.line()?.is_empty(), "a line lies between two");
    }
    Ok(())
}

/// Without its numbers, which change.
fn words(line: &str) -> String {
    line.chars().filter(|c| !c.is_ascii_digit()).collect()
}

#[test]
fn a_watch_ends_when_nobody_reads_it_any_more() -> Result<()> {
    let scene = Scene::new("probe: {intervalSeconds: 1, timeoutSeconds: 1, unhealthyAfter: 1}")?;
    let mut watch = Watching::start(&scene.rig.node, &["1", "--json"])?;
    watch.next()?;
    // The pipe has no other end any more when the next document is written.
    watch.lines = None;
    ensure!(watch.child.wait()?.success());
    Ok(())
}
