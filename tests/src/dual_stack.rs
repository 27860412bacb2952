//! The second family: a node and its fabric with IPv6 beside IPv4, and pods that have both.
//!
//! Addresses are of fd00:10::/64: the node's, those of pods and, as another host of the VNet's, one beyond the router. It
//! routes by fe80::1 and hands a pod's address to the node.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::{
    fabric::Fabric,
    netns::Netns,
    node::{Datapath, Node, Pod},
    rig::Rig,
};

/// The node's address.
pub const NODE: Ipv6Addr = at(4);

/// That of the VNet's other host.
pub const VNET: Ipv6Addr = at(0x1_0010);

/// That of the internet's host, which knows the way to the node alone.
pub const INTERNET: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x10);

/// The next hop of every pod.
pub const GATEWAY: &str = "fe80::1234:5678:9abc";

/// How long a packet may be under way.
const PATIENCE: Duration = Duration::from_secs(5);

/// An address of the subnet of node and pods, fd00:10::/64.
pub const fn at(host: u32) -> Ipv6Addr {
    Ipv6Addr::from_bits(0xfd00_0010 << 96 | host as u128)
}

/// Gives node and fabric IPv6. New interfaces of the node and of pods have it turned off, as some administrators do.
pub fn enable(fabric: &Fabric, node: &Netns, pods: &[Ipv6Addr]) -> Result<()> {
    for (ns, names) in [
        (node, &["lo", "eth0"][..]),
        (&fabric.vnet, &["eth0"]),
        (&fabric.router, &["node", "vnet"]),
    ] {
        for name in names {
            // An address that may be somebody else's for a second asks nobody for anything.
            ns.sysctl(&format!("net/ipv6/conf/{name}/accept_dad"), "0")?;
            ns.sysctl(&format!("net/ipv6/conf/{name}/disable_ipv6"), "0")?;
        }
    }
    fabric.router.sysctl("net/ipv6/conf/all/forwarding", "1")?;
    let mut routes = vec![
        "addr add fe80::1/64 dev node nodad".to_owned(),
        "addr add fe80::1/64 dev vnet nodad".to_owned(),
        format!("route add {NODE} dev node\nroute add {VNET} dev vnet"),
    ];
    let to_pod = |pod: &Ipv6Addr| format!("route add {pod} via {NODE} dev node onlink");
    routes.extend(pods.iter().map(to_pod));
    fabric.router.ip(&routes.join("\n"))?;
    for (ns, address) in [(node, NODE), (&fabric.vnet, VNET)] {
        ns.ip(&format!(
            "addr add {address}/64 dev eth0 nodad noprefixroute\nroute add default via fe80::1 dev eth0"
        ))?;
    }
    Ok(())
}

/// Writes the node's address list: `pods` addresses of IPv4, and the subnets of IPv6 with theirs.
pub fn list(node: &Node, pods: u8, subnets: &[(&str, &[Ipv6Addr])]) -> Result<()> {
    let of_ipv4 = (5..5 + pods).map(|host| entry([10, 240, 0, host].into(), false));
    let own = entry([10, 240, 0, 4].into(), true);
    let of_ipv4 = json!({ "Prefix": "10.240.0.0/16", "IPAddresses": std::iter::once(own).chain(of_ipv4).collect::<Vec<_>>() });
    write_list(node, Some(of_ipv4), subnets)
}

/// As [`list`], without a subnet of IPv4: pods have IPv6 alone.
pub fn list_alone(node: &Node, subnets: &[(&str, &[Ipv6Addr])]) -> Result<()> {
    write_list(node, None, subnets)
}

fn entry(address: IpAddr, is_primary: bool) -> Value {
    json!({ "Address": address, "IsPrimary": is_primary })
}

fn write_list(node: &Node, of_ipv4: Option<Value>, subnets: &[(&str, &[Ipv6Addr])]) -> Result<()> {
    let mut all = Vec::from_iter(of_ipv4);
    for (prefix, addresses) in subnets {
        let addresses = addresses.iter().map(|address| entry((*address).into(), false));
        let own = entry(NODE.into(), true);
        all.push(json!({ "Prefix": prefix, "IPAddresses": std::iter::once(own).chain(addresses).collect::<Vec<_>>() }));
    }
    let mac = node.mac()?.map(|byte| format!("{byte:02x}")).concat();
    let list = json!({ "Interfaces": [{ "MacAddress": mac, "IsPrimary": true, "IPSubnets": all }] });
    node.root
        .write("/etc/kubernetes/interfaces.json", &list.to_string())
}

/// Has a node masquerade IPv6 from its first pod on: what the agent notes of `masqueradeIPv6: true`.
pub fn masquerade(node: &Node) -> Result<()> {
    let noted = json!({ "masqueradeIpv6": true }).to_string();
    node.root.write("/run/causeway/settings.json", &noted)
}

/// Gives the internet's host IPv6, and the router a watch on what comes for it from the node with another address than the
/// node's: see [`leaked`].
pub fn enable_internet(fabric: &Fabric) -> Result<()> {
    for (ns, name) in [(&fabric.internet, "eth0"), (&fabric.router, "internet")] {
        ns.sysctl(&format!("net/ipv6/conf/{name}/accept_dad"), "0")?;
        ns.sysctl(&format!("net/ipv6/conf/{name}/disable_ipv6"), "0")?;
    }
    fabric.router.ip(&format!(
        "addr add fe80::1/64 dev internet nodad\nroute add {INTERNET} dev internet"
    ))?;
    fabric.internet.ip(&format!(
        "addr add {INTERNET}/64 dev eth0 nodad noprefixroute\nroute add {NODE} via fe80::1 dev eth0"
    ))?;
    // Errors of the router itself come from its addresses of the link.
    fabric.internet.ip("route add fd00:10::1 via fe80::1 dev eth0")?;
    let watch = format!(
        "table ip6 watch {{ counter leaks {{}}; chain arriving {{ type filter hook prerouting priority raw; \
         iifname node ip6 daddr 2001:db8::/32 ip6 saddr != {NODE} counter name leaks; }}; }}"
    );
    fabric.router.output("nft", &[&watch]).map(drop)
}

/// How many packets have left for the internet with another address than the node's, by the router's nftables.
pub fn leaked(fabric: &Fabric) -> Result<u64> {
    let counter = fabric
        .router
        .json("nft", &["-j", "list", "counter", "ip6", "watch", "leaks"])?;
    let items = counter["nftables"].as_array().into_iter().flatten();
    let mut counts = items.filter_map(|item| item["counter"]["packets"].as_u64());
    counts.next().context("no counter")
}

/// Addresses of each family that a rig has for pods.
const PODS: u8 = 20;

fn pods() -> Vec<Ipv6Addr> {
    (5..5 + u32::from(PODS)).map(at).collect()
}

impl Rig {
    /// As [`Rig::dual_stack`], on a node that masquerades IPv6 as well.
    pub fn masquerading_ipv6() -> Result<Self> {
        let rig = Self::dual_stack()?;
        enable_internet(&rig.fabric)?;
        masquerade(&rig.node)?;
        Ok(rig)
    }

    /// A node alike on which the kernel masquerades both families, without a watch.
    pub fn masquerading_ipv6_by_rule() -> Result<Self> {
        let rig = Self::unwatched(Datapath::RoutedMasquerade, PODS)?;
        enable(&rig.fabric, &rig.node.ns, &pods())?;
        enable_internet(&rig.fabric)?;
        rig.node.masquerade_ipv6()?;
        Ok(rig)
    }

    /// As [`Rig::causeway`], with pods of both families.
    pub fn dual_stack() -> Result<Self> {
        let rig = Self::causeway()?;
        enable(&rig.fabric, &rig.node.ns, &pods())?;
        list(&rig.node, PODS, &[("fd00:10::/64", &pods())])?;
        Ok(rig)
    }
}

impl Pod {
    /// Its address of IPv6.
    pub fn addr_v6(&self) -> Result<Ipv6Addr> {
        let ips = self.result["ips"].as_array().into_iter().flatten();
        let mut addresses = ips.filter_map(|ip| ip["address"].as_str()?.split('/').next()?.parse().ok());
        addresses
            .next()
            .with_context(|| format!("no address of IPv6 in {}", self.result))
    }
}

/// A TCP connection, both ends of it.
#[derive(Debug)]
pub struct Connection {
    /// Who opened it.
    pub client: TcpStream,
    /// Who accepted it.
    pub server: TcpStream,
}

impl Connection {
    /// Opens one with the first packet: the kernel sends the second one after a second.
    pub fn open(from: &Netns, to: &Netns, address: Ipv6Addr, port: u16) -> Result<Self> {
        let server = SocketAddr::new(address.into(), port);
        let listener = to.bind(|| TcpListener::bind(server))?;
        let patience = Duration::from_millis(950);
        let client = from.run(|| TcpStream::connect_timeout(&server, patience))?;
        let client = client.with_context(|| format!("no connection to {server}"))?;
        let (server, _) = listener.accept()?;
        for stream in [&client, &server] {
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_nodelay(true)?;
        }
        Ok(Self { client, server })
    }

    /// Something goes there and comes back, so many times.
    pub fn chat(&mut self, times: u32) -> Result<()> {
        for n in 0..times {
            let said = n.to_be_bytes();
            let mut heard = [0; 4];
            self.client.write_all(&said)?;
            self.server.read_exact(&mut heard).context("the question")?;
            ensure!(heard == said, "another question arrived");
            self.server.write_all(&heard)?;
            self.client.read_exact(&mut heard).context("the answer")?;
            ensure!(heard == said, "another answer arrived");
        }
        Ok(())
    }

    /// `length` bytes in each direction at once; every one is compared.
    pub fn stream(&mut self, length: usize) -> Result<()> {
        let byte = |at: usize| (at.wrapping_mul(2_654_435_761) >> 13) as u8;
        let data: Vec<u8> = (0..length).map(byte).collect();
        thread::scope(|scope| {
            let mut workers = Vec::new();
            for stream in [&self.client, &self.server] {
                let data = &data;
                workers.push(scope.spawn(move || (&mut &*stream).write_all(data).context("sending")));
                workers.push(scope.spawn(move || {
                    let mut heard = vec![0; length];
                    (&mut &*stream).read_exact(&mut heard).context("receiving")?;
                    ensure!(heard == *data, "other bytes arrived");
                    Ok(())
                }));
            }
            workers.into_iter().try_for_each(|worker| {
                worker
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            })
        })
    }
}

/// Datagrams there and back.
#[derive(Debug)]
pub struct Datagrams {
    client: UdpSocket,
    server: UdpSocket,
}

impl Datagrams {
    /// A socket at each end.
    pub fn between(from: &Netns, to: &Netns, address: Ipv6Addr, port: u16) -> Result<Self> {
        let server = to.bind(|| UdpSocket::bind(SocketAddr::new(address.into(), port)))?;
        let client = from.bind(|| UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)))?;
        client.connect(SocketAddr::new(address.into(), port))?;
        for socket in [&client, &server] {
            socket.set_read_timeout(Some(PATIENCE))?;
        }
        Ok(Self { client, server })
    }

    /// A datagram of `length` bytes goes there and comes back, so many times.
    pub fn chat(&self, length: usize, times: u32) -> Result<()> {
        let mut heard = vec![0; length + 1];
        for n in 0..times {
            let mut said = vec![n as u8; length];
            said[..4.min(length)].copy_from_slice(&n.to_be_bytes()[..4.min(length)]);
            self.client.send(&said)?;
            let (got, from) = self.server.recv_from(&mut heard).context("the question")?;
            ensure!(heard[..got] == said, "another question arrived");
            self.server.send_to(&said, from)?;
            let got = self.client.recv(&mut heard).context("the answer")?;
            ensure!(heard[..got] == said, "another answer arrived");
        }
        Ok(())
    }
}
