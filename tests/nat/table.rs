//! `docs/nat-behaviour.md`, made from the comments of the tests in this room.

use std::{env, fmt::Write as _, fs, path::Path};

use anyhow::{Context, Result, bail, ensure};

/// The files with requirements, in the order of the page.
const SOURCES: [(&str, &str); 11] = [
    ("udp_rfc4787", include_str!("udp_rfc4787.rs")),
    ("udp_rfc4787_timers", include_str!("udp_rfc4787_timers.rs")),
    ("udp_rfc4787_filter", include_str!("udp_rfc4787_filter.rs")),
    ("udp_rfc4787_paths", include_str!("udp_rfc4787_paths.rs")),
    ("udp_rfc4787_fragments", include_str!("udp_rfc4787_fragments.rs")),
    ("tcp_rfc5382", include_str!("tcp_rfc5382.rs")),
    ("tcp_rfc5382_timers", include_str!("tcp_rfc5382_timers.rs")),
    ("icmp_rfc5508", include_str!("icmp_rfc5508.rs")),
    ("icmp_rfc5508_errors", include_str!("icmp_rfc5508_errors.rs")),
    ("icmp_rfc5508_messages", include_str!("icmp_rfc5508_messages.rs")),
    ("updates_rfc7857", include_str!("updates_rfc7857.rs")),
];

const RFCS: [(&str, &str); 5] = [
    ("RFC 4787", "unicast UDP"),
    ("RFC 5382", "TCP"),
    ("RFC 5508", "ICMP"),
    ("RFC 7857", "updates to the three"),
    ("RFC 3022", "checksums"),
];

const VERDICTS: [&str; 3] = ["met", "by design not", "not met"];

const HEAD: &str = "\
# NAT behaviour

What the RFCs ask of a NAT, what Causeway does, and what nf_nat does with the MASQUERADE rule that Causeway replaces. Each row is a test of
`tests/nat` and is written from the comment of that test: `CAUSEWAY_WRITE_DOCS=1 cargo xtask test --filter the_page_is_what_the_tests_say`.

nf_nat's column was *seen*: the same observation runs on a second node with the rule, on the kernel's defaults, and the test fails if
the kernel does something else. A row that rests on documentation names it. Lifetimes are measured on a table that is made older than
it is. The requirements are told in our words; the RFC's own are what counts.

A row of both families is seen of IPv4 and of IPv6, where Causeway has `masqueradeIPv6` and the second node the same rule by ip6tables. A row of
IPv4 alone is about what IPv6 has not: queries for a timestamp or an address mask, source quench and information requests, a checksum of the
header, a datagram that may do without its own, and an identification in every packet. Of the last two, what there is instead has rows of IPv6 alone.

Where a requirement is not met by design, the reason is in its row. Most have one in common: Causeway takes the place of a rule on a running
node, and whoever relied on the rule must find what it did.

Not in the table: RFC 4787 REQ-7, REQ-8a and REQ-10a, RFC 5382 REQ-3a and REQ-3b. The first is about address plans, and pods have addresses of
their own in the VNet; the others are about settings of a filter and of gateways, and there are none to set. RFC 5382 REQ-8a and RFC 5508 REQ-7a are about hairpinned packets, of which there are none.
";

/// A requirement and its test.
struct Row {
    rfc: &'static str,
    requirement: String,
    asks: String,
    causeway: String,
    nf_nat: String,
    verdict: String,
    families: &'static str,
    test: String,
}

#[test]
fn the_page_is_what_the_tests_say() -> Result<()> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/nat-behaviour.md");
    let page = page(&rows()?)?;
    if env::var_os("CAUSEWAY_WRITE_DOCS").is_some() {
        return fs::write(&path, page).with_context(|| format!("writing {}", path.display()));
    }
    let committed = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let differs = committed.lines().zip(page.lines()).find(|(old, new)| old != new);
    ensure!(
        committed == page,
        "docs/nat-behaviour.md is not what the tests say; CAUSEWAY_WRITE_DOCS=1 writes it. First difference: {differs:?}"
    );
    Ok(())
}

/// A row that does not name a document must come from a test that has looked at both.
#[test]
fn what_is_said_of_nf_nat_was_seen() -> Result<()> {
    for (file, source) in SOURCES {
        for (row, body) in tests_of(file, source)? {
            let looks = ["both(", "both_with(", "agree("]
                .iter()
                .any(|call| body.contains(call));
            ensure!(
                looks || row.nf_nat.contains("(documentation: "),
                "{} speaks of nf_nat and does not look at it",
                row.test
            );
        }
    }
    Ok(())
}

fn rows() -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (file, source) in SOURCES {
        rows.extend(tests_of(file, source)?.into_iter().map(|(row, _)| row));
    }
    Ok(rows)
}

/// The tests of a file, functions with a requirement before them: the row in the comment, and the source up to the next one.
fn tests_of<'a>(file: &str, source: &'a str) -> Result<Vec<(Row, &'a str)>> {
    let mut tests = Vec::new();
    for (at, start) in source.match_indices("\nfn ") {
        let lines = source[..at].lines().rev().skip_while(|line| *line == "#[test]");
        let comment: Vec<&str> = lines
            .map_while(|line| line.strip_prefix("///"))
            .map(str::trim)
            .collect();
        let comment: Vec<&str> = comment.into_iter().rev().collect();
        if !comment.first().is_some_and(|line| line.starts_with("RFC ")) {
            continue;
        }
        let rest = &source[at + start.len()..];
        let (name, body) = rest.split_once('(').context("a test without parentheses")?;
        let body = body.split("\n}\n").next().unwrap_or(body);
        let families = if body.starts_with("family: Family)") {
            "both"
        } else if body.contains("(Family::V6, ") {
            "IPv6"
        } else {
            "IPv4"
        };
        let test = format!("{file}::{name}");
        let row =
            row(&comment.join(" "), families, test).with_context(|| format!("the comment of {name}"))?;
        tests.push((row, body));
    }
    ensure!(!tests.is_empty(), "no test in {file}");
    Ok(tests)
}

fn row(comment: &str, families: &'static str, test: String) -> Result<Row> {
    let fields: Vec<&str> = comment.split(" | ").map(str::trim).collect();
    let [requirement, asks, causeway, nf_nat, verdict] = fields[..] else {
        bail!("{} fields: {fields:?}", fields.len());
    };
    let rfc = RFCS.iter().find(|(rfc, _)| requirement.starts_with(rfc));
    let (rfc, _) = rfc.with_context(|| format!("`{requirement}` names no RFC of the page"))?;
    let kind = VERDICTS.iter().find(|kind| verdict.starts_with(**kind));
    let kind = kind.with_context(|| format!("`{verdict}` is no verdict"))?;
    ensure!(
        *kind == "met" && verdict == "met" || verdict.contains(": "),
        "`{verdict}` has no reason"
    );
    Ok(Row {
        rfc,
        requirement: requirement[rfc.len()..].trim().to_owned(),
        asks: asks.to_owned(),
        causeway: causeway.to_owned(),
        nf_nat: nf_nat.to_owned(),
        verdict: verdict.to_owned(),
        families,
        test,
    })
}

fn page(rows: &[Row]) -> Result<String> {
    let mut page = String::from(HEAD);
    page.push_str("\n| | about | rows | met | by design not | not met |\n|---|---|---|---|---|---|\n");
    let count = |rfc: Option<&str>, verdict: &str| {
        let of_rfc = rows.iter().filter(|row| rfc.is_none_or(|rfc| row.rfc == rfc));
        of_rfc.filter(|row| row.verdict.starts_with(verdict)).count()
    };
    for (rfc, about) in RFCS
        .iter()
        .copied()
        .map(|(rfc, about)| (Some(rfc), about))
        .chain([(None, "")])
    {
        let [all, met, by_design, not_met] =
            ["", "met", "by design not", "not met"].map(|verdict| count(rfc, verdict));
        writeln!(
            page,
            "| {} | {about} | {all} | {met} | {by_design} | {not_met} |",
            rfc.unwrap_or("all")
        )?;
    }
    for (rfc, about) in RFCS {
        writeln!(page, "\n## {rfc}: {about}\n")?;
        page.push_str(
            "| requirement | asks | Causeway | nf_nat | verdict | of | test |\n|---|---|---|---|---|---|---|\n",
        );
        for row in rows.iter().filter(|row| row.rfc == rfc) {
            let Row {
                requirement,
                asks,
                causeway,
                nf_nat,
                verdict,
                families,
                test,
                ..
            } = row;
            writeln!(
                page,
                "| {requirement} | {asks} | {causeway} | {nf_nat} | {verdict} | {families} | `{test}` |"
            )?;
        }
    }
    Ok(page)
}
