//! XDP on the uplink comes and goes with the configuration.

use std::fs;

use anyhow::{Result, ensure};
use causeway_tests::netns::Netns;
use serde_json::{Value, json};

use crate::call::{Call, World};

/// A call that says whether it wants XDP; `null` says nothing.
fn call<'a>(world: &'a World, verb: &str, ns: &Netns, wanted: Value) -> Result<Call<'a>> {
    let call = world
        .network(verb, &format!("container{}", ns.path().replace('/', "-")))?
        .netns(ns);
    Ok(call.with("cniVersion", json!("1.0.0")).with("uplinkXdp", wanted))
}

/// The name of the program in the uplink's driver.
fn program(world: &World) -> Result<Option<String>> {
    let links = world
        .node
        .ns
        .json("ip", &["-j", "-d", "link", "show", "dev", "eth0"])?;
    let xdp = &links[0]["xdp"];
    ensure!(xdp.is_null() || xdp["mode"] == 1, "not in the driver: {xdp}");
    Ok(xdp["prog"]["name"].as_str().map(str::to_owned))
}

/// What `causeway status` says of it.
fn status(world: &World) -> Result<Value> {
    Ok(world.node.causeway_json("status")?["xdp"].clone())
}

/// Whether the pod's interface polls: only then it takes frames.
fn polls(ns: &Netns) -> Result<bool> {
    let features = ns.output("ethtool", &["-k", "eth0"])?;
    Ok(features.contains("generic-receive-offload: on"))
}

#[test]
fn xdp_is_attached_where_it_is_wanted_and_stays_until_it_is_not() -> Result<()> {
    const PROGRAM: &str = "cwy_xdp_uplink";
    let world = World::new(4)?;
    let pods = [Netns::new()?, Netns::new()?, Netns::new()?, Netns::new()?];
    let [before, with, silent, without] = &pods;

    call(&world, "ADD", before, Value::Null)?.ok()?;
    assert_eq!((program(&world)?, status(&world)?), (None, Value::Null));
    assert!(!polls(before)?);

    let result = call(&world, "ADD", with, json!(true))?.ok()?;
    assert_eq!(
        (program(&world)?.as_deref(), status(&world)?),
        (Some(PROGRAM), json!(true))
    );
    assert!(polls(with)?);
    call(&world, "ADD", silent, Value::Null)?.ok()?;
    assert_eq!(
        (program(&world)?.as_deref(), polls(silent)?),
        (Some(PROGRAM), true)
    );

    // Somebody takes it off: CHECK names it, the next ADD puts it back.
    let check = call(&world, "CHECK", with, json!(true))?.with("prevResult", result);
    check.ok()?;
    fs::remove_file(world.node.root.join("/sys/fs/bpf/causeway/v2/links/uplink_xdp"))?;
    assert_eq!(status(&world)?, json!(false));
    let error = check.error()?;
    let text = error.msg;
    assert!(text.contains(PROGRAM) && text.contains("eth0"), "{text}");
    call(&world, "DEL", silent, Value::Null)?.ok()?;
    call(&world, "ADD", silent, Value::Null)?.ok()?;
    assert_eq!(program(&world)?.as_deref(), Some(PROGRAM));
    check.ok()?;

    call(&world, "ADD", without, json!(false))?.ok()?;
    assert_eq!((program(&world)?, status(&world)?), (None, Value::Null));
    assert!(!polls(without)?);
    for pod in &pods {
        call(&world, "DEL", pod, Value::Null)?.ok()?;
    }
    world.assert_empty()
}

#[test]
fn a_wish_that_is_neither_yes_nor_no_is_refused_by_name() -> Result<()> {
    let world = World::new(1)?;
    let ns = Netns::new()?;
    let error = call(&world, "ADD", &ns, json!("driver"))?.error()?;
    assert!(error.msg.contains("uplinkXdp"), "{error:?}");
    world.assert_empty()
}
