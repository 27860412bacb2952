//! Short grace periods: the kernel's file is the machine's, and is after the calls what it was before.

use std::{
    fs::{self, File},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use causeway_tests::netns::Netns;
use serde_json::json;

use crate::call::{Call, World};

const KNOB: &str = "/sys/kernel/rcu_expedited";
/// What the plug-in sets: the bytes `cwy`.
const IN_USE: &str = "6518649";

/// After every call the file is as it was, though not at once: other tests have calls under way.
pub(crate) fn expect_put_back() -> Result<()> {
    let end = Instant::now() + Duration::from_mins(1);
    while is_there() && value()? == IN_USE {
        ensure!(Instant::now() < end, "{KNOB} stays in use");
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

fn is_there() -> bool {
    File::options().write(true).open(KNOB).is_ok()
}

fn value() -> Result<String> {
    Ok(fs::read_to_string(KNOB)?.trim().to_owned())
}

/// Sets the file while no call of any test is about to.
fn set(value: &str) -> Result<()> {
    let alone = File::open(KNOB)?;
    alone.lock()?;
    fs::write(KNOB, value).with_context(|| KNOB.to_owned())
}

/// Leaves the file at what nobody has asked for otherwise.
struct PutBack;

impl Drop for PutBack {
    fn drop(&mut self) {
        set("0").ok();
    }
}

#[test]
fn an_administrators_choice_stays_and_what_a_killed_call_has_left_does_not() -> Result<()> {
    if !is_there() {
        return Ok(());
    }
    let world = World::new(1)?;
    let ns = Netns::new()?;
    let _put_back = PutBack;
    let (add, del) = (
        world.network("ADD", "container-1")?.netns(&ns),
        world.network("DEL", "container-1")?,
    );
    set("1")?;
    for call in [&add, &del] {
        call.ok()?;
        assert_eq!(value()?, "1");
    }
    for wanted in [true, false] {
        for call in [&add, &del] {
            set(IN_USE)?;
            call.clone().with("expediteRcu", json!(wanted)).ok()?;
            expect_put_back()?;
        }
    }
    set(IN_USE)?;
    world.node.causeway(&["unload"])?;
    expect_put_back()
}

/// Whether a call takes the lock of those who need short grace periods.
fn expedites(world: &World, call: &Call<'_>) -> Result<bool> {
    let log = world.node.root.join("/strace");
    let mut strace = world.node.ns.command("strace");
    strace
        .args(["-qq", "-P", KNOB, "-e", "trace=flock", "-o"])
        .arg(&log);
    let output = call.feed(call.run_by(strace))?.wait_with_output()?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
    Ok(fs::read_to_string(&log)?.contains("LOCK_SH"))
}

#[test]
fn grace_periods_are_short_unless_the_configuration_says_no() -> Result<()> {
    if !is_there() {
        return Ok(());
    }
    let world = World::new(1)?;
    let ns = Netns::new()?;
    for wanted in [true, false] {
        for verb in ["ADD", "DEL"] {
            let call = world.network(verb, "container-1")?.netns(&ns);
            let call = call.with("expediteRcu", json!(wanted));
            assert_eq!(expedites(&world, &call)?, wanted, "{verb}");
        }
    }
    let gc = |wanted: bool| -> Result<bool> {
        world.network("ADD", "container-1")?.netns(&ns).ok()?;
        let call = world.network("GC", "")?.with("cniVersion", json!("1.1.0"));
        let call = call.with("cni.dev/valid-attachments", json!([]));
        expedites(&world, &call.with("expediteRcu", json!(wanted)))
    };
    assert!(gc(true)? && !gc(false)?);
    world.assert_empty()
}
