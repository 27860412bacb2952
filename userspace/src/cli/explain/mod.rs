//! `causeway explain`: what a code of the doctor means, or what becomes of a packet and which entry, range or rule decides it.

mod code;
mod family;
mod judge;
mod packet;
mod view;

use std::{
    io::{self, BufRead as _, Write},
    net::IpAddr,
};

use causeway::{
    datapath::{self, Datapath},
    exact_rule,
    root::Root,
    settings::Settings,
};
use causeway_common::{addr::Address, decide::is_guarded, flow::Nat, maps::PodEntry, reason::Verdict};
use clap::Args;
use serde::Serialize;

use self::{
    family::Family,
    judge::{Passage, judge},
    packet::{AnyPacket, Packet},
    view::{Key, View, interface, is_local, is_masqueraded},
};
use super::{
    Failure,
    flows::{endpoint, exit_name, protocol_name, state_name},
    open,
    output::{self, Format, Report, duration, seconds_since},
    ranges,
};

/// What is to be explained.
#[derive(Args)]
pub(crate) struct Question {
    /// CODE, or SRC[:PORT] DST[:PORT] PROTO [opens|answers|continues]
    #[arg(value_name = "WHAT", num_args = 0..=4, required_unless_present = "stdin")]
    words: Vec<String>,
    /// Read packets from standard input, one a line
    #[arg(long, conflicts_with = "words")]
    stdin: bool,
}

/// What becomes of a packet.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Fate {
    protocol: String,
    source: IpAddr,
    source_port: u16,
    destination: IpAddr,
    destination_port: u16,
    packet: &'static str,
    /// What decides, in the order in which it is looked at.
    steps: Vec<String>,
    hooks: Vec<Hook>,
    /// `carried`, `stack` or `dropped`.
    outcome: &'static str,
    translated: bool,
}

/// A program and what it says.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Hook {
    program: &'static str,
    reason: &'static str,
    verdict: &'static str,
    meaning: &'static str,
    /// What replaces the source, or an answer's destination; null when the address stays.
    translated_to: Option<String>,
}

/// Explains what was asked for.
pub(crate) fn run(root: &Root, question: &Question, json: bool) -> Result<(), Failure> {
    let format = Format::new(json);
    let words: Vec<&str> = question.words.iter().map(String::as_str).collect();
    if let [word] = words[..]
        && let Some(code) = code::named(word)
    {
        return output::print(code::gather(code), format);
    }
    if question.stdin {
        return answer_lines(root, format);
    }
    let packet = AnyPacket::parse(&words).map_err(Failure::Usage)?;
    output::print(Views::open(open(root)?, root)?.explain(&packet)?, format)
}

fn answer_lines(root: &Root, format: Format) -> Result<(), Failure> {
    let views = Views::open(open(root)?, root)?;
    for line in io::stdin().lock().lines() {
        let line = line.map_err(Failure::Input)?;
        let words: Vec<&str> = line.split_whitespace().collect();
        if words.is_empty() {
            continue;
        }
        let packet =
            AnyPacket::parse(&words).map_err(|error| Failure::Usage(format!("{line:?}: {error}")))?;
        output::print_line(&views.explain(&packet)?, format)?;
    }
    Ok(())
}

/// The maps of both families.
struct Views {
    of_v4: View<[u8; 4]>,
    /// Where the programs for IPv6 are loaded.
    of_v6: Option<View<[u8; 16]>>,
}

impl Views {
    fn open(datapath: Datapath, root: &Root) -> Result<Self, Failure> {
        let has_rule = |is_ipv4| exact_rule::is_made(root, is_ipv4);
        let of_v6 = datapath
            .has_ipv6()
            .then(|| View::open(datapath.clone(), false, has_rule(false)));
        Ok(Self {
            of_v6: of_v6.transpose()?,
            of_v4: View::open(datapath, Settings::noted(root).exact_rule, has_rule(true))?,
        })
    }

    fn explain(&self, packet: &AnyPacket) -> Result<Fate, Failure> {
        match (packet, &self.of_v6) {
            (AnyPacket::V4(packet), _) => explain(&self.of_v4, packet),
            (AnyPacket::V6(packet), Some(view)) => explain(view, packet),
            (AnyPacket::V6(packet), None) => {
                let nobody =
                    "no pod has IPv6 here: its programs are not loaded, and the kernel routes it alone";
                Ok(fate(packet, vec![nobody.to_owned()], &[]))
            }
        }
    }
}

fn explain<A: Family>(view: &View<A>, packet: &Packet<A>) -> Result<Fate, Failure> {
    let passages = judge(view, packet)?;
    Ok(fate(packet, steps(view, packet)?, &passages))
}

fn fate<A: Family>(packet: &Packet<A>, steps: Vec<String>, passages: &[Passage]) -> Fate {
    let key = &packet.key;
    let is_icmp = key.protocol == A::ICMP;
    let hook = |passage: &Passage| Hook {
        program: passage.program,
        reason: passage.reason.name(),
        verdict: passage.reason.verdict().name(),
        meaning: passage.reason.meaning(),
        translated_to: passage
            .translated
            .map(|(addr, port)| match u16::from_be_bytes(port) {
                0 if key.has_ports() => format!("{addr}, some free port"),
                0 => addr.to_string(),
                port => endpoint(addr, port, is_icmp),
            }),
    };
    let outcome = passages
        .last()
        .map_or(Verdict::Stack, |last| last.reason.verdict());
    Fate {
        protocol: protocol_name(key.protocol),
        source: key.src.ip(),
        source_port: u16::from_be_bytes(key.src_port),
        destination: key.dst.ip(),
        destination_port: u16::from_be_bytes(key.dst_port),
        packet: packet.role_name(),
        steps,
        hooks: passages.iter().map(hook).collect(),
        outcome: outcome.name(),
        translated: passages.iter().any(|passage| passage.translated.is_some()),
    }
}

/// What is known of both ends, of the flow and of the destination.
fn steps<A: Family>(view: &View<A>, packet: &Packet<A>) -> Result<Vec<String>, Failure> {
    let key = &packet.key;
    let mut steps = vec![
        end(view, "source", key.src)?,
        end(view, "destination", key.dst)?,
        entry(view, packet)?,
    ];
    // What a pod may reach, and as whom, is nothing to what comes from elsewhere.
    if view.pod(key.src)?.is_some() {
        steps.extend(guard(packet));
        steps.push(range(view, key.dst)?);
        steps.extend(other_exit(view, key)?);
    } else if view.has_exact_rule() {
        let becomes = if is_masqueraded(view.range(key.dst)?.as_ref()) {
            "exactRule: the kernel masquerades a new flow to it, unless it is this node's"
        } else {
            "exactRule: the kernel leaves a flow to it alone"
        };
        steps.push(becomes.to_owned());
    }
    Ok(steps)
}

fn end<A: Family>(view: &View<A>, which: &str, addr: A) -> Result<String, Failure> {
    let text = addr.ip();
    Ok(match view.pod(addr)? {
        Some(pod) if pod.flags & PodEntry::DEPARTED != 0 => {
            format!("{which} {text} was a pod of this node until a short while ago")
        }
        Some(pod) => {
            let interface = interface(pod.ifindex)?;
            let state = match (pod.is_ready(), pod.may_be_carried()) {
                (false, _) => "not ready: nothing of it is translated yet",
                (true, false) => "ready, never carried: its link has a queueing discipline",
                (true, true) => "ready",
            };
            format!("{which} {text} is a pod of this node on {interface}, {state}")
        }
        None if is_local(text)? => format!("{which} {text} is this node itself"),
        None => format!("{which} {text} is no pod of this node"),
    })
}

fn entry<A: Family>(view: &View<A>, packet: &Packet<A>) -> Result<String, Failure> {
    let map = A::MAPS.flows;
    if !packet.is_whole {
        return Ok("the source's port was not said: taken for a new flow".to_owned());
    }
    let Some(entry) = view.flow(&packet.key)? else {
        return Ok(format!("no entry in {map}"));
    };
    let is_icmp = packet.key.protocol == A::ICMP;
    let port = u16::from_be_bytes(entry.nat_port);
    let nat = match Nat::end(entry.nat) {
        Nat::NONE => "not translated".to_owned(),
        Nat::SOURCE => format!("source becomes {}", endpoint(entry.nat_addr.ip(), port, is_icmp)),
        _ => format!(
            "destination becomes {}",
            endpoint(entry.nat_addr.ip(), port, is_icmp)
        ),
    };
    let other = match view.flow(&entry.peer_key(&packet.key))? {
        Some(peer) => state_name(peer.state),
        None => "none",
    };
    Ok(format!(
        "entry in {map}: {}, {nat}, exit {}, idle {}; of the other direction: {other}",
        state_name(entry.state),
        exit_name(entry.exit),
        duration(seconds_since(entry.last_seen, datapath::now())),
    ))
}

/// What becomes of a pod's packet that the programs do not see leave.
fn other_exit<A: Family>(view: &View<A>, key: &Key<A>) -> Result<Option<String>, Failure> {
    let Some(exit) = view.other_exit(key)? else {
        return Ok(None);
    };
    let exit = interface(exit)?;
    let becomes = if view.has_own_rule() && is_masqueraded(view.range(key.dst)?.as_ref()) {
        "the kernel's own rule masquerades a new flow that leaves the node there"
    } else {
        "it keeps the pod's address"
    };
    Ok(Some(format!(
        "it leaves by {exit}, which is not the uplink: {becomes}"
    )))
}

fn guard<A: Address>(packet: &Packet<A>) -> Option<String> {
    let key = &packet.key;
    let text = if is_guarded(key.dst, key.protocol, Some(key.dst_port)) {
        "the wireserver's TCP ports 80 and 32526 are not for pods"
    } else {
        "the wireserver: this port is open to pods"
    };
    (A::WIRESERVER != A::UNSPECIFIED && key.dst == A::WIRESERVER).then(|| text.to_owned())
}

fn range<A: Family>(view: &View<A>, addr: A) -> Result<String, Failure> {
    let range = view.range(addr)?;
    let becomes = if is_masqueraded(range.as_ref()) {
        "a pod's new flow to it leaves with the node's address"
    } else {
        "a pod's flow to it keeps the pod's address"
    };
    Ok(match range {
        Some((prefix, class)) => format!(
            "destination is in range {prefix}, {}: {becomes}",
            ranges::named(class)
        ),
        None => format!("destination is in no range: {becomes}"),
    })
}

impl Report for Fate {
    const KIND: &'static str = "Fate";

    fn write_text(&self, out: &mut dyn Write) -> io::Result<()> {
        for step in &self.steps {
            writeln!(out, "- {step}")?;
        }
        for hook in &self.hooks {
            let Hook {
                program,
                reason,
                verdict,
                meaning,
                translated_to,
            } = hook;
            writeln!(out, "- {program} says {reason} ({verdict}): {meaning}")?;
            if let Some(to) = translated_to {
                writeln!(out, "  translated to {to}")?;
            }
        }
        let translated = if self.translated { ", translated" } else { "" };
        match self.outcome {
            "stack" => writeln!(out, "=> the kernel has the last word{translated}"),
            outcome => writeln!(out, "=> {outcome}{translated}"),
        }
    }
}
