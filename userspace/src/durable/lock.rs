//! Locks between processes that the kernel frees when their holder dies.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::{
        fd::AsRawFd,
        unix::fs::{FileExt, MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use rustix::{
    fs::{FlockOperation, flock},
    io::{Errno, retry_on_intr},
};

/// Pause between two tries for a [`KeyLock`].
const KEY_POLL: Duration = Duration::from_millis(5);

/// Why a lock was not got.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Somebody else has it.
    #[error(
        "timed out locking {path} after {waited:?}: it is held by {holder}; wait for that process to end, or \
         end it if it hangs"
    )]
    Held {
        /// The lock file.
        path: PathBuf,
        /// Process id and name, as far as they can be told.
        holder: String,
        /// How long was waited.
        waited: Duration,
    },
    /// The lock file cannot be used.
    #[error("cannot lock {path}: {source}; the file must be a regular file that root may write")]
    Io {
        /// The lock file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

/// An exclusive `flock` on a whole file, held until dropped. The file holds the process id of its last holder.
#[derive(Debug)]
pub struct Lock {
    file: File,
}

impl Lock {
    /// Takes the lock at `path`, in the order of arrival, waiting at most `timeout`. Makes the file and its directories.
    pub fn acquire(path: &Path, timeout: Duration) -> Result<Self, LockError> {
        let failed = |source| LockError::Io {
            path: path.to_owned(),
            source,
        };
        let start = Instant::now();
        loop {
            let file = open_lock(path).map_err(failed)?;
            let Some(file) = flock_within(file, timeout.saturating_sub(start.elapsed())).map_err(failed)?
            else {
                let holder = fs::read_to_string(path).unwrap_or_default();
                return Err(LockError::Held {
                    path: path.to_owned(),
                    holder: describe(&holder),
                    waited: timeout,
                });
            };
            // Somebody may have removed the name while we waited: then the lock excludes nobody.
            if is_named(&file, path).map_err(failed)? {
                let lock = Self { file };
                lock.sign().map_err(failed)?;
                return Ok(lock);
            }
        }
    }

    fn sign(&self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file
            .write_all_at(std::process::id().to_string().as_bytes(), 0)
    }
}

/// An exclusive lock on one of many keys that share a file, against other processes only. Held until dropped.
///
/// A POSIX record lock: closing any other descriptor of the same file in this process would free it, so a process
/// opens the file for this purpose alone.
#[derive(Debug)]
pub struct KeyLock {
    _file: File,
}

impl KeyLock {
    /// Takes the lock for `key` in the file at `path`, waiting at most `timeout`.
    pub fn acquire(path: &Path, key: u64, timeout: Duration) -> Result<Self, LockError> {
        let failed = |source| LockError::Io {
            path: path.to_owned(),
            source,
        };
        let start = Instant::now();
        loop {
            let file = open_lock(path).map_err(failed)?;
            let mut record = record(key);
            if record_lock(&file, libc::F_SETLK, &mut record).map_err(failed)? {
                // Somebody may have removed the name: then the lock excludes nobody.
                if is_named(&file, path).map_err(failed)? {
                    return Ok(Self { _file: file });
                }
            } else if start.elapsed() >= timeout {
                record_lock(&file, libc::F_GETLK, &mut record).map_err(failed)?;
                let holder = describe(&record.l_pid.to_string());
                return Err(LockError::Held {
                    path: path.to_owned(),
                    holder,
                    waited: timeout,
                });
            } else {
                thread::sleep(KEY_POLL);
            }
        }
    }
}

/// One byte at a place that depends on the key: two keys that share a place only wait for each other.
fn record(key: u64) -> libc::flock {
    libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: (key >> 2).cast_signed(),
        l_len: 1,
        l_pid: 0,
    }
}

/// Whether the call took effect; false when another process holds the record.
fn record_lock(file: &File, command: libc::c_int, record: &mut libc::flock) -> io::Result<bool> {
    // SAFETY: the descriptor is open for as long as `file` lives, and `record` is a whole flock that the kernel may write.
    if unsafe { libc::fcntl(file.as_raw_fd(), command, record) } == 0 {
        return Ok(true);
    }
    match io::Error::last_os_error() {
        error
            if matches!(
                error.raw_os_error(),
                Some(libc::EAGAIN | libc::EACCES | libc::EINTR)
            ) =>
        {
            Ok(false)
        }
        error => Err(error),
    }
}

/// Opens the lock file, made where it is missing.
pub(super) fn open_lock(path: &Path) -> io::Result<File> {
    super::open(path, lock_options().create(true))
}

/// Opens the lock file that is there.
pub(super) fn open_lock_there(path: &Path) -> io::Result<File> {
    lock_options().open(path)
}

fn lock_options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).truncate(false);
    options.mode(0o644).custom_flags(libc::O_NOFOLLOW);
    options
}

/// The locked file, `None` after `timeout`. The kernel serves waiters of `flock` in order, which polling would not.
fn flock_within(file: File, timeout: Duration) -> io::Result<Option<File>> {
    match retry_on_intr(|| flock(&file, FlockOperation::NonBlockingLockExclusive)) {
        Ok(()) => return Ok(Some(file)),
        Err(Errno::WOULDBLOCK) => {}
        Err(error) => return Err(error.into()),
    }
    let (sender, receiver) = mpsc::channel();
    thread::Builder::new().name("flock".to_owned()).spawn(move || {
        let got = retry_on_intr(|| flock(&file, FlockOperation::LockExclusive)).map(|()| file);
        // With nobody waiting for it the file is dropped here, and the lock with it.
        sender.send(got).ok();
    })?;
    match receiver.recv_timeout(timeout) {
        Ok(got) => Ok(Some(got?)),
        Err(_) => Ok(None),
    }
}

/// `pid 123 (azure-vnet)` from what the lock file says.
fn describe(pid: &str) -> String {
    let Ok(pid) = pid.trim().parse::<u32>() else {
        return "a process that did not write its id".to_owned();
    };
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    match name.trim() {
        "" => format!("pid {pid}"),
        name => format!("pid {pid} ({name})"),
    }
}

/// Whether `path` still is the name of `file`.
pub(super) fn is_named(file: &File, path: &Path) -> io::Result<bool> {
    let open = file.metadata()?;
    match fs::symlink_metadata(path) {
        Ok(named) => Ok((named.dev(), named.ino()) == (open.dev(), open.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_held_lock_names_its_holder_and_a_dropped_one_is_free() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("azure-vnet/azure-vnet.lock");
        let lock = Lock::acquire(&path, Duration::ZERO).unwrap();
        let error = Lock::acquire(&path, Duration::from_millis(30)).unwrap_err();
        assert!(
            error.to_string().contains(&format!("pid {}", std::process::id())),
            "{error}"
        );
        drop(lock);
        // The waiter that gave up must not have kept what it got in the end.
        Lock::acquire(&path, Duration::from_secs(5)).unwrap();
    }

    #[test]
    fn a_lock_excludes_and_passes_on() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        let inside = std::sync::atomic::AtomicU32::new(0);
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..20 {
                        let lock = Lock::acquire(&path, Duration::from_secs(20)).unwrap();
                        assert_eq!(inside.fetch_add(1, std::sync::atomic::Ordering::SeqCst), 0);
                        assert_eq!(inside.fetch_sub(1, std::sync::atomic::Ordering::SeqCst), 1);
                        drop(lock);
                    }
                });
            }
        });
    }

    #[test]
    fn a_removed_lock_file_does_not_let_two_in() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        let first = Lock::acquire(&path, Duration::ZERO).unwrap();
        fs::remove_file(&path).unwrap();
        let second = Lock::acquire(&path, Duration::ZERO).unwrap();
        assert!(is_named(&second.file, &path).unwrap());
        assert!(!is_named(&first.file, &path).unwrap());
    }

    #[test]
    fn keys_exclude_other_processes_and_each_other_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("keys");
        let _mine = KeyLock::acquire(&path, 4, Duration::ZERO).unwrap();
        // Record locks exclude processes, not threads: the test below runs as a child.
        let child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "durable::lock::tests::the_other_process"])
            .env("CAUSEWAY_TEST_KEYS", &path)
            .output()
            .unwrap();
        assert!(
            child.status.success(),
            "{}",
            String::from_utf8_lossy(&child.stdout)
        );
        assert!(String::from_utf8_lossy(&child.stdout).contains("1 passed"));
    }

    #[test]
    #[ignore = "a part of keys_exclude_other_processes_and_each_other_not"]
    fn the_other_process() {
        let Some(path) = std::env::var_os("CAUSEWAY_TEST_KEYS").map(PathBuf::from) else {
            return;
        };
        let held = KeyLock::acquire(&path, 4, Duration::from_millis(20))
            .unwrap_err()
            .to_string();
        assert!(held.contains("is held by pid "), "{held}");
        KeyLock::acquire(&path, 400, Duration::ZERO).unwrap();
    }
}
