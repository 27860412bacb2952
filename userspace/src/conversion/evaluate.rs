//! What becomes of connections under the rules of a network security group.
//!
//! Connections are boxes: sources x source ports x destinations, to one TCP port. Rules are taken by priority; what a
//! rule surely meets is decided, what it perhaps meets is carried on with that doubt, the rest goes to the next rule. So a
//! rule for half of a subnet decides about half of it.
//!
//! A service tag stands for addresses that Azure knows: of `VirtualNetwork` the part that is known here is certain, the
//! rest is doubt; `AzureLoadBalancer` is the host's virtual address; any other tag may be anything. A doubt matters only
//! where the rule in doubt and the one behind it disagree.

use std::net::{IpAddr, Ipv4Addr};

use super::{
    rules::{Direction, Peer, Rule, SecurityGroup},
    spans::{Spans, number},
};

/// Where the platform's health probes come from.
/// <https://learn.microsoft.com/azure/virtual-network/what-is-ip-address-168-63-129-16>
pub const HOST: IpAddr = IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16));

/// Addresses that are not the internet's: RFC 1918, RFC 6598, RFC 3927, RFC 4193, RFC 4291.
const PRIVATE: [&str; 7] = [
    "10.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "100.64.0.0/10",
    "169.254.0.0/16",
    "fc00::/7",
    "fe80::/10",
];

/// Into so many parts rules may cut connections. A handful is usual; more than this, and nobody reads them.
const MOST_PARTS: usize = 1000;

/// Connections to a TCP port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connections {
    /// Who opens them.
    pub sources: Spans,
    /// From which ports.
    pub source_ports: Spans,
    /// To whom.
    pub destinations: Spans,
}

/// What becomes of some of them.
#[derive(Clone, Debug)]
pub struct Decision<'a> {
    /// Which.
    pub connections: Connections,
    /// `None` where it cannot be said.
    pub allowed: Option<bool>,
    /// The rule that decides, if none in doubt does.
    pub rule: &'a Rule,
    /// A rule before it that would decide otherwise and perhaps meets them. Where there is none and nothing can be said,
    /// rules have cut the connections into too many parts.
    pub doubt: Option<&'a Rule>,
}

/// The addresses of the tag `VirtualNetwork`, as far as they are known.
#[derive(Clone, Debug, Default)]
pub struct VirtualNetwork {
    /// The network's own and its peers'.
    pub known: Spans,
}

/// What a side of a rule surely meets, and what it perhaps meets, the former included.
struct Side {
    surely: Spans,
    perhaps: Spans,
}

/// Connections that no rule has decided yet.
struct Open<'a> {
    connections: Connections,
    /// A rule that perhaps meets them. All that are in doubt do the same with them.
    doubt: Option<&'a Rule>,
}

/// Decides about every one of the connections to TCP port `port`. Together the decisions have all of them, each once.
pub fn evaluate<'a>(
    group: &'a SecurityGroup,
    direction: Direction,
    port: u16,
    connections: Connections,
    network: &VirtualNetwork,
) -> Vec<Decision<'a>> {
    let mut decisions = Vec::new();
    let mut open = vec![Open {
        connections,
        doubt: None,
    }];
    let concerns =
        |rule: &&Rule| rule.direction == direction && rule.tcp && rule.destination_ports.has(port.into());
    for rule in group.rules.iter().filter(concerns) {
        if open.len() + decisions.len() > MOST_PARTS {
            decisions.extend(open.into_iter().map(|open| Decision {
                connections: open.connections,
                allowed: None,
                rule,
                doubt: None,
            }));
            return decisions;
        }
        open = apply(rule, open, network, &mut decisions);
    }
    // The platform's last rule meets everything, so nothing is open any more.
    decisions
}

/// Takes a rule to what is open. What is open after it is returned.
fn apply<'a>(
    rule: &'a Rule,
    open: Vec<Open<'a>>,
    network: &VirtualNetwork,
    decisions: &mut Vec<Decision<'a>>,
) -> Vec<Open<'a>> {
    let (source, destination) = (side(&rule.source, network), side(&rule.destination, network));
    let met = |sources: Spans, destinations: Spans| Connections {
        sources,
        source_ports: rule.source_ports.clone(),
        destinations,
    };
    let surely = met(source.surely, destination.surely);
    let perhaps = met(source.perhaps, destination.perhaps);
    let mut next = Vec::new();
    for Open { connections, doubt } in open {
        let other = doubt.filter(|doubt| doubt.allows != rule.allows);
        let decide = |connections| Decision {
            connections,
            allowed: other.is_none().then_some(rule.allows),
            rule,
            doubt: other,
        };
        let (sure, rest) = connections.split(&surely);
        decisions.extend(sure.map(decide));
        for part in rest {
            let (doubtful, rest) = part.split(&perhaps);
            match doubtful {
                // One may allow and one may deny: nothing behind them makes that certain.
                Some(connections) if other.is_some() => decisions.push(decide(connections)),
                Some(connections) => next.push(Open {
                    connections,
                    doubt: doubt.or(Some(rule)),
                }),
                None => {}
            }
            next.extend(rest.into_iter().map(|connections| Open { connections, doubt }));
        }
    }
    next
}

impl Connections {
    /// Those inside the box, if any, and those outside of it, as boxes.
    fn split(self, other: &Self) -> (Option<Self>, Vec<Self>) {
        let inside = Self {
            sources: self.sources.and(&other.sources),
            source_ports: self.source_ports.and(&other.source_ports),
            destinations: self.destinations.and(&other.destinations),
        };
        if inside.is_empty() {
            return (None, vec![self]);
        }
        let outside = [
            Self {
                sources: self.sources.minus(&other.sources),
                ..self.clone()
            },
            Self {
                sources: inside.sources.clone(),
                source_ports: self.source_ports.minus(&other.source_ports),
                destinations: self.destinations.clone(),
            },
            Self {
                sources: inside.sources.clone(),
                source_ports: inside.source_ports.clone(),
                destinations: self.destinations.minus(&other.destinations),
            },
        ];
        let outside = outside.into_iter().filter(|part| !part.is_empty()).collect();
        (Some(inside), outside)
    }

    fn is_empty(&self) -> bool {
        self.sources.is_empty() || self.source_ports.is_empty() || self.destinations.is_empty()
    }
}

fn side(peers: &[Peer], network: &VirtualNetwork) -> Side {
    let mut side = Side {
        surely: Spans::default(),
        perhaps: Spans::default(),
    };
    for peer in peers {
        let (surely, perhaps) = meaning(peer, network);
        side.surely = side.surely.plus(&surely);
        side.perhaps = side.perhaps.plus(&surely).plus(&perhaps);
    }
    side
}

fn meaning(peer: &Peer, network: &VirtualNetwork) -> (Spans, Spans) {
    let host = Spans::range(number(HOST), number(HOST));
    match peer {
        Peer::Any => (Spans::all(), Spans::default()),
        Peer::Addresses(addresses) => (addresses.clone(), Spans::default()),
        // On-premises networks, routes, and by the documentation the host's virtual address belong to it as well.
        Peer::Tag(tag) if tag.eq_ignore_ascii_case("VirtualNetwork") => (network.known.clone(), Spans::all()),
        Peer::Tag(tag) if tag.eq_ignore_ascii_case("AzureLoadBalancer") => (host, Spans::default()),
        Peer::Tag(tag) if tag.eq_ignore_ascii_case("Internet") => {
            let private = PRIVATE
                .iter()
                .filter_map(|text| text.parse().ok())
                .collect::<Vec<_>>();
            let inside = network.known.plus(&Spans::networks(&private));
            (Spans::default(), Spans::all().minus(&inside))
        }
        Peer::Tag(_) | Peer::Unsaid(_) => (Spans::default(), Spans::all()),
    }
}

#[cfg(test)]
mod tests;
