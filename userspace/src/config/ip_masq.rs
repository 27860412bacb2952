//! The files of ip-masq-agent, as azure-ip-masq-agent-v2 reads them: all whose names begin with `ip-masq`, joined. Lists
//! are united and switches are on if any file says so. A file without a list excludes nothing.

use std::{
    fmt, fs,
    io::{self, ErrorKind},
    net::{Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, Visitor},
};

use super::{ConfigError, document, range::Cidr};
use crate::durable;

const PREFIX: &str = "ip-masq";
/// What a volume of Kubernetes swaps to exchange all its files at once.
const DATA: &str = "..data";
/// RFC 3927. Excluded unless a file asks for its masquerading.
const LINK_LOCAL: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(169, 254, 0, 0), 16);
/// RFC 4291. As [`LINK_LOCAL`], with a switch of its own.
const LINK_LOCAL_V6: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10);

/// What the files exclude, each range with its file.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct List {
    pub(super) ranges: Vec<(IpNet, String)>,
}

/// `None` without a file.
pub(super) fn load(directory: &Path) -> Result<Option<List>, ConfigError> {
    let failed = |error: io::Error| ConfigError::of(directory, error);
    // A swap between two files would join a part of the old list with a part of the new one.
    loop {
        let before = version(directory);
        let files = read(directory).map_err(failed)?;
        if version(directory) == before {
            return join(&files);
        }
    }
}

fn version(directory: &Path) -> Option<PathBuf> {
    fs::read_link(directory.join(DATA)).ok()
}

fn read(directory: &Path) -> io::Result<Vec<(PathBuf, Vec<u8>)>> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut files = Vec::new();
    for entry in entries {
        let entry = entry?;
        if !entry.file_name().to_string_lossy().starts_with(PREFIX) || entry.path().is_dir() {
            continue;
        }
        match durable::read_configuration(&entry.path()) {
            Ok(bytes) => files.push((entry.path(), bytes)),
            // Gone since it was listed.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    files.sort();
    Ok(files)
}

fn join(files: &[(PathBuf, Vec<u8>)]) -> Result<Option<List>, ConfigError> {
    let mut list = List { ranges: Vec::new() };
    let (mut masquerades_link_local, mut masquerades_link_local_v6) = (false, false);
    let mut faults = ConfigError::default();
    for (path, bytes) in files {
        match document::parse::<File>(path, bytes) {
            Ok(file) => {
                masquerades_link_local |= file.masq_link_local;
                masquerades_link_local_v6 |= file.masq_link_local_ipv6;
                let ranges = file.non_masquerade_cidrs.into_iter();
                let source = path.display().to_string();
                list.ranges
                    .extend(ranges.map(|Cidr(range)| (range, source.clone())));
            }
            Err(error) => faults.0.extend(error.0),
        }
    }
    if !faults.0.is_empty() {
        return Err(faults);
    }
    let Some((first, _)) = files.first() else {
        return Ok(None);
    };
    if !masquerades_link_local {
        let source = format!("{} (masqLinkLocal is not set)", first.display());
        list.ranges.push((LINK_LOCAL.into(), source));
    }
    if !masquerades_link_local_v6 {
        let source = format!("{} (masqLinkLocalIPv6 is not set)", first.display());
        list.ranges.push((LINK_LOCAL_V6.into(), source));
    }
    Ok(Some(list))
}

/// What is read of a file. Its other keys are another agent's.
#[derive(Debug, Default)]
struct File {
    non_masquerade_cidrs: Vec<Cidr>,
    masq_link_local: bool,
    masq_link_local_ipv6: bool,
}

impl<'de> Deserialize<'de> for File {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(FileVisitor)
    }
}

struct FileVisitor;

impl<'de> Visitor<'de> for FileVisitor {
    type Value = File;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a mapping with nonMasqueradeCIDRs")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<File, M::Error> {
        let mut file = File::default();
        while let Some(key) = map.next_key::<String>()? {
            match key.to_ascii_lowercase().as_str() {
                "nonmasqueradecidrs" => {
                    let ranges: Option<Vec<Cidr>> = map.next_value()?;
                    file.non_masquerade_cidrs.extend(ranges.unwrap_or_default());
                }
                "masqlinklocal" => {
                    let switch: Option<bool> = map.next_value()?;
                    file.masq_link_local |= switch.unwrap_or_default();
                }
                "masqlinklocalipv6" => {
                    let switch: Option<bool> = map.next_value()?;
                    file.masq_link_local_ipv6 |= switch.unwrap_or_default();
                }
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(file)
    }
}
