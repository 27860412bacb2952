//! What the kernel is to masquerade beside the programs, and the script of nft(8) that says so.

use std::collections::BTreeSet;

use super::{TABLE, spans::Spans};
use crate::{links::WayOut, settings::Settings};

/// Who is masqueraded by the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Senders {
    /// Whoever sends, as by the rule that is replaced.
    Everybody,
    /// Pods alone, and those of their packets that leave the node by these interfaces, which the programs do not see.
    PodsBy(BTreeSet<u32>),
}

/// Tables that masquerade, one of each family that needs one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Index of the interface by which `cwy_to_uplink` sees pods' packets leave, if there is one.
    uplink: Option<u32>,
    tables: Vec<Table>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Table {
    family: Family,
    senders: Senders,
    /// Destinations that are left alone.
    excluded: Spans,
}

/// A family of nftables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    Ip,
    Ip6,
}

impl Family {
    pub(super) const ALL: [Self; 2] = [Self::Ip, Self::Ip6];

    pub(super) fn of(is_ipv4: bool) -> Self {
        if is_ipv4 { Self::Ip } else { Self::Ip6 }
    }

    /// As nft(8) writes it, in front of a table and of what a rule matches.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Ip => "ip",
            Self::Ip6 => "ip6",
        }
    }

    /// Removes the table, also where there is none.
    pub(super) fn removal(self) -> String {
        let name = self.name();
        format!("table {name} {TABLE}\ndelete table {name} {TABLE}\n")
    }
}

impl Rule {
    /// What the settings ask for where pods' packets leave by `uplink` and by other `ways`; no tables if the programs
    /// do all that is asked for.
    pub fn wanted(settings: &Settings, uplink: Option<u32>, ways: Vec<WayOut>) -> Self {
        let [excluded, excluded_v6] = excluded(settings);
        let ways = past_the_programs(settings, ways);
        let of_ipv4 = if settings.exact_rule {
            Some(Senders::Everybody)
        } else {
            pods_by(&ways, true)
        };
        let table = |family, senders, excluded| Table {
            family,
            senders,
            excluded,
        };
        let of_ipv4 = of_ipv4.map(|senders| table(Family::Ip, senders, excluded));
        let of_ipv6 = pods_by(&ways, false).map(|senders| table(Family::Ip6, senders, excluded_v6));
        let tables = of_ipv4.into_iter().chain(of_ipv6).collect();
        Self { uplink, tables }
    }

    /// Whether it has no tables.
    pub fn is_empty(&self) -> bool {
        self.tables.is_empty()
    }

    /// The families of which there is a table.
    pub(super) fn families(&self) -> impl Iterator<Item = Family> + '_ {
        self.tables.iter().map(|table| table.family)
    }

    /// The tables, where there is none of the same name.
    pub(super) fn script(&self) -> String {
        self.tables
            .iter()
            .map(|table| table.script(self.uplink))
            .collect()
    }
}

/// Those of the ways by which pods' packets leave that the settings would have masqueraded.
pub fn past_the_programs(settings: &Settings, ways: Vec<WayOut>) -> Vec<WayOut> {
    let [excluded, excluded_v6] = excluded(settings);
    let is_masqueraded = |way: &WayOut| {
        let excluded = if way.to.addr().is_ipv4() {
            &excluded
        } else {
            &excluded_v6
        };
        !excluded.hold(&way.to)
    };
    ways.into_iter().filter(is_masqueraded).collect()
}

/// Of IPv4 and of IPv6.
fn excluded(settings: &Settings) -> [Spans; 2] {
    [
        Spans::excluded(&settings.ranges()),
        Spans::excluded(&settings.ranges_v6()),
    ]
}

/// The interfaces of a family's ways, if there are any.
fn pods_by(ways: &[WayOut], is_ipv4: bool) -> Option<Senders> {
    let of_family = ways.iter().filter(|way| way.to.addr().is_ipv4() == is_ipv4);
    let interfaces: BTreeSet<u32> = of_family.map(|way| way.ifindex).collect();
    (!interfaces.is_empty()).then_some(Senders::PodsBy(interfaces))
}

impl Table {
    fn script(&self, uplink: Option<u32>) -> String {
        let family = self.family.name();
        let spans: Vec<String> = self.excluded.texts(self.family == Family::Ip).collect();
        let elements = if spans.is_empty() {
            String::new()
        } else {
            format!("elements = {{{} }}\n", spans.join(","))
        };
        let (of_others, by) = match &self.senders {
            Senders::Everybody => ("", String::new()),
            Senders::PodsBy(interfaces) => {
                let numbers: Vec<String> = interfaces.iter().map(u32::to_string).collect();
                let by = format!("oif {{ {} }} ", numbers.join(", "));
                ("iifname != \"azv*\" accept comment \"no pod\"\n", by)
            }
        };
        let of_uplink = uplink.map_or_else(String::new, |index| {
            format!("iifname \"azv*\" oif {index} accept comment \"cwy_to_uplink translates\"\n")
        });
        format!(
            "table {family} {TABLE} {{\n\
             set excluded {{\ntype {address}\nflags interval\n{elements}}}\n\
             chain postrouting {{\ntype nat hook postrouting priority 100; policy accept;\n\
             {of_others}\
             iifname \"azv*\" oifname \"azv*\" accept\n\
             {of_uplink}\
             fib daddr type local accept\n\
             {family} daddr @excluded accept\n\
             {by}masquerade\n}}\n}}\n",
            address = match self.family {
                Family::Ip => "ipv4_addr",
                Family::Ip6 => "ipv6_addr",
            }
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn way(to: &str) -> WayOut {
        WayOut {
            to: to.parse().unwrap(),
            interface: "eth1".to_owned(),
            ifindex: 7,
        }
    }

    fn families(settings: &Settings, ways: &[&str]) -> Vec<(Family, Senders)> {
        let ways: Vec<WayOut> = ways.iter().copied().map(way).collect();
        let tables = Rule::wanted(settings, Some(2), ways).tables;
        tables
            .into_iter()
            .map(|table| (table.family, table.senders))
            .collect()
    }

    #[test]
    fn a_table_is_there_for_whom_the_programs_do_not_see() {
        let settings = Settings::default();
        assert_eq!(families(&settings, &[]), []);
        assert_eq!(families(&settings, &["10.9.0.0/16", "2001:db8::/32"]), []);
        let of_pods = [(Family::Ip, Senders::PodsBy(BTreeSet::from([7])))];
        assert_eq!(families(&settings, &["10.9.0.0/16", "198.18.0.0/15"]), of_pods);
        assert_eq!(families(&settings, &["0.0.0.0/0"]), of_pods);
        let exact = Settings {
            exact_rule: true,
            ..Settings::default()
        };
        let of_all = [(Family::Ip, Senders::Everybody)];
        assert_eq!(families(&exact, &[]), of_all);
        assert_eq!(families(&exact, &["198.18.0.0/15", "2001:db8::/32"]), of_all);
        let of_both = Settings {
            masquerade_ipv6: true,
            ..Settings::default()
        };
        assert_eq!(families(&of_both, &["fd00::/8"]), []);
        assert_eq!(
            families(&of_both, &["2001:db8::/32"]),
            [(Family::Ip6, Senders::PodsBy(BTreeSet::from([7])))]
        );
        let past = past_the_programs(&of_both, vec![way("10.0.0.0/16"), way("::/0"), way("fd00::/64")]);
        assert_eq!(past, [way("::/0")]);
    }

    #[test]
    fn pods_alone_are_masqueraded_by_a_table_that_lets_the_others_go_first() {
        let rule = Rule::wanted(&Settings::default(), Some(2), vec![way("198.18.0.0/15")]);
        let script = rule.script();
        let place = |words: &str| script.find(words).unwrap();
        assert!(place("iifname != \"azv*\" accept") < place("oifname \"azv*\" accept"));
        assert!(place("oif 2 accept") < place("oif { 7 } masquerade\n"));
    }
}
