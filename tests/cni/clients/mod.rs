//! Real clients: containerd's `ctr`, containerd's CRI, podman. They judge by themselves whether a result is one.

mod cri;
mod host;

use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::{Context, Result};
use causeway_tests::fabric::NODE;
use serde_json::{Value, json};

use self::{
    cri::{Cri, Sandbox},
    host::{Host, IMAGE, fetch},
};

/// Every version in which containerd 1.6 takes a result.
#[test]
fn ctr_runs_a_container_in_every_version() -> Result<()> {
    let mut host = Host::new(2, |_| {})?;
    host.start_containerd()?;
    for version in ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0"] {
        let mut list: Value = serde_json::from_str(&std::fs::read_to_string(host.world.dist.conflist())?)?;
        list["cniVersion"] = version.into();
        if version < "0.3" {
            // portmap is chained, which came with 0.3.0.
            list["plugins"].as_array_mut().context("no plug-ins")?.pop();
        }
        host.world
            .node
            .root
            .write("/client/net.d/10-azure.conflist", &list.to_string())?;
        let script = "ip -4 addr show eth0; ip route; ping -c 2 -w 5 10.240.0.4";
        let said = host.ctr(&[
            "run",
            "--rm",
            "--cni",
            "--snapshotter",
            "native",
            IMAGE,
            "t1",
            "/bin/sh",
            "-c",
            script,
        ])?;
        assert!(
            said.contains("/16") && said.contains("default via 169.254.1.1"),
            "{version}: {said}"
        );
        assert!(!said.contains("100% packet loss"), "{version}: {said}");
        let calls = host.calls()?;
        assert!(
            calls[0].starts_with("azure-vnet ADD default-t1 netns=/proc/"),
            "{calls:?}"
        );
        assert!(
            calls[1].ends_with("azure-vnet DEL default-t1 netns="),
            "{calls:?}"
        );
        host.world.assert_empty()?;
    }
    // Detached containers are never deleted: their address is free when their namespace is gone.
    let run = |id: &str| host.ctr(&["run", "-d", "--cni", "--snapshotter", "native", IMAGE, id]);
    for id in ["d1", "d2"] {
        run(id)?;
    }
    host.ctr(&["task", "kill", "--signal", "9", "d1"])?;
    host.ctr(&["task", "delete", "--force", "d1"]).ok();
    run("d3")?;
    let mut held: Vec<String> = host
        .world
        .leases()?
        .into_iter()
        .map(|(_, container)| container)
        .collect();
    held.sort();
    assert_eq!(held, ["default-d2", "default-d3"]);
    Ok(())
}

#[test]
fn cri_pods_with_host_ports_are_stopped_twice_and_survive_containerd() -> Result<()> {
    let mut host = Host::new(4, |_| {})?;
    host.start_containerd()?;
    let cri = Cri::connect(&host.socket())?;
    assert!(cri.is_network_ready()?);
    let pods = [
        cri.run(&Sandbox {
            name: "one",
            host_port: Some(8082),
            ..Sandbox::default()
        })?,
        cri.run(&Sandbox {
            name: "two",
            bandwidth: Some("10M"),
            ..Sandbox::default()
        })?,
    ];
    let addresses: Vec<Ipv4Addr> = pods.iter().map(|pod| cri.address(pod)).collect::<Result<_>>()?;
    for address in &addresses {
        fetch(&host.world.node.ns, SocketAddrV4::new(*address, 80))?;
        fetch(&host.world.fabric.partner, SocketAddrV4::new(*address, 80))?;
    }
    fetch(&host.world.fabric.vnet, SocketAddrV4::new(NODE, 8082))?;
    let log = std::fs::read_to_string(host.world.node.root.join("/var/log/azure-vnet.log"))?;
    assert!(
        log.contains("default/one") && log.contains("default/two"),
        "{log}"
    );
    // containerd goes and comes back: nobody notices.
    host.stop_containerd()?;
    fetch(&host.world.fabric.vnet, SocketAddrV4::new(NODE, 8082))?;
    host.start_containerd()?;
    let cri = Cri::connect(&host.socket())?;
    assert_eq!(cri.address(&pods[0])?, addresses[0]);
    host.calls()?;
    for pod in &pods {
        cri.stop(pod)?;
        cri.stop(pod)?;
        cri.remove(pod)?;
    }
    let calls = host.calls()?;
    assert!(
        calls
            .iter()
            .any(|call| call.contains("DEL") && call.ends_with("netns=")),
        "{calls:?}"
    );
    host.world.assert_empty()?;
    let rules = host.world.node.ns.output("iptables", &["-t", "nat", "-S"])?;
    assert!(!rules.contains("8082"), "{rules}");
    Ok(())
}

/// A DEL that cannot do its work is tried again, and then works.
#[test]
fn cri_retries_a_del_that_fails() -> Result<()> {
    let mut host = Host::new(1, |_| {})?;
    host.start_containerd()?;
    let cri = Cri::connect(&host.socket())?;
    let pod = cri.run(&Sandbox {
        name: "one",
        ..Sandbox::default()
    })?;
    let state = host.world.node.root.join("/var/run/azure-vnet.json");
    let kept = std::fs::read(&state)?;
    std::fs::remove_file(&state)?;
    std::fs::create_dir(&state)?;
    cri.stop(&pod).unwrap_err();
    assert_eq!(host.world.leases()?.len(), 1, "the address is kept");
    std::fs::remove_dir(&state)?;
    std::fs::write(&state, kept)?;
    cri.stop(&pod)?;
    cri.remove(&pod)?;
    host.world.assert_empty()
}

#[test]
fn podman_has_static_addresses_ports_and_reloads() -> Result<()> {
    let host = Host::new(4, |list| {
        list["cniVersion"] = "1.0.0".into();
        list["plugins"][0]["capabilities"]["ips"] = true.into();
    })?;
    let run = |name: &str, more: &[&str]| {
        host.podman(
            &[
                &["run", "-d", "--name", name, "--network", "azure"],
                more,
                &[IMAGE],
            ]
            .concat(),
        )
    };
    run(
        "a",
        &[
            "--ip",
            "10.240.0.7",
            "--mac-address",
            "02:00:00:00:00:60",
            "-p",
            "8087:80/tcp",
        ],
    )?;
    run("b", &[])?;
    let inspect = |name: &str| {
        let said: Value = serde_json::from_str(&host.podman(&["inspect", name])?)?;
        Ok::<_, anyhow::Error>(said[0]["NetworkSettings"]["Networks"]["azure"].clone())
    };
    let a = inspect("a")?;
    assert_eq!(
        (&a["IPAddress"], &a["MacAddress"]),
        (&json!("10.240.0.7"), &json!("02:00:00:00:00:60"))
    );
    let check = || -> Result<()> {
        fetch(
            &host.world.node.ns,
            SocketAddrV4::new(Ipv4Addr::new(10, 240, 0, 7), 80),
        )?;
        fetch(&host.world.fabric.vnet, SocketAddrV4::new(NODE, 8087))?;
        fetch(&host.world.node.ns, SocketAddrV4::new(Ipv4Addr::LOCALHOST, 8087))
    };
    check()?;
    host.podman(&["exec", "b", "ping", "-c", "1", "-w", "5", "10.240.0.7"])?;
    host.calls()?;
    host.podman(&["network", "reload", "a"])?;
    let verbs: Vec<String> = host
        .calls()?
        .iter()
        .filter_map(|call| call.split(' ').nth(1).map(str::to_owned))
        .collect();
    assert_eq!(verbs, ["DEL", "ADD"]);
    check()?;
    assert_eq!(inspect("a")?["IPAddress"], "10.240.0.7");
    for name in ["a", "b"] {
        host.podman(&["rm", "-f", "-t0", name])?;
    }
    host.world.assert_empty()?;
    assert_eq!(host.calls()?.len(), 2);
    Ok(())
}

/// `scripts/docker-run.sh` and `docker-del.sh`, with podman in docker's place.
#[test]
fn the_scripts_for_docker_run_the_whole_chain() -> Result<()> {
    let host = Host::new(2, |_| {})?;
    let run = |name: &str, environment: &str, args: &str| {
        let path = crate::scripts::script(name);
        host.run(&[
            "sh",
            "-c",
            &format!("DOCKER=podman {environment} {} {args}", path.display()),
        ])
    };
    let said = run(
        "docker-run.sh",
        "PORTS=8080:80 DEBUG=1",
        &format!("web default {IMAGE}"),
    )?;
    assert!(said.contains("\"eth0\""), "{said}");
    // The image's own command serves, through the port as well: portmap was run.
    fetch(
        &host.world.node.ns,
        SocketAddrV4::new(Ipv4Addr::new(10, 240, 0, 5), 80),
    )?;
    fetch(&host.world.fabric.vnet, SocketAddrV4::new(NODE, 8080))?;
    let failed = run("docker-run.sh", "PORTS=0:80", &format!("bad default {IMAGE}")).unwrap_err();
    assert!(
        failed.to_string().contains("Invalid host port number"),
        "{failed}"
    );
    let names = host.podman(&["ps", "-a", "--format", "{{.Names}}"])?;
    assert_eq!(names.trim(), "web", "what failed is gone");
    let silent = run("docker-run.sh", "", &format!("second default {IMAGE} sleep 1000"))?;
    assert_eq!(silent.trim(), "");
    for name in ["web", "second"] {
        run("docker-del.sh", "", &format!("{name} default"))?;
    }
    assert_eq!(host.podman(&["ps", "-a", "-q"])?, "");
    host.world.assert_empty()?;
    for (name, args) in [
        ("docker-run.sh", "a b"),
        ("docker-del.sh", "a"),
        ("docker-del.sh", "none default"),
    ] {
        run(name, "", args).unwrap_err();
    }
    Ok(())
}
