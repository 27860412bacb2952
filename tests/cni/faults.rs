//! Calls that end, or go wrong, at a system call: each of them in turn, by `strace -e inject`.

use std::{
    fs,
    process::{Command, Output},
};

use anyhow::{Context, Result, ensure};
use causeway_tests::netns::Netns;
use serde_json::{Value, json};

use crate::{
    call::{Call, World},
    check::pins,
};

/// Points of a call that an ordinary run tries. The long one tries all.
const SAMPLE: usize = 16;

/// A node with a pod that nothing may happen to, and one that everything happens to.
struct Victim {
    world: World,
    pod: Netns,
    neighbour: Netns,
    /// What is there while there is only the neighbour.
    before: Value,
}

impl Victim {
    fn new() -> Result<Self> {
        for (program, package) in [("strace", "strace"), ("bpftool", "bpftool")] {
            let found = Command::new(program).arg("-V").output();
            found.with_context(|| {
                format!("{program} is missing: `cargo xtask setup` installs it (Debian's {package})")
            })?;
        }
        let mut victim = Self {
            world: World::new(4)?,
            pod: Netns::new()?,
            neighbour: Netns::new()?,
            before: Value::Null,
        };
        victim
            .world
            .network("ADD", "neighbour-1")?
            .netns(&victim.neighbour)
            .ok()?;
        victim.before = victim.snapshot()?;
        Ok(victim)
    }

    fn call(&self, verb: &str) -> Result<Call<'_>> {
        let ports = json!({ "portMappings": [{ "hostPort": 8082, "protocol": "tcp" }, { "hostPort": 5300, "protocol": "udp" }] });
        let call = self.world.network(verb, "container-1")?.netns(&self.pod);
        Ok(call
            .with("cniVersion", json!("1.1.0"))
            .with("runtimeConfig", ports))
    }

    fn gc(&self) -> Result<Call<'_>> {
        let valid = json!([{ "containerID": "neighbour-1", "ifname": "eth0" }]);
        Ok(self.call("GC")?.with("cni.dev/valid-attachments", valid))
    }

    /// Leases, endpoints, interfaces, routes, pods and ports of the maps.
    fn snapshot(&self) -> Result<Value> {
        let node = &self.world.node.ns;
        let map = pins(&self.world)?
            .join("maps/cwy_ports")
            .to_string_lossy()
            .into_owned();
        let words = node.json("bpftool", &["-j", "map", "dump", "pinned", &map])?;
        let reserved = words.as_array().context("no words")?.iter().filter(|word| {
            word["value"]
                .as_array()
                .is_some_and(|bytes| bytes.iter().any(|byte| byte != "0x00"))
        });
        let mut served = self.world.served()?;
        served.sort();
        Ok(json!({
            "leases": format!("{:?}", self.world.leases()?), "endpoints": self.world.endpoints()?,
            "interfaces": self.world.interfaces()?, "routes": node.output("ip", &["route"])?, "pods": served,
            "ports": reserved.collect::<Vec<_>>(),
        }))
    }

    /// Nothing of the pod is left, and the neighbour has noticed nothing.
    fn expect_only_the_neighbour(&self, what: &str) -> Result<()> {
        let now = self.snapshot()?;
        ensure!(
            now == self.before,
            "{what}: {now:#} is left, not {:#}",
            self.before
        );
        self.world.assert_no_litter()?;
        let reached = self
            .neighbour
            .output("ping", &["-c1", "-i0.2", "-w5", "10.240.0.4"]);
        reached.map(drop).with_context(|| what.to_owned())
    }

    /// Runs a call, with what `inject` says done to one of its system calls.
    fn tampered(&self, call: &Call<'_>, inject: &str) -> Result<Output> {
        let mut strace = self.world.node.ns.command("strace");
        strace.args(["-qq", "-o", "/dev/null", "-e", &format!("inject={inject}")]);
        call.feed(call.run_by(strace))?
            .wait_with_output()
            .context("strace")
    }

    /// How many system calls a call makes on its first thread, where everything happens. Of one kind, or `all`.
    fn count(&self, call: &Call<'_>, kind: &str) -> Result<usize> {
        let log = self.world.node.root.join("/strace");
        let mut strace = self.world.node.ns.command("strace");
        strace
            .args(["-qq", "-e", &format!("trace={kind}"), "-o"])
            .arg(&log);
        let output = call.feed(call.run_by(strace))?.wait_with_output()?;
        ensure!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stdout)
        );
        Ok(fs::read_to_string(&log)?
            .lines()
            .filter(|line| line.contains('('))
            .count())
    }
}

/// Evenly spread, the last one included; all of them if `sample` is none.
fn points(count: usize, sample: Option<usize>) -> Vec<usize> {
    match sample {
        Some(sample) if sample < count => (1..=sample).map(|n| n * count / sample).collect(),
        _ => (1..=count).collect(),
    }
}

/// What the runtime does after a call that was killed.
fn kill_everywhere(sample: Option<usize>) -> Result<()> {
    let victim = Victim::new()?;
    let (add, del) = (victim.call("ADD")?, victim.call("DEL")?);
    let count = victim.count(&add, "all")?;
    for (turn, point) in points(count, sample).into_iter().enumerate() {
        let what = format!("ADD killed at {point} of {count}");
        victim.tampered(&add, &format!("all:signal=KILL:when={point}"))?;
        if turn % 2 == 0 {
            let output = add.output()?;
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            ensure!(
                output.status.success() || said.contains("already exists"),
                "{what}: {said}"
            );
            let reached = victim.pod.output("ping", &["-c1", "-i0.2", "-w5", "10.240.0.4"]);
            reached.with_context(|| what.clone())?;
        }
        del.ok().with_context(|| what.clone())?;
        victim.expect_only_the_neighbour(&what)?;
    }
    for (verb, call) in [("DEL", &del), ("GC", &victim.gc()?)] {
        add.ok()?;
        let count = victim.count(call, "all")?;
        for point in points(count, sample) {
            let what = format!("{verb} killed at {point} of {count}");
            add.ok()?;
            victim.tampered(call, &format!("all:signal=KILL:when={point}"))?;
            call.ok().with_context(|| what.clone())?;
            victim.expect_only_the_neighbour(&what)?;
        }
    }
    Ok(())
}

#[test]
fn a_call_killed_at_a_system_call_is_finished_by_the_next() -> Result<()> {
    kill_everywhere(Some(SAMPLE))
}

#[test]
#[ignore = "long: every system call of ADD, DEL and GC"]
fn long_a_call_killed_at_any_system_call_is_finished_by_the_next() -> Result<()> {
    kill_everywhere(None)
}

/// System calls that fail on a full, broken or read-only disk, or for want of descriptors.
const FAILURES: [(&str, &str); 9] = [
    ("write,pwrite64", "ENOSPC"),
    ("fsync", "EIO"),
    ("fsync", "ENOSPC"),
    ("rename", "EROFS"),
    ("rename", "ENOSPC"),
    ("ftruncate", "EROFS"),
    ("openat", "EMFILE"),
    ("openat", "EROFS"),
    ("socket,epoll_create1,eventfd2", "EMFILE"),
];

/// A call in which one system call fails either succeeds, or says so in one JSON object and leaves what was there.
fn fail_everywhere(sample: Option<usize>) -> Result<()> {
    let victim = Victim::new()?;
    let (add, del) = (victim.call("ADD")?, victim.call("DEL")?);
    for (kind, errno) in FAILURES {
        let count = victim.count(&add, kind)?;
        del.ok()?;
        for point in points(count, sample) {
            let what = format!("ADD, {kind} {point} of {count} fails with {errno}");
            let output = victim.tampered(&add, &format!("{kind}:error={errno}:when={point}"))?;
            if output.status.success() {
                del.ok().with_context(|| what.clone())?;
            } else if output.status.code() == Some(1) {
                let failure: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
                ensure!(
                    failure["code"].is_u64(),
                    "{what}: {}",
                    String::from_utf8_lossy(&output.stdout)
                );
            }
            victim.expect_only_the_neighbour(&what)?;
        }
        add.ok()?;
        let count = victim.count(&del, kind)?;
        for point in points(count, sample) {
            let what = format!("DEL, {kind} {point} of {count} fails with {errno}");
            add.ok().with_context(|| what.clone())?;
            let output = victim.tampered(&del, &format!("{kind}:error={errno}:when={point}"))?;
            if !output.status.success() {
                del.ok().with_context(|| what.clone())?;
            }
            victim.expect_only_the_neighbour(&what)?;
        }
    }
    Ok(())
}

#[test]
fn a_system_call_that_fails_leaves_nothing_half_done() -> Result<()> {
    fail_everywhere(Some(2))
}

#[test]
#[ignore = "long: every call that a disk or a lack of descriptors can fail"]
fn long_any_system_call_that_fails_leaves_nothing_half_done() -> Result<()> {
    fail_everywhere(None)
}
