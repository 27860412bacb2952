//! Cases 1 to 8 of the conformance list: what is said on which stream, and the codes.

use std::{os::unix::process::CommandExt, process::Stdio};

use anyhow::Result;
use causeway_tests::netns::Netns;
use serde_json::{Value, json};

use crate::call::{Call, World};

pub(crate) const VERSIONS: [&str; 7] = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

#[test]
fn without_a_command_it_introduces_itself() -> Result<()> {
    let world = World::new(1)?;
    for call in [world.network("ADD", "c1")?, world.ipam("ADD", "c1")] {
        let output = call.without("CNI_COMMAND").output()?;
        assert!(output.status.success() && output.stdout.is_empty());
        let text = String::from_utf8(output.stderr)?;
        assert!(VERSIONS.iter().all(|version| text.contains(version)), "{text}");
    }
    Ok(())
}

#[test]
fn version_is_answered_whatever_is_on_standard_input() -> Result<()> {
    let world = World::new(1)?;
    for (stdin, version) in [
        ("", "1.1.0"),
        (r#"{"cniVersion":"0.4.0"}"#, "0.4.0"),
        (r#"{"cniVersion":"2.0.0"}"#, "1.1.0"),
    ] {
        for call in [world.network("VERSION", "dummy")?, world.ipam("VERSION", "dummy")] {
            let answer = call
                .env("CNI_NETNS", "dummy")
                .env("CNI_PATH", "dummy")
                .stdin(stdin)
                .ok()?;
            assert_eq!(
                answer,
                json!({ "cniVersion": version, "supportedVersions": VERSIONS })
            );
        }
    }
    Ok(())
}

#[test]
fn the_file_name_decides_and_flags_print_the_version() -> Result<()> {
    let world = World::new(1)?;
    let call = world.network("ADD", "c1")?;
    let mut command = call.command();
    command.arg0("/opt/cni/bin/other-plugin");
    let output = call.feed(command)?.wait_with_output()?;
    assert_eq!(output.status.code(), Some(2));
    assert!(output.stdout.is_empty() && String::from_utf8(output.stderr)?.starts_with("usage: "));
    for flag in ["--version", "-v"] {
        let mut command = call.command();
        command.arg(flag);
        let output = call.feed(command)?.wait_with_output()?;
        assert!(String::from_utf8(output.stdout)?.starts_with("Azure CNI Version "));
    }
    Ok(())
}

#[test]
fn a_bad_environment_has_code_4_and_names_the_variables() -> Result<()> {
    let world = World::new(1)?;
    let ns = Netns::new()?;
    let add = || Ok::<_, anyhow::Error>(world.network("ADD", "c1")?.netns(&ns));
    let bare = add()?
        .without("CNI_CONTAINERID")
        .without("CNI_NETNS")
        .without("CNI_IFNAME");
    let failure = bare.error()?;
    assert_eq!(
        (failure.code, failure.msg.as_str()),
        (
            4,
            "required env variables [CNI_CONTAINERID,CNI_NETNS,CNI_IFNAME] missing"
        )
    );
    let failure = add()?.env("CNI_COMMAND", "FOO").stdin("").error()?;
    assert_eq!(
        (failure.code, failure.msg.as_str()),
        (4, "unknown CNI_COMMAND: FOO")
    );
    for (name, value) in [
        ("CNI_CONTAINERID", "-c1"),
        ("CNI_IFNAME", "a/b"),
        ("CNI_IFNAME", "."),
        ("CNI_IFNAME", "0123456789abcdef"),
        ("CNI_IFNAME", "a b"),
    ] {
        let failure = add()?.env(name, value).error()?;
        assert!(
            failure.code == 4 && failure.msg.contains(name),
            "{value}: {failure:?}"
        );
    }
    world.network("DEL", "c1")?.ok()?;
    world
        .network("DEL", "c1")?
        .env("CNI_NETNS", "netnspath")
        .without("CNI_PATH")
        .ok()?;
    world.assert_empty()
}

#[test]
fn a_bad_configuration_has_its_code() -> Result<()> {
    let world = World::new(1)?;
    let ns = Netns::new()?;
    let add = world.network("ADD", "c1")?.netns(&ns);
    let cases: Vec<(Call<'_>, u64, &str)> = vec![
        (add.clone().stdin("{"), 6, "EOF"),
        (add.clone().stdin(""), 6, "EOF"),
        (add.clone().stdin("[]"), 6, "expected an object"),
        (add.clone().with("name", Value::Null), 7, "missing network name"),
        (add.clone().with("name", json!("a/b")), 7, "invalid characters"),
        (
            add.clone().with("name", json!(7)),
            6,
            "expected a string, found 7",
        ),
        (
            add.clone().with("cniVersion", json!("9.9.9")),
            1,
            "incompatible CNI versions",
        ),
        (
            add.clone().with("mode", json!("transparent-vlan")),
            7,
            "Network mode is invalid",
        ),
        (
            add.clone().with("ipam", json!({ "type": "no-such-ipam" })),
            100,
            "failed to find plugin \"no-such-ipam\" in path",
        ),
        (
            add.clone().with(
                "ipam",
                json!({ "type": "azure-vnet-ipam", "environment": "moon" }),
            ),
            7,
            "Invalid configuration",
        ),
        (
            add.clone().with("master", json!("eth9")),
            100,
            "no available address pools",
        ),
        (
            add.clone().with(
                "ipam",
                json!({ "type": "azure-vnet-ipam", "environment": "mas", "subnet": "10.9.0.0/16" }),
            ),
            100,
            "Pool id 10.9.0.0/16 not found :Invalid address pool",
        ),
        (add.clone().env("CNI_NETNS", "/nonexistent"), 8, "No such file"),
        (
            add.clone().env("CNI_NETNS", "/dev/null"),
            8,
            "not a network namespace",
        ),
        (add.clone().netns(&world.node.ns), 8, "should not be the same"),
    ];
    for (call, code, needle) in cases {
        let failure = call.error()?;
        assert!(
            failure.code == code && failure.msg.contains(needle),
            "expected {code} {needle}: {failure:?}"
        );
    }
    let failure = add.with("cniVersion", json!("9.9.9")).error()?;
    assert!(
        VERSIONS.iter().all(|version| failure.details.contains(version)),
        "{failure:?}"
    );
    world.assert_empty()
}

#[test]
fn verbs_that_the_version_does_not_have_are_refused() -> Result<()> {
    let world = World::new(1)?;
    let ns = Netns::new()?;
    for (verb, version, code) in [
        ("CHECK", "0.3.1", 1),
        ("GC", "1.0.0", 1),
        ("STATUS", "1.0.0", 1),
        ("STATUS", "0.3.0", 1),
        ("CHECK", "1.0.0", 7),
    ] {
        let call = world
            .network(verb, "c1")?
            .netns(&ns)
            .with("cniVersion", json!(version));
        let failure = call.error()?;
        assert!(
            failure.code == code && failure.msg.contains(verb),
            "{verb} {version}: {failure:?}"
        );
    }
    world.assert_empty()
}

#[test]
fn an_answer_that_nobody_gets_is_a_failure_and_leaves_nothing() -> Result<()> {
    let world = World::new(1)?;
    let ns = Netns::new()?;
    for call in [world.network("ADD", "c1")?.netns(&ns), world.ipam("ADD", "c1")] {
        let mut closed = call.command();
        // SAFETY: between fork and exec; one system call.
        unsafe {
            closed.pre_exec(|| {
                libc::close(libc::STDOUT_FILENO);
                Ok(())
            });
        }
        let mut full = call.command();
        full.stdout(std::fs::OpenOptions::new().write(true).open("/dev/full")?);
        let mut broken = call.command();
        let (reader, writer) = std::io::pipe()?;
        drop(reader);
        broken.stdout(Stdio::from(writer));
        for command in [closed, full, broken] {
            let output = call.feed(command)?.wait_with_output()?;
            assert!(!output.status.success());
            world.assert_empty()?;
        }
    }
    Ok(())
}

#[test]
fn a_log_that_cannot_be_written_hinders_nothing() -> Result<()> {
    let world = World::new(1)?;
    world
        .node
        .root
        .write("/var/log", "a file where a directory belongs")?;
    world.ipam("ADD", "c1").ok()?;
    world.ipam("DEL", "c1").ok()?;
    world.assert_empty()
}

#[test]
fn each_call_leaves_one_line_in_the_log() -> Result<()> {
    let world = World::new(1)?;
    let args = "K8S_POD_NAMESPACE=default;K8S_POD_NAME=web\u{1b}[31m";
    world.ipam("ADD", "c1").env("CNI_ARGS", args).ok()?;
    world.ipam("ADD", "c2").error()?;
    world.ipam("VERSION", "c1").ok()?;
    let text = std::fs::read_to_string(world.node.root.join("/var/log/azure-vnet-ipam.log"))?;
    let lines: Vec<Value> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    assert_eq!(lines.len(), 2, "{text}");
    let first = &lines[0];
    assert_eq!(
        (&first["command"], &first["container"], &first["ip"]),
        (&json!("ADD"), &json!("c1"), &json!("10.240.0.5"))
    );
    assert_eq!(first["pod"], "default/web[31m");
    assert!(first["duration_us"].is_u64() && first["ts"].is_string());
    assert_eq!(
        (&lines[1]["level"], &lines[1]["code"]),
        (&json!("error"), &json!(100))
    );
    Ok(())
}
