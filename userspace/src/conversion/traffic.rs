//! What network security groups make of the traffic between nodes, API servers and the platform.

use super::{
    Finding, Ruling, Verdict,
    azure::Subnet,
    evaluate::{Connections, Decision, HOST, evaluate},
    facts::{Facts, Guard},
    rules::{Direction, SecurityGroup},
    spans::{Spans, number},
    subnet::how_to_know,
};

/// The ports that clients open connections from, pods' translated ones among them.
const CLIENTS: (u128, u128) = (1024, 65_535);
/// A rule's own priority, by which it goes before others.
const PRIORITIES: std::ops::RangeInclusive<u32> = 100..=4096;

/// The checks.
pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    vec![
        to_api(facts, "nsg-443", 443),
        to_api(facts, "nsg-4443", 4443),
        probes(facts),
        to_kubelet(facts),
        routes(facts),
    ]
}

fn to_api(facts: &Facts, id: &'static str, port: u16) -> Finding {
    with_subnets(facts, id, |api| {
        let paths = facts
            .nodes
            .iter()
            .map(|(node, guard)| (node, guard, api, &facts.api_guard));
        judge(facts, id, port, paths)
    })
}

fn to_kubelet(facts: &Facts) -> Finding {
    let id = "nsg-kubelet";
    let finding = with_subnets(facts, id, |api| {
        let paths = facts
            .nodes
            .iter()
            .map(|(node, guard)| (api, &facts.api_guard, node, guard));
        judge(facts, id, 10_250, paths)
    });
    match finding.verdict {
        // Azure's documentation does not ask for it, and without it there are no logs, no exec and no metrics.
        Verdict::Fail => Finding {
            verdict: Verdict::Warn,
            reason: format!(
                "API servers do not reach kubelets (logs, exec, metrics): {}",
                finding.reason
            ),
            ..finding
        },
        _ => finding,
    }
}

fn probes(facts: &Facts) -> Finding {
    let id = "nsg-9988";
    let Ok(api) = &facts.api else {
        return without_api(id);
    };
    let mut trial = Trial::new(facts, 9988);
    let host = Spans::range(number(HOST), number(HOST));
    trial.pass(&facts.api_guard, Direction::Inbound, &host, &addresses(api));
    trial.finding(id, "AzureLoadBalancer")
}

fn with_subnets(facts: &Facts, id: &'static str, judge: impl FnOnce(&Subnet) -> Finding) -> Finding {
    let Ok(api) = &facts.api else {
        return without_api(id);
    };
    let finding = if facts.nodes.is_empty() {
        None
    } else {
        Some(judge(api))
    };
    match finding {
        Some(finding) if facts.missing.is_empty() || finding.verdict == Verdict::Fail => finding,
        finding => Finding {
            decisions: finding.map_or_else(Vec::new, |finding| finding.decisions),
            ..Finding::unknown(id, "the cluster's subnets are not all known", how_to_know(facts))
        },
    }
}

fn without_api(id: &'static str) -> Finding {
    Finding::unknown(
        id,
        "the API server subnet is not known",
        "name it: --api-subnet PREFIX or NAME, or give its document: --subnet FILE",
    )
}

/// Judges connections along several paths: from a subnet through its guard, to a subnet through its.
fn judge<'a>(
    facts: &'a Facts,
    id: &'static str,
    port: u16,
    paths: impl Iterator<Item = (&'a Subnet, &'a Guard, &'a Subnet, &'a Guard)>,
) -> Finding {
    let mut trial = Trial::new(facts, port);
    let mut sources = Vec::new();
    for (from, leaving, to, entering) in paths {
        let (from_all, to_all) = (addresses(from), addresses(to));
        trial.pass(leaving, Direction::Outbound, &from_all, &to_all);
        trial.pass(entering, Direction::Inbound, &from_all, &to_all);
        if !sources.contains(&from.name) {
            sources.push(from.name.clone());
        }
    }
    trial.finding(id, &sources.join(", "))
}

/// Connections to a port, and what was found about them.
struct Trial<'a> {
    facts: &'a Facts,
    port: u16,
    decisions: Vec<Ruling>,
    open: bool,
    /// Whether the rules are too many to be judged.
    cut: bool,
    denials: Vec<String>,
    doubts: Vec<String>,
    /// What is missing to tell.
    unknown: Vec<String>,
    /// How the first denial is taken back.
    fix: Option<String>,
}

impl<'a> Trial<'a> {
    fn new(facts: &'a Facts, port: u16) -> Self {
        Self {
            facts,
            port,
            decisions: Vec::new(),
            open: false,
            cut: false,
            denials: Vec::new(),
            doubts: Vec::new(),
            unknown: Vec::new(),
            fix: None,
        }
    }

    /// Lets them pass a guard.
    fn pass(&mut self, guard: &Guard, direction: Direction, sources: &Spans, destinations: &Spans) {
        let group = match guard {
            Guard::Open => {
                self.open = true;
                return;
            }
            Guard::Unknown(how) => {
                if !self.unknown.contains(how) {
                    self.unknown.push(how.clone());
                }
                return;
            }
            Guard::Group(group) => group,
        };
        let connections = Connections {
            sources: sources.clone(),
            source_ports: Spans::range(CLIENTS.0, CLIENTS.1),
            destinations: destinations.clone(),
        };
        let network = self.facts.virtual_network();
        for decision in evaluate(group, direction, self.port, connections, &network) {
            self.take(group, direction, &decision);
        }
    }

    fn take(&mut self, group: &SecurityGroup, direction: Direction, decision: &Decision<'_>) {
        let ruling = self.ruling(group, direction, decision);
        let ports = if ruling.source_ports == format!("{}-{}", CLIENTS.0, CLIENTS.1) {
            String::new()
        } else {
            format!(" from ports {}", ruling.source_ports)
        };
        let (group_name, rule) = (&group.name, &ruling.rule);
        let whom = format!("{}{ports} to {}", ruling.sources, ruling.destinations);
        match (decision.allowed, &ruling.doubt) {
            (Some(true), _) => {}
            (Some(false), _) => {
                let text = format!(
                    "{group_name}: {rule} ({}) denies {whom}, {}",
                    ruling.priority, ruling.direction
                );
                self.fix
                    .get_or_insert_with(|| remedy(group, direction, self.port, decision, &ruling));
                self.denials.push(text);
            }
            (None, Some(doubt)) => self.doubts.push(format!(
                "{group_name}: {doubt} may meet {whom}, {}; if not, {rule} decides otherwise",
                ruling.direction
            )),
            (None, None) => self.cut = true,
        }
        if !self.decisions.contains(&ruling) {
            self.decisions.push(ruling);
        }
    }

    fn ruling(&self, group: &SecurityGroup, direction: Direction, decision: &Decision<'_>) -> Ruling {
        Ruling {
            group: group.name.clone(),
            direction: match direction {
                Direction::Inbound => "inbound",
                Direction::Outbound => "outbound",
            },
            sources: decision.connections.sources.address_text(),
            source_ports: decision.connections.source_ports.number_text(),
            destinations: decision.connections.destinations.address_text(),
            port: self.port,
            access: match decision.allowed {
                Some(true) => "allow",
                Some(false) => "deny",
                None => "unknown",
            },
            rule: decision.rule.name.clone(),
            priority: decision.rule.priority,
            doubt: decision
                .doubt
                .map(|rule| format!("{} ({})", rule.name, rule.priority)),
        }
    }

    fn finding(self, id: &'static str, from: &str) -> Finding {
        let port = self.port;
        let finding = if !self.denials.is_empty() {
            Finding::fail(
                id,
                some([self.denials, self.doubts].concat()),
                self.fix.unwrap_or_default(),
            )
        } else if !self.doubts.is_empty() {
            Finding::unknown(
                id,
                some(self.doubts),
                "find out what the rule's tag or group holds, or put a rule with plain prefixes before it",
            )
        } else if self.cut {
            Finding::unknown(
                id,
                "the rules cut these connections into more than a thousand parts, which are not judged",
                "put a rule with plain prefixes before them",
            )
        } else if let Some(how) = self.unknown.first() {
            let (what, how) = how.rsplit_once(": ").unwrap_or((how, ""));
            Finding::unknown(id, what, how)
        } else if self.decisions.is_empty() {
            Finding::pass(
                id,
                format!("no network security group stands between {from} and TCP {port}"),
            )
        } else {
            let mut rules: Vec<String> = Vec::new();
            for decision in &self.decisions {
                let rule = format!("{} {} ({})", decision.group, decision.rule, decision.priority);
                if !rules.contains(&rule) {
                    rules.push(rule);
                }
            }
            let open = if self.open {
                "; another subnet has no group"
            } else {
                ""
            };
            Finding::pass(
                id,
                format!("{from} to TCP {port}: allowed by {}{open}", rules.join(", ")),
            )
        };
        Finding {
            decisions: self.decisions,
            ..finding
        }
    }
}

/// The rule that would let the connections pass.
fn remedy(
    group: &SecurityGroup,
    direction: Direction,
    port: u16,
    decision: &Decision<'_>,
    ruling: &Ruling,
) -> String {
    let taken = |priority: &u32| {
        group
            .rules
            .iter()
            .any(|rule| rule.direction == direction && rule.priority == *priority)
    };
    let before = decision.rule.priority.min(PRIORITIES.end() + 1);
    let Some(priority) = (*PRIORITIES.start()..before)
        .rev()
        .find(|priority| !taken(priority))
    else {
        return format!(
            "{} has no free priority before {}: number its rules anew, with one that allows this before it",
            group.name, decision.rule.priority
        );
    };
    let source = if decision.connections.sources.has(number(HOST)) {
        "AzureLoadBalancer".to_owned()
    } else {
        ruling.sources.replace(',', "")
    };
    let (group_of, name) = resource_group(&group.id);
    format!(
        "az network nsg rule create --resource-group {group_of} --nsg-name {} --name allow-api-server-{port} \
         --priority {priority} --direction {} --access Allow --protocol Tcp --source-address-prefixes {source} \
         --destination-address-prefixes {} --destination-port-ranges {port}",
        name.unwrap_or(&group.name),
        if direction == Direction::Inbound {
            "Inbound"
        } else {
            "Outbound"
        },
        ruling.destinations.replace(',', ""),
    )
}

fn resource_group(id: &str) -> (&str, Option<&str>) {
    let parts: Vec<&str> = id.split('/').collect();
    let at = parts
        .iter()
        .position(|part| part.eq_ignore_ascii_case("resourceGroups"));
    let group = at.and_then(|at| parts.get(at + 1)).copied().unwrap_or("GROUP");
    (group, parts.last().copied().filter(|name| !name.is_empty()))
}

fn addresses(subnet: &Subnet) -> Spans {
    Spans::networks(subnet.v4())
}

/// Route tables: they may send this traffic to a firewall. What they hold is not looked at.
fn routes(facts: &Facts) -> Finding {
    let id = "routes";
    let subnets = facts
        .api
        .iter()
        .chain(facts.nodes.iter().map(|(subnet, _)| subnet));
    let (mut tables, mut unseen) = (Vec::new(), facts.api.is_err() || facts.nodes.is_empty());
    for subnet in subnets {
        match &subnet.details {
            Some(details) if details.routes.is_empty() => {}
            Some(details) => tables.push(format!(
                "{} on {}",
                details.routes.rsplit('/').next().unwrap_or(""),
                subnet.name
            )),
            None => unseen = true,
        }
    }
    if !tables.is_empty() {
        return Finding::warn(
            id,
            format!("there are route tables: {}", tables.join(", ")),
            "see that no route between these subnets goes to a firewall: az network route-table route list",
        );
    }
    if unseen || !facts.missing.is_empty() {
        return Finding::unknown(
            id,
            "whether the subnets have route tables is not known",
            how_to_know(facts),
        );
    }
    Finding::pass(id, "no route table on these subnets")
}

/// The first of them, and how many there are.
fn some(texts: Vec<String>) -> String {
    const SHOWN: usize = 3;
    let more = texts.len().saturating_sub(SHOWN);
    let mut shown: Vec<String> = texts.into_iter().take(SHOWN).collect();
    if more > 0 {
        shown.push(format!("and {more} more"));
    }
    shown.join("; ")
}
