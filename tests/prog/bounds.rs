//! Costs that do not depend on the machine.

use std::{env, fmt::Write as _, fs, net::Ipv6Addr, path::PathBuf};

use causeway_common::maps::XDP_PROGRAM;

use crate::bench::{Bench, Family, Hook};

/// Percent by which a program may outgrow its record.
const MARGIN: u32 = 5;

/// The kernel allows a million; what keeps loading quick is a few hundredths of it. Growth shows here first.
#[test]
fn no_program_outgrows_what_the_verifier_needed_before() {
    let bench = Bench::new();
    let mut measured: Vec<_> = of(&bench).collect();
    measured.push((XDP_PROGRAM, bench.xdp_verified_instructions()));
    measured.extend(of(&Bench::<Ipv6Addr>::of(1)));
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../ebpf/verifier-budget.txt");
    let text = fs::read_to_string(&path).unwrap();
    if env::var_os("CAUSEWAY_RECORD_BUDGET").is_some() {
        fs::write(&path, with(&text, &measured)).unwrap();
        return;
    }
    let series = series();
    let records: Vec<_> = measured
        .iter()
        .map(|(program, _)| {
            recorded(&text, program, &series).unwrap_or_else(|| panic!("no record of {program}"))
        })
        .collect();
    for ((program, count), record) in measured.iter().zip(&records) {
        println!("{program:16} {count:6} instructions verified, {record} recorded");
    }
    for ((program, count), record) in measured.iter().zip(&records) {
        assert!(
            *count <= record + record * MARGIN / 100,
            "{program}: {count} instructions verified, {record} recorded in {}",
            path.display()
        );
    }
}

/// The programs of a family, with what the verifier needed for each.
fn of<F: Family>(bench: &Bench<F>) -> impl Iterator<Item = (&'static str, u32)> {
    Hook::ALL
        .into_iter()
        .map(|hook| (F::program(hook), bench.verified_instructions(hook)))
}

/// The first two numbers of the kernel's release.
fn series() -> String {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    release.split('.').take(2).collect::<Vec<_>>().join(".")
}

/// The record for this series of kernels if it has one of its own, or that of the kernel that the programs are written on.
fn recorded(text: &str, program: &str, series: &str) -> Option<u32> {
    let lines = || text.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let of = |wanted: &[&str]| {
        lines().find_map(|line| match line.as_slice() {
            [name, count, rest @ ..] if *name == program && rest == wanted => count.parse().ok(),
            _ => None,
        })
    };
    of(&[series]).or_else(|| of(&[]))
}

/// The file with other records below its heading; those of other kernels, which have a third column, stay.
fn with(text: &str, measured: &[(&str, u32)]) -> String {
    let mut new: String = text
        .lines()
        .filter(|line| line.starts_with('#') || line.split(' ').count() == 3)
        .flat_map(|line| [line, "\n"])
        .collect();
    for (program, count) in measured {
        writeln!(new, "{program} {count}").unwrap();
    }
    new
}

#[test]
fn a_record_is_read_as_it_is_written() {
    let old = "# heading of a few words\ncwy_old 7\ncwy_from 5 6.1\n";
    let text = with(old, &[("cwy_from_pod", 12), ("cwy_from", 3)]);
    assert_eq!(
        text,
        "# heading of a few words\ncwy_from 5 6.1\ncwy_from_pod 12\ncwy_from 3\n"
    );
    let of = |program, series| recorded(&text, program, series);
    assert_eq!(
        (of("cwy_from", "6.18"), of("cwy_from_pod", "6.18")),
        (Some(3), Some(12))
    );
    assert_eq!(
        (of("cwy_from", "6.1"), of("cwy_from_pod", "6.1")),
        (Some(5), Some(12))
    );
    assert_eq!(of("cwy_old", "6.18"), None);
}
