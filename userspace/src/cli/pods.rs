//! `causeway pods`.

use std::{
    collections::HashMap,
    io::{self, Write},
    net::IpAddr,
};

use causeway::{
    datapath::{self, Datapath},
    links::Netlink,
};
use causeway_common::maps::PodEntry;
use serde::Serialize;

use super::{
    Failure,
    output::{self, Report, duration, mac, seconds_since},
};

#[derive(Serialize)]
pub(crate) struct Pods {
    pods: Vec<Pod>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Pod {
    address: IpAddr,
    state: &'static str,
    /// The host's end; null when it is gone.
    interface: Option<String>,
    ifindex: u32,
    mac: String,
    host_mac: String,
    mtu: u16,
    /// Entries of which it is the source.
    flows: usize,
    changed_seconds: u32,
}

pub(crate) fn gather(datapath: &Datapath) -> Result<Pods, Failure> {
    let names = interface_names()?;
    let mut flows: HashMap<IpAddr, usize> = HashMap::new();
    datapath.for_each_flow(|key, _| *flows.entry(key.src.into()).or_default() += 1)?;
    datapath.for_each_flow_v6(|key, _| *flows.entry(key.src.into()).or_default() += 1)?;
    let now = datapath::now();
    let mut entries = datapath.addresses()?;
    entries.sort_unstable_by_key(|(addr, _)| *addr);
    let pod = |(address, entry): (IpAddr, PodEntry)| Pod {
        address,
        state: state(&entry),
        interface: names.get(&entry.ifindex).cloned(),
        ifindex: entry.ifindex,
        mac: mac(entry.mac),
        host_mac: mac(entry.host_mac),
        mtu: entry.mtu,
        flows: flows.get(&address).copied().unwrap_or(0),
        changed_seconds: seconds_since(entry.changed, now),
    };
    Ok(Pods {
        pods: entries.into_iter().map(pod).collect(),
    })
}

/// Index to name of every interface of the node.
pub(crate) fn interface_names() -> Result<HashMap<u32, String>, Failure> {
    let links = Netlink::new()
        .and_then(|mut netlink| netlink.links())
        .map_err(datapath::DatapathError::from)?;
    Ok(links.into_iter().map(|link| (link.index, link.name)).collect())
}

impl Report for Pods {
    const KIND: &'static str = "Pods";

    fn write_text(&self, out: &mut dyn Write) -> io::Result<()> {
        let row = |pod: &Pod| {
            let departed = pod.state == DEPARTED;
            let unless_departed = |text: String| if departed { "-".to_owned() } else { text };
            [
                pod.address.to_string(),
                pod.state.to_owned(),
                pod.interface.clone().unwrap_or_else(|| "-".to_owned()),
                unless_departed(pod.mac.clone()),
                unless_departed(pod.host_mac.clone()),
                unless_departed(pod.mtu.to_string()),
                pod.flows.to_string(),
                duration(pod.changed_seconds),
            ]
        };
        let heading = [
            "ADDRESS",
            "STATE",
            "INTERFACE",
            "MAC",
            "HOST MAC",
            "MTU",
            "FLOWS",
            "SINCE",
        ];
        output::write_table(out, heading, self.pods.iter().map(row))
    }
}

const DEPARTED: &str = "departed";

fn state(entry: &PodEntry) -> &'static str {
    if entry.flags & PodEntry::DEPARTED != 0 {
        DEPARTED
    } else if entry.is_ready() {
        "ready"
    } else {
        "attaching"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_of_a_pod_follows_its_flags() {
        let entry = |flags| PodEntry {
            ifindex: 3,
            mac: [2; 6],
            host_mac: [2; 6],
            mtu: 1500,
            flags,
            changed: 0,
        };
        assert_eq!(state(&entry(0)), "attaching");
        assert_eq!(state(&entry(PodEntry::READY)), "ready");
        assert_eq!(state(&entry(PodEntry::DEPARTED)), "departed");
    }
}
