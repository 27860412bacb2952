//! What goes into the archive.

use std::{
    fmt::Display,
    fs::{self, File},
    io::{self, Read as _, Seek as _, SeekFrom},
    path::{Path, PathBuf},
    thread,
};

use aya::maps::{Array, Map};
use causeway::{
    datapath::Datapath,
    endpoints,
    ipam::{source, store},
    program,
    root::Root,
};
use causeway_common::{
    maps::{IfaceEntry, PodEntry, PortWord, Usage},
    ports::{RESERVED_ENTRIES, reserved_bit},
};
use serde_json::{Value, json};

use super::Piece;
use crate::cli::{
    Failure, doctor, flows, leases, maps, open,
    output::{self, Report, mac},
    pods, ranges, status, version,
};

/// Of a log, so much from its end.
const LOG_BYTES: u64 = 256 << 10;
/// Flows that are listed.
const FLOWS: usize = 20_000;

/// Everything, with what cannot be had.
pub(super) fn gather(root: &Root) -> Vec<Piece> {
    let mut pieces = Vec::new();
    thread::scope(|scope| {
        let asked: Vec<_> = TOOLS
            .iter()
            .map(|(name, words)| scope.spawn(|| ask(name, words)))
            .collect();
        pieces.extend(reports(root));
        pieces.extend(dumps(root));
        pieces.extend(files(root));
        pieces.push(settings());
        pieces.extend(asked.into_iter().filter_map(|asked| asked.join().ok()));
    });
    pieces
}

/// Files of the archive by what other programs say.
const TOOLS: [(&str, &[&str]); 14] = [
    ("network/links.json", &["ip", "-j", "-d", "-s", "link", "show"]),
    ("network/addresses.json", &["ip", "-j", "addr", "show"]),
    (
        "network/routes.json",
        &["ip", "-j", "-4", "route", "show", "table", "all"],
    ),
    ("network/rules.json", &["ip", "-j", "-4", "rule", "show"]),
    ("network/neighbours.json", &["ip", "-j", "-4", "neigh", "show"]),
    ("network/qdiscs.json", &["tc", "-j", "-s", "qdisc", "show"]),
    ("network/sockets.txt", &["ss", "-tuanH"]),
    ("rules/iptables.txt", &["iptables-save", "-c"]),
    ("rules/nftables.txt", &["nft", "list", "ruleset"]),
    ("rules/ipsets.txt", &["ipset", "list", "-terse"]),
    ("bpf/net.json", &["bpftool", "-j", "net", "show"]),
    ("bpf/programs.json", &["bpftool", "-j", "prog", "show"]),
    ("bpf/maps.json", &["bpftool", "-j", "map", "show"]),
    (KERNEL_LOG, &["dmesg"]),
];

const KERNEL_LOG: &str = "kernel/log.txt";

fn ask(name: &str, words: &[&str]) -> Piece {
    let told = match words {
        [program, arguments @ ..] => program::ask(program, arguments).map_err(|error| error.to_string()),
        [] => Err("nothing to run".to_owned()),
    };
    let kept = |line: &&str| {
        let line = line.to_ascii_lowercase();
        ["bpf", "azv", "eth", "link", "oom", "conntrack"]
            .iter()
            .any(|word| line.contains(word))
    };
    let contents = told.map(|told| {
        if name == KERNEL_LOG {
            told.output
                .lines()
                .filter(kept)
                .collect::<Vec<_>>()
                .join("\n")
                .into_bytes()
        } else {
            told.output.into_bytes()
        }
    });
    Piece {
        name: name.to_owned(),
        contents,
    }
}

/// What this command shows.
fn reports(root: &Root) -> Vec<Piece> {
    let filter = flows::Filter::first(FLOWS);
    vec![
        report("status", || status::gather(root, true)),
        report("doctor", || doctor::gather(root, doctor::Depth::Full)),
        report("pods", || pods::gather(&open(root)?)),
        report("flows", || flows::gather(&open(root)?, &filter)),
        report("leases", || leases::gather(root, false)),
        report("ranges", || ranges::gather(&open(root)?)),
        report("version", || Ok(version::gather())),
    ]
}

fn report<R: Report>(name: &str, gather: impl FnOnce() -> Result<R, Failure>) -> Piece {
    let contents = gather()
        .map_err(first_line)
        .and_then(|report| output::json(&report).map_err(first_line));
    Piece {
        name: format!("reports/{name}.json"),
        contents,
    }
}

/// Maps that no report shows whole.
fn dumps(root: &Root) -> Vec<Piece> {
    let dump = |name: &str, read: &dyn Fn(&Datapath) -> Result<Value, Failure>| Piece {
        name: format!("maps/{name}.json"),
        contents: open(root)
            .and_then(|datapath| read(&datapath))
            .map_err(first_line)
            .and_then(|value| serde_json::to_vec_pretty(&value).map_err(first_line)),
    };
    vec![
        dump("cwy_cfg", &configuration),
        dump("cwy_pods", &|datapath| {
            let pods: Vec<([u8; 4], PodEntry)> = maps::elements(datapath, "cwy_pods")?;
            let pod = |(addr, pod): &([u8; 4], PodEntry)| {
                json!({ "address": text(*addr), "ifindex": pod.ifindex, "mac": mac(pod.mac),
                    "hostMac": mac(pod.host_mac), "mtu": pod.mtu, "flags": pod.flags, "changed": pod.changed })
            };
            Ok(pods.iter().map(pod).collect())
        }),
        dump("cwy_ifaces", &|datapath| {
            let ifaces: Vec<(u32, IfaceEntry<[u8; 4]>)> = maps::elements(datapath, "cwy_ifaces")?;
            let iface = |(index, iface): &(u32, IfaceEntry<[u8; 4]>)| json!({ "ifindex": index, "address": text(iface.addr), "mac": mac(iface.mac) });
            Ok(ifaces.iter().map(iface).collect())
        }),
        dump("cwy_usage", &|datapath| {
            let row =
                |(addr, usage): &([u8; 4], Usage)| json!({ "address": text(*addr), "flows": usage.flows });
            Ok(maps::elements(datapath, "cwy_usage")?.iter().map(row).collect())
        }),
        dump("cwy_ports", &reserved),
    ]
}

fn configuration(datapath: &Datapath) -> Result<Value, Failure> {
    let config = datapath.config()?;
    Ok(json!({
        "nodeAddress": text(config.node_addr), "uplinkIfindex": config.uplink_ifindex, "uplinkMtu": config.uplink_mtu,
        "podQuota": config.pod_quota, "wireQuota": config.wire_quota,
        "timeouts": config.timeouts.named().into_iter().map(|(name, seconds)| (name.to_owned(), seconds.into()))
            .collect::<serde_json::Map<_, _>>(),
    }))
}

/// Reserved ports, as ranges.
fn reserved(datapath: &Datapath) -> Result<Value, Failure> {
    let failed = |source| causeway::datapath::DatapathError::Map {
        name: "cwy_ports",
        source,
    };
    let map: Array<_, PortWord> =
        Array::try_from(Map::Array(maps::open(datapath, "cwy_ports")?)).map_err(failed)?;
    let mut words = Vec::with_capacity(RESERVED_ENTRIES);
    for index in 0..RESERVED_ENTRIES as u32 {
        words.push(map.get(&index, 0).map_err(failed)?.reserved);
    }
    let ranges = |is_udp: bool| {
        let is_reserved = |port: u16| {
            let (index, bit) = reserved_bit(is_udp, port);
            words.get(index as usize).is_some_and(|word| word & bit != 0)
        };
        let mut ranges: Vec<(u16, u16)> = Vec::new();
        for port in (0..=u16::MAX).filter(|port| is_reserved(*port)) {
            match ranges.last_mut() {
                Some((_, last)) if *last == port - 1 => *last = port,
                _ => ranges.push((port, port)),
            }
        }
        ranges
            .iter()
            .map(|(first, last)| format!("{first}-{last}"))
            .collect::<Vec<_>>()
    };
    Ok(json!({ "tcp": ranges(false), "udp": ranges(true) }))
}

/// Files of the node, as they are.
fn files(root: &Root) -> Vec<Piece> {
    let mut pieces = vec![
        whole(root, endpoints::STATE),
        whole(root, store::STATE),
        whole(root, source::CACHE),
        whole(root, "/etc/kubernetes/interfaces.json"),
        log(root, "/var/log/azure-vnet.log"),
        log(root, "/var/log/azure-vnet-ipam.log"),
    ];
    for directory in [
        "/etc/cni/net.d",
        "/etc/config",
        "/etc/causeway",
        "/run/causeway",
        "/run/causeway/restore",
    ] {
        let entries = fs::read_dir(root.path(directory)).into_iter().flatten().flatten();
        let mut names: Vec<PathBuf> = entries
            .filter(|entry| entry.path().is_file())
            .map(|entry| Path::new(directory).join(entry.file_name()))
            .collect();
        names.sort();
        pieces.extend(
            names
                .iter()
                .filter_map(|name| name.to_str())
                .map(|name| whole(root, name)),
        );
    }
    pieces
}

fn whole(root: &Root, path: &str) -> Piece {
    Piece {
        name: format!("files{path}"),
        contents: fs::read(root.path(path)).map_err(first_line),
    }
}

/// The end of a log.
fn log(root: &Root, path: &str) -> Piece {
    let read = || {
        let mut file = File::open(root.path(path))?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LOG_BYTES)))?;
        let mut bytes = Vec::new();
        file.take(LOG_BYTES).read_to_end(&mut bytes)?;
        Ok::<_, io::Error>(bytes)
    };
    Piece {
        name: format!("files{path}"),
        contents: read().map_err(first_line),
    }
}

/// What the kernel is, and is set to.
fn settings() -> Piece {
    const NAMES: [&str; 14] = [
        "kernel/osrelease",
        "kernel/version",
        "kernel/unprivileged_bpf_disabled",
        "net/core/bpf_jit_enable",
        "net/ipv4/ip_forward",
        "net/ipv4/ip_local_port_range",
        "net/ipv4/ip_local_reserved_ports",
        "net/ipv4/conf/all/rp_filter",
        "net/ipv4/conf/default/rp_filter",
        "net/ipv4/conf/all/forwarding",
        "net/bridge/bridge-nf-call-iptables",
        "net/netfilter/nf_conntrack_max",
        "net/netfilter/nf_conntrack_count",
        "net/netfilter/nf_conntrack_tcp_timeout_established",
    ];
    let value = |name: &&str| {
        let read = fs::read_to_string(Path::new("/proc/sys").join(name));
        let text = read.map_or(Value::Null, |text| text.trim().into());
        (name.replace('/', "."), text)
    };
    let values: serde_json::Map<String, Value> = NAMES.iter().map(value).collect();
    Piece {
        name: "kernel/settings.json".to_owned(),
        contents: serde_json::to_vec_pretty(&values).map_err(first_line),
    }
}

fn text(addr: [u8; 4]) -> String {
    std::net::Ipv4Addr::from(addr).to_string()
}

/// Hints that follow are for who types, not for who reads the manifest.
fn first_line(error: impl Display) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}
