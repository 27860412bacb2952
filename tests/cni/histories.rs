//! Random histories of many containers at once, compared with a model of who holds what; and a storm of pods.

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    net::Ipv4Addr,
    process::{Child, Output},
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use causeway_tests::netns::Netns;
use serde_json::{Value, json};

use crate::{
    call::{Call, World, address},
    expedite::expect_put_back,
};

/// xorshift64*: the same history for the same seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % sides
    }
}

const POOL: u8 = 6;
const CONTAINERS: u64 = 9;
/// Calls that run side by side.
const WIDTH: usize = 4;
/// When a call that is killed is so at the latest: a little later than most have done their work. Microseconds.
const LIFETIME: u64 = 4000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Add,
    Del,
    Check,
}

/// A call under way.
struct Running {
    container: u64,
    step: Step,
    child: Child,
    /// It is to be killed.
    doomed: bool,
}

/// What the model knows of each container: its address.
type Model = BTreeMap<u64, Ipv4Addr>;

fn name(container: u64) -> String {
    format!("container-{container}")
}

fn held(world: &World) -> Result<Model> {
    let number = |name: &str| name.rsplit('-').next().and_then(|text| text.parse().ok());
    let leases = world.leases()?;
    let mut model = Model::new();
    for (address, container) in leases {
        let container = number(&container).with_context(|| format!("{container} holds {address}"))?;
        ensure!(
            model.insert(container, address).is_none(),
            "container {container} holds two addresses"
        );
    }
    Ok(model)
}

/// A history of about `calls` calls, on a node on which nothing is leased. Nothing is when it ends.
fn history(world: &World, seed: u64, calls: usize) -> Result<()> {
    let mut dice = Dice(seed);
    let mut model = Model::new();
    let mut done = 0;
    while done < calls {
        if dice.roll(20) == 0 {
            collect(world, &mut dice, &mut model)?;
            done += 1;
            continue;
        }
        let running = start_some(world, &mut dice, &model)?;
        done += running.len();
        let before = model.clone();
        let mut uncertain = BTreeSet::new();
        let mut exhausted = false;
        for call in running {
            let Running {
                container,
                step,
                mut child,
                doomed,
            } = call;
            if doomed {
                child.kill()?;
                uncertain.insert(container);
            }
            let output = child.wait_with_output()?;
            if !doomed {
                exhausted |= judge(container, step, &output, &mut model)?;
            }
        }
        let now = held(world)?;
        for container in 0..CONTAINERS {
            let (was, is, expected) = (before.get(&container), now.get(&container), model.get(&container));
            if uncertain.contains(&container) {
                // Killed before it did its work, or after.
                ensure!(
                    was.is_none() || is.is_none() || was == is,
                    "seed {seed}: container {container} moved"
                );
            } else {
                ensure!(
                    is == expected,
                    "seed {seed}: container {container} has {is:?}, not {expected:?}"
                );
            }
        }
        if exhausted {
            let taken = before.len() + WIDTH;
            ensure!(
                taken >= usize::from(POOL),
                "seed {seed}: exhausted with {} of {POOL} held",
                before.len()
            );
        }
        model = now;
    }
    for container in model.keys() {
        world.ipam("DEL", &name(*container)).ok()?;
    }
    ensure!(held(world)?.is_empty(), "seed {seed}: something is left");
    Ok(())
}

fn start_some(world: &World, dice: &mut Dice, model: &Model) -> Result<Vec<Running>> {
    let mut chosen = BTreeSet::new();
    while chosen.len() < WIDTH {
        chosen.insert(dice.roll(CONTAINERS));
    }
    let mut running = Vec::new();
    for container in chosen {
        let (step, call) = match (dice.roll(8), model.get(&container)) {
            (0..4, _) => (Step::Add, world.ipam("ADD", &name(container))),
            (4, Some(address)) => {
                let result = json!({ "ips": [{ "address": format!("{address}/16") }] });
                (
                    Step::Check,
                    world.ipam("CHECK", &name(container)).with("prevResult", result),
                )
            }
            _ => (Step::Del, world.ipam("DEL", &name(container))),
        };
        let doomed = dice.roll(6) == 0;
        let child = call.spawn()?;
        if doomed {
            thread::sleep(Duration::from_micros(dice.roll(LIFETIME)));
        }
        running.push(Running {
            container,
            step,
            child,
            doomed,
        });
    }
    Ok(running)
}

/// Enters what a call said into the model. Returns whether no address was left for it.
fn judge(container: u64, step: Step, output: &Output, model: &mut Model) -> Result<bool> {
    let said: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    match (step, output.status.success()) {
        (Step::Add, true) => {
            model.insert(container, address(&said)?);
        }
        (Step::Add, false) => {
            let text = said["msg"].as_str().unwrap_or_default();
            ensure!(
                text.ends_with("No available addresses"),
                "ADD of {container}: {said}"
            );
            ensure!(
                !model.contains_key(&container),
                "{container} has an address and got none"
            );
            return Ok(true);
        }
        (Step::Del, success) => {
            ensure!(success, "DEL of {container}: {said}");
            model.remove(&container);
        }
        (Step::Check, success) => ensure!(success, "CHECK of {container}: {said}"),
    }
    Ok(false)
}

/// GC is alone, as runtimes have it.
fn collect(world: &World, dice: &mut Dice, model: &mut Model) -> Result<()> {
    let valid: Vec<u64> = (0..CONTAINERS).filter(|_| dice.roll(3) != 0).collect();
    let attachments: Vec<Value> = valid
        .iter()
        .map(|id| json!({ "containerID": name(*id), "ifname": "eth0" }))
        .collect();
    let call = world.ipam("GC", "").with("cniVersion", json!("1.1.0"));
    call.with("cni.dev/valid-attachments", json!(attachments)).ok()?;
    model.retain(|container, _| valid.contains(container));
    ensure!(
        held(world)? == *model,
        "GC with {valid:?}: {:?}, not {model:?}",
        held(world)?
    );
    Ok(())
}

#[test]
fn random_histories_agree_with_the_model() -> Result<()> {
    let world = World::new(POOL)?;
    (1..=4).try_for_each(|seed| history(&world, seed, 150))?;
    world.assert_empty()
}

/// Histories of the long run.
const HISTORIES: u64 = 10_000;
/// Names the first of them, to go on where a run ended.
const FROM: &str = "CAUSEWAY_HISTORIES_FROM";
/// How long a run may take, whatever else the machine does.
const AT_MOST: Duration = Duration::from_mins(15);

#[test]
#[ignore = "long: 10,000 histories"]
fn long_random_histories_agree_with_the_model() -> Result<()> {
    let first = env::var(FROM).map_or(Ok(1), |text| text.parse::<u64>());
    let next = AtomicU64::new(first.with_context(|| format!("{FROM} is no number"))?);
    let end = Instant::now() + AT_MOST;
    let worker = || -> Result<()> {
        let world = World::new(POOL)?;
        while Instant::now() < end {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed > HISTORIES {
                break;
            }
            history(&world, seed, 24).with_context(|| format!("seed {seed}"))?;
            if seed.is_multiple_of(500) {
                println!("{seed} histories");
            }
        }
        world.assert_empty()
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..thread::available_parallelism()?.get())
            .map(|_| scope.spawn(worker))
            .collect();
        let mut joined = workers
            .into_iter()
            .map(|worker| worker.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?);
        joined.try_for_each(|result| result)
    })?;
    let next = next.into_inner();
    ensure!(
        next > HISTORIES,
        "{AT_MOST:?} are over: {FROM}={next} goes on from here"
    );
    Ok(())
}

/// Starts a call for each pod at once. Returns how long each took, the quickest first.
fn all_at_once(calls: &[Call<'_>]) -> Result<(Vec<Duration>, Vec<Value>)> {
    let finished = thread::scope(|scope| {
        let started: Vec<_> = calls
            .iter()
            .map(|call| {
                scope.spawn(move || {
                    let started = Instant::now();
                    call.ok().map(|answer| (started.elapsed(), answer))
                })
            })
            .collect();
        let joined = started
            .into_iter()
            .map(|thread| thread.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?);
        joined.collect::<Result<Vec<_>>>()
    })?;
    let (mut times, answers): (Vec<_>, Vec<_>) = finished.into_iter().unzip();
    times.sort_unstable();
    Ok((times, answers))
}

/// The incumbent fails above 150.
#[test]
fn a_full_node_comes_and_goes_at_once() -> Result<()> {
    const PODS: usize = 250;
    let world = World::new(PODS as u8)?;
    let pods: Vec<Netns> = (0..PODS).map(|_| Netns::new()).collect::<Result<_>>()?;
    let calls = |verb: &str| -> Result<Vec<Call<'_>>> {
        let call = |(n, ns)| Ok(world.network(verb, &format!("{n:08x}{n:056x}"))?.netns(ns));
        pods.iter().enumerate().map(call).collect()
    };
    for verb in ["ADD", "DEL"] {
        let (times, answers) = all_at_once(&calls(verb)?)?;
        let at = |percent: usize| times[(PODS - 1) * percent / 100];
        println!(
            "{PODS} {verb} at once: median {:?}, p99 {:?}, slowest {:?}",
            at(50),
            at(99),
            at(100)
        );
        if verb == "ADD" {
            let addresses: BTreeSet<Ipv4Addr> = answers.iter().map(address).collect::<Result<_>>()?;
            assert_eq!(
                (addresses.len(), world.served()?.len(), world.endpoints()?.len()),
                (PODS, PODS, PODS)
            );
            pods[0].output("ping", &["-c1", "-i0.2", "-w5", "10.240.0.4"])?;
        }
        expect_put_back()?;
    }
    world.assert_empty()
}
