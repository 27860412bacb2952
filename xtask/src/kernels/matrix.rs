//! What came of it: a row for each kernel and room, and what the verifier needed for each program.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Result, bail};

/// What a line of the guest's says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Line<'a> {
    /// `@@ begin ROOM`: what follows is this room's.
    Begin { room: &'a str },
    /// `@@ room ROOM CODE`: the room's program has ended.
    RoomEnd { room: &'a str, code: i32 },
    /// `@@ kernel TEXT`: the kernel complained.
    Complaint(&'a str),
    /// `@@ end`: the plan has been carried out.
    End,
    /// What a test program counted.
    Result { passed: u32, failed: u32 },
    /// A test that passed.
    Passed(&'a str),
    /// A test that failed.
    Failed(&'a str),
    /// `PROGRAM COUNT instructions verified`.
    Verified { program: &'a str, count: u32 },
    /// Anything else.
    Other,
}

impl<'a> Line<'a> {
    pub(crate) fn read(line: &'a str) -> Self {
        Self::parse(line).unwrap_or(Self::Other)
    }

    fn parse(line: &'a str) -> Option<Self> {
        let words: Vec<&str> = line.split_whitespace().collect();
        Some(match words.as_slice() {
            ["@@", "begin", room] => Self::Begin { room },
            ["@@", "room", room, code] => Self::RoomEnd {
                room,
                code: code.parse().ok()?,
            },
            ["@@", "kernel", ..] => Self::Complaint(line.get("@@ kernel ".len()..)?),
            ["@@", "end"] => Self::End,
            ["test", "result:", _, passed, "passed;", failed, "failed;", ..] => Self::Result {
                passed: passed.parse().ok()?,
                failed: failed.parse().ok()?,
            },
            ["test", name, "...", "ok"] => Self::Passed(name),
            ["test", name, "...", "FAILED"] => Self::Failed(name),
            [program, count, "instructions", "verified" | "verified,", ..] if !program.ends_with(':') => {
                Self::Verified {
                    program,
                    count: count.parse().ok()?,
                }
            }
            _ => return None,
        })
    }
}

/// Rows by kernel and room, in the order of the plan.
#[derive(Default)]
pub(crate) struct Matrix {
    rows: Vec<Row>,
    /// By program and kernel.
    instructions: BTreeMap<(String, &'static str), u32>,
    times: Vec<(&'static str, Duration)>,
    complaints: Vec<String>,
    has_come_to_the_end: bool,
}

struct Row {
    kernel: &'static str,
    room: String,
    passed: u32,
    failed: Vec<String>,
    /// The program did not end by itself, or not with what its tests make it say.
    broken: bool,
    ended: bool,
}

impl Matrix {
    pub(crate) fn add(&mut self, kernel: &'static str, line: &Line<'_>) {
        match line {
            Line::Begin { room } => self.rows.push(Row {
                kernel,
                room: (*room).to_owned(),
                passed: 0,
                failed: Vec::new(),
                broken: false,
                ended: false,
            }),
            Line::End => self.has_come_to_the_end = true,
            Line::Complaint(text) => self.complaints.push(format!("Linux {kernel}: {text}")),
            Line::Verified { program, count } => {
                self.instructions.insert(((*program).to_owned(), kernel), *count);
            }
            line => {
                if let Some(row) = self.rows.last_mut() {
                    row.add(line);
                }
            }
        }
    }

    /// A kernel's run is over, and has taken so long.
    pub(crate) fn ended(&mut self, kernel: &'static str, time: Duration) {
        self.times.push((kernel, time));
        if !self.has_come_to_the_end {
            self.complaints
                .push(format!("Linux {kernel}: did not come to the end of the plan"));
        }
    }

    /// Those of several kernels in one.
    pub(crate) fn of(parts: Vec<Self>) -> Self {
        let mut whole = Self::default();
        for part in parts {
            whole.rows.extend(part.rows);
            whole.instructions.extend(part.instructions);
            whole.times.extend(part.times);
            whole.complaints.extend(part.complaints);
        }
        whole
    }

    pub(crate) fn print(&self) {
        println!("==> kernels");
        println!("{:8} {:10} {:>7} {:>7}", "kernel", "room", "passed", "failed");
        for row in &self.rows {
            let note = if row.is_whole() {
                ""
            } else {
                "  did not end by itself"
            };
            println!(
                "{:8} {:10} {:>7} {:>7}{note}",
                row.kernel,
                row.room,
                row.passed,
                row.failed.len()
            );
        }
        for ((program, kernel), count) in &self.instructions {
            println!("{kernel:8} {program:16} {count:>6} instructions verified");
        }
        for (kernel, time) in &self.times {
            println!("{kernel:8} {} s", time.as_secs());
        }
        for row in &self.rows {
            for test in &row.failed {
                println!("failed on Linux {}: {} {test}", row.kernel, row.room);
            }
        }
        for complaint in &self.complaints {
            println!("{complaint}");
        }
    }

    /// Whether all of it is right. `filter` has to have chosen a test.
    pub(crate) fn judge(&self, filter: Option<&str>) -> Result<()> {
        let failed: usize = self.rows.iter().map(|row| row.failed.len()).sum();
        let broken = self.rows.iter().filter(|row| !row.is_whole()).count();
        if failed + broken + self.complaints.len() > 0 {
            bail!(
                "on other kernels: {failed} tests failed, {broken} rooms did not end, {} complaints of kernels",
                self.complaints.len()
            );
        }
        if self.rows.iter().all(|row| row.passed == 0) {
            bail!(
                "no test of the plan has {} in its name",
                filter.unwrap_or_default()
            );
        }
        Ok(())
    }
}

impl Row {
    fn add(&mut self, line: &Line<'_>) {
        match line {
            Line::Result { passed, failed } => {
                self.passed += passed;
                self.broken |= *failed as usize != self.failed.len();
            }
            Line::Failed(name) => self.failed.push((*name).to_owned()),
            Line::RoomEnd { code, .. } => {
                self.ended = true;
                self.broken |= (*code == 0) != self.failed.is_empty();
            }
            _ => {}
        }
    }

    fn is_whole(&self) -> bool {
        self.ended && !self.broken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix(lines: &[&str]) -> Matrix {
        let mut matrix = Matrix::default();
        for line in lines {
            matrix.add("6.1", &Line::read(line));
        }
        matrix
    }

    #[test]
    fn a_run_without_faults_is_right() {
        let matrix = matrix(&[
            "@@ begin prog",
            "test a::b ... ok",
            "cwy_from_pod      25861 instructions verified, 18410 recorded",
            "test result: ok. 12 passed; 0 failed; 0 ignored; 0 measured; 3 filtered out; finished in 1.0s",
            "@@ room prog 0",
            "@@ end",
        ]);
        assert!(matrix.judge(None).is_ok());
        assert_eq!(matrix.instructions[&("cwy_from_pod".to_owned(), "6.1")], 25861);
        assert_eq!(matrix.rows[0].passed, 12);
    }

    #[test]
    fn a_failure_a_room_that_breaks_off_and_a_complaint_are_wrong() {
        let failed = [
            "@@ begin prog",
            "test a::b ... FAILED",
            "test result: FAILED. 1 passed; 1 failed; 0 ignored;",
            "@@ room prog 101",
        ];
        assert!(matrix(&failed).judge(None).is_err());
        assert!(matrix(&failed).rows[0].is_whole());
        let cut = ["@@ begin prog", "test a::b ... ok"];
        assert!(matrix(&cut).judge(None).is_err());
        let killed = [
            "@@ begin prog",
            "test result: ok. 1 passed; 0 failed;",
            "@@ room prog 137",
        ];
        assert!(matrix(&killed).judge(None).is_err());
        let complaint = [
            "@@ begin prog",
            "test result: ok. 1 passed; 0 failed;",
            "@@ room prog 0",
            "@@ kernel eth0: hw csum failure",
        ];
        assert!(matrix(&complaint).judge(None).is_err());
    }

    #[test]
    fn a_filter_that_chooses_nothing_is_wrong() {
        let nothing = [
            "@@ begin prog",
            "test result: ok. 0 passed; 0 failed;",
            "@@ room prog 0",
        ];
        assert!(matrix(&nothing).judge(Some("x")).is_err());
    }
}
