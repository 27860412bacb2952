//! Case 40: STATUS says whether an ADD would work.

use std::fs;

use anyhow::Result;
use causeway_tests::netns::Netns;
use serde_json::{Value, json};

use crate::{
    call::World,
    check::{find, pins},
};

fn status(world: &World) -> Result<crate::call::Call<'_>> {
    Ok(world.network("STATUS", "")?.with("cniVersion", json!("1.1.0")))
}

#[test]
fn ready_exhausted_and_ready_again() -> Result<()> {
    let world = World::new(1)?;
    let ns = Netns::new()?;
    let both = || {
        Ok::<_, anyhow::Error>([
            status(&world)?,
            world.ipam("STATUS", "").with("cniVersion", json!("1.1.0")),
        ])
    };
    for call in both()? {
        assert_eq!(call.ok()?, Value::Null, "before the first pod");
    }
    let add = world.network("ADD", "container-1")?.netns(&ns);
    add.ok()?;
    for call in both()? {
        let failure = call.error()?;
        assert_eq!(
            (failure.code, failure.msg.as_str()),
            (50, "No available addresses")
        );
        assert!(
            failure.details.contains("1 of 1 addresses of pool 10.240.0.0/16"),
            "{failure:?}"
        );
    }
    world.network("DEL", "container-1")?.ok()?;
    for call in both()? {
        call.ok()?;
    }
    Ok(())
}

#[test]
fn what_keeps_an_add_from_working_is_said() -> Result<()> {
    let world = World::new(2)?;
    let list = world.node.root.join("/etc/kubernetes/interfaces.json");
    let text = fs::read_to_string(&list)?;
    fs::remove_file(&list)?;
    let failure = status(&world)?.error()?;
    assert!(
        failure.code == 50 && failure.msg.contains("interfaces.json"),
        "{failure:?}"
    );
    fs::write(&list, text)?;
    let failure = status(&world)?.with("master", json!("eth9")).error()?;
    assert!(failure.code == 50 && failure.msg.contains("eth9"), "{failure:?}");
    let failure = status(&world)?.with("multiTenancy", json!(true)).error()?;
    assert_eq!(failure.code, 7, "{failure:?}");
    // What STATUS says does not keep anybody from trying.
    let ns = Netns::new()?;
    world.network("ADD", "container-1")?.netns(&ns).ok()?;
    status(&world)?.ok()?;
    fs::write(world.node.root.join("/var/run/azure-vnet-ipam.json"), "{")?;
    let failure = status(&world)?.error()?;
    assert!(
        failure.code == 50 && failure.msg.contains("is damaged"),
        "{failure:?}"
    );
    Ok(())
}

#[test]
fn pods_without_their_programs_are_said() -> Result<()> {
    let world = World::new(2)?;
    let ns = Netns::new()?;
    world.network("ADD", "container-1")?.netns(&ns).ok()?;
    let mut pinned = Vec::new();
    find(&pins(&world)?.join("links"), &mut pinned)?;
    assert_eq!(pinned.len(), 4, "two for the uplink, two for the pod");
    for path in pinned {
        fs::remove_file(path)?;
        let failure = status(&world)?.error()?;
        assert!(
            failure.code == 51 && failure.msg.contains("is not attached"),
            "{failure:?}"
        );
    }
    world.node.causeway(&["unload"])?;
    let failure = status(&world)?.error()?;
    assert!(
        failure.code == 51 && failure.msg.contains("is not loaded"),
        "{failure:?}"
    );
    world.network("DEL", "container-1")?.ok()?;
    status(&world)?.ok()?;
    Ok(())
}
