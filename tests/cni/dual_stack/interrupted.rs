//! The first pod of both families loads the programs for IPv6: killed on the way, the next call finishes it.

use anyhow::{Context, Result, ensure};
use causeway_tests::netns::Netns;

use super::{VNET, at, list, nothing_is_left, talk, world};
use crate::{
    call::World,
    faults::choose,
    pods::{add, del},
};

/// What the loading does on the ADD's first thread: maps and programs are made, pinned and named.
const KINDS: &str = "bpf,rename,unlink,chmod";
const SAMPLE: usize = 16;

/// A node whose programs for IPv4 are loaded.
fn node() -> Result<(World, Netns)> {
    let (world, neighbour) = (world(2, &[at(5)])?, Netns::new()?);
    list(&world, 2, &[])?;
    add(&world, 9, &neighbour)?.ok()?;
    list(&world, 2, &[("fd00:10::/64", &[at(5)])])?;
    Ok((world, neighbour))
}

fn killed_everywhere(sample: Option<usize>) -> Result<()> {
    let points = {
        let (world, _neighbour) = node()?;
        let ns = Netns::new()?;
        world.points(&add(&world, 1, &ns)?, KINDS)?
    };
    for point in choose(points, sample) {
        let what = format!("ADD killed at {point:?}");
        let (world, neighbour) = node()?;
        let ns = Netns::new()?;
        let call = add(&world, 1, &ns)?;
        world.kill(&call, &point)?;
        neighbour
            .output("ping", &["-c1", "-i0.2", "-w5", "10.240.1.10"])
            .with_context(|| what.clone())?;
        let output = call.output()?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(
            output.status.success() || said.contains("already exists"),
            "{what}: {said}"
        );
        let before = world.node.count("carried_to_pod")?;
        talk(&world.fabric.vnet, &ns, at(5)).with_context(|| what.clone())?;
        talk(&ns, &world.fabric.vnet, VNET).with_context(|| what.clone())?;
        ensure!(
            world.node.count("carried_to_pod")? > before,
            "{what}: nothing was carried"
        );
        del(&world, 1)?.netns(&ns).ok().with_context(|| what.clone())?;
        del(&world, 9)?
            .netns(&neighbour)
            .ok()
            .with_context(|| what.clone())?;
        nothing_is_left(&world).with_context(|| what)?;
    }
    Ok(())
}

#[test]
fn a_loading_that_is_killed_is_finished_by_the_next_call() -> Result<()> {
    killed_everywhere(Some(SAMPLE))
}

#[test]
#[ignore = "long: every call of the kernel in which it loads"]
fn long_a_loading_that_is_killed_anywhere_is_finished_by_the_next_call() -> Result<()> {
    killed_everywhere(None)
}
