//! The scenes, one function each.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    time::{Duration, Instant},
};

use anyhow::Result;
use causeway_tests::{
    echo::Echo,
    fabric::{GATEWAY, INTERNET, NODE, PARTNER, PEERED, VNET, WIRESERVER},
    netns::Netns,
    node::Pod,
    rig::Rig,
    rules,
    talk::{Tcp, Udp},
    walk::{TURNS, Walk},
};

use crate::story::Story;

const ECHO: u16 = 7;
const VIP: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 50);

/// The pods of the story.
pub(crate) struct Pods {
    pub(crate) web: Pod,
    api: Pod,
    db: Pod,
}

pub(crate) fn a_node(story: &mut Story) -> Result<Rig> {
    story.scene("A node and the world around it");
    let rig = Rig::causeway()?;
    let pool = &rig.node.pool;
    story.tell(&format!(
        "node      eth0 {NODE}/16, gateway {GATEWAY}, no iptables rule but one that counts what is forwarded\n\
         pool      {} … {} in /etc/kubernetes/interfaces.json\n\
         vnet      {VNET} and {PEERED}: another host of the VNet\n\
         internet  {INTERNET}: has no route to pods, so it can answer only what was translated\n\
         partner   {PARTNER}: outside the excluded ranges, with a route to the pods",
        pool[0],
        pool[pool.len() - 1]
    ));
    Ok(rig)
}

pub(crate) fn three_pods(story: &mut Story, rig: &Rig) -> Result<Pods> {
    story.scene("Three pods, through the CNI plug-in and the stock conflist");
    let mut add = |name: &str, remark: &str| -> Result<Pod> {
        let start = Instant::now();
        let pod = rig.pod(name)?;
        let took = start.elapsed().as_millis();
        story.check(
            rig.node.pool.contains(&pod.addr),
            &format!("azure-vnet ADD {name:<4} → {} in {took} ms{remark}", pod.addr),
        );
        Ok(pod)
    };
    let web = add("web", ", in which it loaded, pinned and attached the datapath")?;
    let pods = Pods {
        api: add("api", "")?,
        db: add("db", "")?,
        web,
    };
    story.tell(&format!("the plug-in's answer for web: {}", pods.web.result));
    Ok(pods)
}

pub(crate) fn pod_to_pod(story: &mut Story, rig: &Rig, pods: &Pods) {
    story.scene("Pod to pod");
    story.tell(&format!(
        "In every conversation: {TURNS} questions, {TURNS} answers, each answer compared."
    ));
    carried(
        story,
        rig,
        ("web → api", &pods.web.ns, &pods.api.ns, pods.api.addr),
        pods.web.addr,
    );
}

pub(crate) fn pod_to_vnet(story: &mut Story, rig: &Rig, pods: &Pods) {
    story.scene("Pod to the VNet, with the pod's own address");
    let vnet = &rig.fabric.vnet;
    carried(
        story,
        rig,
        ("web → vnet", &pods.web.ns, vnet, VNET),
        pods.web.addr,
    );
    carried(
        story,
        rig,
        ("db → peered vnet", &pods.db.ns, vnet, PEERED),
        pods.db.addr,
    );
}

pub(crate) fn pod_to_internet(story: &mut Story, rig: &Rig, pods: &Pods) {
    story.scene("Pod to the internet, with the node's address and no MASQUERADE rule");
    for (name, pod) in [("web → internet", &pods.web), ("api → internet", &pods.api)] {
        carried(story, rig, (name, &pod.ns, &rig.fabric.internet, INTERNET), NODE);
    }
}

pub(crate) fn outside_to_pod(story: &mut Story, rig: &Rig, pods: &Pods) {
    story.scene("From outside straight to a pod: the answers keep the pod's address");
    carried(
        story,
        rig,
        ("vnet → db", &rig.fabric.vnet, &pods.db.ns, pods.db.addr),
        VNET,
    );
    carried(
        story,
        rig,
        ("partner → db", &rig.fabric.partner, &pods.db.ns, pods.db.addr),
        PARTNER,
    );
}

pub(crate) fn cluster_ip(story: &mut Story, rig: &Rig, pods: &Pods) -> Result<()> {
    story.scene("ClusterIPs as kube-proxy makes them: the kernel translates, so the kernel keeps the flow");
    for (port, name, server, endpoint, seen) in [
        (80, "api", &pods.api.ns, pods.api.addr, pods.web.addr),
        (81, "vnet", &rig.fabric.vnet, VNET, pods.web.addr),
        (82, "internet", &rig.fabric.internet, INTERNET, NODE),
    ] {
        let (vip, endpoint) = (SocketAddrV4::new(VIP, port), SocketAddrV4::new(endpoint, 8080));
        rules::cluster_ip(&rig.node.ns, vip, endpoint)?;
        story.tell(&format!(
            "iptables -t nat -A PREROUTING -d {VIP} --dport {port} -j DNAT --to-destination {endpoint}"
        ));
        let walk = Walk {
            client: &pods.web.ns,
            dial: vip,
            server,
            listen: endpoint,
        };
        by_the_kernel(story, rig, &format!("web → :{port} → {name}"), &walk, seen);
    }
    Ok(())
}

pub(crate) fn host_port(story: &mut Story, rig: &Rig, pods: &Pods) -> Result<()> {
    story.scene("A hostPort as portmap makes it, called from outside");
    let (dial, listen) = (
        SocketAddrV4::new(NODE, 8081),
        SocketAddrV4::new(pods.db.addr, 8080),
    );
    rules::host_port(&rig.node.ns, 8081, listen)?;
    story.tell(&format!(
        "iptables -t nat -A PREROUTING --dport 8081 --dst-type LOCAL -j DNAT --to-destination {listen}"
    ));
    for (name, client, seen) in [
        ("vnet → :8081 → db", &rig.fabric.vnet, VNET),
        ("internet → :8081 → db", &rig.fabric.internet, INTERNET),
    ] {
        by_the_kernel(
            story,
            rig,
            name,
            &Walk {
                client,
                dial,
                server: &pods.db.ns,
                listen,
            },
            seen,
        );
    }
    Ok(())
}

pub(crate) fn policy(story: &mut Story, rig: &Rig, pods: &Pods) -> Result<()> {
    story.scene("What the kernel forbids stays forbidden");
    let brief = Duration::from_millis(20);
    let forbidden = SocketAddrV4::new(pods.db.addr, ECHO);
    rules::forbid(&rig.node.ns, pods.api.addr, pods.db.addr)?;
    story.tell(&format!(
        "iptables -I FORWARD -s {} -d {} -j DROP",
        pods.api.addr, pods.db.addr
    ));
    let echo = Echo::start(&pods.db.ns, ECHO)?;
    let socket = Udp::connect(&pods.api.ns, forbidden)?;
    let mut answers = 0;
    for _ in 0..20 {
        answers += u32::from(Tcp::connect_within(&pods.api.ns, forbidden, brief).is_ok());
        answers += u32::from(!socket.is_unanswered(32, brief)?);
    }
    let seen = echo.seen().len();
    story.check(
        answers == 0 && seen == 0,
        &format!("api → db: 20 TCP and 20 UDP attempts, {answers} answered, db saw {seen}"),
    );
    drop(echo);
    carried(
        story,
        rig,
        ("web → db", &pods.web.ns, &pods.db.ns, pods.db.addr),
        pods.web.addr,
    );

    let platform: Vec<Echo> = [80, 53]
        .into_iter()
        .map(|port| Echo::start(&rig.fabric.router, port))
        .collect::<Result<_>>()?;
    let reached = Tcp::connect_within(
        &pods.web.ns,
        SocketAddrV4::new(WIRESERVER, 80),
        Duration::from_millis(300),
    )
    .is_ok();
    story.check(
        !reached && platform[0].seen().is_empty(),
        &format!("web → {WIRESERVER}:80, the VM's credentials: dropped by cwy_from_pod, without a rule"),
    );
    let resolved = Udp::connect(&pods.web.ns, SocketAddrV4::new(WIRESERVER, 53))?
        .chat(3)
        .is_ok();
    story.check(
        resolved,
        &format!("web → {WIRESERVER}:53, the resolver: answered"),
    );
    Ok(())
}

pub(crate) fn what_the_tools_show(story: &mut Story, rig: &Rig, pods: &Pods) -> Result<()> {
    story.scene("What the tools show");
    for (destination, remark) in [
        (INTERNET.to_string(), "translated"),
        (VIP.to_string(), "the kernel's"),
    ] {
        story.tell(&format!("$ causeway flows --dst {destination}    # {remark}"));
        story.tell(&rig.node.causeway(&["flows", "--dst", &destination])?);
        story.tell("");
    }
    let api = pods.api.addr.to_string();
    story.tell(&format!(
        "$ causeway flows --src {} --dst {api}    # carried",
        pods.web.addr
    ));
    story.tell(
        &rig.node
            .causeway(&["flows", "--src", &pods.web.addr.to_string(), "--dst", &api])?,
    );
    story.tell("\n$ causeway status");
    story.tell(&rig.node.causeway(&["status"])?);
    let pin = rig
        .node
        .root
        .join("/sys/fs/bpf/causeway/v2/maps/cwy_flows")
        .display()
        .to_string();
    let dump = rig.node.ns.output("bpftool", &["map", "dump", "pinned", &pin])?;
    story.tell(&format!("\n$ bpftool map dump pinned {pin}"));
    story.tell(&one_entry(&dump, &["\"state\": 2,", "\"nat\": 1,"]));
    let carried = rig.node.count("carried_to_pod")? + rig.node.count("carried_to_uplink")?;
    story.check(
        carried > 0,
        &format!("{carried} packets were carried past the stack"),
    );
    Ok(())
}

pub(crate) fn nothing_leaked(story: &mut Story, mut rig: Rig) {
    story.scene("The watch on the wire");
    let leaks = rig.end_watch();
    story.check(
        leaks.is_empty(),
        &format!(
            "{} packets left the node with an address or a MAC they must not leave with",
            leaks.len()
        ),
    );
    for leak in leaks.iter().take(5) {
        story.tell(&format!("{leak:?}"));
    }
}

type Route<'a> = (&'a str, &'a Netns, &'a Netns, Ipv4Addr);

fn carried(story: &mut Story, rig: &Rig, (name, client, server, to): Route<'_>, seen: Ipv4Addr) {
    let walk = Walk::direct(client, server, SocketAddrV4::new(to, ECHO));
    for (protocol, talk) in [
        ("TCP", walk.tcp(rig)),
        ("UDP", walk.udp(rig)),
        ("ping", walk.ping(rig)),
    ] {
        story.talk(&format!("{protocol:<4} {name}"), talk, |talk| {
            talk.expect_carried(seen)
        });
    }
}

fn by_the_kernel(story: &mut Story, rig: &Rig, name: &str, walk: &Walk<'_>, seen: Ipv4Addr) {
    for (protocol, talk) in [("TCP", walk.tcp(rig)), ("UDP", walk.udp(rig))] {
        story.talk(&format!("{protocol:<4} {name}"), talk, |talk| {
            talk.expect_kernel(seen)
        });
    }
}

/// The first entry of a dump in which all of `words` stand, as `bpftool` prints it, and how many others there are.
fn one_entry(dump: &str, words: &[&str]) -> String {
    let entries: Vec<&str> = dump.split("},{").collect();
    let wanted = entries
        .iter()
        .find(|entry| words.iter().all(|word| entry.contains(word)));
    let entry = wanted.map_or("(none)", |entry| entry.trim_matches(['[', ']', '\n']));
    format!(
        "[… {{{}\n    }}, … {} others]",
        entry.trim_end(),
        entries.len() - 1
    )
}
