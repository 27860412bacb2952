//! Flows to which the programs have given another port than the kernel, because a pod's flow had that: the node's own, and
//! what the rule translated as soon as it was back. From here on the kernel gives them the port that they have on the wire.

use causeway_common::{
    flow::{Flags, FlowEntry, Nat},
    tuple::ICMP,
};

use super::{
    super::conntrack::{Connection, Conntrack, Lost, Tuple},
    Entry, Exported, Flows, Key, Result,
    entries::{Direction, key, progress, tuple},
    held::{AT_A_TIME, held},
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

/// Such a flow that conntrack does not have yet, and why not if that was tried.
type Waiting = (Moved, Option<Lost>);

/// How often flows are looked for that have been moved meanwhile.
const ROUNDS: u32 = 8;

impl Flows {
    /// Makes conntrack's ports those of the wire. Before that it could not be given the pods' flows that have the ports.
    ///
    /// Until conntrack knows a flow's port on the wire, the rule may choose it for yet another, which is moved in its turn:
    /// then all is done once more.
    pub(super) fn settle_moved(&mut self, exported: &mut Exported, conntrack: &mut Conntrack) -> Result<()> {
        let mut waiting = Vec::new();
        for _ in 0..ROUNDS {
            let mut moved = self.moved(conntrack)?.into_iter().peekable();
            while moved.peek().is_some() {
                let flows: Vec<Moved> = moved.by_ref().take(AT_A_TIME).collect();
                waiting.extend(self.take_out(flows, conntrack)?);
                waiting = self.settle(waiting, exported, conntrack)?;
            }
            waiting = self.settle(waiting, exported, conntrack)?;
            if waiting.is_empty() {
                return Ok(());
            }
        }
        for (flow, lost) in waiting {
            exported.count(lost);
            self.finish_moved(&flow)?;
        }
        Ok(())
    }

    /// Holds flows, and takes them out of conntrack.
    fn take_out(&mut self, flows: Vec<Moved>, conntrack: &mut Conntrack) -> Result<Vec<Waiting>> {
        for flow in &flows {
            self.hold(flow)?;
        }
        let_packets_pass();
        let mut waiting = Vec::new();
        for mut flow in flows {
            // It may have come further before it was held, and what conntrack has to take is where it is.
            if let Some(held) = conntrack.again(&flow.before)? {
                conntrack.remove(&held)?;
                let reply = flow.after.reply;
                flow.after = Connection { reply, ..held };
                waiting.push((flow, None));
            } else {
                self.finish_moved(&flow)?;
            }
        }
        Ok(waiting)
    }

    /// Returns those whose ports others have, and which.
    fn settle(
        &mut self,
        flows: Vec<Waiting>,
        exported: &mut Exported,
        conntrack: &mut Conntrack,
    ) -> Result<Vec<Waiting>> {
        let mut waiting = Vec::new();
        for (flow, _) in flows {
            match conntrack.replace(&flow.after)? {
                None => {
                    exported.count(None);
                    self.finish_moved(&flow)?;
                }
                lost => waiting.push((flow, lost)),
            }
        }
        Ok(waiting)
    }

    fn finish_moved(&mut self, flow: &Moved) -> Result<()> {
        self.put(flow.answer, FlowEntry::kernel(Flags::HOST, now()))?;
        self.remove(&flow.noted)?;
        match flow.direction {
            Some(_) => self.put(key(&flow.after.original, true), FlowEntry::kernel(0, now())),
            None => Ok(()),
        }
    }

    fn moved(&self, conntrack: &mut Conntrack) -> Result<Vec<Moved>> {
        let is_moved =
            |key: &Key, entry: &Entry| entry.nat == Nat::SOURCE && entry.has(Flags::HOST) && key.has_ports();
        let mut moved = Vec::new();
        for (noted, entry) in self.all(is_moved)? {
            // One by one: they are few, and conntrack may have very many.
            if let Some(before) = conntrack.find(&tuple(&noted).reversed(), true)? {
                moved.extend(self.moved_from(noted, &entry, before));
            }
        }
        Ok(moved)
    }

    fn moved_from(&self, noted: Key, entry: &Entry, before: Connection) -> Option<Moved> {
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
            dst: tuple(&noted).dst,
            ..before.original
        };
        Some(Moved {
            noted,
            answer: entry.peer_key(&noted),
            direction: self.direction(&inside, source),
            before,
            after,
        })
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
