//! Ends the connections to what is gone. Nobody is left hanging: an opener that sends something is answered by the
//! programs with a reset, and one that only waits is made to send something.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv4Addr},
};

use causeway_common::{maps::PodEntry, tuple::TCP};
use etherparse::PacketBuilder;

use super::sockets::Sockets;
use crate::{
    datapath::{Datapath, DatapathError, End, Ending},
    migrate::{MigrateError, conntrack::Conntrack},
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

/// Ends every connection to `end`. Returns how many are not known to have ended. To be repeated until there are none: a
/// segment of ours may have been lost, or was taken for another one. `round` tells the calls apart.
pub(super) fn end(datapath: &Datapath, end: End, round: u32) -> Result<usize, DrainError> {
    let endings = datapath.end_connections(end)?;
    let mut sockets = Sockets::open().map_err(DrainError::Sockets)?;
    let connected = sockets.connected().map_err(DrainError::Sockets)?;
    let (of_node, of_pods): (Vec<&Ending>, Vec<&Ending>) = endings.iter().partition(|ending| ending.of_node);
    let untold: Vec<&Ending> = of_pods.into_iter().filter(|ending| !ending.is_told).collect();
    if untold.is_empty() && connected.is_empty() {
        return Ok(0);
    }
    let services = Services::read()?;
    let mut ended = 0;
    for socket in &connected {
        let server = services.real(socket.local, socket.remote);
        let is_of = match end {
            End::Address(address) => server.0 == address,
            End::Backend(_) => of_node
                .iter()
                .any(|ending| (ending.client, ending.server) == (socket.local, server)),
        };
        if is_of {
            sockets.destroy(socket).map_err(DrainError::Sockets)?;
            ended += 1;
        }
    }
    nudge_all(datapath, &untold, &services, round)?;
    Ok(untold.len() + ended)
}

/// Has the pods' openers say something.
fn nudge_all(
    datapath: &Datapath,
    untold: &[&Ending],
    services: &Services,
    round: u32,
) -> Result<(), DrainError> {
    if untold.is_empty() {
        return Ok(());
    }
    let pods: BTreeMap<IpAddr, PodEntry> = datapath.pod_maps()?.pods().collect();
    let frame = |ending: &&Ending| {
        let pod = pods.get(&ending.client.0.into())?;
        let server = services.meant(ending.client, ending.server);
        Some((pod.ifindex, nudge(pod, (server, ending.client), round)?))
    };
    let frames: Vec<_> = untold.iter().filter_map(frame).collect();
    datapath.inject(&frames)?;
    Ok(())
}

type Side = (Ipv4Addr, u16);

/// Connections whose destination the kernel translates (a ClusterIP's, say), by their opener: what it meant, and what it
/// has reached.
struct Services(BTreeMap<Side, Vec<(Side, Side)>>);

impl Services {
    fn read() -> Result<Self, MigrateError> {
        let mut services: BTreeMap<Side, Vec<(Side, Side)>> = BTreeMap::new();
        for connection in Conntrack::open()?.connections()? {
            if let Some(real) = connection.destination()
                && connection.original.protocol == TCP
            {
                let of_opener = services.entry(connection.original.src).or_default();
                of_opener.push((connection.original.dst, real));
            }
        }
        Ok(Self(services))
    }

    fn of(&self, opener: Side) -> impl Iterator<Item = &(Side, Side)> {
        self.0.get(&opener).into_iter().flatten()
    }

    /// What the opener has reached by what it meant.
    fn real(&self, opener: Side, meant: Side) -> Side {
        let found = self.of(opener).find(|(of, _)| *of == meant);
        found.map_or(meant, |(_, real)| *real)
    }

    /// What the opener meant by what it has reached.
    fn meant(&self, opener: Side, real: Side) -> Side {
        let found = self.of(opener).find(|(_, of)| *of == real);
        found.map_or(real, |(meant, _)| *meant)
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
