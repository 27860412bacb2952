//! Network security groups: what `az network nsg show` and `az network nsg rule list` say of them.
//!
//! Owns the form of a rule. What becomes of a connection is said by [`super::evaluate`].

use ipnet::IpNet;
use serde_json::Value;

use super::{document::Document, error::InputError, spans::Spans};
use crate::go_json::{Fields, ShapeError};

/// A group.
#[derive(Clone, Debug)]
pub struct SecurityGroup {
    /// Its resource ID, empty where the document does not say.
    pub id: String,
    /// Its name, or the file's.
    pub name: String,
    /// All rules, the platform's own among them, by direction and priority.
    pub rules: Vec<Rule>,
}

/// One rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Its name.
    pub name: String,
    /// Lower goes first: 100 to 4096, the platform's own from 65000.
    pub priority: u32,
    /// Which way the connection is opened, as the group's subnet sees it.
    pub direction: Direction,
    /// Whether it lets it pass.
    pub allows: bool,
    /// Whether TCP is among its protocols.
    pub tcp: bool,
    /// Who opens the connection.
    pub source: Vec<Peer>,
    /// From which ports.
    pub source_ports: Spans,
    /// To whom.
    pub destination: Vec<Peer>,
    /// To which ports.
    pub destination_ports: Spans,
}

/// As the group's subnet sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Direction {
    /// To the subnet.
    Inbound,
    /// From the subnet.
    Outbound,
}

/// One side of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// `*`.
    Any,
    /// Addresses.
    Addresses(Spans),
    /// A service tag.
    Tag(String),
    /// Members of an application security group, or nothing that is said.
    Unsaid(String),
}

/// The platform's rules: name, priority, direction, access, source, destination.
/// <https://learn.microsoft.com/azure/virtual-network/network-security-groups-overview#default-security-rules>
const DEFAULTS: [(&str, u32, Direction, bool, &str, &str); 6] = {
    use Direction::{Inbound, Outbound};
    [
        (
            "AllowVnetInBound",
            65_000,
            Inbound,
            true,
            "VirtualNetwork",
            "VirtualNetwork",
        ),
        (
            "AllowAzureLoadBalancerInBound",
            65_001,
            Inbound,
            true,
            "AzureLoadBalancer",
            "*",
        ),
        ("DenyAllInBound", 65_500, Inbound, false, "*", "*"),
        (
            "AllowVnetOutBound",
            65_000,
            Outbound,
            true,
            "VirtualNetwork",
            "VirtualNetwork",
        ),
        ("AllowInternetOutBound", 65_001, Outbound, true, "*", "Internet"),
        ("DenyAllOutBound", 65_500, Outbound, false, "*", "*"),
    ]
};

impl SecurityGroup {
    /// A group of the given rules and the platform's own.
    pub fn new(id: String, name: String, rules: Vec<Rule>) -> Self {
        let mut rules = rules;
        for (name, priority, direction, allows, source, destination) in DEFAULTS {
            let is_there = |rule: &Rule| rule.priority == priority && rule.direction == direction;
            if !rules.iter().any(is_there) {
                rules.push(Rule {
                    name: name.to_owned(),
                    priority,
                    direction,
                    allows,
                    tcp: true,
                    source: vec![peer(source)],
                    source_ports: every_port(),
                    destination: vec![peer(destination)],
                    destination_ports: every_port(),
                });
            }
        }
        rules.sort_by_key(|rule| (rule.direction, rule.priority));
        Self { id, name, rules }
    }

    /// Reads a group, or its list of rules.
    pub fn read(document: &Document) -> Result<Self, InputError> {
        let shape = |error| document.shape(&error);
        let (own, listed) = match &document.value {
            Value::Array(rules) => ("", each(rules).map_err(shape)?),
            group => {
                let group = Fields::of(group, "").map_err(shape)?;
                let mut rules = group.objects("securityRules").map_err(shape)?;
                rules.extend(group.objects("defaultSecurityRules").map_err(shape)?);
                (group.string("id").map_err(shape)?, rules)
            }
        };
        let theirs = id_of_all(document, &listed)?;
        let id = if own.is_empty() { theirs } else { own.to_owned() };
        let name = match id.rsplit_once('/') {
            Some((_, name)) => name.to_owned(),
            None => document.name(),
        };
        let rules: Result<Vec<Rule>, String> = listed.iter().map(rule).collect();
        let rules = rules.map_err(|message| document.fault(message))?;
        refuse_twins(document, &rules)?;
        Ok(Self::new(id, name, rules))
    }
}

fn each(list: &[Value]) -> Result<Vec<Fields<'_>>, ShapeError> {
    let rule = |(i, value)| Fields::of(value, format!("[{i}]"));
    list.iter().enumerate().map(rule).collect()
}

/// The ID of the group that all rules are of; empty where they do not say.
fn id_of_all(document: &Document, rules: &[Fields<'_>]) -> Result<String, InputError> {
    let mut ids: Vec<String> = Vec::new();
    for rule in rules {
        let id = rule.string("id").map_err(|error| document.shape(&error))?;
        if let Some(group) = group_of(id)
            && !ids.iter().any(|known| known.eq_ignore_ascii_case(&group))
        {
            ids.push(group);
        }
    }
    if ids.len() > 1 {
        let message = format!(
            "holds rules of {} groups: give each group a file of its own",
            ids.len()
        );
        return Err(document.fault(message));
    }
    Ok(ids.pop().unwrap_or_default())
}

/// Two rules of one priority are of two groups.
fn refuse_twins(document: &Document, rules: &[Rule]) -> Result<(), InputError> {
    let mut seen: Vec<(Direction, u32)> = rules.iter().map(|rule| (rule.direction, rule.priority)).collect();
    seen.sort_unstable();
    match seen.windows(2).find(|two| two[0] == two[1]) {
        None => Ok(()),
        Some(two) => Err(document.fault(format!(
            "has two {:?} rules of priority {}: Azure allows one; is this more than one group?",
            two[0].0, two[0].1
        ))),
    }
}

/// The group's part of a rule's ID.
fn group_of(id: &str) -> Option<String> {
    let id_lower = id.to_ascii_lowercase();
    let end = ["/securityrules/", "/defaultsecurityrules/"]
        .iter()
        .find_map(|part| id_lower.find(part))?;
    Some(id[..end].to_owned())
}

fn rule(fields: &Fields<'_>) -> Result<Rule, String> {
    let shape = |error: ShapeError| error.to_string();
    let name = fields.string("name").map_err(shape)?.to_owned();
    let fault = |key: &str, problem: String| format!("{}: {problem}", fields.place(key));
    let choose = |key: &str, of: [&str; 2]| {
        let text = fields.string(key).map_err(shape)?;
        match of.iter().position(|word| word.eq_ignore_ascii_case(text)) {
            Some(index) => Ok(index == 0),
            None => Err(fault(
                key,
                format!("expected {} or {}, found {text:?}", of[0], of[1]),
            )),
        }
    };
    let priority = fields
        .get("priority")
        .and_then(Value::as_u64)
        .and_then(|priority| u32::try_from(priority).ok());
    let protocol = fields.string("protocol").map_err(shape)?;
    if protocol.is_empty() {
        return Err(fault(
            "protocol",
            "is missing; it is Tcp, Udp, Icmp, Esp, Ah or *".to_owned(),
        ));
    }
    Ok(Rule {
        priority: priority.ok_or_else(|| fault("priority", "expected a number".to_owned()))?,
        direction: if choose("direction", ["Inbound", "Outbound"])? {
            Direction::Inbound
        } else {
            Direction::Outbound
        },
        allows: choose("access", ["Allow", "Deny"])?,
        tcp: matches!(protocol.to_ascii_lowercase().as_str(), "*" | "any" | "tcp"),
        source: peers(fields, "source")?,
        source_ports: ports(fields, "source")?,
        destination: peers(fields, "destination")?,
        destination_ports: ports(fields, "destination")?,
        name,
    })
}

/// Whom `side` of a rule means: one prefix, a list of them, or application security groups.
fn peers(fields: &Fields<'_>, side: &str) -> Result<Vec<Peer>, String> {
    let mut peers = Vec::new();
    for (word, place) in words(fields, side, "AddressPrefix", "AddressPrefixes")? {
        let peer = peer(&word);
        if let Peer::Tag(tag) = &peer
            && !tag
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
        {
            return Err(format!(
                "{place}: {word:?} is no address, no prefix and no service tag"
            ));
        }
        peers.push(peer);
    }
    let groups = fields.objects(&format!("{side}ApplicationSecurityGroups"));
    for group in groups.map_err(|error| error.to_string())? {
        let id = group.string("id").map_err(|error| error.to_string())?;
        let name = id.rsplit('/').next().unwrap_or_default();
        peers.push(Peer::Unsaid(format!("the application security group {name}")));
    }
    if peers.is_empty() {
        peers.push(Peer::Unsaid(format!("a {side} that the document does not say")));
    }
    Ok(peers)
}

fn peer(word: &str) -> Peer {
    if word == "*" || word.eq_ignore_ascii_case("any") {
        return Peer::Any;
    }
    let network = word
        .parse::<IpNet>()
        .ok()
        .or_else(|| word.parse::<std::net::IpAddr>().ok().map(IpNet::from));
    if let Some(network) = network {
        return Peer::Addresses(Spans::network(network));
    }
    match word
        .split_once('-')
        .map(|(first, last)| (first.trim().parse(), last.trim().parse()))
    {
        Some((Ok(first), Ok(last))) => Peer::Addresses(Spans::addresses(first, last)),
        _ => Peer::Tag(word.to_owned()),
    }
}

fn ports(fields: &Fields<'_>, side: &str) -> Result<Spans, String> {
    let words = words(fields, side, "PortRange", "PortRanges")?;
    if words.is_empty() {
        return Ok(every_port());
    }
    let mut ports = Spans::default();
    for (word, place) in words {
        let (first, last) = match word.as_str() {
            "*" => ("0", "65535"),
            range => range.split_once('-').unwrap_or((range, range)),
        };
        let port = |text: &str| text.trim().parse::<u16>().map(u128::from);
        let (Ok(first), Ok(last)) = (port(first), port(last)) else {
            return Err(format!("{place}: {word:?} is no port and no range of ports"));
        };
        if first > last {
            return Err(format!("{place}: in {word} the first port is above the last one"));
        }
        ports = ports.plus(&Spans::range(first, last));
    }
    Ok(ports)
}

/// What stands under the singular and under the plural key, each with its place. A comma separates too.
fn words(fields: &Fields<'_>, side: &str, one: &str, many: &str) -> Result<Vec<(String, String)>, String> {
    let (one, many) = (format!("{side}{one}"), format!("{side}{many}"));
    let single = fields.string(&one).map_err(|error| error.to_string())?.to_owned();
    let list = fields.strings(&many).map_err(|error| error.to_string())?;
    let places = std::iter::once((single, fields.place(&one)));
    let listed = list.into_iter().map(|text| (text, fields.place(&many)));
    let split = |(text, place): (String, String)| {
        let words: Vec<_> = text
            .split(',')
            .map(|word| (word.trim().to_owned(), place.clone()))
            .collect();
        words
    };
    Ok(places
        .chain(listed)
        .flat_map(split)
        .filter(|(word, _)| !word.is_empty())
        .collect())
}

fn every_port() -> Spans {
    Spans::range(0, u16::MAX.into())
}
