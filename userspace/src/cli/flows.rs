//! `causeway flows`.

mod filter;

use std::{
    collections::HashMap,
    io::{self, Write},
    net::{IpAddr, SocketAddr},
};

use causeway::datapath::{self, Datapath};
use causeway_common::{
    addr::Address,
    flow::{Exit, Flags, FlowEntry, Nat, Progress, State},
    tuple::{self, FlowKey},
};
pub(crate) use filter::{Filter, parse_protocol};
use serde::Serialize;

use super::{
    Failure,
    output::{self, Report, duration, mac, seconds_since},
    pods::interface_names,
};

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Flows {
    pub(super) flows: Vec<Flow>,
    /// How many more match than are shown.
    pub(super) omitted: usize,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Flow {
    pub(super) protocol: String,
    source: IpAddr,
    source_port: u16,
    destination: IpAddr,
    destination_port: u16,
    state: &'static str,
    nat: Option<Translation>,
    exit: Hop,
    flags: Vec<&'static str>,
    progress: Directions,
    idle_seconds: u32,
    stack_idle_seconds: u32,
}

#[derive(Serialize)]
struct Translation {
    kind: &'static str,
    address: IpAddr,
    port: u16,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Hop {
    kind: &'static str,
    interface: Option<String>,
    ifindex: u32,
    mtu: u16,
    source_mac: String,
    destination_mac: String,
}

#[derive(Serialize)]
struct Directions {
    this: Vec<&'static str>,
    peer: Vec<&'static str>,
}

pub(crate) fn gather(datapath: &Datapath, filter: &Filter) -> Result<Flows, Failure> {
    gather_only(datapath, filter, |_| true)
}

/// Those of them whose [`Nat`] is `wanted`.
pub(super) fn gather_only(
    datapath: &Datapath,
    filter: &Filter,
    wanted: impl Fn(u8) -> bool,
) -> Result<Flows, Failure> {
    let (names, now) = (interface_names()?, datapath::now());
    let mut found = Flows {
        flows: Vec::new(),
        omitted: 0,
    };
    let mut matching = Vec::new();
    datapath.for_each_flow(|key, entry| {
        if wanted(entry.nat) && filter.matches(&key, &entry) {
            matching.push((key, entry));
        }
    })?;
    found.take(matching, filter, &names, now);
    let mut matching = Vec::new();
    datapath.for_each_flow_v6(|key, entry| {
        if wanted(entry.nat) && filter.matches(&key, &entry) {
            matching.push((key, entry));
        }
    })?;
    found.take(matching, filter, &names, now);
    Ok(found)
}

impl Flows {
    /// Takes those of one family, as many as are to be shown.
    fn take<A: Address + Into<IpAddr> + Ord>(
        &mut self,
        mut matching: Vec<(FlowKey<A>, FlowEntry<A>)>,
        filter: &Filter,
        names: &HashMap<u32, String>,
        now: u32,
    ) {
        matching
            .sort_unstable_by_key(|(key, _)| (key.src, key.dst, key.protocol, key.src_port, key.dst_port));
        let room = filter.limit.unwrap_or(usize::MAX) - self.flows.len();
        let shown = room.min(matching.len());
        self.omitted += matching.len() - shown;
        let flows = matching[..shown].iter();
        self.flows
            .extend(flows.map(|(key, entry)| flow(key, entry, names, now)));
    }
}

impl Report for Flows {
    const KIND: &'static str = "Flows";

    fn write_text(&self, out: &mut dyn Write) -> io::Result<()> {
        let row = |flow: &Flow| {
            let nat = flow.nat.as_ref().map(|nat| nat.kind);
            let ([source, destination], [state, idle]) = (flow.ends(), flow.standing());
            [
                flow.protocol.clone(),
                source,
                destination,
                state,
                nat.map_or_else(|| "-".to_owned(), |kind| format!("{kind} {}", flow.translated())),
                flow.exit
                    .interface
                    .clone()
                    .unwrap_or_else(|| flow.exit.kind.to_owned()),
                idle,
            ]
        };
        let heading = ["PROTO", "SOURCE", "DESTINATION", "STATE", "NAT", "EXIT", "IDLE"];
        output::write_table(out, heading, self.flows.iter().map(row))?;
        if self.omitted > 0 {
            writeln!(out, "({} more)", self.omitted)?;
        }
        Ok(())
    }
}

impl Flow {
    /// Source and destination, in words.
    pub(super) fn ends(&self) -> [String; 2] {
        let is_icmp = self.is_icmp();
        [
            endpoint(self.source, self.source_port, is_icmp),
            endpoint(self.destination, self.destination_port, is_icmp),
        ]
    }

    /// What replaces the source or the destination, in words; nothing where nothing does.
    pub(super) fn translated(&self) -> String {
        let nat = self.nat.as_ref();
        nat.map_or_else(String::new, |nat| endpoint(nat.address, nat.port, self.is_icmp()))
    }

    /// State and idle time, in words.
    pub(super) fn standing(&self) -> [String; 2] {
        [self.state.to_owned(), duration(self.idle_seconds)]
    }

    fn is_icmp(&self) -> bool {
        self.protocol.starts_with("icmp")
    }
}

fn flow<A: Address + Into<IpAddr>>(
    key: &FlowKey<A>,
    entry: &FlowEntry<A>,
    names: &HashMap<u32, String>,
    now: u32,
) -> Flow {
    Flow {
        protocol: protocol_name(key.protocol),
        source: key.src.into(),
        source_port: u16::from_be_bytes(key.src_port),
        destination: key.dst.into(),
        destination_port: u16::from_be_bytes(key.dst_port),
        state: state_name(entry.state),
        nat: translation(entry),
        exit: Hop {
            kind: exit_name(entry.exit),
            interface: names.get(&entry.out_ifindex).cloned(),
            ifindex: entry.out_ifindex,
            mtu: entry.mtu,
            source_mac: mac(entry.out_src_mac),
            destination_mac: mac(entry.out_dst_mac),
        },
        flags: flag_names(entry.flags),
        progress: directions(entry.progress()),
        idle_seconds: seconds_since(entry.last_seen, now),
        stack_idle_seconds: seconds_since(entry.last_up, now),
    }
}

fn translation<A: Address + Into<IpAddr>>(entry: &FlowEntry<A>) -> Option<Translation> {
    let kind = match entry.nat {
        Nat::NONE => return None,
        Nat::SOURCE => "source",
        Nat::DESTINATION => "destination",
        Nat::TO_BACKEND => "backend",
        Nat::FROM_BACKEND => "vip",
        _ => UNKNOWN,
    };
    Some(Translation {
        kind,
        address: entry.nat_addr.into(),
        port: u16::from_be_bytes(entry.nat_port),
    })
}

/// What a value is called that this version does not know.
const UNKNOWN: &str = "unknown";

/// The word for a [`State`].
pub(super) fn state_name(state: u8) -> &'static str {
    match state {
        State::OFFERED => "offered",
        State::CARRIED => "carried",
        State::KERNEL => "kernel",
        State::RESET => "reset",
        _ => UNKNOWN,
    }
}

pub(super) fn exit_name(exit: u8) -> &'static str {
    match exit {
        Exit::STACK => "stack",
        Exit::UPLINK => "uplink",
        Exit::POD => "pod",
        _ => UNKNOWN,
    }
}

pub(super) fn protocol_name(protocol: u8) -> String {
    match protocol {
        tuple::TCP => "tcp".to_owned(),
        tuple::UDP => "udp".to_owned(),
        tuple::ICMP => "icmp".to_owned(),
        <[u8; 16]>::ICMP => "icmpv6".to_owned(),
        other => other.to_string(),
    }
}

fn flag_names(flags: u8) -> Vec<&'static str> {
    let names = [
        (Flags::WENT_UP, "wentUp"),
        (Flags::CAME_OUT, "cameOut"),
        (Flags::ANSWER, "answer"),
        (Flags::HOST, "host"),
    ];
    names
        .into_iter()
        .filter(|(bit, _)| flags & bit != 0)
        .map(|(_, name)| name)
        .collect()
}

fn directions(progress: Progress) -> Directions {
    let names = |progress: Progress| {
        let names = [
            (Progress::SPOKE, "spoke"),
            (Progress::FIN, "fin"),
            (Progress::RST, "rst"),
            (Progress::PAST_SYN, "past_syn"),
        ];
        names
            .into_iter()
            .filter(|(bits, _)| progress.has(*bits))
            .map(|(_, name)| name)
            .collect()
    };
    Directions {
        this: names(progress),
        peer: names(progress.swapped()),
    }
}

/// `10.240.0.9:443`; for ICMP, whose one identifier stands on the requester's side, `10.240.0.9 id 7`.
pub(super) fn endpoint(addr: IpAddr, port: u16, is_icmp: bool) -> String {
    match (is_icmp, port) {
        (true, 0) => addr.to_string(),
        (true, id) => format!("{addr} id {id}"),
        (false, port) => SocketAddr::new(addr, port).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    pub(super) fn key() -> FlowKey<[u8; 4]> {
        FlowKey {
            src: [10, 240, 0, 9],
            dst: [203, 0, 113, 9],
            src_port: 43_210u16.to_be_bytes(),
            dst_port: 443u16.to_be_bytes(),
            protocol: tuple::TCP,
            _pad: [0; 3],
        }
    }

    pub(super) fn entry() -> FlowEntry<[u8; 4]> {
        FlowEntry {
            state: State::CARRIED,
            nat: Nat::SOURCE,
            exit: Exit::UPLINK,
            out_ifindex: 2,
            nat_addr: [10, 240, 0, 4],
            nat_port: 43_210u16.to_be_bytes(),
            ..FlowEntry::offer(7, [2; 6], 100)
        }
    }

    #[test]
    fn a_flow_is_one_line_with_names() {
        let names = HashMap::from([(2, "eth0".to_owned())]);
        let flows = Flows {
            flows: vec![flow(&key(), &entry(), &names, 103)],
            omitted: 4,
        };
        let mut out = Vec::new();
        flows.write_text(&mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        let lines: Vec<Vec<&str>> = text
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert_eq!(
            lines[1],
            [
                "tcp",
                "10.240.0.9:43210",
                "203.0.113.9:443",
                "carried",
                "source",
                "10.240.0.4:43210",
                "eth0",
                "3s"
            ]
        );
        assert_eq!(text.lines().last(), Some("(4 more)"));
    }

    #[test]
    fn an_echo_identifier_is_no_port() {
        let addr = Ipv4Addr::new(10, 240, 0, 9).into();
        assert_eq!(endpoint(addr, 7, true), "10.240.0.9 id 7");
        assert_eq!(endpoint(addr, 0, true), "10.240.0.9");
        assert_eq!(endpoint(addr, 0, false), "10.240.0.9:0");
        assert_eq!(endpoint(Ipv6Addr::LOCALHOST.into(), 7, false), "[::1]:7");
    }
}
