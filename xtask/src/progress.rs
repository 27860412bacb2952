//! One line a step: what it is, what is being done, how long it took.

use std::{
    fs::{self, OpenOptions},
    io::{Stdout, Write as _, stdout},
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

/// A dot this often while a program runs.
const TICK: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_millis(50);
/// Last lines of a failed program's output that are shown.
const TAIL: usize = 20;

/// The line of a step that is under way. A line is never left open: every path ends it.
pub(crate) struct Step<'a> {
    started: Instant,
    log: &'a Path,
    terminal: Stdout,
    open: bool,
}

impl<'a> Step<'a> {
    /// Opens the line. What programs print goes to the file `log`.
    pub(crate) fn start(number: usize, of: usize, name: &str, log: &'a Path) -> Self {
        let step = Self {
            started: Instant::now(),
            log,
            terminal: stdout(),
            open: true,
        };
        step.print(&format!("[{number}/{of}] {name}: "));
        step
    }

    /// Adds to the open line.
    pub(crate) fn say(&self, text: &str) {
        self.print(&format!("{text} "));
    }

    /// Ends the line: nothing had to be done. `what` is what is there.
    pub(crate) fn already(mut self, what: &str) {
        println!("{what}, already there");
        self.open = false;
    }

    /// Ends the line of a step that did something.
    pub(crate) fn done(mut self, what: &str) {
        println!(
            "{what}, done in {} s",
            self.started.elapsed().as_secs_f32().ceil()
        );
        self.open = false;
    }

    /// Ends the line of a step that is left out.
    pub(crate) fn skipped(mut self, why: &str) {
        println!("left out: {why}");
        self.open = false;
    }

    /// Runs a program with its output in the log; the error has the end of that output.
    pub(crate) fn run(&self, command: &mut Command) -> Result<()> {
        let name = command.get_program().display().to_string();
        if let Some(directory) = self.log.parent() {
            fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
        }
        let log = OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(true)
            .open(self.log)
            .with_context(|| format!("cannot write {}", self.log.display()))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let mut child = command.spawn().with_context(|| format!("cannot start {name}"))?;
        let mut dotted = false;
        let mut next_dot = Instant::now() + TICK;
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            if Instant::now() >= next_dot {
                self.print(".");
                dotted = true;
                next_dot += TICK;
            }
            thread::sleep(POLL);
        };
        if dotted {
            self.print(" ");
        }
        if status.success() {
            return Ok(());
        }
        let output = String::from_utf8_lossy(&fs::read(self.log)?).into_owned();
        let lines: Vec<&str> = output.lines().collect();
        let tail = lines[lines.len().saturating_sub(TAIL)..].join("\n  ");
        bail!(
            "{name} failed ({status}), all of its output is in {}:\n  {tail}",
            self.log.display()
        )
    }

    fn print(&self, text: &str) {
        let mut terminal = self.terminal.lock();
        // A terminal that has gone away must not stop the work.
        terminal
            .write_all(text.as_bytes())
            .and_then(|()| terminal.flush())
            .ok();
    }
}

impl Drop for Step<'_> {
    fn drop(&mut self) {
        if self.open {
            println!("failed");
        }
    }
}

/// A heading above output that is not ours.
pub(crate) fn heading(text: &str) {
    println!("==> {text}");
}
