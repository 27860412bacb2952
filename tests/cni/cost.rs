//! What a call costs, as far as it can be counted: the size of the binary, resident memory, system calls. Counts do not
//! depend on how busy the machine is.

use std::{
    fs,
    io::{PipeReader, Read},
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use causeway_tests::netns::Netns;
use rustix::fs::{OFlags, fcntl_setfl};

use crate::{
    call::{Call, World},
    faults::system_calls,
};

/// Bytes of the binary, kernel programs included.
const BINARY: u64 = 4 << 20;
/// What an ADD may have resident at most. KiB.
const RESIDENT: u64 = 8 << 10;
/// The same for the first one after a boot, which loads the datapath: aya reads the kernel's own types for it. KiB.
const RESIDENT_LOADING: u64 = 28 << 10;
/// System calls of an ADD, and of a DEL, on a node whose datapath is loaded. Beside another call, which has made grace periods
/// short already, it makes seven fewer.
const ADD_CALLS: usize = 295;
const DEL_CALLS: usize = 209;

#[test]
fn the_binary_is_small() -> Result<()> {
    let world = World::new(1)?;
    for name in ["azure-vnet", "azure-vnet-ipam"] {
        let size = fs::metadata(world.dist.plugin(name))?.len();
        assert!(size <= BINARY, "{name} has {size} bytes");
    }
    Ok(())
}

/// A pipe that takes no byte more, and how many it has.
fn full_pipe() -> Result<(PipeReader, std::io::PipeWriter, usize)> {
    let (reader, writer) = std::io::pipe()?;
    fcntl_setfl(&writer, OFlags::NONBLOCK)?;
    let (mut bytes, block) = (0, [b' '; 4096]);
    while let Ok(written) = rustix::io::write(&writer, &block) {
        bytes += written;
    }
    fcntl_setfl(&writer, OFlags::empty())?;
    Ok((reader, writer, bytes))
}

/// The most that a call had resident until it printed its result, in KiB: it is looked at while it waits for room in the
/// pipe that takes it.
fn peak_of(call: &Call<'_>) -> Result<u64> {
    let (mut reader, writer, filled) = full_pipe()?;
    let mut command = call.command();
    command.stdout(Stdio::from(writer));
    let mut child = call.feed(command)?;
    let process = format!("/proc/{}", child.id());
    let printing = format!("{} 0x1 ", libc::SYS_write);
    let end = Instant::now() + Duration::from_mins(1);
    while !fs::read_to_string(format!("{process}/syscall"))
        .unwrap_or_default()
        .starts_with(&printing)
    {
        ensure!(Instant::now() < end, "the call does not come to print its result");
        thread::sleep(Duration::from_millis(2));
    }
    let status = fs::read_to_string(format!("{process}/status"))?;
    let mut text = Vec::new();
    reader.read_to_end(&mut text)?;
    ensure!(child.wait()?.success(), "the call failed");
    ensure!(text.len() > filled, "nothing was printed");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let peak = peak.and_then(|text| text.trim().strip_suffix(" kB"));
    Ok(peak.context("no VmHWM in the status")?.trim().parse()?)
}

#[test]
fn an_add_is_resident_in_eight_mebibytes() -> Result<()> {
    let world = World::new(250)?;
    let pods = [Netns::new()?, Netns::new()?];
    for (what, id, ns, most) in [
        ("first", "container-1", &pods[0], RESIDENT_LOADING),
        ("usual", "container-2", &pods[1], RESIDENT),
    ] {
        let peak = peak_of(&world.network("ADD", id)?.netns(ns))?;
        println!("the {what} ADD: {peak} KiB");
        assert!(peak <= most, "the {what} ADD: {peak} KiB");
    }
    Ok(())
}

#[test]
fn system_calls_are_few() -> Result<()> {
    let world = World::new(250)?;
    let pods = [Netns::new()?, Netns::new()?];
    world.network("ADD", "container-1")?.netns(&pods[0]).ok()?;
    for (verb, most) in [("ADD", ADD_CALLS), ("DEL", DEL_CALLS)] {
        let call = world.network(verb, "container-2")?.netns(&pods[1]);
        let calls = system_calls(&world, &call, "all")?;
        println!("{verb}: {} system calls", calls.len());
        assert!(
            calls.len() <= most,
            "{verb}: {} system calls, at most {most} allowed: {}",
            calls.len(),
            calls.join(" ")
        );
    }
    Ok(())
}
