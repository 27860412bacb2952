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
    held::AT_A_TIME,
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
        for others in others.chunks(AT_A_TIME) {
            self.give_held(others, &known, &mut exported, conntrack)?;
        }
        for (key, entry) in &carried {
            self.give(key, entry, &known, &mut exported, conntrack)?;
        }
        // The rule may have chosen ports of flows that had expired meanwhile.
        self.settle_moved(&mut exported, conntrack)?;
        exported.flows += self.refresh(&known, conntrack)?;
        self.forget_untranslated(conntrack)?;
        self.leave_answers()?;
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

    /// Answers that are translated still belong to no flow: a connection that began anew has another port, or was over before
    /// it was listed. One that the kernel opens from such a port gets its answers from the kernel.
    fn leave_answers(&mut self) -> Result<()> {
        let is_it = |key: &Key, entry: &Entry| {
            entry.nat == Nat::DESTINATION && !entry.has(Flags::HOST) && matches!(key.protocol, TCP | UDP)
        };
        for (answer, entry) in self.all(is_it)? {
            self.put(answer, answers_to_kernel(&entry.peer_key(&answer)))?;
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

    /// A flow that was listed, as it is. `None`: the pod has ended it since, and opened another with its tuple, which is the
    /// kernel's already.
    fn still(&self, key: &Key, entry: &Entry) -> Option<Entry> {
        let there = self.get(key)?;
        (there.nat == entry.nat && there.nat_port == entry.nat_port).then_some(there)
    }

    /// A connection that is over, which conntrack knows as long as nobody opens another with its tuple. At any moment the
    /// pod may, and that one is the kernel's: it keeps what conntrack and the programs know of it, and nothing is in its way.
    fn leave(&mut self, key: &Key, entry: &Entry) -> Result<()> {
        self.put(entry.peer_key(key), answers_to_kernel(key))?;
        self.put(*key, FlowEntry::kernel(0, now()))
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
        let Some(there) = self.still(key, entry) else {
            return Ok(());
        };
        if has_ended(key, &there) {
            exported.count(None);
            return self.leave(key, entry);
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
            let before = known.get(&translated.original.reversed());
            let there = self.still(forward, entry);
            let is_live = there.is_some_and(|there| !has_ended(forward, &there));
            let Some(before) = before.filter(|_| is_live) else {
                self.give(forward, entry, known, exported, conntrack)?;
                continue;
            };
            let source = (self.node(), u16::from_be_bytes(entry.nat_port));
            if let Some(direction) = self.direction(&translated.original, source) {
                self.hold_flow(key(&before.original, true), &direction, entry.progress())?;
            }
            held.push((forward, entry, before, translated.reply));
        }
        if !held.is_empty() {
            let_packets_pass();
        }
        for (forward, entry, before, reply) in held {
            // As it was when it was held; unless the pod has opened another by then.
            if let Some(held) = conntrack.again(before)? {
                conntrack.remove(&held)?;
                let whole = Connection { reply, ..held };
                let lost = conntrack.replace(&whole)?;
                let answer = entry.peer_key(forward);
                self.take_port((&whole, entry), &answer, lost, exported, conntrack)?;
            }
            self.put(entry.peer_key(forward), FlowEntry::kernel(Flags::HOST, now()))?;
            self.put(*forward, FlowEntry::kernel(0, now()))?;
            self.put(key(&before.original, true), FlowEntry::kernel(0, now()))?;
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

/// Whether both sides have closed the connection. A reset may have been a stranger's.
fn has_ended(key: &Key, entry: &Entry) -> bool {
    key.protocol == TCP && entry.progress().both(Progress::FIN)
}
