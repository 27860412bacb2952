//! Ends the connections to what is gone. Nobody is left hanging: an opener that sends something is answered by the
//! programs with a reset, and one that only waits is made to send something.

use std::{collections::BTreeMap, io, net::Ipv4Addr};

use causeway_common::{maps::PodEntry, tuple::TCP};
use etherparse::PacketBuilder;

use super::sockets::Sockets;
use crate::{
    datapath::{Datapath, DatapathError, End, Ending},
    migrate::{
        MigrateError,
        conntrack::{Conntrack, Tuple},
    },
};

/// Why connections could not be ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum DrainError {
    /// The datapath refused.
    #[error(transparent)]
    Datapath(#[from] DatapathError),
    /// The kernel does not tell of translated connections.
    #[error(transparent)]
    Conntrack(#[from] MigrateError),
    /// The kernel does not end connections of the node.
    #[error("cannot end the node's own connections: {0}")]
    Sockets(#[source] io::Error),
}

/// Ends every connection to `end`. Returns how many there were whose openers had not been told. To be repeated until there
/// are none: a segment of ours may have been lost, or was taken for another one. `round` tells the calls apart.
pub(super) fn end(datapath: &Datapath, end: End, round: u32) -> Result<usize, DrainError> {
    let endings = datapath.end_connections(end)?;
    let untold: Vec<&Ending> = endings.iter().filter(|ending| !ending.is_told).collect();
    let of_node = end_sockets(end, &untold)?;
    let meant = Meant::read(&untold)?;
    let pods: BTreeMap<Ipv4Addr, PodEntry> = if untold.is_empty() {
        BTreeMap::new()
    } else {
        datapath.pod_maps()?.pods().collect()
    };
    let frames: Vec<_> = untold
        .iter()
        .filter(|ending| !ending.of_node)
        .filter_map(|ending| {
            let pod = pods.get(&ending.client.0)?;
            let seen = (meant.of(ending), ending.client);
            Some((pod.ifindex, nudge(pod, seen, round)?))
        })
        .collect();
    if !frames.is_empty() {
        datapath.inject(&frames)?;
    }
    Ok(untold.len() + of_node)
}

/// Ends the node's own connections. Returns how many there were that the flow table does not know.
fn end_sockets(end: End, untold: &[&Ending]) -> Result<usize, DrainError> {
    let mut sockets = Sockets::open().map_err(DrainError::Sockets)?;
    let connected = sockets.connected().map_err(DrainError::Sockets)?;
    if connected.is_empty() {
        return Ok(0);
    }
    let translated = Translated::read()?;
    let mut ended = 0;
    for socket in &connected {
        let server = translated.server(socket.local, socket.remote);
        let is_known = untold
            .iter()
            .any(|ending| (ending.client, ending.server) == (socket.local, server));
        let is_of = match end {
            End::Address(address) => server.0 == address,
            End::Backend(_) => is_known,
        };
        if is_of {
            sockets.destroy(socket).map_err(DrainError::Sockets)?;
            ended += usize::from(!is_known);
        }
    }
    Ok(ended)
}

type Side = (Ipv4Addr, u16);

/// The connections whose destination the kernel translates: by opener and what it meant.
struct Translated(BTreeMap<(Side, Side), Side>);

impl Translated {
    fn read() -> Result<Self, MigrateError> {
        let connections = Conntrack::open()?.connections()?;
        let tcp = connections
            .iter()
            .filter(|connection| connection.original.protocol == TCP);
        Ok(Self(
            tcp.filter_map(|connection| {
                let real = connection.destination()?;
                Some(((connection.original.src, connection.original.dst), real))
            })
            .collect(),
        ))
    }

    fn server(&self, client: Side, meant: Side) -> Side {
        self.0.get(&(client, meant)).copied().unwrap_or(meant)
    }
}

/// What the openers of connections meant, where the kernel has translated it: a ClusterIP, say.
struct Meant(BTreeMap<Tuple, Side>);

impl Meant {
    fn read(endings: &[&Ending]) -> Result<Self, MigrateError> {
        if endings.iter().all(|ending| ending.of_node) {
            return Ok(Self(BTreeMap::new()));
        }
        let connections = Conntrack::open()?.connections()?;
        let translated = connections
            .iter()
            .filter(|connection| connection.destination().is_some());
        Ok(Self(
            translated
                .map(|connection| (connection.reply, connection.original.dst))
                .collect(),
        ))
    }

    fn of(&self, ending: &Ending) -> Side {
        let reply = Tuple {
            protocol: TCP,
            src: ending.server,
            dst: ending.client,
        };
        self.0.get(&reply).copied().unwrap_or(ending.server)
    }
}

/// A segment that no connection takes and every one answers, with its own numbers (RFC 9293 section 3.10.7.4: an
/// acknowledgment for what is outside of the window).
fn nudge(pod: &PodEntry, (server, client): (Side, Side), round: u32) -> Option<Vec<u8>> {
    // Somewhere else at every call: a window may be where the last one was.
    let sequence = round.wrapping_mul(0x4000_0000).wrapping_add(u32::from(client.1));
    let packet = PacketBuilder::ethernet2(pod.host_mac, pod.mac)
        .ipv4(server.0.octets(), client.0.octets(), 64)
        .tcp(server.1, client.1, sequence, 0)
        .ack(0);
    let mut frame = Vec::with_capacity(packet.size(0));
    packet.write(&mut frame, &[]).ok()?;
    Some(frame)
}
