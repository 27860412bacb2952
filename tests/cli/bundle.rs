//! `causeway bundle`: an archive that tar reads, whole and as its manifest says, of a node in whatever state.

use std::{fs, os::unix::fs::PermissionsExt as _, path::PathBuf, process::Command};

use anyhow::{Context, Result, ensure};
use causeway_tests::{netns::stdout_of, node::Datapath};
use serde_json::Value;
use tempfile::TempDir;

use crate::scene::Scene;

/// The unpacked archive and its manifest.
fn unpacked(scene: &Scene, directory: &TempDir) -> Result<(PathBuf, Value)> {
    let archive = directory.path().join("a.tar");
    let output = scene.run(&["bundle", "--output", &archive.display().to_string()])?;
    ensure!(output.status.success(), "{output:?}");
    ensure!(fs::metadata(&archive)?.permissions().mode() & 0o777 == 0o600);
    let tar = Command::new("tar")
        .arg("-xf")
        .arg(&archive)
        .arg("-C")
        .arg(directory.path())
        .output();
    stdout_of(tar, || "tar".to_owned())?;
    let mut entries = fs::read_dir(directory.path())?
        .filter_map(Result::ok)
        .map(|entry| entry.path());
    let title = entries.find(|path| path.is_dir()).context("an empty archive")?;
    let manifest: Value = serde_json::from_slice(&fs::read(title.join("manifest.json"))?)?;
    Ok((title, manifest))
}

fn names(manifest: &Value, list: &str) -> Vec<String> {
    let entries = manifest[list].as_array().into_iter().flatten();
    entries
        .filter_map(|entry| Some(entry["name"].as_str()?.to_owned()))
        .collect()
}

#[test]
fn an_archive_has_what_its_manifest_says() -> Result<()> {
    let (scene, directory) = (Scene::with(Datapath::Causeway, 20, 2)?, TempDir::new()?);
    let (title, manifest) = unpacked(&scene, &directory)?;
    let sums: Vec<String> = manifest["files"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|file| {
            format!(
                "{}  {}\n",
                file["sha256"].as_str().unwrap_or_default(),
                file["name"].as_str().unwrap_or_default()
            )
        })
        .collect();
    fs::write(directory.path().join("sums"), sums.concat())?;
    let check = Command::new("sha256sum")
        .args(["--check", "--strict", "../sums"])
        .current_dir(&title)
        .output();
    stdout_of(check, || "sha256sum".to_owned())?;
    let files = names(&manifest, "files");
    for name in [
        "reports/status.json",
        "reports/doctor.json",
        "maps/cwy_cfg.json",
        "maps/cwy_ports.json",
        "network/routes.json",
        "rules/iptables.txt",
        "kernel/settings.json",
        "files/var/run/azure-vnet.json",
        "files/etc/cni/net.d/10-azure.conflist",
    ] {
        ensure!(files.iter().any(|file| file == name), "no {name} in {files:?}");
    }
    let doctor: Value = serde_json::from_slice(&fs::read(title.join("reports/doctor.json"))?)?;
    ensure!(doctor["healthy"] == true, "{doctor}");
    let pods: Value = serde_json::from_slice(&fs::read(title.join("maps/cwy_pods.json"))?)?;
    ensure!(pods.as_array().is_some_and(|pods| pods.len() == 2), "{pods}");
    let ports: Value = serde_json::from_slice(&fs::read(title.join("maps/cwy_ports.json"))?)?;
    ensure!(ports["tcp"] == serde_json::json!(["30000-32767"]), "{ports}");
    Ok(())
}

#[test]
fn what_cannot_be_read_is_named_and_ends_nothing() -> Result<()> {
    let (scene, directory) = (Scene::with(Datapath::Causeway, 20, 1)?, TempDir::new()?);
    scene.rig.node.causeway(&["unload"])?;
    scene.rig.node.root.write("/var/run/azure-vnet-ipam.json", "{")?;
    let (_, manifest) = unpacked(&scene, &directory)?;
    let missing = names(&manifest, "missing");
    for name in ["reports/flows.json", "reports/leases.json", "maps/cwy_cfg.json"] {
        ensure!(missing.iter().any(|other| other == name), "{name}: {manifest:#}");
    }
    let files = names(&manifest, "files");
    for name in [
        "reports/doctor.json",
        "files/var/run/azure-vnet-ipam.json",
        "network/links.json",
    ] {
        ensure!(files.iter().any(|file| file == name), "{name}: {manifest:#}");
    }
    Ok(())
}
