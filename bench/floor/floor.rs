//! The netlink requests that a pod's connection needs, and nothing else: the floor under an ADD and a DEL of a CNI plug-in.
//! A static program of its own, because starting a process is a part of a plug-in's time.
//!
//! `floor add NETNS HOST_IF ADDRESS` makes what `azure-vnet` makes: a veth pair with one end in the namespace, the address, the
//! routes and the neighbours at both ends. `floor del HOST_IF` takes it away. With two directories of a bpffs more, that of
//! pinned programs and one for links, programs are attached to the host's end and detached from it. Numbers are those of
//! `linux/rtnetlink.h`, `linux/if_link.h`, `linux/neighbour.h` and `linux/veth.h`.

mod hooks;

use std::{env, fs::File, io, net::Ipv4Addr, os::fd::AsRawFd as _, path::Path, process::ExitCode};

unsafe extern "C" {
    fn socket(domain: i32, kind: i32, protocol: i32) -> i32;
    fn send(fd: i32, bytes: *const u8, length: usize, flags: i32) -> isize;
    fn recv(fd: i32, bytes: *mut u8, length: usize, flags: i32) -> isize;
    fn setns(fd: i32, kind: i32) -> i32;
}

const AF_INET: u8 = 2;
const GATEWAY: [u8; 4] = [169, 254, 1, 1];
const POD_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const HOST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
const MTU: u32 = 1500;

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match words[..] {
        ["add", netns, host_if, address, ref hooks @ ..] => match address.parse::<Ipv4Addr>() {
            Ok(address) => add(netns, host_if, address.octets(), hooks),
            Err(error) => Err(io::Error::other(error)),
        },
        ["del", host_if] => del(host_if),
        ["del", host_if, _, links] => hooks::detach(Path::new(links)).and_then(|()| del(host_if)),
        _ => Err(io::Error::other(
            "usage: floor add NETNS HOST_IF ADDRESS [PROGRAMS LINKS] | floor del HOST_IF [PROGRAMS LINKS]",
        )),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("floor: {error}");
            ExitCode::FAILURE
        }
    }
}

fn add(netns: &str, host_if: &str, address: [u8; 4], hooks: &[&str]) -> io::Result<()> {
    const CLONE_NEWNET: i32 = 0x4000_0000;
    let netns = File::open(netns)?;
    let host = Socket::open()?;
    host.ask(pair(host_if, netns.as_raw_fd().cast_unsigned()))?;
    let index = host.index(host_if)?;
    if let [programs, links] = hooks {
        hooks::attach(index, Path::new(programs), Path::new(links))?;
    }
    host.ask(without_ipv6(index))?;
    host.ask(up(index))?;
    host.ask(route(index, Some(address), None))?;
    host.ask(neighbour(index, address, POD_MAC))?;
    // SAFETY: the descriptor is open, and this process has one thread.
    if unsafe { setns(netns.as_raw_fd(), CLONE_NEWNET) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let pod = Socket::open()?;
    pod.ask(up(1))?;
    let index = pod.index("eth0")?;
    pod.ask(own_address(index, address))?;
    pod.ask(up(index))?;
    pod.ask(route(index, Some(GATEWAY), None))?;
    pod.ask(route(index, None, Some(GATEWAY)))?;
    pod.ask(neighbour(index, GATEWAY, HOST_MAC))?;
    host.index(host_if).map(drop)
}

fn del(host_if: &str) -> io::Result<()> {
    const RTM_DELLINK: u16 = 17;
    let host = Socket::open()?;
    let index = host.index(host_if)?;
    host.ask(Request::new(RTM_DELLINK, 0, &interface(index, 0)))
}

/// A netlink socket.
struct Socket(i32);

impl Socket {
    fn open() -> io::Result<Self> {
        const AF_NETLINK: i32 = 16;
        const SOCK_RAW: i32 = 3;
        // SAFETY: no pointer is involved.
        match unsafe { socket(AF_NETLINK, SOCK_RAW, 0) } {
            fd if fd < 0 => Err(io::Error::last_os_error()),
            fd => Ok(Self(fd)),
        }
    }

    fn ask(&self, request: Request) -> io::Result<()> {
        self.exchange(request).map(drop)
    }

    fn index(&self, name: &str) -> io::Result<u32> {
        const RTM_GETLINK: u16 = 18;
        let mut request = Request::new(RTM_GETLINK, 0, &interface(0, 0));
        request.text(IFLA_IFNAME, name);
        self.exchange(request)
    }

    /// Sends a request and reads on to its acknowledgement. Returns the index in the interface that came before it.
    fn exchange(&self, request: Request) -> io::Result<u32> {
        const NLMSG_ERROR: u16 = 2;
        let bytes = request.finished();
        // SAFETY: the pointer and the length are those of `bytes`.
        if unsafe { send(self.0, bytes.as_ptr(), bytes.len(), 0) } < 0 {
            return Err(io::Error::last_os_error());
        }
        let (mut index, mut buffer) = (0, [0; 16384]);
        loop {
            // SAFETY: the pointer and the length are those of `buffer`.
            let length = unsafe { recv(self.0, buffer.as_mut_ptr(), buffer.len(), 0) };
            let length = usize::try_from(length).map_err(|_| io::Error::last_os_error())?;
            let mut rest = &buffer[..length];
            while rest.len() >= 20 {
                let size = word(rest, 0) as usize;
                if word(rest, 4) as u16 == NLMSG_ERROR {
                    return match word(rest, 16).cast_signed() {
                        0 => Ok(index),
                        error => Err(io::Error::from_raw_os_error(-error)),
                    };
                }
                index = word(rest, 20);
                rest = rest.get(size.next_multiple_of(4)..).unwrap_or_default();
            }
        }
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    let word = bytes.get(at..at + 4).and_then(|word| word.try_into().ok());
    u32::from_ne_bytes(word.unwrap_or_default())
}

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const NEW: u16 = 0x600;
const REPLACE: u16 = 0x500;

fn pair(host_if: &str, netns: u32) -> Request {
    const RTM_NEWLINK: u16 = 16;
    const IFLA_LINKINFO: u16 = 18;
    const IFLA_INFO_KIND: u16 = 1;
    const IFLA_INFO_DATA: u16 = 2;
    const IFLA_NET_NS_FD: u16 = 28;
    const VETH_INFO_PEER: u16 = 1;
    let mut request = Request::new(RTM_NEWLINK, NEW, &interface(0, 0));
    request.end_of_pair(host_if, HOST_MAC);
    request.nested(IFLA_LINKINFO, |info| {
        info.attribute(IFLA_INFO_KIND, b"veth");
        info.nested(IFLA_INFO_DATA, |data| {
            data.nested(VETH_INFO_PEER, |peer| {
                peer.0.extend(interface(0, 0));
                peer.end_of_pair("eth0", POD_MAC);
                peer.attribute(IFLA_NET_NS_FD, &netns.to_ne_bytes());
            });
        });
    });
    request
}

fn without_ipv6(index: u32) -> Request {
    const IFLA_AF_SPEC: u16 = 26;
    const AF_INET6: u16 = 10;
    const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
    const NONE: u8 = 1;
    let mut request = Request::new(RTM_SETLINK, 0, &interface(index, 0));
    request.nested(IFLA_AF_SPEC, |families| {
        families.nested(AF_INET6, |family| {
            family.attribute(IFLA_INET6_ADDR_GEN_MODE, &[NONE])
        });
    });
    request
}

const RTM_SETLINK: u16 = 19;

fn up(index: u32) -> Request {
    const IFF_UP: u32 = 1;
    Request::new(RTM_SETLINK, 0, &interface(index, IFF_UP))
}

fn own_address(index: u32, address: [u8; 4]) -> Request {
    const RTM_NEWADDR: u16 = 20;
    const IFA_ADDRESS: u16 = 1;
    const IFA_LOCAL: u16 = 2;
    const IFA_FLAGS: u16 = 8;
    const NOPREFIXROUTE: u32 = 0x200;
    let mut header = vec![AF_INET, 16, 0, 0];
    header.extend(index.to_ne_bytes());
    let mut request = Request::new(RTM_NEWADDR, NEW, &header);
    request.attribute(IFA_LOCAL, &address);
    request.attribute(IFA_ADDRESS, &address);
    request.attribute(IFA_FLAGS, &NOPREFIXROUTE.to_ne_bytes());
    request
}

fn route(index: u32, to: Option<[u8; 4]>, gateway: Option<[u8; 4]>) -> Request {
    const RTM_NEWROUTE: u16 = 24;
    const RTA_DST: u16 = 1;
    const RTA_OIF: u16 = 4;
    const RTA_GATEWAY: u16 = 5;
    const TABLE_MAIN: u8 = 254;
    const STATIC: u8 = 4;
    const UNICAST: u8 = 1;
    const SCOPE_LINK: u8 = 253;
    let bits = if to.is_some() { 32 } else { 0 };
    let scope = if gateway.is_some() { 0 } else { SCOPE_LINK };
    let header = [
        AF_INET, bits, 0, 0, TABLE_MAIN, STATIC, scope, UNICAST, 0, 0, 0, 0,
    ];
    let mut request = Request::new(RTM_NEWROUTE, REPLACE, &header);
    for (kind, address) in [(RTA_DST, to), (RTA_GATEWAY, gateway)] {
        if let Some(address) = address {
            request.attribute(kind, &address);
        }
    }
    request.attribute(RTA_OIF, &index.to_ne_bytes());
    request
}

fn neighbour(index: u32, address: [u8; 4], mac: [u8; 6]) -> Request {
    const RTM_NEWNEIGH: u16 = 28;
    const NDA_DST: u16 = 1;
    const NDA_LLADDR: u16 = 2;
    const PERMANENT: u16 = 0x80;
    let mut header = vec![AF_INET, 0, 0, 0];
    header.extend(index.to_ne_bytes());
    header.extend(PERMANENT.to_ne_bytes());
    header.extend([0, 0]);
    let mut request = Request::new(RTM_NEWNEIGH, REPLACE, &header);
    request.attribute(NDA_DST, &address);
    request.attribute(NDA_LLADDR, &mac);
    request
}

/// `struct ifinfomsg`, with these flags set.
fn interface(index: u32, flags: u32) -> Vec<u8> {
    [0, index, flags, flags]
        .iter()
        .flat_map(|word| word.to_ne_bytes())
        .collect()
}

/// A request, or a part of one.
struct Request(Vec<u8>);

impl Request {
    fn new(kind: u16, flags: u16, header: &[u8]) -> Self {
        const REQUEST_AND_ACK: u16 = 5;
        let mut bytes = vec![0; 16];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(flags | REQUEST_AND_ACK).to_ne_bytes());
        bytes.extend(header);
        Self(bytes)
    }

    fn end_of_pair(&mut self, name: &str, mac: [u8; 6]) {
        self.text(IFLA_IFNAME, name);
        self.attribute(IFLA_MTU, &MTU.to_ne_bytes());
        self.attribute(IFLA_ADDRESS, &mac);
    }

    fn text(&mut self, kind: u16, text: &str) {
        self.attribute(kind, &[text.as_bytes(), b"\0"].concat());
    }

    fn attribute(&mut self, kind: u16, value: &[u8]) {
        self.nested(kind, |inner| inner.0.extend(value));
    }

    fn nested(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let start = self.0.len();
        self.0.extend([0; 4]);
        fill(self);
        let length = (self.0.len() - start) as u16;
        self.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.0[start + 2..start + 4].copy_from_slice(&kind.to_ne_bytes());
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    fn finished(mut self) -> Vec<u8> {
        let length = (self.0.len() as u32).to_ne_bytes();
        self.0[..4].copy_from_slice(&length);
        self.0
    }
}
