//! Flows to which the programs have given another port than the kernel, because a pod's flow had that: the node's own, and
//! what the rule translated as soon as it was back. From here on the kernel gives them the port that they have on the wire.

use causeway_common::{
    flow::{Flags, FlowEntry, Nat},
    tuple::ICMP,
};

use super::{
    super::conntrack::{Connection, Conntrack, Tuple},
    Entry, Exported, Flows, Key, Result,
    entries::{Direction, key, progress, tuple},
    held::held,
    let_packets_pass,
};
use crate::datapath::now;

/// Such a flow.
struct Moved {
    /// As the kernel has it.
    before: Connection,
    /// As it is to have it.
    after: Connection,
    /// Its key as the kernel sends it out, and that of its answers on the wire.
    noted: Key,
    answer: Key,
    /// Of a pod's.
    direction: Option<Direction>,
}

impl Flows {
    /// Makes conntrack's ports those of the wire. Before that it could not be given the pods' flows that have the ports.
    pub(super) fn settle_moved(&mut self, exported: &mut Exported, conntrack: &mut Conntrack) -> Result<()> {
        let moved = self.moved(conntrack)?;
        if moved.is_empty() {
            return Ok(());
        }
        for flow in &moved {
            self.hold(flow)?;
        }
        let_packets_pass();
        for flow in &moved {
            conntrack.remove(&flow.before)?;
        }
        for flow in &moved {
            exported.count(conntrack.replace(&flow.after)?);
            self.put(flow.answer, FlowEntry::kernel(Flags::HOST, now()))?;
            self.remove(&flow.noted)?;
            if flow.direction.is_some() {
                self.put(key(&flow.after.original, true), FlowEntry::kernel(0, now()))?;
            }
        }
        Ok(())
    }

    fn moved(&self, conntrack: &mut Conntrack) -> Result<Vec<Moved>> {
        let is_moved =
            |key: &Key, entry: &Entry| entry.nat == Nat::SOURCE && entry.has(Flags::HOST) && key.has_ports();
        let entries = self.all(is_moved)?;
        if entries.is_empty() {
            return Ok(Vec::new());
        }
        let known = conntrack.by_tuple()?;
        let moved = |(noted, entry): &(Key, Entry)| {
            let before = known.get(&tuple(noted).reversed())?.clone();
            // Where the one that has the port is given back already, what was moved is over.
            let opener = self.get(&key(&before.original, true));
            if opener.is_some_and(|entry| entry.nat == Nat::SOURCE && !entry.has(Flags::HOST)) {
                return None;
            }
            let source = (self.node(), u16::from_be_bytes(entry.nat_port));
            let mut after = before.clone();
            after.reply.dst = source;
            if noted.protocol == ICMP {
                after.reply.src.1 = source.1;
            }
            let inside = Tuple {
                dst: tuple(noted).dst,
                ..before.original
            };
            Some(Moved {
                noted: *noted,
                answer: entry.peer_key(noted),
                direction: self.direction(&inside, source),
                before,
                after,
            })
        };
        Ok(entries.iter().filter_map(moved).collect())
    }

    /// Of the node's own only the answers: what it sends is translated by its entry still, whatever conntrack does.
    fn hold(&mut self, flow: &Moved) -> Result<()> {
        let progress = progress(&flow.before);
        match &flow.direction {
            Some(direction) => self.hold_flow(key(&flow.before.original, true), direction, progress),
            None => match self.get(&flow.answer) {
                Some(entry) => self.put(
                    flow.answer,
                    held(Entry {
                        in_ifindex: self.config.uplink_ifindex,
                        mtu: u16::MAX,
                        ..entry
                    }),
                ),
                None => Ok(()),
            },
        }
    }
}
