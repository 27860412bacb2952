//! Flows that are held while conntrack's connection is made anew: their packets are lost meanwhile. What is needed to finish
//! that stands in their entries, in case that whoever began it was killed.

use causeway_common::{
    flow::{Exit, Flags, FlowEntry, Nat, State},
    tuple::FlowKey,
};

use super::{
    super::conntrack::{Connection, Conntrack},
    Entry, Flows, Key, Result,
    entries::{Direction, key, progress, tuple},
};
use crate::datapath::now;

/// No interface has this index: what is redirected there is lost.
const NOWHERE: u32 = 0x7fff_fffe;

/// An entry whose packets are lost. What it would translate stays in it.
pub(super) fn held(mut entry: Entry) -> Entry {
    entry.state = State::CARRIED;
    entry.nat = Nat::NONE;
    entry.out_ifindex = NOWHERE;
    // Or the programs would look once a second where the packets belong, and send them there.
    entry.flags |= Flags::FIXED_HOP;
    entry
}

impl Flows {
    /// Finishes what an interrupted call has left: flows that are held become flows of the kernel, of which Causeway
    /// translates the source.
    pub(crate) fn release_held(&mut self, conntrack: &mut Conntrack) -> Result<()> {
        let held = self.all(|_, entry| entry.out_ifindex == NOWHERE)?;
        let (answers, questions): (Vec<_>, Vec<_>) =
            held.into_iter().partition(|(_, entry)| entry.exit == Exit::POD);
        for (question, entry) in &questions {
            let is_answer = |(answer, of): &&(Key, Entry)| {
                let pod = (of.nat_addr, of.nat_port, answer.protocol);
                pod == (question.src, question.src_port, question.protocol)
                    && answer.dst_port == entry.nat_port
            };
            match answers.iter().find(is_answer) {
                Some((answer, _)) => self.finish(question, entry, answer, conntrack)?,
                // Held first, and nothing was changed yet.
                None => self.remove(question)?,
            }
        }
        Ok(())
    }

    /// `question` is the flow as the pod sends it, `of` its entry, `answer` the key of its answers on the wire.
    fn finish(&mut self, question: &Key, of: &Entry, answer: &Key, conntrack: &mut Conntrack) -> Result<()> {
        let original = tuple(question);
        let inside = FlowKey {
            src: question.src,
            src_port: question.src_port,
            ..answer.reversed()
        };
        let source = (self.node(), u16::from_be_bytes(answer.dst_port));
        let Some(direction) = self.direction(&tuple(&inside), source) else {
            self.remove(question)?;
            return self.remove(answer);
        };
        let known = conntrack.by_tuple()?;
        let connection = match known.get(&original) {
            Some(connection) => connection.clone(),
            None => self.open_connection(original, tuple(&inside).reversed(), of.progress()),
        };
        self.keep_service(&connection, &direction, conntrack)
    }

    /// Leaves the destination's translation of a held flow to conntrack, and takes the source's.
    pub(super) fn keep_service(
        &mut self,
        connection: &Connection,
        direction: &Direction,
        conntrack: &mut Conntrack,
    ) -> Result<()> {
        conntrack.remove(connection)?;
        let mut kept = connection.clone();
        kept.reply.dst = connection.original.src;
        if !conntrack.create(&kept)? {
            // A packet came all the same, and conntrack has begun the connection anew by its own rules.
            tracing::warn!(original = ?connection.original, "a connection of a service could not be kept as it was");
        }
        let progress = progress(connection);
        self.put(direction.key, self.forward(direction, State::KERNEL, progress))?;
        self.remove(&direction.answer.reversed())?;
        self.put(direction.answer, self.reverse(direction, State::KERNEL, progress))?;
        let question = key(&connection.original, true);
        if question != direction.key {
            self.put(question, FlowEntry::kernel(0, now()))?;
        }
        self.remember(&direction.key, direction.port)
    }
}

#[cfg(test)]
mod tests {
    use causeway_common::flow::Hop;

    use super::*;

    /// Once a second the programs ask the kernel where packets of a carried flow go, unless the hop is fixed: what is held
    /// would leave with the pod's address.
    #[test]
    fn what_is_held_is_sent_nowhere_at_any_second() {
        let mut entry: Entry = FlowEntry::kernel(0, 0);
        entry.nat = Nat::SOURCE;
        entry.leave_by(&Hop {
            exit: Exit::UPLINK,
            ifindex: 2,
            mtu: 1500,
            ..Hop::UNKNOWN
        });
        let held = held(entry);
        assert_eq!(
            (held.out_ifindex, held.state, held.nat),
            (NOWHERE, State::CARRIED, Nat::NONE)
        );
        assert!(held.has(Flags::FIXED_HOP));
    }
}
