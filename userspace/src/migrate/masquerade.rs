//! What translates the pods' packets besides Causeway: the rule of the boot script, ip-masq-agent's chain, and rules of
//! others. A rule is taken over if it does what Causeway does; what does it for others is left alone; and of what cannot be
//! understood it is said so.

use std::{collections::BTreeSet, net::Ipv4Addr};

use ipnet::Ipv4Net;

use super::rules::{Listing, Rule};

/// Of whom the rules are judged.
#[derive(Debug)]
pub(super) struct Scene<'a> {
    /// The node's primary address.
    pub(super) node: Ipv4Addr,
    /// The pods' addresses.
    pub(super) pods: &'a [Ipv4Addr],
    /// Interfaces by which packets leave the node: the bridge and the uplink.
    pub(super) exits: [&'a str; 2],
}

/// What was found.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Translations {
    /// Rules that Causeway takes over.
    pub(super) rules: Vec<Rule>,
    /// Destinations that they leave alone.
    pub(super) excluded: BTreeSet<Ipv4Net>,
    /// Rules that stand in the way, with the reason.
    pub(super) obstacles: Vec<String>,
    /// Whether ip-masq-agent's chain is among the rules: the agent will put it back.
    pub(super) has_agent: bool,
}

/// What a rule does to the pods' packets.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// Translates those that do not go to these destinations.
    Masquerades(BTreeSet<Ipv4Net>),
    /// Nothing.
    Other,
    /// It cannot be told.
    Unknown,
}

/// Chains whose packets are marked as those of services and host ports: kube-proxy's, portmap's.
const FOR_OTHERS: [&str; 2] = ["KUBE-", "CNI-"];
const AGENT: &str = "IP-MASQ-AGENT";
/// How deep chains that call chains are followed; iptables refuses loops.
const CHAINS_IN_CHAINS: u32 = 16;

/// Looks at every rule of the nat table's POSTROUTING.
pub(super) fn find(listings: &[Listing], scene: &Scene<'_>) -> Translations {
    let mut found = Translations::default();
    let mut sets = BTreeSet::new();
    for listing in listings {
        for (position, text) in (1..).zip(listing.chain("nat", "POSTROUTING")) {
            match judge(listing, text, scene) {
                Verdict::Other => {}
                Verdict::Unknown => found.obstacles.push(format!(
                    "it cannot be told whether this rule translates pods: -A POSTROUTING {text}; if it does not, give it a \
                     source (-s), else remove it"
                )),
                Verdict::Masquerades(excluded) => {
                    found.has_agent |= text.contains(AGENT);
                    sets.insert(excluded);
                    found.rules.push(Rule { backend: listing.backend, position, text: text.to_owned() });
                }
            }
        }
    }
    if sets.len() > 1 {
        found.obstacles.push(
            "rules that masquerade pods leave different destinations alone: remove all but one of them"
                .to_owned(),
        );
    }
    found.excluded = sets.pop_first().unwrap_or_default();
    found
}

fn judge(listing: &Listing, text: &str, scene: &Scene<'_>) -> Verdict {
    let words = split(text);
    let target = words
        .iter()
        .skip_while(|word| *word != "-j")
        .nth(1)
        .map_or("", String::as_str);
    match target {
        "MASQUERADE" | "SNAT" => matches(&words, scene),
        AGENT => match matches(&words, scene) {
            Verdict::Masquerades(before) => agent(listing, scene, before),
            other => other,
        },
        // Of pods, it is an exception that is not understood.
        "ACCEPT" | "RETURN" => match matches(&words, scene) {
            Verdict::Other => Verdict::Other,
            _ => Verdict::Unknown,
        },
        chain if FOR_OTHERS.iter().any(|prefix| chain.starts_with(prefix)) => Verdict::Other,
        chain if translates(listing, chain, CHAINS_IN_CHAINS) => Verdict::Unknown,
        _ => Verdict::Other,
    }
}

/// Whether a chain, or one that it calls, changes sources.
fn translates(listing: &Listing, chain: &str, depth: u32) -> bool {
    listing.chain("nat", chain).iter().any(|rule| {
        let words = split(rule);
        let mut targets = words
            .windows(2)
            .filter(|pair| matches!(pair[0].as_str(), "-j" | "-g"));
        targets.any(|pair| match pair[1].as_str() {
            "MASQUERADE" | "SNAT" | "NETMAP" => true,
            called => depth == 0 || translates(listing, called, depth - 1),
        })
    })
}

/// The chain of ip-masq-agent: destinations that go on untranslated, and then the translation.
fn agent(listing: &Listing, scene: &Scene<'_>, mut excluded: BTreeSet<Ipv4Net>) -> Verdict {
    for rule in listing.chain("nat", AGENT) {
        let words = split(rule);
        let target = words
            .iter()
            .skip_while(|word| *word != "-j")
            .nth(1)
            .map_or("", String::as_str);
        match target {
            "RETURN" => {
                let to = words.iter().skip_while(|word| *word != "-d").nth(1);
                match to.and_then(|to| net(to)) {
                    Some(to) if !words.contains(&"!".to_owned()) => excluded.insert(to),
                    _ => return Verdict::Unknown,
                };
            }
            "MASQUERADE" => {
                return match matches(&words, scene) {
                    Verdict::Masquerades(more) => {
                        excluded.extend(more);
                        Verdict::Masquerades(excluded)
                    }
                    other => other,
                };
            }
            _ => return Verdict::Unknown,
        }
    }
    Verdict::Other
}

/// Reads the matches of a rule that masquerades.
fn matches(words: &[String], scene: &Scene<'_>) -> Verdict {
    let (mut excluded, mut rest, mut not) = (BTreeSet::new(), words.iter().map(String::as_str), false);
    while let Some(word) = rest.next() {
        if word == "!" {
            not = true;
            continue;
        }
        let negated = std::mem::take(&mut not);
        match word {
            "--random-fully" | "--random" => continue,
            _ => {}
        }
        let value = rest.next().unwrap_or_default();
        match (word, negated) {
            ("-m" | "--comment", false) | ("--dst-type", true) => {}
            ("-j", _) if matches!(value, "MASQUERADE" | "SNAT" | "ACCEPT" | "RETURN" | AGENT) => {}
            ("--to-source", false) if value == scene.node.to_string() => {}
            ("-d", true) => match net(value) {
                Some(net) => drop(excluded.insert(net)),
                None => return Verdict::Unknown,
            },
            ("--dst-range", true) => match range(value) {
                Some(nets) => excluded.extend(nets),
                None => return Verdict::Unknown,
            },
            ("-s", _) => {
                let Some(net) = net(value) else {
                    return Verdict::Unknown;
                };
                let of_pods = scene
                    .pods
                    .iter()
                    .filter(|pod| net.contains(*pod) != negated)
                    .count();
                match of_pods {
                    0 => return Verdict::Other,
                    all if all == scene.pods.len() => {}
                    _ => return Verdict::Unknown,
                }
            }
            ("-o", _) => {
                if scene.exits.contains(&value) == negated {
                    return Verdict::Other;
                }
            }
            ("--mark", false) => return Verdict::Other,
            _ => return Verdict::Unknown,
        }
    }
    Verdict::Masquerades(excluded)
}

fn net(text: &str) -> Option<Ipv4Net> {
    match text.parse() {
        Ok(net) => Some(net),
        Err(_) => text.parse::<Ipv4Addr>().ok().map(Ipv4Net::from),
    }
}

fn range(text: &str) -> Option<Vec<Ipv4Net>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let subnets = ipnet::Ipv4Subnets::new(first.parse().ok()?, last.parse().ok()?, 0);
    Some(subnets.collect())
}

/// The words of a rule; one with spaces in it stands in double quotes.
fn split(text: &str) -> Vec<String> {
    let (mut words, mut word, mut quoted, mut escaped) = (Vec::new(), String::new(), false, false);
    for letter in text.chars() {
        match letter {
            _ if escaped => {
                word.push(letter);
                escaped = false;
            }
            '\\' => escaped = true,
            '"' => quoted = !quoted,
            ' ' if !quoted => words.push(std::mem::take(&mut word)),
            _ => word.push(letter),
        }
    }
    words.push(word);
    words.retain(|word| !word.is_empty());
    words
}

#[cfg(test)]
mod tests {
    use super::{super::rules::listing, *};

    fn found(rules: &str) -> Translations {
        let scene = Scene {
            node: [10, 240, 0, 4].into(),
            pods: &[[10, 240, 0, 5].into(), [10, 240, 0, 6].into()],
            exits: ["azure0", "eth0"],
        };
        find(
            &[listing(&format!(
                "*nat\n:POSTROUTING ACCEPT [0:0]\n{rules}COMMIT\n"
            ))],
            &scene,
        )
    }

    fn excluded(rules: &str) -> Vec<String> {
        let found = found(rules);
        assert_eq!(found.obstacles, Vec::<String>::new());
        found.excluded.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_rule_of_the_boot_script_is_taken_over_once_or_twice() {
        let rule = "-A POSTROUTING ! -d 10.0.0.0/8 -m iprange ! --dst-range 168.63.129.16-168.63.129.16 -m addrtype ! --dst-type LOCAL -j MASQUERADE\n";
        assert_eq!(excluded(rule), ["10.0.0.0/8", "168.63.129.16/32"]);
        assert_eq!(excluded(&rule.repeat(2)), ["10.0.0.0/8", "168.63.129.16/32"]);
        let places: Vec<_> = found(&rule.repeat(2))
            .rules
            .iter()
            .map(|rule| rule.position)
            .collect();
        assert_eq!(places, [1, 2]);
        let other = "-A POSTROUTING ! -d 10.0.0.0/16 -j MASQUERADE\n";
        assert_eq!(found(&[rule, other].concat()).obstacles.len(), 1);
    }

    #[test]
    fn the_agents_chain_is_taken_over_with_its_ranges() {
        let rules = "-A POSTROUTING -m comment --comment \"ip-masq-agent: ensure nat POSTROUTING directs all\" -m addrtype ! --dst-type LOCAL -j IP-MASQ-AGENT\n\
             -A IP-MASQ-AGENT -d 169.254.0.0/16 -m comment --comment \"local\" -j RETURN\n-A IP-MASQ-AGENT -d 10.0.0.0/8 -j RETURN\n\
             -A IP-MASQ-AGENT -m comment --comment \"the rest\" -j MASQUERADE --random-fully\n";
        assert_eq!(excluded(rules), ["10.0.0.0/8", "169.254.0.0/16"]);
        assert!(found(rules).has_agent);
    }

    #[test]
    fn what_translates_others_is_left_alone() {
        for rule in [
            "-m mark --mark 0x4000/0x4000 -j MASQUERADE",
            "-m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING",
            "-s 172.17.0.0/16 ! -o docker0 -j MASQUERADE",
            "-o tun0 -j MASQUERADE",
            "! -s 10.240.0.0/16 -j MASQUERADE",
        ] {
            let found = found(&format!(
                "-A POSTROUTING {rule}\n-A KUBE-POSTROUTING -j MASQUERADE\n"
            ));
            assert_eq!(found, Translations::default(), "{rule}");
        }
    }

    #[test]
    fn what_cannot_be_understood_stands_in_the_way() {
        for rule in [
            "-p tcp -j MASQUERADE",
            "-s 10.240.0.5/32 -j MASQUERADE",
            "-d 1.2.3.4/32 -j MASQUERADE",
            "-j SNAT --to-source 10.240.0.9",
            "-j OWN",
            "-d 1.1.1.1/32 -j ACCEPT",
        ] {
            let found = found(&format!("-A POSTROUTING {rule}\n-A OWN -j MASQUERADE\n"));
            assert_eq!((found.rules.len(), found.obstacles.len()), (0, 1), "{rule}");
        }
        assert_eq!(
            found("-A POSTROUTING -s 10.240.0.0/16 -o eth0 -j MASQUERADE\n")
                .rules
                .len(),
            1
        );
    }
}
