//! What the kernel's conntrack knows of a flow, by its own table.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
};

use anyhow::{Context, Result};

use crate::netns::Netns;

/// A connection of the table.
#[derive(Clone, Debug)]
pub struct Connection {
    /// Seconds after which it is forgotten, if it stays idle.
    pub remaining: u32,
    /// The row.
    pub row: String,
}

/// The connection that `client` opened; for ICMP its port is the identifier. `None` if there is none.
pub fn find(ns: &Netns, protocol: u8, client: impl Into<SocketAddr>) -> Result<Option<Connection>> {
    let client = client.into();
    let table = ns
        .run(|| fs::read_to_string("/proc/thread-self/net/nf_conntrack"))?
        .context("/proc/net/nf_conntrack: the kernel needs CONFIG_NF_CONNTRACK_PROCFS")?;
    let Some(row) = table.lines().find(|row| is_of(row, protocol, client)) else {
        return Ok(None);
    };
    let remaining = row.split_whitespace().nth(4).and_then(|word| word.parse().ok());
    Ok(Some(Connection {
        remaining: remaining.with_context(|| format!("no time in `{row}`"))?,
        row: row.to_owned(),
    }))
}

/// The first tuple of a row is the opener's.
fn is_of(row: &str, protocol: u8, client: SocketAddr) -> bool {
    let opener = |name: &str| {
        row.split_whitespace()
            .find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
    };
    let is_icmp = [libc::IPPROTO_ICMP, libc::IPPROTO_ICMPV6].contains(&protocol.into());
    let port = if is_icmp { opener("id") } else { opener("sport") };
    row.split_whitespace().nth(3) == Some(&protocol.to_string())
        // An address of IPv6 stands there without abbreviations.
        && opener("src").and_then(|text| text.parse().ok()) == Some::<IpAddr>(client.ip())
        && port == Some(&client.port().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_the_openers() {
        let row = "ipv4     2 udp      17 29 src=10.0.0.1 dst=10.0.0.2 sport=7 dport=9 [UNREPLIED] src=10.0.0.2 \
                   dst=10.0.0.4 sport=9 dport=7 mark=0 zone=0 use=2";
        let at = |text: &str| text.parse().unwrap();
        assert!(is_of(row, 17, at("10.0.0.1:7")));
        assert!(!is_of(row, 17, at("10.0.0.2:9")));
        assert!(!is_of(row, 6, at("10.0.0.1:7")));
        let row = "ipv4     2 icmp     1 29 src=10.0.0.1 dst=10.0.0.2 type=8 code=0 id=5 src=10.0.0.2 dst=10.0.0.4 type=0 \
                   code=0 id=5 mark=0 zone=0 use=2";
        assert!(is_of(row, 1, at("10.0.0.1:5")));
    }
}
