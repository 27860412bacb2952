//! Pools and addresses as they stand in the file.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::go_json::{ip_net_field, null_default, sorted_entries};

/// The pools of one address space (`local`), by the text of their subnet.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Space {
    /// `local`.
    #[serde(default)]
    pub id: String,
    /// 0, the incumbent's `LocalScope`.
    #[serde(default)]
    pub scope: i64,
    /// The pools.
    #[serde(default, deserialize_with = "null_default")]
    pub pools: BTreeMap<String, Pool>,
    /// Keys that others wrote.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// The addresses of a subnet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Pool {
    /// The subnet's text.
    #[serde(default)]
    pub id: String,
    /// The node's interface that carries the subnet.
    #[serde(default)]
    pub if_name: String,
    /// The subnet.
    #[serde(with = "ip_net_field")]
    pub subnet: IpNet,
    /// The gateway's text, for readers of the file.
    #[serde(default)]
    pub gateway: String,
    /// The addresses by their text.
    #[serde(default, deserialize_with = "sorted_entries")]
    pub addresses: BTreeMap<String, Address>,
    /// For readers of the file.
    #[serde(default, rename = "IsIPv6")]
    pub is_ipv6: bool,
    /// A higher one is taken first.
    #[serde(default)]
    pub priority: i64,
    /// For the incumbent: not zero once an address was given.
    #[serde(default)]
    pub ref_count: i64,
    /// The node's interface carries the free ones itself, Causeway's own key.
    #[serde(default, skip_serializing_if = "is_false")]
    pub on_interface: bool,
    /// Keys that others wrote.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// An address. The incumbent ignores, and drops, the fields that only Causeway has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Address {
    /// Container id of the holder, empty when free.
    #[serde(rename = "ID", default)]
    pub id: String,
    /// The address.
    pub addr: IpAddr,
    /// Whether somebody holds it.
    #[serde(default)]
    pub in_use: bool,
    /// Interface of the holder, Causeway's own; empty when the incumbent wrote the lease.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub holder_if_name: String,
    /// Network of the holder, Causeway's own.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub holder_network: String,
    /// The host's end of the holder's link, Causeway's own; empty where it is somebody else's.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub host_if_name: String,
    /// When it was given, Causeway's own: milliseconds since 1970.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub leased_at: u64,
    /// When it was released last, Causeway's own: milliseconds since 1970, increasing from release to release.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub released_at: u64,
    /// The source does not list it any more, Causeway's own: it goes when its holder releases it.
    #[serde(default, skip_serializing_if = "is_false")]
    pub vanished: bool,
    /// Keys that others wrote.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_zero(n: &u64) -> bool {
    *n == 0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_false(flag: &bool) -> bool {
    !flag
}
