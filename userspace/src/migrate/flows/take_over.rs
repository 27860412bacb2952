//! From conntrack to Causeway.

use std::{collections::BTreeSet, net::Ipv4Addr};

use causeway_common::{
    flow::{Flags, FlowEntry, Nat},
    tuple::TCP,
};

use super::{
    super::conntrack::{Connection, Conntrack, Lost, Tuple},
    Entry, Flows, Key, Result,
    entries::{Direction, answers_to_kernel, key, progress},
    let_packets_pass,
    reserve::noted,
};
use crate::datapath::now;

/// What was taken over.
#[derive(Debug, Default)]
pub(crate) struct Imported {
    /// Flows that are carried from now on.
    pub(crate) carried: usize,
    /// Flows of services: the kernel's, with our translation.
    pub(crate) kernel: usize,
    pub(crate) lost: Vec<Lost>,
}

/// A connection that the kernel translates as it leaves the node.
struct Masqueraded {
    connection: Connection,
    direction: Direction,
}

impl Flows {
    /// Notes the flows that others have opened towards these pods: what the pods answer keeps their addresses. Returns how
    /// many were not noted yet.
    pub(crate) fn note_answers(
        &mut self,
        pods: &BTreeSet<Ipv4Addr>,
        conntrack: &mut Conntrack,
    ) -> Result<usize> {
        let mut noted = 0;
        for Connection { original, reply, .. } in conntrack.connections()? {
            let is_inbound = pods.contains(&original.dst.0) && !pods.contains(&original.src.0);
            if !is_inbound || reply != original.reversed() || original.src.0 == self.node() {
                continue;
            }
            let (question, answer) = (key(&original, true), key(&reply, false));
            if self.get(&answer).is_none_or(|entry| !entry.has(Flags::ANSWER)) {
                self.put(question, FlowEntry::kernel(0, now()))?;
                self.put(answer, FlowEntry::kernel(Flags::ANSWER, now()))?;
                noted += 1;
            }
        }
        Ok(noted)
    }

    /// Makes the flows of pods that the kernel translates as they leave the node Causeway's. No new ones of that kind may
    /// come meanwhile, and the ports of those that are there have to be held.
    pub(crate) fn take_over(&mut self, imported: &mut Imported, conntrack: &mut Conntrack) -> Result<()> {
        self.release_held(conntrack)?;
        let (mut once, mut twice, mut over) = (Vec::new(), Vec::new(), Vec::new());
        for connection in conntrack.connections()? {
            let Some(direction) = self.leaving(&connection) else {
                continue;
            };
            let is_over = connection.original.protocol == TCP && progress(&connection).is_over();
            let of = if is_over {
                &mut over
            } else if connection.destination().is_none() {
                &mut once
            } else {
                &mut twice
            };
            of.push(Masqueraded {
                connection,
                direction,
            });
        }
        imported.carried += self.carry(&once, conntrack)?;
        imported.carried += self.carry_last_packets(&over)?;
        self.share(twice, imported, conntrack)?;
        imported.lost.extend(self.keep_masqueraded(conntrack)?);
        Ok(())
    }

    /// The directions of a pod's connection that leaves by the uplink with the node's address.
    fn leaving(&self, connection: &Connection) -> Option<Direction> {
        let source = connection.source().filter(|source| source.0 == self.node())?;
        let remote = connection.reply.src;
        if !self.is_outside(remote.0) {
            return None;
        }
        let inside = Tuple {
            dst: remote,
            ..connection.original
        };
        self.direction(&inside, self.on_the_wire(connection, source))
    }

    /// Flows without a service are carried. Of TCP the answers' entry comes first: conntrack must not see answers to what it
    /// has not seen, and what is still on its way through the kernel is left alone. Of others it comes last, because a
    /// first packet on its way would be taken for the node's, and be given another port. Returns how many there are.
    fn carry(&mut self, flows: &[Masqueraded], conntrack: &mut Conntrack) -> Result<usize> {
        for first_pass in [true, false] {
            for Masqueraded {
                connection,
                direction,
            } in flows
            {
                if self.has_begun_anew(direction) {
                    continue;
                }
                let [forward, reverse] = self.halves(direction, self.state_for(&direction.pod), connection);
                if first_pass == (direction.key.protocol == TCP) {
                    // What the programs noted of the kernel's translation.
                    self.remove(&noted(connection))?;
                    self.put_half(direction.answer, reverse)?;
                } else if first_pass {
                    self.put_half(direction.answer, answers_to_kernel(&direction.key))?;
                }
                if first_pass {
                    self.put_half(direction.key, forward)?;
                }
            }
            if !flows.is_empty() {
                let_packets_pass();
            }
        }
        let mut carried = 0;
        for Masqueraded {
            connection,
            direction,
        } in flows
        {
            if !self.has_begun_anew(direction) {
                self.remember(&direction.key, direction.port)?;
                carried += 1;
            }
            conntrack.remove(connection)?;
        }
        Ok(carried)
    }

    /// Of connections that are over, what still comes is carried. The pod may open another one with the tuple at any
    /// moment, which is not to be mistaken for it: nothing is written where something is, and conntrack, which would be told
    /// to forget that other one, is left alone. Returns how many there are.
    fn carry_last_packets(&mut self, flows: &[Masqueraded]) -> Result<usize> {
        let mut carried = 0;
        for Masqueraded {
            connection,
            direction,
        } in flows
            .iter()
            .filter(|flow| flow.connection.destination().is_none())
        {
            let [forward, reverse] = self.halves(direction, self.state_for(&direction.pod), connection);
            if self.put_first(direction.key, forward)? {
                self.put_half(direction.answer, reverse)?;
                self.remember(&direction.key, direction.port)?;
                carried += 1;
            }
        }
        Ok(carried)
    }

    /// Whether the pod has ended the flow and opened another with its tuple since conntrack was asked: that has a port
    /// already.
    fn has_begun_anew(&self, direction: &Direction) -> bool {
        self.get(&direction.key)
            .is_some_and(|entry| entry.nat == Nat::SOURCE && entry.nat_port != direction.port.to_be_bytes())
    }

    /// Writes half of a flow, unless it is there: what it has seen since counts.
    fn put_half(&mut self, key: Key, half: Entry) -> Result<()> {
        let of = |entry: &Entry| (entry.nat_addr, entry.nat_port);
        match self.get(&key) {
            Some(there) if of(&there) == of(&half) && there.nat != Nat::NONE => Ok(()),
            _ => self.put(key, half),
        }
    }

    /// Of a flow that a service leads outside, the kernel keeps the service's translation. Its connection has to be made
    /// anew for that, and meanwhile no packet may come.
    fn share(
        &mut self,
        mut flows: Vec<Masqueraded>,
        imported: &mut Imported,
        conntrack: &mut Conntrack,
    ) -> Result<()> {
        flows.retain(|flow| !self.has_begun_anew(&flow.direction));
        if flows.is_empty() {
            return Ok(());
        }
        for Masqueraded {
            connection,
            direction,
        } in &flows
        {
            self.hold_flow(key(&connection.original, true), direction, progress(connection))?;
        }
        let_packets_pass();
        for Masqueraded {
            connection,
            direction,
        } in &flows
        {
            // As it was when it was held; unless the pod has opened another by then.
            let Some(held) = conntrack.again(connection)? else {
                self.remove(&key(&connection.original, true))?;
                self.remove(&direction.answer)?;
                continue;
            };
            match self.keep_service(&held, direction, conntrack)? {
                None => imported.kernel += 1,
                Some(lost) => imported.lost.push(lost),
            }
        }
        Ok(())
    }

    /// What is masqueraded ends with the address that it is masqueraded with, and when it leaves by another interface
    /// (`nf_nat_oif_changed`, Linux 6.18); what is translated by itself goes on. So what the kernel masquerades and does not
    /// leave to Causeway is made anew, with the same translations. Its packets that come from a pod or by the wire are held
    /// meanwhile. Returns what could not be made again.
    pub(crate) fn keep_masqueraded(&mut self, conntrack: &mut Conntrack) -> Result<Vec<Lost>> {
        let mut connections = conntrack.connections()?;
        connections.retain(|connection| {
            let is_masqueraded = connection.has_source_translation() && connection.reply.dst.0 == self.node();
            is_masqueraded && self.leaving(connection).is_none()
        });
        let mut lost = Vec::new();
        if connections.is_empty() {
            return Ok(lost);
        }
        let mut before = Vec::new();
        for connection in &connections {
            for (tuple, asks) in [(&connection.original, true), (&connection.reply, false)] {
                before.extend(self.hold_arriving(tuple, asks)?);
            }
        }
        let_packets_pass();
        for connection in &connections {
            if let Some(held) = conntrack.again(connection)? {
                conntrack.remove(&held)?;
                lost.extend(conntrack.replace(&held)?);
            }
        }
        for (key, entry) in before {
            match entry {
                Some(entry) => self.put(key, entry)?,
                None => self.remove(&key)?,
            }
        }
        Ok(lost)
    }
}
