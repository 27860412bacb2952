//! `azure-vnet-ipam` called by itself.

use std::{
    collections::BTreeSet,
    fs,
    time::{Duration, Instant},
};

use anyhow::Result;
use rustix::{
    fs::{FlockOperation, flock},
    mount::{MountFlags, UnmountFlags, mount, unmount},
};
use serde_json::{Value, json};

use crate::call::{Call, World, address, side_by_side};

const STATE: &str = "/var/run/azure-vnet-ipam.json";

#[test]
fn a_lease_is_given_once_and_taken_back() -> Result<()> {
    let world = World::new(3)?;
    for version in crate::protocol::VERSIONS {
        let result = world
            .ipam("ADD", version)
            .with("cniVersion", json!(version))
            .ok()?;
        let address = address(&result)?;
        let routes = json!([{ "dst": "0.0.0.0/0", "gw": "10.240.0.1" }]);
        let mut expected = json!({ "cniVersion": version, "dns": { "nameservers": ["168.63.129.16"] } });
        if version < "0.3" {
            expected["ip4"] =
                json!({ "ip": format!("{address}/16"), "gateway": "10.240.0.1", "routes": routes });
        } else {
            let mut ip = json!({ "address": format!("{address}/16"), "gateway": "10.240.0.1" });
            if version < "1" {
                ip["version"] = "4".into();
            }
            expected["ips"] = json!([ip]);
            expected["routes"] = routes;
        }
        assert_eq!(result, expected);
        let again = world
            .ipam("ADD", version)
            .with("cniVersion", json!(version))
            .ok()?;
        assert_eq!(again, expected, "the same container, the same address");
        assert_eq!(world.leases()?, [(address, version.to_owned())]);
        for _ in 0..3 {
            assert_eq!(
                world
                    .ipam("DEL", version)
                    .with("cniVersion", json!(version))
                    .ok()?,
                Value::Null
            );
        }
    }
    world.assert_empty()
}

#[test]
fn a_released_address_is_given_last() -> Result<()> {
    let world = World::new(3)?;
    let mut given = Vec::new();
    for container in ["a", "b", "c", "d"] {
        given.push(address(&world.ipam("ADD", container).ok()?)?.octets()[3]);
        world.ipam("DEL", container).ok()?;
    }
    assert_eq!(given, [5, 6, 7, 5]);
    Ok(())
}

#[test]
fn exhaustion_is_said_in_the_incumbents_words() -> Result<()> {
    let world = World::new(2)?;
    world.ipam("ADD", "a").ok()?;
    world.ipam("ADD", "b").ok()?;
    let failure = world.ipam("ADD", "c").error()?;
    assert_eq!(
        (failure.code, failure.msg.as_str()),
        (100, "Failed to allocate address: No available addresses")
    );
    assert!(
        failure
            .details
            .contains("2 of 2 addresses of pool 10.240.0.0/16 are in use"),
        "{failure:?}"
    );
    let ns = causeway_tests::netns::Netns::new()?;
    let failure = world.network("ADD", "c")?.netns(&ns).error()?;
    assert_eq!(
        (failure.code, failure.msg.as_str()),
        (
            100,
            "Failed to allocate pool: Failed to delegate: Failed to allocate address: No available addresses"
        )
    );
    world.ipam("DEL", "a").ok()?;
    assert_eq!(address(&world.ipam("ADD", "c").ok()?)?.octets()[3], 5);
    Ok(())
}

#[test]
fn requested_addresses() -> Result<()> {
    let world = World::new(3)?;
    let ipam = |ip: &str| json!({ "type": "azure-vnet-ipam", "environment": "mas", "ipAddress": ip });
    let ask = |container: &str, ip: &str| world.ipam("ADD", container).with("ipam", ipam(ip));
    assert_eq!(address(&ask("a", "10.240.0.7").ok()?)?.octets()[3], 7);
    for (ip, needle) in [
        ("10.240.0.7", "Address already in use: 10.240.0.7"),
        ("10.240.0.4", "Address not found: 10.240.0.4"),
        ("10.240.0.1", "Address not found: 10.240.0.1"),
        ("ten", "is not an IP address"),
    ] {
        let failure = ask("b", ip).error()?;
        assert!(failure.msg.contains(needle), "{failure:?}");
    }
    let two = json!({ "ips": ["10.240.0.5", "10.240.0.6"] });
    let failure = world.ipam("ADD", "b").with("runtimeConfig", two).error()?;
    assert!(
        failure
            .msg
            .starts_with("failed to allocate all requested IPs: 10.240.0.5, 10.240.0.6"),
        "{failure:?}"
    );
    assert_eq!(world.leases()?.len(), 1, "nothing is reserved by a failure");
    // podman lists the address twice on a reload, and its keys may have capitals.
    let twice = json!({ "IPs": ["10.240.0.6", "10.240.0.6/16"], "PortMappings": null });
    assert_eq!(
        address(&world.ipam("ADD", "b").with("RuntimeConfig", twice).ok()?)?.octets()[3],
        6
    );
    assert_eq!(
        address(&world.ipam("ADD", "c").env("CNI_ARGS", "IP=10.240.0.5").ok()?)?.octets()[3],
        5
    );
    Ok(())
}

#[test]
fn twenty_at_once_get_twenty_addresses() -> Result<()> {
    let world = World::new(20)?;
    let calls = |verb| -> Vec<Call<'_>> { (0..20).map(|n| world.ipam(verb, &format!("c{n}"))).collect() };
    let given = side_by_side(&calls("ADD"))?;
    let addresses: BTreeSet<_> = given.iter().map(address).collect::<Result<_>>()?;
    assert_eq!((addresses.len(), world.leases()?.len()), (20, 20));
    side_by_side(&calls("DEL"))?;
    world.assert_empty()
}

#[test]
fn the_list_may_change_under_held_addresses() -> Result<()> {
    let world = World::new(2)?;
    world.ipam("ADD", "a").ok()?;
    let path = world.node.root.join("/etc/kubernetes/interfaces.json");
    let text = fs::read_to_string(&path)?.replace("10.240.0.5", "10.240.0.9");
    fs::write(&path, text)?;
    let mut given = BTreeSet::from([address(&world.ipam("ADD", "b").ok()?)?.octets()[3]]);
    given.insert(address(&world.ipam("ADD", "c").ok()?)?.octets()[3]);
    assert_eq!(given, BTreeSet::from([6, 9]));
    assert_eq!(
        world.leases()?.len(),
        3,
        "the vanished address is still its holder's"
    );
    world.ipam("DEL", "a").ok()?;
    let failure = world.ipam("ADD", "d").error()?;
    assert!(failure.details.contains("2 of 2"), "{failure:?}");

    fs::write(&path, "{")?;
    world.ipam("DEL", "b").ok()?;
    world.ipam("ADD", "e").ok()?;
    fs::remove_file(world.node.root.join(STATE))?;
    let failure = world.ipam("ADD", "f").error()?;
    assert!(
        failure.msg.contains("interfaces.json is not JSON: EOF"),
        "{failure:?}"
    );
    Ok(())
}

#[test]
fn garbage_in_the_state_is_named_and_kept() -> Result<()> {
    let world = World::new(2)?;
    world.ipam("ADD", "a").ok()?;
    for garbage in ["{", "\u{0}\u{0}\u{0}", "[]", r#"{"IPAM":{"AddressSpaces":[]}}"#] {
        world.node.root.write(STATE, garbage)?;
        let failure = world.ipam("ADD", "b").error()?;
        assert!(
            failure.code == 11 && failure.msg.contains("is damaged") && failure.msg.contains("delete"),
            "{failure:?}"
        );
        assert_eq!(fs::read_to_string(world.node.root.join(STATE))?, garbage);
    }
    world.node.root.write(STATE, "")?;
    world.ipam("ADD", "b").ok()?;
    Ok(())
}

#[test]
fn the_incumbents_lock_is_waited_for() -> Result<()> {
    let world = World::new(1)?;
    let path = "/var/run/azure-vnet/azure-vnet-ipam.lock";
    world.node.root.write(path, "4711")?;
    let held = fs::OpenOptions::new()
        .write(true)
        .open(world.node.root.join(path))?;
    flock(&held, FlockOperation::LockExclusive)?;
    let started = Instant::now();
    let call = world.ipam("ADD", "a").spawn()?;
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(world.leases()?, []);
    flock(&held, FlockOperation::Unlock)?;
    assert!(call.wait_with_output()?.status.success());
    assert!(started.elapsed() >= Duration::from_millis(300));
    assert_eq!(world.leases()?.len(), 1);
    Ok(())
}

/// A small file system at the node's `/var/run`.
struct Small(std::path::PathBuf);

impl Small {
    fn new(world: &World, bytes: u32) -> Result<Self> {
        let directory = world.node.root.join("/var/run");
        fs::create_dir_all(&directory)?;
        let options = std::ffi::CString::new(format!("size={bytes}"))?;
        mount(
            "tmpfs",
            &directory,
            "tmpfs",
            MountFlags::empty(),
            options.as_c_str(),
        )?;
        Ok(Self(directory))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        unmount(&self.0, UnmountFlags::DETACH).ok();
    }
}

#[test]
fn a_full_disk_loses_nothing() -> Result<()> {
    let world = World::new(200)?;
    let small = Small::new(&world, 96 << 10)?;
    world.ipam("ADD", "a").ok()?;
    let before = fs::read(world.node.root.join(STATE))?;
    let filler = small.0.join("filler");
    // Fills what is left.
    fs::write(&filler, vec![0; 96 << 10]).unwrap_err();
    let failure = world.ipam("ADD", "b").error()?;
    assert!(
        failure.code == 11 && failure.msg.contains("No space left"),
        "{failure:?}"
    );
    let failure = world.ipam("DEL", "a").error()?;
    assert_eq!(failure.code, 11, "{failure:?}");
    assert_eq!(fs::read(world.node.root.join(STATE))?, before);
    fs::remove_file(&filler)?;
    world.ipam("DEL", "a").ok()?;
    world.assert_empty()
}
