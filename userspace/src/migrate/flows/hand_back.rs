//! From Causeway to conntrack.

use std::collections::{BTreeMap, BTreeSet};

use causeway_common::{
    flow::{Flags, FlowEntry, Nat, Progress, State},
    tuple::{ICMP, TCP, UDP},
};

use super::{
    super::conntrack::{Connection, Conntrack, Lost, Tuple, tcp},
    Entry, Exported, Flows, Key, Result,
    entries::{answers_to_kernel, key, tuple},
    let_packets_pass,
};
use crate::datapath::now;

impl Flows {
    /// Makes conntrack know the carried flows that are translated, so that it gives their ports to nobody else. They go on
    /// being carried.
    pub(crate) fn announce(&mut self, conntrack: &mut Conntrack) -> Result<()> {
        self.release_held(conntrack)?;
        let known = conntrack.by_tuple()?;
        for (key, entry) in self.translated()? {
            if entry.state == State::CARRIED {
                self.make_known(&key, &entry, &known, conntrack)?;
            }
        }
        Ok(())
    }

    /// Gives every flow to the kernel. The rule that translates new ones is in force already.
    pub(crate) fn hand_back(&mut self, conntrack: &mut Conntrack) -> Result<Exported> {
        // The last packets that the rule has not seen are translated here, and noted, before the flows are listed.
        let_packets_pass();
        // What began since it was last done.
        self.announce(conntrack)?;
        let mut exported = Exported::default();
        self.settle_moved(&mut exported, conntrack)?;
        let known = conntrack.by_tuple()?;
        let (carried, others): (Vec<_>, Vec<_>) = self
            .translated()?
            .into_iter()
            .partition(|(_, entry)| entry.state == State::CARRIED);
        // First those whose ports the rule does not know yet.
        self.give_held(&others, &known, &mut exported, conntrack)?;
        for (key, entry) in &carried {
            self.give(key, entry, &known, &mut exported, conntrack)?;
        }
        // The rule may have chosen ports of flows that had expired meanwhile.
        self.settle_moved(&mut exported, conntrack)?;
        exported.flows += self.refresh(&known, conntrack)?;
        self.forget_untranslated(conntrack)?;
        // The pods' routes are about to change.
        exported.lost.extend(self.keep_masqueraded(conntrack)?);
        Ok(exported)
    }

    /// Of a flow that Causeway translated conntrack has seen the first packet, and not that it was translated. What it knows
    /// of those that are over would keep the rule from a new flow with the same ports, which would leave with the pod's
    /// address.
    fn forget_untranslated(&self, conntrack: &mut Conntrack) -> Result<()> {
        for connection in conntrack.connections()? {
            let (pod, remote) = (connection.original.src.0, connection.reply.src.0);
            let leaves =
                self.pods.contains_key(&pod) && !self.pods.contains_key(&remote) && remote != self.node();
            if leaves && connection.source().is_none() && self.is_masqueraded(remote) {
                conntrack.remove(&connection)?;
            }
        }
        Ok(())
    }

    /// The forward entries of the pods' translated flows, without those that have expired.
    fn translated(&self) -> Result<Vec<(Key, Entry)>> {
        let is_it = |key: &Key, entry: &Entry| {
            let is_ours = entry.nat == Nat::SOURCE && !entry.has(Flags::HOST) && key.has_ports();
            // Of ICMP only questions of a ping: conntrack knows no others by their identifier.
            let is_known = key.protocol != ICMP || key.dst_port == [0; 2];
            is_ours && is_known && self.left_of(key, entry) > 0
        };
        self.all(is_it)
    }

    /// The connection of a flow that is translated at the uplink alone.
    fn connection(&self, key: &Key, entry: &Entry) -> Connection {
        let original = tuple(key);
        let port = u16::from_be_bytes(entry.nat_port);
        let mut reply = original.reversed();
        reply.dst = (self.node(), port);
        if key.protocol == ICMP {
            reply.src.1 = port;
        }
        let connection = self.open_connection(original, reply, entry);
        Connection {
            timeout: self.left_of(key, entry),
            ..connection
        }
    }

    /// A connection that is as far as this entry of its opener. One that was reset is taken for open, for the time that it
    /// has left: the reset may have been a stranger's.
    pub(super) fn open_connection(&self, original: Tuple, reply: Tuple, entry: &Entry) -> Connection {
        let progress = entry.progress();
        let state = match original.protocol {
            TCP if progress.both(Progress::FIN) => tcp::TIME_WAIT,
            TCP if progress.either(Progress::PAST_SYN) => tcp::ESTABLISHED,
            TCP => tcp::SYN_RECV,
            _ => 0,
        };
        let timeout = self.config.timeouts.of(entry, original.protocol);
        Connection::new(original, reply, timeout, state)
    }

    /// Conntrack may know the first packet of it, without its translation, or with it from an earlier call. Returns why
    /// there is no room for it.
    fn make_known(
        &self,
        key: &Key,
        entry: &Entry,
        known: &BTreeMap<Tuple, Connection>,
        conntrack: &mut Conntrack,
    ) -> Result<Option<Lost>> {
        let connection = self.connection(key, entry);
        match known.get(&connection.original) {
            Some(first) if first.reply == connection.reply && first.state == connection.state => Ok(None),
            Some(first) if first.reply != connection.reply => {
                conntrack.remove(first)?;
                conntrack.replace(&connection)
            }
            _ => conntrack.replace(&connection),
        }
    }

    /// The answers go first: conntrack takes them without having seen what they answer.
    fn give(
        &mut self,
        key: &Key,
        entry: &Entry,
        known: &BTreeMap<Tuple, Connection>,
        exported: &mut Exported,
        conntrack: &mut Conntrack,
    ) -> Result<()> {
        // The pod may have ended it since it was listed, and opened another with its tuple, which is the kernel's already.
        let is_still_ours = |there: Entry| there.nat == entry.nat && there.nat_port == entry.nat_port;
        if !self.get(key).is_some_and(is_still_ours) {
            return Ok(());
        }
        let lost = self.make_known(key, entry, known, conntrack)?;
        let answer = entry.peer_key(key);
        self.take_port(
            (&self.connection(key, entry), entry),
            &answer,
            lost,
            exported,
            conntrack,
        )?;
        self.put(answer, answers_to_kernel(key))?;
        self.put(*key, FlowEntry::kernel(0, now()))
    }

    /// Sees to it that conntrack has a flow with its port; `lost`: why it does not yet. `answer`: the key of its answers.
    fn take_port(
        &mut self,
        (connection, entry): (&Connection, &Entry),
        answer: &Key,
        mut lost: Option<Lost>,
        exported: &mut Exported,
        conntrack: &mut Conntrack,
    ) -> Result<()> {
        let is_over = connection.original.protocol == TCP && entry.progress().is_over();
        if lost.is_some() && !is_over {
            // The rule has just chosen its port for another, which was given one more at the uplink.
            self.settle_moved(exported, conntrack)?;
            lost = conntrack.replace(connection)?;
        }
        if lost.is_none() {
            // What the programs have noted of another that had this port in conntrack, and is over, is not for this flow.
            self.remove(&answer.reversed())?;
        } else if is_over {
            // The kernel gives the port of such a one to another, as it does of its own. What is noted is that one's.
            return Ok(());
        }
        exported.count(lost);
        Ok(())
    }

    /// Flows that take the stack, of some of which the kernel translates the destination: their connections are made anew,
    /// with the source as well, and meanwhile no packet may come.
    fn give_held(
        &mut self,
        flows: &[(Key, Entry)],
        known: &BTreeMap<Tuple, Connection>,
        exported: &mut Exported,
        conntrack: &mut Conntrack,
    ) -> Result<()> {
        let mut held = Vec::new();
        for (forward, entry) in flows {
            let translated = self.connection(forward, entry);
            let Some(before) = known.get(&translated.original.reversed()) else {
                self.give(forward, entry, known, exported, conntrack)?;
                continue;
            };
            let mut whole = before.clone();
            whole.reply = translated.reply;
            let source = (self.node(), u16::from_be_bytes(entry.nat_port));
            if let Some(direction) = self.direction(&translated.original, source) {
                self.hold_flow(key(&before.original, true), &direction, entry.progress())?;
            }
            held.push((forward, entry, before, whole));
        }
        if !held.is_empty() {
            let_packets_pass();
        }
        for (forward, entry, before, whole) in held {
            conntrack.remove(before)?;
            let lost = conntrack.replace(&whole)?;
            self.take_port(
                (&whole, entry),
                &entry.peer_key(forward),
                lost,
                exported,
                conntrack,
            )?;
            self.put(entry.peer_key(forward), FlowEntry::kernel(Flags::HOST, now()))?;
            self.put(*forward, FlowEntry::kernel(0, now()))?;
            self.put(key(&whole.original, true), FlowEntry::kernel(0, now()))?;
        }
        Ok(())
    }

    /// Carried flows without translation: of TCP conntrack has seen the handshake only, of others perhaps nothing any more.
    /// It must neither take them for invalid nor for new ones. Returns how many there are.
    fn refresh(&mut self, known: &BTreeMap<Tuple, Connection>, conntrack: &mut Conntrack) -> Result<usize> {
        let is_it = |key: &Key, entry: &Entry| {
            let is_over = key.protocol == TCP && entry.progress().is_over();
            entry.state == State::CARRIED
                && entry.nat == Nat::NONE
                && matches!(key.protocol, TCP | UDP)
                && !is_over
        };
        let mut done = BTreeSet::new();
        for (key, entry) in self.all(is_it)? {
            let seen = tuple(&key);
            let original = known.get(&seen).map_or_else(
                || {
                    if entry.has(Flags::ANSWER) {
                        seen.reversed()
                    } else {
                        seen
                    }
                },
                |connection| connection.original,
            );
            if !done.insert(original) || done.contains(&original.reversed()) {
                continue;
            }
            // A translated connection is the kernel's, and was never carried.
            if known
                .get(&seen)
                .is_some_and(|connection| connection.reply != connection.original.reversed())
            {
                continue;
            }
            conntrack.refresh(&self.open_connection(original, original.reversed(), &entry))?;
        }
        Ok(done.len())
    }
}
