//! A cpio archive as the kernel unpacks it into its first file system (`newc`, the kernel's
//! `Documentation/driver-api/early-userspace/buffer-format.rst`).

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{BufWriter, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const LINK: u32 = 0o120_000;

/// An archive that is being written. Each path is in it once; the first one counts.
pub(crate) struct Archive {
    out: BufWriter<File>,
    path: PathBuf,
    written: usize,
    known: BTreeSet<PathBuf>,
}

impl Archive {
    pub(crate) fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self {
            out: BufWriter::new(file),
            path: path.to_owned(),
            written: 0,
            known: BTreeSet::new(),
        })
    }

    /// An empty directory.
    pub(crate) fn directory(&mut self, at: &Path) -> Result<()> {
        if self.begin(at)? {
            self.entry(at, DIRECTORY | 0o755, &[])?;
        }
        Ok(())
    }

    /// A file with these bytes.
    pub(crate) fn file(&mut self, at: &Path, mode: u32, bytes: &[u8]) -> Result<()> {
        if self.begin(at)? {
            self.entry(at, REGULAR | mode & 0o7777, bytes)?;
        }
        Ok(())
    }

    /// A link to `target`, as it stands.
    pub(crate) fn link(&mut self, at: &Path, target: &Path) -> Result<()> {
        if self.begin(at)? {
            self.entry(at, LINK | 0o777, target.as_os_str().as_encoded_bytes())?;
        }
        Ok(())
    }

    /// The file `from` of this machine; where it is a link, the link and what it leads to.
    pub(crate) fn copy(&mut self, at: &Path, from: &Path) -> Result<()> {
        let meta = fs::symlink_metadata(from).with_context(|| format!("cannot read {}", from.display()))?;
        if meta.is_symlink() {
            let target = fs::read_link(from)?;
            self.link(at, &target)?;
            let place = |link: &Path| link.parent().unwrap_or(Path::new("/")).join(&target);
            return self.copy(&normal(&place(at)), &place(from));
        }
        let bytes = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
        self.file(at, meta.permissions().mode(), &bytes)
    }

    /// A directory of this machine with all that is in it, but what `skips` names by its path below.
    pub(crate) fn copy_tree(&mut self, at: &Path, from: &Path, skips: &[&str]) -> Result<()> {
        self.directory(at)?;
        let entries = fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))?;
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name();
            if skips.iter().any(|skip| name == *skip) {
                continue;
            }
            if entry.file_type()?.is_dir() {
                self.copy_tree(&at.join(&name), &entry.path(), &[])?;
            } else if entry.path().exists() {
                self.copy(&at.join(&name), &entry.path())?;
            }
        }
        Ok(())
    }

    /// Ends the archive.
    pub(crate) fn finish(mut self) -> Result<()> {
        self.entry(Path::new("/TRAILER!!!"), 0, &[])?;
        self.out
            .flush()
            .with_context(|| format!("cannot write {}", self.path.display()))
    }

    /// Makes the directories on the way; `false` when the path is in the archive.
    fn begin(&mut self, at: &Path) -> Result<bool> {
        if !self.known.insert(at.to_owned()) {
            return Ok(false);
        }
        if let Some(parent) = at.parent()
            && parent != Path::new("/")
            && !self.known.contains(parent)
        {
            self.directory(parent)?;
        }
        Ok(true)
    }

    fn entry(&mut self, at: &Path, mode: u32, bytes: &[u8]) -> Result<()> {
        let name = at.strip_prefix("/").unwrap_or(at).as_os_str().as_encoded_bytes();
        let links = 1 + u32::from(mode & DIRECTORY != 0);
        let size = u32::try_from(bytes.len()).with_context(|| format!("{} is too large", at.display()))?;
        let name_size = name.len() as u32 + 1;
        // Inode, mode, owner, group, links, time, size, device and device of a special file, length of the name, checksum.
        let fields = [
            self.known.len() as u32,
            mode,
            0,
            0,
            links,
            0,
            size,
            0,
            0,
            0,
            0,
            name_size,
            0,
        ];
        let mut header = b"070701".to_vec();
        for field in fields {
            write!(header, "{field:08x}")?;
        }
        header.extend_from_slice(name);
        header.push(0);
        self.put(&header)?;
        self.put(bytes)
    }

    /// Writes, and fills up to a word.
    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        let fill = bytes.len().next_multiple_of(4) - bytes.len();
        let written = self
            .out
            .write_all(bytes)
            .and_then(|()| self.out.write_all(&[0; 3][..fill]));
        self.written += bytes.len() + fill;
        written.with_context(|| format!("cannot write {}", self.path.display()))
    }
}

/// The path without `..` and `.`: those of libraries' links lead through directories, not links.
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for part in path.components() {
        match part {
            std::path::Component::ParentDir => {
                normal.pop();
            }
            std::path::Component::CurDir => {}
            part => normal.push(part),
        }
    }
    normal
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn busybox_unpacks_what_was_put_in() {
        let base = std::env::temp_dir().join(format!("causeway-archive-{}", std::process::id()));
        fs::create_dir_all(&base).unwrap();
        let path = base.join("archive.cpio");
        let mut archive = Archive::create(&path).unwrap();
        archive.file(Path::new("/a/b/odd"), 0o755, b"12345").unwrap();
        archive.file(Path::new("/a/b/odd"), 0o644, b"late").unwrap();
        archive.link(Path::new("/a/way"), Path::new("b/odd")).unwrap();
        archive.directory(Path::new("/empty")).unwrap();
        archive.finish().unwrap();
        let into = base.join("into");
        fs::create_dir_all(&into).unwrap();
        let unpacked = Command::new("busybox")
            .args(["cpio", "-i", "-d"])
            .current_dir(&into)
            .stdin(File::open(&path).unwrap())
            .stderr(Stdio::null())
            .status();
        assert!(unpacked.unwrap().success());
        assert_eq!(fs::read(into.join("a/way")).unwrap(), b"12345");
        let mode = fs::metadata(into.join("a/b/odd")).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o755);
        assert!(into.join("empty").is_dir());
        fs::remove_dir_all(base).unwrap();
    }

    #[test]
    fn a_link_leads_where_it_leads() {
        assert_eq!(normal(Path::new("/usr/sbin/../lib/./x")), Path::new("/usr/lib/x"));
    }
}
