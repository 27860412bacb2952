//! Cases 13, 27, 32 and 33: other IPAM plug-ins, a recording one and those of the distribution.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use causeway_tests::netns::Netns;
use serde_json::{Value, json};

use crate::{
    call::{Call, World, address},
    chain::reference,
};

/// An IPAM plug-in that notes how it was called and says what it is told to.
struct Recorder {
    directory: tempfile::TempDir,
}

impl Recorder {
    fn new(answer: &str, status: u8) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let script = format!(
            "#!/bin/sh\nd={}\necho $CNI_COMMAND $CNI_CONTAINERID $CNI_IFNAME >>$d/calls\nenv | grep ^CNI_ | sort >$d/env\n\
             cat >$d/stdin\necho a word on standard error >&2\n[ $CNI_COMMAND = DEL ] && exit 0\ncat $d/answer\nexit {status}\n",
            directory.path().display()
        );
        let program = directory.path().join("recorder");
        fs::write(&program, script)?;
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
        fs::write(directory.path().join("answer"), answer)?;
        Ok(Self { directory })
    }

    fn file(&self, name: &str) -> Result<String> {
        Ok(fs::read_to_string(self.directory.path().join(name))?)
    }

    fn with<'a>(&self, call: Call<'a>) -> Call<'a> {
        call.env("CNI_PATH", self.directory.path().to_string_lossy())
            .with("ipam", json!({ "type": "recorder", "Its": { "own": [1, null] } }))
    }
}

const ANSWER: &str = r#"{"cniVersion":"1.0.0","ips":[{"address":"10.240.0.77/16","gateway":"10.240.0.1"}],
    "routes":[{"dst":"0.0.0.0/0"},{"dst":"192.0.2.0/24","gw":"10.240.0.9"}],"dns":{"nameservers":["192.0.2.53"]}}"#;

fn call<'a>(world: &'a World, verb: &str, ns: &Netns) -> Result<Call<'a>> {
    Ok(world
        .network(verb, "container-1")?
        .netns(ns)
        .with("cniVersion", json!("1.0.0")))
}

#[test]
fn it_gets_the_very_bytes_and_the_environment() -> Result<()> {
    let (world, ns) = (World::new(1)?, Netns::new()?);
    let recorder = Recorder::new(ANSWER, 0)?;
    let odd = r#" {"name":"azure", "CNIVersion":"1.0.0","type":"azure-vnet","IPAM":{"type":"recorder","x":[1,null]},"b":1.50}
"#;
    let add = recorder
        .with(call(&world, "ADD", &ns)?)
        .stdin(odd)
        .env("CNI_ARGS", "IgnoreUnknown=1;A=b");
    let output = add.output()?;
    assert!(String::from_utf8(output.stderr)?.contains("a word on standard error"));
    let result: Value = serde_json::from_slice(&output.stdout)?;
    assert_eq!(recorder.file("stdin")?, odd);
    let environment = recorder.file("env")?;
    for line in [
        "CNI_COMMAND=ADD",
        "CNI_CONTAINERID=container-1",
        "CNI_IFNAME=eth0",
        "CNI_ARGS=IgnoreUnknown=1;A=b",
    ] {
        assert!(environment.lines().any(|own| own == line), "{environment}");
    }
    assert!(environment.contains(&format!("CNI_NETNS={}", ns.path())));
    // Its address, with our interfaces and the index to the pod's.
    assert_eq!(
        result["ips"],
        json!([{ "address": "10.240.0.77/16", "gateway": "10.240.0.1", "interface": 0 }])
    );
    assert_eq!(
        result["routes"],
        json!([{ "dst": "0.0.0.0/0" }, { "dst": "192.0.2.0/24", "gw": "10.240.0.9" }])
    );
    assert_eq!(result["dns"], json!({ "nameservers": ["192.0.2.53"] }));
    ns.output("ping", &["-c1", "-i0.2", "-w5", "10.240.0.4"])?;
    // What it gave is noted: it is not asked a second time.
    assert_eq!(recorder.with(call(&world, "ADD", &ns)?).ok()?, result);
    let check = recorder.with(call(&world, "CHECK", &ns)?);
    check.with("prevResult", result).ok()?;
    recorder.with(call(&world, "DEL", &ns)?).ok()?;
    let one = "container-1 eth0";
    assert_eq!(
        recorder.file("calls")?,
        format!("ADD {one}\nCHECK {one}\nDEL {one}\n")
    );
    world.assert_empty()
}

/// Case 23.
#[test]
fn dns_of_the_configuration_goes_before_its_own() -> Result<()> {
    let (world, ns) = (World::new(1)?, Netns::new()?);
    let recorder = Recorder::new(ANSWER, 0)?;
    let add = recorder.with(call(&world, "ADD", &ns)?);
    let result = add.with("dns", json!({ "nameservers": [] })).ok()?;
    assert_eq!(result["dns"], json!({ "nameservers": [] }));
    recorder.with(call(&world, "DEL", &ns)?).ok()?;
    world.assert_empty()
}

#[test]
fn its_error_is_the_answer_and_its_del_is_run() -> Result<()> {
    let (world, ns) = (World::new(1)?, Netns::new()?);
    let add = |recorder: &Recorder| recorder.with(call(&world, "ADD", &ns)?).error();
    let refusing = Recorder::new(
        r#"{"code":11,"msg":"no IP addresses available in range set: x"}"#,
        1,
    )?;
    let failure = add(&refusing)?;
    assert_eq!(
        (failure.code, failure.msg.as_str()),
        (11, "no IP addresses available in range set: x")
    );
    assert_eq!(
        refusing.file("calls")?,
        "ADD container-1 eth0\nDEL container-1 eth0\n"
    );
    for (answer, needle) in [
        ("out of order", "printed no result"),
        (
            r#"{"ips":[{"address":"fd00::5/64"},{"address":"fd01::5/64"}]}"#,
            "gave 2 addresses of IPv6 and none of IPv4",
        ),
        (r#"{"ips":[]}"#, "gave no address"),
        (
            r#"{"ip4":{"ip":"10.240.0.7/16"},"ips":[{"address":"10.240.0.8/16"},{"address":"10.240.0.9/16"}]}"#,
            "gave 3 addresses",
        ),
        (
            r#"{"ips":[{"address":"10.240.0.7/16","interface":1}]}"#,
            "printed no result",
        ),
    ] {
        let recorder = Recorder::new(answer, 0)?;
        let failure = add(&recorder)?;
        assert!(failure.msg.contains(needle), "{answer}: {failure:?}");
        assert!(recorder.file("calls")?.contains("DEL "), "{answer}");
        world.assert_empty()?;
    }
    Ok(())
}

#[test]
fn an_address_of_another_pod_is_not_taken_from_it() -> Result<()> {
    let (world, pods) = (World::new(1)?, [Netns::new()?, Netns::new()?]);
    let recorder = Recorder::new(ANSWER, 0)?;
    recorder.with(call(&world, "ADD", &pods[0])?).ok()?;
    let again = recorder.with(world.network("ADD", "container-2")?.netns(&pods[1]));
    let failure = again.error()?;
    assert!(
        failure.msg.contains("another pod of this node answers"),
        "{failure:?}"
    );
    pods[0].output("ping", &["-c1", "-i0.2", "-w5", "10.240.0.4"])?;
    recorder.with(call(&world, "DEL", &pods[0])?).ok()?;
    world.assert_empty()
}

/// Case 27: what is ours goes, and the runtime is told that something stays.
#[test]
fn del_without_the_plugin_removes_what_is_ours() -> Result<()> {
    let (world, ns) = (World::new(1)?, Netns::new()?);
    let recorder = Recorder::new(ANSWER, 0)?;
    recorder.with(call(&world, "ADD", &ns)?).ok()?;
    let failure = recorder
        .with(call(&world, "DEL", &ns)?)
        .env("CNI_PATH", "/nonexistent")
        .error()?;
    assert!(
        failure.code == 100 && failure.msg.contains("failed to find plugin \"recorder\""),
        "{failure:?}"
    );
    world.assert_empty()?;
    recorder.with(call(&world, "DEL", &ns)?).ok()?;
    // An ADD without the plug-in leaves nothing (upstream's bridge leaves its veth pair).
    let failure = recorder
        .with(call(&world, "ADD", &ns)?)
        .without("CNI_PATH")
        .error()?;
    assert!(failure.msg.contains("failed to find plugin"), "{failure:?}");
    world.assert_empty()
}

#[test]
fn gc_and_status_reach_it() -> Result<()> {
    let (world, pods) = (World::new(1)?, [Netns::new()?, Netns::new()?]);
    let recorder = Recorder::new(&ANSWER.replace("1.0.0", "1.1.0"), 0)?;
    let at = |verb, id| {
        Ok::<_, anyhow::Error>(
            recorder
                .with(world.network(verb, id)?)
                .with("cniVersion", json!("1.1.0")),
        )
    };
    at("ADD", "one")?.netns(&pods[0]).ok()?;
    at("STATUS", "")?.ok()?;
    at("GC", "")?.with("cni.dev/valid-attachments", json!([])).ok()?;
    let calls = recorder.file("calls")?;
    let verbs: Vec<&str> = calls.lines().filter_map(|line| line.split(' ').next()).collect();
    assert_eq!(verbs, ["ADD", "STATUS", "DEL", "GC"]);
    assert!(calls.contains("DEL one eth0"), "{calls}");
    world.assert_empty()?;
    let busy = Recorder::new(r#"{"code":50,"msg":"not yet"}"#, 1)?;
    let failure = busy
        .with(world.network("STATUS", "")?)
        .with("cniVersion", json!("1.1.0"))
        .error()?;
    assert_eq!((failure.code, failure.msg.as_str()), (50, "not yet"));
    Ok(())
}

/// The reference's host-local beside our own pools, over the versions that it speaks.
#[test]
fn host_local_gives_addresses_round_robin() -> Result<()> {
    let world = World::new(1)?;
    reference("host-local")?;
    let data: PathBuf = world.node.root.join("/var/lib/cni/networks");
    let ipam = json!({ "type": "host-local", "dataDir": data, "routes": [{ "dst": "0.0.0.0/0" }],
        "ranges": [[{ "subnet": "10.240.9.0/29", "gateway": "10.240.9.1" }]] });
    let mut given = Vec::new();
    for version in ["0.2.0", "0.3.1", "0.4.0", "1.0.0"] {
        let ns = Netns::new()?;
        let at = |verb| {
            let call = world
                .network(verb, version)?
                .netns(&ns)
                .with("ipam", ipam.clone());
            Ok::<_, anyhow::Error>(call.with("cniVersion", json!(version)))
        };
        let result = at("ADD")?.ok()?;
        given.push(address(&result)?.octets()[3]);
        ns.output("ping", &["-c1", "-i0.2", "-w5", "10.240.0.4"])?;
        if version >= "0.4" {
            at("CHECK")?.with("prevResult", result).ok()?;
        }
        for _ in 0..2 {
            at("DEL")?.env("CNI_NETNS", "").ok()?;
        }
    }
    assert_eq!(given, [2, 3, 4, 5]);
    let left =
        fs::read_dir(data.join("azure"))?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    assert!(left.filter(|name| name.starts_with("10.")).count() == 0);
    world.assert_empty()
}

/// Case 13.
#[test]
fn old_versions_have_one_address_of_a_family() -> Result<()> {
    let (world, ns) = (World::new(1)?, Netns::new()?);
    let data: PathBuf = world.node.root.join("/var/lib/cni/networks");
    let range = |subnet: &str| json!([{ "subnet": subnet }]);
    let ipam = json!({ "type": "host-local", "dataDir": data,
        "ranges": [range("10.240.9.0/24"), range("10.240.8.0/24"), range("fd00::/64")] });
    let failure = call(&world, "ADD", &ns)?
        .with("ipam", ipam)
        .with("cniVersion", json!("0.2.0"))
        .error()?;
    assert_eq!(
        failure.msg,
        "CNI version 0.2.0 does not support more than 1 address per family"
    );
    world.assert_empty()
}

#[test]
fn static_gives_what_it_is_told() -> Result<()> {
    let (world, ns) = (World::new(1)?, Netns::new()?);
    reference("static")?;
    let addresses = json!([{ "address": "10.240.0.88/16", "gateway": "10.240.0.1" }]);
    let ipam = json!({ "type": "static", "addresses": addresses, "dns": { "nameservers": ["192.0.2.1"] } });
    let result = call(&world, "ADD", &ns)?.with("ipam", ipam.clone()).ok()?;
    assert_eq!(
        (address(&result)?.octets()[3], &result["dns"]["nameservers"][0]),
        (88, &json!("192.0.2.1"))
    );
    assert_eq!(
        result["routes"],
        json!([{ "dst": "0.0.0.0/0", "gw": "10.240.0.1" }]),
        "the pod has one"
    );
    ns.output("ping", &["-c1", "-i0.2", "-w5", "10.240.0.4"])?;
    let host = result["interfaces"][1]["name"]
        .as_str()
        .context("no host interface")?;
    assert!(world.interfaces()?.contains(&host.to_owned()));
    call(&world, "DEL", &ns)?.with("ipam", ipam).ok()?;
    world.assert_empty()
}

/// The distribution's dhcp asks on the pod's interface, which comes after the address here: it refuses, in its own words, and
/// nothing is left.
#[test]
fn dhcp_has_no_interface_to_ask_on() -> Result<()> {
    let (world, ns) = (World::new(1)?, Netns::new()?);
    let program = reference("dhcp")?;
    let socket = world.node.root.join("/run/dhcp.sock");
    fs::create_dir_all(socket.parent().context("no directory")?)?;
    let mut daemon = world.node.ns.command(program);
    let daemon = daemon.arg("daemon").arg("-socketpath").arg(&socket);
    let mut daemon = daemon.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let tried = (|| {
        let end = Instant::now() + Duration::from_secs(20);
        while !socket.exists() {
            anyhow::ensure!(Instant::now() < end, "the daemon does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
        let ipam = json!({ "type": "dhcp", "daemonSocketPath": socket });
        let failure = call(&world, "ADD", &ns)?.with("ipam", ipam.clone()).error()?;
        let del = call(&world, "DEL", &ns)?.with("ipam", ipam).ok()?;
        Ok((failure, del))
    })();
    daemon.kill()?;
    daemon.wait()?;
    let (failure, del) = tried?;
    assert!(
        failure.msg.contains("error calling DHCP.Allocate") && failure.msg.contains("eth0"),
        "{failure:?}"
    );
    assert_eq!(del, Value::Null);
    world.assert_empty()
}
