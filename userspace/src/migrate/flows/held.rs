//! Flows that are held while conntrack's connection is made anew: their packets are lost meanwhile. What is needed to finish
//! that stands in their entries, in case that whoever began it was killed.

use causeway_common::{
    flow::{Exit, Flags, FlowEntry, Nat, Progress, State},
    tuple::FlowKey,
};

use super::{
    super::conntrack::{Connection, Conntrack, Lost, Tuple},
    Entry, Flows, Key, Result,
    entries::{Direction, key, tuple},
    reserve::noted,
};
use crate::datapath::now;

/// How many flows are held at a time: what is held for a second is silent for three, because TCP waits twice as long each
/// time.
pub(super) const AT_A_TIME: usize = 64;

/// No interface has this index: what is redirected there is lost.
const NOWHERE: u32 = 0x7fff_fffe;

/// An entry whose packets are lost. What it would translate stays in it. That of the answers shows that the port is taken;
/// of the other the programs would look once a second whether it has its port still.
pub(super) fn held(mut entry: Entry) -> Entry {
    entry.state = State::CARRIED;
    if entry.nat == Nat::SOURCE {
        entry.nat = Nat::NONE;
    }
    entry.out_ifindex = NOWHERE;
    // Or the programs would look once a second where the packets belong, and send them there.
    entry.flags |= Flags::FIXED_HOP;
    entry
}

impl Flows {
    /// Holds a flow of a pod that the kernel translates. `question`: as the pod sends it.
    pub(super) fn hold_flow(&mut self, question: Key, of: &Direction, progress: Progress) -> Result<()> {
        self.put(question, held(self.forward(of, State::CARRIED, progress)))?;
        self.put(of.answer, held(self.reverse(of, State::CARRIED, progress)))
    }

    /// Holds what arrives with this tuple from a pod or by the wire. Returns what there was under its key, if it arrives there at
    /// all; `asks`: it is the opener's.
    pub(super) fn hold_arriving(
        &mut self,
        tuple: &Tuple,
        asks: bool,
    ) -> Result<Option<(Key, Option<Entry>)>> {
        let mut entry = FlowEntry::kernel(0, now());
        entry.mtu = u16::MAX;
        match self.pods.get(&tuple.src.0) {
            Some(pod) => (entry.in_ifindex, entry.in_mac) = (pod.ifindex, pod.mac),
            None if tuple.src.0 == self.node() => return Ok(None),
            None => entry.in_ifindex = self.config.uplink_ifindex,
        }
        let key = key(tuple, asks);
        let before = self.get(&key);
        self.put(key, held(entry))?;
        Ok(Some((key, before)))
    }

    /// Finishes what an interrupted call has left: flows that are held become flows of the kernel, of which Causeway
    /// translates the source.
    pub(crate) fn release_held(&mut self, conntrack: &mut Conntrack) -> Result<()> {
        let held = self.all(|_, entry| entry.out_ifindex == NOWHERE)?;
        let of_pods = |entry: &Entry| entry.exit != Exit::STACK && !entry.has(Flags::HOST);
        let (of_pods, others): (Vec<_>, Vec<_>) = held.into_iter().partition(|(_, entry)| of_pods(entry));
        let (answers, questions): (Vec<_>, Vec<_>) = of_pods
            .into_iter()
            .partition(|(_, entry)| entry.exit == Exit::POD);
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
        others
            .iter()
            .try_for_each(|(key, entry)| self.release(key, entry, conntrack))
    }

    /// What is the kernel's goes on as conntrack has it; of the node's own it may be that the programs have to translate it.
    fn release(&mut self, key: &Key, entry: &Entry, conntrack: &mut Conntrack) -> Result<()> {
        let as_sent = Entry {
            nat: Nat::DESTINATION,
            ..*entry
        };
        if !entry.has(Flags::HOST) {
            return self.remove(key);
        }
        if conntrack.by_tuple()?.contains_key(&tuple(key)) {
            self.remove(&as_sent.peer_key(key))?;
            return self.put(*key, FlowEntry::kernel(Flags::HOST, now()));
        }
        let mut answers = FlowEntry::kernel(Flags::HOST, now());
        (answers.nat, answers.nat_addr, answers.nat_port) = (as_sent.nat, entry.nat_addr, entry.nat_port);
        answers.progress = entry.progress;
        self.put(*key, answers)
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
            None => self.open_connection(original, tuple(&inside).reversed(), of),
        };
        if let Some(lost) = self.keep_service(&connection, &direction, conntrack)? {
            tracing::warn!(flow = %lost, "a flow is lost");
        }
        Ok(())
    }

    /// Leaves the destination's translation of a held flow to conntrack, and takes the source's. Returns why
    /// conntrack has no room for that.
    pub(super) fn keep_service(
        &mut self,
        connection: &Connection,
        direction: &Direction,
        conntrack: &mut Conntrack,
    ) -> Result<Option<Lost>> {
        conntrack.remove(connection)?;
        let mut kept = connection.clone();
        kept.reply.dst = connection.original.src;
        let lost = conntrack.replace(&kept)?;
        let [forward, reverse] = self.halves(direction, State::KERNEL, connection);
        self.put(direction.key, forward)?;
        self.remove(&noted(connection))?;
        self.put(direction.answer, reverse)?;
        let question = key(&connection.original, true);
        if question != direction.key {
            self.put(question, FlowEntry::kernel(0, now()))?;
        }
        self.remember(&direction.key, direction.port)?;
        Ok(lost)
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
