//! The machine: qemu without KVM, which needs nothing of its host. Its first serial port is the kernel's console and goes to a
//! file; on the second the plan is carried out, and read here.

use std::{
    fs::File,
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Child, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use super::{
    Kernel,
    fetch::Files,
    matrix::{Line, Matrix},
};
use crate::{
    emulator::{self, Emulator},
    workspace::Workspace,
};

/// One thread for all its processors: with more, qemu 7.2 lets one run into a breakpoint of the kernel's patching of itself that
/// another has taken away, and the kernel stops.
const ACCELERATOR: &str = "tcg,thread=single";
/// All that is emulated but CMPXCHG16B: qemu 7.2 leaves a part of the operand in the flags, of which the allocator of Linux 6.12
/// dies sooner or later.
const CPU: &str = "max,cx16=off";
/// `no_timer_check`: on a busy machine the emulated timer is too late for the kernel, which then takes it for broken and stops.
const BOOT: &str = "console=ttyS0 quiet panic=-1 mitigations=off no_timer_check";
/// MiB. The rooms' nodes live in memory, and each has a flow table of 60 MiB.
const MEMORY: &str = "4096";
/// A guest that says nothing for so long hangs: the slowest test is done sooner.
const SILENCE: Duration = Duration::from_mins(15);

/// Boots and carries out the plan. What came of it.
pub(crate) fn run(workspace: &Workspace, kernel: &Kernel, files: &Files, image: &Path) -> Result<Matrix> {
    let emulator = Emulator::find(workspace).with_context(|| {
        format!(
            "{} is not installed (Debian's package {})",
            emulator::PROGRAM,
            emulator::PACKAGE
        )
    })?;
    let log = |name: &str| {
        workspace
            .root
            .join(format!("target/kernels/{}.{name}", kernel.name))
    };
    let begun = Instant::now();
    let mut command = emulator.command();
    command
        .args(["-accel", ACCELERATOR, "-cpu", CPU, "-smp", "2", "-m", MEMORY])
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
        .arg("-kernel")
        .arg(&files.image)
        .arg("-initrd")
        .arg(image)
        .args(["-append", BOOT])
        .arg("-serial")
        .arg(format!("file:{}", log("console").display()))
        .args(["-serial", "stdio"]);
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start qemu")?;
    let mut guest = Guest(child);
    let mut copy =
        File::create(log("log")).with_context(|| format!("cannot write {}", log("log").display()))?;
    let lines = guest.lines()?;
    let mut matrix = Matrix::default();
    loop {
        let line = match lines.recv_timeout(SILENCE) {
            Ok(line) => line,
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                println!(
                    "{:5}| nothing said for {} s: stopped",
                    kernel.name,
                    SILENCE.as_secs()
                );
                break;
            }
        };
        writeln!(copy, "{line}").context("cannot write the log")?;
        let read = Line::read(&line);
        matrix.add(kernel.name, &read);
        let is_dull = matches!(read, Line::Passed(_)) || line.is_empty();
        if !is_dull {
            println!("{:5}| {line}", kernel.name);
        }
    }
    drop(guest);
    matrix.ended(kernel.name, begun.elapsed());
    println!(
        "{:5}| all of it: {}; the console: {}",
        kernel.name,
        log("log").display(),
        log("console").display()
    );
    Ok(matrix)
}

/// A process that ends with this value.
struct Guest(Child);

impl Guest {
    /// Its output, line by line, by a thread that ends with it.
    fn lines(&mut self) -> Result<mpsc::Receiver<String>> {
        let output = self.0.stdout.take().context("qemu has no output")?;
        let (sender, receiver) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).trim_end_matches('\r').to_owned();
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(receiver)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}
