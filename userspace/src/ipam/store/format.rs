//! What stands in the file around the pools.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{boot, go_json::null_default, ipam::pool::Space};

/// The only address space there is.
pub(super) const LOCAL: &str = "local";

#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct File {
    #[serde(default, rename = "IPAM", deserialize_with = "null_default")]
    pub(super) ipam: Manager,
    #[serde(flatten)]
    extra: Map<String, Value>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Manager {
    #[serde(default)]
    pub(super) version: String,
    #[serde(default)]
    pub(super) time_stamp: String,
    /// The boot in which the leases were given, Causeway's own.
    #[serde(default, rename = "BootID", skip_serializing_if = "String::is_empty")]
    pub(super) boot: String,
    #[serde(default, deserialize_with = "null_default")]
    address_spaces: BTreeMap<String, Space>,
    #[serde(flatten)]
    extra: Map<String, Value>,
}

impl File {
    /// `None` when there is nothing in it.
    pub(super) fn parse(bytes: &[u8]) -> serde_json::Result<Option<Self>> {
        if bytes.trim_ascii().is_empty() {
            return Ok(None);
        }
        serde_json::from_slice(bytes).map(Some)
    }
}

/// Whether two files say the same but for who wrote them when. A whole node's leases are compared faster as text than as what
/// they mean; files that mean the same and are written another way pass for different.
pub(super) fn is_same(before: &[u8], after: &[u8]) -> bool {
    match (from_spaces(before), from_spaces(after)) {
        (Some(before), Some(after)) => before == after,
        _ => false,
    }
}

/// All that follows on version, time and boot.
fn from_spaces(file: &[u8]) -> Option<&[u8]> {
    const SPACES: &[u8] = b"\"AddressSpaces\"";
    let at = file.windows(SPACES.len()).position(|window| window == SPACES)?;
    file.get(at..)
}

impl Manager {
    pub(super) fn local(&mut self) -> &mut Space {
        self.address_spaces.entry(LOCAL.to_owned()).or_default()
    }

    /// No pod outlives a boot, nor does its lease. What was released when is still known.
    pub(super) fn end_earlier_boot(&mut self) {
        if !boot::is_over(&self.boot, &self.time_stamp) {
            return;
        }
        let freed = self.local().release_all();
        if freed > 0 {
            tracing::info!(freed, "leases of an earlier boot have ended");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_wrote_it_when_is_no_difference() {
        let file = |head: &str, spaces: &str| format!("{{ {head}\"AddressSpaces\": {spaces} }}").into_bytes();
        let one = file("\"Version\": \"1\", ", "{}");
        assert!(is_same(
            &one,
            &file("\"Version\": \"2\", \"TimeStamp\": \"now\", ", "{}")
        ));
        assert!(!is_same(&one, &file("\"Version\": \"1\", ", "{ }")));
        assert!(!is_same(b"{}", b"{}"), "where it cannot be told, it is written");
    }
}
