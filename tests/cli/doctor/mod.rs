//! `causeway doctor`: each fault is made for real, on a node of its own, and found by exactly its code.

mod alone;
mod deeds;
mod faults;
mod maps;

use std::{collections::BTreeSet, thread};

use anyhow::{Context, Result, ensure};
use causeway_tests::node::Datapath;
use serde_json::Value;

use self::faults::{FAULTS, Fault, NOT_MADE};
use crate::scene::Scene;

/// The codes that were found, and the exit code.
fn diagnose(scene: &Scene) -> Result<(Vec<String>, i32)> {
    let (diagnosis, exit) = scene.json(&["doctor", "--json"])?;
    let findings = diagnosis["findings"].as_array().context("no findings")?;
    let codes = findings.iter().filter_map(|finding| finding["code"].as_str());
    let codes: BTreeSet<String> = codes.map(str::to_owned).collect();
    ensure!(
        diagnosis["healthy"] == (exit == 0),
        "exit code {exit} and {diagnosis}"
    );
    Ok((codes.into_iter().collect(), exit))
}

#[test]
fn nothing_is_found_on_a_healthy_node() -> Result<()> {
    for datapath in [
        Datapath::Causeway,
        Datapath::CausewayClsact,
        Datapath::CausewayXdp,
    ] {
        let scene = Scene::with(datapath, 20, 3)?;
        let (diagnosis, exit) = scene.json(&["doctor", "--json"])?;
        ensure!(
            exit == 0 && diagnosis["findings"] == Value::Array(Vec::new()),
            "{datapath:?}: {diagnosis:#}"
        );
        ensure!(diagnosis["skipped"] == Value::Array(Vec::new()), "{diagnosis:#}");
        let output = scene.run(&["doctor"])?;
        let text = String::from_utf8(output.stdout)?;
        ensure!(text.starts_with("all is well"), "{text}");
    }
    Ok(())
}

#[test]
fn a_node_before_its_first_pod_is_healthy() -> Result<()> {
    let scene = Scene::with(Datapath::Causeway, 20, 0)?;
    let found = diagnose(&scene)?;
    ensure!(found == (Vec::new(), 0), "{found:?}");
    Ok(())
}

#[test]
fn each_fault_is_found_by_its_code() {
    // Half of the time of a node is waiting for the kernel's grace periods.
    let workers: Vec<_> = (0..WORKERS)
        .map(|worker| {
            thread::spawn(move || {
                let mine = FAULTS.iter().skip(worker).step_by(WORKERS);
                mine.filter_map(|fault| try_out(fault).err()).collect::<Vec<_>>()
            })
        })
        .collect();
    let failures: Vec<String> = workers
        .into_iter()
        .flat_map(|worker| worker.join().expect("no panic"))
        .map(|error| format!("{error:#}"))
        .collect();
    assert!(failures.is_empty(), "\n{}", failures.join("\n"));
}

const WORKERS: usize = 4;

fn try_out(fault: &Fault) -> Result<()> {
    let Fault {
        code,
        what,
        datapath,
        addresses,
        make,
    } = fault;
    let named = || format!("{code}, {what}");
    let scene = Scene::with(*datapath, *addresses, 3).with_context(named)?;
    make(&scene).with_context(named)?;
    let (found, exit) = diagnose(&scene).with_context(named)?;
    ensure!(found == [*code], "{}: found {found:?}", named());
    let text = String::from_utf8(scene.run(&["doctor"])?.stdout)?;
    let is_error = text
        .lines()
        .any(|line| line.starts_with(&format!("{code} error")));
    let expected = match *code {
        "CWY003" | "CWY010" => 4,
        _ => i32::from(is_error),
    };
    ensure!(exit == expected, "{}: exit code {exit}, not {expected}", named());
    for word in ["INTERFACE", "ADDRESS", "PATH", "VALUE"] {
        let fix = text.lines().find(|line| line.trim_start().starts_with("fix"));
        let fix = fix.with_context(|| format!("{}: no fix", named()))?;
        ensure!(!fix.contains(word), "{}: {fix}", named());
    }
    Ok(())
}

/// The guide's rows are the program's codes: a unit test of the program sees to that.
#[test]
fn every_code_has_a_fault_that_was_made_or_a_reason_why_not() {
    let guide = include_str!("../../../docs/debugging.md");
    let codes = guide
        .lines()
        .filter_map(|line| line.strip_prefix("| `CWY")?.get(..3));
    let codes: BTreeSet<String> = codes.map(|digits| format!("CWY{digits}")).collect();
    assert!(codes.len() >= 25, "{codes:?}");
    let covered: BTreeSet<String> = FAULTS
        .iter()
        .map(|fault| fault.code)
        .chain(NOT_MADE.iter().map(|(code, _)| *code))
        .map(str::to_owned)
        .collect();
    assert_eq!(codes, covered);
}
