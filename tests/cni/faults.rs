//! Calls that end, or go wrong, at a system call: each of them in turn, by `strace -e inject`.

use std::{
    collections::BTreeMap,
    fs,
    process::{Command, Output},
};

use anyhow::{Context, Result, ensure};
use causeway_tests::netns::Netns;
use serde_json::{Value, json};

use crate::{
    call::{Call, World},
    check::pins,
    expedite::expect_put_back,
};

/// Points of a call that an ordinary run tries. The long one tries all.
const SAMPLE: usize = 20;

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
}

impl World {
    /// Runs a call, with what `inject` says done to one of its system calls.
    pub(crate) fn tampered(&self, call: &Call<'_>, inject: &str) -> Result<Output> {
        let mut strace = self.node.ns.command("strace");
        strace.args(["-qq", "-o", "/dev/null", "-e", &format!("inject={inject}")]);
        call.feed(call.run_by(strace))?
            .wait_with_output()
            .context("strace")
    }

    /// Runs a call and kills it when it makes a system call.
    pub(crate) fn kill(&self, call: &Call<'_>, point: &Point) -> Result<()> {
        self.tampered(call, &format!("{}:signal=KILL:when={}", point.name, point.nth))
            .map(drop)
    }

    /// The system calls that a call makes on its first thread, where everything happens, in order. Of some kinds, or `all`.
    pub(crate) fn points(&self, call: &Call<'_>, kinds: &str) -> Result<Vec<Point>> {
        let mut seen: BTreeMap<String, usize> = BTreeMap::new();
        let mut points = Vec::new();
        for name in system_calls(self, call, kinds)? {
            let nth = seen.entry(name.clone()).or_default();
            *nth += 1;
            points.push(Point { name, nth: *nth });
        }
        Ok(points)
    }
}

/// The names of the system calls that a call makes on its first thread, in order. Of some kinds, or `all`.
pub(crate) fn system_calls(world: &World, call: &Call<'_>, kinds: &str) -> Result<Vec<String>> {
    let log = world.node.root.join("/strace");
    let mut strace = world.node.ns.command("strace");
    strace
        .args(["-qq", "-e", &format!("trace={kinds}"), "-o"])
        .arg(&log);
    let output = call.feed(call.run_by(strace))?.wait_with_output()?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
    let lines = fs::read_to_string(&log)?;
    let names = lines.lines().filter_map(|line| Some(line.split_once('(')?.0));
    Ok(names.map(str::to_owned).collect())
}

/// A system call of a run: the how manieth of its name. (So does `when=` of strace count.)
#[derive(Debug)]
pub(crate) struct Point {
    name: String,
    nth: usize,
}

/// Evenly spread, the last one included; all of them if `sample` is none.
pub(crate) fn choose(points: Vec<Point>, sample: Option<usize>) -> Vec<Point> {
    let count = points.len();
    let every = sample.map_or(1, |sample| count.div_ceil(sample).max(1));
    let is_chosen = |at: usize| (count - 1 - at).is_multiple_of(every);
    points
        .into_iter()
        .enumerate()
        .filter(|(at, _)| is_chosen(*at))
        .map(|(_, point)| point)
        .collect()
}

/// What the runtime does after a call that was killed.
fn kill_everywhere(sample: Option<usize>) -> Result<()> {
    let victim = Victim::new()?;
    let (add, del) = (victim.call("ADD")?, victim.call("DEL")?);
    let points = victim.world.points(&add, "all")?;
    del.ok()?;
    for (turn, point) in choose(points, sample).into_iter().enumerate() {
        let what = format!("ADD killed at {point:?}");
        victim.world.kill(&add, &point)?;
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
        for point in choose(victim.world.points(call, "all")?, sample) {
            let what = format!("{verb} killed at {point:?}");
            add.ok()?;
            victim.world.kill(call, &point)?;
            call.ok().with_context(|| what.clone())?;
            victim.expect_only_the_neighbour(&what)?;
        }
    }
    expect_put_back()
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
    for (kinds, errno) in FAILURES {
        let points = victim.world.points(&add, kinds)?;
        del.ok()?;
        for point in choose(points, sample) {
            let what = format!("ADD, {point:?} fails with {errno}");
            let output = victim
                .world
                .tampered(&add, &format!("{}:error={errno}:when={}", point.name, point.nth))?;
            if output.status.success() {
                del.ok().with_context(|| what.clone())?;
            } else if output.status.code() == Some(1) {
                let failure: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
                let said = String::from_utf8_lossy(&output.stdout);
                ensure!(failure["code"].is_u64(), "{what}: {said}");
            }
            victim.expect_only_the_neighbour(&what)?;
        }
        add.ok()?;
        for point in choose(victim.world.points(&del, kinds)?, sample) {
            let what = format!("DEL, {point:?} fails with {errno}");
            add.ok().with_context(|| what.clone())?;
            let output = victim
                .world
                .tampered(&del, &format!("{}:error={errno}:when={}", point.name, point.nth))?;
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
