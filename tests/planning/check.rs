//! `causeway apiserver check`.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tempfile::TempDir;

use crate::{causeway, fits_a_terminal, fixtures, with_input, words};

const READY: [&str; 12] = [
    "--aks",
    "ready/aks.json",
    "--vnet",
    "ready/vnet.json",
    "--subnet",
    "ready/api.json",
    "ready/nodes.json",
    "--nsg",
    "ready/api-nsg.json",
    "ready/nodes-nsg.json",
    "--old-address",
    "20.50.60.70",
];

const UNREADY: [&str; 11] = [
    "--aks",
    "unready/aks.json",
    "--vnet",
    "unready/vnet.json",
    "--api-subnet",
    "api",
    "--nsg",
    "unready/api-nsg.json",
    "unready/nodes-nsg.json",
    "--old-address",
    "20.50.60.70",
];

fn check<'a>(arguments: &[&'a str]) -> Vec<&'a str> {
    ["apiserver", "check"].iter().chain(arguments).copied().collect()
}

/// How each check ended, by its ID.
fn verdict<'a>(report: &'a Value, id: &str) -> Result<&'a str> {
    let checks = report["checks"].as_array().context("no checks")?;
    let check = checks
        .iter()
        .find(|check| check["id"] == id)
        .with_context(|| format!("no {id}"))?;
    check["verdict"].as_str().context("no verdict")
}

#[test]
fn a_ready_network_ends_with_0() -> Result<()> {
    let text = causeway(check(&READY))?.with(0)?;
    fits_a_terminal(&text)?;
    ensure!(
        words(&text).contains("pass delegation delegated to Microsoft.ContainerService/managedClusters pass"),
        "{text}"
    );
    ensure!(
        text.contains(" 0 failed, ") && text.contains("warn     one-way"),
        "{text}"
    );
    let report = causeway(check(&[&READY[..], &["--json"]].concat()))?.document(0)?;
    ensure!(
        report["apiVersion"] == "causeway/v1" && report["kind"] == "ApiServerCheck",
        "{report:#}"
    );
    ensure!(report["failed"] == 0 && report["unknown"] == 1, "{report:#}");
    let count = |of: &str| {
        report["checks"].as_array().map_or(0, |checks| {
            checks.iter().filter(|check| check["verdict"] == of).count()
        })
    };
    for (field, of) in [
        ("passed", "pass"),
        ("failed", "fail"),
        ("warnings", "warn"),
        ("unknown", "unknown"),
    ] {
        ensure!(report[field] == count(of), "{field}: {report:#}");
    }
    Ok(())
}

#[test]
fn a_network_that_is_not_ready_ends_with_1_and_names_every_reason() -> Result<()> {
    let ended = causeway(check(&UNREADY))?;
    ensure!(
        ended.errors.contains("the network is not ready: 8 checks failed"),
        "{}",
        ended.errors
    );
    let text = ended.with(1)?;
    fits_a_terminal(&text)?;
    for part in [
        "FAIL subnet-size",
        "20.50.60.70, which is in api-nsg: old-api-server (300)",
        "> az network nsg rule create",
    ] {
        ensure!(words(&text).contains(part), "{text}");
    }
    let report = causeway(check(&[&UNREADY[..], &["--json"]].concat()))?.document(1)?;
    for (id, expected) in [
        ("subnet-size", "fail"),
        ("subnet-in-vnet", "pass"),
        ("overlap-cluster", "pass"),
        ("overlap-pods", "pass"),
        ("overlap-services", "fail"),
        ("reserved-ranges", "pass"),
        ("delegation", "fail"),
        ("exclusive", "fail"),
        ("room", "fail"),
        ("same-vnet", "pass"),
        ("nsg-443", "fail"),
        ("nsg-4443", "fail"),
        ("nsg-9988", "fail"),
        ("nsg-kubelet", "pass"),
        ("routes", "warn"),
        ("permissions", "unknown"),
        ("old-address", "warn"),
        ("authorized-ranges", "warn"),
        ("private-cluster", "pass"),
        ("one-way", "warn"),
        ("restart", "warn"),
        ("vnet-encryption", "warn"),
        ("dual-stack", "warn"),
    ] {
        ensure!(verdict(&report, id)? == expected, "{id}: {report:#}");
    }
    let rules = |id: &str| -> Result<Vec<String>> {
        let checks = report["checks"].as_array().context("no checks")?;
        let check = checks
            .iter()
            .find(|check| check["id"] == id)
            .context("no such check")?;
        let decisions = check["decisions"].as_array().context("no decisions")?;
        Ok(decisions
            .iter()
            .map(|d| {
                format!("{} {} {} {}", d["access"], d["rule"], d["sources"], d["doubt"]).replace('"', "")
            })
            .collect())
    };
    ensure!(
        rules("nsg-443")?
            == [
                "allow AllowVnetOutBound 10.240.0.0/16 null",
                "allow allow-half 10.240.0.0/17 null",
                "deny deny-all 10.240.128.0/17 null",
            ],
        "{:?}",
        rules("nsg-443")
    );
    ensure!(
        rules("nsg-4443")?[0] == "unknown deny-all 10.240.0.0/16 allow-storage (1000)",
        "{:?}",
        rules("nsg-4443")
    );
    Ok(())
}

#[test]
fn flags_alone_are_enough_for_what_they_say() -> Result<()> {
    let flags = [
        "--api-subnet",
        "10.226.0.0/28",
        "--vnet-cidr",
        "10.224.0.0/11",
        "--cluster-subnet",
        "10.240.0.0/16",
        "--pod-cidr",
        "192.168.0.0/16",
        "--service-cidr",
        "10.2.0.0/16",
        "--api-nsg",
        "none",
        "--cluster-nsg",
        "ready/nodes-nsg.json",
        "--json",
    ];
    let report = causeway(check(&flags))?.document(0)?;
    for id in [
        "subnet-size",
        "subnet-in-vnet",
        "overlap-cluster",
        "overlap-pods",
        "overlap-services",
        "nsg-443",
        "nsg-4443",
        "nsg-9988",
    ] {
        ensure!(verdict(&report, id)? == "pass", "{id}: {report:#}");
    }
    ensure!(verdict(&report, "delegation")? == "unknown", "{report:#}");
    let report = causeway(check(&["--api-subnet", "10.226.0.0/29", "--json"]))?.document(1)?;
    ensure!(
        verdict(&report, "subnet-size")? == "fail" && verdict(&report, "nsg-443")? == "unknown",
        "{report:#}"
    );
    Ok(())
}

#[test]
fn wrong_input_ends_with_2_and_one_line_for_each_file() -> Result<()> {
    let wrong = check(&[
        "--aks",
        "ready/vnet.json",
        "--vnet",
        "nowhere.json",
        "--subnet",
        "ready/api.json",
        "ready/aks.json",
    ]);
    let complaint = causeway(wrong)?.complaint(2)?;
    let lines: Vec<&str> = complaint.lines().collect();
    ensure!(lines.len() == 3, "{complaint}");
    for part in [
        "nowhere.json: No such file",
        "ready/vnet.json: is about a virtual network",
        "ready/aks.json: is about a cluster",
    ] {
        ensure!(complaint.contains(part), "{complaint}");
    }
    ensure!(
        causeway(check(&[]))?.complaint(2)?.contains("required"),
        "nothing given"
    );
    ensure!(
        causeway(check(&["--api-subnet", "ten"]))?
            .complaint(2)?
            .contains("--api-subnet: \"ten\" is no prefix"),
        "no subnet"
    );
    let directory = TempDir::new()?;
    for (name, content) in [
        ("empty", vec![]),
        ("binary", vec![0xff; 100]),
        ("deep", vec![b'['; 1 << 20]),
        ("number", b"1e999999".to_vec()),
        ("text", b"ERROR: not logged in".to_vec()),
    ] {
        let path = directory.path().join(name);
        fs::write(&path, content)?;
        let path = path.to_str().context("odd path")?;
        let complaint = causeway(check(&["--vnet", path]))?.complaint(2)?;
        ensure!(
            complaint.lines().count() == 1 && complaint.contains(&format!("{path}: ")),
            "{complaint}"
        );
    }
    Ok(())
}

#[test]
fn a_document_comes_by_a_pipe_as_well() -> Result<()> {
    let cluster = fs::read(fixtures().join("ready/aks.json"))?;
    let marked = [b"\xef\xbb\xbf", &cluster[..]].concat();
    let listed = [b"[", &cluster[..], b"]"].concat();
    for input in [cluster, marked, listed] {
        let report = with_input(check(&["--aks", "-", "--json"]), &input)?.document(0)?;
        ensure!(verdict(&report, "dual-stack")? == "pass", "{report:#}");
    }
    Ok(())
}
