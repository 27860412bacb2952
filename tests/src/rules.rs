//! Rules as kube-proxy, portmap and network policy write them, by plain `iptables`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};

use anyhow::Result;

use crate::netns::Netns;

/// A ClusterIP for TCP and UDP: `vip` leads to `endpoint`, for pods and for the node itself. Hairpin traffic (an endpoint
/// that calls its own service) is marked and masqueraded.
pub fn cluster_ip(node: &Netns, vip: SocketAddrV4, endpoint: SocketAddrV4) -> Result<()> {
    let (vip_addr, vip_port, addr) = (vip.ip(), vip.port(), endpoint.ip());
    for protocol in ["tcp", "udp"] {
        let matches = format!("-d {vip_addr}/32 -p {protocol} --dport {vip_port}");
        run(
            node,
            &format!("-t nat -A PREROUTING -s {addr}/32 {matches} -j MARK --set-xmark 0x4000/0x4000"),
        )?;
        lead(node, &matches, endpoint.into())?;
    }
    masquerade_marked(node, IPTABLES, "0x4000")
}

/// A hostPort for TCP and UDP: `port` of every address of the node, of the pod's family, leads to the pod. The pod's own
/// calls are marked and masqueraded, as portmap does.
pub fn host_port(node: &Netns, port: u16, pod: impl Into<SocketAddr>) -> Result<()> {
    let pod = pod.into();
    let program = program_of(pod.ip());
    for protocol in ["tcp", "udp"] {
        let matches = format!("-p {protocol} --dport {port} -m addrtype --dst-type LOCAL");
        run_by(
            program,
            node,
            &format!(
                "-t nat -A PREROUTING -s {} {matches} -j MARK --set-xmark 0x2000/0x2000",
                pod.ip()
            ),
        )?;
        lead(node, &matches, pod)?;
    }
    masquerade_marked(node, program, "0x2000")
}

/// A NodePort for TCP and UDP: `port` of every address of the node leads to `endpoint`, whose answers have to come back here: every client is
/// masqueraded.
pub fn node_port(node: &Netns, port: u16, endpoint: SocketAddrV4) -> Result<()> {
    for protocol in ["tcp", "udp"] {
        let matches = format!("-p {protocol} --dport {port} -m addrtype --dst-type LOCAL");
        for chain in ["PREROUTING", "OUTPUT"] {
            run(
                node,
                &format!("-t nat -A {chain} {matches} -j MARK --set-xmark 0x4000/0x4000"),
            )?;
        }
        lead(node, &matches, endpoint.into())?;
    }
    masquerade_marked(node, IPTABLES, "0x4000")
}

/// What `matches` goes to `endpoint` instead, from others and from the node itself.
fn lead(node: &Netns, matches: &str, endpoint: SocketAddr) -> Result<()> {
    ["PREROUTING", "OUTPUT"].into_iter().try_for_each(|chain| {
        run_by(
            program_of(endpoint.ip()),
            node,
            &format!("-t nat -A {chain} {matches} -j DNAT --to-destination {endpoint}"),
        )
    })
}

fn masquerade_marked(node: &Netns, program: &str, mark: &str) -> Result<()> {
    run_by(
        program,
        node,
        &format!("-t nat -A POSTROUTING -m mark --mark {mark}/{mark} -j MASQUERADE"),
    )
}

/// A policy: nothing from `src` to `dst` is forwarded.
pub fn forbid(node: &Netns, src: Ipv4Addr, dst: Ipv4Addr) -> Result<()> {
    run(node, &format!("-I FORWARD -s {src}/32 -d {dst}/32 -j DROP"))
}

/// As kube-proxy has it: what conntrack cannot place is not forwarded.
pub fn forbid_invalid(node: &Netns) -> Result<()> {
    of_both(node, "-I FORWARD -m conntrack --ctstate INVALID -j DROP")
}

/// The wireserver guard that nodes carry in FORWARD.
pub fn forbid_wireserver(node: &Netns) -> Result<()> {
    run(node, "-I FORWARD -d 168.63.129.16/32 -p tcp --dport 80 -j DROP")?;
    run(
        node,
        "-I FORWARD -d 168.63.129.16/32 -p tcp --dport 32526 -j DROP",
    )
}

/// Counts what the node's kernel forwards from here on, see [`forwarded`].
pub fn count_forwarded(node: &Netns) -> Result<()> {
    run(node, "-t mangle -A FORWARD -m comment --comment forwarded")
}

/// Packets that the node's kernel has forwarded since [`count_forwarded`].
pub fn forwarded(node: &Netns) -> Result<u64> {
    counted(node, "mangle", "FORWARD", "forwarded")
}

/// Counts and drops the UDP packets to `port` that come from `src`, before anything else is done with them.
pub fn sink(ns: &Netns, src: Ipv4Addr, port: u16) -> Result<()> {
    run(
        ns,
        &format!("-t raw -A PREROUTING -s {src}/32 -p udp --dport {port} -j DROP"),
    )
}

/// Drops the SYNs that come to a port of the namespace's own.
pub fn ignore_syns(ns: &Netns, port: u16) -> Result<()> {
    of_both(ns, &format!("-I INPUT -p tcp --syn --dport {port} -j DROP"))
}

/// Drops the resets that the namespace itself would send. When both ends of a connection have closed, the last
/// acknowledgments may pass each other on a busy machine, and one comes to a socket that is gone.
pub fn send_no_resets(ns: &Netns) -> Result<()> {
    of_both(ns, "-I OUTPUT -p tcp --tcp-flags RST RST -j DROP")
}

/// Drops the namespace's own messages of one ICMP type (`iptables -p icmp -h` and `ip6tables -p icmpv6 -h` have the names)
/// that come from an address.
pub fn keep_quiet(ns: &Netns, from: impl Into<IpAddr>, icmp_type: &str) -> Result<()> {
    let from = from.into();
    let matches = if from.is_ipv4() {
        "-p icmp --icmp-type"
    } else {
        "-p icmpv6 --icmpv6-type"
    };
    let rule = format!("-I OUTPUT -s {from} {matches} {icmp_type} -j DROP");
    run_by(program_of(from), ns, &rule)
}

/// Packets that the `DROP` rules of a chain have dropped.
pub fn dropped(ns: &Netns, table: &str, chain: &str) -> Result<u64> {
    counted(ns, table, chain, "DROP")
}

/// The sum of the packet counters of the rules that `word` stands in.
fn counted(ns: &Netns, table: &str, chain: &str, word: &str) -> Result<u64> {
    let listing = ns.output("iptables", &["-w", "-t", table, "-nvxL", chain])?;
    let rows = listing.lines().filter(|row| row.contains(word));
    Ok(rows
        .filter_map(|row| row.split_whitespace().next()?.parse::<u64>().ok())
        .sum())
}

const IPTABLES: &str = "iptables";
const IP6TABLES: &str = "ip6tables";

/// Who writes the rules of an address's family.
fn program_of(address: IpAddr) -> &'static str {
    if address.is_ipv4() { IPTABLES } else { IP6TABLES }
}

fn run(ns: &Netns, rule: &str) -> Result<()> {
    run_by(IPTABLES, ns, rule)
}

/// A rule of either family.
fn of_both(ns: &Netns, rule: &str) -> Result<()> {
    [IPTABLES, IP6TABLES]
        .into_iter()
        .try_for_each(|program| run_by(program, ns, rule))
}

fn run_by(program: &str, ns: &Netns, rule: &str) -> Result<()> {
    let args: Vec<&str> = std::iter::once("-w").chain(rule.split_whitespace()).collect();
    ns.output(program, &args).map(drop)
}
