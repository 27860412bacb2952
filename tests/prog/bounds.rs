//! Costs that do not depend on the machine.

use std::{env, fmt::Write as _, fs, path::PathBuf};

use causeway_common::maps::XDP_PROGRAM;

use crate::bench::{Bench, Hook};

/// Percent by which a program may outgrow its record.
const MARGIN: u32 = 5;

/// The kernel allows a million; what keeps loading quick is a few hundredths of it. Growth shows here first.
#[test]
fn no_program_outgrows_what_the_verifier_needed_before() {
    let bench = Bench::new();
    let mut measured = Hook::ALL
        .map(|hook| (hook.program(), bench.verified_instructions(hook)))
        .to_vec();
    measured.push((XDP_PROGRAM, bench.xdp_verified_instructions()));
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../ebpf/verifier-budget.txt");
    let text = fs::read_to_string(&path).unwrap();
    if env::var_os("CAUSEWAY_RECORD_BUDGET").is_some() {
        fs::write(&path, with(&text, &measured)).unwrap();
        return;
    }
    for (program, count) in measured {
        let record = recorded(&text, program).unwrap_or_else(|| panic!("no record of {program}"));
        println!("{program:16} {count:6} instructions verified, {record} recorded");
        assert!(
            count <= record + record * MARGIN / 100,
            "{program}: {count} instructions verified, {record} recorded in {}",
            path.display()
        );
    }
}

fn recorded(text: &str, program: &str) -> Option<u32> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(program)?.strip_prefix(' '))?;
    line.trim().parse().ok()
}

/// The file with other records below its heading.
fn with(text: &str, measured: &[(&str, u32)]) -> String {
    let mut new: String = text
        .lines()
        .filter(|line| line.starts_with('#'))
        .flat_map(|line| [line, "\n"])
        .collect();
    for (program, count) in measured {
        writeln!(new, "{program} {count}").unwrap();
    }
    new
}

#[test]
fn a_record_is_read_as_it_is_written() {
    let text = with("# heading\ncwy_old 7\n", &[("cwy_from_pod", 12), ("cwy_from", 3)]);
    assert_eq!(text, "# heading\ncwy_from_pod 12\ncwy_from 3\n");
    assert_eq!(
        (recorded(&text, "cwy_from"), recorded(&text, "cwy_from_pod")),
        (Some(3), Some(12))
    );
    assert_eq!(recorded(&text, "cwy_old"), None);
}
