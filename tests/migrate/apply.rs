//! There and back under traffic.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddrV4, TcpListener},
    os::unix::fs::PermissionsExt as _,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Result, ensure};
use causeway::go_json;
use causeway_tests::{
    echo::Echo,
    fabric::{INTERNET, NODE},
    netns::Netns,
    rng::Rng,
    talk::Tcp,
};
use rustix::fs::{FlockOperation, flock};

use crate::{
    incumbent::{NODE_PORT, PORT, Site},
    snapshot::Snapshot,
    traffic::{Lost, Traffic},
};

/// Five datagram flows lose two of their packets each at most.
fn assert_few(lost: &Lost) {
    assert!(lost.lost <= 10 && lost.lost < lost.asked / 2, "{lost:?}");
}

fn round_trips(times: u32) -> Result<()> {
    round_trips_of(&Site::new(3)?, times)
}

fn round_trips_of(site: &Site, times: u32) -> Result<()> {
    let mut traffic = Traffic::open(site)?;
    let before = Snapshot::of(site)?;
    for trip in 0..times {
        let migrate = |verb| {
            let done = site.migrate(verb)?;
            println!("trip {trip}: {done}");
            ensure!(done["lost"] == 0, "{done}");
            Ok(())
        };
        let ((), lost) = traffic.during(site, || migrate("--apply"))?;
        assert_few(&lost);
        traffic.assert_works()?;
        assert_eq!(site.node.causeway_json("status")?["uplink"]["interface"], "eth0");
        let ((), lost) = traffic.during(site, || migrate("--rollback"))?;
        assert_few(&lost);
        traffic.assert_works()?;
        Snapshot::of(site)?.assert_is(&before);
        site.assert_no_leak();
    }
    Ok(())
}

#[test]
fn flows_live_through_five_round_trips_and_the_node_is_as_it_was() -> Result<()> {
    round_trips(5)
}

/// A pod that takes its ports again soon: what begins has the tuple of what is just being given from one to the other.
#[test]
fn tuples_that_begin_anew_live_through_five_round_trips() -> Result<()> {
    let site = Site::new(3)?;
    let ns = &site.pods[0].ns;
    ns.sysctl("net/ipv4/ip_local_port_range", "41000 41999")?;
    ns.sysctl("net/ipv4/tcp_tw_reuse", "1")?;
    round_trips_of(&site, 5)
}

#[test]
#[ignore = "some minutes"]
fn long_flows_live_through_a_hundred_round_trips() -> Result<()> {
    round_trips(100)
}

/// A server that thinks about each message for up to thirty milliseconds: answers are under way whatever is done.
fn thoughtful_server(ns: &Netns) -> Result<TcpListener> {
    let listener = ns.bind(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)))?;
    let accepting = listener.try_clone()?;
    thread::spawn(move || {
        let mut seed = 0_u64;
        while let Ok((mut connection, _)) = accepting.accept() {
            seed += 1;
            let mut rng = Rng::new(seed);
            thread::spawn(move || {
                let mut heard = [0; 512];
                while let Ok(length @ 1..) = connection.read(&mut heard) {
                    thread::sleep(Duration::from_micros(rng.below(30_000) as u64));
                    if connection.write_all(&heard[..length]).is_err() {
                        return;
                    }
                }
            });
        }
    });
    Ok(listener)
}

/// What the kernel masquerades for a service is made anew, with answers under way.
#[test]
fn answers_of_a_service_come_through_while_their_connections_are_made_anew() -> Result<()> {
    const CONNECTIONS: usize = 300;
    let site = Site::new(3)?;
    let server = thoughtful_server(&site.server().ns)?;
    let connect = |_| Tcp::connect(&site.fabric.vnet, SocketAddrV4::new(NODE, NODE_PORT));
    let mut open: Vec<Tcp> = (0..CONNECTIONS).map(connect).collect::<Result<_>>()?;
    let stop = AtomicBool::new(false);
    let talk = |tcp: &mut Tcp| -> Result<()> {
        while !stop.load(Ordering::Relaxed) {
            tcp.chat(1)?;
        }
        Ok(())
    };
    thread::scope(|scope| {
        let talk = &talk;
        let talks: Vec<_> = open
            .iter_mut()
            .map(|tcp| scope.spawn(move || talk(tcp)))
            .collect();
        let trips = || -> Result<()> {
            for _ in 0..5 {
                for verb in ["--apply", "--rollback"] {
                    let done = site.migrate(verb)?;
                    ensure!(done["lost"] == 0, "{done}");
                }
            }
            Ok(())
        };
        let done = trips();
        stop.store(true, Ordering::Relaxed);
        for talk in talks {
            talk.join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
        done
    })?;
    drop(server);
    Ok(())
}

#[test]
fn a_node_that_was_taken_over_needs_neither_bridge_nor_rule() -> Result<()> {
    let site = Site::new(3)?;
    let mut traffic = Traffic::open(&site)?;
    let applied = site.migrate("--apply")?;
    assert_eq!(applied["pods"], 3);
    assert_eq!(
        (&applied["carried"], &applied["kernel"]),
        (&7.into(), &2.into()),
        "{applied}"
    );
    traffic.assert_works()?;
    // The bridge carries nothing, and no rule translates.
    assert_eq!(
        site.node.ns.output("ip", &["link", "show", "master", "azure0"])?,
        ""
    );
    assert!(
        !site
            .node
            .ns
            .output("iptables-save", &["-t", "nat"])?
            .contains("168.63.129.16")
    );
    let mut tcp = Tcp::connect(&site.pods[0].ns, SocketAddrV4::new(INTERNET, PORT))?;
    tcp.chat(5)?;
    assert_eq!(
        site.node.flow_states("tcp", tcp.local()?)?,
        ["carried", "carried"]
    );
    site.assert_no_leak();
    Ok(())
}

#[test]
fn pods_that_come_and_go_meanwhile_are_on_the_bridge_afterwards_or_gone() -> Result<()> {
    let site = Site::new(3)?;
    site.migrate("--apply")?;
    let outside = SocketAddrV4::new(INTERNET, PORT);
    let _server = Echo::start(&site.fabric.internet, PORT)?;
    // One of theirs is deleted by our plug-in, and ours take all addresses that are free.
    let theirs = &site.pods[0];
    site.node.remove(theirs)?;
    assert!(!theirs.ns.output("ip", &["link"])?.contains("eth0"));
    let [ours, another, third] = [
        site.node.add("ours")?,
        site.node.add("another")?,
        site.node.add("third")?,
    ];
    assert!(
        [&ours, &another, &third]
            .iter()
            .any(|pod| pod.addr == theirs.addr)
    );
    let mut open = Tcp::connect(&ours.ns, outside)?;
    open.chat(3)?;
    let back = site.migrate("--rollback")?;
    assert_eq!(back["pods"], 5, "{back}");
    open.chat(3)?;
    Tcp::connect(&another.ns, outside)?.chat(3)?;
    reach(&site.pods[1].ns, ours.addr)?;
    reach(&ours.ns, site.pods[2].addr)?;
    reach(&another.ns, ours.addr)?;
    for pod in [&ours, &another, &third] {
        reach(&site.fabric.vnet, pod.addr)?;
        reach(&site.node.ns, pod.addr)?;
        let ports = site.node.ns.output("bridge", &["link", "show"])?;
        assert!(ports.contains(&site.node.host_interface(pod)?), "{ports}");
        // What the incumbent would have made for it, and nothing of the pod that had its address.
        let mac = go_json::mac_text(pod.ns.mac("eth0")?);
        let rules = site.node.ns.output("ebtables-save", &[])?;
        let about: Vec<&str> = rules
            .lines()
            .filter(|rule| rule.contains(&format!("{} ", pod.addr)))
            .collect();
        assert!(
            about.len() == 2 && about.iter().all(|rule| rule.contains(&mac)),
            "{rules}"
        );
        let neighbours = site
            .node
            .ns
            .output("ip", &["neigh", "show", "nud", "permanent"])?;
        assert!(
            neighbours.contains(&format!("{} dev azure0 lladdr {mac}", pod.addr)),
            "{neighbours}"
        );
    }
    site.assert_no_leak();
    Ok(())
}

#[test]
fn a_pod_that_the_incumbent_adds_to_the_empty_bridge_is_taken_over_by_another_call() -> Result<()> {
    let mut site = Site::new(2)?;
    site.migrate("--apply")?;
    site.plug_another()?;
    let plan = site.migrate("--dry-run")?;
    assert_eq!(
        plan["steps"][0]["what"], "pod default/pod7 10.240.0.7",
        "{plan:#}"
    );
    assert_eq!(site.migrate("--apply")?["pods"], 3);
    let _server = Echo::start(&site.fabric.internet, PORT)?;
    let mut open = Tcp::connect(&site.pods[2].ns, SocketAddrV4::new(INTERNET, PORT))?;
    open.chat(3)?;
    assert_eq!(site.migrate("--rollback")?["pods"], 3);
    open.chat(3)?;
    reach(&site.pods[2].ns, site.pods[0].addr)?;
    site.assert_no_leak();
    Ok(())
}

#[test]
fn a_step_that_fails_is_undone_with_all_before_it() -> Result<()> {
    let site = Site::new(2)?;
    let mut traffic = Traffic::open(&site)?;
    let before = Snapshot::of(&site)?;
    let broken = tempfile::tempdir()?;
    let program = broken.path().join("iptables-nft-restore");
    fs::write(&program, "#!/bin/sh\necho no such luck >&2\nexit 4\n")?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    let (output, _) = traffic.during(&site, || {
        let path = format!("{}:{}", broken.path().display(), std::env::var("PATH")?);
        Ok(site
            .command(&["migrate", "--apply"])?
            .env("PATH", path)
            .output()?)
    })?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        !output.status.success() && said.contains("no such luck") && said.contains("undone"),
        "{said}"
    );
    Snapshot::of(&site)?.assert_is(&before);
    traffic.assert_works()?;
    site.assert_no_leak();
    Ok(())
}

#[test]
fn the_agents_chain_gives_its_ranges_and_comes_back_to_its_place() -> Result<()> {
    let site = Site::new(2)?;
    site.use_agents_chain()?;
    let mut traffic = Traffic::open(&site)?;
    let before = Snapshot::of(&site)?;
    traffic.during(&site, || site.migrate("--apply"))?;
    let ranges = site.node.causeway_json("ranges")?["ranges"].to_string();
    assert!(
        ranges.contains("10.0.0.0/8") && ranges.contains("192.0.2.0/24") && !ranges.contains("168.63"),
        "{ranges}"
    );
    traffic.during(&site, || site.migrate("--rollback"))?;
    Snapshot::of(&site)?.assert_is(&before);
    Ok(())
}

#[test]
fn a_rule_of_iptables_legacy_goes_and_comes_back_there() -> Result<()> {
    let site = Site::new(2)?;
    site.use_legacy_rule()?;
    let mut traffic = Traffic::open(&site)?;
    let before = Snapshot::of(&site)?;
    traffic.during(&site, || site.migrate("--apply"))?;
    assert!(
        !site
            .node
            .ns
            .output("iptables-legacy-save", &[])?
            .contains("MASQUERADE")
    );
    traffic.during(&site, || site.migrate("--rollback"))?;
    Snapshot::of(&site)?.assert_is(&before);
    site.assert_no_leak();
    Ok(())
}

#[test]
fn flows_live_on_where_the_kernel_checks_the_way_back() -> Result<()> {
    let site = Site::new(2)?;
    for interface in ["all", "azure0", "eth0"] {
        site.node
            .ns
            .sysctl(&format!("net/ipv4/conf/{interface}/rp_filter"), "1")?;
    }
    let mut traffic = Traffic::open(&site)?;
    traffic.during(&site, || site.migrate("--apply"))?;
    traffic.assert_works()?;
    traffic.during(&site, || site.migrate("--rollback"))?;
    traffic.assert_works()?;
    site.assert_no_leak();
    Ok(())
}

#[test]
fn a_running_agent_has_to_be_stopped() -> Result<()> {
    let site = Site::new(1)?;
    site.node.root.write("/run/causeway/agent.lock", "")?;
    let lock = fs::File::open(site.node.root.join("/run/causeway/agent.lock"))?;
    flock(&lock, FlockOperation::LockExclusive)?;
    let output = site.command(&["migrate", "--apply"])?.output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("agent"), "{said}");
    drop(lock);
    site.migrate("--apply")?;
    Ok(())
}

fn reach(ns: &Netns, to: Ipv4Addr) -> Result<String> {
    ns.output("ping", &["-c1", "-i0.2", "-w5", &to.to_string()])
}
