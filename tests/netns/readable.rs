//! What an operator sees with nothing but `bpftool`: names and numbers, never bytes.

use std::{net::SocketAddrV4, path::Path};

use anyhow::{Context, Result, bail, ensure};
use causeway_common::maps::{IPV6_MAP, V6_PROGRAM_NAMES};
use causeway_tests::{
    dual_stack::{self, Connection, Datagrams, VNET},
    echo::Echo,
    fabric::{INTERNET, NODE},
    rig::Rig,
    talk::Udp,
    walk::Walk,
};
use serde_json::Value;

#[test]
fn bpftool_prints_every_map_with_named_fields() -> Result<()> {
    let rig = Rig::masquerading_ipv6()?;
    let pod = rig.pod("a")?;
    Connection::open(&pod.ns, &rig.fabric.vnet, VNET, 7)?.chat(1)?;
    Walk::direct(&pod.ns, &rig.fabric.internet, SocketAddrV4::new(INTERNET, 7))
        .tcp(&rig)?
        .expect_carried(NODE)?;
    // Fragments, for the map that holds them.
    let _echo = Echo::start(&rig.fabric.internet, 9)?;
    Udp::connect(&pod.ns, SocketAddrV4::new(INTERNET, 9))?.ask(3000)?;
    Datagrams::between(&pod.ns, &rig.fabric.internet, dual_stack::INTERNET, 9)?.chat(3000, 1)?;
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
        if name == IPV6_MAP {
            check_programs(&rig, &path)?;
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
                "cwy_age_queue6",
                "cwy_backends",
                "cwy_balancer",
                "cwy_budgets",
                "cwy_cfg",
                "cwy_cfg6",
                "cwy_count",
                "cwy_crowds",
                "cwy_crowds6",
                "cwy_events",
                "cwy_flows",
                "cwy_flows6",
                "cwy_frags",
                "cwy_frags6",
                "cwy_ifaces",
                "cwy_ifaces6",
                "cwy_ipv6",
                "cwy_moved",
                "cwy_moved6",
                "cwy_pods",
                "cwy_pods6",
                "cwy_ports",
                "cwy_ranges",
                "cwy_ranges6",
                "cwy_scratch",
                "cwy_scratch6",
                "cwy_sweep_job",
                "cwy_usage",
                "cwy_usage6"
            ],
        "{names:?}"
    );
    Ok(())
}

/// A program for each hook, by its number.
fn check_programs(rig: &Rig, path: &Path) -> Result<()> {
    let pinned = ["map", "dump", "pinned"];
    let dump = rig.node.ns.output(
        "bpftool",
        &[&["-j"], &pinned[..], &[&path.display().to_string()]].concat(),
    )?;
    for name in V6_PROGRAM_NAMES {
        let program = path.with_file_name("../progs").join(name);
        let shown = ["-j", "prog", "show", "pinned", &program.display().to_string()];
        let id = rig.node.ns.json("bpftool", &shown)?["id"]
            .as_u64()
            .context("a program has a number")? as u32;
        let bytes = id.to_le_bytes().map(|byte| format!("\"0x{byte:02x}\"")).join(",");
        ensure!(dump.contains(&bytes), "{name} is {id}, and not in {dump}");
    }
    Ok(())
}

/// Queues and a ring: elements without keys, which bpftool does not list. `causeway monitor` shows the events.
const WITHOUT_KEYS: [&str; 3] = ["cwy_age_queue", "cwy_age_queue6", "cwy_events"];

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
