//! Ports that conntrack has given to flows are given to no other.

use causeway_common::flow::{Flags, FlowEntry, Nat};

use super::{
    super::conntrack::{Connection, Conntrack, End},
    Flows, Key, Result,
    entries::{key, progress},
};
use crate::datapath::now;

impl Flows {
    /// Holds the ports of the node's that the kernel's flows have, before the programs give ports to new ones. Flows that
    /// begin from here on are held by the programs themselves, as they leave.
    pub(crate) fn reserve(&mut self, conntrack: &mut Conntrack) -> Result<()> {
        for connection in conntrack.connections()? {
            if let Some((answer, is_question)) = self.arrives_as(&connection) {
                let progress = progress(&connection);
                let mut held = FlowEntry::kernel(Flags::HOST, now());
                held.progress = if is_question { progress } else { progress.swapped() }.bits();
                held.last_seen = self.seen_with(&held, answer.protocol, connection.timeout);
                self.put_first(answer, held)?;
            }
        }
        Ok(())
    }

    /// The key of what comes to the node's address by the wire, if the kernel translates it, and whether it is the opener
    /// that sends it. Of other connections the node has a socket, which the programs see.
    fn arrives_as(&self, connection: &Connection) -> Option<(Key, bool)> {
        let Connection { original, reply, .. } = connection;
        if *reply == original.reversed() {
            return None;
        }
        let mut ends = [(reply, false), (original, true)].into_iter();
        ends.find(|(tuple, _)| tuple.dst.0 == self.node() && self.is_outside(tuple.src.0))
            .map(|(tuple, is_question)| (key(tuple, is_question), is_question))
    }

    /// The source that a connection of the kernel's has on the wire: where a pod's flow had its port, the programs have
    /// given it another.
    pub(super) fn on_the_wire(&self, connection: &Connection, source: End) -> End {
        let noted = self.get(&noted(connection));
        match noted.filter(|entry| entry.nat == Nat::SOURCE && entry.has(Flags::HOST)) {
            Some(moved) => (source.0, u16::from_be_bytes(moved.nat_port)),
            None => source,
        }
    }
}

/// The key under which the programs note a connection as the kernel sends it out.
pub(super) fn noted(connection: &Connection) -> Key {
    key(&connection.reply.reversed(), true)
}
