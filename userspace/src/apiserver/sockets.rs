//! The node's own connections to what is gone: the kernel ends them (`SOCK_DESTROY`, Linux 4.5), and tells both sides.

use std::{io, net::Ipv4Addr};

use crate::migrate::netlink::{Protocol, Socket};

/// `SOCK_DIAG_BY_FAMILY` and `SOCK_DESTROY` of `linux/sock_diag.h`.
const LIST: u16 = 20;
const DESTROY: u16 = 21;
/// Offsets in `struct inet_diag_msg` (`linux/inet_diag.h`): the socket's identity, and its length.
const ID: usize = 4;
const ID_LENGTH: usize = 48;
/// `1 << TCP_LISTEN` and `1 << TCP_TIME_WAIT` (`net/tcp_states.h`): there is nobody to tell.
const NOBODY: u32 = 1 << 10 | 1 << 6;
const FAMILY_V6: u8 = libc::AF_INET6 as u8;
const FAMILIES: [u8; 2] = [libc::AF_INET as u8, FAMILY_V6];

/// A TCP socket of the node that is connected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Connected {
    pub(super) local: (Ipv4Addr, u16),
    pub(super) remote: (Ipv4Addr, u16),
    /// Its own; one of IPv6 may be connected to an IPv4 address (RFC 4291 section 2.5.5.2).
    family: u8,
    /// `struct inet_diag_sockid` as the kernel wrote it.
    identity: Vec<u8>,
}

/// The connected TCP sockets of the caller's network namespace.
#[derive(Debug)]
pub(super) struct Sockets(Socket);

impl Sockets {
    pub(super) fn open() -> io::Result<Self> {
        Socket::open(Protocol::SockDiag).map(Self)
    }

    pub(super) fn connected(&mut self) -> io::Result<Vec<Connected>> {
        let anyone = [0; ID_LENGTH];
        let mut connected = Vec::new();
        for family in FAMILIES {
            let messages = self.0.list(LIST, &request(family, !NOBODY, &anyone))?;
            connected.extend(messages.iter().filter_map(|message| parse(family, message)));
        }
        Ok(connected)
    }

    /// Ends a connection: its owner's next call fails with `ECONNABORTED`. One that has ended is no matter.
    pub(super) fn destroy(&mut self, socket: &Connected) -> io::Result<()> {
        match self
            .0
            .ask(DESTROY, 0, &request(socket.family, u32::MAX, &socket.identity))
        {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            done => done.map(drop),
        }
    }
}

/// The remote address of every TCP connection of the node itself.
pub fn own_connections() -> io::Result<Vec<Ipv4Addr>> {
    let connected = Sockets::open()?.connected()?;
    Ok(connected.iter().map(|socket| socket.remote.0).collect())
}

/// `struct inet_diag_req_v2`.
fn request(family: u8, states: u32, identity: &[u8]) -> Vec<u8> {
    let mut request = vec![family, libc::IPPROTO_TCP as u8, 0, 0];
    request.extend_from_slice(&states.to_ne_bytes());
    request.extend_from_slice(identity);
    request
}

fn parse(family: u8, message: &[u8]) -> Option<Connected> {
    /// The first twelve bytes of an IPv4 address in an IPv6 one.
    const MAPPED: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];
    let identity = message.get(ID..ID + ID_LENGTH)?;
    let port = |at: usize| u16::from_be_bytes([identity[at], identity[at + 1]]);
    let addr = |at: usize| {
        let at = match family {
            FAMILY_V6 if identity[at..at + 12] == MAPPED => at + 12,
            FAMILY_V6 => return None,
            _ => at,
        };
        Some(Ipv4Addr::new(
            identity[at],
            identity[at + 1],
            identity[at + 2],
            identity[at + 3],
        ))
    };
    Some(Connected {
        local: (addr(4)?, port(0)),
        remote: (addr(20)?, port(2)),
        family,
        identity: identity.to_vec(),
    })
}

#[cfg(test)]
mod tests {
    use std::{
        io::{ErrorKind, Read as _},
        net::{TcpListener, TcpStream},
        time::Duration,
    };

    use super::*;

    #[test]
    fn a_socket_of_ipv6_with_an_ipv4_address_is_found() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let Ok(client) = TcpStream::connect(format!("[::ffff:127.0.0.1]:{port}")) else {
            // A machine without IPv6 has no such sockets.
            return;
        };
        let own = client.local_addr().unwrap().port();
        let connected = Sockets::open().unwrap().connected().unwrap();
        let found = connected
            .iter()
            .find(|socket| socket.local.1 == own && socket.remote.1 == port)
            .unwrap();
        assert_eq!((found.family, found.remote.0), (FAMILY_V6, Ipv4Addr::LOCALHOST));
    }

    /// Needs CAP_NET_ADMIN, as everything that this is for.
    #[test]
    fn a_connection_that_is_destroyed_fails_at_both_ends_and_no_other_one_does() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let mut client = TcpStream::connect(address).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        let other = TcpStream::connect(address).unwrap();
        let (mut other_server, _) = listener.accept().unwrap();
        let port = |stream: &TcpStream| stream.local_addr().unwrap().port();
        let mut sockets = Sockets::open().unwrap();
        let all = sockets.connected().unwrap();
        let own = all
            .iter()
            .find(|socket| socket.local.1 == port(&client) && socket.remote.1 == address.port());
        match sockets.destroy(own.unwrap()) {
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => return,
            destroyed => destroyed.unwrap(),
        }
        let mut buffer = [0];
        assert_eq!(
            client.read(&mut buffer).unwrap_err().kind(),
            ErrorKind::ConnectionAborted
        );
        assert_eq!(
            server.read(&mut buffer).unwrap_err().kind(),
            ErrorKind::ConnectionReset
        );
        sockets.destroy(own.unwrap()).unwrap();
        other_server
            .set_read_timeout(Some(Duration::from_millis(50)))
            .unwrap();
        assert_eq!(
            other_server.read(&mut buffer).unwrap_err().kind(),
            ErrorKind::WouldBlock
        );
        drop(other);
    }
}
