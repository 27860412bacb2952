//! `causeway plan`.

use std::{collections::BTreeSet, fs, net::IpAddr, os::unix::fs::MetadataExt as _, path::Path};

use anyhow::{Context as _, Result, ensure};
use causeway::{
    ipam::source::{self, LocalNic, Settings},
    root::Root,
};
use tempfile::TempDir;

use crate::{causeway, fits_a_terminal, with_input, words};

const PUBLISHED: &str = "definitions/published.json";

#[test]
fn the_published_example_fits_with_a_warning() -> Result<()> {
    let text = causeway(["plan", PUBLISHED])?.with(0)?;
    for line in [
        "master 1 30 31 31 - KubeClusterSubnet",
        "k8sagentpoo1 2 30 31 62 100 KubeClusterSubnet",
        "KubeClusterSubnet 10.0.0.0/20 4091 93 3998",
        "masters 10.0.1.50",
        "internal load balancer none, with one master",
        "addresses in all 93",
    ] {
        ensure!(text.lines().any(|found| words(found) == line), "{line}\n{text}");
    }
    ensure!(text.contains("warning  line 6, column 27: "), "{text}");
    let report = causeway(["plan", PUBLISHED, "--json"])?.document(0)?;
    ensure!(
        report["kind"] == "ClusterPlan" && report["valid"] == true && report["warnings"] == 1,
        "{report:#}"
    );
    ensure!(
        report["plan"]["pools"][1]["most"] == 100 && report["plan"]["subnets"][0]["free"] == 3998,
        "{report:#}"
    );
    ensure!(
        report["plan"]["chosen"]["masters"][0] == "10.0.1.50",
        "{report:#}"
    );
    Ok(())
}

#[test]
fn a_wrong_definition_ends_with_1_and_every_line_that_is_wrong() -> Result<()> {
    let directory = TempDir::new()?;
    let published = fs::read_to_string(crate::fixtures().join(PUBLISHED))?;
    let wrong = published
        .replace("\"count\": 1,", "\"count\": 2,")
        .replace("\"count\": 2,\n        \"vm", "\"count\": 200,\n        \"vm")
        .replace("10.0.0.0/20", "10.0.0.0/24");
    let path = directory.path().join("wrong.json");
    fs::write(&path, &wrong)?;
    let ended = causeway(["plan".as_ref(), path.as_os_str()])?;
    ensure!(
        ended.errors.contains("the definition has 4 errors"),
        "{}{}",
        ended.errors,
        ended.output
    );
    let text = ended.with(1)?;
    fits_a_terminal(&text)?;
    for part in [
        "error line 7, column 26: ",
        "error line 11, column 16: ",
        "error line 15, column 35: ",
        "error line 21, column 18: ",
    ] {
        ensure!(words(&text).contains(part), "{part}\n{text}");
    }
    ensure!(
        !text.contains("SUBNET"),
        "no numbers of a wrong definition: {text}"
    );
    let missing = causeway(["plan", "nowhere.json"])?.complaint(2)?;
    ensure!(
        missing.starts_with("causeway: nowhere.json: No such file"),
        "{missing}"
    );
    Ok(())
}

#[test]
fn what_is_no_definition_is_refused_in_one_line() -> Result<()> {
    let deep = vec![b'['; 900_000];
    let large = vec![b' '; 10 << 20];
    for (content, expected, code) in [
        (&b""[..], "is empty", 2),
        (b"\xff\xfe\x00", "is not UTF-8 from here on", 2),
        (&deep, "is nested deeper than 64 levels", 2),
        (&large, "is larger than 1 MiB", 2),
        (
            b"{\"apiVersion\": \"vlabs\",}",
            "line 1, column 24: expected a key in quotes",
            2,
        ),
        (b"\"--> no\"", "expected an object", 1),
        (b"null", "expected an object, found null", 1),
    ] {
        let ended = with_input(["plan", "-"], content)?;
        let said = if code == 2 {
            ended.complaint(2)?
        } else {
            ended.with(1)?
        };
        ensure!(
            said.contains(expected) && said.lines().count() == 1,
            "{expected}: {said}"
        );
    }
    Ok(())
}

#[test]
fn a_nodes_list_is_what_the_address_plug_in_reads() -> Result<()> {
    let home = TempDir::new()?;
    let directory = home.path().join("lists");
    let emit = |more: &[&str]| {
        let mut arguments = vec![
            "plan",
            PUBLISHED,
            "--emit-interfaces",
            directory.to_str().unwrap_or_default(),
        ];
        arguments.extend(more);
        causeway(arguments)
    };
    let text = emit(&[])?.with(0)?;
    ensure!(text.contains("wrote the lists of 3 nodes to "), "{text}");
    let mut all = BTreeSet::new();
    for (node, own) in [
        ("master-0", "10.0.1.50"),
        ("k8sagentpoo1-0", "10.0.0.34"),
        ("k8sagentpoo1-1", "10.0.0.65"),
    ] {
        let pods = pods(&directory.join(node).join("interfaces.json"), own)?;
        ensure!(pods.len() == 30, "{node}: {pods:?}");
        all.extend(pods);
        all.insert(own.parse()?);
    }
    ensure!(all.len() == 93, "an address is in two lists: {all:?}");
    // What is there stays, unless it is to be replaced.
    let inode = || fs::metadata(directory.join("master-0/interfaces.json")).map(|file| file.ino());
    let before = inode()?;
    ensure!(emit(&[])?.complaint(1)?.contains("--force"), "lists are there");
    ensure!(inode()? == before, "a list was written again");
    emit(&["--force", "--mac-prefix", "06:ab"])?.with(0)?;
    let list = fs::read_to_string(directory.join("master-0/interfaces.json"))?;
    ensure!(list.contains("\"06:ab:0a:00:01:32\""), "{list}");
    ensure!(
        fs::read_dir(home.path())?.count() == 1,
        "something is left beside the lists"
    );
    ensure!(
        emit(&["--force", "--mac-prefix", "01:00"])?
            .complaint(2)?
            .contains("multicast"),
        "a multicast address"
    );
    Ok(())
}

#[test]
fn nothing_is_written_for_a_subnet_that_nobody_named() -> Result<()> {
    let home = TempDir::new()?;
    let directory = home.path().join("lists");
    let directory = directory.to_str().context("odd path")?;
    let emit = [
        "plan",
        "definitions/azure-cni.json",
        "--emit-interfaces",
        directory,
    ];
    let complaint = causeway(emit)?.complaint(1)?;
    ensure!(complaint.contains("--subnet SUBNET_NAME=PREFIX"), "{complaint}");
    ensure!(!Path::new(directory).exists(), "lists of unknown addresses");
    causeway(
        emit.iter()
            .copied()
            .chain(["--subnet", "SUBNET_NAME=10.239.0.0/16"]),
    )?
    .with(0)?;
    ensure!(fs::read_dir(directory)?.count() == 5, "five nodes");
    Ok(())
}

/// The addresses that pods of the node with that address get from the list.
fn pods(list: &Path, own: &str) -> Result<BTreeSet<IpAddr>> {
    let home = TempDir::new()?;
    let root = Root::new(home.path());
    let path = root.path(source::INTERFACES);
    fs::create_dir_all(path.parent().context("no directory")?)?;
    fs::copy(list, path)?;
    let own: std::net::Ipv4Addr = own.parse()?;
    let [a, b, c, d] = own.octets();
    let nic = LocalNic {
        name: "eth0".to_owned(),
        mac: [2, 0, a, b, c, d],
        addresses: vec![own.into()],
        secondary: Vec::new(),
    };
    let answer = source::ask_at_once(&root, &Settings::new("mas"), &[nic]);
    let mut list = answer.list.with_context(|| format!("{:?}", answer.error))?;
    ensure!(list.pools.len() == 1 && list.skipped.is_empty(), "{list:?}");
    Ok(list.pools.remove(0).addresses)
}
