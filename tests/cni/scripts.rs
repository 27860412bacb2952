//! `scripts/install-cni-plugin.sh` and `uninstall-cni-plugin.sh`, below a directory that stands for `/`.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Result;
use causeway_tests::{dist::Dist, netns::stdout_of};

use crate::chain::reference;

/// A script of the repository.
pub(crate) fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../scripts")
        .join(name)
}

struct Machine(tempfile::TempDir);

impl Machine {
    fn new() -> Result<Self> {
        reference("portmap")?;
        Ok(Self(tempfile::tempdir()?))
    }

    fn path(&self, absolute: &str) -> PathBuf {
        self.0.path().join(absolute.trim_start_matches('/'))
    }

    fn write(&self, absolute: &str, text: &str) -> Result<()> {
        let path = self.path(absolute);
        fs::create_dir_all(path.parent().unwrap_or(&path))?;
        Ok(fs::write(path, text)?)
    }

    fn run(&self, name: &str, args: &[&str]) -> Result<String> {
        let mut command = Command::new(script(name));
        command
            .args(args)
            .current_dir(self.0.path())
            .env("DESTDIR", self.0.path());
        command
            .env(
                "CAUSEWAY_DIST",
                std::env::var_os("CAUSEWAY_DIST").unwrap_or_default(),
            )
            .env_remove("CAUSEWAY_ROOT");
        stdout_of(command.output(), || name.to_owned())
    }

    /// Everything below a directory, with what starts its content.
    fn list(&self, absolute: &str) -> Result<Vec<(String, String)>> {
        let mut files = Vec::new();
        for entry in fs::read_dir(self.path(absolute))? {
            let path = entry?.path();
            let text = String::from_utf8_lossy(&fs::read(&path)?)
                .chars()
                .take(12)
                .collect();
            files.push((
                path.file_name()
                    .unwrap_or_default()
                    .to_string_lossy()
                    .into_owned(),
                text,
            ));
        }
        files.sort();
        Ok(files)
    }
}

const BIN: &str = "/opt/cni/bin";
const NET: &str = "/etc/cni/net.d";

#[test]
fn an_empty_machine_gets_everything_and_loses_it_again() -> Result<()> {
    let machine = Machine::new()?;
    let said = machine.run("install-cni-plugin.sh", &[])?;
    assert!(
        said.trim_end().ends_with("10-azure.conflist"),
        "the configuration comes last: {said}"
    );
    let names: Vec<String> = machine.list(BIN)?.into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["azure-vnet", "azure-vnet-ipam", "loopback", "portmap"]);
    let commands: Vec<String> = machine
        .list("/usr/bin")?
        .into_iter()
        .map(|(name, _)| name)
        .collect();
    assert_eq!(commands, ["causeway", "causeway-pod-cidrs"]);
    let dist = Dist::from_env()?;
    for name in ["azure-vnet", "azure-vnet-ipam"] {
        let installed = machine.path(BIN).join(name);
        assert_eq!(fs::read(&installed)?, fs::read(dist.plugin(name))?);
        assert_eq!(fs::metadata(&installed)?.permissions().mode() & 0o7777, 0o755);
    }
    assert_eq!(
        fs::read(machine.path(NET).join("10-azure.conflist"))?,
        fs::read(dist.conflist())?
    );
    // Again: nothing is kept that is our own.
    machine.run("install-cni-plugin.sh", &[])?;
    assert!(!machine.list(BIN)?.iter().any(|(name, _)| name.contains(".bak")));
    machine.run("uninstall-cni-plugin.sh", &[])?;
    let names: Vec<String> = machine.list(BIN)?.into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["loopback", "portmap"]);
    assert!(machine.list(NET)?.is_empty() && machine.list("/usr/bin")?.is_empty());
    Ok(())
}

#[test]
fn what_was_there_is_kept_and_comes_back() -> Result<()> {
    let machine = Machine::new()?;
    let theirs = r#"{"name":"azure","plugins":[{"type":"azure-vnet"}]}"#;
    for (name, text) in [
        ("azure-vnet", "the incumbent"),
        ("azure-vnet-ipam", "its IPAM"),
        ("portmap", "#!/bin/sh"),
    ] {
        machine.write(&format!("{BIN}/{name}"), text)?;
        fs::set_permissions(machine.path(BIN).join(name), fs::Permissions::from_mode(0o755))?;
    }
    machine.write(&format!("{NET}/10-azure.conflist"), theirs)?;
    machine.write(&format!("{NET}/05-first.conflist"), "{}")?;
    let (before, inode) = (
        machine.list(BIN)?,
        fs::metadata(machine.path(BIN).join("azure-vnet"))?.ino(),
    );
    let said = machine.run("install-cni-plugin.sh", &[])?;
    assert!(
        said.contains("kept") && said.contains("\"portMappings\": true"),
        "{said}"
    );
    assert_eq!(
        fs::read_to_string(machine.path(NET).join("10-azure.conflist"))?,
        theirs
    );
    assert_ne!(
        fs::metadata(machine.path(BIN).join("azure-vnet"))?.ino(),
        inode,
        "renamed, never written in place"
    );
    assert_eq!(
        fs::read_to_string(machine.path(BIN).join("portmap"))?,
        "#!/bin/sh",
        "the one that is there stays"
    );
    machine.run("install-cni-plugin.sh", &[])?;
    machine.write("/var/run/azure-vnet.json", "\"ContainerID\": \"abc\"")?;
    let refused = machine.run("uninstall-cni-plugin.sh", &[]).unwrap_err();
    assert!(refused.to_string().contains("there are pods"), "{refused}");
    machine.run("uninstall-cni-plugin.sh", &["--force"])?;
    let after: Vec<_> = machine
        .list(BIN)?
        .into_iter()
        .filter(|(name, _)| name != "loopback")
        .collect();
    assert_eq!(after, before);
    assert_eq!(
        fs::read_to_string(machine.path(NET).join("10-azure.conflist"))?,
        theirs
    );
    Ok(())
}

#[test]
fn a_release_is_installed_only_if_its_checksum_is_right() -> Result<()> {
    let machine = Machine::new()?;
    let arch = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let tarball = format!("causeway-v0.1.0-linux-{arch}.tar.gz");
    let dist = std::env::var("CAUSEWAY_DIST")?;
    let shell = |command: &str| {
        let output = Command::new("sh")
            .args(["-euc", command])
            .current_dir(machine.0.path())
            .output();
        stdout_of(output, || command.to_owned())
    };
    let refused = |needle: &str| -> Result<()> {
        let error = machine
            .run("install-cni-plugin.sh", &["v0.1.0"])
            .unwrap_err()
            .to_string();
        assert!(error.contains(needle), "{error}");
        assert!(!machine.path(BIN).exists());
        Ok(())
    };
    refused("is missing")?;
    let pack = script("pack-release.sh");
    shell(&format!("{} {dist} v0.1.0 .", pack.display()))?;
    shell(&format!("mv {tarball}.sha256 right; cp {tarball} first"))?;
    refused(".sha256 is missing")?;
    shell(&format!("echo 0000 {tarball} > {tarball}.sha256"))?;
    refused("is damaged")?;
    shell(&format!(
        "cp right {tarball}.sha256; sha256sum -c {tarball}.sha256"
    ))?;
    machine.run("install-cni-plugin.sh", &["v0.1.0"])?;
    assert!(machine.path(BIN).join("azure-vnet").is_file());
    // The same tree makes the same release.
    shell(&format!(
        "{} {dist} v0.1.0 .; cmp first {tarball}",
        pack.display()
    ))?;
    // Unpacked, a release installs itself: no other file of the repository is needed.
    shell(&format!("mkdir unpacked; tar -xzf {tarball} -C unpacked"))?;
    let elsewhere = Machine::new()?;
    shell(&format!(
        "unset CAUSEWAY_DIST; DESTDIR={} unpacked/scripts/install-cni-plugin.sh",
        elsewhere.0.path().display()
    ))?;
    assert_eq!(elsewhere.list(BIN)?, machine.list(BIN)?);
    assert_eq!(elsewhere.list(NET)?, machine.list(NET)?);
    for needed in [
        "uninstall-cni-plugin.sh",
        "docker-run.sh",
        "docker-del.sh",
        "cni-chain.sh",
    ] {
        assert!(
            machine.path("unpacked/scripts").join(needed).is_file(),
            "{needed}"
        );
    }
    for bad in [&["--help"][..], &["a", "b", "c"]] {
        assert!(
            machine
                .run("install-cni-plugin.sh", bad)
                .unwrap_err()
                .to_string()
                .contains("usage: ")
        );
    }
    Ok(())
}
