//! `causeway explain`: what it predicts for a packet is what the programs then say of it, each time.

mod family;
mod ipv6;
mod packet;

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Write as _},
    net::SocketAddr,
    process::{Child, ChildStdin, ChildStdout, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use aya::maps::{HashMap, Map, MapData, PerCpuArray};
use causeway_common::{
    flow::{FlowEntry, Nat},
    maps::Count,
    reason::{Reason, Verdict},
    tuple::FlowKey,
};
use causeway_tests::{
    netns::Netns,
    node::Datapath,
    raw::Sender,
    rng::{Rng, seed},
};
use rustix::time::{ClockId, clock_gettime};
use serde_json::Value;

use self::{
    family::Family,
    packet::{From, Packet, packet},
};
use crate::scene::Scene;

#[test]
fn ten_thousand_packets_become_what_was_predicted() -> Result<()> {
    let reasons = [
        "fromPod carried_to_uplink",
        "toUplink snat_promoted",
        "fromPod wireserver",
        "fromUplink carried_to_pod",
        "toPod promoted",
        "toUplink snat_no_mapping",
    ];
    compare::<[u8; 4]>(Datapath::Causeway, 10_000, 40, &reasons)
}

#[test]
fn with_xdp_on_the_uplink_packets_become_what_was_predicted() -> Result<()> {
    let reasons = ["fromUplink carried_by_xdp", "fromUplink carried_to_pod"];
    compare::<[u8; 4]>(Datapath::CausewayXdp, 5_000, 3, &reasons)
}

#[test]
fn ten_thousand_packets_of_ipv6_become_what_was_predicted() -> Result<()> {
    let reasons = [
        "fromPod carried_to_uplink",
        "toUplink snat_promoted",
        "toUplink snat_protocol",
        "fromUplink carried_to_pod",
        "toPod promoted",
        "toUplink snat_no_mapping",
    ];
    compare::<[u8; 16]>(Datapath::Causeway, 10_000, 40, &reasons)
}

/// Asks about so many packets, of so many ports on the pods' side, and sends them. A stage on which little happens proves
/// little: `reasons` must be among what happens.
fn compare<A: Family>(datapath: Datapath, packets: usize, ports: u16, reasons: &[&str]) -> Result<()> {
    let mut stage = Stage::<A>::new(datapath)?;
    let seed = seed(6);
    let mut rng = Rng::new(seed);
    let (mut compared, mut kinds) = (0, BTreeMap::<String, usize>::new());
    let mut packet = stage.draw(&mut rng, ports);
    let lacks = |kinds: &BTreeMap<String, usize>| reasons.iter().find(|reason| !kinds.contains_key(**reason));
    // Some reasons come only to a flow that has lived for a second.
    while compared < packets || compared < 10 * packets && lacks(&kinds).is_some() {
        // The second packet of a flow in a second goes another way than the first.
        if !rng.one_in(4) {
            packet = stage.draw(&mut rng, ports);
        }
        let start = clock_gettime(ClockId::Monotonic);
        let prediction = stage.ask(&packet)?;
        let before = stage.counts()?;
        stage.send(&packet)?;
        let expected = passages::<A>(&prediction)?;
        let seen = stage.moved_since(&before, expected.len())?;
        // A second is a unit of the programs' time: what was predicted in one is not said of the next.
        if is_near_the_end_of_a_second(start) {
            continue;
        }
        ensure!(
            seen == expected,
            "seed {seed}, after {compared}: {}: predicted {expected:?}, seen {seen:?}\n{prediction:#}",
            packet.words
        );
        stage.check_translation(&packet, &prediction)?;
        compared += 1;
        for (hook, reason) in expected {
            *kinds.entry(format!("{hook} {reason}")).or_default() += 1;
        }
    }
    ensure!(lacks(&kinds).is_none(), "no {:?} among {kinds:#?}", lacks(&kinds));
    ensure!(kinds.len() >= A::KINDS, "{kinds:#?}");
    Ok(())
}

#[test]
fn a_code_is_explained_without_a_datapath_and_nonsense_is_refused() -> Result<()> {
    let scene = Scene::with(Datapath::Causeway, 20, 0)?;
    let output = scene.run(&["explain", "cwy021"])?;
    let text = String::from_utf8(output.stdout)?;
    ensure!(
        output.status.success() && text.contains("bpftool map lookup"),
        "{text}"
    );
    for (words, exit) in [
        (&["explain", "CWY999"][..], 2),
        (&["explain", "10.240.0.5", "x", "tcp"], 2),
        (&["explain"], 2),
        (&["explain", "10.240.0.5:1", "203.0.113.10:443", "tcp"], 4),
    ] {
        let output = scene.run(words)?;
        ensure!(output.status.code() == Some(exit), "{words:?}: {output:?}");
    }
    Ok(())
}

#[test]
fn a_person_reads_what_decides() -> Result<()> {
    let scene = Scene::with(Datapath::Causeway, 20, 2)?;
    let explain = |words: &[&str]| -> Result<String> {
        let arguments: Vec<&str> = ["explain"].iter().chain(words).copied().collect();
        Ok(String::from_utf8(scene.run(&arguments)?.stdout)?)
    };
    let text = explain(&["10.240.0.5:40000", "203.0.113.10:443", "tcp"])?;
    for line in [
        "- source 10.240.0.5 is a pod of this node on azv",
        "- no entry in cwy_flows",
        "- destination is in no range: a pod's new flow to it leaves with the node's address",
        "- cwy_from_pod says offered",
        "  translated to 10.240.0.4:40000",
    ] {
        ensure!(text.contains(line), "{line}: {text}");
    }
    let text = explain(&["10.240.0.5", "10.9.9.9:443", "tcp"])?;
    ensure!(text.contains("range 10.0.0.0/8, excluded"), "{text}");
    ensure!(
        text.contains("taken for a new flow") && !text.contains("translated to"),
        "{text}"
    );
    let text = explain(&["10.240.0.5", "168.63.129.16:80", "tcp"])?;
    ensure!(
        text.contains("not for pods") && text.ends_with("=> dropped\n"),
        "{text}"
    );
    Ok(())
}

/// A node on which nothing moves but what is sent: nobody answers.
struct Stage<A: Family> {
    /// Lives as long as the stage.
    _scene: Scene,
    pods: [A; 2],
    senders: Vec<(Sender, [[u8; 6]; 2])>,
    wire: (Sender, [[u8; 6]; 2]),
    explain: Child,
    questions: ChildStdin,
    answers: BufReader<ChildStdout>,
    counts: PerCpuArray<MapData, Count>,
    flows: HashMap<MapData, FlowKey<A>, FlowEntry<A>>,
}

impl<A: Family> Stage<A> {
    fn new(datapath: Datapath) -> Result<Self> {
        let scene = A::scene(datapath)?;
        let (node, router) = (&scene.rig.node, &scene.rig.fabric.router);
        // The next hops are known from here on: no packet waits for them.
        A::find_hops(&node.ns, router)?;
        let silence = |ns: &Netns, rule: &str| {
            let words: Vec<&str> = rule.split_whitespace().collect();
            ns.output(A::FILTER, &words).map(drop)
        };
        silence(router, "-t raw -I PREROUTING -i node -j DROP")?;
        silence(router, "-I OUTPUT -o node -j DROP")?;
        silence(&node.ns, "-I INPUT -j DROP")?;
        // The node reports to its links which groups it listens to, some seconds later too.
        silence(&node.ns, "-I OUTPUT -o azv+ -j DROP")?;
        for pod in &scene.pods {
            silence(&pod.ns, "-t raw -I PREROUTING -j DROP")?;
        }
        let senders = scene
            .pods
            .iter()
            .map(|pod| Ok((Sender::new(&pod.ns, "eth0")?, pod.macs()?)))
            .collect::<Result<_>>()?;
        let wire = (Sender::new(router, "node")?, [router.mac("node")?, node.mac()?]);
        let mut explain = scene
            .command(&["explain", "--stdin", "--json"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let map = |name: &str| MapData::from_pin(scene.pin("maps").join(name));
        let [first, second] = &scene.pods[..] else {
            anyhow::bail!("two pods were asked for");
        };
        Ok(Self {
            pods: [A::pod(first)?, A::pod(second)?],
            senders,
            wire,
            questions: explain.stdin.take().context("piped")?,
            answers: BufReader::new(explain.stdout.take().context("piped")?),
            explain,
            counts: PerCpuArray::try_from(Map::PerCpuArray(map("cwy_count")?))?,
            flows: HashMap::try_from(Map::HashMap(map(A::FLOWS)?))?,
            _scene: scene,
        })
    }

    /// A packet among few addresses and ports, so that flows meet again and again.
    fn draw(&self, rng: &mut Rng, ports: u16) -> Packet<A> {
        let pods = self.pods;
        let near = rng.port(1024, 1023 + ports);
        let far = rng.pick(&[53, 80, 443, 8080, 32_526]);
        let (from, src, dst) = match rng.below(10) {
            0..=5 => {
                let pod = rng.below(2);
                (From::Pod(pod), pods[pod], rng.pick(&A::OUTSIDE))
            }
            6..=7 => {
                let pod = rng.below(2);
                (From::Pod(pod), pods[pod], pods[1 - pod])
            }
            8 if rng.one_in(4) => (From::Pod(0), pods[0], rng.pick(&[A::NODE, A::MANY])),
            _ => {
                let to = rng.pick(&[A::NODE, A::NODE, pods[0], pods[1]]);
                // Of hosts to which the node knows no better way.
                (From::Wire, A::OUTSIDE[rng.below(6)], to)
            }
        };
        // From pod to pod either side may be the one that answers; on the wire answers are what comes most.
        let is_backwards = match from {
            From::Wire => !rng.one_in(4),
            From::Pod(_) => pods.contains(&dst) && rng.one_in(2),
        };
        let (src_port, dst_port) = if is_backwards { (far, near) } else { (near, far) };
        packet(rng, from, (src, src_port), (dst, dst_port)).expect("a packet that can be built")
    }

    fn ask(&mut self, packet: &Packet<A>) -> Result<Value> {
        writeln!(self.questions, "{}", packet.words)?;
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        serde_json::from_str(&line).with_context(|| format!("{}: {line:?}", packet.words))
    }

    fn send(&self, packet: &Packet<A>) -> Result<()> {
        let (sender, macs) = match packet.from {
            From::Pod(pod) => &self.senders[pod],
            From::Wire => &self.wire,
        };
        let frame = [&macs[1][..], &macs[0], &A::ETHERTYPE, &packet.bytes].concat();
        sender.send(&frame)
    }

    /// How often each program gave each reason.
    fn counts(&self) -> Result<Vec<[u64; 4]>> {
        let sum = |reason: &Reason| {
            let per_cpu = self.counts.get(&(*reason as u32), 0)?;
            Ok(per_cpu.iter().fold([0; 4], |sum, count| {
                let [a, b, c, d] = sum;
                [
                    a + count.from_pod,
                    b + count.to_pod,
                    c + count.from_uplink,
                    d + count.to_uplink,
                ]
            }))
        };
        Reason::ALL.iter().map(sum).collect()
    }

    /// The verdicts that were given since, once there are as many as expected, or a while later. Sorted.
    fn moved_since(&self, before: &[[u64; 4]], expected: usize) -> Result<Vec<(String, String)>> {
        const PATIENCE: Duration = Duration::from_secs(2);
        let end = Instant::now() + PATIENCE;
        loop {
            let mut moved = Vec::new();
            for (reason, (after, before)) in Reason::ALL.iter().zip(self.counts()?.iter().zip(before)) {
                if reason.verdict() == Verdict::Noted || A::OF_THE_LINK.contains(reason) {
                    continue;
                }
                for (hook, (after, before)) in HOOKS.iter().zip(after.iter().zip(before)) {
                    let times = usize::try_from(after - before)?;
                    moved.extend(vec![((*hook).to_owned(), reason.name().to_owned()); times]);
                }
            }
            moved.sort();
            if moved.len() >= expected || Instant::now() > end {
                return Ok(moved);
            }
            thread::yield_now();
        }
    }

    /// Whether the flow's entry translates as was predicted.
    fn check_translation(&self, packet: &Packet<A>, prediction: &Value) -> Result<()> {
        let leaves = prediction["hooks"]
            .as_array()
            .and_then(|hooks| hooks.last())
            .is_some_and(|last| {
                last["program"] == A::PROGRAMS[3] && last["verdict"] == "stack"
                    || last["reason"] == "carried_to_uplink"
            });
        if !leaves {
            return Ok(());
        }
        let entry = self.flows.get(&packet.key, 0).ok();
        let nat = entry.map_or(Nat::NONE, |entry| entry.nat);
        ensure!(
            prediction["translated"] == (nat == Nat::SOURCE),
            "{}: {prediction:#} {entry:?}",
            packet.words
        );
        let port = entry.map(|entry| u16::from_be_bytes(entry.nat_port));
        let to = prediction["hooks"]
            .as_array()
            .into_iter()
            .flatten()
            .find_map(|hook| hook["translatedTo"].as_str());
        if let (Some(to), Some(port)) = (to, port)
            && let Ok(to) = to.parse::<SocketAddr>()
        {
            ensure!(
                to.ip() == A::NODE.ip() && to.port() == port,
                "{}: {to}, {port}",
                packet.words
            );
        }
        Ok(())
    }
}

impl<A: Family> Drop for Stage<A> {
    fn drop(&mut self) {
        // It ends with its input; whoever failed before that has said so.
        self.explain.kill().ok();
        self.explain.wait().ok();
    }
}

const HOOKS: [&str; 4] = ["fromPod", "toPod", "fromUplink", "toUplink"];

/// The hooks and reasons of a prediction. Sorted.
fn passages<A: Family>(prediction: &Value) -> Result<Vec<(String, String)>> {
    let hooks = prediction["hooks"].as_array().context("no hooks")?;
    let passage = |hook: &Value| {
        let program = hook["program"].as_str()?;
        let program = if program == "cwy_xdp_uplink" {
            // It counts where the packet would have been seen next.
            "cwy_from_uplink"
        } else {
            program
        };
        let name = HOOKS
            .iter()
            .zip(A::PROGRAMS)
            .find(|(_, known)| *known == program)?
            .0;
        Some(((*name).to_owned(), hook["reason"].as_str()?.to_owned()))
    };
    let mut passages: Vec<_> = hooks.iter().filter_map(passage).collect();
    ensure!(passages.len() == hooks.len(), "{prediction:#}");
    passages.sort();
    Ok(passages)
}

/// Whether a second ended since `start`, or nearly did: the programs' clock is the kernel's tick.
fn is_near_the_end_of_a_second(start: rustix::time::Timespec) -> bool {
    const TICK: i64 = 20_000_000;
    let end = clock_gettime(ClockId::Monotonic);
    start.tv_sec != end.tv_sec || start.tv_nsec < TICK || end.tv_nsec > 1_000_000_000 - TICK
}
