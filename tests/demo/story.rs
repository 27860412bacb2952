//! What the demo says, and whether all of it came true.

use std::{process::ExitCode, time::Instant};

use anyhow::{Error, Result};
use causeway_tests::walk::Talk;

/// The telling of one demo.
pub(crate) struct Story {
    began: Instant,
    scenes: u32,
    checks: u32,
    failures: Vec<String>,
}

impl Story {
    /// Says what will be shown.
    pub(crate) fn begin() -> Self {
        println!("Causeway: the kernel decides a flow's first packet, eBPF carries the rest.");
        Self {
            began: Instant::now(),
            scenes: 0,
            checks: 0,
            failures: Vec::new(),
        }
    }

    /// Opens a scene.
    pub(crate) fn scene(&mut self, title: &str) {
        self.scenes += 1;
        println!("\n{}. {title}", self.scenes);
    }

    /// Tells something that is not checked.
    #[expect(clippy::unused_self, reason = "a story is told by its teller")]
    pub(crate) fn tell(&self, text: &str) {
        for line in text.lines() {
            println!("   {line}");
        }
    }

    /// Tells something and whether it is so.
    pub(crate) fn check(&mut self, holds: bool, text: &str) {
        self.checks += 1;
        println!("   {} {text}", if holds { '✓' } else { '✗' });
        if !holds {
            self.failures.push(format!("scene {}: {text}", self.scenes));
        }
    }

    /// Tells how a conversation went, and checks it with `expected`.
    pub(crate) fn talk(&mut self, what: &str, talk: Result<Talk>, expected: impl Fn(&Talk) -> Result<()>) {
        match talk {
            Ok(talk) => {
                let way = if talk.was_carried() {
                    "carried"
                } else {
                    "kernel flow"
                };
                let text = format!(
                    "{what:<28} seen as {:<21} {:>2} packets through the kernel: {way}",
                    talk.seen.to_string(),
                    talk.forwarded
                );
                let judged = expected(&talk);
                self.check(judged.is_ok(), &text);
                if let Err(error) = judged {
                    self.tell(&format!("    {error:#}"));
                }
            }
            Err(error) => self.check(false, &format!("{what:<28} {error:#}")),
        }
    }

    /// The last line, and the exit status.
    pub(crate) fn end(self) -> ExitCode {
        let seconds = self.began.elapsed().as_secs_f64();
        if self.failures.is_empty() {
            println!(
                "\n✓ {} scenes, {} checks, {seconds:.1} s. Nothing is left behind.",
                self.scenes, self.checks
            );
            return ExitCode::SUCCESS;
        }
        println!(
            "\n✗ {} of {} checks failed, {seconds:.1} s:",
            self.failures.len(),
            self.checks
        );
        for failure in &self.failures {
            println!("   {failure}");
        }
        ExitCode::FAILURE
    }

    /// The last line when a scene could not be played.
    pub(crate) fn broke(mut self, error: &Error) -> ExitCode {
        self.check(false, &format!("the demo cannot go on: {error:#}"));
        self.end()
    }
}
