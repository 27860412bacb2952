//! `docs/known-bugs.md` names a test for each bug that others had; a test that is renamed or removed must not leave its row
//! behind.

use std::{fs, path::Path};

#[test]
fn every_test_that_the_table_of_known_bugs_names_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let table = fs::read_to_string(root.join("docs/known-bugs.md")).unwrap();
    let rows: Vec<Vec<&str>> = table
        .lines()
        .filter(|line| line.starts_with("| ") && !line.starts_with("| #"))
        .map(|line| line.trim_matches('|').split(" | ").map(str::trim).collect())
        .collect();
    assert_eq!(rows.len(), 32, "rows of the table");
    for (number, row) in (1..).zip(&rows) {
        let [index, _, _, _, guards] = row[..] else {
            panic!("row {number} has {} columns", row.len())
        };
        assert_eq!(index, number.to_string());
        let names: Vec<&str> = guards.split('`').skip(1).step_by(2).collect();
        assert!(
            names.len() >= 2 || guards.starts_with("needs a guest"),
            "row {number} has no test"
        );
        let mut file = ("", String::new());
        for name in names {
            if name.contains('/') {
                file = (name, fs::read_to_string(root.join(name)).unwrap_or_default());
                continue;
            }
            assert!(
                is_test(&file.1, name),
                "row {number}: no test {name} in {}",
                file.0
            );
        }
    }
}

/// Whether a source has a function of this name that is a test, of one family or of both.
fn is_test(source: &str, name: &str) -> bool {
    is_marked(source, name) || is_of_both(source, name)
}

/// Whether it stands in the list of [`of_both_families`](crate::bench::of_both_families).
fn is_of_both(source: &str, name: &str) -> bool {
    let list = source.split_once("of_both_families!(");
    let list = list.and_then(|(_, rest)| rest.split_once(");"));
    list.is_some_and(|(names, _)| names.split(',').any(|listed| listed.trim() == name))
}

/// Whether there is a test's attribute before it, and none that keeps it from running.
fn is_marked(source: &str, name: &str) -> bool {
    let Some(at) = source.find(&format!("fn {name}(")) else {
        return false;
    };
    let attributes: Vec<&str> = source[..at]
        .lines()
        .rev()
        .map(str::trim)
        .take_while(|line| line.starts_with('#') || line.starts_with("//") || line.is_empty())
        .collect();
    attributes.contains(&"#[test]") && !attributes.iter().any(|line| line.starts_with("#[ignore"))
}

#[test]
fn a_function_without_the_attribute_is_no_test() {
    let source = "#[test]\n/// Says something.\nfn real() {}\n\nfn helper() {}\n#[test]\n#[ignore = \"slow\"]\nfn slow() {}\n";
    assert!(is_test(source, "real"));
    for other in ["helper", "slow", "missing", "rea"] {
        assert!(!is_test(source, other), "{other}");
    }
    let source = "of_both_families!(one, other);\nfn one<F>() {}\nfn third<F>() {}\n";
    assert!(is_test(source, "one") && !is_test(source, "third"));
}
