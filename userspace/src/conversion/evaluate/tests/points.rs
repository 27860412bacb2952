//! Points tried one by one against the evaluator: masks and comparisons, no sets.

use std::{collections::BTreeSet, net::Ipv4Addr};

use proptest::prelude::*;

use super::*;

/// Few addresses, so that all can be tried: sources 10.0.0.0/29, destinations 10.0.1.0/30, ports 1024 to 1027.
const SOURCES: u32 = 0x0a00_0000;
const DESTINATIONS: u32 = 0x0a00_0100;
/// The network that is known has the lower half of the sources, and all destinations.
const KNOWN: [(u32, u32); 2] = [(SOURCES, SOURCES + 3), (DESTINATIONS, DESTINATIONS + 3)];

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Met {
    No,
    Perhaps,
    Yes,
}

#[derive(Clone, Debug)]
struct Drawn {
    allows: bool,
    sources: Vec<Word>,
    ports: (u16, u16),
    destinations: Vec<Word>,
    is_tcp: bool,
    to: (u16, u16),
}

#[derive(Clone, Debug)]
enum Word {
    Text(&'static str),
    Prefix(u32, u32),
}

impl Word {
    fn text(&self) -> String {
        match self {
            Self::Text(text) => (*text).to_owned(),
            Self::Prefix(base, length) => format!("{}/{length}", Ipv4Addr::from_bits(*base)),
        }
    }

    fn meets(&self, address: u32) -> Met {
        let is_known = KNOWN
            .iter()
            .any(|(first, last)| (*first..=*last).contains(&address));
        match self {
            Self::Text("*") => Met::Yes,
            Self::Text("AzureLoadBalancer" | "Internet") => Met::No,
            Self::Text("VirtualNetwork") if is_known => Met::Yes,
            Self::Text(_) => Met::Perhaps,
            Self::Prefix(base, length) => {
                let mask = u32::MAX.checked_shl(32 - length).unwrap_or(0);
                if address & mask == base & mask {
                    Met::Yes
                } else {
                    Met::No
                }
            }
        }
    }
}

impl Drawn {
    fn meets(&self, source: u32, port: u16, destination: u32) -> Met {
        if !self.is_tcp
            || !(self.to.0..=self.to.1).contains(&443)
            || !(self.ports.0..=self.ports.1).contains(&port)
        {
            return Met::No;
        }
        let any = |words: &[Word], address| words.iter().map(|word| word.meets(address)).max().unwrap();
        any(&self.sources, source).min(any(&self.destinations, destination))
    }
}

fn word(base: u32) -> impl Strategy<Value = Word> {
    prop_oneof![
        3 => (0..8_u32, 27..=32_u32).prop_map(move |(more, length)| Word::Prefix(base + more, length)),
        2 => prop::sample::select(vec!["*", "VirtualNetwork", "AzureLoadBalancer", "Internet", "Storage"]).prop_map(Word::Text),
    ]
}

fn drawn() -> impl Strategy<Value = Drawn> {
    let words = |base| prop::collection::vec(word(base), 1..3);
    let ports = prop_oneof![2 => Just((0, 65_535)), 1 => (1024..1028_u16, 0..3_u16).prop_map(|(first, more)| (first, first + more))];
    let to = prop_oneof![3 => Just((443, 443)), 1 => Just((400, 500)), 1 => Just((80, 80))];
    (
        any::<bool>(),
        words(SOURCES),
        ports,
        words(DESTINATIONS),
        prop::bool::weighted(0.8),
        to,
    )
        .prop_map(|(allows, sources, ports, destinations, is_tcp, to)| Drawn {
            allows,
            sources,
            ports,
            destinations,
            is_tcp,
            to,
        })
}

/// Every answer that rules could give at a point, the platform's behind the others.
fn answers(rules: &[Drawn], source: u32, port: u16, destination: u32) -> BTreeSet<bool> {
    let mut answers = BTreeSet::new();
    for rule in rules {
        match rule.meets(source, port, destination) {
            Met::No => {}
            Met::Perhaps => {
                answers.insert(rule.allows);
            }
            Met::Yes => {
                answers.insert(rule.allows);
                return answers;
            }
        }
    }
    let network = Word::Text("VirtualNetwork");
    match network.meets(source).min(network.meets(destination)) {
        Met::Yes => {
            answers.insert(true);
        }
        // AllowVnetInBound perhaps; AllowAzureLoadBalancerInBound does not; DenyAllInBound does.
        Met::Perhaps => answers.extend([true, false]),
        Met::No => unreachable!(),
    }
    answers
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn every_point_is_decided_once_and_as_the_rules_say(drawn in prop::collection::vec(drawn(), 0..8)) {
        let words = |words: &[Word]| words.iter().map(Word::text).collect::<Vec<_>>().join(",");
        let rules: Vec<Value> = drawn.iter().enumerate().map(|(index, drawn)| rule(&format!(
            "{} in {} {} {} {}-{} > {} {}-{}",
            100 + index,
            if drawn.allows { "allow" } else { "deny" },
            if drawn.is_tcp { "Tcp" } else { "Udp" },
            words(&drawn.sources), drawn.ports.0, drawn.ports.1,
            words(&drawn.destinations), drawn.to.0, drawn.to.1,
        ))).collect();
        let range = |first: u32, count: u32| {
            Spans::addresses(Ipv4Addr::from_bits(first).into(), Ipv4Addr::from_bits(first + count - 1).into())
        };
        let known = VirtualNetwork { known: range(SOURCES, 4).plus(&range(DESTINATIONS, 4)) };
        let connections = Connections {
            sources: range(SOURCES, 8),
            source_ports: Spans::range(1024, 1027),
            destinations: range(DESTINATIONS, 4),
        };
        let group = group(&rules);
        let decisions = evaluate(&group, Direction::Inbound, 443, connections, &known);
        for source in SOURCES..SOURCES + 8 {
            for destination in DESTINATIONS..DESTINATIONS + 4 {
                for port in 1024..1028_u16 {
                    let has = |decision: &&Decision<'_>| {
                        let at = |address| number(Ipv4Addr::from_bits(address).into());
                        decision.connections.sources.has(at(source))
                            && decision.connections.destinations.has(at(destination))
                            && decision.connections.source_ports.has(port.into())
                    };
                    let found: Vec<_> = decisions.iter().filter(has).collect();
                    prop_assert_eq!(found.len(), 1);
                    let answers = answers(&drawn, source, port, destination);
                    let expected = if answers.len() == 1 { answers.first().copied() } else { None };
                    prop_assert_eq!(found[0].allowed, expected, "{} {} {}", source, port, destination);
                }
            }
        }
    }
}
