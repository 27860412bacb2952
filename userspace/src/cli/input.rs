//! Files that others wrote, read as a whole: regular ones, pipes (`<(az aks show …)`), standard input.

use std::{
    fs::File,
    io::{self, Read as _},
    path::Path,
};

/// The content of the file at `path`, `-` for standard input, of at most `largest` bytes; or what is wrong.
pub(super) fn read(path: &Path, largest: u64) -> Result<Vec<u8>, String> {
    let content = if path == Path::new("-") {
        take(io::stdin().lock(), largest)
    } else {
        File::open(path).and_then(|file| take(file, largest))
    };
    match content {
        Ok(bytes) if bytes.len() as u64 > largest => Err(format!("is larger than {} MiB", largest >> 20)),
        content => content.map_err(|error| error.to_string()),
    }
}

/// One byte more than that tells that there is more.
fn take(file: impl io::Read, largest: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(largest + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}
