//! Many calls at once, and calls that are killed in the middle.

use std::{
    collections::BTreeSet,
    net::Ipv4Addr,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use causeway_tests::netns::Netns;

use crate::call::{Call, World, address, side_by_side};

#[test]
fn twenty_pods_at_once() -> Result<()> {
    let world = World::new(20)?;
    let pods: Vec<Netns> = (0..20).map(|_| Netns::new()).collect::<Result<_>>()?;
    let calls = |verb| -> Result<Vec<Call<'_>>> {
        let of = |(n, ns)| Ok(world.network(verb, &format!("container-{n}"))?.netns(ns));
        pods.iter().enumerate().map(of).collect()
    };
    let given = side_by_side(&calls("ADD")?)?;
    let addresses: BTreeSet<Ipv4Addr> = given.iter().map(address).collect::<Result<_>>()?;
    assert_eq!(addresses.len(), 20);
    assert_eq!(
        (
            world.served()?.len(),
            world.endpoints()?.len(),
            world.interfaces()?.len()
        ),
        (20, 20, 20)
    );
    for to in addresses.iter().skip(1) {
        pods[0].output("ping", &["-c1", "-i0.2", "-w5", &to.to_string()])?;
    }
    side_by_side(&calls("DEL")?)?;
    world.assert_empty()
}

/// Delays from nothing to the length of a whole call, so that every part of it is hit.
fn kill_points(call: &Call<'_>, undo: &Call<'_>) -> Result<Vec<Duration>> {
    const POINTS: u32 = 25;
    let started = Instant::now();
    call.ok()?;
    let whole = started.elapsed();
    undo.ok()?;
    Ok((0..POINTS).map(|n| whole * n / POINTS).collect())
}

/// Runs the call and kills it after `delay`.
fn kill(call: &Call<'_>, delay: Duration) -> Result<()> {
    let mut child = call.spawn()?;
    thread::sleep(delay);
    child.kill()?;
    child.wait()?;
    Ok(())
}

#[test]
fn a_killed_ipam_add_loses_no_address() -> Result<()> {
    let world = World::new(4)?;
    let (add, del) = (|id: &str| world.ipam("ADD", id), |id: &str| world.ipam("DEL", id));
    add("neighbour").ok()?;
    for delay in kill_points(&add("a"), &del("a"))? {
        kill(&add("a"), delay)?;
        kill(&add("b"), delay)?;
        let [a, b]: [Ipv4Addr; 2] = [address(&add("a").ok()?)?, address(&add("b").ok()?)?];
        assert_ne!(a, b);
        let held: BTreeSet<String> = world
            .leases()?
            .into_iter()
            .map(|(_, container)| container)
            .collect();
        assert_eq!(held, BTreeSet::from(["a", "b", "neighbour"].map(str::to_owned)));
        kill(&del("a"), delay)?;
        del("a").ok()?;
        del("b").ok()?;
    }
    del("neighbour").ok()?;
    // Each of the four can still be had.
    for id in ["w", "x", "y", "z"] {
        add(id).ok()?;
    }
    assert_eq!(world.leases()?.len(), 4);
    world.assert_no_litter()
}

#[test]
fn a_killed_add_is_repeated_or_deleted() -> Result<()> {
    let world = World::new(4)?;
    let (ns, neighbour) = (Netns::new()?, Netns::new()?);
    let add = world.network("ADD", "container-1")?.netns(&ns);
    let del = world.network("DEL", "container-1")?;
    world.network("ADD", "neighbour-1")?.netns(&neighbour).ok()?;
    for (n, delay) in kill_points(&add, &del)?.into_iter().enumerate() {
        kill(&add, delay)?;
        if n % 2 == 0 {
            match add.output()? {
                output if output.status.success() => {
                    ns.output("ping", &["-c1", "-W2", "10.240.0.4"])?;
                }
                // Killed after all was done: to the runtime that never saw the result it failed, and a DEL follows.
                output => {
                    let text = String::from_utf8_lossy(&output.stdout).into_owned();
                    ensure!(text.contains("already exists"), "killed after {delay:?}: {text}");
                }
            }
        }
        kill(&del, delay)?;
        del.ok()?;
        assert_eq!(
            (
                world.leases()?.len(),
                world.endpoints()?.len(),
                world.interfaces()?.len()
            ),
            (1, 1, 1),
            "killed after {delay:?}"
        );
        assert_eq!(world.served()?.len(), 1, "killed after {delay:?}");
        neighbour.output("ping", &["-c1", "-W2", "10.240.0.4"])?;
    }
    world.network("DEL", "neighbour-1")?.ok()?;
    world.assert_empty()
}

/// The runtime gives up on an ADD and sends the DEL: the DEL waits for the ADD and takes back all of it.
#[test]
fn a_del_does_not_overtake_its_add() -> Result<()> {
    let world = World::new(2)?;
    let ns = Netns::new()?;
    let add = world.network("ADD", "container-1")?.netns(&ns);
    let del = world.network("DEL", "container-1")?;
    for delay in kill_points(&add, &del)? {
        let adding = add.spawn()?;
        thread::sleep(delay);
        let deleting = del.spawn()?;
        adding.wait_with_output()?;
        let deleted = deleting.wait_with_output()?;
        ensure!(
            deleted.status.success(),
            "{}",
            String::from_utf8_lossy(&deleted.stdout)
        );
        // A DEL that came first found nothing to do.
        del.ok()?;
        world.assert_empty()?;
    }
    Ok(())
}
