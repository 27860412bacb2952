//! What an operator sees with nothing but `bpftool`: names and numbers, never bytes.

use std::net::SocketAddrV4;

use anyhow::{Context, Result, bail, ensure};
use causeway_tests::{
    echo::Echo,
    fabric::{INTERNET, NODE},
    rig::Rig,
    talk::Udp,
    walk::Walk,
};
use serde_json::Value;

#[test]
fn bpftool_prints_every_map_with_named_fields() -> Result<()> {
    let rig = Rig::causeway()?;
    let pod = rig.pod("a")?;
    Walk::direct(&pod.ns, &rig.fabric.internet, SocketAddrV4::new(INTERNET, 7))
        .tcp(&rig)?
        .expect_carried(NODE)?;
    // Fragments, for the map that holds them.
    let _echo = Echo::start(&rig.fabric.internet, 9)?;
    Udp::connect(&pod.ns, SocketAddrV4::new(INTERNET, 9))?.ask(3000)?;
    let maps = rig.node.root.join("/sys/fs/bpf/causeway/v2/maps");
    let mut names = Vec::new();
    for entry in std::fs::read_dir(&maps)? {
        let path = entry?.path();
        let name = path
            .file_name()
            .context("a pin has a name")?
            .to_string_lossy()
            .into_owned();
        if WITHOUT_KEYS.contains(&name.as_str()) {
            names.push(name);
            continue;
        }
        let dump = rig
            .node
            .ns
            .output("bpftool", &["map", "dump", "pinned", &path.display().to_string()])?;
        check(&dump).with_context(|| format!("{name}: {}", dump.chars().take(400).collect::<String>()))?;
        names.push(name);
    }
    names.sort();
    ensure!(
        names
            == [
                "cwy_age_queue",
                "cwy_backends",
                "cwy_balancer",
                "cwy_budgets",
                "cwy_cfg",
                "cwy_count",
                "cwy_crowds",
                "cwy_events",
                "cwy_flows",
                "cwy_frags",
                "cwy_ifaces",
                "cwy_moved",
                "cwy_pods",
                "cwy_ports",
                "cwy_ranges",
                "cwy_sweep_job",
                "cwy_usage"
            ],
        "{names:?}"
    );
    Ok(())
}

/// A queue and a ring: elements without keys, which bpftool does not list. `causeway monitor` shows the events.
const WITHOUT_KEYS: [&str; 2] = ["cwy_age_queue", "cwy_events"];

/// Without BTF bpftool prints bytes in hexadecimal; with it, JSON.
fn check(dump: &str) -> Result<()> {
    let dump: Value = serde_json::from_str(dump).context("not JSON: bpftool found no BTF")?;
    let entries = dump.as_array().context("not a list")?;
    ensure!(!entries.is_empty(), "the map is empty, so nothing was shown");
    for entry in entries {
        match (&entry["value"], &entry["values"]) {
            (Value::Object(fields), Value::Null) => numbers(&Value::Object(fields.clone()))?,
            (Value::Null, Value::Array(cpus)) => {
                for cpu in cpus {
                    ensure!(cpu["value"].is_object(), "a value without fields: {cpu}");
                    numbers(&cpu["value"])?;
                }
            }
            _ => bail!("a value without fields: {entry}"),
        }
        numbers(&entry["key"])?;
    }
    Ok(())
}

fn numbers(value: &Value) -> Result<()> {
    match value {
        Value::Number(_) => Ok(()),
        Value::Array(list) => list.iter().try_for_each(numbers),
        Value::Object(fields) => fields.values().try_for_each(numbers),
        other => bail!("{other} is not a number"),
    }
}
