//! `iptables-save`, as far as it matters to pods.

use std::collections::BTreeMap;

use ipnet::Ipv4Net;

use super::Traffic;

/// The tables that `iptables-save` shows.
pub(in super::super) const TABLES: [&str; 5] = ["nat", "filter", "mangle", "raw", "security"];

/// Every table.
#[derive(Debug, Default)]
pub(in super::super) struct Ruleset {
    nat: Table,
    filter: Table,
}

#[derive(Debug, Default)]
struct Table {
    policies: BTreeMap<String, String>,
    chains: BTreeMap<String, Vec<Rule>>,
}

/// A rule, in words.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    text: String,
    words: Vec<String>,
}

/// Conditions that this module does not judge: a rule with one of them is for certain packets only.
const CONDITIONS: [&str; 9] = [
    "--mark",
    "--ctstate",
    "--state",
    "--ctstatus",
    "--ctorigdst",
    "--match-set",
    "--dport",
    "--dports",
    "--sport",
];

/// How deep chains may call each other, lest a loop be followed for ever. The kernel forbids loops.
const DEPTH: usize = 16;

impl Ruleset {
    pub(in super::super) fn parse(text: &str) -> Self {
        let (mut rules, mut other) = (Self::default(), Table::default());
        let mut name = String::new();
        for line in text.lines() {
            let table = match name.as_str() {
                "nat" => &mut rules.nat,
                "filter" => &mut rules.filter,
                _ => &mut other,
            };
            if let Some(of) = line.strip_prefix('*') {
                of.trim().clone_into(&mut name);
            } else if let Some(chain) = line.strip_prefix(':') {
                let mut parts = chain.split_whitespace();
                if let (Some(chain), Some(policy)) = (parts.next(), parts.next()) {
                    table.policies.insert(chain.to_owned(), policy.to_owned());
                }
            } else if let Some(rule) = line.find("-A ").and_then(|start| line.get(start..)) {
                let words = words(rule);
                if let Some(chain) = words.get(1) {
                    let rules = table.chains.entry(chain.clone()).or_default();
                    rules.push(Rule {
                        text: rule.to_owned(),
                        words,
                    });
                }
            }
        }
        rules
    }

    /// Rules that masquerade a pod's new flow on its way out.
    pub(in super::super) fn masquerading(&self, traffic: &Traffic<'_>) -> Vec<String> {
        let mut found = Vec::new();
        self.nat
            .collect_masquerading("POSTROUTING", traffic, 0, &mut found);
        found
    }

    /// Why a pod's new flow to the outside is not forwarded, if it is not.
    pub(in super::super) fn forbidding(&self, traffic: &Traffic<'_>) -> Option<String> {
        match self.filter.verdict("FORWARD", traffic, 0) {
            Some((false, rule)) => Some(rule),
            Some((true, _)) => None,
            None => (self.filter.policies.get("FORWARD")? == "DROP")
                .then(|| "FORWARD has the policy DROP, and no rule accepts what pods send".to_owned()),
        }
    }
}

impl Table {
    fn rules(&self, chain: &str) -> &[Rule] {
        self.chains.get(chain).map_or(&[], Vec::as_slice)
    }

    fn collect_masquerading(
        &self,
        chain: &str,
        traffic: &Traffic<'_>,
        depth: usize,
        found: &mut Vec<String>,
    ) {
        for rule in self.rules(chain) {
            // `-m mark ! --mark X -j RETURN`: the rest of the chain is for what is marked.
            if rule.target() == Some("RETURN") && (rule.matches(traffic) || rule.returns_unmarked()) {
                return;
            }
            if !rule.matches(traffic) {
                continue;
            }
            match rule.target() {
                Some("MASQUERADE" | "SNAT") => found.push(rule.text.clone()),
                Some("ACCEPT") => return,
                Some(other) if depth < DEPTH => self.collect_masquerading(other, traffic, depth + 1, found),
                _ => {}
            }
        }
    }

    /// Whether a chain accepts (`true`) or drops a pod's new flow, and by which rule; `None` when it says nothing.
    fn verdict(&self, chain: &str, traffic: &Traffic<'_>, depth: usize) -> Option<(bool, String)> {
        for rule in self.rules(chain).iter().filter(|rule| rule.matches(traffic)) {
            match rule.target() {
                Some("ACCEPT") => return Some((true, rule.text.clone())),
                Some("DROP" | "REJECT") => return Some((false, rule.text.clone())),
                Some("RETURN") => return None,
                Some(other) if depth < DEPTH => {
                    if let Some(verdict) = self.verdict(other, traffic, depth + 1) {
                        return Some(verdict);
                    }
                }
                _ => {}
            }
        }
        None
    }
}

impl Rule {
    fn target(&self) -> Option<&str> {
        self.after("-j").or_else(|| self.after("-g"))
    }

    fn after(&self, option: &str) -> Option<&str> {
        let at = self.words.iter().position(|word| word == option)?;
        self.words.get(at + 1).map(String::as_str)
    }

    fn is_negated(&self, option: &str) -> bool {
        let at = self.words.iter().position(|word| word == option);
        at.is_some_and(|at| at > 0 && self.words[at - 1] == "!")
    }

    fn returns_unmarked(&self) -> bool {
        self.target() == Some("RETURN") && self.is_negated("--mark")
    }

    /// Whether a pod's new flow to the outside may meet the rule: by addresses, protocol and interfaces, as far as it has no
    /// other condition.
    fn matches(&self, traffic: &Traffic<'_>) -> bool {
        let has = |option: &&str| self.words.iter().any(|word| word == option);
        if CONDITIONS.iter().any(has) {
            return false;
        }
        let has_source = |prefix: &str| {
            let net = prefix.parse::<Ipv4Net>();
            net.is_ok_and(|net| traffic.pods.iter().any(|pod| net.contains(pod)))
        };
        let source = self
            .after("-s")
            .is_none_or(|net| has_source(net) != self.is_negated("-s"));
        // To somewhere in particular is not to everywhere.
        let destination = self.after("-d").is_none_or(|_| self.is_negated("-d"));
        let out = self
            .after("-o")
            .is_none_or(|name| is_named(name, traffic.uplink) != self.is_negated("-o"));
        let is_pods = |name: &str| traffic.host_ifs.iter().any(|host| is_named(name, host));
        let arrives = self
            .after("-i")
            .is_none_or(|name| is_pods(name) != self.is_negated("-i"));
        let protocol = self
            .after("-p")
            .is_none_or(|name| matches!(name, "all" | "tcp" | "udp"));
        source && destination && out && arrives && protocol
    }
}

/// `azv+` names every interface that begins so.
fn is_named(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('+') {
        Some(start) => name.starts_with(start),
        None => pattern == name,
    }
}

/// Words, a quoted one being one of them.
fn words(text: &str) -> Vec<String> {
    let (mut words, mut word, mut is_quoted) = (Vec::new(), String::new(), false);
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match character {
            '"' => is_quoted = !is_quoted,
            '\\' if is_quoted => word.extend(characters.next()),
            ' ' if !is_quoted => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
            }
            other => word.push(other),
        }
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn of_pod<T>(judge: impl Fn(&Traffic<'_>) -> T) -> T {
        judge(&Traffic {
            pods: &[Ipv4Addr::new(10, 240, 0, 5)],
            uplink: "eth0",
            host_ifs: &["azv1"],
        })
    }

    fn nat(rules: &str) -> usize {
        let rules = Ruleset::parse(&format!("*nat\n:POSTROUTING ACCEPT [0:0]\n{rules}\nCOMMIT\n"));
        of_pod(|traffic| rules.masquerading(traffic).len())
    }

    fn is_forwarded(policy: &str, rules: &str) -> bool {
        let rules = Ruleset::parse(&format!("*filter\n:FORWARD {policy} [0:0]\n{rules}\nCOMMIT\n"));
        of_pod(|traffic| rules.forbidding(traffic).is_none())
    }

    #[test]
    fn rules_that_causeway_replaces_are_found() {
        assert_eq!(
            nat(
                "-A POSTROUTING ! -d 10.0.0.0/8 -m iprange ! --dst-range 168.63.129.16-168.63.129.16 -m addrtype ! --dst-type LOCAL -j MASQUERADE"
            ),
            1
        );
        let agent = "-A POSTROUTING -m comment --comment \"ip-masq-agent: ensure nat POSTROUTING directs all non-LOCAL traffic\" -m addrtype ! --dst-type LOCAL -j IP-MASQ-AGENT\n\
            -A IP-MASQ-AGENT -d 10.0.0.0/8 -m comment --comment \"local traffic is not subject to MASQUERADE\" -j RETURN\n\
            -A IP-MASQ-AGENT -m comment --comment \"outbound traffic must be subject to MASQUERADE\" -j MASQUERADE";
        assert_eq!(nat(agent), 1);
        assert_eq!(
            nat("-A POSTROUTING -s 10.240.0.0/16 -o eth0 -j SNAT --to-source 10.240.0.4"),
            1
        );
    }

    #[test]
    fn rules_of_kube_proxy_portmap_and_docker_are_not_about_pods() {
        let kube_proxy = "-A POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING\n\
            -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN\n-A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0\n\
            -A KUBE-POSTROUTING -j MASQUERADE --random-fully";
        assert_eq!(nat(kube_proxy), 0);
        let portmap = "-A POSTROUTING -j CNI-HOSTPORT-MASQ\n-A CNI-HOSTPORT-MASQ -m mark --mark 0x2000/0x2000 -j MASQUERADE";
        assert_eq!(nat(portmap), 0);
        assert_eq!(
            nat("-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE"),
            0
        );
        assert_eq!(nat("-A POSTROUTING -o tun+ -j MASQUERADE"), 0);
        assert_eq!(nat("-A POSTROUTING -j RETURN\n-A POSTROUTING -j MASQUERADE"), 0);
    }

    #[test]
    fn a_policy_counts_unless_a_rule_decides_before_it() {
        assert!(is_forwarded("ACCEPT", ""));
        assert!(!is_forwarded("DROP", ""));
        assert!(is_forwarded("DROP", "-A FORWARD -s 10.240.0.0/16 -j ACCEPT"));
        assert!(is_forwarded(
            "DROP",
            "-A FORWARD -j ALLOW\n-A ALLOW -i azv+ -j ACCEPT"
        ));
        assert!(!is_forwarded(
            "DROP",
            "-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"
        ));
        assert!(!is_forwarded("DROP", "-A FORWARD -i docker0 -j ACCEPT"));
        assert!(!is_forwarded(
            "ACCEPT",
            "-A FORWARD -j REJECT --reject-with icmp-port-unreachable"
        ));
        assert!(is_forwarded(
            "ACCEPT",
            "-A FORWARD -m conntrack --ctstate INVALID -j DROP"
        ));
        assert!(is_forwarded(
            "ACCEPT",
            "-A FORWARD -d 168.63.129.16/32 -p tcp -m tcp --dport 80 -j DROP"
        ));
    }

    #[test]
    fn a_quoted_comment_is_one_word() {
        assert_eq!(
            words("-A X -m comment --comment \"a -j DROP \\\" b\" -j ACCEPT").join("|"),
            "-A|X|-m|comment|--comment|a -j DROP \" b|-j|ACCEPT"
        );
    }
}
