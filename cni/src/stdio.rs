//! Standard output, on which a runtime waits for exactly one JSON object.

use std::{
    io::{self, Write},
    sync::atomic::{AtomicBool, Ordering},
};

use serde_json::Value;

/// Prints the object. Fails when nobody can get it: then the call has failed.
pub(crate) fn print(answer: &Value) -> io::Result<()> {
    if CLOSED.load(Ordering::Relaxed) {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    let mut text = answer.to_string();
    text.push('\n');
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

/// Whether the process was started with standard output closed.
static CLOSED: AtomicBool = AtomicBool::new(false);

/// Run by the loader before Rust's start-up, which opens `/dev/null` in the place of closed standard streams: after
/// that, an answer to nobody would look like a success.
// SAFETY: the section holds pointers to functions without a result, and this one needs nothing that is initialised.
#[unsafe(link_section = ".init_array")]
#[used]
static LOOK: extern "C" fn() = look;

extern "C" fn look() {
    // SAFETY: asks for the flags of a descriptor number; any number may be asked for.
    let flags = unsafe { libc::fcntl(libc::STDOUT_FILENO, libc::F_GETFD) };
    CLOSED.store(flags < 0, Ordering::Relaxed);
}
