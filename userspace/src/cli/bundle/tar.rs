//! A tar archive, as far as one is needed: regular files with short names (ustar, POSIX.1-2024 pax).

use std::io::{self, Write};

/// Size of a header, and what contents are padded to.
const BLOCK: usize = 512;

/// Writes files one after the other.
pub(super) struct Archive<W: Write> {
    out: W,
    /// Seconds since 1970, for every file.
    time: u64,
}

impl<W: Write> Archive<W> {
    pub(super) fn new(out: W, time: u64) -> Self {
        Self { out, time }
    }

    /// Adds a file.
    ///
    /// # Errors
    ///
    /// `InvalidInput` for a name longer than 100 bytes; else the writer's.
    pub(super) fn add(&mut self, name: &str, contents: &[u8]) -> io::Result<()> {
        self.out.write_all(&header(name, contents.len(), self.time)?)?;
        self.out.write_all(contents)?;
        let padding = contents.len().next_multiple_of(BLOCK) - contents.len();
        self.out.write_all(&[0; BLOCK][..padding])
    }

    /// Ends the archive: two blocks of zeros.
    pub(super) fn finish(mut self) -> io::Result<()> {
        self.out.write_all(&[0; 2 * BLOCK])?;
        self.out.flush()
    }
}

fn header(name: &str, size: usize, time: u64) -> io::Result<[u8; BLOCK]> {
    const NAME: usize = 100;
    if name.len() > NAME {
        let text = format!("{name:?} is too long for an archive");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    let mut header = [0; BLOCK];
    let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, name.as_bytes());
    put(100, b"0000600\0");
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    put(124, format!("{size:011o}\0").as_bytes());
    put(136, format!("{time:011o}\0").as_bytes());
    // The sum of the header's bytes, taken with blanks in its own place.
    put(148, b"        ");
    put(156, b"0");
    put(257, b"ustar\x0000");
    put(265, b"root");
    put(297, b"root");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    Ok(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_is_a_number_of_blocks_and_a_long_name_is_refused() {
        let mut bytes = Vec::new();
        let mut archive = Archive::new(&mut bytes, 0);
        archive.add("a", b"").unwrap();
        archive.add("b", &[1; 513]).unwrap();
        assert!(archive.add(&"x".repeat(101), b"").is_err());
        archive.finish().unwrap();
        assert_eq!(bytes.len(), BLOCK * (1 + 1 + 2 + 2));
    }
}
