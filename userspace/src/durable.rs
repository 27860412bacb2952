//! Files that survive a crash at any instruction, and locks that a dead holder does not keep.
//!
//! Owns how state reaches the disk and who may change it meanwhile. Knows nothing of the content, and refuses to
//! follow a symbolic link in the last component of a path.
//!
//! [`Lock`] is `flock(2)`, as the incumbent takes it on the same files, so the two exclude each other. The kernel
//! frees either kind of lock when its holder dies.

mod lock;

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt as _, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{FlockOperation, flock},
    io::{Errno, retry_on_intr},
};

pub use self::lock::{KeyLock, Lock, LockError};
use self::lock::{is_named, open_lock, open_lock_there};

/// A state file larger than this is not ours. Bytes.
const READ_LIMIT: u64 = 64 << 20;

/// Replaces the file at `path` by `bytes`, with mode 0644 and missing directories made.
///
/// At every moment, also across a crash or a power cut, the path holds the old content or the new one. Concurrent
/// writers of one path wait for each other.
///
/// # Errors
///
/// The old content stays. No temporary file stays, unless the process is killed: the next write takes that over, and
/// [`tidy`] removes it.
pub fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = temporary(path)?;
    let file = claim(&temporary)?;
    if let Err(error) = fill(&file, bytes).and_then(|()| fs::rename(&temporary, path)) {
        fs::remove_file(&temporary).ok();
        return Err(error);
    }
    sync_directory(parent(path)?)
}

/// Opens a file with `options`, which make it if it is missing, and makes the directories that it lacks.
pub fn open(path: &Path, options: &OpenOptions) -> io::Result<File> {
    match options.open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            make_directories(parent(path)?)?;
            options.open(path)
        }
        opened => opened,
    }
}

/// Removes what a killed writer of the file at `path` has left beside it. Of a writer at work nothing is taken.
pub fn tidy(path: &Path) -> io::Result<()> {
    let temporary = temporary(path)?;
    let file = match open_lock_there(&temporary) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        opened => opened?,
    };
    match retry_on_intr(|| flock(&file, FlockOperation::NonBlockingLockExclusive)) {
        Err(Errno::WOULDBLOCK) => return Ok(()),
        locked => locked?,
    }
    if is_named(&file, &temporary)? {
        fs::remove_file(&temporary)?;
    }
    Ok(())
}

/// The content of the regular file at `path`, `None` when there is no such file.
pub fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match open_regular(path)? {
        Some(file) => content(&file, &file.metadata()?).map(Some),
        None => Ok(None),
    }
}

fn open_regular(path: &Path) -> io::Result<Option<File>> {
    // O_NONBLOCK: a FIFO in this place must not hang the caller.
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path);
    match opened {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Which content a file had: it is only ever replaced as a whole ([`write()`]), or by others written in place.
#[derive(Debug)]
pub struct Version {
    /// As long as it is open, no other file gets its number.
    _file: File,
    seen: fs::Metadata,
}

/// As [`read`], and what tells whether the content is still this one.
pub fn read_version(path: &Path) -> io::Result<Option<(Vec<u8>, Version)>> {
    let Some(file) = open_regular(path)? else {
        return Ok(None);
    };
    let seen = file.metadata()?;
    let bytes = content(&file, &seen)?;
    Ok(Some((bytes, Version { _file: file, seen })))
}

impl Version {
    /// Whether the file at `path` still has this content.
    pub fn is_current(&self, path: &Path) -> io::Result<bool> {
        let identity = |of: &fs::Metadata| {
            let written = (of.mtime(), of.mtime_nsec(), of.ctime(), of.ctime_nsec());
            ((of.dev(), of.ino(), of.len()), written)
        };
        match fs::symlink_metadata(path) {
            Ok(now) => Ok(identity(&now) == identity(&self.seen)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// As [`read`], but links are followed and the file must be there: for configuration, which others place.
pub fn read_configuration(path: &Path) -> io::Result<Vec<u8>> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    content(&file, &file.metadata()?)
}

/// Moves a damaged file out of the way, to a name beside it that does not exist yet, and returns that name.
pub fn quarantine(path: &Path) -> io::Result<PathBuf> {
    for n in 0..u32::MAX {
        let aside = sibling(path, "", &format!(".corrupt-{n}"))?;
        // A hard link, unlike a rename, never replaces an earlier quarantined file.
        match fs::hard_link(path, &aside) {
            Ok(()) => {
                fs::remove_file(path)?;
                sync_directory(parent(path)?)?;
                return Ok(aside);
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::other("every name for a damaged file is taken"))
}

/// Opens the temporary file and locks it, so that a second writer waits and a dead one's leavings are taken over.
fn claim(temporary: &Path) -> io::Result<File> {
    loop {
        let file = open_lock(temporary)?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "the temporary file is not a regular file",
            ));
        }
        retry_on_intr(|| flock(&file, FlockOperation::LockExclusive))?;
        if is_named(&file, temporary)? {
            return Ok(file);
        }
    }
}

fn fill(mut file: &File, bytes: &[u8]) -> io::Result<()> {
    file.set_len(0)?;
    file.set_permissions(fs::Permissions::from_mode(0o644))?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// The whole of an open file, with what the system says of it.
fn content(file: &File, metadata: &fs::Metadata) -> io::Result<Vec<u8>> {
    if !metadata.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    if metadata.len() > READ_LIMIT {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "larger than 64 MiB"));
    }
    // Room for all of it, and for the read that finds its end: two system calls.
    let mut bytes = vec![0; usize::try_from(metadata.len()).unwrap_or(0) + 1];
    let mut filled = 0;
    while filled < bytes.len() {
        match (&*file).read(&mut bytes[filled..]) {
            Ok(0) => {
                bytes.truncate(filled);
                return Ok(bytes);
            }
            Ok(length) => filled += length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    // It has grown meanwhile.
    file.take(READ_LIMIT).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn sync_directory(directory: &Path) -> io::Result<()> {
    match File::open(directory)?.sync_all() {
        // Some file systems do not sync directories and say so thus.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
        result => result,
    }
}

fn make_directories(directory: &Path) -> io::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(directory)
}

fn parent(path: &Path) -> io::Result<&Path> {
    match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Ok(Path::new(".")),
        Some(parent) => Ok(parent),
        None => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "the path names no file",
        )),
    }
}

fn temporary(path: &Path) -> io::Result<PathBuf> {
    sibling(path, ".", ".causeway-tmp")
}

fn sibling(path: &Path, before: &str, after: &str) -> io::Result<PathBuf> {
    let name = path
        .file_name()
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the path names no file"))?;
    let mut sibling = std::ffi::OsString::from(before);
    sibling.push(name);
    sibling.push(after);
    Ok(path.with_file_name(sibling))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_replaces_the_content_and_leaves_no_other_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("deep/er/state.json");
        write(&path, b"a long first content").unwrap();
        write(&path, b"second").unwrap();
        assert_eq!(read(&path).unwrap().unwrap(), b"second");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o644);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn what_a_killed_writer_left_is_taken_over() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.json");
        fs::write(
            directory.path().join(".state.json.causeway-tmp"),
            vec![b'x'; 4096],
        )
        .unwrap();
        write(&path, b"whole").unwrap();
        assert_eq!(read(&path).unwrap().unwrap(), b"whole");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn tidying_takes_what_a_killed_writer_left_and_nothing_of_a_live_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.json");
        write(&path, b"whole").unwrap();
        let left = directory.path().join(".state.json.causeway-tmp");
        fs::write(&left, "half").unwrap();
        let writer = claim(&left).unwrap();
        tidy(&path).unwrap();
        assert!(left.exists());
        drop(writer);
        for _ in 0..2 {
            tidy(&path).unwrap();
            assert!(!left.exists());
        }
        assert_eq!(read(&path).unwrap().unwrap(), b"whole");
    }

    #[test]
    fn readers_beside_many_writers_see_whole_contents_only() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.json");
        write(&path, &[b'a'; 5000]).unwrap();
        std::thread::scope(|scope| {
            for letter in *b"bcde" {
                let path = &path;
                scope.spawn(move || (0..25).for_each(|_| write(path, &[letter; 5000]).unwrap()));
            }
            for _ in 0..200 {
                let bytes = read(&path).unwrap().unwrap();
                assert_eq!(bytes.len(), 5000);
                assert!(bytes.iter().all(|b| *b == bytes[0]), "two writers in one file");
            }
        });
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_failed_write_keeps_the_old_content() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.json");
        fs::create_dir(&path).unwrap();
        write(&path, b"never").unwrap_err();
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn links_and_pipes_are_not_state() {
        let directory = tempfile::tempdir().unwrap();
        let (target, link) = (directory.path().join("target"), directory.path().join("link"));
        fs::write(&target, b"secret").unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();
        assert_eq!(read(&link).unwrap_err().raw_os_error(), Some(libc::ELOOP));
        write(&link, b"new").unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"secret");
        assert_eq!(fs::read(&link).unwrap(), b"new");

        let pipe = directory.path().join("pipe");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &pipe,
            rustix::fs::FileType::Fifo,
            0o600.into(),
            0,
        )
        .unwrap();
        assert_eq!(read(&pipe).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        assert!(read(&directory.path().join("none")).unwrap().is_none());
    }

    #[test]
    fn a_content_is_current_until_the_file_is_replaced_or_written() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.json");
        assert!(read_version(&path).unwrap().is_none());
        write(&path, b"one").unwrap();
        let (bytes, version) = read_version(&path).unwrap().unwrap();
        assert_eq!(bytes, b"one");
        assert!(version.is_current(&path).unwrap());
        write(&path, b"one").unwrap();
        assert!(!version.is_current(&path).unwrap());
        let (_, version) = read_version(&path).unwrap().unwrap();
        fs::write(&path, b"two").unwrap();
        assert!(!version.is_current(&path).unwrap());
        let (_, version) = read_version(&path).unwrap().unwrap();
        fs::remove_file(&path).unwrap();
        assert!(!version.is_current(&path).unwrap());
    }

    #[test]
    fn quarantine_keeps_every_damaged_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.json");
        for content in ["one", "two"] {
            fs::write(&path, content).unwrap();
            let aside = quarantine(&path).unwrap();
            assert_eq!(fs::read_to_string(aside).unwrap(), content);
            assert!(!path.exists());
        }
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2);
    }
}
