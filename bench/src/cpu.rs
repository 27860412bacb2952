//! A CPU for one thread alone: pinned, and before everything that is not real time. What the thread sets off in the
//! kernel (the whole path of a packet that it sends) runs on that CPU too, so time is cost.

use std::{io, mem::zeroed};

use anyhow::{Context, Result};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Runs `f` on the CPU with that number among those the process may use, modulo how many there are. To be called on a
/// thread that ends after it: what is set is not taken back.
pub(crate) fn alone_on<T>(number: usize, f: impl FnOnce() -> Result<T>) -> Result<T> {
    let cpus = allowed()?;
    let mut one = CpuSet::new();
    one.set(cpus[number % cpus.len()]);
    sched_setaffinity(None, &one).context("cannot pin a thread to a CPU")?;
    real_time().context("cannot make a thread real time: the bench needs root")?;
    f()
}

/// The CPUs that this process may use, ascending.
pub(crate) fn allowed() -> Result<Vec<usize>> {
    let set = sched_getaffinity(None)?;
    let cpus: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|&cpu| set.is_set(cpu)).collect();
    anyhow::ensure!(!cpus.is_empty(), "no CPU is allowed");
    Ok(cpus)
}

/// The lowest of the real-time priorities is above every ordinary thread, and leaves the kernel's own threads theirs.
fn real_time() -> io::Result<()> {
    // SAFETY: integers: all zero is a value.
    let mut parameters: libc::sched_param = unsafe { zeroed() };
    parameters.sched_priority = 1;
    // SAFETY: the parameters are live; 0 is the calling thread.
    let done = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameters) };
    if done < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
