//! Short RCU grace periods for as long as programs are being put on their hooks or taken off them.
//!
//! To change the programs of a tcx hook, the kernel waits for a grace period with all changes of interfaces locked out
//! (`tcx_entry_sync` under RTNL, Linux 6.18): tens of milliseconds, in which other pods wait as well. Its own rule for
//! waits under that lock is to expedite them (`synchronize_net`); `/sys/kernel/rcu_expedited` makes it do so here.
//!
//! The file is the machine's. Whoever needs it holds a shared `flock` on it, and the last one puts it back. It is set to a
//! number of our own, not zero as any other would do: so nobody takes an administrator's `1` for ours, and what a killed
//! process has left is known by everybody who comes later. Whatever keeps it from being used costs time and nothing else.

use std::{
    fs::{self, File, TryLockError},
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

/// All grace periods are short unless it is 0. Any integer can be written.
const KNOB: &str = "/sys/kernel/rcu_expedited";
/// Not 0: none is, whatever the other file says. Machines for real-time work are set so.
const NEVER: &str = "/sys/kernel/rcu_normal";
/// The value that says the file is in use by us: the bytes `cwy`.
const OURS: i32 = i32::from_be_bytes(*b"\0cwy");

/// Keeps grace periods short until it is dropped.
#[derive(Debug)]
#[must_use = "grace periods are short only while it lives"]
pub struct Expedited(Option<Knob>);

impl Expedited {
    /// Makes grace periods short if that is `wanted` and possible. If it is not wanted, what a killed process has left is
    /// put back all the same.
    pub fn begin(wanted: bool) -> Self {
        if !wanted {
            Self::restore();
            return Self(None);
        }
        let begun = begin(Path::new(KNOB), Path::new(NEVER));
        if let Err(error) = &begun {
            tracing::debug!(%error, file = KNOB, "grace periods are as long as the kernel has them");
        }
        Self(begun.unwrap_or_default())
    }

    /// Puts back what a killed process has left.
    pub fn restore() {
        if let Err(error) = Knob::open(Path::new(KNOB)).and_then(|knob| knob.release()) {
            tracing::debug!(%error, file = KNOB, "cannot see what a killed process may have left");
        }
    }
}

impl Drop for Expedited {
    fn drop(&mut self) {
        if let Some(knob) = &self.0
            && let Err(error) = knob.release()
        {
            tracing::warn!(%error, file = KNOB, "grace periods stay short until the next call puts the file back");
        }
    }
}

/// `None` if grace periods are short already or must not be, or if somebody is putting the file back just now.
fn begin(path: &Path, never: &Path) -> io::Result<Option<Knob>> {
    if fs::read_to_string(never).is_ok_and(|text| text.trim() != "0") {
        return Ok(None);
    }
    let knob = Knob::open(path)?;
    if !is_locked(knob.file.try_lock_shared())? {
        return Ok(None);
    }
    match knob.value()? {
        0 => knob.set(OURS)?,
        OURS => {}
        _ => return Ok(None),
    }
    Ok(Some(knob))
}

/// The kernel's file, open.
#[derive(Debug)]
struct Knob {
    path: PathBuf,
    file: File,
}

impl Knob {
    fn open(path: &Path) -> io::Result<Self> {
        let path = path.to_owned();
        File::open(&path).map(|file| Self { path, file })
    }

    /// Puts the file back if it says that it is ours and nobody else holds a lock: the last one who does will do so.
    fn release(&self) -> io::Result<()> {
        if self.value()? != OURS || !is_locked(self.file.try_lock())? {
            return Ok(());
        }
        // Whoever was the last before may have been quicker.
        if self.value()? == OURS {
            self.set(0)?;
        }
        Ok(())
    }

    fn value(&self) -> io::Result<i32> {
        let mut text = [0; 16];
        let length = self.file.read_at(&mut text, 0)?;
        let number = str::from_utf8(&text[..length]).map(|text| text.trim().parse());
        match number {
            Ok(Ok(number)) => Ok(number),
            _ => Err(io::Error::new(io::ErrorKind::InvalidData, "it holds no number")),
        }
    }

    fn set(&self, value: i32) -> io::Result<()> {
        fs::write(&self.path, value.to_string())
    }
}

/// Nobody is waited for.
fn is_locked(tried: Result<(), TryLockError>) -> io::Result<bool> {
    match tried {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Files of any file system serve: what counts is their content and their lock.
    struct Machine(tempfile::TempDir);

    impl Machine {
        fn new(value: i32) -> Self {
            let machine = Self(tempfile::tempdir().unwrap());
            machine.set("rcu_normal", 0);
            machine.set("rcu_expedited", value);
            machine
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        fn set(&self, name: &str, value: i32) {
            fs::write(self.path(name), format!("{value}\n")).unwrap();
        }

        fn value(&self) -> i32 {
            Knob::open(&self.path("rcu_expedited")).unwrap().value().unwrap()
        }

        fn begin(&self) -> Expedited {
            Expedited(begin(&self.path("rcu_expedited"), &self.path("rcu_normal")).unwrap())
        }
    }

    #[test]
    fn the_last_one_puts_the_file_back() {
        let machine = Machine::new(0);
        let (first, second) = (machine.begin(), machine.begin());
        assert_eq!(machine.value(), OURS);
        drop(first);
        let third = machine.begin();
        drop(second);
        assert_eq!(machine.value(), OURS);
        drop(third);
        assert_eq!(machine.value(), 0);
    }

    #[test]
    fn what_an_administrator_has_set_stays() {
        for value in [1, 2, -1] {
            let machine = Machine::new(value);
            drop(machine.begin());
            assert_eq!(machine.value(), value);
        }
        for meanwhile in [0, 1] {
            let machine = Machine::new(0);
            let held = machine.begin();
            machine.set("rcu_expedited", meanwhile);
            drop(held);
            assert_eq!(machine.value(), meanwhile);
        }
    }

    #[test]
    fn what_a_killed_process_has_left_is_put_back_by_the_next() {
        let machine = Machine::new(OURS);
        drop(machine.begin());
        assert_eq!(machine.value(), 0);
        machine.set("rcu_expedited", OURS);
        let knob = Knob::open(&machine.path("rcu_expedited")).unwrap();
        let held = machine.begin();
        knob.release().unwrap();
        assert_eq!(machine.value(), OURS, "somebody needs it");
        drop(held);
        machine.set("rcu_expedited", OURS);
        knob.release().unwrap();
        assert_eq!(machine.value(), 0);
    }

    #[test]
    fn a_machine_whose_grace_periods_are_never_short_is_left_alone() {
        let machine = Machine::new(0);
        machine.set("rcu_normal", 1);
        let held = machine.begin();
        assert_eq!(machine.value(), 0);
        drop(held);
    }

    #[test]
    fn nobody_waits_for_the_one_who_is_putting_the_file_back() {
        let machine = Machine::new(OURS);
        let ending = Knob::open(&machine.path("rcu_expedited")).unwrap();
        assert!(is_locked(ending.file.try_lock()).unwrap());
        drop(machine.begin());
        assert_eq!(machine.value(), OURS);
    }

    #[test]
    fn without_the_file_nothing_is_done() {
        let machine = Machine::new(0);
        fs::remove_file(machine.path("rcu_expedited")).unwrap();
        begin(&machine.path("rcu_expedited"), &machine.path("rcu_normal")).unwrap_err();
        assert!(!machine.path("rcu_expedited").exists());
    }
}
